"""What `repa-train --list` says of every method: one sentence, paper, what it needs, what a step costs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from repa_eval.interfaces.method import METHODS, Method
from repa_eval.train.recipe import builtin_recipes, read_recipe

DATA_NEEDS = ("labels", "captions")  # of a method's `needs`, what the data have to bring


def describe_methods() -> dict[str, dict[str, Any]]:
    """Return name -> sentence, paper, needs, cost (part of the run -> times the baseline's step; {}: not measured)."""
    costs = cost_table()["relative"]
    return {
        name: {
            "sentence": (cls.__doc__ or "").strip().partition("\n")[0],
            "paper": cls.paper,
            "needs": needs_of(cls()),
            "cost": costs.get(name, {}),
        }
        for name, cls in METHODS.items()
    }


def needs_of(method: Method) -> list[str]:
    """Return what a method needs beside images."""
    teacher = ["teacher"] if method.teachers() else []
    return teacher + [need for need in DATA_NEEDS if need in method.needs]


def cost_table() -> dict[str, Any]:
    """Return the table that benchmarks/method_cost.py measured: measured (how), baseline, relative."""
    text = (files("repa_eval.train") / "cost.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def line_of(entry: Mapping[str, Any]) -> str:
    """Return one method's line."""
    facts = [f"arXiv {entry['paper']}"] if entry["paper"] else []
    facts.append(f"needs {' and '.join(entry['needs']) or 'images alone'}")
    costs = [f"{ratio:.2f} {f'({part})' if part else ''}".strip() for part, ratio in entry["cost"].items()]
    facts.append(f"cost {', '.join(costs) or 'not measured'}")
    return f"{entry['sentence']} [{'; '.join(facts)}]"


def show() -> str:
    """Return the list of methods and recipes as text."""
    table = cost_table()
    methods = {name: line_of(entry) for name, entry in describe_methods().items()}
    title = f"methods (cost: of a step, {table['baseline']} = 1; {table['measured']})"
    lines = []
    for heading, entries in {title: methods, "recipes": describe_recipes()}.items():
        width = max(map(len, entries))
        lines += [heading, *(f"  {name.ljust(width)}  {text}" for name, text in entries.items())]
    return "\n".join(lines)


def describe_recipes() -> dict[str, str]:
    """Return name -> description of the recipes that ship with the package."""
    return {name: str(read_recipe(name).get("description", "")) for name in builtin_recipes()}
