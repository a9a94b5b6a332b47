"""SiT that denoises the teacher's class token with the latent (REG, arXiv 2507.01467): one more token, in front.

Parameter names, initialisation and arithmetic are those of Martinser/REG.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.model import check_taps
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import Shapes, model
from repa_eval.models.shared.blocks import PatchTransformer, TransformerConfig, plain_norm, run_blocks, unpatchify
from repa_eval.models.shared.layers import modulate, zero
from repa_eval.models.shared.state_dict_shapes import EXTRAS, FINAL, SIT, has_parts, sit_fields
from repa_eval.models.sit import PRESETS as SIT_PRESETS


@dataclass(frozen=True, kw_only=True)
class SiTClsConfig(TransformerConfig):
    """Arguments of SiT with a class token."""

    z_dims: tuple[int, ...] = option((768,), help="widths of the teachers' features, one projector each")
    cls_token_dim: int = option(0, help="width of the class token; 0: the first of z_dims, as published", least=0)
    cls_source_dim: int = option(
        0, help="width of the teacher's, where a fixed linear map narrows it; 0: no map", least=0
    )

    @property
    def cls_width(self) -> int:
        """Width of the class token; UserError where nothing tells it."""
        if not self.cls_token_dim and not self.z_dims:
            raise UserError("the class token has no width: z_dims is empty, and cls_token_dim is 0")
        return self.cls_token_dim or self.z_dims[0]


class Velocities(NamedTuple):
    """What the network answers: the velocity of the latent (B, C, H, W) and of the class token (B, z)."""

    velocity: Tensor
    class_velocity: Tensor


PRESETS = {name.replace("SiT", "SiT-REG"): sizes for name, sizes in SIT_PRESETS.items()}


def read_sit_cls(shapes: Shapes) -> dict[str, Any] | None:
    """Return the config fields that a state dict's shapes tell, None if it is no SiT with a class token."""
    parts = SIT | FINAL | {"final_layer.linear_cls", "cls_projectors2", "wg_norm"}
    if not has_parts(shapes, parts, extras=EXTRAS | {"cls_mean", "cls_map"}):
        return None
    fields, width = sit_fields(shapes), shapes["cls_projectors2.weight"][1]
    source = shapes.get("cls_map", (0,))[0]
    return {**fields, "cls_token_dim": 0 if fields["z_dims"][:1] == (width,) else width, "cls_source_dim": source}


class TwoFinalLayers(nn.Module):
    """Modulated norm of all tokens, then one linear map for the class token and one for the patches."""

    def __init__(self, width: int, patch_values: int, cls_width: int) -> None:
        super().__init__()
        self.norm_final = plain_norm(width)
        self.linear = nn.Linear(width, patch_values)
        self.linear_cls = nn.Linear(width, cls_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Return patches (B, N, p*p*C) and class token (B, z) from tokens x (B, 1 + N, D) and condition c (B, D)."""
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=-1)
        x = modulate(self.norm_final(x), shift, scale)
        return self.linear(x[:, 1:]), self.linear_cls(x[:, 0])


@model("SiT-REG", defaults=SiTClsConfig(), presets=PRESETS, read=read_sit_cls)
class SiTCls(PatchTransformer):
    """SiT on 1 + N tokens; the class token's position is 0, and it conditions nothing. A fresh one outputs exactly 0.

    Our own addition: a fixed linear map (buffers cls_mean and cls_map, none by default) from the teacher's class token
    to a narrower one.
    """

    prefix_tokens = 1
    has_class_token = True

    def __init__(self, config: SiTClsConfig) -> None:
        super().__init__(config)
        width, cls_width = config.hidden_size, config.cls_width
        self.final_layer = TwoFinalLayers(width, config.patch_size**2 * config.in_channels, cls_width)
        self.cls_projectors2 = nn.Linear(cls_width, width)
        self.wg_norm = nn.LayerNorm(width, eps=1e-6)
        if config.cls_source_dim:
            self.register_buffer("cls_mean", torch.zeros(config.cls_source_dim))
            self.register_buffer("cls_map", torch.eye(config.cls_source_dim, cls_width))
        self.start()
        zero(self.final_layer.linear_cls)

    @property
    def class_token_width(self) -> int:
        """Width of the class token that `forward` takes."""
        return int(self.config.cls_width)

    def class_token(self, tokens: Tensor) -> Tensor:
        """Return what is noised (B, z) of the teacher's clean class tokens (B, S): these, or their image by the map."""
        if not self.config.cls_source_dim:
            return tokens
        mean, matrix = (getattr(self, name).float() for name in ("cls_mean", "cls_map"))
        narrow: Tensor = (tokens.to(mean) - mean) @ matrix
        return narrow

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        *,
        cls_token: Tensor,
        taps: Collection[int] = (),
        attention: Collection[int] = (),
    ) -> tuple[Velocities, dict[Any, Tensor]]:
        """Return (velocities, hidden) for noisy x (B, C, H, W) and cls_token (B, z), both at t (B,), and labels y (B,).

        taps and attention as in SiT; every hidden state is (B, 1 + N, D), the class token first.
        """
        check_taps((*taps, *attention), len(self.blocks))
        if cls_token.shape != (len(x), self.class_token_width):
            raise UserError(f"cls_token is {tuple(cls_token.shape)}, expected {(len(x), self.class_token_width)}")
        hidden: dict[Any, Tensor] = {}
        front = self.wg_norm(self.cls_projectors2(cls_token)).unsqueeze(1)  # (B, 1, D)
        x = torch.cat([front, self.x_embedder(x)], dim=1) + self.pos_embed  # (B, 1 + N, D)
        c = self.condition(t, y)  # (B, D)
        x = run_blocks(self.blocks, x, c, hidden, taps=taps, attention=attention)
        patches, class_velocity = self.final_layer(x, c)
        return Velocities(unpatchify(patches, self.config.patch_size), class_velocity), hidden
