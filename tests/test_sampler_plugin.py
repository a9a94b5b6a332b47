"""A sampler is one file: registered by its decorator, used by generate() and `repa-eval sample`, recorded, refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from helpers import tiny, wake
from repa_eval.cli import main
from repa_eval.commands.shared.sample_options import SamplerFlags
from repa_eval.diffusion.guidance import Guidance, guided_velocity
from repa_eval.errors import UserError
from repa_eval.interfaces.images import to_uint8
from repa_eval.interfaces.sampler import SAMPLERS, SamplerSettings, default_sampler
from repa_eval.models.dit import DiT, DiTConfig
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.runtime.seeding import generators, normal
from repa_eval.sampling.generate import generate
from repa_eval.train.evaluated import evaluated_run

FILE = '''
"""MeanFlow's sampler (arXiv 2505.13447): the mean velocity from t to r leads from one to the other."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from repa_eval.config import option
from repa_eval.interfaces.sampler import sampler


@dataclass(frozen=True, kw_only=True)
class MeanFlowOptions:
    power: float = option(1.0, help="times are linspace(1, 0) to this power")


def fits(model):
    return model.times == 2


@sampler("meanflow", applies=fits, default_for=fits, options=MeanFlowOptions, uint8="round", reads=())
def integrate(model, noise, y, indices, settings):
    """MeanFlow's steps between two times."""
    x, times = noise, torch.linspace(1, 0, settings.num_steps + 1) ** settings.options.power
    for t, r in pairwise(times.tolist()):
        now, after = (torch.full((len(x),), time, device=x.device) for time in (t, r))
        x = x - (t - r) * model(x, now, y, r=after)[0]
    return x
