"""Files of weights from strangers: one reader, nothing executed, nothing believed, one line for each fault."""

from __future__ import annotations

import contextlib
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from repa_eval.errors import Failure, UserError, parsing
from repa_eval.runtime.files import read_json
from repa_eval.weight_files import pickled
from repa_eval.weight_files.pickled import EmbeddingState
from repa_eval.weight_files.reading import read_file, read_safetensors

CODE = "which is never allowed"


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch executed",))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(content: Any, name: str = "x.pt", **how: Any) -> Path:
    torch.save(content, name, **how)
    return Path(name)


def refused(file: str | Path, text: str, kind: type[Exception] = Failure) -> None:
    with pytest.raises(kind) as caught:
        read_file(Path(file))
    message = str(caught.value)
    assert message.startswith(str(file))
    assert text in message
    assert "\n" not in message
    assert "weights_only" not in message  # torch's advice
    assert not Path("executed").exists()


# --- what is read


def test_plain_values_and_tensors_come_back() -> None:
    tensor = torch.arange(6.0).reshape(2, 3).T
    content = {"a": [1, 2.5, None, "t", b"b"], "b": (True, {"c": tensor}), 3: torch.Size([1, 2]), "d": torch.float16}
    read = read_file(saved(content))
    assert torch.equal(read["b"][1].pop("c"), tensor)
    assert read == {"a": [1, 2.5, None, "t", b"b"], "b": (True, {}), 3: (1, 2), "d": torch.float16}


@pytest.mark.parametrize("legacy", [False, True])
def test_both_forms_of_torch_are_read(legacy: bool) -> None:
    weight = torch.nn.Linear(3, 2).weight
    read = read_file(saved({"w": weight}, _use_new_zipfile_serialization=not legacy))
    assert torch.equal(read["w"], weight)
    assert not read["w"].requires_grad


def test_shared_tensors_are_shared_and_copies_outlive_the_file() -> None:
    one = torch.ones(4)
    file = saved({"a": one, "b": one})
    read, copied = read_file(file), read_file(file, mapped=False)
    assert read["a"].data_ptr() == read["b"].data_ptr()
    with open(file, "r+b") as handle:
        handle.write(bytes(file.stat().st_size))
    assert torch.equal(copied["a"], one)


def test_safetensors_are_recognised_by_content() -> None:
    save_file({"w": torch.ones(3)}, "w.safetensors", metadata={"note": "x"})
    Path("w.safetensors").rename("w.pt")
    assert torch.equal(read_file(Path("w.pt"))["w"], torch.ones(3))
    assert read_safetensors(Path("w.pt"))[1] == {"note": "x"}


def test_an_embedding_and_arrays_are_read_without_their_classes() -> None:
    layer = torch.nn.Embedding(5, 3)
    read = read_file(saved(layer))
    assert isinstance(read, EmbeddingState)
    assert torch.equal(read.weight, layer.weight)
    arrays = {"mu": np.arange(3.0), "f": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)), "n": np.uint8([7])}
    read = read_file(saved(arrays))
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


# --- what is refused


def test_paths_that_are_no_files() -> None:
    refused("none.pt", "does not exist", UserError)
    Path("folder").mkdir()
    refused("folder", "is a folder; name a file of weights", UserError)
    os.mkfifo("pipe.pt")
    refused("pipe.pt", "is not a regular file", UserError)


def test_an_unreadable_file_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    saved({})
    monkeypatch.setattr("builtins.open", denied)
    refused("x.pt", "cannot be read: Permission denied")


