"""`repa-eval convert`: weights as safetensors with a config and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repa_eval.commandline import OneLine, example


@click.command(cls=OneLine)
@click.argument("ckpt")
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write")
@click.option("--name", help="stem of the files; default: the name of the run")
@click.option(
    "--weights", type=click.Choice(["ema", "online"]), default="ema", show_default=True, help="averaged or trained"
)
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval convert runs/digits-vit/checkpoints/0000800.pt --to converted/digits-vit")
def command(ckpt: str, folder: Path, name: str | None, weights: str, as_json: bool) -> None:
    """Write a checkpoint as NAME.safetensors, NAME.json (architecture and recipe) and NAME.md (a card).

    An encoder gets its normalisation statistics from its training data, and its card says what it knows: accuracies
    on the test images, which it never saw.
    """
    import json

    from safetensors.torch import save

    from repa_eval import checkpoints
    from repa_eval.config import to_dict
    from repa_eval.hashing import digest_module
    from repa_eval.results import write_atomic

    opened = checkpoints.load(ckpt, weights=weights)
    stem = name or opened.run
    facts = _facts(opened)
    tensors = {key: value.contiguous() for key, value in opened.model.state_dict().items()}
    write_atomic(folder / f"{stem}.safetensors", save(tensors))
    record = {"model": opened.model_name, "architecture": to_dict(opened.model.config), "recipe": opened.recipe}
    write_atomic(folder / f"{stem}.json", json.dumps({**record, "step": opened.step}, indent=1) + "\n")
    write_atomic(folder / f"{stem}.md", _card(stem, opened, digest_module(opened.model), facts))
    files = [f"{folder / stem}.{ending}" for ending in ("safetensors", "json", "md")]
    click.echo(json.dumps({"files": files, "facts": facts}) if as_json else files[0])


def _facts(opened: Any) -> dict[str, float]:
    """Calibrate an encoder, and return what it or a classifier knows about the test images."""
    import torch

    from repa_eval.data._registry import load_data, to_signed
    from repa_eval.models.cnn import CNN
    from repa_eval.models.conv_vit import ConvViT
    from repa_eval.probes.encoder import classifier_facts, encoder_facts

    if isinstance(opened.model, ConvViT):
        pool = load_data(opened.recipe["data"], "train")
        opened.model.calibrate(to_signed(torch.from_numpy(pool.images)))
        return encoder_facts(opened.model, pool, load_data(opened.recipe["data"], "test-large"))
    if isinstance(opened.model, CNN):
        return classifier_facts(opened.model, load_data(opened.recipe["data"], "test-large"))
    return {}


def _card(stem: str, opened: Any, digest: str, facts: dict[str, float]) -> str:
    recipe = opened.recipe
    lines = [
        f"# {stem}",
        "",
        f"{recipe.get('description', '')}.",
        "",
        f"- Made by: `repa-train --recipe {recipe.get('name')}` (seed {recipe.get('seed')}, {opened.step} steps), then",
        f"  `repa-eval convert {opened.path.parent.parent.name}/checkpoints/{opened.path.name} --to ... --name {stem}`",
        f"- Data: {recipe.get('data')}, split {recipe.get('split')}; the test images were not seen",
        f"- Architecture: {opened.model_name}, {sum(p.numel() for p in opened.model.parameters()):,} parameters",
        f"- Weights: {opened.weights}, hash {digest}",
        *(f"- {name}: {value:.3f}" for name, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"
