"""The same few samples in every layout that official latents come in."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.teacher import load_teacher

N = 7
_random = np.random.default_rng(5)
PIXELS = _random.integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
MEANS = _random.standard_normal((N, 4, 2, 2)).astype(np.float32)
DEVIATIONS = _random.uniform(0.1, 2, (N, 4, 2, 2)).astype(np.float32)
MOMENTS = np.concatenate([MEANS, DEVIATIONS], axis=1)
LABELS = np.array([3, 0, 5, 3, 1, 0, 5])  # not in the order of the files
FEATURES = _random.standard_normal((N, 4, 5)).astype(np.float32)
CLASS_TOKENS = _random.standard_normal((N, 5)).astype(np.float32)
TEXTS = _random.standard_normal((N, 3, 6)).astype(np.float32)
IMAGE, MOMENT = "{:05d}/img{:08d}.png", "{:05d}/img-mean-std-{:08d}.npy"


def png(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def names(pattern: str) -> list[str]:
    return [pattern.format(index // 4, index) for index in range(N)]  # two folders, which are no classes


def listing(pattern: str, labels: Any = LABELS) -> str:
    pairs = None if labels is None else [[name, int(y)] for name, y in zip(names(pattern), labels, strict=True)]
    return json.dumps({"labels": pairs})


def repa(path: Path, *, labels: Any = LABELS) -> Path:
    """REPA's layout in a folder."""
    files = {f"images/{name}": png(pixels) for name, pixels in zip(names(IMAGE), PIXELS, strict=True)}
    files |= {f"vae-sd/{name}": npy(moments) for name, moments in zip(names(MOMENT), MOMENTS, strict=True)}
    files |= {"images/dataset.json": listing(IMAGE, labels).encode()}
    files |= {"vae-sd/dataset.json": listing(MOMENT, labels).encode()}
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def zipped(folder: Path, to: Path, *, inside: str = "", method: int = zipfile.ZIP_STORED) -> Path:
    """A zip of what lies in a folder, below `inside`."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(to, "w", method) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):  # in no order that could be relied on
            if file.is_file():
                archive.write(file, f"{inside}{file.relative_to(folder).as_posix()}")
    return to


def repa_zips(path: Path, *, method: int = zipfile.ZIP_STORED) -> Path:
    """REPA's layout as two zips in a folder."""
    folder = repa(path.parent / f"{path.name}-folder")
    for half in ("images", "vae-sd"):
        zipped(folder / half, path / f"{half}.zip", method=method)
    shutil.rmtree(folder)
    return path


def in_one_zip(path: Path, make: Callable[[Path], Path]) -> Path:
    """What `make` makes, in one zip."""
    path.mkdir(parents=True)
    return zipped(make(path / "folder"), path / "all.zip")


def statistics(path: Path, *, channels: int = 4) -> None:
    """latents_stats.pt of LightningDiT: numbers that are not those of the latents."""
    mean, std = torch.arange(channels) / 2, torch.arange(channels) + 2.0
    torch.save({"mean": mean.reshape(1, -1, 1, 1), "std": std.reshape(1, -1, 1, 1)}, path / "latents_stats.pt")


def shard(path: Path, rows: Any, **more: Any) -> None:
    """A file of latents and labels; `more` replaces tensors, or (None) leaves them out."""
    tensors: dict[str, Any] = {"latents": torch.from_numpy(MEANS)[rows], "labels": torch.from_numpy(LABELS)[rows]}
    tensors |= more
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {name: values.contiguous() for name, values in tensors.items() if values is not None}
    save_file(kept, path, metadata={"total_size": str(len(tensors["latents"]))})


