"""Opening checkpoints: ours, and everything that is none; nothing in a file is ever executed."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers import run, tiny
from repa_eval import checkpoints
from repa_eval.checkpoints import safetensors_folder
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.runtime.hashing import digest_module
from repa_eval.train import state


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tiny("repa"), tmp_path_factory.mktemp("runs") / "mine")


class Harmful:
    """A pickle of it asks to write a file when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_both_weights(ours: Path) -> None:
    saved = torch.load(ours, weights_only=True)
    for weights, part in {"ema": "ema", "online": "model"}.items():
        opened = checkpoints.load(ours, weights=weights)
        for key, tensor in opened.model.state_dict().items():
            assert torch.equal(tensor, saved[part][key]), key
    assert digest_module(checkpoints.load(ours).model) != digest_module(checkpoints.load(ours, weights="online").model)
    with pytest.raises(UserError, match="weights 'best': choose ema or online"):
        checkpoints.load(ours, weights="best")


def test_what_is_known_of_it(ours: Path, tmp_path: Path) -> None:
    opened = checkpoints.load(str(ours))
    assert (opened.layout, opened.run, opened.step, opened.model_name) == ("repa-eval", "mine", 6, "SiT-digits/2")
    assert opened.option("proj_coeff") == 1.0
    assert opened.option("nothing") is None
    (tmp_path / "renamed.bin").write_bytes(ours.read_bytes())  # recognised by its content
    moved = checkpoints.load(tmp_path / "renamed.bin")
    assert (moved.run, moved.layout) == ("renamed", "repa-eval")
    assert digest_module(moved.model) == digest_module(opened.model)


def test_paths_that_are_none(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"checkpoint 'nothing\.pt' does not exist"):
        checkpoints.load("nothing.pt")
    with pytest.raises(UserError, match=r"mine is a folder; name a file, for example .*mine/checkpoints/0000006\.pt"):
        checkpoints.load(ours.parent.parent)
    with pytest.raises(UserError, match=r"is a folder in which no file of weights lies; name a file"):
        checkpoints.load(tmp_path)


def test_files_that_are_none(ours: Path, tmp_path: Path) -> None:
    contents = {
        "text": b"model: SiT",
        "empty": b"",
        "truncated": ours.read_bytes()[:4000],
        "cut": ours.read_bytes()[:-100],
        "zeros": bytes(1000),
        "image": b"\x89PNG\r\n\x1a\n" + bytes(50),
    }
    for name, content in contents.items():
        (tmp_path / f"{name}.pt").write_bytes(content)
        with pytest.raises(Failure, match=rf"{name}\.pt is not a") as caught:
            checkpoints.load(tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 1
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(Failure, match=r"other\.pt is not a"):
        checkpoints.load(tmp_path / "other.pt")


def test_checkpoints_of_others(tmp_path: Path) -> None:
    for content, text in {
        "dict": ({"state_dict": {}, "epoch": 1}, "it holds: epoch, state_dict"),
        "tensor": (torch.zeros(2), "it holds: Tensor"),
        "numbers": ({1: 2}, "it holds: 1"),
    }.values():
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(UserError, match=rf"a\.pt is a checkpoint of no known layout \(.*\); {text}"):
            checkpoints.load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "recipe", [{}, None, 3, {"model": "SiT-digits/2"}, {"model": "SiT-digits/2", "architecture": 1}]
)
def test_a_recipe_that_says_nothing(ours: Path, tmp_path: Path, recipe: object) -> None:
    torch.save({**torch.load(ours, weights_only=True), "recipe": recipe}, tmp_path / "a.pt")
    with pytest.raises(UserError) as caught:
        checkpoints.load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_their_recipe(ours: Path, tmp_path: Path) -> None:
    saved = torch.load(ours, weights_only=True)
    saved["recipe"]["architecture"]["depth"] = 3
    torch.save(saved, tmp_path / "a.pt")
    wrong = r"a\.pt: the weights do not fit SiT: blocks\.2\.\S+ \[\d+, \d+\] is missing \(and 9 more\)"
    with pytest.raises(Failure, match=wrong):
        checkpoints.load(tmp_path / "a.pt")


def without_numbers(state: dict[str, Any]) -> dict[str, Any]:
    return {name: x.new_zeros((0,) * x.ndim) if "x_embedder" in name else x for name, x in state.items()}


