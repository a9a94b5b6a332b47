"""The samplers of REG, SiT and GMem, DiT, and Stable Diffusion 3: known fields, exact distributions, every setting."""

from __future__ import annotations

import builtins
import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import sampling, wake
from repa_eval.diffusion.conventions import NoisePrediction, ReversedTime
from repa_eval.diffusion.ddpm_schedule import linear_schedule, losses, q_sample
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces import sampler as contract
from repa_eval.interfaces.method import Batch
from repa_eval.interfaces.sampler import SAMPLERS, SamplerSettings, default_sampler
from repa_eval.models.dit import DiT, DiTConfig
from repa_eval.models.lightning_dit import LightningDiT, LightningDiTConfig
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.models.sit_reg import SiTCls, SiTClsConfig
from repa_eval.models.text_to_image import MMDiTText, MMDiTTextConfig
from repa_eval.runtime import seeding
from repa_eval.sampling.generate import chosen_of, generate, rows_of
from repa_eval.sampling.samplers import flow
from repa_eval.sampling.samplers.ddpm import sample_ddpm
from repa_eval.sampling.samplers.joint import sample_joint_ode, sample_joint_sde
from repa_eval.sampling.samplers.repa import sample_sde
from repa_eval.sampling.samplers.transport import (
    FORMS,
    TransportOptions,
    diffusion,
    sample_transport_ode,
    sample_transport_sde,
)
from repa_eval.train.losses import velocity_loss

FREE = Guidance()
WIDTHS: dict[str, Any] = {"input_size": 4, "hidden_size": 32, "depth": 2, "num_heads": 2}
BANK = torch.randn(7, 24, generator=torch.Generator().manual_seed(1)) * 5


def awake(model: nn.Module) -> Any:
    """A network that answers something that depends on everything it is given."""
    wake(model, scale=0.1)
    return model.eval().requires_grad_(False)


def small(kind: str) -> Any:
    """An opened model of each kind, in the project's convention."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if kind == "SiT":
            return ReversedTime(awake(SiT(SiTConfig(**WIDTHS, num_classes=5, learn_sigma=True))))
        if kind == "GMem":
            return ReversedTime(
                awake(LightningDiT(LightningDiTConfig(**WIDTHS, in_channels=4, patch_size=2, condition_size=24)))
            )
        if kind == "DiT":
            return NoisePrediction(awake(DiT(DiTConfig(**WIDTHS, num_classes=5))))
        if kind == "REG":
            return awake(SiTCls(SiTClsConfig(**WIDTHS, num_classes=5, z_dims=(6,))))
        return awake(SiT(SiTConfig(**WIDTHS, in_channels=3, num_classes=5)))


KINDS = {"REPA": "repa", "REG": "joint", "SiT": "transport", "GMem": "transport", "DiT": "ddpm"}


def pixels(model: Any, indices: Any, batch_size: int, **settings: Any) -> Tensor:
    """Images of any channel count, as the latents are."""
    bank = BANK if model.conditioning == "snippet" else None
    chosen = sampling(**{"num_steps": 3, **settings})
    parts = generate(model, indices, chosen, batch_size=batch_size, snippets=bank)
    return torch.cat([images for _, images, _ in parts])


class Field(nn.Module):
    """A known field in transport's time: dx/dt = cos(2t) x; labels 10 (null) and others differ where `constant`."""

    null_label = 10

    def __init__(self, *, constant: bool = False) -> None:
        super().__init__()
        self.constant = constant
        self.seen: list[tuple[int, float]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, **_more: Any) -> tuple[Tensor, dict[Any, Any]]:
        self.seen.append((len(x), float(t[0])))
        if self.constant:
            return torch.where(y == 10, 1.0, 2.0).to(x)[:, None, None, None].expand_as(x), {}
        return torch.cos(2 * t)[:, None, None, None] * x, {}


def ones(count: int = 1, channels: int = 1) -> Tensor:
    return torch.ones(count, channels, 1, 1, dtype=torch.float64)


def labels(count: int) -> Tensor:
    return torch.arange(count)


# --- transport: the ODE


def solve(method: str, num_steps: int) -> float:
    """The relative error at t = 1."""
    options = TransportOptions(sampling_method=method)
    found = sample_transport_ode(Field(), ones(), labels(1), num_steps=num_steps, options=options, guidance=FREE)
    return abs(float(found) / math.exp(math.sin(2) / 2) - 1)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2)])
