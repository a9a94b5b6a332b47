"""Which blocks are meant: 3, [3, 4], "3,4", "1-6" or "all"."""

from __future__ import annotations

import contextlib
import fnmatch
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from repa_eval.errors import UserError, short_repr

Layers = int | str | Iterable[int]


def layer_numbers(
    layers: Layers, depth: int, *, aligned: int | None = None, what: str = "layers", names: Sequence[str] = ()
) -> list[int]:
    """Return the block numbers, 1-based, that `layers` names in a model of `depth` blocks, in the order given.

    aligned: the block that training aligned, and what: the argument's name, both for the message. names: of the blocks
    of a network of somebody else's, which stand for their numbers; * is one part of a name. UserError for other text
    and for a block that the model does not have.
    """
    if isinstance(layers, str):
        numbers = _parsed(_numbered(layers, names, what) if names else layers, depth, what)
    else:
        numbers = _whole(layers, what)
    for layer in numbers:
        if not 1 <= layer <= depth:
            hint = f"; its aligned block is {aligned}" if aligned else ""
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}{hint}")
    if not numbers:
        raise UserError(f'no layers are given: name block numbers of 1..{depth}, such as 3, "3,4", "1-6" or "all"')
    return list(dict.fromkeys(numbers))


def _whole(layers: Any, what: str) -> list[int]:
    """Return one or several whole numbers of any kind (of numpy and torch too)."""
    for several in (lambda: [layers], lambda: list(layers)):
        with contextlib.suppress(TypeError):
            return [operator.index(layer) for layer in several()]
    raise UserError(f'{what} {short_repr(layers)}: expected block numbers, such as 3, [3, 4] or "1-6", or "all"')


def _numbered(text: str, names: Sequence[str], what: str) -> str:
    """Return the text with names of blocks, and patterns of names, replaced by their numbers."""
    parts = []
    for part in map(str.strip, text.split(",")):
        if part[:1].isalpha() and part != "all":
            fits = [str(number) for number, name in enumerate(names, 1) if fits_pattern(name, part)]
            if not fits:
                raise UserError(f"{what} {part!r}: this network has the layers {_shown(names)}")
            parts += fits
        else:
            parts.append(part)
    return ",".join(parts)


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{names[0]}, {names[1]}, ..., {names[-1]}"


def fits_pattern(name: str, pattern: str) -> bool:
    """Return whether a dotted name fits a pattern, in which * stands for one part, or for some letters of it."""
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))


def _parsed(text: str, depth: int, what: str) -> list[int]:
    if text.strip() == "all":
        return list(range(1, depth + 1))
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.replace("..", "-").partition("-")
            if dash and int(last) < int(first):
                raise UserError(f"{what} {text!r}: a range goes from the lower block to the higher one")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except UserError:
        raise
    except ValueError as error:
        expected = "expected block numbers joined by commas, or all; 1-6 is a range"
        raise UserError(f"{what} {text!r}: {expected}") from error
    return numbers
