"""MeanFlow (arXiv 2505.13447): the mean velocity u between two times r < t, learnt by a JVP, sampled in one step."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval import plugins
from repa_eval.plugins import Batch, Interpolant, method, model, normal, option, sampler, uniform

WIDTH = 32  # of the tokens


@dataclass(frozen=True, kw_only=True)
class Config:
    """Arguments; the first three follow from the data."""

    input_size: int = 8
    in_channels: int = 1
    num_classes: int = 10
    depth: int = 2


class Mixer(nn.Module):
    """Residual linear maps over tokens and over channels: all of it has a forward derivative."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.over_tokens = nn.Linear(tokens, tokens)
        self.over_channels = nn.Sequential(nn.Linear(WIDTH, 64), nn.SiLU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_tokens(self.norm1(x).mT).mT
        return x + self.over_channels(self.norm2(x))  # type: ignore[no-any-return]


@model("Mixer", defaults=Config(), presets={"Mixer-tiny": {}})
class TwoTimes(plugins.DiffusionModel):
    """u(x, r, t): the mean velocity between r and t; at r = t the velocity."""

    times = 2

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv2d(config.in_channels, WIDTH, 2, stride=2)
        self.out = nn.ConvTranspose2d(WIDTH, config.in_channels, 2, stride=2)
        self.time, self.label = nn.Linear(2, WIDTH), nn.Embedding(config.num_classes + 1, WIDTH)
        self.blocks = nn.ModuleList(Mixer((config.input_size // 2) ** 2) for _ in range(config.depth))

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, r: Tensor | None = None, taps: Collection[int] = ()
    ) -> tuple[Tensor, dict[int, Tensor]]:
        maps, times = self.embed(x), torch.stack([t, t if r is None else t - r], dim=1)
        hidden = {0: maps.flatten(2).mT + (self.time(times) + self.label(y))[:, None]}  # (B, N, D)
        for layer, block in enumerate(self.blocks, 1):
            hidden[layer] = block(hidden[layer - 1])
        out: Tensor = self.out(hidden[self.depth].mT.reshape(maps.shape))
        return out, {layer: hidden[layer] for layer in taps}


@method("mean-flow")
@dataclass(frozen=True, kw_only=True)
class MeanFlow(plugins.Method):
    """|u - sg(v - (t - r) (v du/dx + du/dt))|^2; r = t for a share of the images."""

    systems = ("MeanFlow",)
    requires = frozenset({"velocity", "class labels", "two times"})
    instant: float = option(0.75, help="share of images with r = t")
    interpolant: Interpolant = Interpolant()

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return {"times": uniform(generators, (3,)), "noise": normal(generators, batch.x.shape[1:])}

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        first, second, share = batch.draws["times"].T
        t = torch.maximum(first, second)
        r = torch.where(share < self.instant, t, torch.minimum(first, second))
        x, noise = batch.x, batch.draws["noise"]
        x_t, v = self.interpolant.mix(x, noise, t), self.interpolant.velocity(x, noise, t)
        primals, tangents = (x_t, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
        u, slope = torch.func.jvp(lambda x, r, t: model(x, t, batch.y, r=r)[0], primals, tangents)[:2]
        target = (v - (t - r).view(-1, 1, 1, 1) * slope).detach()
        return {"mean_flow_loss": (u - target).square().flatten(1).mean(1)}


@sampler("mean-flow", applies=lambda model: model.times == 2, default_for=lambda model: model.times == 2)
def integrate(model: Any, noise: Tensor, y: Tensor, indices: Sequence[int], settings: Any) -> Tensor:
    """One step from t = 1 to r = 0, or a few over equal intervals."""
    x, ones = noise, torch.ones_like(noise[:, 0, 0, 0])
    for t, r in pairwise(torch.linspace(1, 0, settings.num_steps + 1).tolist()):
        with torch.no_grad():
            x = x - (t - r) * model(x, t * ones, y, r=r * ones)[0]
    return x
