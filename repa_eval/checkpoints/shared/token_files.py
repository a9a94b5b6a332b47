"""Soft tokens apart from their network: taken out into one plain dict, and put into the network they were trained for.

Read from our file, from a run's checkpoint, from a folder of the published two files, or from one of these alone.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.checkpoints.shared.recognise import recognise
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.checkpoint_layout import Request
from repa_eval.models.shared.soft_tokens import SoftTokens
from repa_eval.models.text_to_image import TextToImage
from repa_eval.runtime.hashing import digest_module

BINS = 100  # the time offsets are one row per 10 of 1000 steps
FORMAT = "soft tokens"
SPACES = ("after the text's embedder", "before the text's embedder")


class TokenFile(nn.Module):
    """Soft tokens (layers, n, D) or (n, D), and their time offsets (100, layers * C) if there are any."""

    def __init__(self, tokens: Tensor | None, offsets: Tensor | None) -> None:
        super().__init__()
        self.config = None
        self.dc_tokens = None if tokens is None else nn.Parameter(tokens, requires_grad=False)
        self.dc_t_tokens = None if offsets is None else nn.Parameter(offsets, requires_grad=False)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """tokens (layers, n, D) and their time offsets (100, layers * C); base_hash: of the network, if it is recorded."""

    tokens: Tensor
    offsets: Tensor | None = None
    base_hash: str | None = None


def token_record(network: TextToImage, *, step: int | None, recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of a network as tensors and plain values; UserError if it has none."""
    if network.dc_tokens is None:
        raise UserError("this checkpoint holds no soft tokens, only a plain text-to-image network")
    tokens = network.dc_tokens.detach().clone()
    inside = tokens.shape[-1] == network.config.hidden_size
    record: dict[str, Any] = {"tokens": tokens}
    if network.dc_t_tokens is not None:
        record["t_offsets.weight"] = network.dc_t_tokens.weight.detach().clone()
    return record | {
        "format": FORMAT,
        "num_layers": tokens.shape[0],
        "num_tokens": tokens.shape[1],
        "width": tokens.shape[2],
        "space": SPACES[0 if inside else 1],
        "time_bins": BINS if network.dc_t_tokens is not None else 0,
        "base": type(network).__name__,
        "base_hash": digest_module(network.base_model),
        "step": step,
        "recipe": recipe,
    }


def to_bytes(record: dict[str, Any]) -> bytes:
    """Return the content of a token file."""
    buffer = io.BytesIO()
    torch.save(record, buffer)
    return buffer.getvalue()


def read_tokens(path: str | Path) -> Tokens:
    """Return the soft tokens at `path`; UserError if there are none."""
    place = Path(path)
    if place.is_dir():
        return _of_folder(place)
    opened = recognise(place, Request())
    network = opened.network
    if isinstance(network, TokenFile):
        if network.dc_tokens is None:
            raise UserError(f"{place} holds time offsets alone: give the folder in which the tokens lie beside them")
        return Tokens(network.dc_tokens, network.dc_t_tokens, opened.facts.get("base_hash"))
    if not isinstance(network, SoftTokens) or network.dc_tokens is None:
        raise UserError(f"{place} holds {opened.model_name}, no soft tokens")
    offsets = None if network.dc_t_tokens is None else network.dc_t_tokens.weight
    return Tokens(network.dc_tokens, offsets, digest_module(network.base_model))


def _of_folder(folder: Path) -> Tokens:
    """Return the tokens of the published two files."""
    files = [file for suffix in ("*.pth", "*.pt", "*.safetensors") for file in sorted(folder.glob(suffix))]
    found: dict[str, list[Any]] = {"dc_tokens": [], "dc_t_tokens": []}
    for file in files:
        opened = recognise(file, Request())
        if isinstance(opened.network, TokenFile):
            found[opened.model_name].append(opened)
    if len(found["dc_tokens"]) != 1 or len(found["dc_t_tokens"]) > 1:
        raise UserError(
            f"{folder} holds {len(found['dc_tokens'])} files of soft tokens and {len(found['dc_t_tokens'])} of time "
            "offsets: expected one, and at most one; name a file instead"
        )
    one = found["dc_tokens"][0]
    offsets = found["dc_t_tokens"][0].network.dc_t_tokens if found["dc_t_tokens"] else one.network.dc_t_tokens
    return Tokens(one.network.dc_tokens, offsets, one.facts.get("base_hash"))


def attach(network: TextToImage, tokens: Tokens, *, where: str) -> TextToImage:
    """Return the network with these tokens; UserError if they are for another one."""
    own = digest_module(network.base_model)
    if tokens.base_hash not in (None, own):
        raise UserError(f"{where}: these soft tokens are for the network {tokens.base_hash}; this one is {own}")
    bank, offsets, inside = tokens.tokens, tokens.offsets, network.config.hidden_size
    if bank.ndim != 3 or bank.shape[-1] not in (inside, network.config.context_size):
        known = f"(layers, tokens, {inside}) after its text's embedder or {network.config.context_size} wide before it"
        raise UserError(f"{where}: soft tokens {tuple(bank.shape)}; this network takes {known}")
    if not 1 <= len(bank) <= network.config.depth:
        raise UserError(f"{where}: soft tokens of {len(bank)} blocks; this model has blocks 1..{network.config.depth}")
    if offsets is not None and tuple(offsets.shape) != (BINS, len(bank) * inside):
        raise Failure(f"{where}: time offsets {tuple(offsets.shape)}, expected {(BINS, len(bank) * inside)}")
    shape = {"num_tokens": bank.shape[1], "token_layers": len(bank), "token_width": bank.shape[2]}
    config = dataclasses.replace(network.config, **shape, time_offsets=offsets is not None)
    build: Callable[[Any], TextToImage] = type(network)
    made = build(config)
    made.base_model.load_state_dict(network.base_model.state_dict())
    assert made.dc_tokens is not None
    with torch.no_grad():
        made.dc_tokens.copy_(bank)
        if made.dc_t_tokens is not None and offsets is not None:
            made.dc_t_tokens.weight.copy_(offsets)
    return made.eval().requires_grad_(False)
