"""How much more alike, or more separable, an arm's hidden states are than another's: at the aligned block, small t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm
from repa_eval.reports.numbers.frames import Group, Map, in_order
from repa_eval.reports.numbers.pairs import Spread, pairs_of, spread
from repa_eval.reports.numbers.profiles import by_group

MOST_NOISE = 0.3  # timesteps up to this one: above it the small images of the bundled data hold little


@dataclass(frozen=True)
class Difference:
    """One metric of two arms at one block, as means over the small timesteps, a value per pair of seeds."""

    group: Group
    arm: Arm
    other: Arm
    layer: int
    timesteps: tuple[float, ...]
    own: tuple[float, ...]
    base: tuple[float, ...]

    @property
    def gain(self) -> Spread:
        """Return the arm's value minus the other's, over the pairs."""
        found = spread([own - base for own, base in zip(self.own, self.base, strict=True)])
        assert found is not None, "a difference has one pair at least"
        return found


def differences(maps: Sequence[Map], arm: Arm, other: Arm, layer: int) -> list[Difference]:
    """Return a difference for every group in which both arms have values at the block, at their last common step."""
    result = []
    for group, members in by_group(maps).items():
        found = {one.arm.name: one for one in members}
        if arm.name not in found or other.name not in found or layer not in members[0].layers:
            continue
        own, base = found[arm.name].singles, found[other.name].singles
        pairs = [(own[run], base[partner]) for run, partner in pairs_of(arm, other) if run in own and partner in base]
        cells = [_cells(one, two, layer) for one, two in pairs]
        times = sorted(set.intersection(*map(set, cells))) if cells else []
        if times:
            means = [[sum(cell[t][side] for t in times) / len(times) for cell in cells] for side in (0, 1)]
            result.append(Difference(group, arm, other, layer, tuple(times), tuple(means[0]), tuple(means[1])))
    return result


def _cells(own: Map, base: Map, layer: int) -> dict[float, tuple[float, float]]:
    """Return both values at the block by timestep, at the last step that both were measured at."""
    steps = set(own.values) & set(base.values)
    if not steps:
        return {}
    step = max(steps, key=in_order)
    small = (t for t in own.timesteps if t <= MOST_NOISE + 1e-9)
    both = ((t, own.at(step, layer, t), base.at(step, layer, t)) for t in small)
    return {t: (one, two) for t, one, two in both if one is not None and two is not None}
