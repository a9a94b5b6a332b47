"""What a model of latents reads of images: by a VAE, at the scale and with the posterior that somebody says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from repa_eval.api.opening import OpenedModel, device_of
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture
from repa_eval.features.encoded import Encoder, encode_images
from repa_eval.features.model_input import USUAL, latent_reading
from repa_eval.features.preflight import checked_input, warn_of_scale
from repa_eval.interfaces.image_source import ImageSource, LatentScale
from repa_eval.sampling.vae import Vae, VaeEncoder, open_vae

VaeLike = str | Path | nn.Module | Vae | Encoder
ScaleLike = float | tuple[float, float] | LatentScale


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images become what a model reads, as a caller says it.

    vae: name, folder or object; None for a model that reads images, or data that hold latents. latent_scale: a number,
    (scale, shift), or a LatentScale with one number per channel; None for what the checkpoint, the data or the VAE say.
    """

    vae: VaeLike | None = None
    posterior: str = "sample"
    latent_scale: ScaleLike | None = None

    @property
    def networks(self) -> list[nn.Module]:
        """The VAE that is the caller's own object, if it is one: it is left as it was."""
        return [self.vae] if isinstance(self.vae, nn.Module) else []

    def capture(self, opened: OpenedModel, capture: Capture) -> Capture:
        """Return a capture with the reading of latents; what it says itself stands."""
        if capture.latents != USUAL:
            return capture
        recorded = None if opened.checkpoint is None else opened.checkpoint.latent_scale
        return replace(capture, latents=latent_reading(recorded, self.latent_scale, posterior=self.posterior))

    def on(self, opened: OpenedModel) -> Encoding:
        """Return the same with a VAE that is named opened where the model computes, once for all images."""
        named = isinstance(self.vae, str | Path)
        return replace(self, vae=open_vae(self.vae, _device(opened))) if named else self

    def images(self, source: ImageSource, opened: OpenedModel, capture: Capture) -> ImageSource:
        """Return the source as the model reads it; UserError, before anything is computed, where it cannot."""
        model, check = opened.model, self.latent_scale is None
        images = encoded(source, self.vae, model, cache=capture.cache, device=_device(opened), check_scale=check)
        checked_input(model, images, capture)
        warn_of_scale(model, images, capture)
        return images


def _device(opened: OpenedModel) -> str:
    return opened.device or str(device_of(opened.model))


def encoded(
    images: ImageSource,
    vae: VaeLike | None,
    model: DiffusionModel,
    *,
    cache: Path | None = None,
    device: str = "cpu",
    check_scale: bool = True,
) -> ImageSource:
    """Return a source with latents by a VAE; the source itself without one, and where it holds latents.

    cache: the folder in which latents outlive an interruption; None for a temporary one. check_scale: see
    `encode_images`.
    """
    if vae is None:
        return images
    if images.latent_shape is None and images.image_shape == model.image_shape:
        raise UserError("this model reads the images themselves: leave the VAE out (--vae)")
    named = isinstance(vae, str | Path | nn.Module | Vae)
    encoder: Any = VaeEncoder(vae, device) if named else vae
    return encode_images(images, encoder, cache=cache, check_scale=check_scale)
