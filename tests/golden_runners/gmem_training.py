"""GMem: the objective, by the code that trains."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from golden_runners import Arrays, Case, runner
from golden_runners.gmem import LAYER, PATHS, lightning_dit
from repa_eval.config import from_dict
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.interfaces.method import Batch
from repa_eval.train.methods.gmem import GMem

OF_THE_LOSS = {"path_type", "prediction", "use_cosine_loss", "use_lognorm", "proj_loss_weight"}


def method_of(config: dict[str, Any]) -> GMem:
    """Return our method with the official options of a loss."""
    assert config["prediction"] == "velocity"
    path = {"path_type": PATHS[config["path_type"]]}
    return from_dict(
        GMem(),
        {
            "encoder_depth": config.get("encoder_depth", LAYER),
            "proj_coeff": config["proj_loss_weight"],
            "cosine_coeff": 1.0 if config["use_cosine_loss"] else 0.0,
            "interpolant": {**path, "weighting": "lognormal" if config["use_lognorm"] else "uniform"},
        },
    )


def time_draw(draw: Tensor, path: Interpolant) -> Tensor:
    """Return our raw draw whose time is 1 - t, of the published draw of t."""
    if path.weighting == "uniform":
        return 1 - draw
    if path.path_type == "linear":
        return -draw
    return (math.pi / 2 * torch.sigmoid(-draw)).tan().log()


@runner("gmem", "transport_loss")
def transport_loss(case: Case, arrays: Arrays) -> Arrays:
    config, method = case["config"], method_of(case["config"])
    given = {name: torch.from_numpy(array) for name, array in arrays.items()}
    sizes = {"z_dims": [given["z_target"].shape[-1]], "condition_size": given["c"].shape[-1]}
    model = lightning_dit(config, ignored=OF_THE_LOSS, **sizes)
    model.train()
    answers: list[Tensor] = []
    model.register_forward_hook(lambda _model, _given, answered: answers.append(answered[0].detach()))
    draws = {
        "time": time_draw(given["draw_t"], method.interpolant).float(),
        "noise": given["draw_noise"],
        "dropout": given["keep_mask"],  # 1 is never below the dropout's probability, 0 always is
    }
    batch = Batch(
        x=given["x"], y=torch.zeros(len(given["x"])), images=given["x"], architecture=model.config,
        teachers=[given["z_target"]], class_tokens=[given["c"]], draws=draws,
    )  # fmt: skip
    terms = method.losses(model, batch, step=0)
    total = sum((term.mean() for term in terms.values()), torch.zeros(()))
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    weight = method.proj_coeff or 1.0
    found = {
        "loss": terms["denoising_loss"],
        "cos_loss": terms.get("cosine_loss", torch.zeros(len(given["x"]))),
        "proj_loss": terms.get("proj_loss", torch.zeros(())) / weight,
        "total": total,
        "pred": answers[0],
        "grad_norm_total": torch.stack([gradient.norm() for gradient in gradients.values()]).norm(),
        **{f"grad.{name}": gradient for name, gradient in gradients.items()},
    }
    return {name: found[name].detach().numpy() for name in case["outputs"]}
