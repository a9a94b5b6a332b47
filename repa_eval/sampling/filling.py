"""Samples written to disk as they are made, by one process or several; what an earlier call left there is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.memory_bank.bank import Bank
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.sampling.generate import bank_for, chosen_of, generate
from repa_eval.sampling.sample_files import open_samples


def fill_samples(
    path: Path,
    record: Mapping[str, Any],
    num: int,
    model: DiffusionModel,
    settings: SamplerSettings,
    *,
    share: Share = ALONE,
    flat: bool = False,
    snippets: Bank | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    begin: Callable[[int], object] = lambda count: None,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Make what is missing of `num` samples at `path`, this process its share, and let the first process conclude.

    record: what is stored beside them; UserError where samples of another record are there. begin is called with the
    number of samples of this process, progress with that of each batch. See `generate` for the other arguments.
    """
    # the first process begins the record; the others find it there
    target = open_samples(path, record, flat=flat) if share.first else None
    missing = share.agree(None if target is None else target.missing(num))
    target = target or open_samples(path, record, flat=flat)
    mine = share.of(missing, batch_size)
    begin(len(mine))
    for indices, images, _ in generate(model, mine, settings, batch_size=batch_size, snippets=snippets, decode=decode):
        target.add(indices, images)
        progress(len(indices))
    share.wait()
    if share.first:
        target.finish(chosen_of(range(num), model, settings, bank_for(model, snippets)).numpy())
    share.wait()
