"""Classifier-free guidance of some channels only, as SiT, DiT and U-DiT publish their samplers (forward_with_cfg)."""

from __future__ import annotations

import torch
from torch import Tensor


def guide_channels(output: Tensor, cfg_scale: float, *, channels: int = 3) -> Tensor:
    """Return a network's output (2B, C, H, W) with its first `channels` channels guided: u + cfg_scale (c - u).

    output: B conditional images, then the same B without class. The guided channels are the same in both halves; the
    other channels stay as they are. 3 of a latent's 4 channels is a quirk of DiT, which its successors kept.
    """
    conditional, unconditional = output[:, :channels].chunk(2)
    guided = unconditional + cfg_scale * (conditional - unconditional)
    return torch.cat([guided.repeat(2, 1, 1, 1), output[:, channels:]], dim=1)
