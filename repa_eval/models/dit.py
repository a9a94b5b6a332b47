"""DiT (arXiv 2212.09748): SiT's network, trained to predict the noise of a diffusion step and its variance.

Parameter names, initialisation and arithmetic are those of facebookresearch/DiT.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.conventions import EPSILON
from repa_eval.diffusion.model import check_taps
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.blocks import FinalLayer, PatchTransformer, TransformerConfig, run_blocks, unpatchify
from repa_eval.models.shared.state_dict_shapes import FINAL, SIT, has_parts, sit_fields
from repa_eval.models.sit import PRESETS as SIT_PRESETS


@dataclass(frozen=True, kw_only=True)
class DiTConfig(TransformerConfig):
    """Arguments of DiT."""

    learn_sigma: bool = option(True, help="twice the output channels, the second half for the variance")


PRESETS = {name.replace("SiT", "DiT"): sizes for name, sizes in SIT_PRESETS.items() if "digits" not in name}


def read_dit(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no published DiT.

    A SiT with a learned sigma (willisma/SiT) has the very same names and shapes: a file's origin tells which it is.
    """
    if not has_parts(shapes, SIT | FINAL, extras=frozenset()):
        return None
    fields = sit_fields(shapes)
    outputs = shapes["final_layer.linear.weight"][0] // fields["patch_size"] ** 2
    return {**fields, "learn_sigma": True} if outputs == 2 * fields["in_channels"] else None


@model("DiT", defaults=DiTConfig(), presets=PRESETS, read=read_dit)
class DiT(PatchTransformer):
    """Diffusion transformer; a fresh one outputs exactly 0."""

    native = EPSILON

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.final_layer = FinalLayer(config.hidden_size, config.patch_size**2 * channels)
        self.start()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), attention: Collection[int] = ()
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (noise and variance logits (B, 2C, H, W), hidden) for noisy x (B, C, H, W), t (B,), labels y (B,).

        t: the diffusion step, 0..999, as it is: 0 is almost clean. taps and attention as in SiT.
        """
        check_taps((*taps, *attention), len(self.blocks))
        hidden: dict[Any, Tensor] = {}
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.condition(t, y)  # (B, D)
        x = run_blocks(self.blocks, x, c, hidden, taps=taps, attention=attention)
        return unpatchify(self.final_layer(x, c), self.config.patch_size), hidden
