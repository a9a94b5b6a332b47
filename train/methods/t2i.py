"""Training of a text-to-image network on captions, some of whose words are wrong: the imperfect base of soft tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.runtime.seeding import uniform
from repa_eval.train.given_features import check_captions
from repa_eval.train.losses import denoising_draws, drop_labels


@method("t2i")
@dataclass(frozen=True, kw_only=True)
class TextToImageTraining(Method):
    """Velocity loss given a caption, of which some words are another caption's (SD3, arXiv 2403.03206)."""

    systems = ("SD3",)
    paper = "2403.03206"
    needs = frozenset({"captions"})
    requires = frozenset({"velocity", "text", "captions"})

    word_noise: float = option(
        0.0, help="probability that a word is the one that another caption has at its place", least=0, most=1
    )
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of the empty caption in training", least=0, most=1)

    def fitted(self, config: Any, images: Any, teachers: Sequence[Any]) -> Any:
        """Return the config for these data; UserError if they have no captions."""
        check_captions(config, images)
        return self.architecture(config, [])

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config; UserError if it has soft tokens."""
        if config.num_tokens:
            raise UserError("num_tokens: this method trains the plain network, of which soft tokens are no part")
        return config

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and drop; and for every word whether it is replaced, and by which caption's."""
        words = (batch.architecture.num_words,)
        return {
            **denoising_draws(batch, generators, self.interpolant),
            "replace": uniform(generators, words),
            "other": uniform(generators, words),
        }

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the squared velocity error per sample."""
        t, noise = self.interpolant.times(batch.draws["time"].flatten()), batch.draws["noise"]
        prediction, _ = model(self.interpolant.mix(batch.x, noise, t), t, self.text(model, batch))
        error = prediction.float() - self.interpolant.velocity(batch.x, noise, t)
        return {"denoising_loss": error.square().flatten(1).mean(1)}

    def text(self, model: Any, batch: Batch) -> Tensor:
        """Return the text tokens (B, L, D) of the batch's captions, words replaced and captions dropped."""
        if batch.y.is_floating_point():
            return self._features(model, batch)
        own = batch.y[:, None].expand_as(batch.draws["other"])
        other = (batch.draws["other"] * model.config.num_classes).long()  # (B, L) labels
        labels = torch.where(batch.draws["replace"] < self.word_noise, other, own)
        labels = drop_labels(labels, batch.draws["drop"][:, None], self.cfg_prob, model.null_label)
        places = torch.arange(labels.shape[1], device=labels.device)
        text: Tensor = model.context[labels, places]  # (B, L, D): word l of the caption chosen for it
        return text

    def _features(self, model: Any, batch: Batch) -> Tensor:
        """Return the text features of the data, those of the empty caption (B, L, D) where the caption is dropped."""
        if self.word_noise:
            raise UserError(
                f"word_noise {self.word_noise}: the data bring features of whole captions; set word_noise=0"
            )
        empty = model.context[model.null_label].to(batch.y)
        return torch.where((batch.draws["drop"] < self.cfg_prob)[:, None, None], empty, batch.y)
