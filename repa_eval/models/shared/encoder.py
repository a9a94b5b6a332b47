"""What the encoders with RePaViT's feed-forwards have in common: two forms, one of them for inference only."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.diffusion.model import check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes
from repa_eval.models.shared.idle_feed_forward import (
    BATCH_NORM,
    LAYER_NORM,
    FeedForward,
    IdleConfig,
    MergedFeedForward,
    merge,
)


class Encoder(nn.Module, ABC):
    """A vision encoder: `forward(x, *, taps) -> (tokens (B, prefix + T, D), {layer: hidden})`, x preprocessed images.

    prefix_tokens: tokens before the patches; has_class_token: whether the first of them is a class token.
    averaged_buffers: endings of buffers that an average of the weights averages as well, instead of copying them: the
    statistics belong to the weights.
    """

    config: Any
    head: nn.Module
    prefix_tokens: int = 0
    has_class_token: bool = False
    averaged_buffers = frozenset({"running_mean", "running_var"})

    @abstractmethod
    def forward(self, x: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (tokens, hidden)."""

    def pooled(self, tokens: Tensor) -> Tensor:
        """Return what the classifier reads (B, D)."""
        return tokens.mean(1)

    def scaled(self, tokens: Tensor) -> Tensor:
        """Return tokens (B, prefix + T, D) of `forward` as a teacher gives them."""
        return tokens

    def features(self, x: Tensor) -> Tensor:
        """Return the tokens (B, prefix + T, D) as a teacher gives them."""
        return self.scaled(self(x)[0])

    def logits(self, x: Tensor) -> Tensor:
        """Return (B, num_classes)."""
        return self.head(self.pooled(self(x)[0]))  # type: ignore[no-any-return]

    def feed_forwards(self) -> dict[str, FeedForward]:
        """Return by name, in order, the feed-forwards of the training form that may be merged."""
        return {name: part for name, part in self.named_modules() if isinstance(part, FeedForward)}

    def merged(self) -> Encoder:
        """Return a copy with merged feed-forwards, in eval mode; UserError where they cannot be merged, or are."""
        if self.config.merged:
            raise UserError("its feed-forwards are merged already, and merging cannot be undone")
        if self.config.feature_norm == LAYER_NORM:
            idle = "idle channels with " if self.config.channel_idle else ""
            raise UserError(f"{idle}LayerNorm cannot be merged: only batch norms ({BATCH_NORM}) are linear maps")
        parts = self.feed_forwards()
        inside = tuple(f"{name}." for name in parts)
        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(inside)}
        for name, part in parts.items():
            state |= {f"{name}.{key}": tensor for key, tensor in merge(part).items()}
        active = tuple(part.active for part in parts.values())
        config = dataclasses.replace(self.config, merged=True, active_channels=active)
        with torch.device("meta"):
            twin = type(self)(config)  # type: ignore[call-arg]
        twin.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
        return twin.eval().requires_grad_(False)

    def facts(self) -> dict[str, Any]:
        """Return what `inspect` says beside the sizes."""
        config: IdleConfig = self.config
        found = [part for part in self.modules() if isinstance(part, FeedForward | MergedFeedForward)]
        return {
            "form": "merged" if config.merged else "training",
            "feature_norm": None if config.merged else config.feature_norm,
            "idle_ratio": config.idle_ratio if config.channel_idle else 0.0,
            "active_channels": list(self.active_channels()),
            "feed_forward_parameters": sum(p.numel() for part in found for p in part.parameters()),
        }

    def active_channels(self) -> list[int]:
        """Return the number of active channels of every block."""
        if self.config.merged:
            return list(self.config.active_channels)
        return [part.active for part in self.feed_forwards().values()]


class BlockEncoder(Encoder):
    """An encoder of one sequence of tokens: `embed`, `blocks` of one width, `norm`."""

    blocks: nn.ModuleList
    norm: nn.Module

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Return the tokens (B, prefix + T, D) that enter the first block, of preprocessed images x (B, C, H, W)."""

    def forward(
        self, x: Tensor, *, taps: Collection[int] = (), keep: Tensor | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (tokens (B, prefix + T, D), {layer: hidden}) for preprocessed images x (B, C, H, W).

        keep (B, depth, 2): what each block's attention and feed-forward are multiplied by (stochastic depth).
        """
        check_taps(taps, len(self.blocks))
        x = self.embed(x)
        hidden = {0: x} if 0 in taps else {}
        for layer, block in enumerate(self.blocks, 1):
            x = block(x, None if keep is None else keep[:, layer - 1])
            if layer in taps:
                hidden[layer] = x
        return self.norm(x), hidden


def feed_forward(config: IdleConfig, width: int, active: int, **how: Any) -> nn.Module:
    """Return a block's feed-forward in the form that the config says; how: arguments of the training form."""
    if config.merged:
        return MergedFeedForward(width, active, maps=how.get("maps", False))
    return FeedForward(width, int(width * config.mlp_ratio), active, norm=config.feature_norm, **how)


def idle_fields(shapes: Shapes, names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of IdleConfig that shapes tell; names: the feed-forwards, in order.

    The merged form shows its active channels; their mean idle ratio follows for a hidden width of 4 times the width,
    as all published sizes have. In the training form no shape shows the active channels.
    """
    width = shapes[f"{names[0]}.fc1.weight"][1]
    if merged_form(shapes, names):
        active = tuple(shapes.get(f"{name}.fc2.weight", (0,))[0] for name in names)
        widths = [shapes[f"{name}.fc1.weight"][1] for name in names]
        ratio = sum(1 - a / (4 * w) for a, w in zip(active, widths, strict=True)) / len(names)
        return {"merged": True, "active_channels": active, "channel_idle": True, "idle_ratio": ratio}
    hidden = shapes[f"{names[0]}.fc1.weight"][0]
    batch = f"{names[0]}.norm2.running_mean" in shapes
    told: dict[str, Any] = {"mlp_ratio": hidden / width, "feature_norm": BATCH_NORM if batch else LAYER_NORM}
    return told if batch else {**told, "channel_idle": False}  # of the two LayerNorm forms the common one


def merged_form(shapes: Shapes, names: Sequence[str]) -> bool:
    """Return whether the feed-forwards called `names` are merged: fc3, or a lone square fc1."""
    fc3 = any(f"{name}.fc3.weight" in shapes for name in names)
    return fc3 or all(f"{name}.fc2.weight" not in shapes for name in names)
