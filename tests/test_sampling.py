"""Samplers: order of convergence on known fields, guidance, images by (seed, index), continuing, uint8."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from helpers import files_of, sampling, wake
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.images import to_uint8
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.sampling.generate import SamplerSettings, generate, labels_of
from repa_eval.sampling.sample_files import SampleFolder, save_npz
from repa_eval.sampling.sample_record import read_record
from repa_eval.sampling.samplers.repa import RepaOptions, sample_ode, sample_sde


class Field(DiffusionModel):
    """A velocity field that is known: dx/dt = cos(3t) x, or 1 for the null label and 2 for the others."""

    null_label = 10

    def __init__(self, *, constant: bool = False) -> None:
        super().__init__()
        self.constant = constant
        self.seen: list[tuple[int, float]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
        self.seen.append((len(x), float(t[0])))
        assert (t == t[0]).all()
        if self.constant:
            return torch.where(y == 10, 1.0, 2.0).to(x)[:, None, None, None].expand_as(x), {}
        return torch.cos(3 * t)[:, None, None, None] * x, {}


def awake() -> SiT:
    """A small model that does not output 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiT(SiTConfig(input_size=8, in_channels=1, num_classes=10, hidden_size=32, depth=2, num_heads=2))
    wake(model)
    return model.eval().requires_grad_(False)


def solve(num_steps: int, *, heun: bool = False) -> float:
    """The relative error of an ODE solution at t = 0."""
    noise = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    found = sample_ode(Field(), noise, torch.zeros(1), num_steps=num_steps, heun=heun, guidance=Guidance())
    return abs(float(found) / math.exp(-math.sin(3) / 3) - 1)


def pixels(model: nn.Module, indices: range | list[int], batch_size: int, **settings: object) -> Tensor:
    """uint8 images, one per index."""
    parts = generate(model, indices, sampling(**{"num_steps": 4, **settings}), batch_size=batch_size)
    return torch.cat([images for _, images, _ in parts])


# --- the ODE


@pytest.mark.parametrize(("heun", "order"), [(False, 1.0), (True, 2.0)])
def test_order_of_convergence(heun: bool, order: float) -> None:
    steps = [16, 32, 64, 128, 256]
    errors = [solve(count, heun=heun) for count in steps]
    slope = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -slope == pytest.approx(order, abs=0.15)
    assert errors[-1] < 0.01


@pytest.mark.parametrize(("heun", "calls"), [(False, 4), (True, 7)])
def test_times_and_cost(heun: bool, calls: int) -> None:
    field = Field()
    sample_ode(field, torch.ones(3, 1, 2, 2), torch.zeros(3), num_steps=4, heun=heun, guidance=Guidance())
    times = [t for _, t in field.seen]
    assert len(times) == calls
    if heun:
        assert times == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
    else:
        assert times == [1.0, 0.75, 0.5, 0.25]


def test_the_state_is_float64_and_the_model_sees_the_dtype_of_the_noise() -> None:
    class Dtypes(Field):
        def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
            assert x.dtype == t.dtype == torch.float32
            return super().forward(x, t, y)

    assert sample_ode(Dtypes(), torch.ones(1, 1, 2, 2), torch.zeros(1), num_steps=2, guidance=Guidance()).dtype == (
        torch.float64
    )


def test_an_exact_field_is_solved_exactly() -> None:
    # the velocity of the linear path to a point mass at 0.25 is (x - 0.25) / t: one step or many arrive there
    class Point(Field):
        def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
            return (x - 0.25) / t[:, None, None, None], {}

    noise = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for num_steps in (1, 3, 10):
        found = sample_ode(Point(), noise, torch.zeros(4), num_steps=num_steps, guidance=Guidance())
        torch.testing.assert_close(found, torch.full_like(found, 0.25))


# --- the SDE


class Gaussian(Field):
    """The exact velocity for data that is normal with mean 0.5 and standard deviation 0.5."""

    def __init__(self, path: Interpolant) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: tuple[int, ...] = ()) -> tuple[Tensor, dict]:
        alpha, sigma, d_alpha, d_sigma = self.path.coefficients(t[0])
        variance = (alpha * 0.5) ** 2 + sigma**2
        slope = (alpha * d_alpha * 0.25 + sigma * d_sigma) / variance
        return d_alpha * 0.5 + slope * (x - alpha * 0.5), {}


