"""`repa-eval fid`: quality of generated images against a reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.quality_options import (
    METRICS,
    judges_of,
    open_reference,
    protocols_named,
    weights_by_extractor,
)
from repa_eval.console.app import Command, example
from repa_eval.console.options import choose_device, computing, measuring
from repa_eval.console.tables import deliver, table
from repa_eval.errors import UserError
from repa_eval.results import Row
from repa_eval.runtime.files import write_atomic

# what tells one checkpoint from another stands in the columns: a protocol is the same along a whole curve
COLUMNS = ("run", "system", "method", "step", "weights", "train_seed")
LEFT_OUT = {*COLUMNS, "extractor", "data", "weights_hash", "batch_size"} - {"weights"}
PROTOCOLS = ("adm", "torch-fidelity", "clean", "all")


@click.command(cls=Command)
@click.option(
    "--samples", required=True, type=click.Path(path_type=Path), help="folder of images, .zip or .npz (arr_0)"
)
@click.option(
    "--reference", help="images, a file of statistics or a data set; default: the data recorded beside the samples"
)
@click.option(
    "--extractor",
    "extractor_name",
    default="auto",
    show_default=True,
    help="network that judges the images: a name of `repa-eval list extractors`, or module:Class of your own",
)
@click.option(
    "--extractor-weights",
    "extractor_weights",
    multiple=True,
    metavar="[NAME=]FILE",
    help="file that replaces the extractor's weights; NAME= for that of another extractor",
)
@click.option(
    "--metrics", default=METRICS, show_default=True, help="see `repa-eval list metrics`; fd_dinov2: on that extractor"
)
@click.option(
    "--protocol", type=click.Choice(PROTOCOLS), default="adm", show_default=True, help="whose resize, splits and draws"
)
@click.option("--resize", type=click.IntRange(min=1), help="crop and resize all images to this side")
@click.option("--held-out", help="real images that were not trained on, for the metric memorisation")
@click.option(
    "--neighbours",
    type=click.Path(dir_okay=False, path_type=Path),
    help="PNG: samples beside their nearest real images",
)
@computing
@measuring
@example("repa-eval fid --samples samples")
def command(samples: Path, rows: Path | None, as_json: bool, **given: Any) -> None:
    """Measure Frechet distance, inception score, precision and recall of generated images.

    The names say what judged: fid, sfid, inception_score, precision, recall are Inception's; fd_digits, is_digits,
    precision_digits, recall_digits are those of the extractor `digits`. Under `accelerate launch` or torchrun every
    process takes its share of the images; the numbers are the same.
    """
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.interfaces.extractor import load_extractor
    from repa_eval.runtime.distributed import join
    from repa_eval.sampling.sample_files import read_record

    share = join(choose_device(given["device"]))
    made = read_record(samples) or {}
    chosen = None if given["extractor_name"] == "auto" else given["extractor_name"]
    default = chosen or made.get("extractor") or "inception"
    fake = open_images(samples, resize=given["resize"])
    reference = open_reference(given["reference"], made, samples, given["resize"])
    weights = weights_by_extractor(given["extractor_weights"], default)
    plan = judges_of(given["metrics"], chosen, default)
    judges = {name: load_extractor(name, weights.get(name)).to(share.device) for name in plan}
    protocols = [
        (rules, _with_rules(judges, rules, weights, share.device)) for rules in protocols_named(given["protocol"])
    ]
    measured = _measure(fake, reference, plan, protocols, made, share, given)
    if given["neighbours"]:
        _picture(fake, reference, next(iter(judges.values())), given, share)
    if share.first:
        if not measured:
            raise UserError(f"extractor {default} gives none of the metrics {given['metrics']}")
        judged = ", ".join(plan)
        deliver(measured, to=rows, as_json=as_json, show=lambda shown: _show(shown, judged, reference, protocols))


def _with_rules(judges: dict[str, Any], rules: Any, weights: dict[str, Path], device: str) -> dict[str, Any]:
    """Return the judges under a protocol: where its resize rule is another, another one stands in."""
    from repa_eval.interfaces.extractor import load_extractor

    return {
        name: load_extractor(rules.extractors[name], weights.get(name)).to(device)
        if name in rules.extractors
        else judge
        for name, judge in judges.items()
    }


def _measure(
    fake: Any,
    reference: Any,
    plan: dict[str, list[str]],
    protocols: Sequence[tuple[Any, dict[str, Any]]],
    made: dict[str, Any],
    share: Any,
    given: dict[str, Any],
) -> list[Row]:
    from repa_eval.data.readers.statistics import Statistics
    from repa_eval.evaluation.reference import refuse_misfit
    from repa_eval.evaluation.sample_quality import evaluate

    columns = {**{key: made.get(key) for key in COLUMNS}, "seed": made.get("sampler_seed")}
    protocol = {key: value for key, value in made.items() if key not in LEFT_OUT}
    if given["resize"]:
        protocol["input_resize"] = f"centre-crop-{given['resize']}"
    held_out = _held_out(given["held_out"], given["resize"])
    memo: dict[Any, Any] = {}
    measured: list[Row] = []
    for rules, judges in protocols:
        for name, metrics in plan.items():
            if isinstance(reference, Statistics):
                refuse_misfit(reference, judges[name], fake.shape)
            measured += evaluate(
                fake,
                reference,
                judges[name],
                metrics=metrics,
                protocol=protocol,
                columns=columns,
                batch_size=given["batch_size"],
                rules=rules,
                held_out=held_out,
                workers=share,
                device=share.device,
                memo=memo,
            )
    return measured


def _held_out(given: str | None, resize: int | None) -> Any:
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.interfaces.images import load_data

    if given is None:
        return None
    return open_images(given, resize=resize) if Path(given).exists() else load_data(given, "test")


def _picture(fake: Any, reference: Any, judge: Any, given: dict[str, Any], share: Any) -> None:
    """Write the picture of nearest neighbours."""
    from repa_eval.evaluation.nearest_images import nearest_picture

    images = getattr(reference, "images", None) if hasattr(reference, "provenance") else reference
    if images is None:
        raise UserError(f"--neighbours needs real images, and {reference.name} has none (arr_0)")
    found = nearest_picture(fake, images, judge, batch_size=given["batch_size"], workers=share)
    if found is not None:
        write_atomic(given["neighbours"], found[0])


def _show(rows: Sequence[Row], extractors: str, reference: Any, protocols: Sequence[tuple[Any, Any]]) -> str:
    count = (
        f"{len(reference)} images" if hasattr(reference, "__len__") else f"statistics of {reference.n or '?'} images"
    )
    title = f"n={rows[0].n}, extractor {extractors}, reference {reference.name} ({count})"
    told = []
    for rules, judges in protocols:
        resize = ", ".join(f"{name} {judge.resize}" for name, judge in judges.items())
        told.append(f"protocol {rules.name}: resize {resize}, {rules.says()}")
    notes = sorted({f"note: {row.note}" for row in rows if row.note})
    return "\n".join([title, *told, _table(rows), *notes])


def _table(rows: Sequence[Row]) -> str:
    """Return the numbers, those of several protocols side by side."""
    columns = list(dict.fromkeys(row.protocol for row in rows))
    groups = _by_rules(rows)
    if len(groups) == 1 or len(columns) == 1:
        return table(
            ["metric", "value", "stderr"], [[row.metric, _number(row.value), _number(row.stderr)] for row in rows]
        )
    names = list(dict.fromkeys(row.metric for row in rows))
    body = []
    for name in names:
        found = [{row.metric: row.value for row in group}.get(name) for group in groups.values()]
        body.append([name, *map(_number, found)])
    return table(["metric", *groups], body)


def _by_rules(rows: Sequence[Row]) -> dict[str, list[Row]]:
    from repa_eval.results import records_of

    records, groups = records_of(rows), {}  # type: tuple[dict[str, Any], dict[str, list[Row]]]
    for row in rows:
        groups.setdefault(records[row.protocol or ""].get("rules", "adm"), []).append(row)
    return groups


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
