"""Files changed at random: by what they hold (values of JSON, YAML, a pickle, a zip) and by their bytes.

Every function takes a `random.Random`, so that a seed gives the same file again.
"""

from __future__ import annotations

import copy
import io
import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import numpy as np
import torch
import yaml

DEEP, HUGE = "@@deep@@", "@@huge@@"  # stand for what Python's own writers refuse
TEXTS = (
    "", " ", "x" * 100_000, "\ud800", "\x1b[31mred\x1b[0m", "two\nlines", "nul\0", "../../etc/passwd", "/etc/passwd",
    "/dev/zero", ".", "-", "~", "module:Class", "os:system", "hf:a/b", "folder:/", "timm:local-dir:/", "1e400", "NaN",
    "None", "true", "<script>", "{{ 7 * 7 }}", "%s%n", "\u202e", "\N{PILE OF POO}" * 50, "a,b,,c", "=", "é" * 300,
)  # fmt: skip
NUMBERS = (
    0, -1, 1, 2, 3, 0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    -(2**63), 10**30, 10**300, 10_000_000, 65_537,
)  # fmt: skip


def _value(rng: Random) -> Any:
    """A value that a reader does not expect."""
    kinds: list[Callable[[], Any]] = [
        lambda: rng.choice(TEXTS),
        lambda: rng.choice(NUMBERS),
        lambda: rng.choice([None, True, False, [], {}]),
        lambda: rng.choice([DEEP, HUGE]),
        lambda: [rng.choice(NUMBERS) for _ in range(rng.choice([1, 3, 2000]))],
        lambda: {rng.choice(TEXTS): rng.choice(NUMBERS), "name": rng.choice(TEXTS)},
        lambda: [[rng.choice(TEXTS)], {"a": [None]}],
        lambda: {str(number): number for number in range(rng.choice([2, 3000]))},
    ]
    return rng.choice(kinds)()


# --- trees of plain values


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside a tree."""
    found: list[tuple[Any, Any]] = []
    pending = [tree]
    while pending:
        node = pending.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            pending.append(node[key])
    return found


def changed_tree(tree: Any, rng: Random, value: Callable[[Random], Any] = _value) -> Any:
    """The tree with one to three of its values exchanged, removed, renamed, moved or wrapped."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(tree)
        if not places or rng.random() < 0.03:
            return value(rng)
        node, key = rng.choice(places)
        other, other_key = rng.choice(places)
        action = rng.randrange(8)
        if action < 4:
            node[key] = value(rng)
        elif action == 4:
            del node[key]
        elif action == 5 and isinstance(node, dict):
            name = rng.choice(TEXTS)
            node[name if rng.random() < 0.5 else f"{key}{name}"[:200]] = node.pop(key)
        elif action == 6:
            node[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(node[key])
        else:
            node[key] = rng.choice([[node[key]], {"a": node[key]}, str(node[key])[:1000]])
    return tree


def _written(tree: Any, rng: Random) -> str:
    text = json.dumps(tree, ensure_ascii=True, indent=rng.choice([None, 1]))
    levels = rng.choice([70, 500, 100_000])
    opened, closed = rng.choice([("[", "]"), ('{"a":', "}")])
    deep = opened * levels + "1" + (closed * levels if rng.random() < 0.7 else "")
    return text.replace(f'"{DEEP}"', deep).replace(f'"{HUGE}"', "9" * rng.choice([25, 5000]))


def as_json(tree: Any, rng: Random) -> bytes:
    return _damaged(_written(changed_tree(tree, rng), rng).encode(), rng, often=0.3)


def as_lines(rows: list[Any], rng: Random) -> bytes:
    """Lines of JSON, some of them changed."""
    lines = [json.dumps(row) for row in rows]
    for _ in range(rng.choice([1, 2])):
        lines[rng.randrange(len(lines))] = _written(changed_tree(rng.choice(rows), rng), rng).replace("\n", "")
    return _damaged(("\n".join(lines) + rng.choice(["\n", "", "\n\n", "\r\n"])).encode(), rng, often=0.3)


YAML_TRAPS = (
    "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b]\n"
    "d: &d [*c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d]\ndescription: [*e, *e, *e, *e, *e, *e]\n",
    "options: &o\n  coeff: *o\n", "seed: !!int abc\n", "seed: 0b_\n", "description: 2024-02-30\n", "<<: [1, 2]\n",
    "description: !!python/object/apply:os.system ['true']\n", "? [a, b]\n: 1\n", "1: 2\n", "- a\n",
    "seed: !!binary x\n",
    "description: !!set {a, b}\n", "name: ~\n", "? !!timestamp 2024-01-01\n: 1\n", "--- a\n--- b\n", "\t\n",
    "seed: 1:1:1\n",
)  # fmt: skip


def as_yaml(tree: Any, rng: Random) -> bytes:
    if rng.random() < 0.2:
        return (yaml.safe_dump(tree) + rng.choice(YAML_TRAPS)).encode()
    if rng.random() < 0.2:
        return _damaged(yaml.safe_dump(tree).encode(), rng, often=1.0)
    return as_json(tree, rng)


# --- pickles of tensors


def _tensor(rng: Random) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: torch.zeros(rng.choice([(), (0,), (3,), (2, 3), (1, 2, 3), (2, 2, 2, 2), (0, 5), (1,) * 9])),
        lambda: torch.zeros(2, 3).to_sparse(),
        lambda: torch.zeros(1).expand(rng.choice([(3, 4), (1 << 20, 1 << 20), (1 << 40,)])),
        lambda: torch.quantize_per_tensor(torch.zeros(2, 3), 0.1, 0, torch.qint8),
        lambda: torch.empty(2, 3, device="meta"),
        lambda: torch.zeros(2, 3, dtype=rng.choice([torch.int8, torch.bool, torch.complex64, torch.float8_e5m2])),
        lambda: torch.full((2, 3), math.nan),
        lambda: OrderedDict(a=torch.zeros(1)),
        lambda: np.zeros((2, 3)),
    ]
    return rng.choice(kinds)() if rng.random() < 0.5 else _value(rng)


