"""`repa-eval sample`: images from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import OneLine, choose_device, computing, example, opening, run_columns
from repa_eval.errors import UserError


@click.command(cls=OneLine)
@opening
@click.option("--num", type=click.IntRange(min=1), default=50_000, show_default=True, help="images")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="folder of PNG files, or FILE.npz")
@click.option("--mode", type=click.Choice(["ode", "sde"]), default="ode", show_default=True, help="sampler")
@click.option("--num-steps", type=click.IntRange(min=1), default=50, show_default=True, help="steps from noise to data")
@click.option("--heun", is_flag=True, help="Heun instead of Euler steps")
@click.option("--cfg-scale", type=float, default=1.0, show_default=True, help="guidance; 1 = none")
@click.option("--guidance-low", type=float, default=0.0, show_default=True, help="guided from this t ...")
@click.option("--guidance-high", type=float, default=1.0, show_default=True, help="... to this t (1 = noise)")
@click.option("--balanced", is_flag=True, help="equally many images of every class; default: random labels")
@click.option("--uint8", type=click.Choice(["floor", "round"]), default="floor", show_default=True, help="REPA: floor")
@computing
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval sample --ckpt runs/digits-repa/checkpoints/0001500.pt --num 2000 --out samples")
def command(
    ckpt: str, weights: str, num: int, out: Path, batch_size: int, device: str, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Generate images; what an interrupted call left in --out is kept and continued.

    An image depends on the seed and its index alone, not on how many are made at once.
    """
    import json

    import torch

    from repa_eval import checkpoints
    from repa_eval.config import from_dict
    from repa_eval.interpolant import Interpolant
    from repa_eval.sampling.generate import SamplerSettings
    from repa_eval.sampling.guidance import Guidance

    opened = checkpoints.load(ckpt, weights=weights)
    if not hasattr(opened.model, "null_label"):
        raise UserError(f"{opened.path} holds {opened.model_name}, which generates no images")
    guidance = Guidance(cfg_scale=given["cfg_scale"], low=given["guidance_low"], high=given["guidance_high"])
    names = ("mode", "num_steps", "heun", "balanced", "uint8", "seed")
    path = from_dict(Interpolant(), opened.option("interpolant") or {})
    settings = SamplerSettings(guidance=guidance, interpolant=path, **{name: given[name] for name in names})
    record = {**_origin(opened), **settings.record(), "dtype": given["dtype"], "batch_size": batch_size}
    model = opened.model.to(device=choose_device(device), dtype=getattr(torch, given["dtype"]))
    write = _write_npz if out.suffix == ".npz" else _write_folder
    write(model, num, out, settings, batch_size, record, quiet)
    click.echo(json.dumps({"samples": str(out), "num": num, "record": record}) if as_json else str(out))


def _origin(opened: Any) -> dict[str, Any]:
    from repa_eval.hashing import digest_module

    return {
        **run_columns(opened),
        "weights_hash": digest_module(opened.model),
        "data": opened.recipe.get("data"),
        "extractor": opened.recipe.get("evaluation", {}).get("extractor"),
    }


def _write_folder(model: Any, num: int, out: Path, settings: Any, batch_size: int, record: Any, quiet: bool) -> None:
    from tqdm import tqdm

    from repa_eval.samples import SampleFolder
    from repa_eval.sampling.generate import generate

    folder = SampleFolder(out, record)
    missing = folder.missing(num)
    with tqdm(total=num, initial=num - len(missing), disable=True if quiet else None, leave=False) as bar:
        for indices, images, _ in generate(model, missing, settings, batch_size=batch_size):
            folder.add(indices, images)
            bar.update(len(indices))


def _write_npz(model: Any, num: int, out: Path, settings: Any, batch_size: int, record: Any, quiet: bool) -> None:
    import torch
    from tqdm import tqdm

    from repa_eval.samples import save_npz
    from repa_eval.sampling.generate import generate

    parts = []
    with tqdm(total=num, disable=True if quiet else None, leave=False) as bar:
        for part in generate(model, range(num), settings, batch_size=batch_size):
            parts.append(part)
            bar.update(len(part[0]))
    images = torch.cat([images for _, images, _ in parts]).numpy()
    save_npz(out, images, torch.cat([labels for _, _, labels in parts]).numpy(), record)
