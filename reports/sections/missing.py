"""What a reader may look for in vain: why it is missing, and the command that produces it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.numbers.arms import Arm, run_name
from repa_eval.reports.numbers.frames import (
    SECONDS,
    TEACHER,
    Group,
    clock,
    is_curve_row,
    is_map_row,
    split,
    without_merged,
)
from repa_eval.reports.numbers.levels import teacher_levels
from repa_eval.reports.numbers.probed import probed
from repa_eval.reports.numbers.profiles import PROBES
from repa_eval.reports.numbers.protocols import Records
from repa_eval.reports.numbers.words import listing, plural
from repa_eval.reports.page import Page
from repa_eval.results import Row

DONE = frozenset({"done", "finished", "complete", "completed", "ok"})
PICTURES = {"samples": "samples along training", "pca": "principal components of the tokens"}


@dataclass(frozen=True)
class Gap:
    """One missing thing."""

    what: str
    why: str
    command: str = ""  # for the first run that lacks it; empty where no command would help
    others: str = ""  # the runs that need the same
    run: str = ""  # the run that the command is for


@section(order=130, anchor="missing", title="What is missing, and why", name="Missing", pictures=True)
def build(page: Page) -> dict[str, Any]:
    """Return the gaps, those of pictures and figures among them."""
    arms = without_merged(page.arms, page.rows)
    gaps = missing(page.rows, page.curves, arms, page.runs, records=page.records, media=page.media)
    unpaired = [_possible(gap, page.runs) for gap in _unpaired(page)]
    return {"gaps": [*gaps, *unpaired, *(Gap(what, why) for what, why in page.pictures.left_out)]}


def _unpaired(page: Page) -> list[Gap]:
    """Return why there is no figure of quality against a probe, where both were measured."""
    probes = [one for one in page.maps if one.group.metric in PROBES]
    panel = page.headline
    if not probes or panel is None or probed(page.maps, page.rows, panel, page.arms) is not None:
        return []
    what, run = f"{panel.group.metric} against {probes[0].group.metric}", probes[0].arm.runs[0]
    why = "fewer than two steps have both" if panel.direction == "lower" else "no distance was measured"
    return [Gap(what, why, sweep(run), run=run)]


def missing(
    rows: Sequence[Row],
    curves: Sequence[Row],
    arms: Sequence[Arm],
    runs: Mapping[str, Mapping[str, Any]],
    *,
    records: Records | None = None,
    media: Iterable[str] = (),
) -> list[Gap]:
    """Return everything that a reader may look for in vain. media: names of the pictures at hand."""
    names = [run for arm in arms for run in arm.runs]
    found = [
        Gap(
            f"run {name}",
            f"status is {facts['status']!r}{_reason(facts)}, so its last rows may be missing",
            _resume(name),
            run=name,
        )
        for name, facts in runs.items()
        if facts.get("status") and str(facts["status"]).lower() not in DONE
    ]
    found += _absent_metrics(rows, arms)
    found += _nulls([*rows, *curves])
    if names:
        found += _absent_kinds(rows, arms, names)
        found += _absent_levels(rows, arms, names, records or {})
        found += _absent_pictures(media, arms, names)
    found += _without_clock(rows, curves, arms)
    if not curves and names:
        found.append(_gap("training curves", "no log.jsonl with the results; training writes it", names, _again))
    return [_possible(gap, runs) for gap in found]


def _possible(gap: Gap, runs: Mapping[str, Mapping[str, Any]]) -> Gap:
    """Return the gap; of a run that repa-train did not make, with the command that measured it, where that can help."""
    facts = runs.get(gap.run, {})
    if "origin" not in facts or not gap.command:
        return gap
    helps = gap.what in SWEPT or gap.command.startswith("repa-eval sweep")
    command = facts.get("measured_by") if helps else None
    return replace(gap, command=command if isinstance(command, str) else "")


def _reason(facts: Mapping[str, Any]) -> str:
    """Return why a run failed, in brackets, where it says so."""
    return f" ({facts['reason']})" if isinstance(facts.get("reason"), str) else ""


# probes measured on request only, with the name of their --kinds
FURTHER_PROBES = {"linear_bn_accuracy": "linear-bn", "logistic_accuracy": "logistic"}


MAPS = "layer by timestep maps of alignment"
SWEPT = frozenset({"cknna", "cka", "mutual_knn", *PROBES, *(f"{probe} of the teacher" for probe in PROBES), MAPS})


def sweep(run: str) -> str:
    """Return the command that measures every checkpoint of a run."""
    return f"repa-eval sweep {shlex.quote(run)}"


def _sweep_with_teacher(run: str, arms: Sequence[Arm]) -> str:
    return sweep(run) + _teacher(run, arms)


def _resume(run: str) -> str:
    return f"{_again(run, run)} --resume"


def _again(run: str, to: str = "") -> str:
    """Return the command that trains the run's recipe once more, into another folder."""
    return f"repa-train --recipe {shlex.quote(f'{run}/recipe.yaml')} --out {shlex.quote(to or f'{run}-again')}"


