"""A timm network as a teacher: tokens by `forward_features`, class token and registers cut from the patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.teacher import Teacher, Tokens
from repa_eval.runtime.hashing import digest_module

Pixels = Callable[..., Tensor]  # (images uint8 (B, 3, H, W), name=...) -> what the network reads


class VisionTeacher(Teacher):
    """A vision transformer, or any network of timm with a feature map, behind its own preprocessing.

    network: from timm, weights loaded; the digest is that of its tensors. pixels: its preprocessing (_pixels.py).
    last_norm: whether tokens are taken after the network's last norm (REPA takes MAE's and CLIP's before it).
    """

    network: Any
    table: Tensor | None
    class_token: bool

    def __init__(self, name: str, network: Any, pixels: Pixels, *, last_norm: bool = True) -> None:
        super().__init__()
        self.name = name
        self.digest = digest_module(network)
        self.network = network
        self.pixels = pixels
        self.width = int(self.network.num_features)
        self.class_token = getattr(network, "cls_token", None) is not None
        self.prefix_tokens = int(getattr(self.network, "num_prefix_tokens", self.class_token))
        # the table as it was loaded, for plain ViTs; some have none
        table = getattr(network, "pos_embed", None) if isinstance(network, VisionTransformer) else None
        self.register_buffer("table", table.detach().clone() if isinstance(table, Tensor) else None, persistent=False)
        if not last_norm:
            self.network.norm = nn.Identity()

    def forward(self, images: Tensor) -> Tokens:
        """Return Tokens for uint8 images (B, 3, H, W); UserError for a size that the preprocessing does not take."""
        return self.tokens(self.pixels(images, name=self.name))

    def tokens(self, pixels: Tensor) -> Tokens:
        """Return Tokens for preprocessed pixels (B, 3, H, W); a feature map is read row by row."""
        self._fit(pixels.shape[-2], pixels.shape[-1])
        hidden = self.network.forward_features(pixels)
        if not isinstance(hidden, Tensor) or hidden.ndim not in (3, 4):
            raise UserError(f"teacher {self.name}: this network gives neither tokens nor one feature map")
        if hidden.ndim == 4:
            rows = hidden if hidden.shape[-1] == self.width else hidden.permute(0, 2, 3, 1)  # (B, H, W, D)
            return Tokens(patches=rows.flatten(1, 2))
        return Tokens(patches=hidden[:, self.prefix_tokens :], cls=hidden[:, 0] if self.class_token else None)

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention module of each block; none where it is not the plain one (rotary, windowed)."""
        found = [block.attn for block in getattr(self.network, "blocks", ()) if hasattr(block, "attn")]
        return found if all(type(module) is Attention for module in found) else ()

    @torch.no_grad()
    def _fit(self, height: int, width: int) -> None:
        """Resample the position table, always from the one that was loaded, when images of another size come."""
        if self.table is None or self.network.patch_embed.img_size == (height, width):
            return
        self.network.patch_embed.set_input_size((height, width))
        # the trainer's resampling (bicubic, antialiased), not DINOv2's own: its features differ by 8e-4
        table = resample_abs_pos_embed(
            self.table,
            list(self.network.patch_embed.grid_size),
            num_prefix_tokens=0 if self.network.no_embed_class else self.prefix_tokens,
        )
        self.network.pos_embed = nn.Parameter(table, requires_grad=False)
