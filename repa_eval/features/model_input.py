"""What a diffusion model reads of a data set: its images, its latents, or latents drawn from their posterior.

A teacher reads the images of the same samples, so that model and teacher need not read the same tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.features.encoded import EncodedImages
from repa_eval.interfaces.image_source import ImageSource, LatentScale, Samples, Shape
from repa_eval.interfaces.images import to_signed
from repa_eval.runtime.seeding import normal

IMAGE_CHANNELS = (1, 3)  # of images; whatever has others is a latent
POSTERIORS = ("sample", "mean")


@dataclass(frozen=True, kw_only=True)
class LatentReading:
    """How a model reads latents, where somebody says it.

    posterior: a latent is drawn from its moments by (seed, index), or is their mean. scale: None for the data's own, or
    the VAE's. scale_from: who says the scale, for the protocol.
    """

    posterior: str = "sample"
    scale: LatentScale | None = None
    scale_from: str = ""

    def __post_init__(self) -> None:
        if self.posterior not in POSTERIORS:
            raise UserError(f"posterior {self.posterior!r}: choose {' or '.join(POSTERIORS)}")


USUAL = LatentReading()


def latent_reading(
    recorded: LatentScale | None, given: LatentScale | tuple[float, float] | float | None, *, posterior: str = "sample"
) -> LatentReading:
    """Return how latents are read: at the scale given (or scale and shift), else at the one that a checkpoint records.

    Where neither says it, the data or the VAE does.
    """
    if given is None:
        said = "" if recorded is None else "the checkpoint"
        return LatentReading(posterior=posterior, scale=recorded, scale_from=said)
    if not isinstance(given, LatentScale):
        given = (
            LatentScale((float(given),)) if isinstance(given, int | float) else LatentScale((given[0],), (given[1],))
        )
    against = "" if recorded in (None, given) else f"; the checkpoint records {recorded.record()}"
    return LatentReading(posterior=posterior, scale=given, scale_from=f"the user{against}")


@dataclass(frozen=True)
class ModelInput:
    """How a model's clean input is made of samples.

    kind: "images", scaled to [-1, 1]; "latents"; or "moments", from which a latent is drawn. scale: of the latents.
    shape: of what the model denoises, which `DiffusionModel.encode` makes of images; None where that is not known.
    posterior: see `LatentReading`. origin: protocol entries that say where the latents and their scale are from.
    """

    kind: str = "images"
    scale: LatentScale = LatentScale()
    shape: Shape | None = None
    posterior: str = "sample"
    origin: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, samples: Samples, generators: Sequence[torch.Generator]) -> Tensor:
        """Return clean x (B, C, H, W), float32; sample i is drawn from its posterior by generator i."""
        values = getattr(samples, self.kind)
        assert values is not None, f"the samples were fetched without {self.kind}"
        if self.kind == "images":
            return to_signed(values)
        if self.kind == "moments":
            shape = (values.shape[1] // 2, *values.shape[2:])
            drawn_now = self.posterior == "sample"
            values = drawn(values.float(), normal(generators, shape)) if drawn_now else values[:, : shape[0]]
        return self.scale(values)

    def record(self) -> dict[str, Any]:
        """Return the protocol entries; none for images, which the model reads as they are."""
        if self.kind == "images":
            return {}
        draws = "sampled by (seed, index)" if self.posterior == "sample" else "mean"
        posterior = {"posterior": draws} if self.kind == "moments" else {}
        return {"model_input": "latents", **posterior, **self.scale.record(), **self.origin}


def drawn(moments: Tensor, eps: Tensor, *, log_variance: bool = False) -> Tensor:
    """Return latents (B, c, h, w), unscaled, drawn from moments (B, 2c, h, w) with standard normal eps (B, c, h, w).

    The second half of the channels is the STANDARD DEVIATION (REPA's train.py), or the log-variance, clamped to
    [-30, 20], in the layout of its text-to-image experiment.
    """
    mean, spread = moments.chunk(2, dim=1)
    return mean + (torch.exp(0.5 * spread.clamp(-30.0, 20.0)) if log_variance else spread) * eps


def model_input(source: ImageSource, shape: Shape, reading: LatentReading = USUAL) -> ModelInput:
    """Return how a model that denoises `shape` (C, H, W) reads a source: its latents if they fit, else its images.

    Whether images fit is seen when they are encoded by the model. UserError for a source that has neither.
    """
    if source.latent_shape == shape:
        kind = "latents" if "latents" in source.gives else "moments"
        other = reading.scale not in (None, source.latent_scale)
        origin = {**source.latent_record, **({"latent_scale_from": reading.scale_from} if other else {})}
        scale = (reading.scale or source.latent_scale).fitting(shape[0])
        return ModelInput(kind, scale, shape, reading.posterior, origin)
    if "images" in source.gives or source.latent_shape is None:
        return ModelInput(shape=shape)
    raise wrong_latents(source, shape)


def wrong_latents(source: ImageSource, shape: Shape) -> UserError:
    """Return the error for a source whose latents are not of the shape (C, H, W) that a model reads."""
    assert source.latent_shape is not None
    way_out = _other_form(source, shape)
    if source.latent_shape[0] != shape[0]:
        way_out = way_out or ": another VAE is needed, the one that it was trained with"
    elif isinstance(source, EncodedImages) and source.image_shape is not None:
        way_out = f": add --resolution {shape[1] * source.image_shape[1] // source.latent_shape[1]}"
    given, wanted = shown(source.latent_shape), shown(shape)
    return UserError(f"the latents are {given} (channels x height x width); this model reads {wanted}{way_out}")


def _other_form(source: ImageSource, shape: Shape) -> str:
    """Return what latents of twice or half as many channels as a model reads may be."""
    assert source.latent_shape is not None
    channels, *size = source.latent_shape
    if size == list(shape[1:]) and "latents" in source.gives and channels == 2 * shape[0]:
        return ": they may be moments (means and deviations), which are read as repa:PATH"
    if size == list(shape[1:]) and "moments" in source.gives and 2 * channels == shape[0]:
        return ": they may be latents alone, where their means and deviations are expected"
    return ""


def refuse_images(given: Sequence[int], wanted: Shape) -> None:
    """UserError unless what a model makes of images, of the shape `given` (C, H, W), is what it reads."""
    if tuple(given) == wanted:
        return
    if wanted[0] in IMAGE_CHANNELS:
        raise UserError(f"the images are {shown(given)} (channels x height x width); this model reads {shown(wanted)}")
    raise UserError(
        f"the images are {shown(given)} (channels x height x width); this model reads latents {shown(wanted)}: "
        "add --vae NAME, or name data that holds latents (docs/data.md)"
    )


def shown(shape: Sequence[int]) -> str:
    """Return a shape as people write it."""
    return "x".join(map(str, shape))