def test_order_of_the_transport_solvers(method: str, order: int) -> None:
    steps = [65, 129, 257, 513]
    errors = [solve(method, count) for count in steps]
    assert -np.polyfit(np.log(np.array(steps) - 1), np.log(errors), 1)[0] == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "dopri5"])
def test_the_solvers_are_those_of_torchdiffeq(method: str) -> None:
    from torchdiffeq import odeint

    model, y = small("SiT").network, labels(2)
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    options = TransportOptions(sampling_method=method, timestep_shift=0.3)
    ours = sample_transport_ode(model, noise, y, num_steps=5, options=options, guidance=FREE)
    grid = torch.linspace(0, 1, 5, dtype=torch.float64)
    grid = 0.3 * grid / (1 - 0.7 * grid)
    field = lambda t, x: model(x.float(), t.float().expand(2), y)[0].double()  # noqa: E731
    theirs = odeint(field, noise.double(), grid, method=method, atol=1e-6, rtol=1e-3)[-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_dopri5_without_its_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("torchdiffeq", "diffusers"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'repa-eval\[ode\]', or choose --sampling-method heun2"):
        solve("dopri5", 3)
    with pytest.raises(UserError, match=r"pip install 'repa-eval\[latents\]'"):
        flow.flow_timesteps(4)


def test_dopri5_is_guided_where_it_looks_beyond_the_data() -> None:
    field = Field(constant=True)
    options = TransportOptions(sampling_method="dopri5")
    sample_transport_ode(
        field, ones(2), labels(2), num_steps=3, options=options, guidance=Guidance(cfg_scale=3)
    )  # fmt: skip
    assert max(t for _, t in field.seen) > 1
    assert {size for size, _ in field.seen} == {4}


def test_transport_keeps_the_guidance_interval_in_this_projects_time() -> None:
    field, guidance = Field(), Guidance(cfg_scale=2, low=0.0, high=0.25)
    options = TransportOptions(sampling_method="euler")
    sample_transport_ode(field, ones(3), labels(3), num_steps=5, options=options, guidance=guidance)
    assert field.seen == [(3, 0.0), (3, 0.25), (3, 0.5), (6, 0.75)]  # guided near the data


# --- transport: the SDE


class Gaussian(nn.Module):
    """The exact answer, in transport's time, for data that is normal with mean 0.5 and standard deviation 0.5."""

    null_label = 10

    def __init__(self, path: Interpolant) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, dict[Any, Any]]:
        alpha, sigma, d_alpha, d_sigma = self.path.coefficients(1 - t[0])
        variance = (alpha * 0.5) ** 2 + sigma**2
        slope = (alpha * d_alpha * 0.25 + sigma * d_sigma) / variance
        return -(d_alpha * 0.5 + slope * (x - alpha * 0.5)), {}


def normals(count: int = 20_000, *shape: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda: torch.randn(count, *(shape or (1, 1, 1)), generator=generator, dtype=torch.float64)


def spread(found: Tensor) -> tuple[Any, Any]:
    return (float(found.mean()), float(found.std()))


@pytest.mark.parametrize("last_step", ["Mean", "Euler", "Tweedie"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("path_type", ["linear", "cosine"])
def test_every_form_reaches_the_distribution_of_the_data(
    path_type: str, method: str, form: str, last_step: str
) -> None:
    path, draw = Interpolant(path_type=path_type), normals()
    options = TransportOptions(
        mode="sde", sampling_method=method, diffusion_form=form, last_step=last_step, last_step_size=0.01
    )
    found = sample_transport_sde(
        Gaussian(path), draw(), labels(1), num_steps=200, step_noise=draw, options=options, interpolant=path,
        guidance=FREE,
    )  # fmt: skip
    assert spread(found) == pytest.approx((0.5, 0.5), abs=0.02)


def test_forms_sizes_and_last_steps_all_matter() -> None:
    # on the linear path form linear is form sigma, and Tweedie's step is Euler's
    base, path = TransportOptions(mode="sde", diffusion_form="sigma"), Interpolant(path_type="cosine")
    others: list[dict[str, Any]] = [{"diffusion_form": form} for form in FORMS[1:]]
    others += [{"last_step": "Euler"}, {"last_step": "Tweedie"}, {"last_step_size": 0.05}, {"diffusion_norm": 0.9}]
    others += [{"sampling_method": "heun"}]

    def sample(options: TransportOptions) -> Tensor:
        draw = normals(50)
        return sample_transport_sde(
            Gaussian(path), draw(), labels(1), num_steps=6, step_noise=draw, options=options, interpolant=path,
            guidance=FREE,
        )  # fmt: skip

    made = [sample(base), *(sample(dataclasses.replace(base, **change)) for change in others)]
    for i, one in enumerate(made):
        for other in made[:i]:
            assert float((one - other).abs().max()) > 1e-4


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("sigma", 3 * math.cos(math.pi / 8)), ("linear", 2.25), ("constant", 3.0), ("increasing-decreasing", 1.5),
        ("decreasing", 0.25 * (3 * math.sqrt(0.5) + 1) ** 2),  # its norm stands inside the square, as published
    ],
)  # fmt: skip
def test_diffusion_forms_a_quarter_from_the_noise(form: str, wanted: float) -> None:
    options = TransportOptions(diffusion_form=form, diffusion_norm=3.0)
    assert diffusion(0.25, options, Interpolant(path_type="cosine")) == pytest.approx(wanted)


@pytest.mark.parametrize("path_type", ["linear", "cosine"])
def test_tweedies_step_is_the_expected_data(path_type: str) -> None:
    path, seen = Interpolant(path_type=path_type), list[tuple[Tensor, float]]()
    field = Gaussian(path)
    field.register_forward_pre_hook(lambda _m, given: seen.append((given[0], float(given[1][0]))))
    found = sample_transport_sde(
        field, ones(3) * 2, labels(3), num_steps=3, step_noise=normals(3), interpolant=path, guidance=FREE,
        options=TransportOptions(mode="sde", last_step="Tweedie", last_step_size=0.3),
    )  # fmt: skip
    x, t = seen[-1]
    assert t == pytest.approx(0.7)
    alpha, sigma, _, _ = path.coefficients(torch.tensor(1 - t, dtype=torch.float64))
    torch.testing.assert_close(found, 0.5 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (x - 0.5 * alpha))


def test_form_sigma_is_repas_sde_in_the_other_time() -> None:
    model, y = small("REPA"), labels(3)
    noise = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    for guidance in (FREE, Guidance(cfg_scale=2.0, low=0.1, high=0.7)):
        common: dict[str, Any] = {"num_steps": 7, "interpolant": Interpolant(), "guidance": guidance}
        theirs = sample_sde(model, noise, y, step_noise=normals(3, 3, 4, 4), **common)
        ours = sample_transport_sde(
            ReversedTime(model),
            noise,
            y,
            step_noise=normals(3, 3, 4, 4),
            options=TransportOptions(mode="sde"),
            **common,
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_transport_loss_is_zero_for_the_exact_velocity() -> None:
    class Exact(DiffusionModel):
        config, projectors = SiTConfig(**WIDTHS, num_classes=4), nn.ModuleList()

        def forward(self, x: Tensor, t: Tensor, y: Tensor, **_more: Any) -> tuple[Tensor, dict[Any, Any]]:
            return data - noise, {}

    data, noise = normals(4, 2, 3, 3)(), normals(4, 2, 3, 3)() * 2
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    batch = Batch(x=data, y=labels(4), images=data, draws={"time": 1 - t, "noise": noise, "drop": torch.ones(4)})
    loss, _ = velocity_loss(ReversedTime(Exact()), batch, Interpolant(), cfg_prob=0.0)
    assert loss.shape == (4,)
    torch.testing.assert_close(loss, torch.zeros_like(loss), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"diffusion_form": "SBDM"}, "diffusion_form 'SBDM': choose sigma, linear, decreasing"),
        ({"last_step": "mean"}, "last_step 'mean': choose Mean, Euler, Tweedie"),
        ({"last_step_size": 0.0}, "last_step_size 0.0: out of range"),
        ({"timestep_shift": 0.0}, "timestep_shift 0.0: out of range"),
        ({"rtol": -1.0}, "rtol -1.0: out of range"),
    ],
)
def test_transport_options_that_make_no_sense(given: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        TransportOptions(**given)


# --- DDPM


class ExactNoise(nn.Module):
    """The expected noise and the best variance for data that is normal with mean 0.5 and standard deviation 0.5."""

    null_label = 10

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, dict[Any, Any]]:
        self.seen.append((len(x), int(t[0])))
        cumulative = linear_schedule().alphas_cumprod[int(t[0])]
        variance = cumulative * 0.25 + 1 - cumulative
        noise = (1 - cumulative).sqrt() / variance * (x - cumulative.sqrt() * 0.5)
        return torch.cat([noise, torch.ones_like(noise)], dim=1), {}


