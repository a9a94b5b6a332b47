"""Pictures that are tables: tiles in named rows: components of every block's tokens, images between two snippets.

media/<kind>-<step>.json beside the PNG says what the rows are: {"caption", "rows", "columns", "tile"}.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from repa_eval.reports.drawing.strips import Picture, picture_of, size_of, thinned
from repa_eval.reports.numbers.arms import Arm
from repa_eval.runtime.files import parse_json

GAP = 1  # pixels between tiles


@dataclass(frozen=True)
class Grid:
    """One picture with the names of its rows; no names where its side file does not fit."""

    picture: Picture
    rows: tuple[str, ...] = ()
    caption: str = ""


@dataclass(frozen=True)
class Grids:
    """The pictures of one run along training, the last step first."""

    arm: Arm
    run: str
    kind: str
    steps: tuple[Grid, ...]

    @property
    def first(self) -> bool:
        """Return whether this is the arm's first run (seed)."""
        return self.run == self.arm.runs[0]

    @property
    def earlier(self) -> tuple[Grid, ...]:
        """Return the pictures of the steps before the last one, in their order."""
        return self.steps[:0:-1]


def is_grid(name: str, kinds: Collection[str]) -> bool:
    """Return whether a file of media belongs to a grid of these kinds: its picture or its side file."""
    return _named(name, kinds) is not None


def _named(name: str, kinds: Collection[str]) -> re.Match[str] | None:
    choice = "|".join(map(re.escape, kinds))
    return re.match(rf"^(?P<run>.+)/(?P<kind>{choice})-(?P<step>\d+)\.(?P<form>png|json)$", name) if kinds else None


def captions_of(tables: Sequence[Grids]) -> list[str]:
    """Return the different captions of the pictures, in their order."""
    return list(dict.fromkeys(grid.caption for one in tables for grid in one.steps if grid.caption))


def grids(
    media: Mapping[str, bytes], arms: Sequence[Arm], budget: int, *, kinds: Collection[str]
) -> tuple[list[Grids], list[tuple[str, str]]]:
    """Return the grids in order of the arms, and (what, why) for what is not shown as it should be.

    budget: bytes that all pictures together may have; steps are left out evenly to keep to it, never the last one.
    """
    found: dict[tuple[str, str], dict[int, bytes]] = {}
    left: list[tuple[str, str]] = []
    for name in sorted(media):
        parts = _named(name, kinds)
        if parts is None or parts["form"] == "json":
            continue
        if size_of(media[name]) is None:
            left.append((name, "not a readable PNG"))
        else:
            found.setdefault((parts["run"], parts["kind"]), {})[int(parts["step"])] = media[name]
    total = sum(len(data) for steps in found.values() for data in steps.values())
    result = []
    for arm in arms:
        for run, kind in sorted(key for key in found if key[0] in arm.runs):
            steps = found.pop((run, kind))
            kept = thinned(steps, budget / total if total > budget else 1.0)
            if len(kept) < len(steps):
                left.append((f"{kind} of {run}", f"{len(steps) - len(kept)} of {len(steps)} steps left out for size"))
            shown = []
            for step in sorted(kept, reverse=True):
                side = f"{run}/{kind}-{step:07d}.json"
                grid, why = _grid(picture_of(step, kept[step]), media.get(side))
                shown.append(grid)
                left += [(side, why)] if why else []
            result.append(Grids(arm, run, kind, tuple(shown)))
    left += [(f"{run}/{kind}", "the results name no such run") for run, kind in sorted(found)]
    return result, left


def _grid(picture: Picture, side: bytes | None) -> tuple[Grid, str]:
    """Return the picture with the names of its rows, or without them and why."""
    if side is None:
        return Grid(picture), "missing, so the rows of its picture have no names"
    try:
        facts = parse_json(side, "damaged")
        rows, columns, tile = tuple(facts["rows"]), int(facts["columns"]), int(facts["tile"])
        caption = str(facts.get("caption") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Grid(picture), "damaged, so the rows of its picture have no names"
    fits = _fits(picture.height, len(rows), tile) and _fits(picture.width, columns, tile)
    if not fits or not all(isinstance(row, str) for row in rows):
        what = f"{len(rows)} x {columns} tiles of {tile} pixels"
        return Grid(picture, (), caption), f"does not fit its picture of {picture.height} x {picture.width}: {what}"
    return Grid(picture, rows, caption), ""


def _fits(size: int, count: int, tile: int) -> bool:
    """Return whether so many tiles, with gaps between and perhaps around them, have this size."""
    return count > 0 and tile > 0 and count * tile <= size <= count * (tile + GAP) + GAP