def _measure(run: str, metric: str, rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    """Return the command that makes a metric's rows of a run's last checkpoint, and appends them to its table."""
    if metric not in ("cknna", "cka", *PROBES) and not any(is_map_row(row) for row in rows if row.metric == metric):
        return sweep(run)
    step = max((row.step for row in rows if run_name(row) == run and row.step is not None), default=None)
    ckpt = shlex.quote(f"{run}/checkpoints/{step:07d}.pt" if step is not None else run)
    table = f"--layers all --rows {shlex.quote(f'{run}/results.jsonl')}"
    who = _teacher(run, arms)
    if metric in PROBES:
        return f"repa-eval probe --ckpt {ckpt}{who} {table}"
    if metric in FURTHER_PROBES:
        return f"repa-eval probe --ckpt {ckpt} --kinds {FURTHER_PROBES[metric]}{who} {table}"
    return f"repa-eval align --ckpt {ckpt} --metrics {shlex.quote(metric)}{who} {table}"


def _teacher(run: str, arms: Sequence[Arm]) -> str:
    """Return the option that names the treated arms' teacher, for runs that were trained without it."""
    teacher = next((arm.teacher for arm in arms if arm.role == "treated" and arm.teacher), None)
    own = next((arm.teacher for arm in arms if run in arm.runs), None)
    return f" --teacher {shlex.quote(teacher)}" if teacher and teacher != own else ""


def _gap(what: str, why: str, without: Sequence[str], command: Callable[[str], str]) -> Gap:
    return Gap(what, why, command(without[0]), listing(without[1:]), without[0])


def _absent_metrics(rows: Sequence[Row], arms: Sequence[Arm]) -> list[Gap]:
    """Return the metrics that some runs have and others lack."""
    found = []
    chosen = [row for row in rows if is_map_row(row) or is_curve_row(row)]
    for metric in dict.fromkeys(row.metric for row in chosen):
        have = {run_name(row) for row in chosen if row.metric == metric}
        without = [run for arm in arms for run in arm.runs if run not in have]
        if without:
            why = f"no rows for {listing(without)}"
            found.append(_gap(metric, why, without, partial(_measure, metric=metric, rows=rows, arms=arms)))
    return found


def _absent_kinds(rows: Sequence[Row], arms: Sequence[Arm], names: Sequence[str]) -> list[Gap]:
    """Return the kinds of numbers that no run has."""
    metrics = {row.metric for row in rows if is_map_row(row)}
    found = []
    if not any(is_curve_row(row) for row in rows):
        found.append(_gap("sample quality", "no rows of sample quality", names, sweep))
    if not metrics - set(PROBES):
        why = "no rows with a layer and a timestep"
        found.append(
            _gap(
                MAPS,
                why,
                names,
                partial(_measure, metric="cknna", rows=rows, arms=arms),
            )
        )
    for metric in PROBES:
        if metric not in metrics:
            why = "no rows of this metric"
            found.append(_gap(metric, why, names, partial(_measure, metric=metric, rows=rows, arms=arms)))
    return found


def _absent_levels(rows: Sequence[Row], arms: Sequence[Arm], names: Sequence[str], records: Records) -> list[Gap]:
    """Return the probes for which the teacher itself was not measured."""
    found = []
    for group in sorted(split(row for row in rows if is_map_row(row) and row.metric in PROBES), key=Group.order):
        if teacher_levels(rows, group, records):
            continue
        some = any(row.metric == group.metric + TEACHER for row in rows)
        why = "measured with other images or another recipe than the hidden states" if some else "no rows of it"
        what = f"{group.metric} of the teacher"
        own = [run for run in names if any(run_name(row) == run and Group.of(row) == group for row in rows)]
        found.append(_gap(what, why, own, partial(_measure, metric=group.metric, rows=rows, arms=arms)))
    return found


def _absent_pictures(media: Iterable[str], arms: Sequence[Arm], names: Sequence[str]) -> list[Gap]:
    have = set(media)
    found = []
    for kind, what in PICTURES.items():
        prefixes = {run: f"{run}/{kind}-" for run in names}
        without = [run for run in names if not any(name.startswith(prefixes[run]) for name in have)]
        if without:
            why = f"no media/{kind}-<step>.png of {listing(without)}"
            found.append(
                _gap(
                    what,
                    why,
                    without,
                    partial(_sweep_with_teacher, arms=arms) if kind == "pca" else sweep,
                )
            )
    return found


def _without_clock(rows: Sequence[Row], curves: Sequence[Row], arms: Sequence[Arm]) -> list[Gap]:
    timing = [row for row in (*curves, *rows) if row.metric == SECONDS]
    found = []
    for run in (run for arm in arms for run in arm.runs):
        if not clock(timing, run):
            some = any(run_name(row) == run for row in timing)
            why = f"{SECONDS} decreases, so it is not cumulative time" if some else f"no rows of {SECONDS}"
            found.append(
                Gap(f"training seconds of {run}", f"{why}; only training can measure them", _again(run), run=run)
            )
    return found


def _nulls(rows: Sequence[Row]) -> list[Gap]:
    """Return the values that are no numbers, with the recorded reason; measuring again would not help."""
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.value is None:
            grouped.setdefault((row.metric, run_name(row), row.note or "no reason was recorded"), []).append(row)
    found = []
    for (metric, run, note), members in grouped.items():
        steps = sorted({row.step for row in members if row.step is not None})
        where = f" at step {steps[0]}" if len(steps) == 1 else f" at {len(steps)} steps" if steps else ""
        count = f", {plural(len(members), 'value')}" if len(members) > len(steps) else ""
        found.append(Gap(f"{metric} of {run}{where}{count}", note))
    return found
