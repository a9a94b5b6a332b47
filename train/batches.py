"""From (seed, step) to the batches of one process: the same global batch for any number of processes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.features.given import GivenFeatures, given_tokens, kinds_of_teachers
from repa_eval.features.model_input import ModelInput, model_input
from repa_eval.interfaces.image_source import KINDS, ImageSource, Samples
from repa_eval.interfaces.method import Batch, Method, same
from repa_eval.interfaces.teacher import Teacher, Tokens
from repa_eval.runtime import seeding
from repa_eval.train.recipe import Recipe
from repa_eval.train.stopping import ignore_signals
from repa_eval.train.whole_batch import gather_of, gather_rows

IMAGES = ModelInput()
Lap = Callable[[str], None]  # called with the name of a part of a step when it is done


def no_lap(_part: str) -> None:
    """Take no time."""


def share_of(batch_size: int, accelerator: Accelerator, parts: int) -> range:
    """Return the positions of the global batch that this process works on; UserError if they do not divide evenly."""
    processes = accelerator.num_processes
    if batch_size % (processes * parts):
        raise UserError(f"batch_size {batch_size} does not divide into {processes} processes x {parts} parts")
    mine = batch_size // processes
    return range(accelerator.process_index * mine, (accelerator.process_index + 1) * mine)


class Order(Sampler[list[int]]):
    """Image indices of this process, step by step from `start` on; an epoch is a permutation by (seed, epoch).

    mirrors: where the data hold mirrored images, one coin of each sample of a step decides; its index is then
    `size` + index.
    """

    def __init__(self, size: int, recipe: Recipe, start: int, share: range, *, mirrors: bool = False) -> None:
        self.size, self.start, self.share, self.settings = size, start, share, recipe.settings
        self.mirrors = mirrors

    def __iter__(self) -> Iterator[list[int]]:
        epoch, permutation = -1, torch.empty(0)
        for step in range(self.start, self.settings.max_steps):
            indices = []
            for position in self.share:
                now, place = divmod(step * self.settings.batch_size + position, self.size)
                if now != epoch:
                    epoch, permutation = now, seeding.permutation(self.size, self.settings.seed, "order", now)
                indices.append(int(permutation[place]))
            yield self._mirrored(indices, step) if self.mirrors else indices

    def _mirrored(self, indices: list[int], step: int) -> list[int]:
        coins = seeding.generators(self.settings.seed, f"train step {step} mirror", self.share)
        return [
            index + self.size * int(coin < 0.5) for index, coin in zip(indices, seeding.uniform(coins), strict=True)
        ]


class _WholeBatches(Dataset[Samples]):
    """A data set that is asked for all samples of a batch at once."""

    def __init__(self, images: ImageSource, recipe: Recipe, reads: ModelInput) -> None:
        self.images, self.kinds = images, kinds_of(images, recipe, reads)
        images.require(*sorted(self.kinds))

    def __getitems__(self, indices: list[int]) -> Samples:
        size = len(self.images)
        if all(index < size for index in indices):
            return self.images.fetch(indices, self.kinds)
        assert self.images.mirrored is not None
        parts, rows = [], []
        for side, source in enumerate((self.images, self.images.mirrored)):
            if places := [place for place, index in enumerate(indices) if index // size == side]:
                parts.append(source.fetch([indices[place] % size for place in places], self.kinds))
                rows.append(places)
        return _interleaved(parts, rows)


def reads_of(images: ImageSource, model: nn.Module) -> ModelInput:
    """Return how a network reads the data: a diffusion model latents or images, an encoder or a classifier images."""
    return model_input(images, model.image_shape) if isinstance(model, DiffusionModel) else IMAGES


def kinds_of(images: ImageSource, recipe: Recipe, reads: ModelInput) -> set[str]:
    """Return the kinds of data of a batch: what the model reads, labels where there are any, and what teachers read.

    These are images, or tokens where the data bring them instead.
    """
    of_teachers = kinds_of_teachers(images) if recipe.method.teachers() else {"images"} & recipe.method.needs
    condition = {"text"} if reads_text(images, recipe.method) else {"labels"} & images.gives
    return {reads.kind, *of_teachers, *condition}


def reads_text(images: ImageSource, method: Method) -> bool:
    """Return whether a method that is given captions is given features of them, which the data bring in their place."""
    return "captions" in method.needs and "text" in images.gives and "captions" not in images.gives


def loader(
    images: ImageSource, recipe: Recipe, start: int, share: range, *, reads: ModelInput = IMAGES
) -> DataLoader[Samples]:
    """Return the loader of this process's samples from step `start` on; reads: how the model reads them."""
    order = Order(len(images), recipe, start, share, mirrors=images.mirrored is not None)
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
    lap: Lap = no_lap,
) -> Iterator[Batch]:
    """Yield the batches of one step: as many as gradients are accumulated over, everything random put in.

    reads: how the model reads the samples. lap: called when the data are ready, and when the teachers are done.
    """
    count, seed = recipe.settings.gradient_accumulation, recipe.settings.seed
    size, stream = len(share) // count, f"train step {step}"
    shares = "whole batch" in recipe.method.needs
    condition = fetched.labels if fetched.text is None else fetched.text
    labels = torch.zeros(len(share), dtype=torch.int64) if condition is None else condition
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
        _move(batch, device)
        lap("data")
        _ask_all(batch, samples, recipe.method, step, teachers)
        lap("teacher")
        yield batch


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


