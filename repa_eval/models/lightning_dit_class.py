"""LightningDiT with class labels, as published (hustvl/LightningDiT, arXiv 2501.01423).

Parameter names and arithmetic are published. Time runs from noise (0) to data (1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.lightning_dit import PRESETS as SNIPPET_PRESETS
from repa_eval.models.shared.layers import LabelEmbedder
from repa_eval.models.shared.lightning import LightningBackbone, LightningConfig, backbone_fields
from repa_eval.models.shared.state_dict_shapes import label_fields

OWN = ("blocks.0.mlp.w3.weight", "blocks.0.norm1.weight")  # of SwiGLU and of RMSNorm: a SiT has neither


@dataclass(frozen=True, kw_only=True)
class LightningDiTClassConfig(LightningConfig):
    """Arguments of LightningDiT with class labels."""

    num_classes: int = option(1000, help="class labels; the null label is num_classes", least=0)
    class_dropout_prob: float = option(0.1, help="0 builds a label table without a null label", least=0, most=1)
    learn_sigma: bool = option(False, help="the final layer has as many more channels, which are left out")


PRESETS = {
    name.replace("LightningDiT", "LightningDiT-class"): sizes
    for name, sizes in SNIPPET_PRESETS.items()
    if "digits" not in name
}


def read_lightning_dit_class(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no LightningDiT with class labels.

    One with neither SwiGLU nor RMSNorm is a SiT, or ERW's, in names and arithmetic, and is left to them.
    """
    labels, last = (shapes.get(name) for name in ("y_embedder.embedding_table.weight", "final_layer.linear.weight"))
    if labels is None or last is None or not any(name in shapes for name in OWN):
        return None
    fields = backbone_fields(shapes)
    if fields is None or "cls_embedder.weight" in shapes:
        return None
    values = fields["patch_size"] ** 2 * fields["in_channels"]
    return {**fields, **label_fields(shapes), "learn_sigma": last[0] == 2 * values}


@model("LightningDiT-class", defaults=LightningDiTClassConfig(), presets=PRESETS, read=read_lightning_dit_class)
class LightningDiTClass(LightningBackbone):
    """The backbone with a table of class labels."""

    def embed_condition(self, config: LightningDiTClassConfig) -> Sequence[nn.Module]:
        """Make the table of labels."""
        self.outputs = 2 if config.learn_sigma else 1
        self.y_embedder = LabelEmbedder(config.num_classes, config.hidden_size, config.class_dropout_prob)
        return (self.y_embedder.embedding_table,)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), attention: Collection[int] = ()
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity data - noise (B, C, H, W), hidden) for noisy x (B, C, H, W), t (B,), labels y (B,).

        t: 0 = noise, 1 = data. taps and attention as in SiT.
        """
        return self.conditioned(x, self.t_embedder(t) + self.y_embedder(y), taps=taps, attention=attention)
