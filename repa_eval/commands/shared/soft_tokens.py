"""The options that put soft tokens into a text-to-image model: --tokens, --token-strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repa_eval.console.numbers import Real
from repa_eval.console.option_groups import flag, option_group
from repa_eval.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """Soft tokens for a text-to-image model."""

    tokens: str | None = flag(
        "--tokens",
        help="SoftREPA: soft tokens, as our file, a run's checkpoint or the folder of the published files",
    )
    token_strength: float = flag(
        "--token-strength", type=Real(), default=1.0, help="SoftREPA: factor of the soft tokens; 0 = without them"
    )


token_options = option_group("soft_tokens", TokenOptions)


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
        raise UserError(f"{opened.path} has its own soft tokens; leave --tokens out, or name the model without them")
    return attach(model, read_tokens(tokens), where=tokens)
