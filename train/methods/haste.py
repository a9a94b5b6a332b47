"""HASTE: REPA and distilled attention, both dropped at once before they hold the student back (Wang et al. 2025).

Layers are numbered from 1, as everywhere here: the published code's 4..7 and 8..11 are 5..8 and 9..12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import UserError
from repa_eval.interfaces.method import Batch, Method, method
from repa_eval.interfaces.teacher import Teacher
from repa_eval.train.alignment import check_layer, configured, named_teachers, projectors_for, projectors_of
from repa_eval.train.alignment_schedule import share_left
from repa_eval.train.attention_loss import attention_losses, fit_features, fit_logits
from repa_eval.train.gradient_cosine import gradient_cosine, gradient_of
from repa_eval.train.losses import cosine_alignment, denoising_draws, velocity_loss

# encoder_depth -> (student's layers, DINOv2-B's layers), the paper's table 16: SiT-B/2; SiT-L/2, SiT-XL/2 and MM-DiT
PUBLISHED: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    5: ((3, 4, 5), (8, 10, 12)),
    8: ((5, 6, 7, 8), (9, 10, 11, 12)),
}


@method("haste")
@dataclass(frozen=True, kw_only=True)
class Haste(Method):
    """REPA + attn_coeff x cross-entropy of attention maps with the teacher's, until early_stop_point."""

    systems = ("HASTE",)
    paper = "2505.16792"
    requires = frozenset({"velocity", "class labels", "taps", "one grid", "attention logits"})

    enc_type: str = option("dinov2-vit-b", help="teachers, joined by commas; the first one's attention is distilled")
    encoder_depth: int = option(8, help="block whose output is aligned, 1-based")
    proj_coeff: float = option(0.5, help="weight of the alignment")
    attn_coeff: float = option(0.5, help="weight of the attention distillation; 0 leaves it out", least=0)
    student_layers: tuple[int, ...] = option(
        (), help="blocks that learn attention; none: those published for the depth"
    )
    teacher_layers: tuple[int, ...] = option((), help="the teacher's block for each of them")
    early_stop_point: int = option(250_000, help="step from which on the denoising loss is alone", least=0)
    fade_steps: int = option(0, help="steps before the stop over which the terms fade; 0: a hard stop", least=0)
    fade: str = option("linear", help="how they fade", choices=("linear", "cosine"))
    trigger: bool = option(False, help="also stop when the gradients' mean cosine is below trigger_threshold")
    trigger_after: int = option(50_000, help="step of the first look at the gradients", least=0)
    trigger_every: int = option(10_000, help="steps between looks", least=1)
    trigger_times: tuple[float, ...] = option(
        (0.02, 0.1, 0.5, 0.8), help="times at which gradients are compared", least=0, most=1
    )
    trigger_threshold: float = option(-0.05, help="mean cosine below which alignment stops for good")
    trigger_block: int = option(0, help="block whose parameters are looked at, 1-based; 0: encoder_depth", least=0)
    resize: bool = option(False, help="resize the student's features and attention to the teacher's grid")
    interpolant: Interpolant = Interpolant()
    cfg_prob: float = option(0.1, help="probability of dropping the label in training", least=0, most=1)

    def teachers(self) -> list[str]:
        """Return the names in enc_type."""
        return named_teachers(self.enc_type)

    def pairs(self) -> list[tuple[int, int]]:
        """Return the (student's layer, first teacher's layer) whose attention is compared."""
        student, teacher = self.student_layers, self.teacher_layers
        if not self.attn_coeff:
            return []
        if not (student or teacher):
            if self.encoder_depth not in PUBLISHED:
                depths = " and ".join(map(str, PUBLISHED))
                raise UserError(
                    f"encoder_depth {self.encoder_depth}: layers are published for {depths}; "
                    "give student_layers and teacher_layers"
                )
            student, teacher = PUBLISHED[self.encoder_depth]
        if len(student) != len(teacher):
            raise UserError(f"student_layers {list(student)} and teacher_layers {list(teacher)} do not make pairs")
        return list(zip(student, teacher, strict=True))

    def attention_layers(self) -> Sequence[Collection[int]]:
        """Return the layers of the first teacher whose attention is distilled."""
        return [sorted({teacher for _, teacher in self.pairs()})]

    def architecture(self, config: Any, widths: Sequence[int]) -> Any:
        """Return the config with one projector per teacher."""
        named = {"encoder_depth": [self.encoder_depth], "student_layers": [student for student, _ in self.pairs()]}
        named["trigger_block"] = [self.trigger_block or self.encoder_depth]
        for name, layers in named.items():
            for layer in layers:
                check_layer(name, layer, getattr(config, "depth", None))
        return configured(config, class_dropout_prob=self.cfg_prob, z_dims=tuple(widths))

    def aligned_layer(self) -> int:
        """Return encoder_depth."""
        return self.encoder_depth

    def aligned_until(self) -> int:
        """Return early_stop_point; the trigger may stop the alignment before."""
        return self.early_stop_point

    def modules(self, model: Any, teachers: Sequence[Teacher]) -> nn.ModuleDict:
        """Return the memory of the trigger, if there is one, and the projectors of a model that has none of its own."""
        extras = projectors_for(model, teachers, self.encoder_depth)
        if self.trigger:
            extras["trigger"] = Trigger()
        return extras

    def active(self, step: int) -> bool:
        """Return whether the fixed stop lies ahead."""
        return step < self.early_stop_point

    def stopped(self, modules: nn.ModuleDict) -> bool:
        """Return whether the trigger has fired."""
        if "trigger" not in modules:
            return False
        trigger: Any = modules["trigger"]
        return bool(trigger.stopped_at >= 0)

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        """Return time, noise and label drops."""
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the velocity loss per sample and, before the stop, the weighted alignment and distillation."""
        if self._looks(step, batch.modules):
            self._look(model, batch, step)
        if not self.active(step) or self.stopped(batch.modules):
            loss, _ = velocity_loss(model, batch, self.interpolant, cfg_prob=self.cfg_prob)
            return {"denoising_loss": loss}
        loss, hidden = velocity_loss(model, batch, self.interpolant, cfg_prob=self.cfg_prob, **self._wanted())
        left = self.share(step)
        return {"denoising_loss": loss, **{key: left * term for key, term in self.terms(model, hidden, batch).items()}}

    def terms(self, model: Any, hidden: Mapping[Any, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the weighted alignment and the weighted distillation, of what a forward pass has put into `hidden`."""
        tokens = hidden[self.encoder_depth]
        features = [fit_features(tokens, len(y[0]), resize=self.resize) for y in batch.teachers]
        heads = projectors_of(model, batch.modules)
        projected = [head(h) for head, h in zip(heads, features, strict=True)]
        terms = {"proj_loss": self.proj_coeff * cosine_alignment(batch.teachers, projected)}
        if pairs := self.pairs():
            theirs = [batch.attention[0][layer] for _, layer in pairs]
            ours = [
                fit_logits(hidden["attention", layer], theirs[0].shape[-1], resize=self.resize) for layer, _ in pairs
            ]
            terms["attn_loss"] = self.attn_coeff * attention_losses(theirs, ours).mean()
        return terms

    def share(self, step: int) -> float:
        """Return the share in [0, 1] of their weights that the terms have at a step before the stop."""
        return share_left(self.early_stop_point - step, self.fade_steps, self.fade)

    def cosines(self, model: Any, batch: Batch, times: Tensor, noise: Tensor) -> Tensor:
        """Return, for each of times (T,) with noise (T, B, C, H, W), three cosines (T, 3) (appendix A.2).

        Between the gradient of the velocity loss and that of both terms, of the alignment, of the distillation, over
        all parameters of one block, without label drops. float64; those of a term that is left out are NaN.
        """
        block = list(model.blocks[(self.trigger_block or self.encoder_depth) - 1].parameters())
        path, rows = Interpolant(path_type=self.interpolant.path_type), []
        for time, eps in zip(times, noise, strict=True):
            draws = {"time": time.expand(len(batch.x)), "noise": eps, "drop": batch.draws["drop"]}
            asked = dataclasses.replace(batch, draws=draws)
            loss, hidden = velocity_loss(model, asked, path, cfg_prob=0.0, **self._wanted())
            terms = self.terms(model, hidden, batch)
            own, proj = (gradient_of(term, block) for term in (loss.mean(), terms["proj_loss"]))
            attn = gradient_of(terms["attn_loss"], block) if "attn_loss" in terms else None
            both = proj if attn is None else proj + attn
            rows.append(torch.stack([gradient_cosine(own, gradient) for gradient in (both, proj, attn)]))
        return torch.stack(rows)

    def _wanted(self) -> dict[str, Any]:
        return {"taps": (self.encoder_depth,), "attention": tuple(student for student, _ in self.pairs())}

    def _looks(self, step: int, modules: nn.ModuleDict) -> bool:
        since = step - self.trigger_after
        due = self.trigger and self.active(step) and since >= 0 and since % self.trigger_every == 0
        return due and not self.stopped(modules)

    def _look(self, model: Any, batch: Batch, step: int) -> None:
        """Compare the gradients on the batch's images, and remember it if they disagree."""
        times = torch.tensor(self.trigger_times, device=batch.x.device)
        noise = batch.draws["noise"].expand(len(times), *batch.x.shape)
        with torch.autocast(batch.x.device.type, enabled=False):
            cosine = self.cosines(model, batch, times, noise)[:, 0].mean()
        trigger: Any = batch.modules["trigger"]
        trigger.cosine.copy_(cosine)
        if cosine < self.trigger_threshold:
            trigger.stopped_at.fill_(step)


class Trigger(nn.Module):
    """What the trigger remembers: the step at which it fired, -1 before that, and the last mean cosine."""

    stopped_at: Tensor
    cosine: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("stopped_at", torch.tensor(-1))
        self.register_buffer("cosine", torch.tensor(0.0))
