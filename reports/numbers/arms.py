"""Runs and arms: an arm is one configuration, its runs are its seeds. Roles decide colours and comparisons."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repa_eval.results import Row

UNNAMED = "(unnamed run)"
BASELINE = "baseline"  # key of the facts of the run that somebody chose to compare with
TREATED_COLOURS = ("a1", "a2", "a3", "a4", "a5")
CONTROL_COLOURS = ("k1", "k2")
_SEED = re.compile(r"^(?P<arm>.+)-s(?P<seed>\d+)$")


@dataclass(frozen=True)
class Arm:
    """One configuration and the runs (seeds) that were trained with it."""

    name: str
    role: str  # baseline, treated or control
    runs: tuple[str, ...]
    colour: str  # key of a CSS variable: the same arm has the same colour in every figure
    dashed: bool = False
    method: str | None = None
    description: str = ""
    teacher: str | None = None
    aligned_layer: int | None = None


def run_name(row: Row) -> str:
    """Return the row's run, or a stand-in for rows that name none."""
    return row.run if row.run is not None else UNNAMED


def of_a_run(row: Row) -> bool:
    """Return whether a run produced the row; reference levels name no run, no step and no layer."""
    return row.run is not None or row.step is not None or row.layer is not None


def seed_of(run: str, arm: str) -> str:
    """Return what tells the runs of an arm apart: "" or "-s1"; runs of two arms with the same one are a pair."""
    return run.removeprefix(arm)


def arms_of(rows: Sequence[Row], runs: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
    """Return the arms: baseline first, then what is compared to it, then the controls.

    The baseline is the arm of the run that was chosen, else the one of the method vanilla.
    """
    names = list(dict.fromkeys([*runs, *(run_name(row) for row in rows if of_a_run(row))]))
    methods = {run_name(row): row.method for row in rows if row.method}
    grouped: dict[str, list[str]] = {}
    for name in names:
        grouped.setdefault(_arm_name(name, names), []).append(name)
    drafts = [_draft(arm, tuple(members), runs, methods) for arm, members in grouped.items()]
    chosen = [arm for arm in drafts if any(runs.get(run, {}).get(BASELINE) is True for run in arm.runs)]
    vanilla = [arm for arm in drafts if arm.method == "vanilla" and arm.role != "control"]
    baseline = next(iter(chosen or vanilla), None)
    treated = [arm for arm in drafts if arm is not baseline and arm.role != "control"]
    controls = [arm for arm in drafts if arm is not baseline and arm.role == "control"]
    result = [_paint(baseline, "baseline", "base", dashed=False)] if baseline else []
    result += [_paint(arm, "treated", *_cycle(TREATED_COLOURS, place)) for place, arm in enumerate(treated)]
    result += [_paint(arm, "control", _cycle(CONTROL_COLOURS, place)[0], True) for place, arm in enumerate(controls)]
    return result


def aligned_block(arms: Sequence[Arm]) -> int | None:
    """Return the block at which the first treated arm that says so is aligned."""
    return next((arm.aligned_layer for arm in arms if arm.role == "treated" and arm.aligned_layer), None)


def _arm_name(run: str, names: Sequence[str]) -> str:
    found = _SEED.match(run)
    if not found:
        return run
    arm = found["arm"]
    siblings = [name for name in names if name == arm or ((other := _SEED.match(name)) and other["arm"] == arm)]
    return arm if len(siblings) > 1 else run


def _draft(
    name: str, members: tuple[str, ...], runs: Mapping[str, Mapping[str, Any]], methods: Mapping[str, str | None]
) -> Arm:
    facts = next((runs[member] for member in members if runs.get(member)), {})
    layer = facts.get("aligned_layer")
    teacher = facts.get("teacher")
    return Arm(
        name=name,
        role="control" if facts.get("control") is True else "",
        runs=members,
        colour="",
        method=str(facts["method"]) if facts.get("method") else methods.get(members[0]),
        description=str(facts.get("description") or ""),
        teacher=str(teacher) if teacher else None,
        aligned_layer=layer if isinstance(layer, int) and not isinstance(layer, bool) else None,
    )


def _paint(arm: Arm, role: str, colour: str, dashed: bool) -> Arm:
    return replace(arm, role=role, colour=colour, dashed=dashed)


def _cycle(colours: Sequence[str], place: int) -> tuple[str, bool]:
    return colours[place % len(colours)], place >= len(colours)
