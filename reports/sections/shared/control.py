"""What a control says about the gain of the treated ones, e.g. alignment to a teacher with random weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from repa_eval.reports.numbers.arms import Arm
from repa_eval.reports.numbers.compare import Comparison, compare
from repa_eval.reports.numbers.frames import Panel
from repa_eval.reports.numbers.words import listing, over_seeds, plural
from repa_eval.results import Row

ALL_OF_IT = 0.8  # share of the gain from which the control counts as showing (nearly) all of it
NONE_OF_IT = 0.2


def control_text(
    control: Arm,
    treated: Sequence[Arm],
    results: Mapping[str, Comparison | None],
    panel: Panel,
    rows: Sequence[Row],
) -> str:
    """Return what the control shows about the gain of each treated arm, in plain words."""
    own = results.get(control.name)
    what = introduction(control)
    if own is None:
        return f"{what} Its {panel.group.metric} cannot be compared, so the cause of a gain remains open."
    metric, word = own.group.metric, own.direction or "higher"
    found = own.spread
    ratio = ""
    if found is not None:
        ratio = f", mean ratio {over_seeds(found.mean, found.low, found.high, found.seeds)}"
    parts = [
        what,
        f"Its {metric} is {word} than {own.other.name}'s at {own.better} of {plural(own.points, 'point')}{ratio}",
    ]
    against = [(arm, compare(panel, rows, control, arm)) for arm in treated]
    beside = [f"{word} than {arm.name}'s at {c.better} of {c.points}" for arm, c in against if c is not None]
    parts[-1] += f", and {listing(beside)}." if beside else "."
    parts += [_credit(results.get(arm.name), own, arm, control) for arm in treated]
    return " ".join(filter(None, parts))


def introduction(control: Arm) -> str:
    """Return who the control is, in its recipe's own words."""
    words = control.description.rstrip(".")
    if not words:
        return f"{control.name} is the control."
    if words.startswith("the control"):
        return f"{control.name} is {words}."
    return f"{control.name} is the control ({words})."


def gain(result: Comparison) -> float | None:
    """Return the log-ratio of a comparison, positive where the arm is better."""
    if result.ratio is None:
        return None
    sign = -1.0 if result.direction == "lower" else 1.0
    return sign * math.log(result.ratio)


def _credit(result: Comparison | None, own: Comparison, arm: Arm, control: Arm) -> str:
    if result is None:
        return ""
    metric = own.group.metric
    if result.outcome != "better":
        return f"{arm.name} shows no gain in {metric} that would need an explanation."
    whole, part = gain(result), gain(own)
    if whole is None or part is None or whole <= 0:
        return f"There is no ratio to compare, so the cause of {arm.name}'s gain remains open."
    share = part / whole
    if share >= ALL_OF_IT:
        amount = "at least as much" if share >= 1 else "nearly as much"
        return (
            f"The control gains {amount}, so {arm.name}'s gain in {metric} cannot be attributed "
            "to what its teacher learned."
        )
    if share >= NONE_OF_IT:
        return (
            f"The control shows {100 * share:.0f} % of {arm.name}'s gain (in log ratio): "
            "at most the rest can be attributed to what the teacher learned."
        )
    return f"The control does not show {arm.name}'s gain, so it does not explain that gain away."
