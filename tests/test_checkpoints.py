"""Opening checkpoints: ours, and everything that is none; nothing in a file is ever executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import run, tiny
from repa_eval import checkpoints
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
    "steps": lambda saved: {"ema": saved["ema"], "model": saved["ema"], "steps": "x"},
    "whole numbers": lambda saved: {name: x.to(torch.int8) for name, x in saved["ema"].items()},
    "no numbers": lambda saved: without_numbers(saved["ema"]),
    "tokens of text": lambda saved: {"tokens": "x"},
    "half a record of tokens": lambda saved: {"tokens": torch.zeros(2, 3, 4), "format": "soft tokens"},
    "a name": lambda saved: saved["ema"] | {"blocks.50000000.attn.qkv.weight": torch.ones(3)},
    "depth": lambda saved: saved | {"recipe": deep(saved["recipe"], 10**7)},
    "negative depth": lambda saved: saved | {"recipe": deep(saved["recipe"], -1)},
}


def deep(recipe: dict[str, Any], depth: int) -> dict[str, Any]:
    return recipe | {"architecture": recipe["architecture"] | {"depth": depth}}


@pytest.mark.parametrize("name", DAMAGES)
def test_values_that_no_checkpoint_has_are_one_line(ours: Path, tmp_path: Path, name: str) -> None:
    torch.save(DAMAGES[name](torch.load(ours, weights_only=True)), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"a\.pt") as caught:
        checkpoints.load(tmp_path / "a.pt").info()
    assert "\n" not in str(caught.value)


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
