"""Losses that compare the images of a batch: their gather over processes, and the check that they use it.

Every process (and every part of an accumulated batch) computes the terms of its own images, and their mean is
optimised. That is the loss of the whole batch only if each term is a mean over images, or reads the other images
through `batch.gather`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, name_of, same

IMAGES = 4  # images of the check
TOLERANCE = 1e-3  # relative; the same sum in another order differs by about 1e-6, in TF32 by up to 1e-3
NOISE = 0.02  # standard deviation of what is added to the weights: the gates of a fresh SiT hide most terms


def num_processes() -> int:
    """Return the number of processes that share a batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Return (N, ...) from the rows (R, ...) of every process, in order of the ranks, without gradients."""
    if num_processes() == 1:
        return rows
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_processes())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class GatherRows(torch.autograd.Function):
    """Rows (R, ...) of every process -> those of all (N, ...), in order of the ranks; gradients are summed back.

    A loss of the gathered rows is computed by each process: the sum over processes, which DistributedDataParallel
    then averages, is the gradient of the loss of the whole batch.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Return (N, ...) from rows (R, ...); R is the same in every process."""
        ctx.count = len(rows)
        return gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Return the gradient (R, ...) of this process's rows."""
        whole = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(whole)
        first = dist.get_rank() * ctx.count
        return whole[first : first + ctx.count]


def gather_of(method: Method, num_parts: int) -> Callable[[Tensor], Tensor]:
    """Return the `gather` of a batch that each process cuts into `num_parts`; see Batch."""

    def gather(rows: Tensor) -> Tensor:
        if num_parts > 1:
            raise _of_parts(method)
        gathered: Tensor = GatherRows.apply(rows)
        return gathered

    return same if num_parts * num_processes() == 1 else gather


def _of_parts(method: Method) -> UserError:
    return UserError(
        f"method {name_of(method)} compares the images of a batch, whose parts are computed one after the other: "
        "set gradient_accumulation=1; more processes can share a batch"
    )


def encode(model: nn.Module, batch: Batch) -> None:
    """Put the latents of a model that has an encoder of its own in the place of the images, in place."""
    if isinstance(model, DiffusionModel) and not batch.encoded:
        batch.x, batch.encoded = model.encode(batch.x), True


def refuse_coupled_terms(
    model: nn.Module, extras: nn.ModuleDict, method: Method, batches: Mapping[int, Batch], *, num_parts: int = 1
) -> None:
    """UserError if a term of some images is not the mean of the terms of its two halves, `batch.gather` used or not.

    Evaluated on copies of model and extras in eval mode, with noise added to the weights. batches: update -> an even
    number of images with its draws and teachers' tokens. num_parts: of a process's batch; a method that gathers is
    refused for more than one.
    """
    model, extras = _roused(model), _roused(extras)
    average = copy.deepcopy(model).requires_grad_(False)
    for step, batch in batches.items():
        for module in (model, extras, average):
            module.to(batch.x.device)
        noting = _Noting()
        whole = _terms(model, extras, method, batch, average, step, noting)
        if noting.gathered and num_parts > 1:
            raise _of_parts(method)
        halves = [
            _terms(model, extras, method, half, average, step, _Replaying(noting.gathered)) for half in _halves(batch)
        ]
        for name, value in whole.items():
            mean = sum(half[name] for half in halves) / len(halves)
            if abs(value - mean) > TOLERANCE * max(abs(value), abs(mean)) + 1e-6:
                raise UserError(
                    f"method {name_of(method)}: its term {name} is not a mean over images ({value:.4g} for "
                    f"{len(batch.y)} images, {mean:.4g} for two halves), so that several processes or parts would "
                    "train another loss; use batch.gather in losses(), or one process and gradient_accumulation=1"
                )


class _Noting:
    """A `gather` of a whole batch that keeps what it returns."""

    def __init__(self) -> None:
        self.gathered: list[Tensor] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.gathered.append(rows.detach())
        return rows


class _Replaying:
    """A `gather` of a part of a batch: the rows of the whole, call by call."""

    def __init__(self, gathered: Iterable[Tensor]) -> None:
        self.rest = iter(gathered)

    def __call__(self, rows: Tensor) -> Tensor:
        return next(self.rest)


def _terms(
    model: Any, extras: Any, method: Method, batch: Batch, average: Any, step: int, gather: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    batch = dataclasses.replace(batch, modules=extras, ema=average, gather=gather)
    encode(model, batch)
    terms = method.losses(model, batch, step)
    return {name: float(term.detach().double().mean()) for name, term in terms.items()}


@torch.no_grad()
def _roused(module: Any) -> Any:
    copied = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in copied.parameters():
        noise = torch.randn(parameter.shape, generator=generator).to(parameter)
        parameter.add_(NOISE * noise)
    return copied


def _halves(batch: Batch) -> Iterator[Batch]:
    """Yield the first and the second half of the images, as two processes would be given them."""
    middle = len(batch.y) // 2
    for rows in (slice(0, middle), slice(middle, 2 * middle)):
        yield dataclasses.replace(
            batch,
            x=batch.x[rows],
            y=batch.y[rows],
            images=batch.images[rows],
            teachers=[tokens[rows] for tokens in batch.teachers],
            class_tokens=[None if token is None else token[rows] for token in batch.class_tokens],
            attention=[{layer: logits[rows] for layer, logits in maps.items()} for maps in batch.attention],
            draws={name: draw[rows] for name, draw in batch.draws.items()},
            first=batch.first + rows.start,
        )