def test_ddpm_reaches_the_distribution_of_the_data() -> None:
    draw, network = normals(), ExactNoise()
    found = sample_ddpm(network, draw(), labels(1), num_steps=250, step_noise=draw, guidance=FREE)
    assert spread(found) == pytest.approx((0.5, 0.5), abs=0.02)
    assert [step for _, step in network.seen][:2] == [999, 995]
    assert network.seen[-1][1] == 0


def test_ddpm_draws_no_noise_in_its_last_step_and_clips_nothing() -> None:
    drawn = []

    def draw() -> Tensor:
        drawn.append(1)
        return torch.zeros(1, 1, 1, 1)

    network = nn.Module()
    network.null_label = 10  # type: ignore[assignment]
    network.forward = lambda x, t, y: (torch.zeros(len(x), 2, 1, 1), {})  # type: ignore[method-assign]
    found = sample_ddpm(network, ones(), labels(1), num_steps=6, step_noise=draw, guidance=FREE)
    assert len(drawn) == 5
    assert float(found) == pytest.approx(float(linear_schedule().alphas_cumprod[999]) ** -0.5)  # about 157


@pytest.mark.parametrize("num_steps", [2, 10, 50, 250, 1000])
def test_respaced_steps_keep_the_noise_of_the_original_ones(num_steps: int) -> None:
    schedule, full = linear_schedule().respaced(num_steps), linear_schedule()
    even = [i * 999 / (num_steps - 1) for i in range(num_steps)]
    assert np.abs(schedule.timestep_map.numpy() - np.array(even)).max() <= 0.5 + 1e-9
    assert (schedule.timestep_map[0], schedule.timestep_map[-1]) == (0, 999)
    torch.testing.assert_close(schedule.alphas_cumprod, full.alphas_cumprod[schedule.timestep_map])


