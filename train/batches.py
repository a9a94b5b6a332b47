"""From (seed, step) to the batches of one process: the same global batch for any number of processes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from repa_eval.errors import UserError
from repa_eval.interfaces.images import Images, to_signed
from repa_eval.interfaces.method import Batch, Method
from repa_eval.interfaces.teacher import Teacher
from repa_eval.runtime import seeding
from repa_eval.train.recipe import Recipe

Fetched = tuple[Tensor, Tensor]  # images uint8 (B, C, H, W), labels (B,)


def share_of(batch_size: int, accelerator: Accelerator, parts: int) -> range:
    """Return the positions of the global batch that this process works on; UserError if they do not divide evenly."""
    processes = accelerator.num_processes
    if batch_size % (processes * parts):
        raise UserError(f"batch_size {batch_size} does not divide into {processes} processes x {parts} parts")
    mine = batch_size // processes
    return range(accelerator.process_index * mine, (accelerator.process_index + 1) * mine)


class Order(Sampler[list[int]]):
    """Image indices of this process, step by step from `start` on; an epoch is a permutation by (seed, epoch)."""

    def __init__(self, size: int, recipe: Recipe, start: int, share: range) -> None:
        self.size, self.start, self.share, self.settings = size, start, share, recipe.settings

    def __iter__(self) -> Iterator[list[int]]:
        epoch, permutation = -1, torch.empty(0)
        for step in range(self.start, self.settings.max_steps):
            indices = []
            for position in self.share:
                now, place = divmod(step * self.settings.batch_size + position, self.size)
                if now != epoch:
                    epoch, permutation = now, seeding.permutation(self.size, self.settings.seed, "order", now)
                indices.append(int(permutation[place]))
            yield indices


class _WholeBatches(Dataset[Fetched]):
    """A data set that is asked for all images of a batch at once."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitems__(self, indices: list[int]) -> Fetched:
        return self.images.fetch(indices)


def loader(images: Images, recipe: Recipe, start: int, share: range) -> DataLoader[Fetched]:
    """Return the loader of this process's images from step `start` on."""
    order = Order(len(images), recipe, start, share)
    return DataLoader(
        _WholeBatches(images), batch_sampler=order, num_workers=recipe.settings.num_workers, collate_fn=_as_it_is
    )


def parts(
    fetched: Fetched, recipe: Recipe, step: int, share: range, teachers: Sequence[Teacher], device: torch.device
) -> Iterator[Batch]:
    """Yield the batches of one step: as many as gradients are accumulated over, everything random put in."""
    count, seed = recipe.settings.gradient_accumulation, recipe.settings.seed
    size, stream = len(share) // count, f"train step {step}"
    shares = "whole batch" in recipe.method.needs
    whole = _gathered(fetched[1].to(device)) if shares else torch.empty(0, dtype=torch.int64)
    for first in range(0, len(share), size):
        images, labels = (tensor[first : first + size] for tensor in fetched)
        batch = Batch(x=to_signed(images), y=labels, images=images, architecture=recipe.architecture)
        positions = share[first : first + size]
        batch.draws = recipe.method.draws(batch, seeding.generators(seed, stream, positions))
        if shares:
            batch.lead = recipe.method.draws(batch, seeding.generators(seed, stream, [0]))
            batch.whole, batch.first = whole, positions[0]
        yield _move(batch, recipe.method, step, teachers, device)


def _gathered(labels: Tensor) -> Tensor:
    """Return the labels (N,) of the whole batch from those of this process, in the order of the processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return labels
    parts = [torch.empty_like(labels) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, labels)
    return torch.cat(parts)


@torch.no_grad()
def _move(batch: Batch, method: Method, step: int, teachers: Sequence[Teacher], device: torch.device) -> Batch:
    batch.x, batch.y, batch.images = (tensor.to(device) for tensor in (batch.x, batch.y, batch.images))
    batch.draws, batch.lead = (
        {name: draw.to(device) for name, draw in draws.items()} for draws in (batch.draws, batch.lead)
    )
    if method.active(step):
        wanted = itertools.chain(method.attention_layers(), itertools.repeat(()))
        for teacher, layers in zip(teachers, wanted, strict=False):
            ask(teacher, layers, batch)
    return batch


def ask(teacher: Teacher, layers: Collection[int], batch: Batch) -> None:
    """Append what a teacher says of a batch's images: features, and the attention logits of `layers`, in one pass."""
    with teacher.attention(layers) if layers else contextlib.nullcontext({}) as logits:
        tokens = teacher(batch.images)
    batch.teachers.append(tokens.patches)
    batch.class_tokens.append(tokens.cls)
    batch.attention.append(logits)


def _as_it_is(fetched: Any) -> Any:
    return fetched
