"""`repa-eval convert`: weights as safetensors with a config and a card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from repa_eval.commands.shared.checkpoint import data_of, open_checkpoint
from repa_eval.console.app import Command, example
from repa_eval.console.markdown import code, escaped
from repa_eval.console.options import LoadingOptions, json_option, loading_options

if TYPE_CHECKING:
    from repa_eval.interfaces.checkpoint_layout import Checkpoint
    from repa_eval.interfaces.images import Images

CARD_IMAGES = 12_000  # images of a split that the numbers of a card are of


@click.command(cls=Command, short_help="Write a checkpoint as safetensors")
@click.argument("ckpt")
@click.option("--to", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="folder to write")
@click.option("--tokens", is_flag=True, help="SoftREPA: write the soft tokens alone, as NAME.pt")
@click.option("--name", help="write NAME.safetensors, NAME.json and NAME.md instead")
@click.option("--data", "data_name", metavar="PATH|NAME", help="training data of an encoder, where they are files")
@loading_options
@json_option
@example("repa-eval convert runs/digits-repa/checkpoints/0001500.pt --to converted/digits-repa")
def command(
    ckpt: str,
    folder: Path,
    name: str | None,
    tokens: bool,
    data_name: str | None,
    loading: LoadingOptions,
    as_json: bool,
) -> None:
    """Write a checkpoint as model.safetensors, config.json (architecture, recipe) and README.md (model card).

    The folder opens again wherever a checkpoint is expected. An encoder gets its normalisation statistics from its
    training data, and its card states its accuracy on the test images, which it never saw.
    """
    opened = open_checkpoint(ckpt, loading)
    facts = {} if tokens else _facts(opened, data_name)
    files = [_write_tokens(opened, folder, name)] if tokens else _write(opened, folder, name, facts)
    click.echo(json.dumps({"files": [str(file) for file in files], "facts": facts}) if as_json else str(files[0]))


def _write(opened: Checkpoint, folder: Path, name: str | None, facts: Mapping[str, float]) -> list[Path]:
    """Write weights, configuration and card; return the files."""
    from safetensors.torch import save

    from repa_eval.checkpoints.safetensors_folder import CONFIG, WEIGHTS, describe
    from repa_eval.runtime.files import write_atomic
    from repa_eval.runtime.hashing import digest_module

    tensors = {key: value.contiguous() for key, value in opened.network.state_dict().items()}
    card = _card(name or opened.run, opened, digest_module(opened.network), facts)
    contents: dict[str, str | bytes] = {
        f"{name}.safetensors" if name else WEIGHTS: save(tensors),
        f"{name}.json" if name else CONFIG: json.dumps(describe(opened), indent=1) + "\n",
        f"{name}.md" if name else "README.md": card,
    }
    for file, content in contents.items():
        write_atomic(folder / file, content)
    return [folder / file for file in contents]


def _write_tokens(opened: Checkpoint, folder: Path, name: str | None) -> Path:
    from repa_eval.checkpoints.shared.token_files import to_bytes, token_record
    from repa_eval.errors import UserError
    from repa_eval.models.text_to_image import TextToImage
    from repa_eval.runtime.files import write_atomic

    if not isinstance(opened.network, TextToImage):
        raise UserError(f"{opened.path} holds {opened.model_name}: soft tokens are in a text-to-image model")
    file = folder / f"{name or opened.run}.pt"
    write_atomic(file, to_bytes(token_record(opened.network, step=opened.step, recipe=opened.recipe)))
    return file


def _facts(opened: Checkpoint, data_name: str | None) -> dict[str, float]:
    """Calibrate an encoder, and return what it or a classifier knows about the test images."""
    import torch

    from repa_eval.interfaces.images import in_memory, load_data, to_signed
    from repa_eval.models.encoders.cnn import CNN
    from repa_eval.models.encoders.conv_vit import ConvViT
    from repa_eval.probes.encoder import classifier_facts, encoder_facts

    def images_of(split: str) -> Images:
        source = load_data(data_of(opened, data_name), split)
        return in_memory(source.head(min(CARD_IMAGES, len(source))))

    if isinstance(opened.model, ConvViT):
        pool = images_of("train")
        opened.model.calibrate(to_signed(torch.from_numpy(pool.images)))
        return encoder_facts(opened.model, pool, images_of("test-large"))
    if isinstance(opened.model, CNN):
        return classifier_facts(opened.model, images_of("test-large"))
    return {}


def _card(stem: str, opened: Checkpoint, digest: str, facts: Mapping[str, float]) -> str:
    """Return the model card, Markdown in which words of the file are text and nothing else."""
    recipe = opened.recipe
    made = recipe.get("name")
    source = opened.path.parent.parent.name + "/checkpoints/" if opened.path.parent.name == "checkpoints" else ""
    trained = f"`repa-train --recipe {code(made)}` (seed {escaped(recipe.get('seed'))}, {opened.step} steps), then"
    converted = f"`repa-eval convert {code(source + opened.path.name)} --to ... --name {code(stem)}`"
    data = f"{escaped(recipe.get('data'))}, split {escaped(recipe.get('split'))}"
    count = sum(parameter.numel() for parameter in opened.network.parameters())
    lines = [
        f"# {escaped(stem)}",
        "",
        *([f"{escaped(recipe['description'])}.", ""] if recipe.get("description") else []),
        f"- Made by: {'  '.join([*([trained] if made else []), converted])}",
        f"- System: {escaped(', '.join(opened.systems) or 'none of the family')}",
        *([f"- Data: {data}; test images were not seen"] if made else []),
        f"- Architecture: {escaped(opened.model_name)}, {count:,} parameters",
        f"- Convention: {opened.info()['convention'] or 'none'}",
        f"- Weights: {opened.weights}, hash {digest}",
        *(f"- {name}: {value:.3f}" for name, value in facts.items()),
    ]
    return "\n".join(lines) + "\n"
