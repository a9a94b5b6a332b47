"""What a diffusion model declares of itself, and that nothing guesses it from attributes."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch
from test_architecture import MODULES

from repa_eval.config import from_dict
from repa_eval.diffusion.conventions import ReversedTime, as_project_convention
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.features.hidden_states import model_record, noised
from repa_eval.features.model_input import ModelInput
from repa_eval.interfaces.architecture import MODELS
from repa_eval.interfaces.image_source import Samples
from repa_eval.models.sit import SiT, SiTConfig

SMALL: dict[str, Any] = {"input_size": 8, "hidden_size": 32, "depth": 2, "num_heads": 2}
# conditioning, labels, width of a snippet, width of the class token
DECLARED: dict[str, tuple[dict[str, Any], tuple[str, int, int, int]]] = {
    "SiT": ({"num_classes": 5}, ("class", 5, 0, 0)),
    "SiT-REG": ({"num_classes": 5, "z_dims": (6,)}, ("class", 5, 0, 6)),
    "DiT": ({"num_classes": 5}, ("class", 5, 0, 0)),
    "LightningDiT": ({"condition_size": 24, "patch_size": 2}, ("snippet", 0, 24, 0)),
    "MMDiT": ({}, ("text", 0, 0, 0)),
    "MMDiT-text": ({"num_classes": 2, "captions": ("a", "b"), "in_channels": 1}, ("text", 2, 0, 0)),
}


def make(name: str) -> DiffusionModel:
    architecture = MODELS.get(name)
    network = architecture.build(from_dict(architecture.defaults, {**SMALL, **DECLARED[name][0]}))
    assert isinstance(network, DiffusionModel)
    return network


@pytest.mark.parametrize("name", DECLARED)
def test_a_model_declares_its_abilities_in_either_convention(name: str) -> None:
    network = make(name)
    for model in (network, as_project_convention(network), ReversedTime(network)):
        declared = (model.conditioning, model.num_classes, model.condition_width, model.class_token_width)
        assert declared == DECLARED[name][1]
        assert model.has_class_token == (name == "SiT-REG")
        assert model.image_shape == network.image_shape
        assert (model.stub, model.times, model.one_grid, model.width(1)) == ("", 1, True, network.width(1))


def test_every_diffusion_model_says_what_it_is_conditioned_on() -> None:
    told = {name: arch.build.conditioning for name, arch in MODELS.items() if issubclass(arch.build, DiffusionModel)}  # type: ignore[arg-type, attr-defined]
    assert {name for name, conditioning in told.items() if conditioning == "text"} == {"MMDiT", "MMDiT-text", "SD3"}
    assert {name for name, conditioning in told.items() if conditioning == "snippet"} == {"LightningDiT"}


def test_tokens_before_the_patches_need_not_be_class_tokens() -> None:
    class Registers(SiT):
        prefix_tokens = 4

    model = Registers(SiTConfig(**SMALL, in_channels=1, num_classes=5))
    samples = Samples(images=torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    common: dict[str, Any] = {"t": 0.5, "interpolant": Interpolant(), "seed": 0, "stream": "x"}
    given = noised(model, samples, [0, 1], reads=ModelInput(), **common)
    assert sorted(given) == ["t", "x", "y"]
    assert "class_token" not in model_record(model)


def test_nothing_guesses_an_ability() -> None:
    """Outside the trainer, whose methods take configs of any kind: no hasattr or getattr of a model by a fixed name."""
    guesses = []
    for module, path in MODULES.items():
        if module.startswith("train."):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("hasattr", "getattr") and isinstance(node.args[1], ast.Constant):
                owner = ast.unparse(node.args[0]).rpartition(".")[2]
                if owner in ("model", "config", "architecture") and "vae" not in ast.unparse(node.args[0]):
                    guesses.append(f"{module}: {ast.unparse(node)}")
    assert guesses == []
