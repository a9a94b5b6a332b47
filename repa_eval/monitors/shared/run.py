"""The run that is measured, and what its measures have to know of it. Here training meets measuring."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repa_eval.diffusion.conventions import REVERSED
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.features.capture import Capture, ClassTokens
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.method import name_of
from repa_eval.interfaces.teacher import class_tokens_by, load_teacher
from repa_eval.sampling.settings import SamplerSettings
from repa_eval.train.recipe import Recipe


@dataclass(frozen=True)
class Subject:
    """The run that is measured: its recipe, its folder, and where to compute."""

    recipe: Recipe
    run: Path
    device: str = "cpu"
    weights: str = "ema"

    def columns(self, step: int | None) -> dict[str, Any]:
        """Return the columns that say which model a row speaks of."""
        systems = self.recipe.method.systems
        return {
            "run": self.run.resolve().name,
            "system": systems[0] if systems else None,
            "method": name_of(self.recipe.method),
            "step": step,
            "weights": self.weights,
            "train_seed": self.recipe.settings.seed,
        }

    @property
    def network(self) -> type[DiffusionModel]:
        """The class of the model that is trained."""
        network: type[DiffusionModel] = find_preset(self.recipe.model)[0].build  # type: ignore[assignment]
        return network

    @functools.cached_property
    def class_tokens(self) -> ClassTokens | None:
        """What gives a model with a class token the clean one of an image: its first teacher; None for other models."""
        if not self.network.has_class_token:
            return None
        name = self.recipe.method.teachers()[0]
        return class_tokens_by(load_teacher(name, self.recipe.settings.teacher_weights).to(self.device))

    @property
    def capture(self) -> Capture:
        """How features of the model are taken."""
        return Capture(interpolant=self.interpolant, class_tokens=self.class_tokens)

    @property
    def generates(self) -> bool:
        """Whether images can be generated from the model: not from a first stage's stub, nor without a memory bank."""
        method = self.recipe.method
        return method.samples and method.stages()[-1].samples

    @property
    def draws_snippets(self) -> bool:
        """Whether the model is conditioned on snippets of a memory bank, and not on labels."""
        return self.network.conditioning == "snippet"

    def sampler(self, num_steps: int, **more: Any) -> SamplerSettings:
        """Return the settings of the one sampler that all runs are measured with: REPA's ODE by Euler steps.

        A model in reversed time would by itself choose its published one, whose numbers stand in another table.
        """
        family = "repa" if self.network.native == REVERSED else ""
        return SamplerSettings(num_steps=num_steps, interpolant=self.interpolant, family=family, **more)

    def made(self, sampler: SamplerSettings) -> dict[str, Any]:
        """Return the protocol entries of samples of the model."""
        bank = f"the checkpoint's, {getattr(self.recipe.method, 'bank', 'full')}"
        drawn = {"labels": "snippets", "bank": bank} if self.draws_snippets else {}
        return {**sampler.record(), **drawn, "weights": self.weights, "dtype": "float32"}

    @property
    def interpolant(self) -> Interpolant:
        """The path that the model was trained on."""
        path: Interpolant = getattr(self.recipe.method, "interpolant", Interpolant())
        return path

    @property
    def data(self) -> str:
        """The data that the model was trained on."""
        return self.recipe.settings.data

    def is_last(self, step: int) -> bool:
        """Return whether this is the last step of the recipe."""
        return step >= self.recipe.settings.max_steps
