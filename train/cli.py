"""`repa-train`: trains a recipe."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from repa_eval import __version__
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device
from repa_eval.train.official_flags import Typed, as_typed, official, read_flags, refine


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("overrides", nargs=-1, metavar="[key=value ...]")
@click.option(
    "--recipe",
    "recipe_name",
    help="name of a recipe, or a YAML file; default: digits-repa, or the published recipe of the model or data",
)
@click.option("--method", "method_name", help="name of a method, or a Python file that registers one")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="run folder; default: runs/<recipe>")
@click.option("--resume", is_flag=True, help="continue, or start where nothing is there")
@click.option("--allow-changed-plugin", is_flag=True, help="resume even if the file of a plug-in has changed")
@click.option("-n", "--dry-run", is_flag=True, help="print the resolved recipe and stop")
@click.option("--benchmark", type=COUNT, metavar="N", help="time N steps part by part, write nothing, and stop")
@click.option("--list", "show_list", is_flag=True, help="show methods and recipes")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N")
@click.option("--quiet", is_flag=True, help="show no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@click.option(
    "--keep", metavar="N|every:M", help="checkpoints that stay: the N newest, or every M steps; the same as keep="
)
@click.option(
    "--export", type=click.Choice(["official"]), help="also write the last checkpoint as REPA's trainer would"
)
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
    benchmark: int | None,
    show_list: bool,
    device: str,
    quiet: bool,
    as_json: bool,
    keep: str | None,
    export: str | None,
    **flags: str | bool | None,
) -> None:
    """Train a recipe: a diffusion model of the REPA family, or the embedded teacher or judge.

    Without arguments: the recipe digits-repa on the embedded digits, into runs/digits-repa. key=value overrides a
    field of the recipe; so do the flags of the official trainers below. A model such as SiT-XL/2 or a folder of data
    without --recipe means the published recipe of the method.
    """
    import json

    if show_list:
        _list(as_json)
        return
    typed = read_flags(flags)
    with _speaking_of_flags(typed):
        words = overrides if keep is None else (*overrides, f"keep={keep}")
        recipe = _resolve(recipe_name, method_name, words, typed)
        if typed.notes and not quiet and _speaks():
            click.echo(f"note: without effect here: {', '.join(typed.notes)}", err=True)
        if dry_run:
            _print_resolved(recipe, as_json)
            return
        if benchmark is not None:
            _benchmark(recipe, benchmark, choose_device(device), as_json)
            return
        run = out or typed.folder or Path("runs") / recipe.name
        go_on = {"resume": resume or _resumes(typed, run), "allow_changed_plugin": allow_changed_plugin}
        checkpoint = _train(recipe, run, go_on, choose_device(device), quiet, method_name)
    if not _speaks():
        return
    exported = {} if export is None else {"export": str(_export(checkpoint))}
    if as_json:
        done = {"run": str(run), "checkpoint": str(checkpoint), "step": recipe.settings.max_steps}
        click.echo(json.dumps({**done, **exported}))
    else:
        for path in exported.values():
            click.echo(path)
        click.echo(_next_command(recipe, run, checkpoint))


def _benchmark(recipe: Any, steps: int, device: str, as_json: bool) -> None:
    import json

    from repa_eval.train.benchmark import benchmark, shown

    measured = benchmark(recipe, steps, device=device)
    if _speaks():
        click.echo(json.dumps(measured) if as_json else shown(measured))


def _export(checkpoint: Path) -> Path:
    from repa_eval.train.official_export import export_official

    return export_official(checkpoint)


@contextmanager
def _speaking_of_flags(typed: Typed) -> Iterator[None]:
    """Let errors name an official flag as it was typed, in the place of the field of the recipe."""
    try:
        yield
    except UserError as error:
        if (text := as_typed(str(error), typed)) == str(error):
            raise
        raise type(error)(text) from error


def _resolve(recipe_name: str | None, method_name: str | None, words: tuple[str, ...], typed: Typed) -> Any:
    """Return the recipe; an option given both as a flag and as key=value is refused."""
    from repa_eval.config import parse_overrides
    from repa_eval.interfaces.method import METHODS
    from repa_eval.plugin_files.records import warn_of_differences
    from repa_eval.train.published import model_of, recipe_for
    from repa_eval.train.recipe import read_recipe, resolve

    if method_name is None and recipe_name is None:
        method_name = typed.method
    overrides = dict(typed.overrides)
    for key, value in parse_overrides(words).items():
        if (flag := typed.flag_of(key)) is not None:
            raise UserError(f"{flag} and {key}=... say the same; give one of them")
        overrides[key] = value
        if key == "data":  # as it stands: "off" is a name, and no word of YAML
            overrides[key] = next(word for word in reversed(words) if word.startswith("data=")).removeprefix("data=")
    method: str | None = None if "method" not in overrides else str(overrides["method"])
    if method_name is not None:
        method = METHODS.load_file(method_name) if method_name.endswith(".py") else method_name
        METHODS.get(method)
        overrides["method"] = method
    if "--model" in typed.values:
        of_recipe = None if recipe_name is None else read_recipe(recipe_name).get("method")
        overrides["model"] = model_of(method or of_recipe, str(typed.values["--model"]))
    chosen = recipe_name or recipe_for(method, overrides, folder="--data-dir" in typed.values)
    tree = read_recipe(chosen)
    if recipe_name is None and method is not None and METHODS.plugin_of(str(method)) is not None:
        # nobody named the recipe: what it says of its own method is not for the method of a plug-in
        tree = {key: value for key, value in tree.items() if key not in ("options", "description", "architecture")}
        tree["name"] = str(tree["data"]).replace("/", "-")
    recipe = resolve(tree, overrides)
    if more := refine(typed, recipe):
        recipe = resolve(tree, {**overrides, **more})
    warn_of_differences(tree, chosen)
    return recipe


def _resumes(typed: Typed, run: Path) -> bool:
    """Return whether --resume-step asks to continue; UserError unless the run's newest checkpoint is of that step."""
    from repa_eval.train.state import latest_checkpoint

    if not typed.resume_step:
        return False
    newest = latest_checkpoint(run)
    if newest is None or int(newest.stem) != typed.resume_step:
        found = f"the newest checkpoint is {newest.name}" if newest else "there is no checkpoint of repa-train"
        raise UserError(f"--resume-step {typed.resume_step}: {found} in {run}; --resume continues from the newest")
    return True


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


def _print_resolved(recipe: Any, as_json: bool) -> None:
    """Print the recipe with the sizes that data and teachers give it."""
    import json

    import yaml

    from repa_eval.train.dry_run import resolve_all

    tree, notes = resolve_all(recipe)
    click.echo(json.dumps(tree) if as_json else yaml.safe_dump(tree, sort_keys=False).rstrip())
    for note in notes:
        click.echo(f"note: {note}", err=True)


def _list(as_json: bool) -> None:
    import json

    from repa_eval.train import listing

    if as_json:
        click.echo(json.dumps({"methods": listing.describe_methods(), "recipes": listing.describe_recipes()}))
    else:
        click.echo(listing.show())


if __name__ == "__main__":
    main(prog_name="repa-train")
