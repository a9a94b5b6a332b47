"""REPA-E (arXiv 2504.10483) in small: an autoencoder and a transformer of its latents, trained together."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.plugins import (
    Batch,
    DiffusionModel,
    Interpolant,
    Method,
    cosine_alignment,
    denoising_draws,
    method,
    model,
)

CHANNELS, WIDTH = 6, 32  # of a latent, of half the image's side; of the tokens


@dataclass(frozen=True, kw_only=True)
class Config:
    """Arguments; the first three follow from the data."""

    input_size: int = 8
    in_channels: int = 1
    num_classes: int = 10
    depth: int = 2


@model("LatentDiT", defaults=Config(), presets={"LatentDiT-tiny": {}})
class LatentDiT(DiffusionModel):
    """Autoencoder of stride 2, and plain transformer blocks on the latent's pixels."""

    decodes = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.Conv2d(config.in_channels, CHANNELS, 2, stride=2)
        self.decoder = nn.ConvTranspose2d(CHANNELS, config.in_channels, 2, stride=2)
        self.embed, self.out = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.time, self.label = nn.Linear(1, WIDTH), nn.Embedding(config.num_classes + 1, WIDTH)  # the last: no class
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, config.depth, enable_nested_tensor=False).layers

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of a latent: latents are denoised."""
        return CHANNELS, self.config.input_size // 2, self.config.input_size // 2

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)  # type: ignore[no-any-return]

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, Any]:
        hidden = {0: self.embed(x.flatten(2).mT) + (self.time(t[:, None]) + self.label(y))[:, None]}  # (B, N, D)
        for layer, block in enumerate(self.blocks, 1):
            hidden[layer] = block(hidden[layer - 1])
        return self.out(hidden[self.depth]).mT.reshape(x.shape), {layer: hidden[layer] for layer in taps}


@method("end-to-end")
@dataclass(frozen=True, kw_only=True)
class EndToEnd(Method):
    """Velocity loss of detached latents + reconstruction + alignment that reaches the encoder."""

    systems = ("REPA-E",)
    interpolant: Interpolant = Interpolant()

    def teachers(self) -> list[str]:
        return ["digits-vit"]

    def aligned_layer(self) -> int:
        return 1

    def modules(self, model: Any, teachers: Sequence[Any]) -> nn.ModuleDict:
        return nn.ModuleDict({"head": nn.Linear(WIDTH, teachers[0].width)})

    def draws(self, batch: Batch, generators: Sequence[torch.Generator]) -> dict[str, Tensor]:
        return denoising_draws(batch, generators, self.interpolant)

    def losses(self, model: Any, batch: Batch, step: int) -> dict[str, Tensor]:
        t, noise, latents = batch.draws["time"], batch.draws["noise"], batch.x
        velocity, _ = model(self.interpolant.mix(latents.detach(), noise, t), t, batch.y)
        _, hidden = model(self.interpolant.mix(latents, noise, t), t, batch.y, taps=(1,))
        error = velocity - self.interpolant.velocity(latents.detach(), noise, t)
        images = batch.images.to(latents) / 127.5 - 1
        return {
            "denoising_loss": error.square().flatten(1).mean(1),
            "recon_loss": (model.decode(latents) - images).square().flatten(1).mean(1),
            "proj_loss": 0.5 * cosine_alignment(batch.teachers, [batch.modules["head"](hidden[1])]),
        }
