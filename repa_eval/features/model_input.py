"""What a diffusion model reads of a data set: its images, its latents, or latents drawn from their posterior.

A teacher reads the images of the same samples, so that model and teacher need not read the same tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.image_source import ImageSource, LatentScale, Samples, Shape
from repa_eval.interfaces.images import to_signed
from repa_eval.runtime.seeding import normal


@dataclass(frozen=True)
class ModelInput:
    """How a model's clean input is made of samples.

    kind: "images", scaled to [-1, 1]; "latents"; or "moments", from which a latent is drawn. scale: of the latents.
    shape: of what the model denoises, which `DiffusionModel.encode` makes of images; None where that is not known.
    """

    kind: str = "images"
    scale: LatentScale = LatentScale()
    shape: Shape | None = None

    def __call__(self, samples: Samples, generators: Sequence[torch.Generator]) -> Tensor:
        """Return clean x (B, C, H, W), float32; sample i is drawn from its posterior by generator i."""
        values = getattr(samples, self.kind)
        assert values is not None, f"the samples were fetched without {self.kind}"
        if self.kind == "images":
            return to_signed(values)
        if self.kind == "moments":
            shape = (values.shape[1] // 2, *values.shape[2:])
            values = drawn(values.float(), normal(generators, shape))
        return self.scale(values)

    def record(self) -> dict[str, Any]:
        """Return the protocol entries; none for images, which the model reads as they are."""
        if self.kind == "images":
            return {}
        posterior = {"posterior": "sampled by (seed, index)"} if self.kind == "moments" else {}
        return {"model_input": "latents", **posterior, **self.scale.record()}


def drawn(moments: Tensor, eps: Tensor, *, log_variance: bool = False) -> Tensor:
    """Return latents (B, c, h, w), unscaled, drawn from moments (B, 2c, h, w) with standard normal eps (B, c, h, w).

    The second half of the channels is the STANDARD DEVIATION (REPA's train.py), or the log-variance, clamped to
    [-30, 20], in the layout of its text-to-image experiment.
    """
    mean, spread = moments.chunk(2, dim=1)
    return mean + (torch.exp(0.5 * spread.clamp(-30.0, 20.0)) if log_variance else spread) * eps


def model_input(source: ImageSource, shape: Shape) -> ModelInput:
    """Return how a model that denoises `shape` (C, H, W) reads a source: its latents if they fit, else its images.

    Whether images fit is seen when they are encoded by the model. UserError for a source that has neither.
    """
    if source.latent_shape == shape:
        return ModelInput("latents" if "latents" in source.gives else "moments", source.latent_scale, shape)
    if "images" in source.gives or source.latent_shape is None:
        return ModelInput(shape=shape)
    given, wanted = ("x".join(map(str, each)) for each in (source.latent_shape, shape))
    raise UserError(f"the latents are {given} (channels x height x width); this model reads {wanted}")
