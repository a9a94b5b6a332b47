"""The contract of a checkpoint layout: a reader that knows its own files and builds the Checkpoint that they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from repa_eval.diffusion import behaviour
from repa_eval.diffusion.conventions import unwrap
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.image_source import LatentScale
from repa_eval.interfaces.teacher import RecordedTeacher, recorded_teachers, split_names
from repa_eval.plugin_files.records import describe_records, recorded_in
from repa_eval.registry import Registry


@dataclass(frozen=True)
class Request:
    """How a checkpoint is to be opened. overrides: what neither shapes nor the file tell (num_heads, system, ...)."""

    weights: str = "ema"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    allow_nan: bool = False

    def choose(self, content: Mapping[str, Any], path: Path) -> Any:
        """Return the state dict of the wanted weights from {model, ema, ...}."""
        key = "ema" if self.weights == "ema" else "model"
        if key not in content:
            other = "online" if key == "ema" else "ema"
            raise UserError(f"{path} holds no {self.weights} weights (no entry {key!r}); use --weights {other}")
        return content[key]


@dataclass
class Checkpoint:
    """An opened checkpoint. models: one per convention that it can have; recipe: the settings recorded in it.

    is_encoder: whether the network is a vision encoder of ours, which can be named as teacher. step_from: "file name"
    where the file records no step and its name is one (0400000.pt).
    """

    path: Path
    layout: str
    systems: tuple[str, ...]
    model_name: str
    models: tuple[nn.Module, ...]  # in the project's convention
    weights: str
    step: int | None
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # for `inspect`, where the network's own config does not say
    is_encoder: bool = False
    step_from: str | None = None

    @cached_property
    def model(self) -> nn.Module:
        """The model in the project's one convention; where two are possible, its answers decide (behaviour.py)."""
        return self.models[0] if len(self.models) == 1 else behaviour.likeliest(self.models)

    @property
    def diffusion_model(self) -> DiffusionModel:
        """The model, where it is a diffusion model; UserError where it is a vision encoder or a file of tokens."""
        if isinstance(self.model, DiffusionModel):
            return self.model
        if self.layout == "diffusers":
            raise UserError(
                f"{self.path} holds {self.model_name}, which is no diffusion model that is known here: a plug-in can "
                "wrap one (docs/python.md, A diffusion network that is not ours)"
            )
        hint = "; name it as --teacher" if self.is_encoder else ""
        raise UserError(
            f"{self.path} holds {self.model_name}, which is no diffusion model: it has no blocks to measure{hint}"
        )

    @property
    def network(self) -> Any:
        """The network with its published names."""
        return unwrap(self.models[0])

    @property
    def run(self) -> str:
        """The name of the run: the folder above checkpoints/, else the file's stem."""
        folder = self.path.parent
        return folder.parent.name if folder.name == "checkpoints" else self.path.stem

    def option(self, key: str) -> Any:
        """Return a recorded option of the method, or None."""
        return (self.recipe.get("options") or {}).get(key)

    @property
    def teachers(self) -> tuple[RecordedTeacher, ...]:
        """The encoders that the model was trained with, none where the file names none."""
        recorded = self.recipe.get("teachers")
        if recorded is None:  # a file of an official trainer, or of ours before the teachers were recorded
            named = self.option("enc_type")
            names = split_names(named) if isinstance(named, str) else []
            return recorded_teachers(names, self.recipe.get("teacher_weights"))
        return tuple(RecordedTeacher(**teacher) for teacher in recorded)

    @property
    def aligned_layer(self) -> int | None:
        """The block that was aligned with a teacher, None where the file names none."""
        layer = self.recipe.get("aligned_layer", self.option("encoder_depth"))
        return layer if isinstance(layer, int) else None

    @property
    def latent_scale(self) -> LatentScale | None:
        """How the model reads latents, where the file says it (`latent_scale`, `latent_shift` as lists of numbers)."""
        scale, shift = (self.recipe.get(key) for key in ("latent_scale", "latent_shift"))
        if scale is None:
            return None
        values = [[value] if isinstance(value, int | float) else value for value in (scale, shift or 0.0)]
        if not all(isinstance(each, list | tuple) and each and all(map(_is_number, each)) for each in values):
            raise Failure(f"{self.path}: its latent_scale and latent_shift are no numbers")
        return LatentScale(tuple(map(float, values[0])), tuple(map(float, values[1])))

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row that say which checkpoint it is of; `step_from`, see `make_row`."""
        return {
            "run": self.run,
            # a network of diffusers is of no system, although soft tokens could be trained for it
            "system": self.systems[0] if self.systems and self.layout != "diffusers" else None,
            "method": self.recipe.get("method"),
            "step": self.step,
            "weights": self.weights,
            "train_seed": self.recipe.get("seed"),
            **({} if self.step_from is None else {"step_from": self.step_from}),
        }

    def info(self) -> dict[str, Any]:
        """Return what `inspect` shows (product.md 7); what does not apply is None."""
        network = self.network
        config = getattr(network, "config", None)
        sizes = ("depth", "hidden_size", "num_heads", "patch_size", "in_channels", "input_size", "num_classes")
        diffusion = isinstance(network, DiffusionModel)
        memory = network.snippet_memory if diffusion else None
        return {
            "path": str(self.path),
            "layout": self.layout,
            "systems": list(self.systems),
            "model": self.model_name,
            "step": self.step,
            **({} if self.step_from is None else {"step_from": self.step_from}),
            "weights": self.weights,
            **{name: getattr(config, name, None) for name in sizes},
            **({"depth": network.depth} if diffusion else {}),
            "class_token": diffusion and network.has_class_token,
            "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
            "convention": " or ".join(str(model.native) for model in self.models) if diffusion else None,
            "teacher": ",".join(teacher.name for teacher in self.teachers) or None,
            "encoder_depth": self.aligned_layer,
            **({} if memory is None else {"memory_bank": memory.describe()}),
            **self.facts,
            **({"plugins": describe_records(recorded)} if (recorded := recorded_in(self.recipe)) else {}),
        }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# (path, content, request) -> the checkpoint, None where the content is not of this layout. content: what the file
# holds, tensors and plain values; None for a folder
Reader = Callable[[Path, Any, Request], Checkpoint | None]
LAYOUTS: Registry[Reader] = Registry("checkpoint layout", "repa_eval.checkpoints")


def checkpoint_layout(name: str) -> Callable[[Reader], Reader]:
    """Register the reader of one published layout; it is returned unchanged.

    Plug-ins are asked before the package's own readers, in order of their names.
    """
    return LAYOUTS.register(name)