'''


class TwoTimes(SiT):
    """A model of the mean velocity: it answers the second time, and 2 where there is none."""

    times = 2

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, r: Tensor | None = None, taps: Any = ()) -> Any:  # type: ignore[override]
        value = torch.full_like(t, 2.0) if r is None else r
        return value[:, None, None, None].expand_as(x), {}


def one_time() -> SiT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SiT(SiTConfig(input_size=8, in_channels=1, num_classes=5, hidden_size=32, depth=2, num_heads=2))
    wake(model, scale=0.1)
    return model.eval().requires_grad_(False)


def two_times() -> TwoTimes:
    return TwoTimes(SiTConfig(input_size=2, in_channels=1, num_classes=5, hidden_size=32, depth=1, num_heads=2))


@pytest.fixture
def own_samplers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget whatever a test registers."""
    SAMPLERS.names()
    monkeypatch.setattr(SAMPLERS, "_objects", dict(SAMPLERS._objects))
    monkeypatch.setattr(SAMPLERS, "_origins", dict(SAMPLERS._origins))


@pytest.fixture
def plugin(tmp_path: Path, own_samplers: None) -> str:
    (tmp_path / "meanflow.py").write_text(FILE)
    return SAMPLERS.load_file(tmp_path / "meanflow.py")


def test_generate_uses_the_sampler_of_a_file(plugin: str) -> None:
    model = two_times()
    assert plugin == default_sampler(model) == "meanflow"
    noise = normal(generators(0, "noise", range(3)), (1, 2, 2))
    for settings, moved in (
        (SamplerSettings(num_steps=1), 0.0),  # from 1 to 0 by the velocity 0
        (SamplerSettings(num_steps=2), 0.25),  # half a step by 0.5, half a step by 0
        (SamplerSettings(num_steps=2, options={"power": 2.0}), 0.75 * 0.25),
    ):
        [(_, images, _)] = generate(model, range(3), settings, batch_size=3)
        assert torch.equal(images, to_uint8(noise - moved, "round"))


def test_its_record_names_it_and_all_its_options(plugin: str) -> None:
    settings = SamplerSettings(num_steps=1, options={"power": 3}).for_model(two_times())
    assert settings.record() == {
        "sampler_mode": "meanflow", "num_steps": 1, "path_type": None, "cfg_scale": 1.0, "guidance_interval": None,
        "labels": "random", "uint8": "round", "sampler_seed": 0, "sampler": "meanflow", "guided_channels": "all",
        "power": 3.0, "sampler_sha256": sha256(FILE.encode()).hexdigest(),
    }  # fmt: skip


def test_it_is_refused_where_it_does_not_apply(plugin: str) -> None:
    dit = DiT(DiTConfig(input_size=8, hidden_size=32, depth=1, num_heads=2, num_classes=5))
    with pytest.raises(UserError, match="the sampler meanflow does not fit this model; choose repa, transport"):
        SamplerSettings(family="meanflow").for_model(one_time())
    with pytest.raises(UserError, match="the sampler meanflow does not fit this model; choose ddpm"):
        SamplerSettings(family="meanflow").for_model(dit)
    with pytest.raises(UserError, match="unknown option of the sampler meanflow 'powers'; did you mean 'power'"):
        SamplerSettings(family="meanflow", options={"powers": 1})
    with pytest.raises(UserError, match=r"heun does not apply to the sampler meanflow \(it belongs to joint, repa\)"):
        SamplerSettings(family="meanflow", options={"heun": True})
    with pytest.raises(UserError, match="power: 'much' is not a number"):
        SamplerSettings(family="meanflow", options={"power": "much"})
    with pytest.raises(UserError, match="options MeanFlowOptions: the sampler repa has RepaOptions"):
        SamplerSettings(family="repa", options=SAMPLERS.get("meanflow").options())


def test_models_of_two_times_can_be_sampled_by_one(plugin: str) -> None:
    [(_, images, _)] = generate(two_times(), range(2), SamplerSettings(family="repa", num_steps=1), batch_size=2)
    noise = normal(generators(0, "noise", range(2)), (1, 2, 2))
    assert torch.equal(images, to_uint8(noise - 2, "floor"))


def test_the_guided_velocity_can_have_a_second_time() -> None:
    x, labels = torch.zeros(2, 1, 2, 2, dtype=torch.float64), torch.tensor([0, 1])
    guidance = Guidance(cfg_scale=2.0)
    for guided in (False, True):
        common: dict[str, Any] = {"guided": guided, "dtype": torch.float32}
        assert guided_velocity(two_times(), x, 1.0, labels, guidance, r=0.25, **common).unique().tolist() == [0.25]
        assert guided_velocity(two_times(), x, 1.0, labels, guidance, **common).unique().tolist() == [2.0]


def test_evaluations_of_a_run_use_and_name_it(plugin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tiny("vanilla")
    assert evaluated_run(recipe, tmp_path).sampler(2).record() == SamplerSettings(num_steps=2).record()
    assert "sampler" not in evaluated_run(tiny("reg"), tmp_path).sampler(2).record()  # as the rows of older runs
    monkeypatch.setattr(SiT, "times", 2)
    assert evaluated_run(recipe, tmp_path).sampler(2).record()["sampler"] == "meanflow"


def test_two_defaults_of_one_model_are_an_error(plugin: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text(FILE.replace('"meanflow"', '"other"'))
    SAMPLERS.load_file(tmp_path / "other.py")
    with pytest.raises(UserError, match="the samplers meanflow, other are each the default of this model"):
        SamplerSettings().for_model(two_times())
    assert SamplerSettings(family="other").for_model(two_times()).family == "other"


def test_a_name_that_is_taken(own_samplers: None, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE.replace('"meanflow"', '"repa"'))
    with pytest.raises(UserError, match=r"sampler 'repa' is registered twice: by .*repa\.py and by .*mine\.py"):
        SAMPLERS.load_file(tmp_path / "mine.py")


def test_the_command_takes_it_and_its_options(own_samplers: None, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE.replace("model.times == 2", "True").replace(", r=after", ""))
    SAMPLERS.load_file(tmp_path / "mine.py")
    torch.save(one_time().state_dict(), tmp_path / "model.pt")
    words = ["sample", "--ckpt", str(tmp_path / "model.pt"), "--set", "num_heads=2", "--num", "2", "--device", "cpu"]
    words += ["--sampler", "meanflow", "--num-steps", "2", "--quiet", "--json"]

    def sample(name: str, *more: str) -> Any:
        return CliRunner().invoke(main, [*words, "--out", str(tmp_path / name), *more])

    made = [sample(str(power), "--sampler-option", f"power={power}").stdout for power in (1, 2)]
    records = [json.loads(text)["record"] for text in made]
    assert [(record["sampler"], record["power"]) for record in records] == [("meanflow", 1.0), ("meanflow", 2.0)]
    images = [(tmp_path / name / "00000" / "000000.png").read_bytes() for name in ("1", "2")]
    assert images[0] != images[1]
    for more, text in (
        (["--sampler-option", "force=1"], "unknown option of the sampler meanflow 'force' (known: power)"),
        (["--sampler-option", "power"], "cannot read 'power': an override is written key=value"),
        (["--mode", "sde"], "--mode does not apply to the sampler meanflow (it belongs to joint, repa, transport)"),
        (["--path-type", "cosine"], "--path-type does not apply to the sampler meanflow (it belongs to joint, repa"),
        (["--sampler", "meanflows"], "unknown sampler 'meanflows'; did you mean 'meanflow'?"),
        (
            ["--sampler", "repa", "--heun", "--sampler-option", "heun=false"],
            "heun: --heun says the same",
        ),
    ):
        done = sample("wrong", *more)
        assert (done.exit_code, text in done.stderr) == (2, True), done.stderr
    listed = json.loads(CliRunner().invoke(main, ["list", "samplers", "--json"]).stdout)
    assert listed["meanflow"].startswith("MeanFlow's steps between two times. [power] [plug-in ")


def test_flags_are_the_options_of_the_samplers() -> None:
    """The help of `sample` does not import torch, so its flags are written down a second time: they are compared."""
    declared: dict[str, Any] = {}
    for _, sampler in SAMPLERS.items():
        declared |= {name: field for name, field in sampler.options.__dataclass_fields__.items()}
    flags = SamplerFlags.__dataclass_fields__
    assert declared.keys() - flags.keys() == {"shift"}
    assert flags.keys() <= declared.keys()
    for name, field in flags.items():
        choices = getattr(field.metadata["settings"].get("type"), "choices", None)
        assert (choices and tuple(choices)) == declared[name].metadata["choices"], name
        assert field.default in (None, declared[name].default), name
