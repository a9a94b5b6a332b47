"""`repa-eval sample`: images from a checkpoint."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint, run_columns
from repa_eval.commands.shared.generate_flags import GenerateFlags, generate_flags
from repa_eval.commands.shared.sample_options import (
    SamplerFlags,
    SamplerOptions,
    open_bank,
    sampler_flags,
    sampler_options,
    settings_for,
)
from repa_eval.commands.shared.soft_tokens import TokenOptions, token_options, with_tokens
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT
from repa_eval.console.option_groups import flag, option_group
from repa_eval.console.options import (
    CheckpointOptions,
    ComputeOptions,
    checkpoint_options,
    compute_options,
    json_option,
)
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device

if TYPE_CHECKING:
    from repa_eval.diffusion.model import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """How many images, and where they go."""

    num: int = flag("--num", "--num-fid-samples", type=COUNT, default=50_000, help="number of images")
    out: Path | None = flag("--out", type=click.Path(path_type=Path), help="folder of PNG files, or FILE.npz; needed")
    flat: bool = flag("--flat", is_flag=True, help="all PNG files in one folder; default: a folder per thousand")
    vae: str | None = flag(
        "--vae", help="decoder of latents: ema or mse (stabilityai/sd-vae-ft-*), a folder or a hub name"
    )


@dataclass(frozen=True, kw_only=True)
class BankOptions:
    """The memory bank of a model that is conditioned on snippets."""

    bank: Path | None = flag(
        "--bank", type=click.Path(dir_okay=False, path_type=Path), help="GMem: memory bank; default: its own"
    )
    interpolate: str | None = flag(
        "--interpolate", metavar="A,B", help="GMem: one PNG, from row A of the memory bank to row B"
    )
    interpolation: str = flag(
        "--interpolation",
        type=click.Choice(["linear", "spherical", "concat", "mask"]),
        default="linear",
        help="between the rows of --interpolate",
    )


@click.command(cls=Command, short_help="Generate images from a checkpoint")
@checkpoint_options
@option_group("output", OutputOptions)
@sampler_options
@sampler_flags
@option_group("memory", BankOptions)
@token_options
@compute_options
@generate_flags
@json_option
@example("repa-eval sample --ckpt runs/digits-repa/checkpoints/0001500.pt --num 2000 --out samples")
def command(
    checkpoint: CheckpointOptions,
    output: OutputOptions,
    options: SamplerOptions,
    flags: SamplerFlags,
    memory: BankOptions,
    soft_tokens: TokenOptions,
    compute: ComputeOptions,
    official: GenerateFlags,
    as_json: bool,
) -> None:
    """Generate images; what an interrupted call left in --out is kept and continued.

    An image depends on the seed and its index alone, not on how many are made at once. Under `accelerate launch` or
    torchrun every process makes its share, and the files are the same bytes. (torchrun takes --num for an option of its
    own: say --num-fid-samples there.) The flags of the official generate.py and sample_ddp.py are accepted as typed.
    """
    import torch

    from repa_eval.commands.shared.interpolate import rows_between, write_between
    from repa_eval.diffusion.model import DiffusionModel
    from repa_eval.runtime.distributed import join
    from repa_eval.sampling.generate import bank_for
    from repa_eval.sampling.sample_record import NUM
    from repa_eval.sampling.vae import decoder_for

    official.check_destination(output.out)
    compute = official.computing(compute)
    opened = open_checkpoint(checkpoint.ckpt, checkpoint)
    model = with_tokens(opened, soft_tokens.tokens)
    if not isinstance(model, DiffusionModel):
        raise UserError(f"{opened.path} holds {opened.model_name}, which generates no images")
    settings = settings_for(model, opened, options, flags, compute.seed)
    snippets = bank_for(model, open_bank(memory.bank))
    share = join(choose_device(compute.device))
    decoder = decoder_for(model, output.vae, share.device, opened.latent_scale)
    factor = _factor(model, decoder)
    official.check(opened, model, factor=factor)
    side = model.image_shape[-1] * (factor or 1)
    out = official.destination(output.out, opened, settings, side=side, vae=output.vae)
    if (idle := official.without_effect(opened, model)) and share.first and not compute.quiet:
        click.echo(f"note: {', '.join(idle)}: no effect on what this file generates", err=True)
    record = {
        **_origin(opened),
        **settings.record(),
        **_of_tokens(model, soft_tokens),
        "dtype": checkpoint.dtype,
        "batch_size": compute.batch_size,
        **official.precision(share.device),
        **({} if decoder is None else decoder.record()),
        **({} if snippets is None else _bank_record(memory.bank)),
    }
    rows = rows_between(memory.interpolate, snippets)
    model = model.to(device=share.device, dtype=getattr(torch, checkpoint.dtype))
    if rows is not None:
        if share.first:
            made = write_between(model, snippets, rows, out, settings, memory.interpolation, decoder, record)
            click.echo(json.dumps(made) if as_json else str(out))
        return
    sources = {"snippets": snippets, "decode": decoder, "batch_size": compute.batch_size}
    _make(share, model, dataclasses.replace(output, out=out), settings, sources, record, compute.quiet)
    if share.first:
        made = {"samples": str(out), "num": output.num, "record": {**record, NUM: output.num}}
        click.echo(json.dumps(made) if as_json else str(out))


def _factor(model: DiffusionModel, decoder: Any) -> int | None:
    """Return the side of an image by that of what a model makes; None where a model or decoder does not say it."""
    if decoder is not None:
        return decoder.vae.factor  # type: ignore[no-any-return]
    if model.decodes:
        return None
    return 1


def _of_tokens(model: Any, options: TokenOptions) -> dict[str, Any]:
    """Set the strength of the soft tokens; return what the record says of them, nothing where all is as usual."""
    from repa_eval.runtime.hashing import digest_module

    strength = options.token_strength
    if not model.has_soft_tokens:
        if strength != 1:
            raise UserError("--token-strength: there are no soft tokens")
        return {}
    model.token_strength = strength
    own = {"tokens": Path(options.tokens).name, "tokens_hash": digest_module(model)} if options.tokens else {}
    return {**own, **({} if strength == 1 else {"token_strength": strength})}


def _origin(opened: Any) -> dict[str, Any]:
    from repa_eval.diffusion.conventions import unwrap
    from repa_eval.runtime.hashing import digest_module

    return {
        **run_columns(opened),
        "weights_hash": digest_module(unwrap(opened.model)),
        "data": opened.recipe.get("data"),
        "extractor": opened.recipe.get("evaluation", {}).get("extractor"),
    }


def _bank_record(file: Path | None) -> dict[str, Any]:
    """Return where the snippets are from; the checkpoint's own bank is in its weights_hash."""
    from repa_eval.runtime.hashing import digest_file

    if file is None:
        return {"labels": "snippets", "bank": "the checkpoint's"}
    return {"labels": "snippets", "bank": file.name, "bank_hash": digest_file(file)}


def _make(
    share: Any,
    model: DiffusionModel,
    output: OutputOptions,
    settings: Any,
    sources: dict[str, Any],
    record: dict[str, Any],
    quiet: bool,
) -> None:
    """Make this process's share of what is missing, and let the first process conclude."""
    from tqdm import tqdm

    from repa_eval.sampling.filling import fill_samples

    assert output.out is not None
    hidden = True if quiet or not share.first else None
    with tqdm(disable=hidden, leave=False) as bar:
        shown: dict[str, Any] = {"begin": bar.reset, "progress": bar.update}
        fill_samples(output.out, record, output.num, model, settings, share=share, flat=output.flat, **sources, **shown)
