"""The three text-to-image networks that soft tokens can be put into, seen through one small interface."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError

STEPS = 1000  # of the published timesteps; 1000 = noise
STAGES = ("down", "mid", "up")  # of a UNet
Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a block


class Host(ABC):
    """A network and where its text enters. layers: banks of tokens that it can have; widths: those of a token.

    The first width is that of the text before the network's own embedder, the last that inside.
    """

    layers: int
    widths: tuple[int, int]
    text_stays: bool = False  # whether a block gets the text as it was given, not as the block before left it

    def __init__(self, network: Any) -> None:
        self.network = network

    @abstractmethod
    def blocks(self) -> list[tuple[int, nn.Module]]:
        """Return (layer, module) of every module that takes text, layer counted from 1; 0: it gets no tokens."""

    @abstractmethod
    def run(self, x: Tensor, steps: Tensor, y: Tensor, pooled: Tensor | None) -> Tensor:
        """Return the network's output for x (B, C, H, W), steps (B,) in 0..1000, text y (B, L, D)."""

    def embed(self, tokens: Tensor) -> Tensor:
        """Return tokens of the first width as the network's embedder makes them, those of the last as they are."""
        if self.text_stays or tokens.shape[-1] == self.widths[1]:
            return tokens
        embedded: Tensor = self.network.context_embedder(tokens)
        return embedded

    def join(self, soft: Tensor, text: Tensor) -> Tensor:
        """Return the text with the soft tokens before it."""
        return torch.cat([soft, text], dim=1)

    def text_of(self, call: Call) -> Tensor:
        """Return the text among a block's arguments."""
        text: Tensor = call[1]["encoder_hidden_states"]
        return text

    def with_text(self, call: Call, text: Tensor) -> Call:
        """Return a block's arguments with another text."""
        return call[0], {**call[1], "encoder_hidden_states": text}

    def image_of(self, made: Any) -> Tensor:
        """Return the image tokens (B, N, D) of what a block returned."""
        raise UserError("hidden states of a UNet are not taken")


class SD3Host(Host):
    """diffusers' SD3Transformer2DModel."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        given = network.config
        self.layers = given.num_layers
        self.widths = (given.joint_attention_dim, given.caption_projection_dim)

    def blocks(self) -> list[tuple[int, nn.Module]]:
        """Return the joint blocks."""
        return list(enumerate(self.network.transformer_blocks, 1))

    def run(self, x: Tensor, steps: Tensor, y: Tensor, pooled: Tensor | None) -> Tensor:
        """Return the velocity; without pooled text it is zero."""
        if self.network.gradient_checkpointing:
            raise UserError("soft tokens and gradient checkpointing of diffusers do not go together: switch it off")
        if pooled is None:
            pooled = y.new_zeros(len(y), self.network.config.pooled_projection_dim)
        velocity: Tensor = self.network(
            hidden_states=x, encoder_hidden_states=y, pooled_projections=pooled, timestep=steps, return_dict=False
        )[0]
        return velocity

    def image_of(self, made: Any) -> Tensor:
        """Return the second of (text, image)."""
        tokens: Tensor = made[1]
        return tokens


class MMDiTHost(Host):
    """Our MMDiT (REPA's text-to-image network), which has no pooled text."""

    def __init__(self, network: Any) -> None:
        super().__init__(network)
        self.layers = network.config.depth
        self.widths = (network.config.context_size, network.config.hidden_size)

    def blocks(self) -> list[tuple[int, nn.Module]]:
        """Return the joint blocks."""
        return list(enumerate(self.network.joint_blocks, 1))

    def run(self, x: Tensor, steps: Tensor, y: Tensor, pooled: Tensor | None) -> Tensor:
        """Return the velocity."""
        if pooled is not None:
            raise UserError("MMDiT reads no pooled text; leave it out")
        velocity: Tensor = self.network(x, steps / STEPS, y)[0]
        return velocity

    def text_of(self, call: Call) -> Tensor:
        """Return the second argument."""
        text: Tensor = call[0][1]
        return text

    def with_text(self, call: Call, text: Tensor) -> Call:
        """Return the arguments with another second one."""
        return (call[0][0], text, *call[0][2:]), call[1]

    def image_of(self, made: Any) -> Tensor:
        """Return the first of (image, text)."""
        tokens: Tensor = made[0]
        return tokens


class UNetHost(Host):
    """diffusers' UNet2DConditionModel (SD 1.5, SDXL): one bank for all stages named, after the start token."""

    layers = 1
    text_stays = True

    def __init__(self, network: Any, stages: Sequence[str] = STAGES[:1]) -> None:
        super().__init__(network)
        if not stages or not set(stages) <= set(STAGES):
            raise UserError(f"stages {list(stages)}: choose among {', '.join(STAGES)}")
        self.stages = tuple(stages)
        width = network.config.cross_attention_dim
        self.widths = (width, width)

    def blocks(self) -> list[tuple[int, nn.Module]]:
        """Return the blocks with cross attention; those of other stages get no tokens."""
        middle = [self.network.mid_block] if self.network.mid_block is not None else []
        of_stage: Mapping[str, Any] = {"down": self.network.down_blocks, "mid": middle, "up": self.network.up_blocks}
        return [
            (int(stage in self.stages), block)
            for stage, blocks in of_stage.items()
            for block in blocks
            if getattr(block, "has_cross_attention", False)
        ]

    def run(self, x: Tensor, steps: Tensor, y: Tensor, pooled: Tensor | None) -> Tensor:
        """Return the predicted noise."""
        if pooled is not None:
            raise UserError("this UNet reads no pooled text; leave it out")
        predicted: Tensor = self.network(sample=x, timestep=steps, encoder_hidden_states=y, return_dict=False)[0]
        return predicted

    def join(self, soft: Tensor, text: Tensor) -> Tensor:
        """Return the text with the soft tokens after its start token."""
        return torch.cat([text[:, :1], soft, text[:, 1:]], dim=1)


def host_of(network: Any, stages: Sequence[str] = STAGES[:1]) -> Host:
    """Return the interface to a network; UserError if soft tokens cannot be put into it. stages: of a UNet."""
    if hasattr(network, "joint_blocks"):
        return MMDiTHost(network)
    if hasattr(network, "transformer_blocks") and hasattr(network, "context_embedder"):
        return SD3Host(network)
    if hasattr(network, "down_blocks") and hasattr(network, "up_blocks"):
        return UNetHost(network, stages)
    raise UserError(f"soft tokens go into diffusers' SD3 and UNet or into MMDiT, not into {type(network).__name__}")
