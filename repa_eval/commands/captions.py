"""`repa-eval captions`: whether samples show what their captions say, with soft tokens and without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint, run_columns
from repa_eval.commands.shared.soft_tokens import token_options, with_tokens
from repa_eval.console.app import Command, example
from repa_eval.console.options import choose_device, computing, measuring, opening, parse_floats
from repa_eval.console.tables import deliver, table
from repa_eval.errors import UserError
from repa_eval.results import Row, records_of


@click.command(cls=Command)
@opening
@token_options
@click.option("--num-samples", type=click.IntRange(min=2), default=1000, show_default=True, help="per guidance scale")
@click.option("--num-steps", type=click.IntRange(min=1), default=16, show_default=True, help="Euler steps per sample")
@click.option("--cfg-scales", default="1,1.5,3", show_default=True, help="guidance scales of the curve; 1 = none")
@click.option("--num-images", type=click.IntRange(min=2), default=256, show_default=True, help="held-out images")
@click.option(
    "--candidates", type=click.IntRange(min=2), default=16, show_default=True, help="captions to tell apart, per image"
)
@click.option("--timesteps", help="times at which captions are told apart; default: 0.05 to 0.95")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw both curves: png, svg or pdf")
@click.option("--samples", type=click.Path(dir_okay=False, path_type=Path), help="PNG of samples; words in .json")
@computing
@measuring
@example("repa-eval captions --ckpt runs/digits-softrepa/checkpoints/0001000.pt")
def command(ckpt: str, tokens: str | None, rows: Path | None, as_json: bool, **given: Any) -> None:
    """Measure how well captions are followed, for soft tokens and for the frozen model under them, with equal noise.

    A judge reads the digits of samples (share of digits right, of images with both right), at several guidance scales,
    beside the Frechet distance of their pixels. rank@1: how often the true caption of a held-out image has the lowest
    denoising error among others, at each timestep; no sampling, no judge.
    """
    import json

    import torch

    from repa_eval.evaluation.captions import BASE, TIMESTEPS, Examination, examine, picture
    from repa_eval.runtime.files import write_atomic

    opened = open_checkpoint(ckpt, given)
    model = _model(opened, tokens).to(device=choose_device(given["device"]), dtype=getattr(torch, given["dtype"]))
    plan = Examination(
        num_samples=given["num_samples"],
        num_steps=given["num_steps"],
        cfg_scales=_scales(given["cfg_scales"]),
        num_images=given["num_images"],
        num_candidates=given["candidates"],
        timesteps=_times(given["timesteps"]) or TIMESTEPS,
        seed=given["seed"],
        batch_size=given["batch_size"],
    )
    if given["plot"] is not None:
        _check_plot(given["plot"])
    strengths = {"": 1.0} if model.dc_tokens is None else {"": given["token_strength"], BASE: 0.0}
    columns = {**run_columns(opened), **({"run": Path(tokens).stem, "system": "SoftREPA"} if tokens else {})}
    measured = examine(model, plan, strengths=strengths, columns=columns)
    if given["samples"] is not None:
        image, words = picture(model, plan, list(reversed(strengths.values())))
        write_atomic(given["samples"].with_suffix(".json"), json.dumps(words, indent=1) + "\n")
        write_atomic(given["samples"], image)
    if given["plot"] is not None:
        _plot(measured, given["plot"])
    deliver(measured, to=rows, as_json=as_json, show=_show)


def _model(opened: Any, tokens: str | None) -> Any:
    """Return the text-to-image model, with the soft tokens of a file put in; UserError if there is none."""
    from repa_eval.models.text_to_image import TextToImage

    if not isinstance(opened.model, TextToImage) or not opened.model.config.captions:
        raise UserError(
            f"{opened.path} holds {opened.model_name}, no text-to-image model with captions: digits-softrepa trains one"
        )
    return with_tokens(opened, tokens)


def _scales(text: str) -> tuple[float, ...]:
    scales = tuple(dict.fromkeys(parse_floats(text, "--cfg-scales")))
    if 1.0 not in scales:
        raise UserError(f"--cfg-scales {text!r}: 1 must be among them, no guidance is what is compared first")
    return scales


def _times(text: str | None) -> tuple[float, ...]:
    times = tuple(parse_floats(text, "--timesteps")) if text else ()
    for t in times:
        if not 0.0 <= t <= 1.0:
            raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    return times


def _check_plot(file: Path) -> None:
    from repa_eval.reports.drawing.plots import kind_of

    kind_of(file)


def _plot(rows: Sequence[Row], file: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from repa_eval.reports.drawing.plots import save_captions

    save_captions(rows, records_of(rows), file)


LABELS = {
    "guided_digits": "digits right",
    "guided_both": "both right",
    "guided_fd_pixels": "fd_pixels",
    "caption_rank1": "rank@1",
    "caption_rank1_all": "rank@1, mean error",
}


def _show(rows: Sequence[Row]) -> str:
    """Return a line per number and guidance scale or timestep, a column per model."""
    from repa_eval.evaluation.captions import BASE, FLOOR

    records = records_of(rows)
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        suffix = next((end for end in (BASE, FLOOR) if row.metric.endswith(end)), "")
        label = LABELS.get(row.metric.removesuffix(suffix))
        if label is None:
            continue  # the point of the curve without guidance, under its own name
        scale = records.get(row.protocol or "", {}).get("cfg_scale", 1.0)
        at = "" if label.endswith("error") else f"t {row.timestep:g}" if row.timestep is not None else f"cfg {scale:g}"
        value = "-" if row.value is None else f"{row.value:.3f}"
        cells.setdefault((label, at), {})[suffix] = value + (f" +-{row.stderr:.3f}" if row.stderr else "")
    order = list(LABELS.values())
    ordered = sorted(cells.items(), key=lambda item: order.index(item[0][0]))
    names = {BASE: "frozen model", "": "soft tokens", FLOOR: "real images"}
    if not any(row.metric.endswith(BASE) for row in rows):
        names = {"": "model", FLOOR: "real images"}
    return table(["", "", *names.values()], [[*key, *(found.get(end, "") for end in names)] for key, found in ordered])
