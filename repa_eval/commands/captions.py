"""`repa-eval captions`: whether samples match their captions, with soft tokens and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint, run_columns
from repa_eval.commands.shared.soft_tokens import TokenOptions, token_options, with_tokens
from repa_eval.console.app import Command, example
from repa_eval.console.file_types import PngFile
from repa_eval.console.numbers import COUNT, Whole
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import (
    CheckpointOptions,
    ComputeOptions,
    RowsOptions,
    checkpoint_options,
    compute_options,
    parse_floats,
    parse_times,
    rows_options,
)
from repa_eval.console.tables import deliver, table
from repa_eval.errors import UserError
from repa_eval.reports.drawing.plot_files import kind_of
from repa_eval.results import Row, records_of
from repa_eval.runtime.device import choose_device

if TYPE_CHECKING:
    from repa_eval.evaluation.captions import Examination
    from repa_eval.models.text_to_image import TextToImage


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """How much is measured, and what is drawn."""

    num_samples: int = flag("--num-samples", type=Whole(2), default=1000, help="samples per guidance scale")
    num_steps: int = flag("--num-steps", type=COUNT, default=16, help="Euler steps per sample")
    cfg_scales: str = flag(
        "--cfg-scales", metavar="S[,S]", default="1,1.5,3", help="guidance scales of the curve; 1 = no guidance"
    )
    num_images: int = flag(
        "--num-images", type=Whole(2), default=256, help="held-out images whose caption is looked for"
    )
    candidates: int = flag(
        "--candidates", type=Whole(2), default=16, help="captions per image, one of them the true one"
    )
    times: str | None = flag(
        "--timesteps", metavar="T[,T]", help="times at which the candidates are compared; default: 0.05 to 0.95"
    )
    plot: Path | None = flag(
        "--plot", type=click.Path(dir_okay=False, path_type=Path), help="draw both curves to this file (png, svg, pdf)"
    )
    samples: Path | None = flag(
        "--samples",
        type=PngFile(),
        help="write samples to this PNG, and their captions to a .json of the same name",
    )


@click.command(cls=Command, short_help="Score how often samples match captions")
@checkpoint_options
@token_options
@option_group("options", CaptionOptions)
@compute_options
@rows_options
@example("repa-eval captions --ckpt runs/digits-softrepa/checkpoints/0001000.pt")
def command(
    checkpoint: CheckpointOptions,
    soft_tokens: TokenOptions,
    options: CaptionOptions,
    compute: ComputeOptions,
    output: RowsOptions,
) -> None:
    """Measure how often samples match their captions, for soft tokens and for the frozen model, with equal noise.

    A classifier reads the digits of samples (share of digits right, of images with both right) at several guidance
    scales; the Frechet distance of their pixels is measured too. rank@1: how often the true caption of a held-out image
    has the lowest denoising error among the candidates, at each timestep; it needs no samples and no classifier.
    """
    import torch

    from repa_eval.evaluation.captions import BASE, examine

    opened = open_checkpoint(checkpoint.ckpt, checkpoint)
    model = _model(opened, soft_tokens.tokens)
    model = model.to(device=choose_device(compute.device), dtype=getattr(torch, checkpoint.dtype))
    plan = _plan(options, compute)
    if options.plot is not None:
        kind_of(options.plot)
    strengths = {"": 1.0} if model.dc_tokens is None else {"": soft_tokens.token_strength, BASE: 0.0}
    rows = examine(model, plan, strengths=strengths, columns=_columns(opened, soft_tokens.tokens))
    deliver(rows, output, show=_show)
    if options.samples is not None:
        _write_samples(options.samples, model, plan, strengths)
    if options.plot is not None:
        _plot(rows, options.plot)


def _plan(options: CaptionOptions, compute: ComputeOptions) -> Examination:
    from repa_eval.evaluation.captions import TIMESTEPS, Examination

    return Examination(
        num_samples=options.num_samples,
        num_steps=options.num_steps,
        cfg_scales=_scales(options.cfg_scales),
        num_images=options.num_images,
        num_candidates=options.candidates,
        timesteps=TIMESTEPS if options.times is None else tuple(parse_times(options.times)),
        seed=compute.seed,
        batch_size=compute.batch_size,
    )


def _columns(opened: Any, tokens: str | None) -> dict[str, Any]:
    return {**run_columns(opened), **({"run": Path(tokens).stem, "system": "SoftREPA"} if tokens else {})}


def _write_samples(file: Path, model: TextToImage, plan: Examination, strengths: Mapping[str, float]) -> None:
    """Write a PNG of samples at each strength of the soft tokens, and their captions as JSON."""
    import json

    from repa_eval.evaluation.captions import picture
    from repa_eval.runtime.files import write_atomic

    image, words = picture(model, plan, list(strengths.values())[::-1])
    write_atomic(file.with_suffix(".json"), json.dumps(words, indent=1) + "\n")
    write_atomic(file, image)


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
        raise UserError(f"--cfg-scales {text!r}: must include 1 (no guidance), the point that is compared first")
    if min(scales) < 1:
        raise UserError(f"--cfg-scales {text!r}: a guidance scale is at least 1 (no guidance)")
    return scales


def _plot(rows: Sequence[Row], file: Path) -> None:
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
