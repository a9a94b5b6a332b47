"""`repa-eval stats`: reference statistics in the ADM layout, with what they were made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.named_images import open_named
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT, Whole
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import ComputeOptions, compute_options, json_option
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device


@dataclass(frozen=True, kw_only=True)
class StatsOptions:
    """Which images and which extractor the statistics are of."""

    extractor: str = flag(
        "--extractor",
        metavar="NAME",
        default="inception",
        help="network that extracts features; `repa-eval fid` must use the same one",
    )
    extractor_weights: Path | None = flag(
        "--extractor-weights", type=click.Path(path_type=Path), help="load the extractor's weights from this file"
    )
    protocol: str = flag(
        "--protocol",
        type=click.Choice(["adm", "torch-fidelity", "clean"]),
        default="adm",
        help="published evaluator whose resize rule is used",
    )
    split: str = flag("--split", metavar="NAME", default="reference", help="split of data by name; files have none")
    num_images: int = flag(
        "--num-images",
        type=Whole(0),
        default=10_000,
        help="number of images kept in arr_0 for precision and recall, evenly spaced",
    )
    resize: int | None = flag("--resize", type=COUNT, help="crop and resize all images to this side in pixels")


@click.command(cls=Command, short_help="Write reference statistics for fid")
@click.argument("data")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="file to write (.npz)")
@option_group("options", StatsOptions)
@compute_options
@json_option
@example("repa-eval stats digits --extractor digits --out digits-ref.npz")
def command(data: str, out: Path, options: StatsOptions, compute: ComputeOptions, as_json: bool) -> None:
    """Write mean and covariance of all images of DATA, and some of the images, for `repa-eval fid --reference`.

    The layout is that of ADM's reference files: mu, sigma, mu_s, sigma_s (sFID) and arr_0 (precision and recall); the
    entry `provenance` records their extractor, resize rule and images.
    """
    import json

    from repa_eval.evaluation.evaluator_rules import protocol_named
    from repa_eval.evaluation.reference_file import ReferenceImages, write_reference
    from repa_eval.interfaces.extractor import load_extractor
    from repa_eval.runtime.distributed import join

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: statistics are written as .npz; choose such a name")
    share = join(choose_device(compute.device))
    source = open_named(data, split=options.split, resize=options.resize)
    name = protocol_named(options.protocol).extractors.get(options.extractor, options.extractor)
    extractor = load_extractor(name, options.extractor_weights).to(share.device)
    extractor.prepare(source)
    images = ReferenceImages(data=data, source=source, resize=options.resize)
    written = write_reference(
        out, images, extractor, keep=options.num_images, batch_size=compute.batch_size, workers=share
    )
    if written is not None:
        provenance, warnings = written
        answer = {"reference": str(out), "provenance": provenance, "warnings": warnings}
        click.echo(json.dumps(answer) if as_json else _text(out, provenance, warnings))


def _text(out: Path, provenance: Mapping[str, Any], warnings: Sequence[str]) -> str:
    extractor = f"{provenance['extractor']} {provenance['extractor_hash']}, resize {provenance['resize']}"
    count = f"{provenance['n']} images of {provenance['resolution']}, {provenance['images_kept']} of them kept"
    return "\n".join([f"{out}: {count}; extractor {extractor}", *(f"note: {warning}" for warning in warnings)])
