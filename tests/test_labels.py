"""Label tables with and without a null label: what a file says of them, and what commands do with a model of each."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import digits, run, tiny, wake
from official_files import REPA, trainer_file
from repa_eval import checkpoints
from repa_eval.diffusion.guidance import Guidance
from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import align
from repa_eval.features.hidden_states import hidden_features
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.probes.grid import probe
from repa_eval.probes.splits import probe_splits
from repa_eval.sampling.generate import generate

SMALL = {"depth": 2, "hidden_size": 16, "num_heads": 4, "patch_size": 2, "in_channels": 1, "input_size": 8}
HEADS = {"num_heads": 4}


def sit(classes: int, dropout: float) -> SiT:
    """Return an awake SiT with `classes` labels, and one more for "no class" unless dropout is 0."""
    network = SiT(SiTConfig(**SMALL, num_classes=classes, class_dropout_prob=dropout, z_dims=(), projector_dim=8))
    wake(network)
    return network.eval()


def args(**given: Any) -> dict[str, Any]:
    return {**REPA, "model": "SiT-S/2", **given}


@pytest.mark.parametrize(
    ("dropout", "said", "overrides", "classes", "has_null"),
    [
        (0.1, {"num_classes": 7}, {}, 7, True),
        (0.0, {"num_classes": 7}, {}, 7, False),  # facebookresearch/DiT#18
        (0.0, {"num_classes": 7, "cfg_prob": 0.0}, {}, 7, False),
        (0.1, {"num_classes": 7, "cfg_prob": 0.0}, {}, 7, True),  # REPA's trainer: the row is there, never trained
        (0.1, {"num_classes": None}, {}, 7, True),  # nothing says it: the published tables have the row
        (0.0, {"num_classes": None}, {"num_classes": 7}, 7, False),
        (0.0, {"num_classes": None}, {"class_dropout_prob": 0}, 7, False),
        (0.0, {"num_classes": None, "class_dropout_prob": 0}, {}, 7, False),
    ],
)
def test_the_files_arguments_tell_whether_the_last_row_is_the_null_label(
    tmp_path: Path, dropout: float, said: dict[str, Any], overrides: dict[str, Any], classes: int, has_null: bool
) -> None:
    network = sit(7, dropout)
    given = {key: value for key, value in args(**said).items() if value is not None}
    file = trainer_file(tmp_path / "c.pt", network.state_dict(), **given)
    opened = checkpoints.load(file, overrides={**HEADS, **overrides})
    assert (opened.network.config.num_classes, opened.model.has_null_label) == (classes, has_null)
    assert opened.info()["num_classes"] == classes
    x, t, y = torch.randn(1, 1, 8, 8), torch.tensor([0.5]), torch.tensor([6])  # the last class is one
    assert torch.equal(opened.model(x, t, y)[0], network(x, t, y)[0])


@pytest.mark.parametrize("rows", [10, 100, 1000])
def test_as_many_rows_as_a_data_set_has_classes_are_asked_for(tmp_path: Path, rows: int) -> None:
    torch.save(sit(rows, 0.0).state_dict(), tmp_path / "c.pt")
    with pytest.raises(UserError, match=f"{rows} rows, and nothing says.*--set num_classes={rows} .*={rows - 1} "):
        checkpoints.load(tmp_path / "c.pt", overrides=HEADS)
    for classes, has_null in {rows: False, rows - 1: True}.items():
        model = checkpoints.load(tmp_path / "c.pt", overrides={**HEADS, "num_classes": classes}).model
        assert (model.num_classes, model.has_null_label) == (classes, has_null)


def test_a_number_of_classes_that_the_table_cannot_have_is_refused(tmp_path: Path) -> None:
    torch.save(sit(7, 0.1).state_dict(), tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"num_classes 5: its label table has 8 rows; say 7, or 8 \(no null label\)"):
        checkpoints.load(tmp_path / "c.pt", overrides={**HEADS, "num_classes": 5})


def test_without_a_null_label_hidden_states_are_those_of_the_images_own_labels() -> None:
    model, images = sit(10, 0.0), digits("test").head(12)
    found = hidden_features(model, images, layers=[2], t=0.5)[2]
    shared = {name: tensor for name, tensor in model.state_dict().items() if "embedding_table" not in name}
    table, told = model.y_embedder.embedding_table.weight, []
    for index in range(len(images)):  # the same network, whose null label is the image's own class
        other = sit(10, 0.1)
        own = table[[*range(10), int(images.labels[index])]]
        other.load_state_dict({**shared, "y_embedder.embedding_table.weight": own})
        told.append(hidden_features(other, images, layers=[2], t=0.5)[2][index])
    assert np.allclose(found, np.stack(told), atol=1e-6)
    rows = align(model, load_teacher("digits-vit"), images, layers=[2], timesteps=[0.5], metrics=["cka"])
    assert rows[0].record["label"] == "the image's own"
    rows = align(sit(10, 0.1), load_teacher("digits-vit"), images, layers=[2], timesteps=[0.5], metrics=["cka"])
    assert rows[0].record["label"] == "null"


def test_labels_that_the_model_lacks_are_one_line() -> None:
    with pytest.raises(UserError, match=r"an image is of class \d; this model has labels 0\.\.4, and no null label"):
        hidden_features(sit(5, 0.0), digits("test").head(50), layers=[2], t=0.5)


def test_what_needs_a_null_label_says_so() -> None:
    model = sit(10, 0.0)
    with pytest.raises(UserError, match=r"no null label.*a probe would be given the very class"):
        probe(model, probe_splits("digits"), layers=[1], timesteps=[0.5])
    with pytest.raises(UserError, match=r"no null label.*guidance by 2 has nothing to compare with"):
        list(generate(model, range(2), SamplerSettings(num_steps=2, guidance=Guidance(cfg_scale=2.0))))
    with pytest.raises(UserError, match="no null label"):
        model.null_condition(1)
    ((_, pictures, labels),) = generate(model, range(4), SamplerSettings(num_steps=2))
    assert pictures.shape == (4, 1, 8, 8)
    assert all(0 <= label < 10 for label in labels)


def test_a_model_of_no_classes_is_sampled_by_its_null_label(tmp_path: Path) -> None:
    torch.save(sit(0, 0.1).state_dict(), tmp_path / "c.pt")
    model = checkpoints.load(tmp_path / "c.pt", overrides=HEADS).diffusion_model
    ((_, pictures, labels),) = generate(model, range(3), SamplerSettings(num_steps=2))
    assert pictures.shape == (3, 1, 8, 8)
    assert labels.tolist() == [0, 0, 0]
    with pytest.raises(UserError, match="this model has no classes: guidance by 2"):
        list(generate(model, range(2), SamplerSettings(num_steps=2, guidance=Guidance(cfg_scale=2.0))))


def test_a_run_trained_without_dropping_labels_is_evaluated(tmp_path: Path) -> None:
    recipe = tiny("repa")
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, cfg_prob=0.0))
    file = run(recipe, tmp_path / "run")
    opened = checkpoints.load(file)
    assert not opened.diffusion_model.has_null_label
    rows = align(
        opened.diffusion_model, load_teacher("digits-vit"), digits("test").head(16), layers=[1], timesteps=[0.5]
    )
    assert all(row.value is not None for row in rows)
