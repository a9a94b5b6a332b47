"""A VAE of diffusers (extra `latents`): images from latents, and moments of latents from images.

REPA's, SiT's and DiT's is sd-vae-ft-ema.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.images import to_signed
from repa_eval.runtime.hashing import digest_module

CHUNK = 16  # images at once: a VAE needs far more memory than a transformer
IMAGE_CHANNELS = (1, 3)
EXAMPLE = "stabilityai/sd-vae-ft-ema"


class VaeDecoder:
    """images = decode(latents / scaling_factor + shift_factor), in float32, as the VAE's own config says them."""

    def __init__(self, name: str, vae: Any) -> None:
        self.name, self.vae = name, vae
        self.scale = float(vae.config.scaling_factor)  # 0.18215 where the config is silent, as in Stable Diffusion
        self.shift = float(getattr(vae.config, "shift_factor", None) or 0.0)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), float32, near [-1, 1], from latents (B, C, h, w)."""
        scaled = (latents / self.scale + self.shift).to(next(self.vae.parameters()))
        return torch.cat([self.vae.decode(part).sample for part in scaled.split(CHUNK)])

    def record(self) -> dict[str, object]:
        """Return the decoder as protocol entries."""
        return {"vae": self.name, "vae_hash": digest_module(self.vae), "latent_scale": [self.scale, self.shift]}


def decoder_for(model: DiffusionModel, name: str | None, device: str) -> VaeDecoder | None:
    """Return the decoder that a model's samples need, None if the model makes or decodes images itself.

    name: of a VAE on the Hugging Face hub, or a folder that contains one. UserError where it is missing or unfit.
    """
    channels = model.image_shape[0]
    if name is None:
        if not model.decodes and channels not in IMAGE_CHANNELS:
            raise UserError(f"this model makes latents of {channels} channels: add --vae {EXAMPLE}, or --vae FOLDER")
        return None
    vae = load_vae(name)
    if vae.config.latent_channels != channels:
        raise UserError(f"--vae {name} decodes {vae.config.latent_channels} channels; this model makes {channels}")
    return VaeDecoder(name, vae.eval().requires_grad_(False).to(device))


def load_vae(name: str) -> Any:
    """Return the AutoencoderKL, float32, of a folder or of the Hugging Face hub; UserError or Failure in one line."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise UserError("--vae needs diffusers: pip install 'repa-eval[latents]'") from error
    folder = Path(name).is_dir()
    if folder and not (Path(name) / "config.json").is_file():
        raise UserError(f"--vae {name}: the folder contains no config.json of an AutoencoderKL")
    try:
        with _quiet():  # no pickles: nothing in a file is executed
            return AutoencoderKL.from_pretrained(name, torch_dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        if folder:
            raise Failure(f"--vae {name} cannot be opened: {first_line(error)}") from error
        raise Failure(
            f"--vae {name} is no folder here and could not be fetched; without a network name a folder that contains it"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings and retries: an error is reported in one line of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class VaeEncoder:
    """Mean and STANDARD DEVIATION of a VAE's posterior, unscaled: what a trainer draws its latents from."""

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