def lightning(path: Path, *, processes: int = 1) -> Path:
    """LightningDiT's: shards of at most three from each process, which took every so manieth image."""
    each = -(-N // processes)
    for rank in range(processes):
        rows = [(rank + processes * step) % N for step in range(each)]  # the last ones begin again
        for number, first in enumerate(range(0, each, 3)):
            some = rows[first : first + 3]
            flipped = torch.from_numpy(MEANS)[some].flip(-1)
            shard(path / f"latents_rank{rank:02d}_shard{number:03d}.safetensors", some, latents_flip=flipped)
    statistics(path)
    return path


def erw(path: Path) -> Path:
    """ERW's: scaled latents, an encoder's features, no statistics."""
    for number, rows in enumerate([[0, 1, 2, 3], [4, 5, 6]]):
        features = torch.from_numpy(FEATURES)[rows]
        scaled = torch.from_numpy(MEANS)[rows] * 0.18215
        file = path / f"latents_shard{number:02d}_of_02.safetensors"
        shard(file, rows, latents=scaled, encoder_0_features=features)
    (path / "dataset_index.json").write_text(json.dumps({"num_shards": 2, "total_samples": N}), encoding="utf-8")
    return path


def gmem(path: Path) -> Path:
    """GMem's: LightningDiT's with an encoder's features and class tokens, everything once more of mirrored images."""
    for number, rows in enumerate([[0, 1, 2, 3, 4], [5, 6]]):
        plain = {
            "latents": torch.from_numpy(MEANS)[rows],
            "representations": torch.from_numpy(FEATURES)[rows],
            "cls_tokens": torch.from_numpy(CLASS_TOKENS)[rows],
        }
        flipped = {f"{name}_flip": -values for name, values in plain.items()}
        shard(path / f"latents_rank00_shard{number:03d}.safetensors", rows, **plain, **flipped)
    statistics(path)
    return path


def coco(path: Path, *, images: bool = True) -> Path:
    """The features of the text-to-image experiment, validation split, with two captions each."""
    folder = path / "val"
    folder.mkdir(parents=True)
    for index in range(N):
        if images:
            (folder / f"{index}.png").write_bytes(png(PIXELS[index]))
        moments = np.concatenate([MEANS[index], 2 * np.log(DEVIATIONS[index])])
        (folder / f"{index}.npy").write_bytes(npy(moments))
        for caption in range(2):
            (folder / f"{index}_{caption}.npy").write_bytes(npy(TEXTS[index] + caption))
    (path / "empty_context.npy").write_bytes(npy(np.zeros((3, 6), dtype=np.float32)))
    return path


def of_digits(path: Path, *, count: int = 60, first: int = 0) -> Path:
    """Embedded digits in REPA's layout, with latents 4x4x4: the quarters of every 2x2 square of an image."""
    images = load_data("digits", "trainval").part(first, first + count).fetch(range(count))
    means = functional.pixel_unshuffle(images.pixels / 255, 2)
    moments = torch.cat([means, torch.full_like(means, 0.05)], dim=1).numpy()
    for half, pattern in (("images", IMAGE), ("vae-sd", MOMENT)):
        listing = []
        for index, label in enumerate(images.labels.tolist()):
            name = pattern.format(index // 20, index)
            data = png(images.pixels[index, 0].numpy()) if half == "images" else npy(moments[index])
            (path / half / name).parent.mkdir(parents=True, exist_ok=True)
            (path / half / name).write_bytes(data)
            listing.append([name, label])
        (path / half / "dataset.json").write_text(json.dumps({"labels": listing}), encoding="utf-8")
    return path


def erw_of_digits(path: Path, *, count: int = 60) -> Path:
    """The same digits in ERW's shards: scaled latents, labels, and what the embedded teacher says of the images."""
    images = load_data("digits", "trainval").part(0, count).fetch(range(count))
    latents = functional.pixel_unshuffle(images.pixels / 255, 2)
    features = load_teacher("digits-vit")(images.pixels).patches
    for number, rows in enumerate([slice(0, 40), slice(40, count)]):
        tensors = {"latents": latents * 0.18215, "labels": images.labels, "encoder_0_features": features}
        file = path / f"latents_shard{number:02d}_of_02.safetensors"
        shard(file, rows, **{name: values[rows] for name, values in tensors.items()})
    return path
