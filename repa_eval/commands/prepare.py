"""`repa-eval prepare`: what training reads, made from images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import OneLine, example
from repa_eval.errors import UserError

TEACHERS = {"digits": "digits-vit"}  # of data by name; else the one that REPA and GMem are published with


@click.command(cls=OneLine)
@click.argument("src")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--bank", is_flag=True, help="a GMem memory bank, into DEST: .safetensors, or .pth as published")
@click.option("--teacher", "teacher_name", help="bank: whose features; default: digits-vit or dinov2-vit-b")
@click.option("--teacher-weights", type=click.Path(path_type=Path), help="bank: file of the teacher's weights")
@click.option(
    "--form",
    type=click.Choice(["full", "svd"]),
    default="full",
    show_default=True,
    help="bank: every snippet, or the SVD of all of them",
)
@click.option("--latent-dim", type=click.IntRange(min=1), default=64, show_default=True, help="bank, svd: directions")
@click.option(
    "--snippet",
    type=click.Choice(["cls", "mean"]),
    default="cls",
    show_default=True,
    help="bank: the teacher's class token, or the mean of its patches",
)
@click.option("--resolution", type=click.IntRange(min=1), help="crop and resize the images to this side, as ADM does")
@click.option("--split", default="train", show_default=True, help="of a data set by name; files have none")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="images at once")
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval prepare digits bank.safetensors --bank --form svd --latent-dim 16")
def command(src: str, dest: Path, bank: bool, as_json: bool, **given: Any) -> None:
    """Make a GMem memory bank: the snippet of every image in SRC, in the order of their paths.

    SRC: a folder of images, a .zip, an .npz with arr_0, or data by name. What a killed call has computed lies beside
    DEST and is kept: the same command goes on. Under `accelerate launch` or torchrun the processes share the images.
    """
    import json

    if not bank:
        raise UserError("prepare makes memory banks so far: add --bank (images and latents are not made yet)")
    from repa_eval.commands._prepare_bank import make_bank, text_of

    images = _source(src, given["split"], given["resolution"])
    teacher_name = given.pop("teacher_name") or TEACHERS.get(src, "dinov2-vit-b")
    answer = make_bank(images, dest, {**given, "data": src, "teacher": teacher_name})
    if answer is not None:
        click.echo(json.dumps(answer) if as_json else text_of(answer))


def _source(src: str, split: str, resolution: int | None) -> Any:
    """Return the images of SRC."""
    from repa_eval.data._registry import DATA, load_data
    from repa_eval.data.files import open_images

    if Path(src).exists():
        return open_images(src, resize=resolution)
    if src.partition(":")[0] not in DATA.names():
        raise UserError(f"{src!r} is no folder, .zip, .npz or data ({', '.join(DATA.names())})")
    if resolution is not None:
        raise UserError(f"--resolution crops image files; {src} has its own size")
    return load_data(src, split)