def as_torch(content: Any, rng: Random) -> bytes:
    """A file of torch.save, of today or from before it wrote zip archives."""
    content = changed_tree(content, rng, _tensor) if rng.random() < 0.8 else content
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer, _use_new_zipfile_serialization=rng.random() < 0.8)
    except Exception:  # not every tensor can be written in the old form
        buffer = io.BytesIO()
        torch.save(content, buffer)
    data = buffer.getvalue()
    if data.startswith(b"PK") and rng.random() < 0.25:
        return _repacked(data, rng)
    return _damaged(data, rng, often=0.25)


def _repacked(data: bytes, rng: Random) -> bytes:
    """A zip of torch with a changed pickle whose checksum is right."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, changed_bytes(content, rng) if info.filename.endswith("data.pkl") else content)
    return made.getvalue()


def as_safetensors(content: Mapping[str, Any], rng: Random) -> bytes:
    """content: {"tensors": {name: tensor}, "metadata": {name: text}}; the header is changed, or the bytes are."""
    header: dict[str, Any] = {"__metadata__": dict(content["metadata"])} if content["metadata"] else {}
    body = b""
    for name, tensor in content["tensors"].items():
        held = tensor.numpy().tobytes()
        kind = {torch.float32: "F32", torch.int64: "I64", torch.float16: "F16"}[tensor.dtype]
        header[name] = {
            "dtype": kind,
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(held)],
        }
        body += held
    text = (_written(changed_tree(header, rng), rng) if rng.random() < 0.7 else json.dumps(header)).encode()
    length = len(text) if rng.random() < 0.95 else rng.choice([0, 1, 2**63 - 1, 2**64 - 1, len(text) + 1])
    return _damaged(struct.pack("<Q", length) + text + body, rng, often=0.25)


# --- archives of arrays and of files


def as_npz(arrays: Mapping[str, Any], rng: Random) -> bytes:
    members = {f"{name}.npy": _npy(np.asarray(array)) for name, array in arrays.items()}
    if rng.random() < 0.8:
        name = rng.choice(list(members))
        members[name] = _changed_npy(np.asarray(arrays[name.removesuffix(".npy")]), rng)
    if rng.random() < 0.15:
        members.pop(rng.choice(list(members)))
    return _zipped(list(members.items()), rng)


def as_npy(array: Any, rng: Random) -> bytes:
    return _damaged(_changed_npy(np.asarray(array), rng), rng, often=0.4)


def _npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def _changed_npy(array: Any, rng: Random) -> bytes:
    """The array in another type or shape, or with a header that does not say the truth."""
    if rng.random() < 0.4:
        shapes = [(), (0,), (2, 3), (1, 1, 1, 1), (0, 8, 8, 1), (4, 8, 8, 2), array.shape[::-1]]
        kinds: list[Any] = ["u1", "i8", "f2", "f4", ">f8", "c16", "?", "U5", "S3", "M8[s]", "O", "u1,f4", "V4"]
        values = np.zeros(rng.choice([array.shape, rng.choice(shapes)]), dtype=rng.choice(kinds))
        if rng.random() < 0.3 and values.dtype.kind in "fi" and values.size:
            values.flat[0] = rng.choice([-1, 120])
            values = values / np.float64(0.0) if rng.random() < 0.3 else values
        return _npy(np.asfortranarray(values) if rng.random() < 0.3 else values)
    shape = rng.choice(
        [
            "(-1,)",
            "(1000000000000,)",
            "(2, 3",
            "(1.5,)",
            "()",
            "(True,)",
            "(" * 300,
            f"({array.size},)",
            "(0, -1, 8, 8)",
        ]
    )
    descr = rng.choice([f"'{array.dtype.str}'", "'O'", "'<U99999999'", "'|V0'", "[('a', 'O')]", "__import__('os')"])
    fortran = rng.choice(["True", "False", "2", "None"])
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    if rng.random() < 0.3:
        text = changed_bytes(text, rng)
    length = len(text) if rng.random() < 0.9 else rng.choice([0, 65_535])
    version = rng.choice([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)])
    size = struct.pack("<H" if version == (1, 0) else "<I", length)
    return b"\x93NUMPY" + bytes(version) + size + text + array.tobytes()


NAMES = (
    "../up.png", "/root.png", "C:\\a.png", "..\\up.png", "a\\b.png", "", ".", "..", "/", "a/", "a//b.png", "nul\0.png",
    "x" * 5000 + ".png", "\x1b[31m.png", "two\nlines.png", "000.png", "a.png/b.png", "é.png", "CON.png", "a.png ",
    ".png",
)  # fmt: skip


def as_zip(files: Mapping[str, bytes], rng: Random) -> bytes:
    """A zip of files, some of which are changed, renamed, doubled or left out."""
    members = list(files.items())
    for _ in range(rng.choice([1, 1, 2])):
        place = rng.randrange(len(members))
        name, data = members[place]
        action = rng.randrange(5)
        if action == 0:
            members[place] = (rng.choice(NAMES), data)
        elif action == 1:
            members.append((rng.choice([name, rng.choice(NAMES)]), data))
        elif action == 2:
            members[place] = (name, changed_bytes(data, rng))
        elif action == 3 and len(members) > 1:
            members.pop(place)
        else:
            members.append((f"{rng.randrange(99)}.png", rng.choice([b"", b"\0" * 1_000_000, b"text"])))
    return _zipped(members, rng)


def _zipped(members: list[tuple[str, bytes]], rng: Random) -> bytes:
    buffer = io.BytesIO()
    packing = rng.choice(
        [zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
    )
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        for name, data in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, packing  # the name as it is, which ZipInfo() would cut at a NUL
            archive.writestr(info, data)
        if rng.random() < 0.05:
            archive.comment = b"PK\5\6" * 9
    return _damaged(buffer.getvalue(), rng, often=0.4)


# --- bytes


def as_bytes(data: bytes, rng: Random) -> bytes:
    return changed_bytes(data, rng)


def one_of(files: list[bytes], rng: Random) -> bytes:
    """One of several valid files, changed."""
    return changed_bytes(rng.choice(files), rng)


def as_pickle(content: Any, rng: Random) -> bytes:
    """A plain pickle, which no reader may run."""
    return _damaged(pickle.dumps(changed_tree(content, rng), protocol=rng.randrange(2, 6)), rng, often=0.3)


def _damaged(data: bytes, rng: Random, *, often: float) -> bytes:
    return changed_bytes(data, rng) if rng.random() < often else data


def changed_bytes(data: bytes, rng: Random) -> bytes:
    """Bytes with one to four faults: flipped bits, a cut, doubled, moved or overwritten parts."""
    if not data:
        return rng.randbytes(rng.choice([1, 16, 300]))
    content = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        if not content:
            break
        place, length = rng.randrange(len(content)), rng.choice([1, 2, 4, 8, 64, 1000])
        action = rng.randrange(9)
        if action < 3:
            content[place] ^= 1 << rng.randrange(8)
        elif action == 3:
            del content[place:]
        elif action == 4:
            del content[place : place + length]
        elif action == 5:
            content[place:place] = rng.choice(
                [rng.randbytes(length), content[place : place + length] * rng.choice([1, 50])]
            )
        elif action == 6:
            content[place : place + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"9", b"["]) * length
        elif action == 7:
            content[place : place + 4] = struct.pack(
                rng.choice(["<I", ">I"]), rng.choice([0, 2**31 - 1, 2**32 - 1, 65_536])
            )
        else:
            other = rng.randrange(len(content))
            content[place : place + length] = content[other : other + length]
    return bytes(content)
