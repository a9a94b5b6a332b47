"""`repa-eval stats`: reference statistics in the ADM layout, with what they were made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from repa_eval.console.app import Command, example
from repa_eval.console.options import choose_device, computing
from repa_eval.errors import UserError

IMAGES = 10_000


@click.command(cls=Command)
@click.argument("data")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="the file, .npz")
@click.option(
    "--extractor", default="inception", show_default=True, help="network; `repa-eval fid` must use the same one"
)
@click.option("--extractor-weights", type=click.Path(path_type=Path), help="file that replaces the extractor's weights")
@click.option(
    "--protocol",
    type=click.Choice(["adm", "torch-fidelity", "clean"]),
    default="adm",
    show_default=True,
    help="whose resize rule",
)
@click.option("--split", default="reference", show_default=True, help="of a data set by name; files have none")
@click.option(
    "--num-images",
    type=click.IntRange(min=0),
    default=IMAGES,
    show_default=True,
    help="images kept in arr_0 for precision and recall, evenly spaced",
)
@click.option("--resize", type=click.IntRange(min=1), help="crop and resize all images to this side")
@computing
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval stats digits --extractor digits --out digits-ref.npz")
def command(data: str, out: Path, batch_size: int, as_json: bool, **given: Any) -> None:
    """Write mean and covariance of all images of DATA, and some of the images, for `repa-eval fid --reference`.

    The layout is that of ADM's reference files: mu, sigma, mu_s, sigma_s (sFID) and arr_0 (precision and recall); the
    entry `provenance` says which extractor, resize rule and images they are of.
    """
    import json

    from repa_eval.evaluation.evaluator_rules import protocol_named
    from repa_eval.interfaces.extractor import load_extractor
    from repa_eval.runtime.distributed import join

    if out.suffix != ".npz":
        raise UserError(f"--out {out}: statistics are an .npz")
    share = join(choose_device(given["device"]))
    source = _source(data, given["split"], given["resize"])
    name = protocol_named(given["protocol"]).extractors.get(given["extractor"], given["extractor"])
    judge = load_extractor(name, given["extractor_weights"]).to(share.device)
    judge.prepare(source)
    found = _write(out, data, source, judge, min(given["num_images"], len(source)), batch_size, share, given["resize"])
    if found is not None:
        told, warnings = found
        click.echo(
            json.dumps({"reference": str(out), "provenance": told, "warnings": warnings})
            if as_json
            else _text(out, found)
        )


def _source(data: str, split: str, resize: int | None) -> Any:
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.interfaces.images import DATA, load_data

    if Path(data).exists():
        return open_images(data, resize=resize)
    if data.partition(":")[0] not in DATA.names():
        raise UserError(f"{data!r} is no folder, .zip, .npz or data ({', '.join(DATA.names())})")
    return load_data(data, split)


def _write(
    out: Path, data: str, source: Any, judge: Any, kept: int, batch_size: int, share: Any, resize: int | None
) -> tuple[dict[str, Any], list[str]] | None:
    """Write the file; return its provenance and what it lacks, None in every process but the first."""
    import numpy as np

    from repa_eval.data.readers.statistics import write_statistics
    from repa_eval.evaluation.sample_features import gather

    seen = gather(source, judge, keep=(), stream=("features", "spatial"), batch_size=batch_size, workers=share)
    if seen is None:
        return None
    arrays = {"mu": seen.moments["features"].mean, "sigma": seen.moments["features"].covariance}
    warnings = []
    if seen.moments["spatial"].n:
        arrays |= {"mu_s": seen.moments["spatial"].mean, "sigma_s": seen.moments["spatial"].covariance}
    else:
        warnings.append(f"no mu_s and sigma_s: extractor {judge.name} has no spatial map, so there is no sFID")
    if not kept:
        warnings.append("no images in arr_0, so there are no precision, recall and other metrics of neighbours")
    if seen.n < 2 * len(arrays["mu"]):
        warnings.append(f"n={seen.n} is below twice the {len(arrays['mu'])} features: the covariance is noisy")
    chosen = np.linspace(0, len(source) - 1, kept).astype(np.int64)
    channels, height, width = source.shape
    told = _provenance(data, source, judge, seen.n, kept, resize)
    write_statistics(out, arrays, _images(source, chosen, batch_size), (kept, height, width, channels), told)
    return told, warnings


def _images(source: Any, indices: Any, batch_size: int) -> Iterator[Any]:
    for first in range(0, len(indices), batch_size):
        yield source.fetch(indices[first : first + batch_size].tolist())[0].numpy().transpose(0, 2, 3, 1)


def _provenance(data: str, source: Any, judge: Any, n: int, kept: int, resize: int | None) -> dict[str, Any]:
    import numpy as np
    import torch

    from repa_eval import __version__
    from repa_eval.evaluation.reference import listing_hash

    place = Path(data)
    files = {"source": str(place.resolve()), "listing": listing_hash(place)} if place.exists() else {"source": data}
    return {
        **files,
        "source_hash": source.digest(),
        "n": n,
        "images_kept": kept,
        "resolution": f"{source.shape[1]}x{source.shape[2]}",
        "input_resize": None if resize is None else f"centre-crop-{resize}",
        "extractor": judge.name,
        "extractor_hash": judge.digest,
        "resize": judge.resize,
        "ddof": 1,
        "versions": {"repa_eval": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }


def _text(out: Path, found: tuple[dict[str, Any], list[str]]) -> str:
    told, warnings = found
    judged = f"extractor {told['extractor']} {told['extractor_hash']}, resize {told['resize']}"
    line = f"{out}: {told['n']} images of {told['resolution']}, {told['images_kept']} of them kept; {judged}"
    return "\n".join([line, *(f"note: {warning}" for warning in warnings)])
