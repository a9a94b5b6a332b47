"""U-REPA's losses by the code that trains, around a network that answers what the case says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from golden_runners import Arrays, Case, runner
from repa_eval.diffusion.conventions import VELOCITY
from repa_eval.interfaces.method import Batch
from repa_eval.models.shared.layers import projector
from repa_eval.train.methods.urepa import Urepa, manifold_loss, to_grid

PAIRS = ("intra", "batch", "sample")
LAYER = 1


class Answers(nn.Module):
    """A network with given middle tokens, whose error on latents and noise of zeros is given too."""

    native, null_label = VELOCITY, 0

    def __init__(self, config: dict[str, Any], arrays: Arrays) -> None:
        super().__init__()
        head = projector(config["hidden"], config["projector_dim"], config["z_dim"])
        weights = {f"{2 * i}.{kind}": arrays[f"{kind[0]}{i}"] for i in range(3) for kind in ("weight", "bias")}
        head.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        self.projectors = nn.ModuleList([head])
        self.config = SimpleNamespace(hidden_size=config["hidden"], z_dims=(config["z_dim"],))
        self.side = config["middle_hw"]
        self.tokens = torch.from_numpy(arrays["features"])
        self.errors = torch.from_numpy(arrays["velocity_loss"])

    def grid(self, layer: int) -> tuple[int, int]:
        return self.side, self.side

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: tuple[int, ...]) -> tuple[Tensor, dict[int, Tensor]]:
        assert taps == (LAYER,)
        return self.errors.sqrt()[:, None, None, None].expand_as(x), {LAYER: self.tokens}


@runner("u-repa", "manifold_loss")
def losses(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model, target = Answers(config, arrays), torch.from_numpy(arrays["teacher"])
    zeros = torch.zeros(config["batch"], 1, 2, 2)
    draws = {"time": torch.zeros(len(zeros)), "noise": zeros, "drop": torch.ones(len(zeros))}
    batch = Batch(x=zeros, y=torch.zeros(len(zeros), dtype=torch.int64), images=zeros, teachers=[target], draws=draws)
    found: dict[str, Tensor] = {}
    for pairs in PAIRS:
        method = Urepa(encoder_depth=LAYER, proj_coeff=config["lam"], manifold_coeff=config["w"], manifold_pairs=pairs)
        terms = {name: term.mean() for name, term in method.losses(model, batch, 0).items()}
        found[f"loss_manifold_{pairs}"] = terms["manifold_loss"] / (config["lam"] * config["w"])
        if pairs == "intra":
            found["loss_repa"] = terms["proj_loss"] / config["lam"]
            found["loss_total"] = torch.stack(list(terms.values())).sum()
    found["projected"] = model.projectors[0](model.tokens)
    side = config["teacher_hw"]
    fine = to_grid(found["projected"], model.grid(LAYER), side, layer=LAYER).detach().requires_grad_()
    found["upsampled"] = fine
    [found["grad_upsampled_intra"]] = torch.autograd.grad(manifold_loss(target, fine, pairs="intra").mean(), [fine])
    return {name: value.detach().numpy() for name, value in found.items()}
