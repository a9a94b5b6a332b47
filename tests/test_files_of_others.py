"""Checkpoints as people have them: wrapped, averaged, beside other networks, in several files, under any name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from helpers import wake
from repa_eval import checkpoints
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.sit import SiT, SiTConfig

SMALL = {"depth": 2, "hidden_size": 16, "num_heads": 4, "patch_size": 2, "in_channels": 1, "input_size": 8}
HEADS = {"num_heads": 4}
State = dict[str, Tensor]


def sit(seed: int = 0, **changes: Any) -> SiT:
    network = SiT(SiTConfig(**{**SMALL, "num_classes": 5, "projector_dim": 8, "z_dims": (16,), **changes}))
    wake(network, seed=seed)
    return network.eval()


@pytest.fixture(scope="module")
def trained() -> SiT:
    return sit(0)


@pytest.fixture(scope="module")
def averaged() -> SiT:
    return sit(1)


def under(prefix: str, network: nn.Module) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def opened(path: Path, content: Any, **request: Any) -> Any:
    torch.save(content, path)
    return checkpoints.load(path, overrides=HEADS, **request)


def same(checkpoint: Any, network: nn.Module) -> bool:
    found, expected = checkpoint.network.state_dict(), network.state_dict()
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


# --- names


def compiled_inside(network: nn.Module) -> State:
    return {name.replace(".attn.", "._orig_mod.attn."): tensor for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model.", "net.", "transformer.", "a.b.c.",
                                    "model.module.", "_fsdp_wrapped_module."])  # fmt: skip
def test_whatever_stands_before_the_names(tmp_path: Path, trained: SiT, prefix: str) -> None:
    assert same(opened(tmp_path / "a.pt", under(prefix, trained)), trained)


def test_wrappers_inside_the_names(tmp_path: Path, trained: SiT) -> None:
    assert same(opened(tmp_path / "a.pt", compiled_inside(trained)), trained)
    content = {"model": compiled_inside(trained), "ema": compiled_inside(trained), "steps": 5}
    assert same(opened(tmp_path / "a.pt", content), trained)


def test_an_averaged_model_of_torch(tmp_path: Path, trained: SiT) -> None:
    wrapped = AveragedModel(trained)
    wrapped.update_parameters(trained)
    assert "n_averaged" in wrapped.state_dict()
    checkpoint = opened(tmp_path / "a.pt", wrapped.state_dict())
    assert same(checkpoint, trained)
    assert checkpoint.weights == "ema"


# --- several sets of weights, and other networks


def test_a_file_of_lightning(tmp_path: Path, trained: SiT, averaged: SiT) -> None:
    content = {
        "state_dict": {**under("model.", trained), "loss.scale": torch.ones(1)},
        "epoch": 3,
        "global_step": 700,
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {"lr": 1e-4, "num_heads": 4},
    }
    torch.save(content, tmp_path / "last.ckpt")
    checkpoint = checkpoints.load(tmp_path / "last.ckpt")  # num_heads is one of its hyperparameters
    assert same(checkpoint, trained)
    assert (checkpoint.step, checkpoint.weights, checkpoint.layout) == (700, "online", "state-dict")
    content["state_dict"] |= under("ema_model.", averaged)
    torch.save(content, tmp_path / "last.ckpt")
    for weights, network in {"ema": averaged, "online": trained}.items():
        checkpoint = checkpoints.load(tmp_path / "last.ckpt", weights=weights)
        assert same(checkpoint, network)
        assert checkpoint.weights == weights
        assert (
            checkpoint.info()["other_networks"]
            == {"ema": "state_dict.model", "online": "state_dict.ema_model"}[weights]
        )


@pytest.mark.parametrize(("ema", "online"), [("ema_state_dict", "model_state_dict"), ("model_ema", "model"),
                                             ("net_ema", "net"), ("ema_model", "online_model")])  # fmt: skip
def test_two_sets_under_other_names(tmp_path: Path, trained: SiT, averaged: SiT, ema: str, online: str) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {ema: averaged.state_dict(), online: trained.state_dict(), "optimizer": optimizer, "step": 9}
    for weights, network in {"ema": averaged, "online": trained}.items():
        checkpoint = opened(tmp_path / "a.pt", content, weights=weights)
        assert same(checkpoint, network)
        assert (checkpoint.step, checkpoint.weights) == (9, weights)


def test_deepspeed_keeps_a_network_as_module(tmp_path: Path, trained: SiT) -> None:
    content = {"module": trained.state_dict(), "optimizer": {"fp32": {"a": torch.zeros(3)}}, "global_steps": 4}
    assert same(opened(tmp_path / "a.pt", content), trained)


def test_a_file_of_averages_only_holds_no_others(tmp_path: Path, averaged: SiT) -> None:
    with pytest.raises(UserError, match=r"holds averaged weights only \(ema_model\); leave --weights out"):
        opened(tmp_path / "a.pt", {"ema_model": averaged.state_dict(), "epoch": 1}, weights="online")


def test_several_networks_that_could_be_meant_are_named(tmp_path: Path, trained: SiT, averaged: SiT) -> None:
    with pytest.raises(UserError, match=r"holds several networks \(student, other\); save one of them"):
        opened(tmp_path / "a.pt", {"student": trained.state_dict(), "other": averaged.state_dict()})


def parameters_of(network: SiT, *, frozen: bool) -> list[Tensor]:
    return [tensor.detach() for tensor in network.parameters() if frozen or tensor.requires_grad]


@pytest.mark.parametrize("frozen", [True, False])  # diffusers' EMAModel has all parameters, torch_ema the trained ones
@pytest.mark.parametrize("around", [lambda tensors: {"shadow_params": tensors, "decay": 0.999}, list])
def test_averages_without_names(tmp_path: Path, trained: SiT, averaged: SiT, frozen: bool, around: Any) -> None:
    content = {"model": under("module.", trained), "ema": around(parameters_of(averaged, frozen=frozen)), "steps": 2}
    expected = copy.deepcopy(averaged)
    if not frozen:
        expected.pos_embed.data.copy_(trained.pos_embed)
    assert same(opened(tmp_path / "a.pt", content), expected)
    assert same(opened(tmp_path / "a.pt", content, weights="online"), trained)


def test_averages_that_cannot_be_named_are_one_line(tmp_path: Path, trained: SiT) -> None:
    tensors = parameters_of(trained, frozen=True)
    for given in (tensors[3:], tensors[::-1], [torch.zeros(2, 3)]):
        with pytest.raises(Failure, match=rf"list of {len(given)} tensors without names.*use --weights online"):
            opened(tmp_path / "a.pt", {"model": trained.state_dict(), "ema": {"shadow_params": given}})
    with pytest.raises(Failure, match="without names"):
        opened(tmp_path / "a.pt", {"ema": tensors})
    for empty in (None, {}):
        with pytest.raises(Failure, match="its ema weights are empty; use --weights online"):
            opened(tmp_path / "a.pt", {"model": trained.state_dict(), "ema": empty})


@pytest.mark.parametrize(
    ("steps", "step"),
    [(400, 400), (torch.tensor(400), 400), (400.0, 400), ("400k", None), (-1, None), (True, None), ([1], None),
     (float("nan"), None), (float("inf"), None), (None, None)],
)  # fmt: skip
def test_steps(tmp_path: Path, trained: SiT, steps: Any, step: int | None, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = opened(tmp_path / "a.pt", {"ema": trained.state_dict(), "steps": steps})
    assert checkpoint.step == step
    assert ("no number of steps" in caplog.text) == (step is None and steps is not None)


# --- kinds of numbers

FLOATS = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize("kind", FLOATS)
@pytest.mark.parametrize("mixed", [True, False])
def test_every_kind_of_float_computes(tmp_path: Path, trained: SiT, kind: torch.dtype, mixed: bool) -> None:
    state = {name: t if mixed and "norm" not in name and "bias" in name else t.to(kind)
             for name, t in trained.state_dict().items()}  # fmt: skip
    model = opened(tmp_path / "a.pt", state).model
    (found,) = {tensor.dtype for tensor in model.state_dict().values()}
    assert found == (torch.float32 if mixed or kind.itemsize == 1 else kind)
    x, t, y = torch.zeros(1, 1, 8, 8, dtype=found), torch.tensor([0.5]), torch.tensor([1])
    expected = sit(0)
    expected.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    answer = expected.to(found)(x, t, y)[0]
    assert torch.equal(model(x, t, y)[0], answer)


def test_whole_numbers_are_refused_in_one_line(tmp_path: Path, trained: SiT) -> None:
    for state in (
        {name: tensor.to(torch.int8) for name, tensor in trained.state_dict().items()},
        {name: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8) for name, tensor in trained.state_dict().items()},
    ):
        with pytest.raises(Failure, match=r"expected floats|quantized") as caught:
            opened(tmp_path / "a.pt", state)
        assert "\n" not in str(caught.value)


# --- what a file is, whatever it is called


@pytest.mark.parametrize("name", ["a.pt", "a.ckpt", "a.SAFETENSORS", "a", "a.bin", "a.safetensors"])
def test_the_name_of_a_file_is_never_used(tmp_path: Path, trained: SiT, name: str) -> None:
    save_file(trained.state_dict(), tmp_path / name)
    assert same(checkpoints.load(tmp_path / name, overrides=HEADS), trained)
    for zipped in (True, False):
        torch.save(trained.state_dict(), tmp_path / name, _use_new_zipfile_serialization=zipped)
        assert same(checkpoints.load(tmp_path / name, overrides=HEADS), trained)


def test_weights_of_a_teacher_under_any_name(tmp_path: Path) -> None:
    state = load_teacher("digits-vit").network.state_dict()
    save_file(state, tmp_path / "a.pt")
    torch.save(state, tmp_path / "a.safetensors")
    digests = {load_teacher("digits-vit", tmp_path / name).digest for name in ("a.pt", "a.safetensors")}
    assert digests == {load_teacher("digits-vit").digest}


# --- folders


def sharded(folder: Path, state: State, *, index: dict[str, Any] | None = None) -> Path:
    folder.mkdir()
    names, half = list(state), len(state) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, folder / file)
    record = {"metadata": {}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index or record))
    return folder


def test_weights_in_several_files(tmp_path: Path, trained: SiT) -> None:
    folder = sharded(tmp_path / "f", trained.state_dict())
    for path in (folder, folder / "model.safetensors.index.json"):
        assert same(checkpoints.load(path, overrides=HEADS), trained)
    with pytest.raises(UserError, match="is one of several files of the same weights: name the folder"):
        checkpoints.load(folder / "model-00001-of-00002.safetensors", overrides=HEADS)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Failure, match=r"names model-00002-of-00002\.safetensors, which is not there"):
        checkpoints.load(folder, overrides=HEADS)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        ([1], "does not say which file"),
        ({"weight_map": {}}, "does not say which file"),
        ({"weight_map": {"a": 3}}, "does not say which file"),
        ({"weight_map": {"a": "../secret.pt"}}, "which is no file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "which is no file beside it"),
        ({"weight_map": {"a": "a\0b"}}, "which is no file beside it"),
        ({"weight_map": {"a": "model-00001-of-00002.safetensors"}}, "a is not in the file that it names"),
        ({"weight_map": {str(n): f"{n}" for n in range(10_001)}}, "names 10001 files"),
    ],
)
def test_an_index_that_cannot_be_followed(tmp_path: Path, trained: SiT, index: Any, text: str) -> None:
    with pytest.raises(Failure, match=text) as caught:
        checkpoints.load(sharded(tmp_path / "f", trained.state_dict(), index=index), overrides=HEADS)
    assert "\n" not in str(caught.value)


def test_a_folder_that_holds_one_file_of_weights(tmp_path: Path, trained: SiT) -> None:
    (tmp_path / "a").mkdir()
    save_file(trained.state_dict(), tmp_path / "a" / "model.safetensors")  # Accelerator.save_state writes it
    assert same(checkpoints.load(tmp_path / "a", overrides=HEADS), trained)


def test_a_folder_of_distributed_checkpoints_says_how_to_convert_it(tmp_path: Path, trained: SiT) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp.save({"app": {"model": trained.state_dict()}}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    with pytest.raises(UserError, match=r"format_utils dcp_to_torch \S+/dcp weights\.pt"):
        checkpoints.load(tmp_path / "dcp")
    dcp_to_torch_save(tmp_path / "dcp", tmp_path / "weights.pt")
    assert same(checkpoints.load(tmp_path / "weights.pt", overrides=HEADS), trained)


# --- what does not fit


@pytest.mark.parametrize(
    "around", [lambda s: s, lambda s: {"ema": s, "model": s}, lambda s: {"state_dict": s, "epoch": 1}]
)
@pytest.mark.parametrize("changes", [{}, {"z_dims": ()}, {"qk_norm": True}])
def test_one_name_more_or_less_names_the_nearest_network(tmp_path: Path, around: Any, changes: dict[str, Any]) -> None:
    state = sit(**changes).state_dict()
    without = {name: tensor for name, tensor in state.items() if not name.startswith("t_embedder.mlp.2")}
    for given, text in {
        "more": (
            {**state, "surprise.weight": torch.zeros(3)},
            r"nearest is SiT \(.*\), but surprise\.weight is unknown$",
        ),
        "less": (without, r"nearest is SiT \(.*\), but t_embedder\.mlp\.2\.bias is missing; t_embedder\S+ is missing$"),
    }.values():
        with pytest.raises(UserError, match=text):
            opened(tmp_path / "a.pt", around(given))
