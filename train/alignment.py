"""What methods share that align a block with frozen teachers: names, the model's config, and projectors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.projector import PROJECTORS
from repa_eval.interfaces.teacher import Teacher, split_names

OWN = "mlp"  # the projector that models with `z_dims` bring themselves, as published
HIDDEN = 2048  # hidden width of a projector where the model's config does not name one


def named_teachers(enc_type: str, *, hint: str = "to train without one use the method vanilla") -> list[str]:
    """Return the names in enc_type; UserError for none."""
    names = split_names(enc_type)
    if not names:
        raise UserError(f"enc_type names no teacher; {hint}")
    return names


def configured(config: Any, **fields: Any) -> Any:
    """Return a model's config with those of `fields` that it has (class_dropout_prob, z_dims)."""
    known = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{name: value for name, value in fields.items() if name in known})


def check_layer(name: str, layer: int, depth: Any) -> None:
    """UserError unless a model of `depth` blocks has the layer; a depth that is no number is left to the model."""
    if isinstance(depth, int) and not 1 <= layer <= depth:
        raise UserError(f"{name} {layer}: this model has blocks 1..{depth}")


def projectors_for(model: Any, teachers: Sequence[Teacher], layer: int, kind: str = OWN) -> nn.ModuleDict:
    """Return {"projectors": one head per teacher}, {} for a model that has its own.

    layer: the block whose hidden states they read. kind: a name of PROJECTORS.
    """
    check_layer("encoder_depth", layer, model.depth)
    if len(own_projectors(model)):
        return nn.ModuleDict()
    build, hidden = PROJECTORS.get(kind), getattr(model.config, "projector_dim", HIDDEN)
    heads = [build(model.width(layer), teacher.width, hidden) for teacher in teachers]
    return nn.ModuleDict({"projectors": nn.ModuleList(heads)})


def own_projectors(model: Any) -> Any:
    """Return the projectors that are a part of the model, none for most."""
    return getattr(model, "projectors", ())


def project(model: Any, modules: nn.ModuleDict, tokens: Tensor) -> list[Tensor]:
    """Return (B, N, Z) for each teacher from hidden states (B, N, D), by the model's heads or those of `modules`."""
    return [head(tokens) for head in projectors_of(model, modules)]


def projectors_of(model: Any, modules: nn.ModuleDict) -> Any:
    """Return the projectors, one per teacher: the model's own, else those of `projectors_for`."""
    own = own_projectors(model)
    return own if len(own) else modules["projectors"]


def resized_tokens(tokens: Tensor, count: int) -> Tensor:
    """Return a teacher's tokens (B, T, D) on a square grid of `count` tokens: bilinear, corners not aligned.

    Smoothed where the grid becomes coarser. UserError unless both grids are square.
    """
    old, new = math.isqrt(tokens.shape[1]), math.isqrt(count)
    if old**2 != tokens.shape[1] or new**2 != count:
        raise UserError(f"{tokens.shape[1]} tokens of a teacher cannot be resized to {count}: one grid is not square")
    grid = tokens.transpose(1, 2).unflatten(2, (old, old))  # (B, D, old, old)
    resized = F.interpolate(grid.float(), size=(new, new), mode="bilinear", align_corners=False, antialias=True)
    return resized.flatten(2).transpose(1, 2).to(tokens.dtype)


def spatially_normalised(tokens: Tensor, gamma: float) -> Tensor:
    """Return a teacher's tokens (B, T, D) minus gamma x their mean over the image, over their deviation (iREPA).

    gamma 0 leaves tokens as they are: the option is then off.
    """
    if not gamma:
        return tokens
    centred = tokens - gamma * tokens.mean(dim=1, keepdim=True)
    return centred / (centred.std(dim=1, keepdim=True) + 1e-6)
