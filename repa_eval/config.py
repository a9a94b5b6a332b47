"""Frozen dataclasses as the one place of defaults: strict reading of dicts, `key=value` overrides, plain output."""

from __future__ import annotations

import dataclasses
import datetime
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import yaml

from repa_eval.errors import UserError, first_line, short_repr, unknown

DEEPEST, MOST_VALUES = 64, 100_000  # levels and values of a file of settings
D = TypeVar("D")
T = TypeVar("T")
SCALARS = (bool, int, float, str, datetime.date)  # what YAML makes of a word


def option(
    default: T,
    *,
    help: str,
    choices: Iterable[str] | None = None,
    least: float | None = None,
    most: float | None = None,
) -> T:
    """Return a dataclass field with a help text and, where only some values make sense, their list or range.

    least, most: of a number, or of each number of a tuple.
    To a type checker it is the default, as dataclasses.field() is, so that the field's own type is checked against it.
    """
    choices = None if choices is None else tuple(choices)
    metadata = {"help": help, "choices": choices, "least": least, "most": most}
    if isinstance(default, (list, dict)):
        raise TypeError("a default must be immutable: use a tuple")
    field: Any = dataclasses.field(default=default, metadata=metadata)
    return field  # type: ignore[no-any-return]


def from_dict(base: D, values: Mapping[str, Any], *, where: str = "") -> D:
    """Return `base` (an instance whose fields are the defaults) with `values` put in, checked one by one.

    UserError names the full key: an unknown one with its nearest valid name, or a value of the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where or 'recipe'}: expected keys and values, not {short_repr(values)}")
    hints = typing.get_type_hints(type(base))
    known = {field.name: field for field in dataclasses.fields(base)}  # type: ignore[arg-type]
    changed: dict[str, Any] = {}
    for key, value in values.items():
        full = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise unknown("key", full, (f"{where}.{name}" if where else name for name in known))
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            changed[key] = from_dict(current, value, where=full)
        else:
            changed[key] = _convert(value, hints[key], full)
            _check_range(changed[key], known[key].metadata, full)
    return dataclasses.replace(base, **changed)  # type: ignore[type-var]


def split_known(base: Any, values: Any, *, where: str = "") -> tuple[Any, list[str]]:
    """Return `values` without the keys that `base` does not have, on every level, and these under their dotted names.

    What is no mapping comes back as it is, for `from_dict` to refuse.
    """
    if not isinstance(values, Mapping):
        return values, []
    known: dict[str, Any] = {}
    unknown_keys: list[str] = []
    names = {field.name for field in dataclasses.fields(base)}
    for key, value in values.items():
        full = f"{where}.{key}" if where else str(key)
        if key not in names:
            unknown_keys += flatten({full: value})
            continue
        current = getattr(base, key)
        known[key], within = (
            split_known(current, value, where=full) if dataclasses.is_dataclass(current) else (value, [])
        )
        unknown_keys += within
    return known, unknown_keys


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as nested dicts, lists and scalars: what YAML, JSON and a checkpoint can hold."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        plain[field.name] = list(value) if isinstance(value, tuple) else value
    return plain


def flatten(tree: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts under their dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        full = f"{where}.{key}" if where else key
        leaves.update(flatten(value, where=full) if isinstance(value, Mapping) else {full: value})
    return leaves


def parse_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Return {"a.b": value} from words like "a.b=3"; values are read as YAML."""
    overrides: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise UserError(f"cannot read {word!r}: an override is written key=value, for example batch_size=32")
        overrides[key.strip()] = read_yaml(text, f"cannot read the value of {word!r}") if text else ""
    return overrides


def read_yaml(text: str | bytes, refusal: str) -> Any:
    """Return the content of YAML; UserError "REFUSAL: ..." in one line.

    yaml raises errors of its own, and whatever the constructor of a date, a number or a deep list does.
    """
    try:
        return load_yaml(text)
    except Exception as error:
        raise UserError(f"{refusal}: {first_line(error)}") from error


def load_yaml(text: str | bytes) -> Any:
    """Return the content of YAML; whatever the parser raises, and ValueError for content that no program could work on.

    Such are values nested deeper than any of ours, or within themselves, and few lines that expand to millions.
    """
    content = yaml.safe_load(text)
    if _expanded(content, 0, {}) > MOST_VALUES:
        raise ValueError(f"it expands to more than {MOST_VALUES:,} values")
    return content


def _expanded(value: Any, depth: int, known: dict[int, int]) -> int:
    """Return how many values a tree has, those that several places share counted at each."""
    if not isinstance(value, dict | list | tuple | set):
        return 1
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if id(value) not in known:
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_expanded(part, depth + 1, known) for part in parts)
    return known[id(value)]


def full_key(key: str, tree: Mapping[str, Any]) -> str:
    """Return the dotted key that a bare key means; UserError if there is none or more than one."""
    leaves = flatten(tree)
    if key in leaves:
        return key
    matches = [full for full in leaves if full.endswith(f".{key}")]
    if not matches:
        raise unknown("key", key, {full.rpartition(".")[2] for full in leaves} | set(leaves))
    if len(matches) > 1:
        raise UserError(f"key {key!r} is not unique: write one of {', '.join(matches)}")
    return matches[0]


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts from dotted keys."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def describe(base: Any, *, where: str = "") -> Iterable[tuple[str, Any, str]]:
    """Yield (dotted key, default, help) of every option of a config."""
    for field in dataclasses.fields(base):
        full = f"{where}.{field.name}" if where else field.name
        value = getattr(base, field.name)
        if dataclasses.is_dataclass(value):
            yield from describe(value, where=full)
        else:
            yield full, value, field.metadata.get("help", "")


def _check_range(value: Any, metadata: Mapping[str, Any], key: str) -> None:
    choices, least, most = (metadata.get(name) for name in ("choices", "least", "most"))
    if choices is not None and value not in choices:
        raise UserError(f"{key}: {short_repr(value)} is not allowed; choose one of {', '.join(map(str, choices))}")
    for number in value if isinstance(value, tuple) else (value,):
        if least is not None and number is not None and number < least:
            raise UserError(f"{key}: {short_repr(number)} is not allowed; it is at least {least}")
        if most is not None and number is not None and number > most:
            raise UserError(f"{key}: {short_repr(number)} is not allowed; it is at most {most}")


def _convert(value: Any, hint: Any, key: str) -> Any:
    """Return `value` as the type that `hint` asks for; YAML reads 1e-4 as a string, so numbers are tried."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        allowed = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        if value is None and len(allowed) < len(typing.get_args(hint)):
            return None
        return _convert(value, allowed[0], key)
    if origin is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]
        item = typing.get_args(hint)[0]
        return tuple(_convert(element, item, key) for element in value)
    converted = _scalar(value, hint)
    if converted is None:
        kind = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(hint, str(hint))
        raise UserError(f"{key}: {short_repr(value)} is not {kind}")
    return converted


def _scalar(value: Any, hint: Any) -> Any:
    if hint is Any:
        return value
    if hint is bool:
        return value if isinstance(value, bool) else None
    if hint is str:
        # YAML reads a bare no / off as false: the one place where official spellings ("no") need help
        plain = value is None or isinstance(value, SCALARS)
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value) if plain else None
    if isinstance(value, bool) or value is None:
        return None
    if hint is int and isinstance(value, int):
        return value if abs(value) < 2**63 else None  # a float would round a large seed
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if hint is int:
        return int(number) if number.is_integer() and abs(number) < 2**63 else None
    return number if math.isfinite(number) else None
