"""Files of teachers: every published form, what is refused and how, downloads, and no network."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from teacher_examples import EXAMPLES, WIDTH, State, image, moco, saved, shrink, teacher_of, vit
from torch import nn

from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.teachers.shared.timm_teacher import VisionTeacher
from repa_eval.weight_files import download
from repa_eval.weight_files.state_dicts import read_state


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Empty caches, and servers that refuse every connection; the hub's cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "hub"


# --- files


@pytest.mark.usefixtures("small")
def test_timms_own_file_is_the_same_teacher(tmp_path: Path) -> None:
    for name in ("dinov2-vit-b", "dinov2reg-vit-l", "mocov3-vit-b"):
        published = teacher_of(name, tmp_path)
        own = {key: tensor.contiguous() for key, tensor in published.network.state_dict().items()}
        assert published.table is not None
        own["pos_embed"] = published.table.clone()
        save_file(own, tmp_path / "model.safetensors")
        again = load_teacher(name, tmp_path / "model.safetensors")
        assert again.digest == published.digest
        assert torch.equal(again(image()).patches, published(image()).patches)


def test_names_that_moco_got_wrong(tmp_path: Path) -> None:
    wrong = ["blocks.13.norm13.bias", "blocks.13.mlp.fc13.bias", "blocks.14.norm14.bias", "blocks.14.mlp.fc14.bias"]
    right = ["blocks.13.norm1.bias", "blocks.13.mlp.fc1.bias", "blocks.14.norm2.bias", "blocks.14.mlp.fc2.bias"]
    state = {name: torch.full((1,), float(i)) for i, name in enumerate([*wrong, "blocks.1.norm1.bias"])}
    found = read_state(saved(moco(state), tmp_path / "moco.pth"), owner="teacher mocov3-vit-l")
    assert [float(found[name]) for name in right] == [0, 1, 2, 3]
    assert set(found) == {*right, "blocks.1.norm1.bias", "head.0.weight"}


@pytest.mark.usefixtures("small")
def test_files_older_than_the_zip_format_and_full_files_of_dino(tmp_path: Path) -> None:
    state = EXAMPLES["dinov1-vit-b"].state()
    wanted = teacher_of("dinov1-vit-b", tmp_path).digest
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_teacher("dinov1-vit-b", tmp_path / "old.pth").digest == wanted
    backbone = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"head.mlp.0.bias": torch.ones(2)}
    student = {name: torch.zeros_like(tensor) for name, tensor in backbone.items()}
    full = saved({"student": student, "teacher": backbone, "epoch": 300}, tmp_path / "full.pth")
    assert load_teacher("dinov1-vit-b", full).digest == wanted


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (Path("executed"), "")


def without(state: State, *names: str) -> State:
    return {key: tensor for key, tensor in state.items() if key not in names}


WRONG_FILES = {
    "no state dict": ({"epoch": 3, "arch": "vit"}, "holds no weights by name, but epoch, arch"),
    "a list": ([torch.ones(2)], "holds a list, not weights by name"),
    "code": ({"state_dict": Evil()}, r"needs code execution to load \(it asks for .*\), which is never allowed"),
    "missing": (without(vit(patch=16, rows=50), "norm.bias", "norm.weight"), "missing: norm.weight, norm.bias"),
    "many": ({"norm.bias": torch.ones(WIDTH)}, r"missing: cls_token, pos_embed, patch_embed.proj.weight and \d+ more"),
    "surplus": (vit(patch=16, rows=50) | {"adapter.bias": torch.ones(1)}, "not expected: adapter.bias"),
    "shape": (vit(patch=16, rows=50, width=48), "wrong shape: cls_token of 1x1x48 instead of 1x1x24, .* more"),
    "table": (vit(patch=16, rows=60), "wrong.pth has other shapes than vit_base_patch16_224"),
    "patch": (vit(patch=14, rows=50), r"has patches of 16x16, those of .* are 14x14"),
}  # fmt: skip


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("content", "said"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_wrong_content_is_refused_in_one_line(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Failure, match=said) as caught:
        load_teacher("mocov3-vit-b", saved(content, tmp_path / "wrong.pth"))
    assert "\n" not in str(caught.value)
    assert "wrong.pth" in str(caught.value)
    assert not Path("executed").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_programs_and_garbage_are_not_opened(tmp_path: Path) -> None:
    script = tmp_path / "ViT-L-14.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(str(script))
    with pytest.raises(
        Failure, match=r"is a TorchScript program, and nothing in a file is executed; .*save its tensors"
    ):
        load_teacher("clip-vit-L", script)
    for file, content in {
        "a.pth": b"no weights",
        "b.safetensors": b"none",
        "c.pth": b"",
        "d.pth": b"PK\x03\x04",
    }.items():
        (tmp_path / file).write_bytes(content)
        with pytest.raises(Failure) as caught:
            load_teacher("mae-vit-l", tmp_path / file)
        assert "\n" not in str(caught.value)
    (tmp_path / "e.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(Failure):
        load_teacher("mae-vit-l", tmp_path / "e.pth")
    with pytest.raises(UserError, match="do not exist"):
        load_teacher("mae-vit-l", tmp_path / "none.pth")


# --- no file given

WANTED = {
    "dinov2-vit-b": "dinov2_vitb14_pretrain.pth",
    "dinov2reg-vit-g": "dinov2_vitg14_reg4_pretrain.pth",
    "dinov1-vit-s": "dino_deitsmall16_pretrain.pth",
    "mocov3-vit-l": "vit-l-300ep.pth.tar",
    "mae-vit-l": "mae_pretrain_vit_large.pth",
    "clip-vit-L": "ViT-L-14.pt",
    "jepa-vit-h": "IN1K-vit.h.14-300e.pth.tar",
    "dinov3-vit-b16": "model.safetensors",
    "siglip2-vit-so400m": "model.safetensors",
    "webssl-vit-dino1b_full2b_224": "webssl_dino1b_full2b_224.pth",
    "timm:test_vit.r160_in1k": "model.safetensors",
}


def fails_at_once(name: str) -> None:
    began, said = (
        time.perf_counter(),
        f"{name}: its weights could not be downloaded .*--teacher-weights {WANTED[name]}$",
    )
    with pytest.raises(Failure, match=said) as caught:
        load_teacher(name)
    assert "\n" not in str(caught.value)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("name", WANTED)
@pytest.mark.usefixtures("no_network")
def test_offline_the_wanted_file_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(download.urllib.request, "urlopen", lambda *given, **more: pytest.fail("asked a server"))
    fails_at_once(name)


@pytest.mark.parametrize("name", ["dinov2-vit-b", "timm:test_vit.r160_in1k"])
@pytest.mark.usefixtures("no_network")
def test_a_server_that_does_not_answer_is_asked_once(name: str) -> None:
    fails_at_once(name)


def test_what_the_hubs_cache_holds_needs_no_network(no_network: Path) -> None:
    network = timm.create_model("test_vit", num_classes=0)
    folder = no_network / "models--timm--test_vit.r160_in1k"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    save_file(network.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    teacher = load_teacher("timm:test_vit.r160_in1k")
    assert isinstance(teacher, VisionTeacher)
    assert torch.equal(teacher.network.pos_embed, network.pos_embed)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server that has the file wanted.pth, and like some answers no HEAD."""
    (tmp_path / "public").mkdir()
    saved({"a": torch.ones(1)}, tmp_path / "public" / "wanted.pth")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given, directory=str(tmp_path / "public"))

        def do_HEAD(self) -> None:
            self.send_error(403)

        def log_message(self, *given: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.mark.usefixtures("no_network")
def test_files_of_the_authors_are_downloaded_once(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SimpleNamespace(hf_hub_id="", hf_hub_filename=None, url=f"{server}/wanted.pth")
    path = download.fetch(source)
    assert read_state(path, owner="teacher x")["a"] == 1
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download.fetch(source) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match="404"):  # the server answers, and has no such file
        download.fetch(SimpleNamespace(hf_hub_id="", hf_hub_filename=None, url=f"{server}/other.pth"))


# --- what trainers wrap around a network


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def zeros(state: State) -> State:
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


WRAPPED: dict[str, Callable[[State], Any]] = {
    **{prefix: functools.partial(under, prefix) for prefix in (
        "teacher.", "student.", "module.", "backbone.", "_orig_mod.", "model.", "encoder.", "net.", "module.encoder.",
        "teacher.backbone.", "model._orig_mod.module.", "_orig_mod.module.model.", "my_own_name.",
    )},
    **{f"[{key}]": functools.partial(lambda key, state: {key: state, "epoch": 3}, key) for key in (
        "state_dict", "model", "teacher", "student", "module", "backbone", "net", "encoder", "model_state_dict",
    )},
    "[state_dict] model.": lambda state: {"state_dict": under("model.", state), "epoch": 3, "callbacks": {"a": {}}},
    "[model][state_dict]": lambda state: {"model": {"state_dict": state}},
    "teacher. and student.": lambda state: under("student.", zeros(state)) | under("teacher.", state),
    "[teacher] and [student]": lambda state: {"student": zeros(state), "teacher": under("module.backbone.", state)},
    "average of swa_utils": lambda state: under("module.", state) | {"n_averaged": torch.tensor(3)},
    "activation checkpoints": lambda state: {
        name.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module."): tensor for name, tensor in state.items()
    },
    "beside its head": lambda state: under("backbone.", state) | {"head.mlp.0.weight": torch.ones(2, 2)},
}  # fmt: skip
NETWORKS = ("dinov1-vit-b", "digits-vit", "timm:test_vit", "digits")  # the last one is an extractor


def own_state(name: str) -> State:
    if name == "dinov1-vit-b":
        return EXAMPLES[name].state()
    network: nn.Module = timm.create_model("test_vit", num_classes=0) if name.startswith("timm") else embedded(name)
    return {key: tensor.clone() for key, tensor in network.state_dict().items()}


def embedded(name: str) -> nn.Module:
    network: nn.Module = load_extractor(name).network if name == "digits" else load_teacher(name).network  # type: ignore[attr-defined, assignment]
    return network


def digest_of(name: str, path: Path) -> str:
    return load_extractor(name, path).digest if name == "digits" else load_teacher(name, path).digest


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_found_in_whatever_is_wrapped_around_it(name: str, tmp_path: Path) -> None:
    state = own_state(name)
    wanted = digest_of(name, saved(state, tmp_path / "plain.pt"))
    kinds = list(WRAPPED)[:: 6 if name.startswith("timm") else 1]  # timm takes its time
    for kind in kinds:
        if kind == "beside its head" and name in ("digits", "digits-vit"):
            continue
        wrap = WRAPPED[kind]
        assert digest_of(name, saved(wrap(state), tmp_path / "wrapped.pt")) == wanted, kind


@pytest.mark.usefixtures("small")
def test_two_networks_are_not_chosen_between(tmp_path: Path) -> None:
    state = EXAMPLES["dinov1-vit-b"].state()
    path = saved(under("net_a.", state) | under("net_b.", state), tmp_path / "two.pt")
    with pytest.raises(Failure, match=r"two.pt holds several networks \(net_a., net_b.\); save one of them in a file"):
        load_teacher("dinov1-vit-b", path)


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_whole_numbers_are_no_weights(kind: torch.dtype, tmp_path: Path) -> None:
    codes = {name: tensor.to(kind) for name, tensor in own_state("digits-vit").items()}
    said = rf"no floats: \S+ of {kind}, .* and \d+ more\)$"
    with pytest.raises(Failure, match=said):
        load_teacher("digits-vit", saved(codes, tmp_path / "codes.pt"))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_floats_of_any_kind_are_weights(kind: torch.dtype, tmp_path: Path) -> None:
    state = own_state("digits-vit")
    held = {name: tensor.to(kind) for name, tensor in state.items()}
    path = saved({name: tensor.float() for name, tensor in held.items()}, tmp_path / "plain.pt")
    assert (
        load_teacher("digits-vit", saved(held, tmp_path / "held.pt")).digest == load_teacher("digits-vit", path).digest
    )
