"""`repa-eval convert`: weights as safetensors with a config and a card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.checkpoint import open_checkpoint
from repa_eval.console.app import Command, example
from repa_eval.console.options import recognising


@click.command(cls=Command)
@click.argument("ckpt")
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write")
@click.option("--tokens", is_flag=True, help="SoftREPA: the soft tokens alone, as NAME.pt")
@click.option("--name", help="write NAME.safetensors, NAME.json and NAME.md instead")
@recognising
@click.option("--json", "as_json", is_flag=True, help="only JSON on stdout")
@example("repa-eval convert runs/digits-repa/checkpoints/0001500.pt --to converted/digits-repa")
def command(ckpt: str, folder: Path, name: str | None, tokens: bool, as_json: bool, **given: Any) -> None:
    """Write a checkpoint as model.safetensors, config.json (architecture, recipe) and README.md (a card).

    The folder opens again wherever a checkpoint is asked for. An encoder gets its normalisation statistics from its
    training data, and its card says what it knows: accuracies on the test images, which it never saw.
    """
    import json

    from safetensors.torch import save

    from repa_eval.checkpoints import safetensors_folder
    from repa_eval.runtime.files import write_atomic
    from repa_eval.runtime.hashing import digest_module

    opened = open_checkpoint(ckpt, given)
    if tokens:
        file = _write_tokens(opened, folder / f"{name or opened.run}.pt")
        click.echo(json.dumps({"files": [str(file)], "facts": {}}) if as_json else str(file))
        return
    facts = _facts(opened)
    record = safetensors_folder.describe(opened)
    tensors = {key: value.contiguous() for key, value in opened.network.state_dict().items()}
    weights = f"{name}.safetensors" if name else safetensors_folder.WEIGHTS
    config, card = (f"{name}.json", f"{name}.md") if name else (safetensors_folder.CONFIG, "README.md")
    write_atomic(folder / weights, save(tensors))
    write_atomic(folder / config, json.dumps(record, indent=1) + "\n")
    write_atomic(folder / card, _card(name or opened.run, opened, digest_module(opened.network), facts))
    files = [str(folder / file) for file in (weights, config, card)]
    click.echo(json.dumps({"files": files, "facts": facts}) if as_json else files[0])


def _write_tokens(opened: Any, file: Path) -> Path:
    from repa_eval.checkpoints.shared.token_files import to_bytes, token_record
    from repa_eval.errors import UserError
    from repa_eval.models.text_to_image import TextToImage
    from repa_eval.runtime.files import write_atomic

    if not isinstance(opened.network, TextToImage):
        raise UserError(f"{opened.path} holds {opened.model_name}: soft tokens are in a text-to-image model")
    write_atomic(file, to_bytes(token_record(opened.network, step=opened.step, recipe=opened.recipe)))
    return file


def _facts(opened: Any) -> dict[str, float]:
    """Calibrate an encoder, and return what it or a classifier knows about the test images."""
    import torch

    from repa_eval.interfaces.images import load_data, to_signed
    from repa_eval.models.encoders.cnn import CNN
    from repa_eval.models.encoders.conv_vit import ConvViT
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
    made = recipe.get("name")
    source = opened.path.parent.parent.name + "/checkpoints/" if opened.path.parent.name == "checkpoints" else ""
    origin = [f"`repa-train --recipe {made}` (seed {recipe.get('seed')}, {opened.step} steps), then"] if made else []
    origin.append(f"`repa-eval convert {source}{opened.path.name} --to ... --name {stem}`")
    lines = [
        f"# {stem}",
        "",
        *([f"{recipe['description']}.", ""] if recipe.get("description") else []),
        f"- Made by: {'  '.join(origin)}",
        f"- System: {', '.join(opened.systems) or 'none of the family'}",
        *([f"- Data: {recipe['data']}, split {recipe.get('split')}; test images were not seen"] if made else []),
        f"- Architecture: {opened.model_name}, {sum(p.numel() for p in opened.network.parameters()):,} parameters",
        f"- Convention: {opened.info()['convention'] or 'none'}",
        f"- Weights: {opened.weights}, hash {digest}",
        *(f"- {name}: {value:.3f}" for name, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"
