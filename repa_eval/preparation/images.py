"""Images, and a VAE's moments of them, in the layout that REPA's trainer reads.

DEST/images/00000/img00000000.png ... and DEST/vae-sd/00000/img-mean-std-00000000.npy ..., each with a dataset.json of
names and labels, or null for data without labels, which is written last. DEST/prepare.json says what they are of.
`data/repa.py` reads it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from repa_eval import __version__
from repa_eval.errors import UserError
from repa_eval.runtime.distributed import Share
from repa_eval.runtime.files import disk_space, is_leftover, read_object, write_atomic
from repa_eval.sampling.vae import VaeEncoder

RECORD, LIST = "prepare.json", "dataset.json"
IMAGES, MOMENTS = "images", "vae-sd"
NAMES = {IMAGES: "img{:08d}.png", MOMENTS: "img-mean-std-{:08d}.npy"}
PER_FOLDER = 1000


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which images are prepared.

    data: their name or path; resolution: the side in pixels to which they were cropped, None for as they are.
    """

    data: str
    resolution: int | None = None

    def record(self, images: Any) -> dict[str, Any]:
        """Return which images these are, how they were cropped, and the names of their classes if they have some."""
        images.require("images")
        named = {"class_names": list(images.class_names)} if images.class_names and "labels" in images.gives else {}
        return {
            "data": self.data,
            "data_hash": images.digest(),
            "num_images": len(images),
            "resolution": f"{images.shape[1]}x{images.shape[2]}",
            "resize": None if self.resolution is None else f"centre-crop-{self.resolution}",
            **named,
        }


@dataclass(frozen=True, kw_only=True)
class Work:
    """How images are worked through. batch_size: images per forward pass; quiet: without progress on stderr."""

    share: Share
    batch_size: int = 256
    quiet: bool = False

    @property
    def hidden(self) -> bool | None:
        """Whether tqdm hides its bar; None: where stderr is no terminal."""
        return True if self.quiet or not self.share.first else None


def make_images(images: Any, dest: Path, source: Source, work: Work, *, vae: str | None) -> dict[str, Any] | None:
    """Write images and, with a VAE, their moments; return a summary, None in every process but the first.

    vae: folder or hub name of an AutoencoderKL.
    """
    share = work.share
    encoder = None if vae is None else VaeEncoder(vae, share.device)
    if encoder is not None:
        if encoder.kind != "moments":
            raise UserError(f"--vae {vae} has no posterior, whose moments this layout holds: name an AutoencoderKL")
        encoder.latent_shape(images.shape)
    record = {**source.record(images), "version": __version__, **({} if encoder is None else encoder.record())}
    if share.first:
        begin(dest, record)
    share.wait()
    kinds = (IMAGES,) if encoder is None else (IMAGES, MOMENTS)
    made = {kind: _fill(kind, images, dest, work, encoder) for kind in kinds}
    share.wait()
    if share.first:
        labels = images.all_labels().tolist() if "labels" in images.gives else None
        for kind in kinds:
            listing = None if labels is None else [[_member(kind, i), label] for i, label in enumerate(labels)]
            write_atomic(dest / kind / LIST, json.dumps({"labels": listing}))
    return {"folder": str(dest), "made": made, "record": record} if share.first else None


def text_of(answer: Mapping[str, Any]) -> str:
    """Return the answer as a line for people."""
    record = answer["record"]
    latents = f", and moments of {record['vae']}" if "vae" in record else ""
    done = ", ".join(f"{count} new in {kind}" for kind, count in answer["made"].items())
    return f"{answer['folder']}: {record['num_images']} images of {record['resolution']}{latents} ({done})"


def begin(dest: Path, record: Mapping[str, Any]) -> None:
    """Write the record, or see that the folder is of the same; moments may be added to images that are there.

    What a killed call left of a file is removed.
    """
    file = dest / RECORD
    for left in dest.glob("*/*/.*.tmp") if file.is_file() else ():
        if is_leftover(left):
            left.unlink(missing_ok=True)
    if not file.is_file():
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise UserError(f"{dest} is not empty, and `repa-eval prepare` did not make it; choose another DEST")
        write_atomic(file, json.dumps(dict(record), indent=1) + "\n")
        return
    before = read_object(file)
    differing = sorted(key for key in before if key in record and before[key] != record[key] and key != "version")
    if differing:
        raise UserError(
            f"{dest} was prepared with different settings ({', '.join(differing)} differ); choose another DEST"
        )
    if set(record) - set(before):
        write_atomic(file, json.dumps({**before, **record}, indent=1) + "\n")


def _member(kind: str, index: int) -> str:
    return f"{index // PER_FOLDER:05d}/{NAMES[kind].format(index)}"


def _fill(kind: str, images: Any, dest: Path, work: Work, encoder: VaeEncoder | None) -> int:
    """Write this process's share of the files of a kind that are not there yet; return how many all lacked."""
    from tqdm import tqdm

    size, share = work.batch_size, work.share
    missing = share.agree([i for i in range(len(images)) if not (dest / kind / _member(kind, i)).is_file()])
    mine = share.of(missing, size)
    coded: Callable[[Any], list[bytes]] = _pngs if encoder is None or kind == IMAGES else _moments_by(encoder)
    with tqdm(total=len(mine), desc=kind, disable=work.hidden, leave=False) as bar:
        for block in sorted({index // size for index in mine}):
            # the whole block, as ever: what is beside an image in its batch cannot depend on what was there already
            whole = range(block * size, min((block + 1) * size, len(images)))
            wanted = [index for index in mine if index // size == block]
            for index, data in zip(whole, coded(images.pixels(whole)), strict=True):
                if index in wanted:
                    with disk_space(dest):
                        write_atomic(dest / kind / _member(kind, index), data, durable=False)
            bar.update(len(wanted))
    return len(missing)


def _pngs(images: Any) -> list[bytes]:
    """Return uncompressed PNGs, as the official tool writes them: they are read again at every epoch."""
    found = []
    for image in images.numpy():
        buffer = io.BytesIO()
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
        found.append(buffer.getvalue())
    return found


def _moments_by(encoder: VaeEncoder) -> Callable[[Any], list[bytes]]:
    def coded(images: Any) -> list[bytes]:
        found = []
        for moments in encoder(images).numpy():
            buffer = io.BytesIO()
            np.save(buffer, moments)
            found.append(buffer.getvalue())
        return found

    return coded