CONTENTS: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is not a checkpoint: it is empty (0 bytes)"),
    "zeros": (lambda: bytes(1000), f"is not a checkpoint (or needs code execution to load, {CODE})"),
    "text": (lambda: b"root:x:0:0:root:/root:/bin/bash\n" * 9, "is not a checkpoint (or needs code execution"),
    "group": (lambda: b"root:x:0:\ndaemon:x:1:\nbin:x:2:\n", "is not a checkpoint (or needs code execution"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "is not a checkpoint (or needs code execution"),
    "no end": (lambda: saved({"w": torch.ones(99)}).read_bytes()[:-100], "its end is missing; download or save it"),
    "pickle": (lambda: pickle.dumps(Evil()), "needs code execution to load"),
    "raw": (lambda: pickle.dumps({"a": 1}, protocol=4), "is not a checkpoint (or needs code execution"),
    "safetensors": (lambda: struct.pack("<Q", 30) + b"{" + bytes(50), "is not a readable safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_content_that_is_no_checkpoint(name: str) -> None:
    make, text = CONTENTS[name]
    content = make()
    Path("notes.pt").write_bytes(content)
    refused("notes.pt", text)


def test_code_is_named_and_never_run() -> None:
    refused(saved({"w": Evil()}), f"needs code execution to load (it asks for posix.system), {CODE}; save its state")


def test_a_program_is_named_with_the_way_out() -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save("x.pt")
    refused("x.pt", "is a TorchScript program")


@pytest.mark.parametrize("step", range(0, 1000, 37))
def test_any_flipped_bit_is_noticed(step: int) -> None:
    data = bytearray(saved({"w": torch.arange(64.0)}).read_bytes())
    place = step * len(data) // 1000
    data[place] ^= 0x10
    Path("y.pt").write_bytes(data)
    with contextlib.suppress(Failure):  # if not: a byte of padding, or of a field that nobody reads
        assert torch.equal(read_file(Path("y.pt"))["w"], torch.arange(64.0))


def test_a_flipped_bit_of_a_tensor_is_named() -> None:
    data = saved({"w": torch.arange(64.0)}).read_bytes()
    place = data.index(torch.arange(64.0).numpy().tobytes())
    Path("x.pt").write_bytes(data[: place + 9] + bytes([data[place + 9] ^ 0x10]) + data[place + 10 :])
    refused("x.pt", "the checksum of x/data/0 is wrong; download or save it again")


def test_a_checksum_that_was_never_written_is_not_asked_for() -> None:
    from torch.serialization import set_crc32_options

    try:
        set_crc32_options(False)
        file = saved({"w": torch.ones(3)})
    finally:
        set_crc32_options(True)
    assert torch.equal(read_file(file)["w"], torch.ones(3))


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "sparse": (lambda: {"w": torch.eye(3).to_sparse()}, "it holds a sparse tensor; save dense ones"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "a quantized tensor"),
    "meta": (lambda: {"w": torch.ones(3, device="meta")}, "it holds a meta tensor"),
    "wide": (lambda: torch.zeros(1).as_strided((100, 64, 250000), (0, 0, 0)), "declare more numbers than the file"),
    "many": (lambda: [torch.ones(1 << 10).expand(1 << 13, -1)] * 1 + [torch.ones(1).expand(1 << 25)], "declare more"),
    "objects": (lambda: np.array([{}, None]), "is not a readable checkpoint"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_tensors_that_nobody_can_compute_with(name: str) -> None:
    make, text = KINDS[name]
    refused(saved(make()), text)


def test_containers_that_hold_themselves_or_grow() -> None:
    loop: list[Any] = []
    loop.append(loop)
    refused(saved(loop), "a container holds itself")
    deep: Any = 0
    for _ in range(200):
        deep = [deep]
    refused(saved(deep), "nested more than 64 deep")
    laughs: Any = ["ha"] * 9
    for _ in range(40):
        laughs = [laughs] * 9  # 9^41 if every reference were followed
    assert len(read_file(saved(laughs))) == 9


def archive(program: bytes, **members: bytes) -> Path:
    """Write a file of torch's layout around a pickle of our own."""
    with zipfile.ZipFile("x.pt", "w") as opened:
        opened.writestr("archive/data.pkl", program)
        opened.writestr("archive/byteorder", "little")
        opened.writestr("archive/version", "3\n")
        for name, content in members.items():
            opened.writestr(f"archive/data/{name}", content)
    return Path("x.pt")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def tensor(*, stored: int, size: int, stride: int = 1, offset: int = 0, key: str = "0") -> bytes:
    """Return the pickle of a float tensor (size,) over a storage that says to hold `stored` numbers."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number(stored) + b"tQ"
    shape = b"(" + number(size) + b"t(" + number(stride) + b"t"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + storage + number(offset) + shape + b"\x89ccollections\nOrderedDict\n)RtR."
    )  # fmt: skip


def test_a_crafted_tensor_reads_as_intended_where_it_is_honest() -> None:
    read = read_file(archive(tensor(stored=4, size=4), **{"0": np.arange(4, dtype="<f4").tobytes()}))
    assert read.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "lie",
    [
        {"stored": 4, "size": 5},
        {"stored": 4, "size": 4, "stride": 2},
        {"stored": 4, "size": 4, "offset": 1},
        {"stored": 4, "size": 4, "offset": -1},
        {"stored": 4, "size": -4},
        {"stored": 4, "size": 4, "stride": -1},
        {"stored": 4, "size": 1 << 62},
        {"stored": -4, "size": 4},
        {"stored": 1 << 30, "size": 1 << 30},
        {"stored": 4, "size": 4, "key": "1"},
    ],
)
def test_a_tensor_cannot_reach_beyond_its_file(lie: dict[str, Any]) -> None:
    refused(archive(tensor(**lie), **{"0": np.arange(4, dtype="<f4").tobytes()}), "is not a")


def test_a_storage_that_claims_more_stays_within_the_file() -> None:
    """torch believes the length of a storage; in a map it ends with the file, so that no foreign memory is read."""
    file = archive(tensor(stored=1 << 12, size=1 << 12), **{"0": bytes(16)})
    refused(file, "is not a")


def test_a_length_that_overflows_reads_no_more_than_the_file() -> None:
    read = read_file(archive(tensor(stored=1 << 61, size=4), **{"0": np.arange(4, dtype="<f4").tobytes()}))
    assert read.tolist() == [0, 1, 2, 3]


def test_attributes_of_a_dict_do_not_replace_its_methods() -> None:
    program = b"\x80\x02ccollections\nOrderedDict\n)R(" + text("w") + b"K\x01u}" + text("items") + b"K\x05sb."
    read = read_file(archive(program))
    assert (type(read), read) == (dict, {"w": 1})


CALLS = {
    "embedding": b"\x80\x02ctorch.nn.modules.sparse\nEmbedding\n" + number(20_000_000) + number(64) + b"\x86R.",
    "object array": b"\x80\x02cnumpy\nndarray\n(K\x04tcnumpy\ndtype\n" + text("O8") + b"\x89\x89\x87R"
    b"c_codecs\nencode\n" + text("A" * 32) + text("latin1") + b"\x86RtR.",
    "large array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(10**9) + b"\x85"
    + text("O") + b"\x87R.",
    "flags of a dtype": b"\x80\x02cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(K\x03" + text("<")
    + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb.",
    "broken embedding": b"\x80\x02ctorch.nn.modules.sparse\nEmbedding\n)\x81}" + text("a") + b"K\x01sb.",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_classes_take_a_state_and_are_never_called(name: str) -> None:
    refused(archive(CALLS[name]), "is not a")


def test_the_bound_on_declared_numbers_is_what_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(torch.zeros(1).expand(1 << 12))
    assert read_file(file).shape == (1 << 12,)
    monkeypatch.setattr(pickled, "SPARE", 0)
    monkeypatch.setattr(pickled, "VIEWS", 1)
    refused(file, "declare more numbers than the file holds")


# --- one net for every parser


def test_whatever_a_parser_raises_is_one_line() -> None:
    for error in (IndexError("a\nb"), struct.error("x"), RecursionError(), MemoryError(), zipfile.BadZipFile("y")):
        with pytest.raises(Failure, match=r"^f is damaged: ") as caught, parsing("f is damaged"):
            raise error
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^mine$"), parsing("f is damaged"):
        raise UserError("mine")
    with pytest.raises(KeyboardInterrupt), parsing("f is damaged"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("content", [b"{", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b""])
def test_json_that_is_damaged(content: bytes) -> None:
    Path("run.json").write_bytes(content)
    with pytest.raises(Failure, match=r"^run\.json is damaged: "):
        read_json("run.json")