@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize("path_type", ["linear", "cosine"])
def test_the_distribution_of_the_data_is_reached(path_type: str, mode: str) -> None:
    path, generator = Interpolant(path_type=path_type), torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return torch.randn(20_000, 1, 1, 1, generator=generator, dtype=torch.float64)

    labels, free = torch.zeros(20_000), Guidance()
    if mode == "ode":
        found = sample_ode(Gaussian(path), normal(), labels, num_steps=200, guidance=free)
    else:
        found = sample_sde(
            Gaussian(path), normal(), labels, num_steps=200, step_noise=normal, interpolant=path, guidance=free
        )
    assert float(found.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(found.std()) == pytest.approx(0.5, abs=0.015)


def test_the_last_step_of_the_sde_is_without_noise() -> None:
    field, drawn = Gaussian(Interpolant()), []

    def step_noise() -> Tensor:
        drawn.append(1)
        return torch.zeros(1, 1, 1, 1)

    sample_sde(
        field, torch.ones(1, 1, 1, 1), torch.zeros(1), num_steps=4, step_noise=step_noise, interpolant=Interpolant(),
        guidance=Guidance(),
    )  # fmt: skip
    assert len(drawn) == 3
    field = Field()
    sample_sde(
        field, torch.ones(1, 1, 1, 1), torch.zeros(1), num_steps=4, step_noise=step_noise, interpolant=Interpolant(),
        guidance=Guidance(),
    )  # fmt: skip
    assert [t for _, t in field.seen] == pytest.approx([1, 0.68, 0.36, 0.04])


# --- guidance


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"cfg_scale": math.nan}, "cfg_scale nan"),
        ({"cfg_scale": math.inf}, "cfg_scale inf"),
        ({"cfg_scale": -1.0}, r"cfg_scale -1\.0"),
        ({"low": 0.8, "high": 0.2}, r"guidance from t = 0\.8 to 0\.2"),
        ({"low": math.nan}, "guidance from t = nan"),
        ({"low": -0.1}, "expected 0 <= low <= high <= 1"),
        ({"high": 1.1}, "expected 0 <= low <= high <= 1"),
        ({"channels": 0}, "guided channels 0"),
    ],
)
def test_guidance_that_means_nothing_is_refused(values: dict[str, float], text: str) -> None:
    with pytest.raises(UserError, match=text):
        Guidance(**values)  # type: ignore[arg-type]


def test_a_scale_below_one_would_be_recorded_and_not_used() -> None:
    assert not Guidance(cfg_scale=0.5).applies(0.5)
    with pytest.raises(UserError, match=r"cfg_scale 0\.5: at least 1, which is no guidance"):
        SamplerSettings(guidance=Guidance(cfg_scale=0.5))


@pytest.mark.parametrize("heun", [False, True])
def test_scale_one_is_no_guidance(heun: bool) -> None:
    model = awake()
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([1, 2, 3, 4])
    plain = sample_ode(model, noise, labels, num_steps=3, heun=heun, guidance=Guidance())
    one = sample_ode(model, noise, labels, num_steps=3, heun=heun, guidance=Guidance(cfg_scale=1.0, low=0, high=1))
    assert torch.equal(plain, one)
    two = sample_ode(model, noise, labels, num_steps=3, heun=heun, guidance=Guidance(cfg_scale=2.0))
    assert not torch.allclose(plain, two, atol=1e-3)


def test_guided_velocity_is_u_plus_scale_times_the_difference() -> None:
    found = sample_ode(
        Field(constant=True), torch.zeros(2, 1, 1, 1), torch.tensor([3, 4]), num_steps=5, guidance=Guidance(cfg_scale=3)
    )
    assert found.flatten().tolist() == pytest.approx([-4, -4])  # 1 + 3 (2 - 1), integrated from 1 to 0


