"""Samples that a monitor draws from a model in training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.images import Images
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.sampling.generate import SamplerSettings, generate
from repa_eval.sampling.sample_record import record_path


def draw(
    model: DiffusionModel,
    count: int,
    sampler: SamplerSettings,
    processes: Share = ALONE,
    *,
    batch_size: int = 256,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Images:
    """Return `count` samples of a model, held in memory: each process makes its part, and every process gets all.

    The labels of a model without classes are row numbers of its memory bank. decode: see `generate`.
    """
    size = min(count, batch_size)
    batches = list(generate(model, processes.of(range(count), size), sampler, batch_size=size, decode=decode))
    batches = sorted(processes.gather(batches), key=lambda batch: batch[0][0])
    images = torch.cat([images for _, images, _ in batches]).numpy()
    labels = torch.cat([labels for _, _, labels in batches]).numpy()
    return Images("samples", "all", images, labels, model.num_classes)


def keep_newest(folder: Path, count: int) -> None:
    """Delete all but the newest `count` files of samples, which are called by their steps."""
    for file in sorted(file for file in folder.glob("*.npz") if file.stem.isdecimal())[:-count]:
        record_path(file).unlink(missing_ok=True)
        file.unlink()
