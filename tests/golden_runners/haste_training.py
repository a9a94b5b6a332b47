"""HASTE's losses, layer pairs and gradient trigger, by the code that trains."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden_runners import Arrays, Case, runner
from golden_runners.repa import Recorder
from golden_runners.sit_models import network
from repa_eval.config import from_dict
from repa_eval.interfaces.method import Batch
from repa_eval.models.sit import SiT
from repa_eval.train.attention_loss import attention_losses
from repa_eval.train.methods.haste import Haste

OPTIONS = ("encoder_depth", "proj_coeff", "attn_coeff")
INTERPOLANT = ("path_type", "prediction", "weighting")
STUDENTS = range(1, 9)  # the blocks whose logits the published network returns
TEACHERS = range(9, 13)


def sit(config: dict[str, Any]) -> SiT:
    model = network("SiT", config, keep=("pos_embed",), ignored={*OPTIONS, *INTERPOLANT, "block_from_0"})
    assert isinstance(model, SiT)
    return model


def method_of(config: dict[str, Any]) -> Haste:
    """Return our method with the official options; layers are left to their published default."""
    options = {key: config[key] for key in OPTIONS if key in config}
    interpolant = {key: config[key] for key in INTERPOLANT if key in config}
    return from_dict(Haste(), {**options, "interpolant": interpolant, "cfg_prob": config["class_dropout_prob"]})


def batch_of(arrays: Arrays, draws: dict[str, Tensor]) -> Batch:
    """Return the batch with the official draws; the official model is in eval mode and drops no label."""
    x, y, features, q, k = (
        torch.from_numpy(arrays[name]) for name in ("x", "y", "teacher_features", "teacher_q", "teacher_k")
    )
    logits = (q @ k.mT)[-len(TEACHERS) :]
    attention = [dict(zip(TEACHERS, logits, strict=True))]
    draws = {**draws, "drop": torch.ones(len(x))}
    return Batch(x=x, y=y, images=x, teachers=[features], attention=attention, draws=draws)


@runner("haste", "loss")
def loss(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model, method = sit(config), method_of(config)
    batch = batch_of(arrays, {"time": torch.from_numpy(arrays["draw"]), "noise": torch.from_numpy(arrays["noise"])})
    assert list(method.attention_layers()) == [list(TEACHERS)]
    recorder = Recorder(model)
    terms = method.losses(model, batch, step=method.early_stop_point - 1)
    total = torch.stack([term.mean() for term in terms.values()]).sum()
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    velocity, t = recorder.out, recorder.t
    assert torch.allclose(t, torch.from_numpy(arrays["t"]))
    second = method.losses(model, dataclasses.replace(batch, teachers=[], attention=[]), step=method.early_stop_point)
    assert list(second) == ["denoising_loss"]
    with torch.no_grad():
        _, hidden = model(recorder.x, t, batch.y, attention=STUDENTS)
    ours = [hidden["attention", layer] for layer in STUDENTS]
    theirs = [batch.attention[0][layer] for _, layer in method.pairs()]
    per_pair = attention_losses(theirs, [ours[layer - 1] for layer, _ in method.pairs()])
    return {
        "denoising_loss": terms["denoising_loss"].detach().numpy(),
        "attn_loss": terms["attn_loss"].detach().numpy() / method.attn_coeff,
        "proj_loss": terms["proj_loss"].detach().numpy() / method.proj_coeff,
        "total_loss": total.detach().numpy(),
        "attn_loss_per_pair": per_pair.numpy(),
        "student_logits_sub": torch.stack(ours)[..., ::32, ::32].numpy(),
        "velocity": velocity.numpy(),
        "grad": gradients[case["grad_of"]].numpy(),
        "grad_norms": np.array([float(gradients[name].norm()) for name in case["grad_norm_names"]]),
        "denoising_loss_phase2": second["denoising_loss"].detach().numpy(),
    }


@runner("haste", "attn_pairs")
def attn_pairs(case: Case, arrays: Arrays) -> Arrays:
    pairs = case["config"]["pairs"]
    student = torch.from_numpy(arrays["student_logits"]).requires_grad_()
    teacher = torch.from_numpy(arrays["teacher_logits"])
    losses = attention_losses([teacher[j] for _, j in pairs], [student[i] for i, _ in pairs])
    losses.mean().backward()
    assert student.grad is not None
    return {
        "attn_loss": losses.mean().detach().numpy(),
        "attn_loss_per_pair": losses.detach().numpy(),
        "grad_student": student.grad.numpy(),
    }


@runner("haste", "gradient_trigger")
def gradient_trigger(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = sit(config)
    method = dataclasses.replace(method_of(config), trigger=True, trigger_block=config["block_from_0"] + 1)
    times, noise = torch.from_numpy(arrays["t"]), torch.from_numpy(arrays["noise"])
    cosines = method.cosines(model, batch_of(arrays, {}), times, noise)
    both, proj, attn = cosines.T.numpy()
    return {"rho": both, "rho_repa": proj, "rho_atta": attn, "rho_mean": both.mean()}