DAMAGES: dict[str, Any] = {
    "step": lambda saved: saved | {"step": "abc"},
    "options": lambda saved: saved | {"recipe": saved["recipe"] | {"options": [1]}},
    "systems": lambda saved: saved | {"recipe": saved["recipe"] | {"systems": 5}},
    "keys": lambda saved: {1: saved["ema"]["pos_embed"]},
    "ema of text": lambda saved: {"ema": {"blocks.0.x": "t"}, "model": {}},
    "ema of lists": lambda saved: saved | {"ema": [1]},
    "whole numbers": lambda saved: {name: x.to(torch.int8) for name, x in saved["ema"].items()},
    "no numbers": lambda saved: without_numbers(saved["ema"]),
    "tokens of text": lambda saved: {"tokens": "x"},
    "a record that lies": lambda saved: {
        "tokens": torch.zeros(2, 3, 4),
        "format": "soft tokens",
        "num_tokens": 5,
        "width": 4,
        "space": 3,
        "base_hash": "",
        "step": 1,
        "recipe": {},
    },
    "half a record of tokens": lambda saved: {"tokens": torch.zeros(2, 3, 4), "format": "soft tokens"},
    "a name": lambda saved: saved["ema"] | {"blocks.50000000.attn.qkv.weight": torch.ones(3)},
    "depth": lambda saved: saved | {"recipe": deep(saved["recipe"], 10**7)},
    "negative depth": lambda saved: saved | {"recipe": deep(saved["recipe"], -1)},
    "negative step": lambda saved: saved | {"step": -5},
    "step of none": lambda saved: saved | {"step": None} | {"step": [None]},
    "step that is true": lambda saved: saved | {"step": True},
    "step that is no whole number": lambda saved: saved | {"step": 1.5},
    "a huge width": lambda saved: saved | {"recipe": built(saved["recipe"], hidden_size=10**9)},
    "a huge side": lambda saved: saved | {"recipe": built(saved["recipe"], input_size=10**6)},
    "a negative width": lambda saved: saved | {"recipe": built(saved["recipe"], hidden_size=-64)},
    "a negative side": lambda saved: saved | {"recipe": built(saved["recipe"], input_size=-8)},
    "no patches": lambda saved: saved | {"recipe": built(saved["recipe"], patch_size=0)},
    "huge classes": lambda saved: saved | {"recipe": built(saved["recipe"], num_classes=10**12)},
    "a huge ratio": lambda saved: saved | {"recipe": built(saved["recipe"], mlp_ratio=1e300)},
    "a ratio that is none": lambda saved: saved | {"recipe": built(saved["recipe"], mlp_ratio=float("nan"))},
    "many teachers": lambda saved: saved | {"recipe": built(saved["recipe"], z_dims=[1] * 100_000)},
    "a size of a tensor": lambda saved: saved | {"recipe": built(saved["recipe"], depth=torch.ones(2))},
    "many heads by name": lambda saved: saved["ema"] | {"projectors.90000000.0.weight": torch.ones(3)},
    "a model of a list": lambda saved: saved | {"recipe": saved["recipe"] | {"model": ["SiT-digits/2"]}},
    "keys of the recipe": lambda saved: saved | {"recipe": saved["recipe"] | {1: 2}},
    "a tensor in the recipe": lambda saved: saved | {"recipe": saved["recipe"] | {"batch_size": torch.ones(2)}},
    "method": lambda saved: saved | {"recipe": saved["recipe"] | {"method": 5}},
    "data": lambda saved: saved | {"recipe": saved["recipe"] | {"data": [1]}},
    "seed": lambda saved: saved | {"recipe": saved["recipe"] | {"seed": "x"}},
    "systems of numbers": lambda saved: saved | {"recipe": saved["recipe"] | {"systems": [1]}},
    "teachers": lambda saved: saved | {"recipe": saved["recipe"] | {"teachers": 5}},
    "a teacher": lambda saved: saved | {"recipe": saved["recipe"] | {"teachers": [{"name": 3}]}},
    "a teacher with more": lambda saved: saved | {"recipe": saved["recipe"] | {"teachers": [{"name": "a", "b": 1}]}},
    "plug-ins": lambda saved: (
        saved | {"recipe": saved["recipe"] | {"plugins": [{"name": "a", "path": 1, "sha256": 2}]}}
    ),
    "aligned layer": lambda saved: saved | {"recipe": saved["recipe"] | {"aligned_layer": "three"}},
    "evaluation": lambda saved: saved | {"recipe": saved["recipe"] | {"evaluation": "digits"}},
    "ema of numbers": lambda saved: saved | {"ema": {"a": 1}},
    "model of a list": lambda saved: {"model": [1, 2], "ema": [3]},
    "zero rows of labels": lambda saved: saved["ema"] | {"y_embedder.embedding_table.weight": torch.zeros(0, 64)},
    "scalars": lambda saved: {name: torch.tensor(1.0) for name in saved["ema"]},
    "other dimensions": lambda saved: {name: x[None] for name, x in saved["ema"].items()},
    "complex numbers": lambda saved: {name: x.to(torch.complex64) for name, x in saved["ema"].items()},
    "bits": lambda saved: {name: x > 0 for name, x in saved["ema"].items()},
    "sparse": lambda saved: {name: x.to_sparse() for name, x in saved["ema"].items()},
    "meta": lambda saved: {name: x.to("meta") for name, x in saved["ema"].items()},
    "nested": lambda saved: {"a": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])},
    "one number for all": lambda saved: torch.zeros(1).as_strided((100, 64, 250000), (0, 0, 0)),
    "arguments of sizes": lambda saved: {"ema": saved["ema"], "args": argparse.Namespace(num_classes=torch.ones(2))},
}


