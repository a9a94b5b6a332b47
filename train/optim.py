"""The optimiser and its schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from repa_eval.config import option
from repa_eval.errors import UserError, first_line, unknown

GROUP_KEYS = ("params", "lr", "weight_decay", "betas", "eps")
PEAK = "peak_lr"  # entry of a group with a learning rate of its own


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW as REPA sets it (its train.py): constant rate, no weight decay, clip at 1."""

    learning_rate: float = option(1e-4, help="peak learning rate", least=0)
    schedule: str = option("constant", help="after the warm-up", choices=("constant", "cosine"))
    warmup_steps: int = option(0, help="steps of linear warm-up", least=0)
    adam_beta1: float = option(0.9, help="AdamW's first beta", least=0, most=1 - 1e-9)
    adam_beta2: float = option(0.999, help="AdamW's second beta", least=0, most=1 - 1e-9)
    adam_epsilon: float = option(1e-8, help="AdamW's epsilon", least=0)
    weight_decay: float = option(0.0, help="AdamW's weight decay", least=0)
    max_grad_norm: float = option(1.0, help="gradients are clipped to this global norm", least=0)

    @property
    def ends(self) -> bool:
        """Whether rates depend on the last step, so that a run of other length is another run from its first step."""
        return self.schedule == "cosine"

    def build(self, parameters: Iterable[nn.Parameter | Mapping[str, Any]]) -> torch.optim.AdamW:
        """Return AdamW over parameters, or over groups of them with settings of their own (`parameter_groups`).

        UserError for a setting that a group cannot have, and for a parameter in two groups.
        """
        chosen: list[Any] = [_group(entry) if isinstance(entry, Mapping) else entry for entry in parameters]
        try:
            return torch.optim.AdamW(
                chosen,
                lr=self.learning_rate,
                betas=(self.adam_beta1, self.adam_beta2),
                eps=self.adam_epsilon,
                weight_decay=self.weight_decay,
                fused=True,  # one kernel a tensor on CPU and CUDA; a loop over small tensors costs more than the update
            )
        except ValueError as error:
            raise UserError(f"optim: {first_line(error)}") from error

    def rate(self, step: int, max_steps: int, *, peak: float | None = None) -> float:
        """Return the learning rate of update number `step`, counted from 0. peak: by default `learning_rate`."""
        peak = self.learning_rate if peak is None else peak
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return peak
        done = (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)
        return peak * 0.5 * (1 + math.cos(math.pi * done))

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int, max_steps: int) -> None:
        """Give every group of an optimiser its learning rate of update number `step`."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step, max_steps, peak=group.get(PEAK))


def _group(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group as torch takes it; its own learning rate is kept as the peak of its schedule."""
    for key in entry:
        if key not in GROUP_KEYS:
            raise unknown("key of a parameter group", key, GROUP_KEYS)
    return {**entry, PEAK: entry["lr"]} if "lr" in entry else dict(entry)


@dataclass(frozen=True, kw_only=True)
class Average:
    """Exponential moving average of all named parameters (REPA: 0.9999 from the first step on)."""

    ema_decay: float = option(0.9999, help="decay of the averaged weights", least=0, most=1)
    ema_schedule: str = option(
        "constant",
        help="ramp: min(decay, (1 + i)/(10 + i)); cosine: decay -> 1",
        choices=("constant", "ramp", "cosine"),
    )

    @property
    def ends(self) -> bool:
        """Whether decays depend on the last step, so that a run of other length is another run from its first step."""
        return self.ema_schedule == "cosine"

    def decay(self, step: int, max_steps: int) -> float:
        """Return the decay of update number `step`, counted from 0."""
        if self.ema_schedule == "ramp":
            return min(self.ema_decay, (1 + step) / (10 + step))
        if self.ema_schedule == "cosine":
            return 1 - (1 - self.ema_decay) * 0.5 * (1 + math.cos(math.pi * step / max(1, max_steps)))
        return self.ema_decay
