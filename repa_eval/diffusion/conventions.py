"""One convention inside: t = 0 data, t = 1 noise, the network answers the velocity noise - data.

Published networks that count time the other way, or predict the noise of a step, are wrapped at the edge. Their own
parameters, names and arithmetic stay untouched in `network`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from repa_eval.diffusion.ddpm_schedule import linear_schedule, steps_of_equal_noise
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel

VELOCITY = DiffusionModel.native
REVERSED = "t=0 noise, v = data - noise"
EPSILON = "step 0..999 of 1000, 999 = noise, eps-prediction"


class Converted(DiffusionModel):
    """A foreign network seen through the project's convention. network: as published."""

    def __init__(self, network: DiffusionModel) -> None:
        super().__init__()
        self.network = network
        self.config = network.config
        self.projectors = network.projectors
        self.prefix_tokens = network.prefix_tokens
        self.conditioning = network.conditioning
        self.has_class_token = network.has_class_token
        self.times = network.times
        self.one_grid = network.one_grid
        self.decodes = network.decodes

    @property
    def depth(self) -> int:
        """Number of blocks of the network."""
        return self.network.depth

    def width(self, layer: int) -> int:
        """Return the width of a layer of the network."""
        return self.network.width(layer)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the network denoises."""
        return self.network.image_shape

    @property
    def num_classes(self) -> int:
        """Number of labels of the network."""
        return self.network.num_classes

    @property
    def has_null_label(self) -> bool:
        """Whether a label of the network means "no class"."""
        return self.network.has_null_label

    @property
    def null_label(self) -> int:
        """The network's label for "no class"."""
        return self.network.null_label

    @property
    def condition_width(self) -> int:
        """Width of the network's snippets."""
        return self.network.condition_width

    @property
    def class_token_width(self) -> int:
        """Width of the network's class token."""
        return self.network.class_token_width

    @property
    def snippet_memory(self) -> Any:
        """The memory bank that is stored with the network's weights."""
        return self.network.snippet_memory

    @property
    def stub(self) -> str:
        """What the network is where it generates nothing."""
        return self.network.stub

    @property
    def reads_captions(self) -> bool:
        """Whether the network must be given features of captions."""
        return self.network.reads_captions

    def class_token(self, tokens: Tensor) -> Tensor:
        """Return what the network is given of a teacher's class tokens (B, S)."""
        return self.network.class_token(tokens)

    def null_condition(self, count: int) -> Tensor:
        """Return the network's own "no class"."""
        return self.network.null_condition(count)

    def encode(self, images: Tensor) -> Tensor:
        """Return what the network makes of images."""
        return self.network.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Return the images that the network makes of latents."""
        return self.network.decode(latents)

    def record(self) -> dict[str, Any]:
        """Return the network's own protocol entries."""
        return self.network.record()


class ReversedTime(Converted):
    """SiT (willisma) and LightningDiT: v(x, t, y) = -network(x, 1 - t, y)."""

    native = REVERSED

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), **more: Any
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity noise - data, hidden) at t, 1 = noise."""
        velocity, hidden = self.network(x, 1 - t, y, taps=taps, **more)
        return -velocity, hidden


class NoisePrediction(Converted):
    """DiT and U-DiT, trained by DDPM on 1000 steps with linear betas (1e-4 to 0.02).

    A time t of the linear path is matched to the step of the same noise-to-signal ratio, sigma/alpha = t/(1-t):
    there x_t of both differ by a factor only. `noised` is q_sample at that step, whatever the interpolant.
    """

    native = EPSILON
    noising = "q_sample at the step of equal noise-to-signal ratio"

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, taps: Collection[int] = (), **more: Any
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity noise - data, hidden) for x made by `noised` at t."""
        steps = self.step_of(t)
        predicted, hidden = self.network(x, steps, y, taps=taps, **more)
        noise = predicted[:, : x.shape[1]]
        alpha, sigma = (part.to(x).view(-1, 1, 1, 1) for part in self._scales(steps))
        return noise - (x - sigma * noise) / alpha, hidden

    def noised(self, x: Tensor, noise: Tensor, t: Tensor, interpolant: Interpolant) -> Tensor:
        """Return x_t (B, C, H, W) = sqrt(abar) x + sqrt(1 - abar) noise at the steps matched to t (B,)."""
        alpha, sigma = (part.to(x).view(-1, 1, 1, 1) for part in self._scales(self.step_of(t)))
        return alpha * x + sigma * noise

    def step_of(self, t: Tensor) -> Tensor:
        """Return the steps (B,), int64, whose noise-to-signal ratio is nearest (in log) to t/(1-t)."""
        return steps_of_equal_noise(linear_schedule().alphas_cumprod, t)

    def _scales(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        cumulative = linear_schedule().alphas_cumprod[steps.cpu()]
        return cumulative.sqrt(), (1 - cumulative).sqrt()


def unwrap(model: Any) -> Any:
    """Return the network with its own names and arithmetic: the wrapped one, else the model itself."""
    return model.network if isinstance(model, Converted) else model


WRAPPERS = {REVERSED: ReversedTime, EPSILON: NoisePrediction}


def converted(network: Any, native: str) -> Any:
    """Return `network`, wrapped unless its own convention is the project's."""
    return network if native == VELOCITY else WRAPPERS[native](network)


def as_project_convention(model: Any) -> Any:
    """Return a model in the project's convention: as it is, or wrapped if it is a network of another one."""
    return model if isinstance(model, Converted) else converted(model, native_of(model))


def native_of(network: nn.Module) -> str:
    """Return the convention of a network, the project's where it is no diffusion model."""
    return network.native if isinstance(network, DiffusionModel) else VELOCITY


def answers_velocity(model: DiffusionModel | type[DiffusionModel]) -> bool:
    """Return whether the network answers the velocity of the latent, in either time, and nothing else."""
    return model.native != EPSILON and not answers_two_velocities(model)


def answers_two_velocities(model: DiffusionModel | type[DiffusionModel]) -> bool:
    """Return whether the network answers the velocities of latent and class token."""
    return model.has_class_token and model.native not in (EPSILON, REVERSED)


def predicts_noise(model: DiffusionModel | type[DiffusionModel]) -> bool:
    """Return whether the network predicts the noise of DDPM's steps."""
    return model.native == EPSILON