def deep(recipe: dict[str, Any], depth: int) -> dict[str, Any]:
    return recipe | {"architecture": recipe["architecture"] | {"depth": depth}}


def built(recipe: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    return recipe | {"architecture": recipe["architecture"] | sizes}


@pytest.mark.parametrize("name", DAMAGES)
def test_values_that_no_checkpoint_has_are_one_line(ours: Path, tmp_path: Path, name: str) -> None:
    saved = torch.load(ours, weights_only=True)
    heads = {"num_heads": saved["recipe"]["architecture"]["num_heads"]}
    damaged = DAMAGES[name](saved)
    torch.save(damaged, tmp_path / "a.pt")
    overrides = {} if isinstance(damaged, dict) and "recipe" in damaged else heads
    with pytest.raises(UserError, match=r"a\.pt") as caught:
        checkpoints.load(tmp_path / "a.pt", overrides=overrides).info()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("converted", [False, True])
def test_fields_of_a_newer_version_are_named(ours: Path, tmp_path: Path, converted: bool) -> None:
    if converted:
        path, opened = tmp_path / "c", checkpoints.load(ours)
        path.mkdir()
        save_file({name: x.contiguous() for name, x in opened.network.state_dict().items()}, path / "model.safetensors")
        record = safetensors_folder.describe(opened)
        record["architecture"]["rotary_base"] = 10_000
        (path / "config.json").write_text(json.dumps(record))
    else:
        path, saved = tmp_path / "a.pt", torch.load(ours, weights_only=True)
        saved["recipe"]["architecture"]["rotary_base"] = 10_000
        torch.save(saved, path)
    said = r"its SiT has fields that repa-eval \S+ does not know \('rotary_base'\), as a newer version writes: open it"
    with pytest.raises(Failure, match=said) as caught:
        checkpoints.load(path)
    assert "\n" not in str(caught.value)


def test_a_field_of_a_recorded_teacher_that_is_not_known_is_named(ours: Path, tmp_path: Path) -> None:
    saved = torch.load(ours, weights_only=True)
    saved["recipe"]["teachers"] = [{"name": "digits-vit", "weights": None, "layer": 3}]
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(Failure, match=r"teachers: unknown field 'layer', as a newer version may write it"):
        checkpoints.load(tmp_path / "a.pt")


def test_arguments_of_odd_types_are_left_out(ours: Path, tmp_path: Path) -> None:
    state = torch.load(ours, weights_only=True)["ema"]
    odd = argparse.Namespace(num_heads=4, enc_type=[1], encoder_depth="3", proj_coeff={}, path_type=7, seed=None)
    torch.save({"ema": state, "args": odd}, tmp_path / "a.pt")
    opened = checkpoints.load(tmp_path / "a.pt")
    assert (opened.info()["teacher"], opened.info()["encoder_depth"]) == (None, None)
    assert opened.columns()["train_seed"] is None


def test_an_override_of_a_file_that_says_what_it_is_is_refused(ours: Path) -> None:
    with pytest.raises(UserError, match=r"says itself what it is: leave --set out \(given: num_classes\)"):
        checkpoints.load(ours, overrides={"num_classes": 5})


@pytest.mark.parametrize("kind", ["zip", "pickle", "nested"])
def test_a_harmful_file_is_refused_and_not_executed(ours: Path, tmp_path: Path, kind: str) -> None:
    mark, file = tmp_path / "executed", tmp_path / "a.pt"
    if kind == "zip":
        torch.save(Harmful(mark), file)
    elif kind == "pickle":
        file.write_bytes(pickle.dumps(Harmful(mark), protocol=2))
    else:
        torch.save({**torch.load(ours, weights_only=True), "rng": Harmful(mark)}, file)
    # all that open a file that somebody else may have made
    with pytest.raises(Failure, match=r"a\.pt"):
        checkpoints.load(file)
    with pytest.raises(Failure, match=r"a\.pt"):
        state.load_checkpoint(file)
    for extractor in ("inception", "digits"):
        with pytest.raises(Failure, match=r"a\.pt"):
            load_extractor(extractor, file)
    with pytest.raises(Failure, match=r"a\.pt"):
        load_teacher("digits-vit", file)
    assert not mark.exists()


def test_the_trainer_says_what_it_cannot_continue_from(tmp_path: Path) -> None:
    torch.save({"model": {}, "ema": {}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt is not a checkpoint of repa-train: expected the keys model, ema"):
        state.load_checkpoint(tmp_path / "a.pt")


def test_the_digest_is_of_names_and_values(ours: Path) -> None:
    model = checkpoints.load(ours).model
    before = digest_module(model)
    assert digest_module(checkpoints.load(ours).model) == before
    model.blocks[0].mlp.fc1.bias.data[0] += 1e-6
    assert digest_module(model) != before
