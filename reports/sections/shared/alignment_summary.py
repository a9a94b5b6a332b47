"""What happened to the hidden states, in words: alignment and probe at one block, difference to the baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm, aligned_block
from repa_eval.reports.numbers.differences import MOST_NOISE, differences
from repa_eval.reports.numbers.frames import Map
from repa_eval.reports.numbers.levels import teacher_levels
from repa_eval.reports.numbers.pairs import Spread, spread
from repa_eval.reports.numbers.profiles import alignment_choice, best_cell, by_group
from repa_eval.reports.numbers.protocols import Records, field
from repa_eval.reports.numbers.words import MINUS, listing, number
from repa_eval.results import Row

PROBE = "probe_accuracy"
TOLD = ("cknna", "cka", PROBE)  # the differences that are told; compare.summary() has all


@dataclass(frozen=True)
class Item:
    """One labelled statement of the summary."""

    label: str
    text: str


def representation_items(maps: Sequence[Map], rows: Sequence[Row], arms: Sequence[Arm], records: Records) -> list[Item]:
    """Return the arms' alignment, probe accuracy, and their differences to the baseline, as far as measured."""
    texts = {
        "Alignment": _alignment(maps, arms, records),
        "Probe": _probe(maps, rows, arms, records),
        "Difference": _gains(maps, arms),
    }
    return [Item(label, text) for label, text in texts.items() if text]


def _alignment(maps: Sequence[Map], arms: Sequence[Arm], records: Records) -> str:
    chosen = alignment_choice([one for one in maps if not one.group.metric.endswith("_accuracy")], arms)
    if chosen is None:
        return ""
    members, layer, timestep = chosen
    teacher = field(records, members[0].group.protocol, "teacher")
    name = members[0].group.metric + (f" with {teacher}" if teacher else "")
    return _values(name, members, layer, timestep)


def _probe(maps: Sequence[Map], rows: Sequence[Row], arms: Sequence[Arm], records: Records) -> str:
    found = [members for group, members in by_group(maps).items() if group.metric == PROBE]
    if not found:
        return ""
    members = max(found, key=len)
    levels = teacher_levels(rows, members[0].group, records)
    beside = listing(f"{level.label} {number(level.value, 2, fixed=True)}" for level in levels)
    more = f"The same probe on a teacher's features of clean images: {beside}." if beside else ""
    return _values(PROBE, members, *best_cell(members, aligned_block(arms)), more)


def _values(name: str, members: Sequence[Map], layer: int, timestep: float, more: str = "") -> str:
    """Return the value of every arm in one cell at the end of training, with its range over seeds."""
    found = {}
    for one in sorted(members, key=lambda one: ("treated", "control", "baseline").index(one.arm.role)):
        cells = [value for own in one.singles.values() if (value := own.at(own.last, layer, timestep)) is not None]
        found[one.arm.name] = spread(cells)
    parts = [_text(arm, values, _plain) for arm, values in found.items() if values]
    end = "" if any(one.last is None for one in members) else ", end of training"
    start = f"{name} at block {layer}, t = {timestep:g}{end}: {', '.join(parts)}."
    return " ".join(filter(None, (start, _legend(found.values()), more))) if parts else ""


def _gains(maps: Sequence[Map], arms: Sequence[Arm]) -> str:
    """Return, for every arm that is not the baseline, how much more it has at its block and small t."""
    baseline = next((arm for arm in arms if arm.role == "baseline"), None)
    block = aligned_block(arms)
    texts: list[str] = []
    gains: list[Spread] = []
    for arm in arms:
        layer = arm.aligned_layer or block
        if baseline is None or arm is baseline or layer is None:
            continue
        told: dict[str, Spread] = {}
        for one in differences(maps, arm, baseline, layer):
            if one.group.metric in TOLD:
                told.setdefault(one.group.metric, one.gain)
        if told:
            parts = ", ".join(_text(metric, gain, _sign) for metric, gain in told.items())
            texts.append(f"{arm.name} minus {baseline.name} at block {layer}, mean over t ≤ {MOST_NOISE:g}: {parts}.")
            gains += told.values()
    return " ".join(filter(None, (*texts, _legend(gains))))


def _plain(value: float) -> str:
    return number(value, 2, fixed=True)


def _sign(value: float) -> str:
    return f"{value:+.2f}".replace("-", MINUS)


def _text(name: str, found: Spread, write: Callable[[float], str]) -> str:
    """Return "repa 0.37 (0.35 to 0.39)"."""
    low, high = write(found.low), write(found.high)
    return f"{name} {write(found.mean)}" + (f" ({low} to {high})" if low != high else "")


def _legend(found: Iterable[Spread | None]) -> str:
    """Return what the brackets mean; nothing where every number is of one seed."""
    counts = sorted({one.seeds for one in found if one is not None and one.seeds > 1})
    return f"In brackets: range over {' or '.join(map(str, counts))} seeds." if counts else ""
