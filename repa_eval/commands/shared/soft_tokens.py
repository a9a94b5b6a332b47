"""The options that put soft tokens into a text-to-image model: --tokens, --token-strength."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from repa_eval.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def token_options(function: F) -> F:
    """Add the options."""
    function = click.option(
        "--token-strength", type=float, default=1.0, show_default=True, help="of soft tokens; 0 = left out"
    )(function)
    return click.option(
        "--tokens", help="soft tokens: our file, a run's checkpoint, or a folder of the published two files"
    )(function)


def with_tokens(opened: Any, tokens: str | None) -> Any:
    """Return the checkpoint's model, with the soft tokens of a file put in; UserError where that cannot be."""
    from repa_eval.checkpoints.shared.token_files import attach, read_tokens
    from repa_eval.models.text_to_image import TextToImage

    model = opened.model
    if tokens is None:
        return model
    if not isinstance(model, TextToImage):
        raise UserError(f"--tokens: {opened.path} holds {opened.model_name}, which takes no soft tokens")
    if model.dc_tokens is not None:
        raise UserError(f"{opened.path} has soft tokens of its own: leave --tokens out, or name the plain model")
    return attach(model, read_tokens(tokens), where=tokens)
