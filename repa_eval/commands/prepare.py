"""`repa-eval prepare`: what training reads, made from images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.named_images import open_named
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT
from repa_eval.console.option_groups import flag, given, option_group
from repa_eval.console.options import device_option, json_option, quiet_option
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device

if TYPE_CHECKING:
    from repa_eval.preparation.images import Source, Work

TEACHERS = {"digits": "digits-vit"}  # of data by name; for other images the one that REPA and GMem are published with


@dataclass(frozen=True, kw_only=True)
class BankOptions:
    """What a memory bank holds; these options need --bank."""

    teacher_name: str | None = flag(
        "--teacher",
        metavar="NAME",
        help="bank: teacher whose features it holds; default: digits-vit or dinov2-vit-b",
    )
    teacher_weights: Path | None = flag(
        "--teacher-weights", type=click.Path(path_type=Path), help="bank: load the teacher's weights from this file"
    )
    form: str = flag(
        "--form",
        type=click.Choice(["full", "svd"]),
        default="full",
        help="bank: every snippet, or the leading directions of their SVD",
    )
    latent_dim: int = flag("--latent-dim", type=COUNT, default=64, help="bank, svd: number of directions")
    snippet: str = flag(
        "--snippet",
        type=click.Choice(["cls", "mean"]),
        default="cls",
        help="bank: the teacher's class token, or the mean of its patch tokens",
    )


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """Which images are prepared."""

    resolution: int | None = flag(
        "--resolution", type=COUNT, help="crop and resize the images to this side, as ADM does"
    )
    split: str = flag("--split", metavar="NAME", default="train", help="split of data by name; files have none")


@click.command(cls=Command, short_help="Prepare images, latents or a memory bank")
@click.argument("src")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--bank", is_flag=True, help="write a GMem memory bank to DEST (.safetensors, or .pth as published)")
@option_group("bank_options", BankOptions)
@click.option(
    "--vae", help="also encode latents: folder or hub name of an AutoencoderKL, such as stabilityai/sd-vae-ft-mse"
)
@option_group("images", ImageOptions)
@device_option
@click.option("--batch-size", type=COUNT, default=256, show_default=True, help="images per forward pass")
@quiet_option
@json_option
@example("repa-eval prepare digits bank.safetensors --bank --snippet mean --form svd --latent-dim 16")
def command(
    src: str,
    dest: Path,
    bank: bool,
    bank_options: BankOptions,
    vae: str | None,
    images: ImageOptions,
    device: str,
    batch_size: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Make what trainers read from the images SRC: cropped images and a VAE's latents, or (--bank) a memory bank.

    SRC: a folder of images, a .zip, an .npz with arr_0, or data by name. DEST gets images/ and, with --vae, vae-sd/ in
    the layout of REPA's trainer; with --bank it is a file, the snippet of every image in the order of their paths.
    An interrupted call continues when repeated. Under `accelerate launch` or torchrun the processes share the images.
    """
    import json

    from repa_eval.preparation.images import Source, Work
    from repa_eval.runtime.distributed import join

    _refuse_others(bank)
    pictures, source = (
        open_named(src, split=images.split, resize=images.resolution, option="--resolution"),
        Source(data=src, resolution=images.resolution),
    )
    work = Work(share=join(choose_device(device)), batch_size=batch_size, quiet=quiet)
    if bank:
        answer = _make_bank(pictures, dest, source, work, bank_options)
    else:
        answer = _make_images(pictures, dest, source, work, vae)
    if answer is not None:
        summary, text = answer
        click.echo(json.dumps(summary) if as_json else text)


def _make_images(
    images: Any, dest: Path, source: Source, work: Work, vae: str | None
) -> tuple[dict[str, Any], str] | None:
    from repa_eval.preparation.images import make_images, text_of

    summary = make_images(images, dest, source, work, vae=vae)
    return None if summary is None else (summary, text_of(summary))


def _make_bank(
    images: Any, dest: Path, source: Source, work: Work, options: BankOptions
) -> tuple[dict[str, Any], str] | None:
    from repa_eval.preparation.memory_bank import BankForm, make_bank, text_of

    form = BankForm(
        teacher=options.teacher_name or TEACHERS.get(source.data, "dinov2-vit-b"),
        teacher_weights=options.teacher_weights,
        snippet=options.snippet,
        kind=options.form,
        latent_dim=options.latent_dim,
    )
    summary = make_bank(images, dest, source, work, form=form)
    return None if summary is None else (summary, text_of(summary))


def _refuse_others(bank: bool) -> None:
    """UserError for an option that belongs to the other kind of work."""
    for name in ("vae",) if bank else (field.name for field in fields(BankOptions)):
        if given(name):
            option = "--" + name.removesuffix("_name").replace("_", "-")
            raise UserError(f"{option} does not apply {'to' if bank else 'without'} --bank")
