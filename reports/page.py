"""What a section of the report is given: the inputs, and what several sections need computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repa_eval.reports.drawing.grids import Grids, grids, is_grid
from repa_eval.reports.drawing.strips import Strip, strips
from repa_eval.reports.numbers.arms import Arm, arms_of
from repa_eval.reports.numbers.compare import headline_panel
from repa_eval.reports.numbers.frames import SECONDS, Map, Panel, maps_of, quality_panels
from repa_eval.reports.numbers.protocols import Records
from repa_eval.reports.numbers.words import Metrics
from repa_eval.results import Row


@dataclass(frozen=True)
class Pictures:
    """The pictures of all runs that fit on the page. left_out: (what, why) for each that is not shown."""

    grids: tuple[Grids, ...] = ()
    strips: tuple[Strip, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()

    def of_kind(self, kind: str) -> tuple[Grids, ...]:
        """Return the grids of one kind, in order of the arms."""
        return tuple(one for one in self.grids if one.kind == kind)


@dataclass(frozen=True, kw_only=True)
class Page:
    """The prepared inputs of a report.

    rows: the table of results. curves: rows of log.jsonl. timing: the rows of both that hold training seconds.
    media: "<run>/<kind>-<step>.png" -> PNG bytes. records: protocol hash -> record. runs: name -> run.json.
    metrics: direction and meaning of a metric.
    arms: the runs by configuration, the baseline first. panels: sample quality over steps, the metrics in reading
    order; headline: the one that decides the summary. maps: layer x timestep values. pictures: see `Pictures`.
    """

    rows: Sequence[Row]
    curves: Sequence[Row]
    timing: Sequence[Row]
    media: Mapping[str, bytes]
    records: Records
    runs: Mapping[str, Mapping[str, Any]]
    metrics: Metrics
    arms: Sequence[Arm]
    panels: Sequence[Panel]
    headline: Panel | None
    maps: Sequence[Map]
    pictures: Pictures = field(default_factory=Pictures)

    @property
    def several_seeds(self) -> bool:
        """Return whether an arm has more than one run."""
        return any(len(arm.runs) > 1 for arm in self.arms)


def prepare(
    rows: Sequence[Row],
    curves: Sequence[Row],
    media: Mapping[str, bytes],
    records: Records,
    runs: Mapping[str, Mapping[str, Any]],
    metrics: Metrics,
) -> Page:
    """Return the page's inputs, without pictures: how many fit is known when the rest is written."""
    arms = arms_of([*rows, *curves], runs)
    panels = quality_panels(rows, arms, metrics)
    return Page(
        rows=rows,
        curves=curves,
        timing=[row for row in (*curves, *rows) if row.metric == SECONDS],
        media=media,
        records=records,
        runs=runs,
        metrics=metrics,
        arms=arms,
        panels=panels,
        headline=headline_panel(panels),
        maps=maps_of(rows, arms),
    )


def fitting(media: Mapping[str, bytes], arms: Sequence[Arm], kinds: Iterable[str], room: int) -> Pictures:
    """Return the pictures that fit into `room` bytes, a third of them for the grids, which are of these `kinds`."""
    kinds = tuple(kinds)
    tables, unnamed = grids(media, arms, room // 3, kinds=kinds)
    used = sum(len(grid.picture.uri) for one in tables for grid in one.steps) * 3 // 4
    others = {name: media[name] for name in media if not is_grid(name, kinds)}
    shown, hidden = strips(others, arms, room - used)
    return Pictures(tuple(tables), tuple(shown), (*unnamed, *hidden))
