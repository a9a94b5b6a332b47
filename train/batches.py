"""From (seed, step) to the batches of one process: the same global batch for any number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.features.model_input import ModelInput, model_input
from repa_eval.interfaces.image_source import ImageSource, Samples
from repa_eval.interfaces.method import Batch, Method, same
from repa_eval.interfaces.teacher import Teacher
from repa_eval.runtime import seeding
from repa_eval.train.recipe import Recipe
from repa_eval.train.stopping import ignore_signals
from repa_eval.train.whole_batch import gather_of, gather_rows

IMAGES = ModelInput()


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


class _WholeBatches(Dataset[Samples]):
    """A data set that is asked for all samples of a batch at once."""

    def __init__(self, images: ImageSource, recipe: Recipe, reads: ModelInput) -> None:
        self.images, self.kinds = images, kinds_of(images, recipe, reads)
        images.require(*sorted(self.kinds))

    def __getitems__(self, indices: list[int]) -> Samples:
        return self.images.fetch(indices, self.kinds)


def reads_of(images: ImageSource, model: nn.Module) -> ModelInput:
    """Return how a network reads the data: a diffusion model latents or images, an encoder or a classifier images."""
    return model_input(images, model.image_shape) if isinstance(model, DiffusionModel) else IMAGES


def kinds_of(images: ImageSource, recipe: Recipe, reads: ModelInput) -> set[str]:
    """Return the kinds of data of a batch: what the model reads, labels where there are any, and teachers' images."""
    of_teachers = {"images"} if recipe.method.teachers() or "images" in recipe.method.needs else set()
    return {reads.kind, *of_teachers, *({"labels"} & images.gives)}


def loader(
    images: ImageSource, recipe: Recipe, start: int, share: range, *, reads: ModelInput = IMAGES
) -> DataLoader[Samples]:
    """Return the loader of this process's samples from step `start` on; reads: how the model reads them."""
    order = Order(len(images), recipe, start, share)
    return DataLoader(
        _WholeBatches(images, recipe, reads),
        batch_sampler=order,
        num_workers=recipe.settings.num_workers,
        collate_fn=_as_it_is,
        worker_init_fn=ignore_signals,
    )


def parts(
    fetched: Samples,
    recipe: Recipe,
    step: int,
    share: range,
    teachers: Sequence[Teacher],
    device: torch.device,
    *,
    reads: ModelInput = IMAGES,
) -> Iterator[Batch]:
    """Yield the batches of one step: as many as gradients are accumulated over, everything random put in.

    reads: how the model reads the samples.
    """
    count, seed = recipe.settings.gradient_accumulation, recipe.settings.seed
    size, stream = len(share) // count, f"train step {step}"
    shares = "whole batch" in recipe.method.needs
    labels = torch.zeros(len(share), dtype=torch.int64) if fetched.labels is None else fetched.labels
    whole = gather_rows(labels.to(device)) if shares else torch.empty(0, dtype=torch.int64)
    for first in range(0, len(share), size):
        positions, rows = share[first : first + size], slice(first, first + size)
        samples = fetched[rows]
        x = reads(samples, seeding.generators(seed, f"{stream} posterior", positions))
        images = torch.empty(0, dtype=torch.uint8) if samples.images is None else samples.images
        batch = Batch(x=x, y=labels[rows], images=images, architecture=recipe.architecture)
        batch.gather, batch.encoded = gather_of(recipe.method, count), reads.kind != "images"
        shaped = _as_denoised(batch, reads)
        batch.draws = recipe.method.draws(shaped, seeding.generators(seed, stream, positions))
        if shares:
            batch.lead = recipe.method.draws(shaped, seeding.generators(seed, stream, [0]))
            batch.whole, batch.first = whole, positions[0]
        yield _move(batch, recipe.method, step, teachers, device)


def _as_denoised(batch: Batch, reads: ModelInput) -> Batch:
    """Return the batch with an x of the shape that the model denoises, and no values where it is yet to be encoded."""
    if reads.shape is None or batch.x.shape[1:] == reads.shape:
        return batch
    return dataclasses.replace(batch, x=torch.empty((len(batch.x), *reads.shape), device="meta"))


def first_batch(
    count: int,
    images: ImageSource,
    recipe: Recipe,
    step: int,
    teachers: Sequence[Teacher],
    device: torch.device,
    *,
    reads: ModelInput = IMAGES,
) -> Batch:
    """Return the first `count` samples as a whole batch of their own, which one process computes at once."""
    settings = dataclasses.replace(recipe.settings, batch_size=count, gradient_accumulation=1)
    recipe = dataclasses.replace(recipe, settings=settings)
    fetched = images.fetch(range(count), kinds_of(images, recipe, reads))
    [batch] = parts(fetched, recipe, step, range(count), teachers, device, reads=reads)
    batch.whole, batch.gather = batch.y, same
    return batch


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
