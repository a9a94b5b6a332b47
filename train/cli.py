"""`repa-train`: trains a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from repa_eval import __version__
from repa_eval.console.app import Command, example
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_RECIPE = "digits-repa"

# official flag -> key of the recipe; the value is passed on as it is
OFFICIAL = {
    "--encoder-depth": "encoder_depth",
    "--proj-coeff": "proj_coeff",
    "--cls": "cls_coeff",
    "--l2r-depth": "l2r_depth",
    "--warmup-steps": "stage1_steps",
    "--enc-type": "enc_type",
    "--path-type": "path_type",
    "--prediction": "prediction",
    "--weighting": "weighting",
    "--cfg-prob": "cfg_prob",
    "--model": "model",
    "--data-dir": "data",
    "--max-train-steps": "max_steps",
    "--checkpointing-steps": "checkpoint_every",
    "--sampling-steps": "eval_every",
    "--batch-size": "batch_size",
    "--learning-rate": "learning_rate",
    "--adam-beta1": "adam_beta1",
    "--adam-beta2": "adam_beta2",
    "--adam-weight-decay": "weight_decay",
    "--adam-epsilon": "adam_epsilon",
    "--max-grad-norm": "max_grad_norm",
    "--gradient-accumulation-steps": "gradient_accumulation",
    "--mixed-precision": "mixed_precision",
    "--num-workers": "num_workers",
    "--report-to": "log_with",
    "--seed": "seed",
}


def official(function: F) -> F:
    """Add the flags of the official trainers."""
    for flag, key in reversed(OFFICIAL.items()):
        function = click.option(flag, f"flag_{key}", metavar="VALUE", help=f"the same as {key}=VALUE")(function)
    return function


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option("--recipe", "recipe_name", help=f"name of a recipe, or a YAML file; default: {DEFAULT_RECIPE}")
@click.option("--method", "method_name", help="name of a method, or a Python file that registers one")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="run folder; default: runs/<recipe>")
@click.option("--resume", is_flag=True, help="continue, or start where nothing is there")
@click.option("--allow-changed-plugin", is_flag=True, help="resume even if the file of a plug-in has changed")
@click.option("-n", "--dry-run", is_flag=True, help="print the resolved recipe and stop")
@click.option("--list", "show_list", is_flag=True, help="show methods and recipes")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--quiet", is_flag=True, help="show no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@official
@click.version_option(__version__, prog_name="repa-train")
@example("repa-train --recipe digits-repa max_steps=500 --out runs/short")
def main(
    overrides: tuple[str, ...],
    recipe_name: str | None,
    method_name: str | None,
    out: Path | None,
    resume: bool,
    allow_changed_plugin: bool,
    dry_run: bool,
    show_list: bool,
    device: str,
    quiet: bool,
    as_json: bool,
    **flags: str | None,
) -> None:
    """Train a recipe: a diffusion model of the REPA family, or the embedded teacher or judge.

    Without arguments: the recipe digits-repa on the embedded digits, into runs/digits-repa. key=value overrides a
    field of the recipe; so do the official flags below.
    """
    import json

    if show_list:
        _list(as_json)
        return
    given = {key.removeprefix("flag_"): value for key, value in flags.items() if value is not None}
    recipe = _resolve(recipe_name, method_name, overrides, given)
    if dry_run:
        _print_recipe(recipe.to_dict(), as_json)
        return
    run = out or Path("runs") / recipe.name
    go_on = {"resume": resume, "allow_changed_plugin": allow_changed_plugin}
    checkpoint = _train(recipe, run, go_on, choose_device(device), quiet, method_name)
    if not _speaks():
        return
    if as_json:
        click.echo(json.dumps({"run": str(run), "checkpoint": str(checkpoint), "step": recipe.settings.max_steps}))
    else:
        click.echo(_next_command(recipe, run, checkpoint))


def _resolve(recipe_name: str | None, method_name: str | None, words: tuple[str, ...], flags: dict[str, str]) -> Any:
    """Return the recipe; an option given both as a flag and as key=value is refused."""
    from repa_eval.config import parse_overrides, read_yaml
    from repa_eval.interfaces.method import METHODS
    from repa_eval.plugin_files.records import warn_of_differences
    from repa_eval.train.recipe import builtin_recipes, read_recipe, resolve

    overrides: dict[str, Any] = {
        key: read_yaml(value, f"cannot read the value of {key}") for key, value in flags.items()
    }
    for key, value in parse_overrides(words).items():
        if key in overrides:
            raise UserError(f"{key} is given twice: as a flag and as key=value")
        overrides[key] = value
    if method_name is not None:
        overrides["method"] = METHODS.load_file(method_name) if method_name.endswith(".py") else method_name
        METHODS.get(overrides["method"])
        if recipe_name is None and f"digits-{overrides['method']}" in builtin_recipes():
            recipe_name = f"digits-{overrides['method']}"
    tree = read_recipe(recipe_name or DEFAULT_RECIPE)
    if recipe_name is None and "method" in overrides and METHODS.plugin_of(str(overrides["method"])) is not None:
        # nobody named the recipe: what it says of its own method is not for the method of a plug-in
        tree = {key: value for key, value in tree.items() if key not in ("options", "description")}
        tree["name"] = str(tree["data"])
    recipe = resolve(tree, overrides)
    warn_of_differences(tree, recipe_name or DEFAULT_RECIPE)
    return recipe


def _train(recipe: Any, run: Path, go_on: dict[str, Any], device: str, quiet: bool, method_name: str | None) -> Path:
    """Train; after a signal to stop say how to continue, and leave with its code. go_on: arguments of `train`."""
    from repa_eval.train.evaluated import monitors_of
    from repa_eval.train.loop import Interrupted, train

    monitors = monitors_of(recipe, run, device)
    try:
        return train(recipe, run, monitors=monitors, device=device, progress=not quiet, **go_on)
    except Interrupted as stop:
        words = ["repa-train", "--recipe", str(run / "recipe.yaml"), "--out", str(run), "--resume"]
        if method_name is not None and method_name.endswith(".py"):
            words += ["--method", method_name]  # a file of the user's, which the recipe cannot name
        words += _plugin_words(recipe, but=method_name)
        if _speaks():
            click.echo(f"{stop}; continue with: {shlex.join(words)}", err=True)
        raise SystemExit(stop.exit_code) from stop


def _speaks() -> bool:
    """Return whether this process is the one of several that prints."""
    return os.environ.get("RANK", "0") == "0"


def _plugin_words(recipe: Any, *, but: str | None = None) -> list[str]:
    """Return --plugin PATH for each plug-in that the recipe is made with, except the file `but`."""
    paths = [record["path"] for record in recipe.plugins()]
    return [word for path in paths if but is None or path != str(Path(but).resolve()) for word in ("--plugin", path)]


def _next_command(recipe: Any, run: Path, checkpoint: Path) -> str:
    """Return the command that a user would type next."""
    from repa_eval.interfaces.recorded_names import is_named_alone

    layer = recipe.method.aligned_layer()
    if not recipe.method.samples:
        command = recipe.method.finish.format(checkpoint=checkpoint, run=run.name)
    elif layer is None:
        return f"repa-eval report {run}"
    else:
        command = f"repa-eval align --ckpt {checkpoint} --layer {layer}"
        data = recipe.settings.data
        if not is_named_alone(data):
            command += f" --data {shlex.quote(data)}"
    return " ".join([command, *map(shlex.quote, _plugin_words(recipe))])


def _print_recipe(tree: dict[str, Any], as_json: bool) -> None:
    import json

    import yaml

    click.echo(json.dumps(tree) if as_json else yaml.safe_dump(tree, sort_keys=False).rstrip())


def _list(as_json: bool) -> None:
    import json

    from repa_eval.train import listing

    if as_json:
        click.echo(json.dumps({"methods": listing.describe_methods(), "recipes": listing.describe_recipes()}))
    else:
        click.echo(listing.show())


if __name__ == "__main__":
    main(prog_name="repa-train")
