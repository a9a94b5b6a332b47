"""From images to the moments of a VAE's posterior, as REPA's preprocessing stores them."""

from __future__ import annotations

import torch
from torch import Tensor

from repa_eval.data._registry import to_signed
from repa_eval.errors import UserError
from repa_eval.hashing import digest_module
from repa_eval.sampling.decode import CHUNK, load_vae


class Encoder:
    """Mean and STANDARD DEVIATION of a VAE's posterior, not scaled: what a trainer draws its latents from."""

    def __init__(self, name: str, device: str) -> None:
        self.name, self.vae = name, load_vae(name).eval().requires_grad_(False).to(device)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)

    def check(self, shape: tuple[int, int, int]) -> None:
        """UserError unless images of this shape (C, H, W) can be encoded."""
        channels, height, width = shape
        if channels != 3:
            raise UserError(f"--vae {self.name} encodes RGB images; these are grey")
        if height != width or height % self.factor:
            raise UserError(
                f"--vae {self.name} encodes squares whose side is a multiple of {self.factor}; these are "
                f"{height}x{width}: add --resolution N"
            )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return moments (B, 2C, h, w), float32 on the CPU, of uint8 images (B, 3, H, W)."""
        like = next(self.vae.parameters())
        parts = []
        for part in to_signed(images).split(CHUNK):
            posterior = self.vae.encode(part.to(like)).latent_dist
            parts.append(torch.cat([posterior.mean, posterior.std], dim=1).float().cpu())
        return torch.cat(parts)

    def record(self) -> dict[str, object]:
        """Return the encoder as entries of a record."""
        return {"vae": self.name, "vae_hash": digest_module(self.vae), "moments": "mean, standard deviation"}
