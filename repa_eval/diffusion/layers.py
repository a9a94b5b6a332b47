"""Which blocks are meant: 3, [3, 4], "3,4", "1-6" or "all"."""

from __future__ import annotations

from collections.abc import Iterable

from repa_eval.errors import UserError

Layers = int | str | Iterable[int]


def layer_numbers(layers: Layers, depth: int, *, aligned: int | None = None, what: str = "layers") -> list[int]:
    """Return the block numbers, 1-based, that `layers` names in a model of `depth` blocks, in the order given.

    aligned: the block that training aligned, and what: the argument's name, both for the message. UserError for other
    text and for a block that the model does not have.
    """
    if isinstance(layers, str):
        numbers = _parsed(layers, depth, what)
    else:
        numbers = [layers] if isinstance(layers, int) else list(layers)
    for layer in numbers:
        if not 1 <= layer <= depth:
            hint = f"; its aligned block is {aligned}" if aligned else ""
            raise UserError(f"layer {layer}: this model has blocks 1..{depth}{hint}")
    if not numbers:
        raise UserError(f'no layers are given: name block numbers of 1..{depth}, such as 3, "3,4", "1-6" or "all"')
    return list(dict.fromkeys(numbers))


def _parsed(text: str, depth: int, what: str) -> list[int]:
    if text.strip() == "all":
        return list(range(1, depth + 1))
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
    except ValueError as error:
        expected = "expected block numbers joined by commas, or all; 1-6 is a range"
        raise UserError(f"{what} {text!r}: {expected}") from error
    return numbers
