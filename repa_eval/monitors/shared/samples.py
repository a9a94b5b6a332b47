"""Samples that a monitor draws from a model in training."""

from __future__ import annotations

import torch

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.images import Images
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.sampling.generate import SamplerSettings, generate


def draw(model: DiffusionModel, count: int, sampler: SamplerSettings, share: Share = ALONE) -> Images:
    """Return `count` samples of a model, held in memory; each process makes its share, and all of them get all."""
    size = min(count, 256)
    parts = share.gather(list(generate(model, share.of(range(count), size), sampler, batch_size=size)))
    parts.sort(key=lambda part: part[0][0])
    images = torch.cat([images for _, images, _ in parts]).numpy()
    labels = torch.cat([labels for _, _, labels in parts]).numpy()
    # a model without classes is conditioned on snippets: its "labels" are their rows
    return Images("samples", "all", images, labels, model.num_classes)
