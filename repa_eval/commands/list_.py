"""`repa-eval list`: everything registered, one line each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from repa_eval.console.app import Command, example

if TYPE_CHECKING:
    from repa_eval.registry import Registry

Entries = Iterable[tuple[str, str]]


def _methods() -> Entries:
    from repa_eval.interfaces.method import METHODS

    yield from _described(METHODS, lambda cls: _first(cls) + (f" arXiv {cls.paper}" if cls.paper else ""))


def _metrics() -> Entries:
    from repa_eval.interfaces.metric import ALIGNMENT, SAMPLE, SPATIAL

    def described(metric: Any) -> str:
        return (metric.definition or _first(metric.function)) + (f" [{metric.range}]" if metric.range else "")

    for registry in (ALIGNMENT, SPATIAL, SAMPLE):
        yield from _described(registry, described)


def _models() -> Entries:
    from repa_eval.interfaces.architecture import MODELS

    for name, architecture in MODELS.items():
        for size, values in architecture.presets.items():
            yield size, ", ".join([name, *(f"{key} {value}" for key, value in values.items())]) + _mark(MODELS, name)


def _teachers() -> Entries:
    from repa_eval.interfaces.teacher import TEACHERS

    yield from _described(TEACHERS)


def _projectors() -> Entries:
    from repa_eval.interfaces.projector import PROJECTORS

    yield from _described(PROJECTORS)


def _extractors() -> Entries:
    from repa_eval.interfaces.extractor import EXTRACTORS

    yield from _described(EXTRACTORS)


def _samplers() -> Entries:
    from repa_eval.interfaces.sampler import SAMPLERS, Sampler

    def described(sampler: Sampler) -> str:
        return _first(sampler.integrate) + (f" [{', '.join(sampler.option_names)}]" if sampler.option_names else "")

    yield from _described(SAMPLERS, described)


def _recipes() -> Entries:
    from repa_eval.train.recipe import builtin_recipes, read_recipe

    yield from ((name, str(read_recipe(name).get("description", ""))) for name in builtin_recipes())


def _data() -> Entries:
    from repa_eval.interfaces.images import DATA

    yield from _described(DATA, lambda layout: _first(layout.build))


def _layouts() -> Entries:
    from repa_eval.interfaces.checkpoint_layout import LAYOUTS

    yield from _described(LAYOUTS)


def _sections() -> Entries:
    from repa_eval.interfaces.section import SECTIONS, in_order

    yield from ((each.anchor, each.title + _mark(SECTIONS, each.anchor)) for each in in_order())


def _monitors() -> Entries:
    from repa_eval.interfaces.monitor import MONITORS

    yield from _described(MONITORS, lambda entry: _first(entry.build))


def _plugins() -> Entries:
    from repa_eval.plugin_files.installed import load_installed
    from repa_eval.plugin_files.loading import loaded, registered_by
    from repa_eval.plugin_files.records import SHOWN

    load_installed()
    for plugin in loaded():
        objects = ", ".join(f"{kind} {name}" for kind, name in registered_by(plugin))
        yield plugin.name, f"{objects} [{plugin.path}, sha256 {plugin.sha256[:SHOWN]}]"


# kind -> its entries, and what it is
KINDS: dict[str, tuple[Callable[[], Entries], str]] = {
    "methods": (_methods, "training methods"),
    "metrics": (_metrics, "metrics of alignment, of token structure and of samples"),
    "models": (_models, "sizes of the architectures"),
    "teachers": (_teachers, "frozen encoders"),
    "projectors": (_projectors, "heads from hidden states to a teacher's tokens"),
    "extractors": (_extractors, "networks whose features sample metrics compare"),
    "samplers": (_samplers, "ways from noise to images, and their options"),
    "recipes": (_recipes, "recipes of repa-train"),
    "data": (_data, "data sets and layouts of images"),
    "layouts": (_layouts, "layouts of checkpoints that are recognised"),
    "sections": (_sections, "sections of the report, in their order"),
    "monitors": (_monitors, "what is evaluated along a training"),
    "plugins": (_plugins, "plug-ins that are installed or named, and what they register"),
}


@click.command(cls=Command, short_help="List metrics, teachers, samplers, ...")
@click.argument("kind", required=False, type=click.Choice(list(KINDS)))
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@example("repa-eval list metrics")
def command(kind: str | None, as_json: bool) -> None:
    """List what is registered of a kind; without a kind, the kinds themselves.

    What comes from a plug-in is marked with the path of its file.
    """
    entries = {name: text for name, (_, text) in KINDS.items()} if kind is None else dict(KINDS[kind][0]())
    if as_json:
        click.echo(json.dumps(entries))
        return
    width = max(map(len, entries), default=0)
    for name, text in entries.items():
        click.echo(f"{name.ljust(width)}  {text}")


def _described(registry: Registry[Any], describe: Callable[[Any], str] | None = None) -> Entries:
    """Yield the names of a registry with a line each: the first of the docstring, unless `describe` says it."""
    for name, obj in registry.items():
        yield name, (describe or _first)(obj) + _mark(registry, name)


def _mark(registry: Registry[Any], name: str) -> str:
    plugin = registry.plugin_of(name)
    return "" if plugin is None else f" [plug-in {plugin.path}]"


def _first(obj: object) -> str:
    return (inspect.getdoc(obj) or "").split("\n")[0]
