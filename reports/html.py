"""The report: rows in, one self-contained HTML file out. Pure: no clock, no network, no randomness."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from repa_eval.errors import UserError
from repa_eval.reports.drawing import figures
from repa_eval.reports.drawing.figure import LARGE, Figure, Ids
from repa_eval.reports.drawing.grids import chapters, drawn, grids, is_grid
from repa_eval.reports.drawing.strips import strips
from repa_eval.reports.inputs import Inputs, collect
from repa_eval.reports.numbers.arms import Arm, arms_of
from repa_eval.reports.numbers.frames import SECONDS, Map, Panel, is_curve_row, maps_of, quality_panels, training_panels
from repa_eval.reports.numbers.protocols import Records, families, flat, shorten, without_record
from repa_eval.reports.sections import captions
from repa_eval.reports.sections import curves as sections
from repa_eval.reports.sections import maps as representations
from repa_eval.reports.sections.final_values import final_table, last_steps, remarks
from repa_eval.reports.sections.merged import lead_of, merges, without_merged
from repa_eval.reports.sections.missing import Gap, missing, sweep
from repa_eval.reports.sections.summary import Verdict, verdict
from repa_eval.reports.words import direction, number
from repa_eval.results import Row

__all__ = ["Inputs", "collect", "render"]

LIMIT = 2_900_000  # bytes of a report, so that it stays below 3 MB
TEMPLATES = Path(__file__).parent / "templates"


def render(
    rows: Sequence[Row],
    *,
    curves: Sequence[Row] = (),
    media: Mapping[str, bytes] | None = None,
    protocols: Records | None = None,
    runs: Mapping[str, Mapping[str, Any]] | None = None,
    title: str = "Representation alignment report",
) -> str:
    """Return the report as HTML text; equal arguments give equal bytes.

    rows: the table of results, of one run or many. curves: rows of log.jsonl. media: "<run>/<kind>-<step>.png"
    -> PNG bytes. protocols: hash -> record. runs: name -> contents of run.json. UserError if there are no rows.
    """
    if not rows:
        raise UserError("nothing to report: the table of results is empty")
    media, protocols, runs = media or {}, protocols or {}, runs or {}
    arms = arms_of([*rows, *curves], runs)
    timing = [row for row in (*curves, *rows) if row.metric == SECONDS]
    panels = quality_panels(rows, arms)
    maps = maps_of(rows, arms)
    summary = verdict(rows, timing, panels, maps, arms, protocols)
    gaps = missing(rows, curves, without_merged(arms, rows), runs, records=protocols, media=media)
    ends = {step for step in last_steps(rows, arms).values() if step}
    ids = Ids()
    hero = _hero(summary, ids, protocols)
    merged = merges(rows, ids, protocols)
    summary = _led(summary, rows, arms, merged)
    blocks, map_data = representations.map_blocks(maps, rows, ids, protocols)
    against = representations.quality_against_probe(maps, rows, summary.panel, arms, ids, protocols)
    gaps += _no_pairs(maps, summary.panel, against)
    context = {
        "title": title,
        "subtitle": _subtitle(rows, arms),
        "summary": summary,
        "arms": arms,
        "hero": hero,
        "finals": final_table(rows, arms, timing),
        "final_step": ends.pop() if len(ends) == 1 else None,
        "quality": [sections.quality(panel, ids, protocols) for panel in panels],
        "seconds": sections.seconds(panels, rows, timing, ids, protocols),
        "values": _values(panels),
        "notes": sections.protocol_notes([row for row in rows if is_curve_row(row)], protocols),
        "blocks": blocks,
        "against": against,
        "steps": sorted({int(step) for one in maps for step in one.values}),
        "training": sections.training(training_panels([row for row in curves if row.metric != SECONDS], arms), ids),
        "of_captions": captions.drawn(rows, arms, protocols, ids),
        "families": families(rows, protocols),
        "unrecorded": without_record(rows, protocols),
        "runs": _runs_table(runs),
        "remarks": remarks(rows),
        "merges": merged,
        "several_seeds": any(len(arm.runs) > 1 for arm in arms),
        "missing": gaps,
        "versions": sorted({row.version for row in rows}),
        "data": _script_json({"maps": map_data, "colours": figures.palette()}),
        "gradient": ", ".join(figures.palette(9)),
        "css": Markup(_asset("report.css")),
        "js": Markup(_asset("report.js")),
    }
    return _with_pictures(context, media, arms)


def _led(summary: Verdict, rows: Sequence[Row], arms: Sequence[Arm], merged: Any) -> Verdict:
    """Return the summary with the lead of merged encoders, or of captions, where there is nothing above them."""
    if merged and not without_merged(arms, rows):
        return replace(summary, lead=lead_of(merged))
    if summary.panel is None and (lead := captions.lead_of(rows, arms)):
        return replace(summary, lead=lead)
    return summary


def _with_pictures(context: Mapping[str, Any], media: Mapping[str, bytes], arms: Sequence[Arm]) -> str:
    """Return the page; pictures get what room the rest leaves."""
    text = str(_template().render(context, strips={}, chapters=[], drawn=None))
    if not media:
        return text
    room = max(0, LIMIT - len(text.encode())) * 3 // 4  # base64 makes 4 bytes of 3
    tables, unnamed = grids(media, arms, room // 3)
    used = sum(len(grid.picture.uri) for one in tables for grid in one.steps) * 3 // 4
    pictures, hidden = strips({name: media[name] for name in media if not is_grid(name)}, arms, room - used)
    gaps = [*context["missing"], *(Gap(what, why) for what, why in (*unnamed, *hidden))]
    found = {"strips": _by_kind(pictures), "chapters": chapters(tables), "drawn": drawn(tables), "missing": gaps}
    return str(_template().render(context, **found))


def _no_pairs(maps: Sequence[Map], panel: Panel | None, drawn: Figure | None) -> list[Gap]:
    """Return why there is no figure of quality against a probe, where both were measured."""
    probed = [one for one in maps if one.group.metric in representations.PROBES]
    if drawn is not None or not probed or panel is None:
        return []
    what, run = f"{panel.group.metric} against {probed[0].group.metric}", probed[0].arm.runs[0]
    distance = direction(panel.group.metric) == "lower"
    return [Gap(what, "fewer than two steps have both" if distance else "no distance was measured", sweep(run))]


def _hero(summary: Verdict, ids: Ids, records: Records) -> Figure | None:
    return None if summary.panel is None else sections.quality(summary.panel, ids, records, width=LARGE)


def _subtitle(rows: Sequence[Row], arms: Sequence[Arm]) -> str:
    names = [run for arm in arms for run in arm.runs]
    last = max((row.step for row in rows if row.step is not None), default=None)
    parts = [f"{len(names)} run{'s' if len(names) != 1 else ''}: {', '.join(names)}"]
    return " · ".join(parts + ([f"up to step {last}"] if last is not None else []) + [f"{len(rows)} numbers"])


def _values(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    """Return every curve as a table: for those who want the numbers."""
    tables = []
    for panel in panels:
        columns = [dict(curve.mean) for curve in panel.curves]
        steps = sorted({step for column in columns for step in column})
        lines = [(f"{step:.0f}", [number(column.get(step)) for column in columns]) for step in steps]
        tables.append({"group": panel.group, "names": [curve.arm.name for curve in panel.curves], "lines": lines})
    return tables


def _by_kind(pictures: Sequence[Any]) -> dict[str, list[Any]]:
    kinds: dict[str, list[Any]] = {}
    for strip in sorted(pictures, key=lambda strip: strip.kind != "samples"):
        kinds.setdefault(strip.kind, []).append(strip)
    return kinds


def _runs_table(runs: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    tables = {name: flat(facts) for name, facts in runs.items()}
    fields = dict.fromkeys(field for table in tables.values() for field in table)
    return list(tables), [
        (field, [shorten(table.get(field, ""), 400) for table in tables.values()]) for field in fields
    ]


def _script_json(data: Mapping[str, Any]) -> Markup:
    """Return JSON that cannot close its script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _asset(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


@cache
def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["drawing"] = Markup  # our own SVG: matplotlib has escaped its text
    return environment.get_template("report.html")
