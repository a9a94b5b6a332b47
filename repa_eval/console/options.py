"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import click

from repa_eval.console.numbers import COUNT, SEED, Whole
from repa_eval.console.option_groups import flag, option_group
from repa_eval.diffusion.timesteps import TIMESTEPS
from repa_eval.errors import UserError
from repa_eval.results import table_path

DTYPES = ("float32", "bfloat16", "float16", "float64")
DEVICES = "auto, cpu, cuda or cuda:N"


@dataclass(frozen=True, kw_only=True)
class ComputeOptions:
    """Where and how a command computes."""

    seed: int = flag("--seed", type=SEED, default=0, help="random seed of noise and labels")
    device: str = flag("--device", default="auto", help=DEVICES)
    batch_size: int = flag("--batch-size", type=COUNT, default=256, help="images per forward pass")
    quiet: bool = flag("--quiet", is_flag=True, help="show no progress on stderr")


def _checked_table(_context: click.Context, _parameter: click.Parameter, path: Path | None) -> Path | None:
    """Return the table of --rows; UserError, before anything is measured, where no rows can be added to it."""
    if path is not None:
        table = table_path(path)
        nearest = next(folder for folder in (table, *table.absolute().parents) if folder.exists())
        if not os.access(nearest, os.W_OK):
            raise UserError(f"--rows {path}: {nearest} is read-only")
    return path


@dataclass(frozen=True, kw_only=True)
class RowsOptions:
    """What becomes of the rows that a command measured."""

    rows: Path | None = flag(
        "--rows",
        type=click.Path(path_type=Path),
        callback=_checked_table,
        help="also append the rows to this table: FILE.jsonl, or a folder for its results.jsonl",
    )
    as_json: bool = flag("--json", is_flag=True, help="print only JSON on stdout")


@dataclass(frozen=True, kw_only=True)
class LoadingOptions:
    """How a checkpoint is opened."""

    weights: str = flag(
        "--weights",
        type=click.Choice(["ema", "online"]),
        default="ema",
        help="ema: the exponential moving average; online: the weights as the optimiser left them",
    )
    settings: tuple[str, ...] = flag(
        "--set",
        multiple=True,
        metavar="KEY=VALUE",
        help="what the file does not record, such as num_heads=6 or system=DiT",
    )
    allow_nan: bool = flag("--allow-nan", is_flag=True, help="open even if weights contain NaN or inf")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(LoadingOptions):
    """The checkpoint that a command computes with."""

    ckpt: str = flag(
        "--ckpt",
        metavar="PATH|hf:OWNER/NAME",
        required=True,
        help="checkpoint: a file, a folder or hf:owner/name[:file]",
    )
    dtype: str = flag(
        "--dtype", type=click.Choice(DTYPES), default="float32", help="floating-point type of the forward passes"
    )


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """A grid of layers and timesteps, and what it is measured with."""

    layers: str = flag(
        "--layer", "--layers", metavar="all|N[,N]", default="all", help="blocks to measure; the first one is 1"
    )
    timesteps: str = flag(
        "--timesteps",
        metavar="T[,T]",
        default=",".join(f"{t:g}" for t in TIMESTEPS),
        help="times in [0, 1]: 0 is data, 1 is noise",
    )
    teacher_name: str | None = flag(
        "--teacher", metavar="NAME[,NAME]", help="default: the teacher that the checkpoint was trained with"
    )
    teacher_weights: Path | None = flag(
        "--teacher-weights",
        type=click.Path(path_type=Path),
        help="load the teacher's weights from this file, also for the class token that REG reads",
    )
    data_name: str | None = flag(
        "--data",
        metavar="NAME|KIND:PATH",
        help="images: a path, or a name such as digits or hf:NAME; default: the registered data that the checkpoint "
        "was trained on",
    )

    @property
    def weights(self) -> str | None:
        """The file of --teacher-weights."""
        return None if self.teacher_weights is None else str(self.teacher_weights)

    def times(self) -> list[float]:
        """Return the timesteps as numbers; UserError for one outside [0, 1]."""
        return parse_times(self.timesteps)


@dataclass(frozen=True, kw_only=True)
class LatentOptions:
    """How images become what a model reads, where it reads latents."""

    vae: str | None = flag(
        "--vae",
        metavar="NAME|FOLDER",
        help="encode the images by this VAE of diffusers: ema or mse (Stable Diffusion's), a name on the Hugging Face "
        "hub, or a folder; latents that the data holds are used as they are",
    )
    resolution: int | None = flag(
        "--resolution", type=COUNT, metavar="N", help="crop and resize image files to N pixels, as ADM does"
    )
    posterior: str = flag(
        "--posterior",
        type=click.Choice(["sample", "mean"]),
        default="sample",
        help="sample: a latent is drawn by --seed and the image's index; mean: the VAE's mean",
    )
    latent_scale: str | None = flag(
        "--latent-scale",
        metavar="SCALE[,SHIFT]|FILE",
        help="the model reads (latent - SHIFT) * SCALE, or (latent - mean) / std of the channels in a file such as "
        "latents_stats.pt; wins over the checkpoint's, the data's and the VAE's own scale, which are otherwise used in "
        "this order",
    )


@dataclass(frozen=True, kw_only=True)
class DataOptions(LatentOptions):
    """Which images are measured, and how they become what a model reads."""

    split: str | None = flag(
        "--split", metavar="NAME", help="split of the data; default: test images that training never saw"
    )
    num_images: int | None = flag(
        "--num-images",
        type=Whole(4),
        help="number of images; CKNNA depends on it, so compare equal numbers only; default: all up to 10,000, as in "
        "the paper (digits: 600)",
    )


json_option = click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
quiet_option = click.option("--quiet", is_flag=True, help="show no progress on stderr")
device_option = click.option("--device", default="auto", show_default=True, help=DEVICES)
compute_options = option_group("compute", ComputeOptions)
rows_options = option_group("output", RowsOptions)
loading_options = option_group("loading", LoadingOptions)
checkpoint_options = option_group("checkpoint", CheckpointOptions)
grid_options = option_group("grid", GridOptions)
latent_options = option_group("latents", LatentOptions)
data_options = option_group("images", DataOptions)


def parse_floats(text: str, what: str) -> list[float]:
    """Return the different numbers of "0.1,0.3", in the order given; UserError for none, NaN and infinity."""
    try:
        numbers = list(dict.fromkeys(float(part) for part in text.split(",") if part.strip()))
    except ValueError as error:
        raise UserError(f"{what} {text!r}: expected numbers joined by commas") from error
    if not numbers:
        raise UserError(f"{what} {text!r} names no number: expected numbers joined by commas, or leave the option out")
    if wrong := [number for number in numbers if not math.isfinite(number)]:
        raise UserError(f"{what} {text!r}: {wrong[0]} is not a finite number")
    return numbers


def parse_times(text: str) -> list[float]:
    """Return the times of --timesteps; UserError for one outside [0, 1]."""
    times = parse_floats(text, "--timesteps")
    for t in times:
        if not 0.0 <= t <= 1.0:
            raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    return times