def test_ddpm_has_at_most_its_thousand_steps() -> None:
    with pytest.raises(UserError, match="num_steps 1001: this diffusion has 1000 steps; choose 2 to 1000"):
        linear_schedule().respaced(1001)


def test_the_bound_teaches_the_variance_alone() -> None:
    steps, data, noise = torch.tensor([0, 37, 999]), normals(3, 4, 2, 2)().clamp(-1, 1), normals(3, 4, 2, 2)() + 1
    out = normals(3, 8, 2, 2)().requires_grad_()
    terms = losses(lambda _x, _t: out, linear_schedule(), data, noise, steps)
    [of_bound] = torch.autograd.grad(terms["vb"].sum(), out, retain_graph=True)
    [of_mse] = torch.autograd.grad(terms["mse"].sum(), out)
    assert not of_bound[:, :4].any()
    assert (of_bound[:, 4:] != 0).flatten(1).any(1).all()
    assert not of_mse[:, 4:].any()


def test_q_sample_is_what_the_wrapper_of_dit_means_by_its_time() -> None:
    model, t = small("DiT"), torch.tensor([0.1, 0.5, 0.9])
    data, noise = normals(3, 4, 4, 4)(), normals(3, 4, 4, 4)() + 1
    ours = q_sample(linear_schedule(), data, noise, model.step_of(t))
    torch.testing.assert_close(ours, model.noised(data, noise, t, Interpolant()))


def test_three_of_four_channels_are_guided() -> None:
    guidance = Guidance(cfg_scale=3.0, channels=3)
    conditional, unconditional = torch.full((1, 4, 1, 1), 2.0), torch.ones(1, 4, 1, 1)
    assert guidance.mix(conditional, unconditional).flatten().tolist() == [4, 4, 4, 2]
    field = Field(constant=True)
    found = sample_transport_ode(
        field, torch.zeros(2, 4, 1, 1), labels(2), num_steps=3, options=TransportOptions(sampling_method="euler"),
        guidance=guidance,
    )  # fmt: skip
    assert found[0].flatten().tolist() == pytest.approx([4, 4, 4, 2])


