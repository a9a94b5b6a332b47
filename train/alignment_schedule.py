"""How long alignment lasts: a constant weight, a stop, or a decay to it. Shared by every method with a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

from repa_eval.config import option
from repa_eval.errors import UserError


@dataclass(frozen=True, kw_only=True)
class AlignmentSchedule:
    """The course of an alignment's weight over the steps of a run."""

    align_until: int = option(0, help="step from which on nothing is aligned; 0: alignment never stops", least=0)
    align_decay: str = option(
        "constant", help="weight of the alignment before align_until", choices=("constant", "linear", "cosine")
    )
    align_decay_steps: int = option(0, help="steps before align_until over which it decays; 0: all of them", least=0)

    def __post_init__(self) -> None:
        if self.align_decay != "constant" and not self.align_until:
            raise UserError(f"align_decay {self.align_decay}: set align_until, the step at which the alignment ends")

    @property
    def end(self) -> int | None:
        """The step from which on nothing is aligned, None if alignment never stops."""
        return self.align_until or None

    def active(self, step: int) -> bool:
        """Return whether the alignment has a weight at a step, counted from 0."""
        return self.end is None or step < self.end

    def share(self, step: int) -> float:
        """Return the share in [0, 1] of its full weight that the alignment has at a step, counted from 0."""
        if self.end is None:
            return 1.0
        if step >= self.end:
            return 0.0
        if self.align_decay == "constant":
            return 1.0
        return share_left(self.end - step, self.align_decay_steps or self.end, self.align_decay)


def share_left(ahead: int, decay_steps: int, shape: str) -> float:
    """Return the weight `ahead` steps before the stop: 1, over the last `decay_steps` a line or half a cosine to 0."""
    if ahead >= decay_steps:
        return 1.0
    left = ahead / decay_steps
    return left if shape == "linear" else 0.5 * (1 - math.cos(math.pi * left))
