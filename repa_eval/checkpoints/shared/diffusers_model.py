"""A denoiser of diffusers as one of this package's models: t = 1 is noise, the output is the velocity noise - data."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repa_eval.checkpoints.shared.diffusers_networks import Caller
from repa_eval.checkpoints.shared.native_times import NativeTime
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel, check_taps
from repa_eval.errors import UserError
from repa_eval.features.hooks import captured


@dataclass(frozen=True)
class DiffusersConfig:
    """The sizes of a network of diffusers, under the names that our models have."""

    depth: int
    in_channels: int
    input_size: int
    num_classes: int
    class_dropout_prob: float


class DiffusersModel(DiffusionModel):
    """A network of diffusers. layer_names: the submodule behind each layer number, 1-based.

    Its image tokens are the hidden states, not its text tokens. Where it reads text it is given zeros, and no class
    where it has a label for that. Its own pipeline makes its samples.
    """

    one_grid = False
    stub = "a network of diffusers, measured here and sampled by its own pipeline"  # type: ignore[assignment]

    def __init__(self, network: nn.Module, caller: Caller, time: NativeTime, *, side: int) -> None:
        super().__init__()
        self.network = network
        self.projectors = nn.ModuleList()
        self.layer_names = tuple(caller.layers(network))
        self._caller, self._time = caller, time
        # a network without classes draws one label for all, which it is not shown
        dropout = 1.0 if caller.has_null_label else 0.0
        self.config = DiffusersConfig(len(self.layer_names), caller.channels, side, caller.num_classes or 1, dropout)
        self.native, self.noising = time.describe, time.noising

    def width(self, layer: int) -> int:
        """UserError: these networks are measured, not trained."""
        raise UserError(f"the width of {self.layer_names[layer - 1]} is known only after a forward pass")

    def noised(self, x: Tensor, noise: Tensor, t: Tensor, interpolant: Interpolant) -> Tensor:
        """Return x_t (B, C, H, W) as the network's own scheduler makes it, whatever the interpolant."""
        return self._time.noised(x, noise, t)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (velocity (B, C, H, W), {layer: image tokens (B, T, D)}) of x (B, C, H, W) at t (B,), 1 = noise."""
        check_taps(taps, self.depth)
        if 0 in taps:
            raise UserError("layer 0: a network of diffusers has the layers that are named, from 1")
        names = {layer: self.layer_names[layer - 1] for layer in taps}
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            if names:
                found = stack.enter_context(captured(self.network, list(names.values()), part=self._caller.part))
            output = self._caller(self.network, x, self._time.told(t), y)
        velocity = self._time.velocity(x, output[:, : x.shape[1]], t)  # DiT's variance is left out
        tokens = x.shape[-2] * x.shape[-1] // 4
        return velocity, {layer: self._caller.tokens(found[name], tokens) for layer, name in names.items()}

    def record(self) -> dict[str, Any]:
        """Return the protocol entries: whose network it is, what it is given, and where its layers are read."""
        return {
            "network": type(self.network).__name__,
            "layer_names": list(self.layer_names),
            **({} if self._caller.part is None else {"part": "image tokens"}),
            **self._caller.record(),
        }