@pytest.mark.parametrize(
    ("low", "high", "guided"),
    [(0, 1, [1, 0.75, 0.5, 0.25]), (0.25, 0.5, [0.5, 0.25]), (0.3, 0.75, [0.75, 0.5]), (0.8, 0.9, [])],
)
def test_the_interval_is_inclusive(low: float, high: float, guided: list[float]) -> None:
    field = Field()
    guidance = Guidance(cfg_scale=2.0, low=low, high=high)
    sample_ode(field, torch.ones(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64), num_steps=4, guidance=guidance)
    assert [t for size, t in field.seen if size == 6] == guided
    assert [t for _, t in field.seen] == [1, 0.75, 0.5, 0.25]


def test_heun_decides_on_guidance_at_the_first_of_its_two_times() -> None:
    field = Field()
    guidance = Guidance(cfg_scale=2.0, low=0.5, high=0.5)
    sample_ode(
        field, torch.ones(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64), num_steps=4, heun=True, guidance=guidance
    )
    assert [t for size, t in field.seen if size == 6] == [0.5, 0.25]


# --- images by seed and index


@pytest.mark.parametrize("mode", ["ode", "sde"])
def test_an_image_depends_on_seed_and_index_alone(mode: str) -> None:
    model = awake()
    whole = pixels(model, range(160), 32, mode=mode)
    assert len(whole.flatten(1).unique(dim=0)) == 160
    for batch_size in (5, 13):
        other = pixels(model, range(160), batch_size, mode=mode)
        apart = (whole.int() - other.int()).abs()
        assert int(apart.max()) <= 1
        assert float((apart > 0).double().mean()) <= 1e-4
    assert not torch.equal(whole, pixels(model, range(160), 32, mode=mode, seed=1))


@pytest.mark.parametrize("mode", ["ode", "sde"])
@pytest.mark.parametrize("indices", [range(5, 13), [12, 3, 7], [9]])
def test_at_one_batch_size_the_bytes_are_equal(indices: range | list[int], mode: str) -> None:
    model = awake()
    assert torch.equal(pixels(model, indices, 5, mode=mode), pixels(model, range(13), 5, mode=mode)[list(indices)])


def test_every_batch_has_the_full_size() -> None:
    # a matrix product may round otherwise for another number of rows
    class Sizes(Field):
        config = SiTConfig(input_size=2, in_channels=1, num_classes=10)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    field = Sizes()
    made = list(generate(field, range(7), SamplerSettings(num_steps=1), batch_size=4))
    assert [size for size, _ in field.seen] == [4, 4]
    assert [indices for indices, _, _ in made] == [[0, 1, 2, 3], [4, 5, 6]]
    assert [len(images) for _, images, _ in made] == [4, 3]
    assert [len(labels) for _, _, labels in made] == [4, 3]


def test_labels() -> None:
    balanced = labels_of(range(25), 10, SamplerSettings(balanced=True))
    assert balanced.tolist() == [index % 10 for index in range(25)]
    drawn = labels_of(range(2000), 10, SamplerSettings())
    assert torch.equal(drawn[500:510], labels_of(range(500, 510), 10, SamplerSettings()))
    assert not torch.equal(drawn, labels_of(range(2000), 10, SamplerSettings(seed=1)))
    counts = torch.bincount(drawn, minlength=10)
    assert len(counts) == 10
    assert 140 < int(counts.min()) < int(counts.max()) < 260


def test_the_record_holds_all_settings() -> None:
    guidance = Guidance(cfg_scale=1.5, low=0.1, high=0.9)
    record = sampling(num_steps=7, heun=True, guidance=guidance, balanced=True, uint8="round", seed=3).record()
    assert record == {
        "sampler_mode": "ode", "sampler_seed": 3, "num_steps": 7, "solver": "heun", "uint8": "round",
        "path_type": "linear", "cfg_scale": 1.5, "guidance_interval": [0.1, 0.9], "labels": "balanced",
    }  # fmt: skip
    assert json.dumps(record)
    noisy = sampling(mode="sde", interpolant=Interpolant(path_type="cosine")).record()
    assert noisy["sampler_mode"] == "sde"
    assert noisy["path_type"] == "cosine"
    assert str(noisy["solver"]).startswith("euler-maruyama")


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="num_steps 0: at least 1 step is needed"):
        SamplerSettings(num_steps=0)
    with pytest.raises(UserError, match="mode 'dpm': choose ode or sde"):
        RepaOptions(mode="dpm")
    with pytest.raises(UserError, match="mode: 'dpm' is not allowed; choose one of ode, sde"):
        sampling(family="repa", mode="dpm")
    with pytest.raises(UserError, match="Heun steps belong to the ODE"):
        sampling(family="repa", mode="sde", heun=True)


