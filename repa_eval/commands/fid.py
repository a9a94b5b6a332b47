"""`repa-eval fid`: quality of generated images against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import OneLine, choose_device, computing, deliver, example, measuring, table
from repa_eval.errors import UserError
from repa_eval.results import Row

METRICS = "fd,inception_score,precision_recall"


@click.command(cls=OneLine)
@click.option(
    "--samples", required=True, type=click.Path(path_type=Path), help="folder of images, .zip or .npz (arr_0)"
)
@click.option("--reference", help="images to compare with; default: the data recorded beside the samples")
@click.option("--extractor", "extractor_name", default="auto", show_default=True, help="network that judges the images")
@click.option("--extractor-weights", type=click.Path(path_type=Path), help="file that replaces the extractor's weights")
@click.option("--metrics", default=METRICS, show_default=True, help="see `repa-eval list metrics`")
@computing
@measuring
@example("repa-eval fid --samples samples")
def command(samples: Path, rows: Path | None, as_json: bool, **given: Any) -> None:
    """Measure Frechet distance, inception score, precision and recall of generated images.

    The names say what judged: fid, inception_score, precision, recall are Inception's; fd_digits, is_digits,
    precision_digits, recall_digits are those of the extractor `digits`.
    """
    from repa_eval.data.files import open_images
    from repa_eval.extractors._registry import load_extractor
    from repa_eval.fidelity import evaluate
    from repa_eval.samples import read_record

    fake = open_images(samples)
    made = read_record(samples) or {}
    reference = _reference(given["reference"], made, samples)
    name = given["extractor_name"]
    chosen = (made.get("extractor") or "inception") if name == "auto" else name
    judge = load_extractor(chosen, given["extractor_weights"]).to(choose_device(given["device"]))
    metrics = [metric.strip() for metric in given["metrics"].split(",")]
    names = ("run", "system", "method", "step", "weights", "train_seed")
    columns = {**{key: made.get(key) for key in names}, "seed": made.get("sampler_seed")}
    # what tells one checkpoint from another stands in the columns: a protocol is the same along a whole curve
    left_out = {*names, "extractor", "data", "weights_hash", "batch_size"} - {"weights"}
    protocol = {key: value for key, value in made.items() if key not in left_out}
    measured = evaluate(
        fake, reference, judge, metrics=metrics, protocol=protocol, columns=columns, batch_size=given["batch_size"]
    )
    deliver(measured, to=rows, as_json=as_json, show=lambda shown: _show(shown, judge.name, reference))


def _reference(given: str | None, made: dict[str, Any], samples: Path) -> Any:
    """Return the reference named by the user, else the data recorded beside the samples."""
    from repa_eval.data._registry import DATA, load_data
    from repa_eval.data.files import open_images

    name = given or made.get("data")
    if not name:
        raise UserError(
            f"{samples} names no reference: add --reference DIR, --reference FILE.npz or --reference digits"
        )
    if Path(name).exists():
        return open_images(name)
    if name.partition(":")[0] not in DATA.names():
        raise UserError(f"reference {name!r} is no folder, .zip, .npz or data ({', '.join(DATA.names())})")
    return load_data(name, "reference")


def _show(rows: Sequence[Row], extractor: str, reference: Any) -> str:
    body = [[row.metric, "-" if row.value is None else f"{row.value:.4f}"] for row in rows]
    notes = sorted({f"note: {row.note}" for row in rows if row.note})
    title = f"n={rows[0].n}, extractor {extractor}, reference {reference.name} ({len(reference)} images)"
    return "\n".join([title, table(["metric", "value"], body), *notes])
