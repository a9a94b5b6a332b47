"""SiT as REPA trains it (arXiv 2401.08740 and 2410.06940): adaLN-zero transformer with projectors to teacher features.

Parameter names, initialisation and arithmetic are those of sihyun-yu/REPA; hidden states are returned on request.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.model import check_taps
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.blocks import FinalLayer, PatchTransformer, TransformerConfig, run_blocks, unpatchify
from repa_eval.models.shared.state_dict_shapes import FINAL, SIT, has_parts, sit_fields


@dataclass(frozen=True, kw_only=True)
class SiTConfig(TransformerConfig):
    """Arguments of SiT."""

    learn_sigma: bool = option(False, help="twice the output channels, the second half unused (willisma/SiT)")


_WIDTHS = {
    "S": {"depth": 12, "hidden_size": 384, "num_heads": 6},
    "B": {"depth": 12, "hidden_size": 768, "num_heads": 12},
    "L": {"depth": 24, "hidden_size": 1024, "num_heads": 16},
    "XL": {"depth": 28, "hidden_size": 1152, "num_heads": 16},
}
PRESETS = {
    f"SiT-{size}/{patch}": {**widths, "patch_size": patch} for size, widths in _WIDTHS.items() for patch in (2, 4, 8)
}
PRESETS["SiT-digits/2"] = {"depth": 6, "hidden_size": 64, "num_heads": 4, "patch_size": 2, "projector_dim": 256}


def read_sit(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no SiT."""
    if not has_parts(shapes, SIT | FINAL):
        return None
    fields = sit_fields(shapes)
    outputs = shapes["final_layer.linear.weight"][0] // fields["patch_size"] ** 2
    return {**fields, "learn_sigma": outputs == 2 * fields["in_channels"]}


@model("SiT", defaults=SiTConfig(), presets=PRESETS, read=read_sit)
class SiT(PatchTransformer):
    """Scalable interpolant transformer; a fresh one outputs exactly 0."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__(config)
        channels = config.in_channels * (2 if config.learn_sigma else 1)
        self.final_layer = FinalLayer(config.hidden_size, config.patch_size**2 * channels)
        self.start()

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), attention: Collection[int] = ()
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity (B, C, H, W), hidden) for noisy x (B, C, H, W), t (B,), labels y (B,).

        taps: numbers of the blocks whose OUTPUT is wanted, 1-based; 0 = tokens after patch and position embedding:
        hidden[layer] (B, N, D). attention: layers whose logits are wanted: hidden["attention", layer] (B, heads, N, N).
        A learned sigma (willisma/SiT: twice the output channels) is dropped.
        """
        check_taps((*taps, *attention), len(self.blocks))
        hidden: dict[Any, Tensor] = {}
        x = self.x_embedder(x) + self.pos_embed  # (B, N, D)
        c = self.condition(t, y)  # (B, D)
        x = run_blocks(self.blocks, x, c, hidden, taps=taps, attention=attention)
        out = unpatchify(self.final_layer(x, c), self.config.patch_size)
        return out[:, : self.config.in_channels], hidden
