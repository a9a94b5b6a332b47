"""`repa-eval sample --interpolate A,B`: one picture of the way between two snippets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from repa_eval.console.option_groups import given
from repa_eval.errors import UserError
from repa_eval.evaluation.tiles import side_by_side
from repa_eval.runtime.files import write_atomic
from repa_eval.sampling.interpolation import STEPS, images_between


def rows_between(text: str | None, bank: Any) -> tuple[int, int] | None:
    """Return the two rows of "A,B", None if nothing is given; UserError for anything else and without a bank."""
    if text is None:
        if given("interpolation"):
            raise UserError("--interpolation says how: name the two rows with --interpolate A,B")
        return None
    if bank is None:
        raise UserError("--interpolate: this model is conditioned on labels, not on snippets of a memory bank")
    try:
        first, second = (int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--interpolate {text!r}: expected two row numbers, for example 12,345") from error
    for row in (first, second):
        bank.row(row)
    return first, second


def write_between(
    model: Any,
    bank: Any,
    rows: tuple[int, int],
    out: Path,
    settings: Any,
    method: str,
    decode: Any,
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """Write the images side by side as a PNG, and beside it, in OUT.json, how they were made."""
    if out.suffix != ".png":
        raise UserError(f"--out {out}: --interpolate makes one picture, a .png")
    count = int(click.get_current_context().params["num"]) if given("num") else STEPS
    [images] = images_between(model, bank, [rows], settings, steps=count, method=method, decode=decode)
    full_record = {**record, "labels": "between two snippets", "rows": list(rows), "interpolation": method}
    write_atomic(out.with_name(f"{out.name}.json"), json.dumps(full_record, indent=1) + "\n")
    write_atomic(out, side_by_side(images.numpy()))
    return {"picture": str(out), "num": count, "record": full_record}