# --- REG: latent and class token together


class Joint(nn.Module):
    """Exact velocities of two independent Gaussians; labels shift them apart from the null label's."""

    null_label = 10

    def __init__(self, *, constant: bool = False) -> None:
        super().__init__()
        self.inner = Gaussian(Interpolant())
        self.constant, self.seen = constant, list[tuple[int, float]]()

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, cls_token: Tensor) -> tuple[Any, dict[Any, Any]]:
        self.seen.append((len(x), float(t[0])))
        assert torch.equal(cls_token[: len(y) // 2], cls_token[len(y) // 2 :]) or (y < 10).all()
        if self.constant:
            which = torch.where(y == 10, 1.0, 2.0).to(x)
            return (which[:, None, None, None] + cls_token[:, :1, None, None] * 0 + 0 * x, which[:, None]), {}
        own, token = (-self.inner(part, 1 - t, y)[0] for part in (x, cls_token))
        return (own, token), {}


def test_joint_sde_reaches_both_distributions() -> None:
    draw, token = normals(), normals(20_000, 1)
    latent_end: list[Tensor] = []

    class Watched(Joint):
        def forward(self, x: Tensor, t: Tensor, y: Tensor, *, cls_token: Tensor) -> tuple[Any, dict[Any, Any]]:
            latent_end[:] = [cls_token]
            return super().forward(x, t, y, cls_token=cls_token)

    found = sample_joint_sde(
        Watched(), (draw(), token()), labels(1) * 0, num_steps=200, step_noise=lambda: (draw(), token()),
        interpolant=Interpolant(), guidance=FREE,
    )  # fmt: skip
    assert spread(found) == pytest.approx((0.5, 0.5), abs=0.02)
    assert spread(latent_end[0]) == pytest.approx((0.48, 0.48), abs=0.02)  # before the last step of 0.04


@pytest.mark.parametrize(("cls_cfg_scale", "token"), [(0.0, 2.0), (3.0, 4.0), (0.5, 1.5)])
def test_the_class_token_has_its_own_scale(cls_cfg_scale: float, token: float) -> None:
    ends: list[Tensor] = []

    class Watched(Joint):
        def forward(self, x: Tensor, t: Tensor, y: Tensor, *, cls_token: Tensor) -> tuple[Any, dict[Any, Any]]:
            ends.append(cls_token)
            return super().forward(x, t, y, cls_token=cls_token)

    found = sample_joint_ode(
        Watched(constant=True), (torch.zeros(2, 1, 1, 1), torch.zeros(2, 3)), labels(2), num_steps=4,
        guidance=Guidance(cfg_scale=2.0), cls_cfg_scale=cls_cfg_scale,
    )  # fmt: skip
    assert found.flatten().tolist() == pytest.approx([-3, -3])
    assert ends[-1][0].tolist() == pytest.approx([-0.75 * token] * 3)


def test_the_scale_of_the_class_token_alone_does_nothing() -> None:
    model = small("REG")
    plain = pixels(model, range(4), 4)
    assert torch.equal(plain, pixels(model, range(4), 4, cls_cfg_scale=3.0))
    guided = pixels(model, range(4), 4, guidance=Guidance(cfg_scale=4.0), cls_cfg_scale=0.0)
    assert not torch.equal(plain, guided)
    assert not torch.equal(guided, pixels(model, range(4), 4, guidance=Guidance(cfg_scale=4.0), cls_cfg_scale=4.0))


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_order_of_the_joint_ode(heun: bool, order: int) -> None:
    class Wave(nn.Module):
        null_label = 10

        def forward(self, x: Tensor, t: Tensor, y: Tensor, *, cls_token: Tensor) -> tuple[Any, dict[Any, Any]]:
            return (cls_token[:, :, None, None], -x[:, :, 0, 0]), {}  # each drives the other: a rotation

    def error(count: int) -> float:
        start = (ones(), torch.zeros(1, 1, dtype=torch.float64))
        found = sample_joint_ode(Wave(), start, labels(1), num_steps=count, heun=heun, guidance=FREE)
        return abs(float(found) - math.cos(1))

    steps = [16, 32, 64, 128]
    slope = np.polyfit(np.log(steps), np.log([error(count) for count in steps]), 1)[0]
    assert -slope == pytest.approx(order, abs=0.2)


def test_heun_of_both_ends_with_an_euler_step_and_decides_on_guidance_before() -> None:
    field = Joint(constant=True)
    sample_joint_ode(
        field, (ones(2), torch.zeros(2, 1)), labels(2), num_steps=4, heun=True,
        guidance=Guidance(cfg_scale=2.0, low=0.5, high=0.5),
    )  # fmt: skip
    assert field.seen == [(2, 1.0), (2, 0.75), (2, 0.75), (2, 0.5), (4, 0.5), (4, 0.25), (2, 0.25)]


# --- Stable Diffusion 3's flow


def test_flow_steps_are_the_schedulers() -> None:
    import diffusers

    timesteps = flow.flow_timesteps(5)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    assert timesteps == scheduler.timesteps.tolist()
    x = theirs = torch.randn(2, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        theirs = scheduler.step(torch.sin(theirs) + timestep / 1000, timestep, theirs).prev_sample
    ours = flow.sample_flow(lambda z, t: torch.sin(z) + t / 1000, x, timesteps)
    torch.testing.assert_close(ours, theirs)


def test_flow_guidance_and_its_null_branch() -> None:
    calls = []

    def null(_x: Tensor, _t: float) -> Tensor:
        calls.append(1)
        return torch.ones(1)

    def full(_x: Tensor, _t: float) -> Tensor:
        return torch.full((1,), 2.0)

    assert flow.guided(full, null, 1.0)(torch.zeros(1), 5.0).item() == 2
    assert not calls
    assert flow.guided(full, null, 4.0)(torch.zeros(1), 5.0).item() == 5
    assert flow.guided(full, null, 4.0, flow_edit_target=True)(torch.zeros(1), 5.0).item() == 6


def test_editing_follows_the_difference_of_two_velocities() -> None:
    timesteps = [1000.0, 750.0, 500.0, 250.0]
    seen: list[tuple[float, float]] = []

    def source(x: Tensor, t: float) -> Tensor:
        seen.append((float(x), t))
        return torch.ones_like(x)

    draws = iter([ones() * 4.0, ones() * 8.0])
    found = flow.edit_flow(
        source, lambda x, _t: 3 * torch.ones_like(x), ones(), timesteps, num_edited=2, step_noise=draws.__next__
    )
    assert float(found) == 1 + 0.5 * (1 - 3)  # from t = 0.5 to 0
    assert seen == [(0.5 * 1 + 0.5 * 4, 500.0), (0.75 * 1 + 0.25 * 8, 250.0)]
    same = flow.edit_flow(source, source, ones(), timesteps, num_edited=4, step_noise=ones)
    assert float(same) == 1.0
    with pytest.raises(UserError, match="num_edited 5: there are 4 steps"):
        flow.edit_flow(source, source, ones(), timesteps, num_edited=5, step_noise=ones)


def test_the_flow_sampler_is_for_models_of_text() -> None:
    config = MMDiTTextConfig(**WIDTHS, in_channels=2, num_classes=3, captions=("a", "b", "c"), context_size=16)
    model = awake(MMDiTText(config))
    assert default_sampler(model) == "repa"  # whose numbers are in the tables
    noise, y, seen = torch.randn(2, 2, 4, 4), torch.tensor([0, 2]), list[tuple[int, float]]()
    model.register_forward_pre_hook(lambda _m, given: seen.append((len(given[0]), float(given[1][0]))))
    settings = sampling(family="flow", num_steps=3, shift=2.0, guidance=Guidance(cfg_scale=2.5)).for_model(model)
    ours = SAMPLERS.get("flow").integrate(model, noise, y, range(2), settings)
    timesteps = flow.flow_timesteps(3, shift=2.0)
    assert seen == [(4, pytest.approx(timestep / 1000)) for timestep in timesteps]
    assert (settings.record()["nfe"], settings.record()["shift"], settings.uint8) == (3, 2.0, "round")

    def branch(labels: Tensor) -> flow.Velocity:
        return lambda x, timestep: model(x.float(), torch.full((2,), timestep / 1000), labels)[0].double()

    velocity = flow.guided(branch(y), branch(torch.full_like(y, 3)), 2.5)
    torch.testing.assert_close(ours, flow.sample_flow(velocity, noise.double(), timesteps), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="the sampler flow does not fit this model; choose repa, transport"):
        sampling(family="flow").for_model(small("REPA"))
    with pytest.raises(UserError, match=r"shift 0\.0: it must be above 0"):
        sampling(family="flow", shift=0)


# --- one way to all of them


@pytest.mark.parametrize(("kind", "family"), KINDS.items())
def test_a_model_tells_its_family(kind: str, family: str) -> None:
    model = small(kind)
    assert default_sampler(model) == family
    settings = SamplerSettings().for_model(model)
    assert (settings.family, settings.uint8) == (family, SAMPLERS.get(family).uint8)
    assert settings.guidance.channels == (3 if kind in ("SiT", "DiT") else None)
    assert SamplerSettings(uint8="floor").for_model(model).uint8 == "floor"


@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize("kind", KINDS)
def test_bytes_depend_on_seed_index_and_batch_size_alone(kind: str, mode: str) -> None:
    model = small(kind)
    options: dict[str, Any] = {"guidance": Guidance(cfg_scale=1.5), **({} if kind == "DiT" else {"mode": mode})}
    if kind != "GMem" or mode != "ode":  # dopri5 steps by the error of the whole batch
        options |= {"sampling_method": "euler"} if kind in ("SiT", "GMem") else {}
    whole = pixels(model, range(13), 5, **options)
    assert len(whole.flatten(1).unique(dim=0)) == 13
    for part in ([12], [3, 4], [11, 0, 7], range(6, 13)):
        assert torch.equal(pixels(model, part, 5, **options), whole[list(part)])
    assert not torch.equal(whole, pixels(model, range(13), 5, **options, seed=1))


def test_class_token_and_latent_have_noises_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, streams = small("REG"), [], []
    model.register_forward_pre_hook(lambda _m, given, named: inputs.append(named["cls_token"]), with_kwargs=True)

    def recording(seed: int, stream: str, indices: Any) -> list[torch.Generator]:
        streams.append(stream)
        return seeding.generators(seed, stream, indices)

    monkeypatch.setattr(contract, "generators", recording)
    pixels(model, range(2), 2, mode="sde", num_steps=2)
    assert streams == ["class noise", "step noise", "class step noise"]  # "noise" and "label" are generate's own
    assert torch.equal(inputs[0], seeding.normal(seeding.generators(0, "class noise", range(2)), (6,)))


def test_a_velocity_model_can_be_sampled_in_either_time() -> None:
    for kind in ("REPA", "SiT"):
        model = small(kind)
        common: dict[str, Any] = {"mode": "sde", "num_steps": 5, "uint8": "round"}
        ours = pixels(model, range(4), 4, family="repa", **common).int()
        theirs = pixels(model, range(4), 4, family="transport", **common).int()
        assert int((ours - theirs).abs().max()) <= 1


@pytest.mark.parametrize(
    ("kind", "family", "text"),
    [
        ("REPA", "joint", "the sampler joint does not fit this model; choose repa, transport"),
        ("REPA", "ddpm", "the sampler ddpm does not fit this model; choose repa, transport"),
        ("REG", "repa", "the sampler repa does not fit this model; choose joint"),
        ("DiT", "transport", "the sampler transport does not fit this model; choose ddpm"),
    ],
)
def test_samplers_that_do_not_fit(kind: str, family: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        SamplerSettings(family=family).for_model(small(kind))


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"family": "edm"}, "family 'edm': choose ddpm, flow, joint, repa, transport"),
        ({"family": "transport", "heun": True}, "heun does not apply to the sampler transport"),
        ({"family": "ddpm", "num_steps": 1}, "num_steps 1: the sampler ddpm needs at least 2"),
        ({"balanced": True, "labels": (1,)}, "balanced labels or given labels: choose one"),
        (
            {"family": "transport", "mode": "sde", "sampling_method": "dopri5"},
            "sampling_method 'dopri5': with sde choose euler, heun",
        ),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        sampling(**given)


def test_given_labels() -> None:
    model = small("REPA")
    settings = SamplerSettings(labels=(3, 1))
    assert chosen_of(range(5), model, settings, None).tolist() == [3, 1, 3, 1, 3]
    assert settings.record()["labels"] == [3, 1]
    with pytest.raises(UserError, match=r"label 5: this model has labels 0\.\.4"):
        SamplerSettings(labels=(3, 5)).for_model(model)
    with pytest.raises(UserError, match="label 3: this model has no labels"):
        SamplerSettings(labels=(3,)).for_model(small("GMem"))


def test_snippets_are_drawn_uniformly_and_normalised() -> None:
    model, told = small("GMem"), []
    model.network.condition_projection.register_forward_pre_hook(lambda _m, inputs: told.append(inputs[0]))
    settings = sampling(num_steps=2, sampling_method="euler")
    [(_, _, rows)] = generate(model, range(6), settings, batch_size=6, snippets=BANK)
    assert torch.equal(rows, rows_of(range(6), 7, settings))
    torch.testing.assert_close(told[0], BANK[rows] / BANK[rows].norm(dim=1, keepdim=True))
    drawn = torch.bincount(rows_of(range(2100), 7, settings), minlength=7)
    assert 240 < int(drawn.min()) < int(drawn.max()) < 360


@pytest.mark.parametrize(
    ("kind", "bank", "text"),
    [
        ("GMem", None, "this model draws from a memory bank: name it with --bank FILE"),
        ("GMem", torch.zeros(3, 5), r"the memory bank is \(3, 5\); this model needs \(N, 24\)"),
        ("REPA", BANK, "this model is conditioned on labels"),
    ],
)
def test_banks_that_do_not_fit(kind: str, bank: Tensor | None, text: str) -> None:
    with pytest.raises(UserError, match=text):
        next(generate(small(kind), range(2), SamplerSettings(num_steps=2), snippets=bank))


# what changes an image changes its record
CHANGES: dict[str, list[dict[str, Any]]] = {
    "repa": [{"mode": "sde"}, {"heun": True}, {"guidance": Guidance(channels=2)}],
    "joint": [{"mode": "sde"}, {"heun": True}, {"cls_cfg_scale": 1.0}],
    "transport": [
        {"mode": "sde"},
        {"sampling_method": "heun2"}, {"timestep_shift": 0.3}, {"atol": 1e-3}, {"rtol": 1e-2},
        *({"mode": "sde", **change} for change in (
            {"sampling_method": "heun"}, {"diffusion_form": "linear"}, {"diffusion_norm": 2.0},
            {"last_step": "Euler"}, {"last_step_size": 0.1},
        )),
    ],
    "ddpm": [],
    "flow": [{"shift": 1.0}],
}  # fmt: skip
COMMON: list[dict[str, Any]] = [
    {}, {"num_steps": 7}, {"guidance": Guidance(cfg_scale=2)}, {"balanced": True}, {"labels": (1,)}, {"seed": 1},
    {"uint8": "round"}, {"uint8": "floor"},
]  # fmt: skip


@pytest.mark.parametrize("family", SAMPLERS.names())
def test_every_setting_is_in_the_record(family: str) -> None:
    own = [change for change in COMMON if change.get("uint8") != SAMPLERS.get(family).uint8]
    records = [json.dumps(sampling(family=family, **change).record()) for change in [*own, *CHANGES[family]]]
    assert len(set(records)) == len(records)
    assert family == "repa" or all(json.loads(record)["sampler"] == family for record in records)


@pytest.mark.parametrize(
    ("given", "nfe"),
    [
        ({"family": "joint"}, 50), ({"family": "joint", "heun": True}, 99), ({"family": "joint", "mode": "sde"}, 50),
        ({"family": "transport"}, "adaptive"), ({"family": "ddpm"}, 50),
        ({"family": "transport", "sampling_method": "euler"}, 49),
        ({"family": "transport", "sampling_method": "midpoint"}, 98),
        ({"family": "transport", "mode": "sde"}, 50),
        ({"family": "transport", "mode": "sde", "sampling_method": "heun"}, 99),
    ],
)  # fmt: skip
def test_the_record_counts_network_calls(given: dict[str, Any], nfe: int | str) -> None:
    settings = sampling(**given)
    assert settings.record()["nfe"] == nfe
    kind = next(kind for kind, family in KINDS.items() if family == given["family"])
    if nfe == "adaptive":
        return
    model, calls = small(kind), []
    getattr(model, "network", model).register_forward_pre_hook(lambda *_: calls.append(1))
    list(generate(model, [0], settings, batch_size=1))
    assert len(calls) == nfe
