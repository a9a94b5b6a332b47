"""SoftREPA: soft text tokens that make a frozen text-to-image model tell captions apart (Lee et al., NeurIPS 2025).

The signal is the model's own denoising error under the right and under the other captions of the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from repa_eval import checkpoints
from repa_eval.config import option
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.models.text_to_image import TextToImage
from repa_eval.runtime.seeding import normal, uniform
from repa_eval.train.contrastive_loss import TRAIN_STEPS, contrastive_losses, flow_pair, pair_errors
from repa_eval.train.given_features import check_captions

EMBEDDED = "digits-captions-base"  # the base that ships with the package
OF_IMAGE = ("input_size", "input_shape", "in_channels")


@method("softrepa")
@dataclass(frozen=True, kw_only=True)
class SoftREPA(Method):
    """Contrast of denoising errors over the captions of the batch + dweight x the error under the right one.

    The published defaults are SD3's; only the tokens train. One noise and one timestep are drawn for a whole batch.
    """

    systems = ("SoftREPA",)
    paper = "2503.08250"
    needs = frozenset({"captions", "whole batch"})
    requires = frozenset({"velocity", "text", "captions", "soft tokens"})

    base: str = option(EMBEDDED, help="checkpoint of the frozen model; default: the embedded one")
    objective: str = option(
        "contrastive",
        help="what the tokens learn by: SoftREPA's loss, plain denoising (the control), nothing",
        choices=("contrastive", "denoise", "none"),
    )
    temp: float = option(0.07, help="temperature of the errors; must fit their size", least=1e-6)
    scale: float = option(4.0, help="largest logit")
    dweight: float = option(0.0, help="weight of the plain denoising error (SD1.5, SDXL: 10)", least=0)
    tokens: int = option(4, help="soft tokens per block", least=1)
    layers: int = option(5, help="first blocks that have soft tokens; -1: all", least=-1)
    use_dc_t: bool = option(True, help="move the tokens by the time's bin")
    mask_equal_captions: bool = option(True, help="equal captions in a batch are no negatives")

    def base_file(self) -> str:
        """Return the checkpoint of the base."""
        if self.base == EMBEDDED:
            return str(files("repa_eval") / "weights" / f"{EMBEDDED}.safetensors")
        return self.base

    def starts_from(self) -> str:
        """Return the base."""
        return self.base_file()

    def fitted(self, config: Any, images: Any, teachers: Sequence[Any]) -> Any:
        """Return the config for these data; UserError if they have no captions."""
        check_captions(config, images)
        return self.architecture(config, [])

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the base's config with soft tokens and the data's captions; UserError if base and data do not fit."""
        if self.temp <= 0 or self.scale <= 0:
            raise UserError(f"temp {self.temp}, scale {self.scale}: both must be above 0")
        own = self._base_config(config)
        for name in OF_IMAGE if config.captions else (*OF_IMAGE, "context_size"):
            if getattr(own, name) != getattr(config, name):
                raise UserError(
                    f"base {self.base}: its {name} is {getattr(own, name)}, that of the data is {getattr(config, name)}"
                )
        if not (self.layers == -1 or 1 <= self.layers <= own.depth):
            raise UserError(f"layers {self.layers}: the base has blocks 1..{own.depth}; -1 means all")
        tokens = {"num_tokens": self.tokens, "token_layers": self.layers, "time_offsets": self.use_dc_t}
        text = {name: getattr(config, name) for name in ("captions", "num_classes", "num_words")}
        return dataclasses.replace(own, **text, **tokens)

    def _base_config(self, config: Any) -> Any:
        """Return the config of the base; UserError for a base of another kind than the recipe's, or with tokens."""
        opened = checkpoints.load(self.base_file())
        if not isinstance(opened.network, TextToImage):
            raise UserError(
                f"base {self.base} holds {opened.model_name} without its text encoder, and no data here bring its text "
                f"features: a base is trained by the recipe {EMBEDDED}"
            )
        own = opened.network.config
        if type(own) is not type(config):
            raise UserError(
                f"base {self.base} is another network than the recipe's model: add model={opened.model_name}"
            )
        if own.num_tokens:
            raise UserError(f"base {self.base} has soft tokens already: give the plain model of them")
        return own

    def take_over(self, model: Any, before: Any) -> None:
        """Copy the base. It stays as it is, bit for bit."""
        model.base_model.load_state_dict(before.base_model.state_dict())

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time and noise per image, of which the whole batch takes those of its first one."""
        return {"time": uniform(generators), "noise": normal(generators, batch.x.shape[1:])}

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the contrastive loss and the weighted denoising error per image."""
        if self.objective == "none":
            idle = sum((p.sum() for p in self.trainable(model, batch.modules)), torch.zeros((), device=batch.x.device))
            return {"no_loss": 0 * idle}
        t, (noisy, target) = self._noised(batch)
        if self.objective == "denoise":
            velocity, _ = model(noisy, torch.full_like(noisy[:, 0, 0, 0], t), batch.y)
            return {"denoising_loss": (velocity.float() - target).square().flatten(1).mean(1)}
        errors = self.errors(model, batch)  # (R, C)
        own = batch.first + torch.arange(len(batch.x), device=errors.device)
        same = equal_captions(batch.y, batch.whole) if self.mask_equal_captions else None
        terms = {"contrastive_loss": contrastive_losses(errors, own, temp=self.temp, scale=self.scale, same=same)}
        if self.dweight:
            terms["denoising_loss"] = self.dweight * errors.gather(1, own[:, None])[:, 0]
        return terms

    def errors(self, model: Any, batch: Batch) -> Tensor:
        """Return the error of every image of the part under every caption of the whole batch, (R, C)."""
        if len(batch.whole) < 2:
            raise UserError("one caption cannot be told from others: set batch_size to 2 or more")
        t, (noisy, target) = self._noised(batch)

        def predict(images: Tensor, captions: Tensor) -> Tensor:
            velocity: Tensor = model(images, torch.full_like(images[:, 0, 0, 0], t), batch.whole[captions])[0]
            return velocity

        return pair_errors(predict, noisy, target, len(batch.whole))

    def _noised(self, batch: Batch) -> tuple[float, tuple[Tensor, Tensor]]:
        """Return t, and noisy images and targets (R, C, H, W) by the one noise and step of the whole batch."""
        step = int(batch.lead["time"].flatten()[0] * TRAIN_STEPS)
        return step / TRAIN_STEPS, flow_pair(batch.x, batch.lead["noise"], step)


def equal_captions(own: Tensor, whole: Tensor) -> Tensor:
    """Return (R, N): whether the captions of R images are those of N, as labels (R,), (N,) or text (R, L, D)."""
    equal = own[:, None] == whole[None]
    return equal if equal.ndim == 2 else equal.flatten(2).all(2)
