"""Photographs with latents in the published layouts, small enough to train on in a test."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

Array = np.ndarray[Any, Any]


@functools.cache
def photographs(count: int, side: int) -> Array:
    """Parts of the two photographs of scikit-learn, uint8 (count, side, side, 3)."""
    whole = load_sample_images().images
    random = np.random.default_rng(count)
    crops = []
    for index in range(count):
        picture = whole[index % 2]
        top, left = (int(random.integers(0, size - 128)) for size in picture.shape[:2])
        crops.append(np.asarray(Image.fromarray(picture[top : top + 128, left : left + 128]).resize((side, side))))
    return np.stack(crops)


def moments(images: Array, side: int) -> Array:
    """Mean and standard deviation (count, 8, side, side) of a made-up autoencoder: coarse colours and brightness."""
    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images]
    colours = np.stack(small).transpose(0, 3, 1, 2) / 127.5 - 1
    mean = 5 * np.concatenate([colours, colours.mean(1, keepdims=True)], axis=1)
    return np.concatenate([mean, np.full_like(mean, 0.1)], axis=1).astype(np.float32)


def official_folder(path: Path, *, count: int, side: int = 4, image: int = 16, classes: int = 3) -> Path:
    """images/, vae-sd/ and a dataset.json in each, as REPA's preprocessing writes them; latents 4 x side x side."""
    images = photographs(count, image)
    labels = [index % classes for index in range(count)]
    listed: dict[str, list[tuple[str, int]]] = {"images": [], "vae-sd": []}
    for index, (pixels, moment) in enumerate(zip(images, moments(images, side), strict=True)):
        names = {"images": f"00000/img{index:08d}.png", "vae-sd": f"00000/img-mean-std-{index:08d}.npy"}
        for half, name in names.items():
            (path / half / name).parent.mkdir(parents=True, exist_ok=True)
            listed[half].append((name, labels[index]))
        Image.fromarray(pixels).save(path / "images" / names["images"], compress_level=0)
        np.save(path / "vae-sd" / names["vae-sd"], moment)
    for half, pairs in listed.items():
        (path / half / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return path
