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
from repa_eval.train.methods.haste import PUBLISHED, Haste

OPTIONS = ("encoder_depth", "proj_coeff", "attn_coeff")
INTERPOLANT = ("path_type", "prediction", "weighting")
NOTES = ("block_from_0", "pairs")
PAIRS = ((4, 8), (5, 9), (6, 10), (7, 11))  # the published loss, whatever the network: student's, teacher's, from 0


def sit(config: dict[str, Any]) -> SiT:
    model = network("SiT", config, keep=("pos_embed",), ignored={*OPTIONS, *INTERPOLANT, *NOTES})
    assert isinstance(model, SiT)
    return model


def method_of(config: dict[str, Any]) -> Haste:
    """Return our method with the official options; the published layers are our default where there is one."""
    options = {key: config[key] for key in OPTIONS if key in config}
    if "pairs" in config or config["encoder_depth"] not in PUBLISHED:
        student, teacher = zip(*config.get("pairs", PAIRS), strict=True)
        options |= {"student_layers": [i + 1 for i in student], "teacher_layers": [j + 1 for j in teacher]}
    interpolant = {key: config[key] for key in INTERPOLANT if key in config}
    return from_dict(Haste(), {**options, "interpolant": interpolant, "cfg_prob": config["class_dropout_prob"]})


def batch_of(arrays: Arrays, draws: dict[str, Tensor], method: Haste) -> Batch:
    """Return the batch with the official draws; the official model is in eval mode and drops no label."""
    x, y, features, q, k = (
        torch.from_numpy(arrays[name]) for name in ("x", "y", "teacher_features", "teacher_q", "teacher_k")
    )
    logits, [layers] = q @ k.mT, method.attention_layers()
    # the teacher's blocks: all of them, or those that are compared
    given = range(1, len(logits) + 1) if len(logits) >= max(layers) else layers
    attention = [{layer: each for layer, each in zip(given, logits, strict=True) if layer in layers}]
    draws = {**draws, "drop": torch.ones(len(x))}
    return Batch(x=x, y=y, images=x, teachers=[features], attention=attention, draws=draws)


@runner("haste", "loss")
def loss(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model, method = sit(config), method_of(config)
    draws = {"time": torch.from_numpy(arrays["draw"]), "noise": torch.from_numpy(arrays["noise"])}
    batch, students = batch_of(arrays, draws, method), range(1, config["encoder_depth"] + 1)
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
        _, hidden = model(recorder.x, t, batch.y, attention=students)
    ours = [hidden["attention", layer] for layer in students]
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
    cosines = method.cosines(model, batch_of(arrays, {}, method), times, noise)
    both, proj, attn = cosines.T.numpy()
    return {"rho": both, "rho_repa": proj, "rho_atta": attn, "rho_mean": both.mean()}
