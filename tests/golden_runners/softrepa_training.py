"""SoftREPA's errors, loss and training step, by the code that trains."""

from __future__ import annotations

import ast
import re
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from golden_runners.sit_models import inputs
from golden_runners.softrepa import KEPT, wrapped
from repa_eval.interfaces.method import Batch
from repa_eval.models.shared.soft_tokens import SoftTokens, build_unet
from repa_eval.train import state
from repa_eval.train.contrastive_loss import contrastive_losses, noise_pair, pair_errors, scaled_linear_schedule
from repa_eval.train.loop import Objective, update
from repa_eval.train.methods.softrepa import SoftREPA
from repa_eval.train.optim import Average, Optim
from repa_eval.train.recipe import Settings

OPTIONS = ("temp", "scale", "dweight")
STAGES = ("down", "mid", "up")
STEPS = 1000  # of the schedule, where a case does not say it


class ByLabel(nn.Module):
    """A network that takes t in 0..1000 and text, as the trainer calls one: t in [0, 1] and labels of captions."""

    def __init__(self, network: Any, text: Tensor, pooled: Tensor | None, *, steps: int = STEPS) -> None:
        super().__init__()
        self.network, self.text, self.pooled, self.steps = network, text, pooled, steps

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, dict[Any, Tensor]]:
        pooled = None if self.pooled is None else self.pooled[y]
        return self.network(x, t * self.steps, self.text[y], pooled)


def method_of(config: dict[str, Any], **options: float) -> SoftREPA:
    return SoftREPA(**{**{key: config[key] for key in OPTIONS if key in config}, **options})


def batch_of(arrays: Arrays, *, steps: int = STEPS) -> Batch:
    """One image a caption, with the official noise and step."""
    x, noise, t = inputs(arrays, "latents", "noise", "t")
    lead = {"noise": noise, "time": (t + 0.5) / steps}
    labels = torch.arange(len(x))
    return Batch(x=x, y=labels, images=x, lead=lead, whole=labels)


def loss_of(method: SoftREPA, model: nn.Module, batch: Batch) -> Tensor:
    return sum(term.mean() for term in method.losses(model, batch, 0).values())


@runner("softrepa", "contrastive_loss")
def contrastive_loss(case: Case, arrays: Arrays) -> Arrays:
    own = torch.arange(len(arrays["errors"]))
    found: Arrays = {}
    for name, output in case["outputs"].items():
        kind, _, variant = name.partition("_")
        if kind == "loss":
            changed = re.search(r"\{.*\}", output["meaning"])
            options = {**case["config"], **(ast.literal_eval(changed[0]) if changed else {})}
            temp, scale, dweight = (torch.tensor(float(options[key]), requires_grad=True) for key in OPTIONS)
            errors = torch.from_numpy(arrays["errors"]).requires_grad_()
            losses = contrastive_losses(errors, own, temp=temp, scale=scale)
            loss = losses.mean() + dweight * errors.diagonal().mean()
            loss.backward()
            found[f"loss_{variant}"] = loss.detach().numpy()
            found[f"grad_errors_{variant}"] = errors.grad.numpy()
            found[f"grad_temp_scale_{variant}"] = torch.stack([temp.grad, scale.grad]).numpy()
        elif name.startswith("dist_parts"):
            errors = torch.from_numpy(arrays["errors"])
            options = {key: case["config"][key] for key in ("temp", "scale")}
            rows = int(variant.partition("nrows")[2])
            chunks = zip(errors.split(rows), own.split(rows), strict=True)
            parts = torch.stack([contrastive_losses(e, o, **options).mean() / len(own) for e, o in chunks])
            found[name] = parts.numpy()
            found[name.replace("parts", "total")] = parts.sum().numpy()
    return found