# --- uint8


@pytest.mark.parametrize(
    ("value", "floor", "rounded"),
    [
        (-2.0, 0, 0), (-1.0, 0, 0), (0.0, 127, 128), (1.0, 255, 255), (3.0, 255, 255),
        (-0.999, 0, 0), (0.999, 254, 255), (-1 + 1.99 / 255, 0, 1), (-1 + 2.01 / 255, 1, 1),
    ],
)  # fmt: skip
def test_two_rules_from_floats_to_uint8(value: float, floor: int, rounded: int) -> None:
    x = torch.tensor([value], dtype=torch.float64)
    assert to_uint8(x, "floor").item() == floor
    assert to_uint8(x, "round").item() == rounded
    assert to_uint8(x, "floor").dtype == torch.uint8


def test_the_rule_is_used() -> None:
    model = awake()
    floor, rounded = (pixels(model, range(8), 8, uint8=rule).int() for rule in ("floor", "round"))
    assert set((rounded - floor).unique().tolist()) == {0, 1}
    with pytest.raises(UserError, match="uint8 rule 'ceil' is not known; choose floor or round"):
        to_uint8(torch.zeros(1), "ceil")


# --- folders of samples


def fill(folder: SampleFolder, count: int, *, stop: int | None = None) -> None:
    for indices, images, _ in generate(awake(), folder.missing(count), SamplerSettings(num_steps=2), batch_size=5):
        folder.add(indices, images)
        if stop is not None and indices[-1] >= stop:
            return


def test_interrupted_sampling_continues_to_the_same_files(tmp_path: Path) -> None:
    record = {"seed": 0}
    fill(SampleFolder(tmp_path / "whole", record), 13)
    fill(SampleFolder(tmp_path / "parts", record), 13, stop=6)
    assert len(SampleFolder(tmp_path / "parts", record).missing(13)) == 3
    (tmp_path / "parts" / "00000" / "000002.png").unlink()
    kept = (tmp_path / "parts" / "00000" / "000001.png").stat().st_mtime_ns
    fill(SampleFolder(tmp_path / "parts", record), 13)
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    assert (tmp_path / "parts" / "00000" / "000001.png").stat().st_mtime_ns == kept
    assert sorted(files_of(tmp_path / "whole"))[0] == "00000/000000.png"


def test_a_thousand_images_a_folder(tmp_path: Path) -> None:
    folder = SampleFolder(tmp_path / "a", {})
    assert folder.file(999) == tmp_path / "a" / "00000" / "000999.png"
    assert folder.file(1000) == tmp_path / "a" / "00001" / "001000.png"


def test_files_hold_the_pixels(tmp_path: Path) -> None:
    images = torch.randint(256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    folder = SampleFolder(tmp_path / "rgb", {})
    folder.add([0, 1], images)
    assert np.array_equal(np.asarray(Image.open(folder.file(1))), images[1].permute(1, 2, 0).numpy())
    grey = SampleFolder(tmp_path / "grey", {})
    grey.add([0], images[:1, :1])
    assert np.array_equal(np.asarray(Image.open(grey.file(0))), images[0, 0].numpy())


def test_samples_made_otherwise_are_not_mixed(tmp_path: Path) -> None:
    SampleFolder(tmp_path / "a", {"seed": 0, "num_steps": 4})
    with pytest.raises(
        UserError, match=r"contains samples made with different settings \(num_steps\); choose another --out"
    ):
        SampleFolder(tmp_path / "a", {"seed": 0, "num_steps": 5})
    assert read_record(tmp_path / "a") == {"seed": 0, "num_steps": 4}


def test_records_beside_samples(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", np.zeros((2, 1, 4, 4), np.uint8), np.zeros(2, np.int64), {"seed": 3})
    assert read_record(tmp_path / "a.npz") == {"seed": 3}
    assert read_record(tmp_path) is None
    (tmp_path / "samples.json").write_text("{")
    with pytest.raises(Failure, match=r"samples\.json is damaged"):
        read_record(tmp_path)
