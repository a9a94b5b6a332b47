"""What is seen before anything is computed: whether a model can read the data, and whether latents are scaled."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.features.capture import Capture
from repa_eval.features.hidden_states import kinds_for
from repa_eval.features.model_input import ModelInput, model_input, refuse_images, wrong_latents
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.images import to_signed
from repa_eval.runtime.distributed import is_first_process
from repa_eval.runtime.seeding import generators

USUAL_RMS = (0.5, 2.0)  # of what a model reads: latents are scaled so that it is about 1
FEW = 16  # images that the scale is looked at with

_log = logging.getLogger(__name__)


@torch.no_grad()
def checked_input(model: DiffusionModel, images: ImageSource, capture: Capture) -> ModelInput:
    """Return how a model reads a source, from which one image at most is fetched.

    UserError where the shapes do not fit, where a kind of data is missing, where values are of the wrong type, and for
    a label that the model lacks.
    """
    reads = model_input(images, model.image_shape, capture.latents)
    if reads.kind == "images" and capture.latents.scale_from.startswith("the user"):
        raise UserError("a scale of latents is given (--latent-scale), but this model reads images: leave it out")
    if reads.kind != "moments" and capture.latents.posterior != "sample":
        what = "this model reads images" if reads.kind == "images" else f"{images.name} gives latents without moments"
        raise UserError(f"the posterior's mean is asked for (--posterior), but {what}: leave it out")
    if model.reads_captions and "text" not in images.gives:
        raise UserError(
            f"this model reads features of captions, which data {images.name} lacks: name data that hold them "
            "(docs/data.md), or give the model those of the empty prompt (null_context)"
        )
    images.require(*kinds_for(model, reads))
    if reads.kind == "images":
        pixels = images.pixels([0])
        if pixels.dtype != torch.uint8:
            raise UserError(f"data {images.name} gives images of {_type(pixels)}; images are uint8")
        shape = model.encode(to_signed(pixels).to(next(model.parameters()).device)).shape[1:]
        if shape != model.image_shape and images.latent_shape is not None:
            raise wrong_latents(images, model.image_shape)
        refuse_images(shape, model.image_shape)
    if not model.has_null_label:
        labels = images.all_labels()
        wrong = labels[(labels < 0) | (labels >= model.num_classes)]
        if len(wrong):
            raise UserError(
                f"an image is of class {wrong[0]}; this model has labels 0..{model.num_classes - 1}, and no null label"
            )
    return reads


def warn_of_scale(model: DiffusionModel, images: ImageSource, capture: Capture) -> None:
    """Warn where the first latents, as the model would read them, are far from a root mean square of 1."""
    reads = model_input(images, model.image_shape, capture.latents)
    if reads.kind == "images" or not is_first_process():
        return
    rows = range(min(FEW, len(images)))
    samples = images.fetch(rows, (reads.kind,))
    values = reads(samples, generators(capture.seed, f"{capture.stream} posterior", rows))
    if not (USUAL_RMS[0] <= _rms(values) <= USUAL_RMS[1]):
        _log.warning(
            "the latents have a root mean square of %.3g over the first %d images, where a model reads about 1: %s",
            _rms(values), len(rows), _likely_fault(reads, samples, values),
        )  # fmt: skip


def _likely_fault(reads: ModelInput, samples: Samples, values: Tensor) -> str:
    """Return what is likely wrong with latents of an unusual root mean square."""
    if reads.kind == "moments":
        assert samples.moments is not None
        spread = samples.moments.chunk(2, dim=1)[1]
        if (spread < 0).any():
            return (
                "the second half of the moments has negative values, so they are latents or log-variances, not means "
                "and standard deviations"
            )
    centred = values - values.mean(dim=(0, 2, 3), keepdim=True)
    usual = USUAL_RMS[0] <= _rms(centred) <= USUAL_RMS[1]
    if usual:
        return "without their mean it would be usual, so the shift is likely wrong (--latent-scale SCALE,SHIFT)"
    factor = _rms(centred)
    unscaled = float(np.mean(reads.scale.scale))
    if unscaled != 1 and USUAL_RMS[0] <= factor / abs(unscaled) <= USUAL_RMS[1]:
        return "they are usual before scaling, so they seem to be scaled already (--latent-scale 1)"
    if unscaled == 1:
        return f"nothing scales them, so the scale is likely missing (--latent-scale, about {1 / factor:.2g})"
    return f"the scale {unscaled:.4g} is likely another VAE's (--latent-scale), or the VAE is not the model's (--vae)"


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def _type(values: Tensor) -> str:
    return str(values.dtype).removeprefix("torch.")
