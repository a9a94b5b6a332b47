"""`repa-eval list`: everything registered, one line each."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable

import click

from repa_eval.console.app import Command, example

Entries = Iterable[tuple[str, str]]


@click.command(cls=Command)
@click.argument(
    "kind", type=click.Choice(["methods", "metrics", "models", "teachers", "extractors", "recipes", "data"])
)
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@example("repa-eval list metrics")
def command(kind: str, as_json: bool) -> None:
    """List what is registered: methods, metrics, models, teachers, extractors, recipes or data."""
    entries = dict(_KINDS[kind]())
    if as_json:
        click.echo(json.dumps(entries))
        return
    width = max(map(len, entries))
    for name, text in entries.items():
        click.echo(f"{name.ljust(width)}  {text}")


def _first(obj: object) -> str:
    return (inspect.getdoc(obj) or "").split("\n")[0]


def _methods() -> Entries:
    from repa_eval.interfaces.method import METHODS

    for name, cls in METHODS.items():
        yield name, _first(cls) + (f" arXiv {cls.paper}" if cls.paper else "")


def _metrics() -> Entries:
    from repa_eval.interfaces.metric import ALIGNMENT, SAMPLE, SPATIAL

    for registry in (ALIGNMENT, SPATIAL, SAMPLE):
        for name, metric in registry.items():
            scope = f" [{metric.range}]" if metric.range else ""
            yield name, (metric.definition or _first(metric.function)) + scope


def _models() -> Entries:
    from repa_eval.interfaces.architecture import MODELS

    for name, architecture in MODELS.items():
        for size, values in architecture.presets.items():
            yield size, ", ".join([name, *(f"{key} {value}" for key, value in values.items())])


def _teachers() -> Entries:
    from repa_eval.interfaces.teacher import TEACHERS

    yield from ((name, _first(builder)) for name, builder in TEACHERS.items())


def _extractors() -> Entries:
    from repa_eval.interfaces.extractor import EXTRACTORS

    yield from ((name, _first(builder)) for name, builder in EXTRACTORS.items())


def _recipes() -> Entries:
    from repa_eval.train.recipe import builtin_recipes, read_recipe

    yield from ((name, str(read_recipe(name).get("description", ""))) for name in builtin_recipes())


def _data() -> Entries:
    from repa_eval.interfaces.images import DATA

    yield from ((name, _first(layout.build)) for name, layout in DATA.items())


_KINDS: dict[str, Callable[[], Entries]] = {
    "methods": _methods,
    "metrics": _metrics,
    "models": _models,
    "teachers": _teachers,
    "extractors": _extractors,
    "recipes": _recipes,
    "data": _data,
}