def _move(batch: Batch, device: torch.device) -> None:
    batch.x, batch.y, batch.images = (tensor.to(device) for tensor in (batch.x, batch.y, batch.images))
    batch.draws, batch.lead = (
        {name: draw.to(device) for name, draw in draws.items()} for draws in (batch.draws, batch.lead)
    )


@torch.no_grad()
def _ask_all(batch: Batch, samples: Samples, method: Method, step: int, teachers: Sequence[Teacher]) -> None:
    """Append what the teachers say, as long as they are needed."""
    if not method.active(step):
        return
    wanted = itertools.chain(method.attention_layers(), itertools.repeat(()))
    for teacher, layers in zip(teachers, wanted, strict=False):
        if isinstance(teacher, GivenFeatures):
            _put(given_tokens(samples), teacher, layers, batch)
        else:
            ask(teacher, layers, batch)


def ask(teacher: Teacher, layers: Collection[int], batch: Batch) -> None:
    """Append what a teacher says of a batch's images: features, and the attention logits of `layers`, in one pass."""
    with teacher.attention(layers) if layers else contextlib.nullcontext({}) as logits:
        tokens = teacher(batch.images)
    batch.teachers.append(tokens.patches)
    batch.class_tokens.append(tokens.cls)
    batch.attention.append(logits)


def _put(tokens: Tokens, teacher: Teacher, layers: Collection[int], batch: Batch) -> None:
    """Append the tokens that the data bring to a batch; UserError where attention is wanted too."""
    if layers:
        raise UserError(f"the data bring features of {teacher.name} and no images: its attention cannot be distilled")
    batch.teachers.append(tokens.patches.to(batch.x.device))
    batch.class_tokens.append(None if tokens.cls is None else tokens.cls.to(batch.x.device))
    batch.attention.append({})


def _interleaved(parts: Sequence[Samples], rows: Sequence[Sequence[int]]) -> Samples:
    """Return the samples of several fetches in one order; rows: the places of each part's samples in it."""
    order = torch.tensor([place for places in rows for place in places]).argsort()
    held = {kind: [getattr(part, kind) for part in parts] for kind in KINDS if getattr(parts[0], kind) is not None}
    merged: dict[str, Any] = {}
    for kind, values in held.items():
        if kind == "captions":
            together = [caption for part in values for caption in part]
            merged[kind] = tuple(together[place] for place in order.tolist())
        else:
            merged[kind] = torch.cat(values)[order]
    return Samples(**merged)


def _as_it_is(fetched: Any) -> Any:
    return fetched