@runner("softrepa", "standin_errors")
def standin_errors(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    text, pooled, of_text, of_pooled = inputs(arrays, "prompt_embs", "pooled_embs", "Wp", "Wq")

    def velocity(x: Tensor, t: Tensor, y: Tensor, pooled: Tensor) -> tuple[Tensor, dict[Any, Tensor]]:
        shift = y.mean(1) @ of_text.T + pooled @ of_pooled.T  # (P, C)
        turned = (t / config["num_train_timesteps"]).view(-1, 1, 1, 1) * x.flip(-1)
        return config["a"] * x + config["b"] * turned + shift[:, :, None, None], {}

    steps = config["num_train_timesteps"]
    method, batch = method_of(config), batch_of(arrays, steps=steps)
    model = ByLabel(velocity, text, pooled, steps=steps)
    return {"errors": method.errors(model, batch).numpy(), "loss": loss_of(method, model, batch).numpy()}


def optim_of(text: str) -> Optim:
    """AdamW's settings of "AdamW lr 1e-3 betas .9,.999 eps 1e-8 wd 1e-4"; the published trainer clips nothing."""
    said = dict(zip(*[iter(text.split()[1:])] * 2, strict=True))
    first, second = map(float, said["betas"].split(","))
    return Optim(
        learning_rate=float(said["lr"]),
        adam_beta1=first,
        adam_beta2=second,
        adam_epsilon=float(said["eps"]),
        weight_decay=float(said["wd"]),
        max_grad_norm=float("inf"),
    )


@runner("softrepa", "sd3_train_step")
def sd3_train_step(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    tokens = wrapped(config)
    fill(tokens, keep=(KEPT,))
    text, pooled = inputs(arrays, "prompt_embs", "pooled_embs")
    model, method, batch = ByLabel(tokens, text, pooled), method_of(config), batch_of(arrays)
    found = {"errors": method.errors(model, batch).detach().numpy()}
    loss_of(method_of(config, dweight=0.0), model, batch).backward()
    found["grad_dc_tokens_dweight0"] = tokens.dc_tokens.grad.clone().numpy()
    model.zero_grad()
    loss = loss_of(method, model, batch)
    loss.backward()
    found |= {"loss": loss.detach().numpy(), "grad_dc_tokens": tokens.dc_tokens.grad.clone().numpy()}
    rows = 0 if tokens.dc_t_tokens is None else len(tokens.dc_t_tokens.weight)
    row = min(int(arrays["t"][0]), STEPS - 1) * rows // STEPS
    if tokens.dc_t_tokens is not None:
        gradient = tokens.dc_t_tokens.weight.grad.clone()
        found["grad_dc_t_row"] = gradient[row].clone().numpy()
        gradient[row] = 0
        assert not gradient.any()
    model.zero_grad()
    before = {name: p.detach().clone() for name, p in tokens.named_parameters()}
    settings = Settings(max_steps=1, optim=optim_of(config["optimizer"]), ema=Average(ema_decay=0.0))
    objective, accelerator = Objective(model, nn.ModuleDict(), method), Accelerator(cpu=True)
    chosen = settings.optim.build(method.trainable(model, objective.extras))
    prepared, optimizer = accelerator.prepare(objective, chosen)
    update(accelerator, prepared, [batch], 0, optimizer, state.average_of(model), settings)
    moved = {name: (p.detach() - before[name]).numpy() for name, p in tokens.named_parameters()}
    assert not any(delta.any() for name, delta in moved.items() if name.startswith("base_model."))
    found["dc_tokens_delta_after_adamw"] = moved["dc_tokens"]
    if tokens.dc_t_tokens is not None:
        offsets = moved["dc_t_tokens.weight"]
        found |= {"dc_t_row_delta_after_adamw": offsets[row], "dc_t_other_row_delta": offsets[(row + 1) % rows]}
    return found


@runner("softrepa", "sd15_unet_tokens")
def sd15_unet_tokens(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = SoftTokens(
        build_unet(config["UNet2DConditionModel"]),
        num_tokens=config["n_dc_tokens"],
        time_offsets=config["use_dc_t"],
        stages=[stage for stage, has in zip(STAGES, config["apply_dc"], strict=True) if has],
    )
    fill(model)
    x, text, t, noise, t_loss = inputs(arrays, "latents", "prompt_embs", "timestep", "noise", "t_loss")
    words = [word.strip(",") for word in config["loss"].split()]
    temp, scale, dweight = (float(words[words.index(key) + 1]) for key in OPTIONS)
    first, last, steps = re.fullmatch(r"DDIM scaled_linear ([\d.]+)-([\d.]+), (\d+)", config["scheduler"]).groups()
    step = int(t_loss[0])
    noisy, target = noise_pair(x, noise, step, scaled_linear_schedule(float(first), float(last), int(steps)))
    with torch.no_grad():
        eps, plain = model(x, t, text)[0], model(x, t, text, tokens=False)[0]
        errors = pair_errors(
            lambda images, which: model(images, torch.full((len(images),), step), text[which])[0],
            noisy,
            target,
            len(text),
        )
        losses = contrastive_losses(errors, torch.arange(len(errors)), temp=temp, scale=scale)
        loss = losses.mean() + dweight * errors.diagonal().mean()
    found = {"eps": eps, "eps_no_tokens": plain, "errors": errors, "loss": loss}
    return {name: tensor.numpy() for name, tensor in found.items()}
