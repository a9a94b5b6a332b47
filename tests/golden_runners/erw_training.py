"""ERW: the losses of both stages and the fading weight, by the code that trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import network, numbered
from repa_eval.config import from_dict
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.method import Batch
from repa_eval.train.methods.erw import ERW, fading, published_start

IGNORED = (
    *("encoder_depth", "trainable_depth", "path_type", "weighting"),
    *("model_name_for_c0", "step", "warmup_steps", "max_train_steps"),
)


def start_of(model_name: str) -> float:
    """Return the weight with which stage 2 of an official model begins: theirs follows the name, ours the width."""
    return published_start(find_preset(model_name)[1].hidden_size)


def batch_of(arrays: Arrays, **draws: Tensor) -> Batch:
    """Return the batch; in eval mode the official model drops no label."""
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    teachers = [torch.from_numpy(array) for array in numbered(arrays, "zs_target_")]
    return Batch(x=x, y=y, images=x, teachers=teachers, draws={"drop": torch.ones(len(x)), **draws})


@runner("erw", "loss_warmup")
def loss_warmup(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model: Any = network(
        "SiT-ERW", {**config, "depth": config["trainable_depth"]},
        keep=case["fill"]["kept_as_initialised"], ignored=IGNORED,
    ).eval()  # fmt: skip
    batch = batch_of(arrays)

    def of(rule: str, samples: slice, teachers: slice) -> np.ndarray:
        """The loss of some samples and teachers, before the trainer's coefficient."""
        part = Batch(x=batch.x[samples], y=batch.y[samples], images=batch.x[samples])
        part.teachers = [tokens[samples] for tokens in batch.teachers[teachers]]
        part.draws = {"drop": batch.draws["drop"][samples]}
        heads = model.projectors
        model.projectors = heads[teachers]
        method = ERW(stage="warmup", l2r_depth=config["encoder_depth"], warmup_loss=rule)
        [(name, term)] = method.losses(model, part, step=0).items()
        assert name == "proj_loss"
        model.projectors = heads
        return np.asarray(term.detach().numpy() / method.proj_coeff)

    whole, each = slice(None), range(len(batch.x))
    rows = [[of("mean", slice(i, i + 1), slice(k, k + 1)) for i in each] for k in range(len(batch.teachers))]
    return {
        "proj_loss_official": of("last-sample", whole, whole),
        "proj_loss_mean_over_batch": of("mean", whole, whole),
        "per_sample": np.array(rows),
    }


@runner("erw", "loss_full")
def loss_full(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = network("SiT-ERW", config, keep=case["fill"]["kept_as_initialised"], ignored=IGNORED).eval()
    method = from_dict(
        ERW(),
        {
            "encoder_depth": config["encoder_depth"],
            "stage1_steps": config["warmup_steps"],
            "start_coeff": start_of(config["model_name_for_c0"]),
            "interpolant": {key: config[key] for key in ("path_type", "weighting")},
        },
    )
    draws = {"time": torch.from_numpy(arrays["draw_t"]), "noise": torch.from_numpy(arrays["draw_noise"])}
    terms = method.losses(model, batch_of(arrays, **draws), step=config["step"])
    total = sum(term.mean() for term in terms.values())
    total.backward()
    weight = fading(method.start_coeff, config["step"], warmup=method.stage1_steps, half_life=method.half_life)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {
        "denoising_loss": terms["denoising_loss"].detach().numpy(),
        "proj_loss": terms["proj_loss"].detach().numpy() / np.float32(weight),
        "coefficient": np.asarray(weight),
        "total": total.detach().numpy(),
        "grad_norm_total": torch.stack([gradient.norm() for gradient in gradients.values()]).norm().numpy(),
        **{f"grad.{name}": gradient.numpy() for name, gradient in gradients.items()},
    }


@runner("erw", "coefficient_schedule")
def coefficient_schedule(case: Case, arrays: Arrays) -> Arrays:
    rows = zip(case["config"]["models"], arrays["step"], arrays["warmup_steps"], arrays["max_train_steps"], strict=True)
    # no update of ours has a step beyond the last one, where the published weight stays
    values = [fading(start_of(name), min(int(step), int(last)), warmup=int(first)) for name, step, first, last in rows]
    return {"coefficient": np.array(values)}
