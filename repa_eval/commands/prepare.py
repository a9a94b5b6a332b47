"""`repa-eval prepare`: what training reads, made from images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repa_eval.console.app import Command, example
from repa_eval.errors import UserError

TEACHERS = {"digits": "digits-vit"}  # of data by name; else the one that REPA and GMem are published with
OF_BANKS = ("teacher_name", "teacher_weights", "form", "latent_dim", "snippet")


@click.command(cls=Command)
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
@click.option("--vae", help="also latents: folder or hub name of an AutoencoderKL, such as stabilityai/sd-vae-ft-mse")
@click.option("--resolution", type=click.IntRange(min=1), help="crop and resize the images to this side, as ADM does")
@click.option("--split", default="train", show_default=True, help="of a data set by name; files have none")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True, help="images at once")
@click.option("--quiet", is_flag=True, help="no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval prepare digits bank.safetensors --bank --snippet mean --form svd --latent-dim 16")
def command(src: str, dest: Path, bank: bool, as_json: bool, **given: Any) -> None:
    """Make what trainers read from the images SRC: cropped images and a VAE's latents, or (--bank) a memory bank.

    SRC: a folder of images, a .zip, an .npz with arr_0, or data by name. DEST gets images/ and, with --vae, vae-sd/ in
    the layout of REPA's trainer; with --bank it is a file, the snippet of every image in the order of their paths.
    What a killed call has made is kept: the same command goes on. Under `accelerate launch` or torchrun the processes
    share the images.
    """
    import json

    if bank:
        from repa_eval.preparation.memory_bank import make_bank as make
        from repa_eval.preparation.memory_bank import text_of
    else:
        from repa_eval.preparation.images import make_images as make
        from repa_eval.preparation.images import text_of

    _refuse_others(bank)
    images = _source(src, given["split"], given["resolution"])
    teacher = given.pop("teacher_name") or TEACHERS.get(src, "dinov2-vit-b")
    answer = make(images, dest, {**given, "data": src, "teacher": teacher})
    if answer is not None:
        click.echo(json.dumps(answer) if as_json else text_of(answer))


def _refuse_others(bank: bool) -> None:
    """UserError for an option that belongs to the other kind of work."""
    context = click.get_current_context()
    for name in ("vae",) if bank else OF_BANKS:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            option = "--" + name.removesuffix("_name").replace("_", "-")
            raise UserError(f"{option} does not apply {'to' if bank else 'without'} --bank")


def _source(src: str, split: str, resolution: int | None) -> Any:
    """Return the images of SRC."""
    from repa_eval.data.readers.image_files import open_images
    from repa_eval.interfaces.images import DATA, load_data

    if Path(src).exists():
        return open_images(src, resize=resolution)
    if src.partition(":")[0] not in DATA.names():
        raise UserError(f"{src!r} is no folder, .zip, .npz or data ({', '.join(DATA.names())})")
    if resolution is not None:
        raise UserError(f"--resolution crops image files; {src} has its own size")
    return load_data(src, split)
