"""SiT and REPA: forward, losses, posterior, EMA, training steps, names and shapes, by the code that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from golden_runners import Arrays, Case, runner, sit_models
from repa_eval.config import from_dict
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.features.model_input import drawn
from repa_eval.interfaces.image_source import LatentScale
from repa_eval.interfaces.method import Batch
from repa_eval.models.sit import SiT
from repa_eval.sampling.samplers.repa import sample_ode, sample_sde
from repa_eval.train import state
from repa_eval.train.loop import Objective, update
from repa_eval.train.methods.repa import Repa
from repa_eval.train.optim import Average, Optim
from repa_eval.train.recipe import Settings


def network(config: dict[str, Any], case: Case) -> SiT:
    """Return our SiT for official constructor arguments, its weights filled, in train mode."""
    model = sit_models.network("SiT", config, keep=case["fill"]["kept_as_initialised"]).train()
    assert isinstance(model, SiT)
    return model


@runner("repa", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = network(config, case).eval()
    x, t, y = (torch.from_numpy(arrays[name]) for name in "xty")
    with torch.no_grad():
        out, hidden = model(x, t, y, taps=range(1, config["depth"] + 1))
        projected = [head(hidden[config["encoder_depth"]]) for head in model.projectors]
    stacked = torch.stack([hidden[layer] for layer in sorted(hidden)])
    return {
        "out": out.numpy(),
        "hidden": stacked.numpy(),
        "hidden_mean": stacked.mean(2).numpy(),
        **{f"zs_{i}": z.numpy() for i, z in enumerate(projected)},
    }


@runner("repa", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return sit_models.shapes_of(case["model"].split(" ")[0], case)  # "MMDiT of train_t2i.py (...)"


@runner("repa", "posterior")
def posterior_draw(case: Case, arrays: Arrays) -> Arrays:
    moments, eps = torch.from_numpy(arrays["moments"]), torch.from_numpy(arrays["eps"])
    scale, bias = case["config"]["latents_scale"], case["config"]["latents_bias"]
    scaled = LatentScale(scale=(scale,), shift=(-bias / scale,))
    kinds = {"z": False, "z_t2i": True}
    return {name: scaled(drawn(moments, eps, log_variance=kind)).numpy() for name, kind in kinds.items()}


@runner("repa", "ema")
def ema(case: Case, arrays: Arrays) -> Arrays:
    averaged, model = nn.Linear(1, 1), nn.Linear(1, 1)
    averaged.weight = nn.Parameter(torch.from_numpy(arrays["ema_start"]), requires_grad=False)
    after = []
    for values in torch.from_numpy(arrays["params"]):
        model.weight = nn.Parameter(values)
        state.update_average(averaged, model, case["config"]["decay"])
        after.append(averaged.weight.clone())
    return {"ema": torch.stack(after).numpy()}


class Recorder:
    """Keeps what the model was given and what it answered."""

    def __init__(self, model: nn.Module) -> None:
        model.register_forward_hook(self._keep)
        self.x = self.t = self.out = torch.empty(0)

    def _keep(self, _model: nn.Module, given: tuple[Tensor, ...], answered: tuple[Tensor, Any]) -> None:
        self.x, self.t, self.out = given[0].detach(), given[1].detach(), answered[0].detach()


def method_of(config: dict[str, Any], model: dict[str, Any]) -> Repa:
    """Return our method with the official options of a loss."""
    interpolant = {key: config[key] for key in ("path_type", "prediction", "weighting") if key in config}
    options = {
        "encoder_depth": model["encoder_depth"],
        "proj_coeff": config["proj_coeff"],
        "cfg_prob": model["class_dropout_prob"],
        "interpolant": interpolant,
    }
    return from_dict(Repa(), options)


def batch_of(arrays: Arrays, training: bool) -> Batch:
    """Return the batch with the official draws in it."""
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    # in eval mode the official model draws nothing and drops nothing
    dropped = training and arrays["drop_draw"].size
    drop = torch.from_numpy(arrays["drop_draw"]) if dropped else torch.ones(len(x))
    teachers = [torch.from_numpy(array) for array in sit_models.numbered(arrays, "z_")]
    draws = {"time": torch.from_numpy(arrays["t_draw"]), "noise": torch.from_numpy(arrays["noise"]), "drop": drop}
    return Batch(x=x, y=y, images=x, teachers=teachers, draws=draws)


@runner("repa", "loss")
def loss(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    training = config["mode"] == "train"
    model = network(config["model"], case).train(training)
    method, recorder = method_of(config["loss"], config["model"]), Recorder(model)
    terms = method.losses(model, batch_of(arrays, training), step=0)
    total = sum(term.mean() for term in terms.values())
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    return {
        "t": recorder.t.numpy(),
        "x_t": recorder.x.numpy(),
        "model_out": recorder.out.numpy(),
        "denoising_loss": terms["denoising_loss"].detach().numpy(),
        "proj_loss": terms["proj_loss"].detach().numpy() / method.proj_coeff,
        "total": total.detach().numpy(),
        "grad_norm": norm.numpy(),
        **{f"grad:{name}": gradient.numpy() for name, gradient in gradients.items()},
    }


def optim_of(given: dict[str, Any], max_grad_norm: float) -> Optim:
    """Return our optimiser's settings for AdamW's official arguments."""
    return Optim(
        learning_rate=given["lr"],
        adam_beta1=given["betas"][0],
        adam_beta2=given["betas"][1],
        adam_epsilon=given["eps"],
        weight_decay=given["weight_decay"],
        max_grad_norm=max_grad_norm,
    )


@runner("repa", "train_steps")
def train_steps(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = network(config["model"], case)
    method = method_of(config, config["model"])
    start = {f"{kind}:{name}": p.detach().clone() for name, p in model.named_parameters() for kind in ("param", "ema")}
    averaged = state.average_of(model)
    optim = optim_of(config["optimizer"], config["max_grad_norm"])
    settings = Settings(max_steps=config["steps"], optim=optim, ema=Average(ema_decay=config["ema_decay"]))
    accelerator = Accelerator(cpu=True)
    objective = Objective(model, nn.ModuleDict(), method)
    wrapped, optimizer = accelerator.prepare(objective, optim.build(method.trainable(model, objective.extras)))
    curves: dict[str, list[float]] = {"loss": [], "proj_loss": [], "grad_norm": []}
    for step in range(config["steps"]):
        batch = batch_of({name: array[step] for name, array in arrays.items()}, training=True)
        terms, norm = update(accelerator, wrapped, [batch], step, optimizer, averaged, settings)
        curves["loss"].append(float(terms["denoising_loss"]))
        curves["proj_loss"].append(float(terms["proj_loss"]) / method.proj_coeff)
        curves["grad_norm"].append(float(norm))
    after = {f"param:{name}": p for name, p in model.named_parameters()}
    after |= {f"ema:{name}": p for name, p in averaged.named_parameters()}
    return {
        **{name: np.array(values) for name, values in curves.items()},
        **{name: p.detach().numpy() for name, p in after.items()},
        **{f"start:{name}": p.numpy() for name, p in start.items()},
    }


@runner("repa", "sampler")
def sampler(case: Case, arrays: Arrays) -> Arrays:
    config, given = case["config"], dict(case["config"]["sampler_args"])
    model = network(config["model"], case).eval()
    calls: list[tuple[float, int]] = []
    model.register_forward_pre_hook(lambda _model, inputs: calls.append((float(inputs[1][0]), len(inputs[0]))))
    noise, labels = torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["y"])
    guidance = Guidance(
        cfg_scale=given.get("cfg_scale", 1.0), low=given.get("guidance_low", 0.0), high=given.get("guidance_high", 1.0)
    )
    if config["sampler"] == "euler_sampler":
        samples = sample_ode(
            model, noise, labels, num_steps=given["num_steps"], heun=given.get("heun", False), guidance=guidance
        )
    else:
        draws = iter(torch.from_numpy(arrays["step_noise"]))
        path = Interpolant(path_type=given.get("path_type", "linear"))
        samples = sample_sde(
            model,
            noise,
            labels,
            num_steps=given["num_steps"],
            step_noise=lambda: next(draws),
            interpolant=path,
            guidance=guidance,
        )
    times, batches = zip(*calls, strict=True)
    return {"samples": samples.numpy(), "call_t": np.array(times), "call_batch": np.array(batches)}
