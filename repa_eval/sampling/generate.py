"""Images from a model, one by one a function of (seed, index): the same for any process count or restart.

Batch k always computes the indices k B ... k B + B - 1, whichever of them are wanted. So an image has the same
neighbours in every run at one batch size B, and its bytes cannot depend on what else was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.images import to_uint8
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.memory_bank.bank import Bank, FullBank, of_tensors
from repa_eval.runtime.seeding import generators, integers, normal


def labels_of(indices: Iterable[int], num_classes: int, settings: SamplerSettings) -> Tensor:
    """Return the class labels of sample indices, int64: given ones in turn, index modulo classes, or uniform draws.

    A model of no classes has the null label alone, which is 0.
    """
    if not num_classes:
        return torch.zeros(len(list(indices)), dtype=torch.long)
    if settings.labels:
        return torch.tensor([settings.labels[index % len(settings.labels)] for index in indices])
    if settings.balanced:
        return torch.tensor([index % num_classes for index in indices])
    return integers(generators(settings.seed, "label", indices), num_classes)


def rows_of(indices: Iterable[int], size: int, settings: SamplerSettings) -> Tensor:
    """Return the rows of a memory bank of `size` snippets that sample indices draw, int64, uniform with repeats."""
    return integers(generators(settings.seed, "snippet", indices), size)


def generate(
    model: DiffusionModel,
    indices: Iterable[int],
    settings: SamplerSettings,
    *,
    batch_size: int = 256,
    snippets: Bank | Tensor | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield (indices, images uint8 (B, C, H, W) on the CPU, labels (B,)) batch by batch, in the order given.

    snippets: GMem's memory bank, or its raw rows (N, D), in place of the one that lies in the checkpoint; instead of
    labels its rows' numbers are yielded. decode: from latents to images in [-1, 1], where the model does not make
    images itself.
    """
    settings = settings.for_model(model)
    like = next(model.parameters())
    bank = bank_for(model, snippets)
    for block, wanted in groupby(indices, key=lambda index: index // batch_size):
        batch = list(wanted)
        whole = range(block * batch_size, (block + 1) * batch_size)
        noise = normal(generators(settings.seed, "noise", whole), model.image_shape).to(like)
        chosen = chosen_of(whole, model, settings, bank)
        y = chosen.to(like.device) if bank is None else bank.conditions(chosen).to(like)
        latents = integrate(model, noise, y, whole, settings)
        places = [index - whole.start for index in batch]
        if decode is not None:
            latents = decode(latents)
        elif model.decodes:
            latents = model.decode(latents.to(like))
        images = to_uint8(latents, settings.rule).cpu()
        yield batch, images[places], chosen[places]


def integrate(
    model: DiffusionModel, noise: Tensor, y: Tensor, indices: Sequence[int], settings: SamplerSettings
) -> Tensor:
    """Return latents (B, C, H, W), float64; settings must have been made `for_model`."""
    return settings.sampler.integrate(model, noise, y, indices, settings)


def chosen_of(
    indices: Iterable[int], model: DiffusionModel, settings: SamplerSettings, snippets: Bank | None
) -> Tensor:
    """Return what sample indices are conditioned on, int64: labels, or row numbers of the bank."""
    if snippets is not None:
        return rows_of(indices, len(snippets), settings)
    return labels_of(indices, model.num_classes, settings)


def bank_for(model: DiffusionModel, snippets: Bank | Tensor | None) -> Bank | None:
    """Return the memory bank of a model that draws from one, the given one or its own, else None.

    UserError where there is none or it does not fit, and for a model that takes neither snippets nor labels.
    """
    if model.conditioning != "snippet":
        if snippets is not None:
            raise UserError("this model is conditioned on labels: a memory bank (--bank) does not apply")
        if not model.num_classes and model.conditioning == "text":
            raise UserError("this model is conditioned on text: it cannot be sampled by labels")
        return None
    width = model.condition_width
    if isinstance(snippets, Tensor):
        if snippets.ndim != 2 or not len(snippets) or snippets.shape[1] != width:
            raise UserError(f"the memory bank is {tuple(snippets.shape)}; this model needs (N, {width})")
        snippets = FullBank(snippets)
    bank = snippets or own_bank(model)
    if bank is None:
        raise UserError("this model draws from a memory bank: name it with --bank FILE")
    if bank.width != width:
        raise UserError(f"the memory bank is {(len(bank), bank.width)}; this model needs (N, {width})")
    return bank


def own_bank(model: DiffusionModel) -> Bank | None:
    """Return the memory bank that lies in a model's checkpoint, if one does."""
    memory = model.snippet_memory
    return None if memory is None else of_tensors(memory.tensors())
