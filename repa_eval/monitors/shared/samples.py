"""Samples that a monitor draws from a model in training."""

from __future__ import annotations

import torch

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.images import Images
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.sampling.generate import SamplerSettings, generate


def draw(model: DiffusionModel, count: int, sampler: SamplerSettings, processes: Share = ALONE) -> Images:
    """Return `count` samples of a model, held in memory: each process makes its part, and every process gets all.

    The labels of a model without classes are row numbers of its memory bank.
    """
    size = min(count, 256)
    batches = list(generate(model, processes.of(range(count), size), sampler, batch_size=size))
    batches = sorted(processes.gather(batches), key=lambda batch: batch[0][0])
    images = torch.cat([images for _, images, _ in batches]).numpy()
    labels = torch.cat([labels for _, _, labels in batches]).numpy()
    return Images("samples", "all", images, labels, model.num_classes)
