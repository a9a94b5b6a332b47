"""REG: losses and training steps, by the code that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from golden_runners import Arrays, Case, runner
from golden_runners.repa import optim_of
from golden_runners.sit_models import network, numbered
from repa_eval.config import from_dict
from repa_eval.interfaces.method import Batch
from repa_eval.train import state
from repa_eval.train.loop import Objective, update
from repa_eval.train.methods.reg import REG
from repa_eval.train.optim import Average
from repa_eval.train.recipe import Settings

IGNORED = ("encoder_depth", "path_type", "weighting", "prediction", "cls", "proj_coeff")
OPTIMISER = ("lr", "betas", "eps", "weight_decay", "max_grad_norm", "ema_decay", "ema_decay_note", "dtype")


def model_of(case: Case) -> Any:
    return network("SiT-REG", case["config"], keep=case["fill"]["kept_as_initialised"], ignored=IGNORED + OPTIMISER)


def method_of(config: dict[str, Any]) -> REG:
    """Return our method with the official options of a loss."""
    interpolant = {key: config[key] for key in ("path_type", "prediction", "weighting") if key in config}
    options = {"encoder_depth": config["encoder_depth"], "proj_coeff": config["proj_coeff"], "cls_coeff": config["cls"]}
    return from_dict(REG(), {**options, "cfg_prob": config["class_dropout_prob"], "interpolant": interpolant})


def batch_of(given: dict[str, Tensor], teachers: list[Tensor], drop: Tensor) -> Batch:
    """Return the batch with the official draws in it. teachers: tokens (B, 1 + T, D), the class token first."""
    assert torch.equal(given["cls_token"], teachers[0][:, 0])
    draws = {
        "time": given["draw_t"], "noise": given["draw_noise"], "class_noise": given["draw_noise_cls"], "drop": drop,
    }  # fmt: skip
    return Batch(
        x=given["x"],
        y=given["y"],
        images=given["x"],
        teachers=[tokens[:, 1:] for tokens in teachers],
        class_tokens=[tokens[:, 0] for tokens in teachers],
        draws=draws,
    )


@runner("reg", "loss")
def loss(case: Case, arrays: Arrays) -> Arrays:
    model, method = model_of(case).eval(), method_of(case["config"])
    seen: dict[str, Tensor] = {}
    model.register_forward_hook(
        lambda _model, given, answered: seen.update(t=given[1].detach(), cls=answered[0].class_velocity)
    )
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    targets = numbered(given, "zs_target_")
    # in eval mode the official model draws nothing and drops nothing
    batch = batch_of(given, targets, drop=torch.ones(len(given["x"])))
    terms = method.losses(model, batch, step=0)
    official = broadcast(method, given, seen["t"], seen["cls"])
    total = terms["denoising_loss"].mean() + terms["proj_loss"] + method.cls_coeff * official.mean()
    if method.interpolant.path_type == "linear":
        total = sum(term.mean() for term in terms.values())
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "t": seen["t"].reshape(-1, 1, 1, 1).numpy(),
        "denoising_loss": terms["denoising_loss"].detach().numpy(),
        "denoising_loss_cls": official.detach().numpy(),
        "denoising_loss_cls_formula": terms["cls_loss"].detach().numpy() / method.cls_coeff,
        "proj_loss": terms["proj_loss"].detach().numpy() / method.proj_coeff,
        "total": total.detach().numpy(),
        "grad_norm_total": torch.stack([gradient.norm() for gradient in gradients.values()]).norm().numpy(),
        **{f"grad.{name}": gradient.numpy() for name, gradient in gradients.items()},
    }


def broadcast(method: REG, given: dict[str, Tensor], t: Tensor, answered: Tensor) -> Tensor:
    """Return the published class-token loss (B,): for the cosine path its target is (B, 1, B, D), samples mixed.

    The note of golden/reg/loss_cosine_uniform.json. Linear: a' is the number -1, and nothing is broadcast.
    """
    _, _, d_alpha, d_sigma = method.interpolant.coefficients(t.reshape(-1, 1, 1, 1))
    if method.interpolant.path_type == "linear":
        d_alpha, d_sigma = d_alpha.flatten()[:, None], d_sigma.flatten()[:, None]
    target = d_alpha * given["cls_token"] + d_sigma * given["draw_noise_cls"]
    error = (answered - target).square()
    return error.flatten(1).mean(1)


@runner("reg", "train_steps")
def train_steps(case: Case, arrays: Arrays) -> Arrays:
    config, model, method = case["config"], model_of(case), method_of(case["config"])
    start = {f"{kind}.{name}": p.detach().clone() for name, p in model.named_parameters() for kind in ("param", "ema")}
    averaged = state.average_of(model)
    optim = optim_of(config, config["max_grad_norm"])
    count = len(arrays["x"])
    settings = Settings(max_steps=count, optim=optim, ema=Average(ema_decay=config["ema_decay"]))
    accelerator = Accelerator(cpu=True)
    objective = Objective(model, nn.ModuleDict(), method)
    wrapped, optimizer = accelerator.prepare(objective, optim.build(method.trainable(model, objective.extras)))
    curves: dict[str, list[float]] = {"loss": [], "denoising": [], "cls": [], "proj": [], "grad_norm": []}
    for step in range(count):
        given = {name: torch.from_numpy(array[step]) for name, array in arrays.items()}
        tokens = torch.cat([given["cls_token"][:, None], given["patch_tokens"]], dim=1)
        batch = batch_of(given, [tokens], drop=given["draw_label_drop"])
        terms, norm = update(accelerator, wrapped, [batch], step, optimizer, averaged, settings)
        for name, term in zip(("denoising", "cls", "proj"), ("denoising_loss", "cls_loss", "proj_loss"), strict=True):
            curves[name].append(float(terms[term]))
        curves["loss"].append(float(sum(terms.values())))
        curves["grad_norm"].append(float(norm))
    after = {f"param.{name}": p for name, p in model.named_parameters()}
    after |= {f"ema.{name}": p for name, p in averaged.named_parameters()}
    return {
        **{name: np.array(values) for name, values in curves.items()},
        **{name: p.detach().numpy() for name, p in after.items()},
        **{f"start:{name}": p.numpy() for name, p in start.items()},
    }
