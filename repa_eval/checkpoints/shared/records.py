"""What a file records beside its weights, checked before anything uses it: its values may be of any type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request

FIELDS: dict[str, type] = {
    **dict.fromkeys(("name", "method", "model", "description", "data", "split", "teacher_weights"), str),
    **dict.fromkeys(("options", "architecture", "evaluation"), dict),
    **dict.fromkeys(("seed", "aligned_layer", "epoch"), int),
    **dict.fromkeys(("systems", "teachers", "plugins"), list),
}
ENTRIES: dict[str, dict[str, type]] = {
    "teachers": {"name": str, "weights": str},
    "plugins": {"name": str, "path": str, "sha256": str},
}
PLAIN = (str, int, float, type(None))


def check_record(checkpoint: Checkpoint) -> None:
    """Failure where the step, the systems or the recipe of an opened file are not what such a file holds."""
    where, step, recipe = checkpoint.path, checkpoint.step, checkpoint.recipe
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
        raise Failure(f"{where}: its step is {_shown(step)}, no number of steps")
    if not all(isinstance(system, str) for system in checkpoint.systems):
        raise Failure(f"{where}: its systems are {_shown(list(checkpoint.systems))}, no names")
    texts = {"model": checkpoint.model_name, "weights": checkpoint.weights}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise Failure(f"{where}: its {name} is {_shown(text)}, no name")
    if fault := _fault(recipe):
        raise Failure(f"{where}: its recipe is damaged ({fault})")


def refuse_overrides(request: Request, path: object) -> None:
    """UserError for --set beside a file that says itself what it is: it would change nothing."""
    if request.overrides:
        given = ", ".join(sorted(request.overrides))
        raise UserError(f"{path} says itself what it is: leave --set out (given: {given})")


def _fault(recipe: Any) -> str | None:
    """Return what is wrong with a recorded recipe, None where nothing is."""
    if not isinstance(recipe, Mapping):
        return f"a {type(recipe).__name__}"
    for name, kind in FIELDS.items():
        value = recipe.get(name)
        if value is not None and not _is(value, kind):
            return f"{name}: {_shown(value)}"
    for name, fields in ENTRIES.items():
        for entry in recipe.get(name) or ():
            if isinstance(entry, dict) and (newer := sorted(set(map(str, entry)) - set(fields))):
                return f"{name}: unknown field {_shown(newer[0])}, as a newer version may write it"
            if not _is_entry(entry, fields):
                return f"{name}: {_shown(entry)}"
    return _unplain(recipe)


def _is(value: object, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list | tuple)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def _is_entry(entry: object, fields: Mapping[str, type]) -> bool:
    """Return whether an entry has a name, and no other fields than these."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return False
    return set(entry) <= set(fields) and all(value is None or _is(value, fields[key]) for key, value in entry.items())


def _unplain(value: Any, name: str = "recipe") -> str | None:
    """Return the first value that no recipe holds: a tensor, a key that is no text."""
    if isinstance(value, PLAIN):
        return None
    if isinstance(value, list | tuple):
        return next((found for one in value if (found := _unplain(one, name))), None)
    if not isinstance(value, dict):
        return f"{name}: a {type(value).__name__}"
    wrong = next((key for key in value if not isinstance(key, str)), None)
    if wrong is not None:
        return f"{name}: the key {_shown(wrong)}"
    return next((found for key, one in value.items() if (found := _unplain(one, key))), None)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
