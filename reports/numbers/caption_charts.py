"""How well captions are followed: rank@1 of the true caption over timesteps, and quality over guidance scales.

Runs are shown at their last step; the frozen model under them, measured beside each with the same noise, is dashed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from repa_eval.reports.numbers.arms import Arm, run_name
from repa_eval.reports.numbers.frames import FROZEN, Curve, Group, Panel, Points, mean_of
from repa_eval.reports.numbers.protocols import Records, flat
from repa_eval.reports.numbers.words import number
from repa_eval.results import Row

# metric -> (title, x axis, y axis)
SHOWN = {
    "caption_rank1": ("rank@1 of the true caption", "timestep t (1 = noise)", "share of images (higher is better)"),
    "guided_digits": ("digits right", "guidance scale (1 = none)", "share of digits (higher is better)"),
    "guided_both": ("both digits right", "guidance scale (1 = none)", "share of images (higher is better)"),
    "guided_fd_pixels": ("fd_pixels", "guidance scale (1 = none)", "Fréchet distance (lower is better)"),
}


@dataclass(frozen=True)
class Chart:
    """One pair of axes and its words."""

    panel: Panel
    title: str
    xlabel: str


def charts(rows: Sequence[Row], arms: Sequence[Arm], records: Records) -> list[Chart]:
    """Return the charts; numbers of other protocols, but for the guidance scale, are never in one."""
    result = []
    for metric, (title, xlabel, ylabel) in SHOWN.items():
        own = [row for row in rows if row.metric.removesuffix(FROZEN) == metric and row.value is not None]
        for members in _alike(own, records):
            curves = [*_frozen(members, arms, records), *_curves(members, arms, records, suffix="")]
            if curves:
                n = members[0].n
                group = Group(metric, members[0].protocol, members[0].weights, n)
                result.append(Chart(Panel(group, tuple(curves), label=ylabel), title, xlabel))
    return result


def lead_of(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """Return the first sentence of a report of captions only: digits that match, and the distance; or nothing."""
    sentences = []
    for run in (run for arm in arms for run in arm.runs):
        own = [row for row in rows if run_name(row) == run and row.value is not None]
        last = max((row.step for row in own if row.metric == "caption_digits" and row.step is not None), default=None)
        values = {row.metric: number(row.value) for row in own if row.step == last}
        if last is None or "caption_digits" + FROZEN not in values:
            continue
        text = f"{run}: without guidance, {values['caption_digits']} of the digits match the caption "
        text += f"(frozen model: {values['caption_digits' + FROZEN]})"
        if {"fd_pixels", "fd_pixels" + FROZEN} <= set(values):
            text += f"; the Fréchet distance on pixels is {values['fd_pixels']} "
            text += f"(frozen model: {values['fd_pixels' + FROZEN]})"
        sentences.append(f"{text}.")
    return " ".join(sentences)


def _alike(rows: Sequence[Row], records: Records) -> list[list[Row]]:
    """Return the rows by what their protocols agree in, the guidance scale aside."""
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        record = {key: value for key, value in flat(records.get(row.protocol or "", {})).items() if key != "cfg_scale"}
        record.pop("token_strength", None)  # 0 for the frozen model, which belongs beside them
        found.setdefault((row.n, row.weights, tuple(record.items()) or row.protocol), []).append(row)
    return list(found.values())


def _curves(rows: Sequence[Row], arms: Sequence[Arm], records: Records, *, suffix: str) -> list[Curve]:
    mine = [row for row in rows if row.metric.endswith(FROZEN) == bool(suffix)]
    curves = []
    for arm in arms:
        seeds = tuple(points for run in arm.runs if (points := _points(mine, run, records)))
        if seeds:
            curves.append(Curve(arm, mean_of(seeds), seeds))
    return curves


def _frozen(rows: Sequence[Row], arms: Sequence[Arm], records: Records) -> list[Curve]:
    """Return one curve for each network that the runs share: equal numbers are one network."""
    different = dict.fromkeys(seed for curve in _curves(rows, arms, records, suffix=FROZEN) for seed in curve.seeds)
    names = (
        ["frozen model"] if len(different) < 2 else [f"frozen model {place}" for place, _ in enumerate(different, 1)]
    )
    frozen = (Arm(name, "baseline", (), "base", dashed=True) for name in names)
    return [Curve(arm, points, (points,)) for arm, points in zip(frozen, different, strict=False)]


def _points(rows: Sequence[Row], run: str, records: Records) -> Points:
    own = [row for row in rows if run_name(row) == run]
    last = max((row.step or 0 for row in own), default=0)
    found: dict[float, list[float]] = {}
    for row in own:
        scale = records.get(row.protocol or "", {}).get("cfg_scale")
        x = row.timestep if row.timestep is not None else scale
        if x is not None and row.value is not None and (row.step or 0) == last:
            found.setdefault(float(x), []).append(row.value)
    return tuple((x, sum(values) / len(values)) for x, values in sorted(found.items()))
