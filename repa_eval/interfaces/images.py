"""Data sets by name or path: the registry of layouts, images held in memory, and the two scales of pixels."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import logging
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import LONGEST_WORD, UserError, short_repr
from repa_eval.interfaces.image_source import DEFAULT_KINDS, Array, ImageSource, LatentScale, Samples, Shape
from repa_eval.registry import Registry
from repa_eval.runtime.distributed import is_first_process


@dataclass(frozen=True, eq=False)
class Images(ImageSource):
    """A split held in memory, for small data, tests and notebooks.

    images: uint8 (N, C, H, W). labels: int64 (N,). latents: float32 (N, c, h, w); moments: (N, 2c, h, w). captioned:
    the name of a class is the caption of its samples.
    """

    name: str
    split: str
    images: Array
    labels: Array
    num_classes: int
    class_names: tuple[str, ...] = ()
    latents: Array | None = None
    moments: Array | None = None
    captioned: bool = False
    latent_scale: LatentScale = LatentScale()
    split_known: bool = True
    gives: frozenset[str] = field(init=False)
    image_shape: Shape | None = field(init=False)
    latent_shape: Shape | None = field(init=False)

    def __post_init__(self) -> None:
        optional = {"latents": self.latents, "moments": self.moments, "captions": self.captioned or None}
        shape: Shape | None = None
        if self.latents is not None:
            shape = _shape_of(self.latents)
        elif self.moments is not None:
            channels, height, width = _shape_of(self.moments)
            shape = (channels // 2, height, width)
        given = {*DEFAULT_KINDS, *(kind for kind, values in optional.items() if values is not None)}
        facts = {"gives": frozenset(given), "image_shape": _shape_of(self.images), "latent_shape": shape}
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, indices: Sequence[int], kinds: Collection[str] = DEFAULT_KINDS) -> Samples:
        """Return the samples at `indices`."""
        rows = np.asarray(indices, dtype=np.int64)
        arrays = {"images": self.images, "latents": self.latents, "moments": self.moments, "labels": self.labels}
        values: dict[str, Any] = {
            kind: torch.from_numpy(array[rows]) for kind, array in arrays.items() if kind in kinds and array is not None
        }
        if self.captioned and "captions" in kinds:
            values["captions"] = tuple(self.class_names[label] for label in self.labels[rows])
        return Samples(**values)

    def head(self, count: int) -> Images:
        """Return a view of the first `count` images; UserError if there are fewer."""
        view = super().head(count)
        assert isinstance(view, Images)
        return view

    def part(self, first: int, stop: int) -> Images:
        """Return a view of the images first..stop-1, as many of them as there are."""
        latents, moments = (None if array is None else array[first:stop] for array in (self.latents, self.moments))
        return Images(
            name=self.name,
            split=self.split,
            images=self.images[first:stop],
            labels=self.labels[first:stop],
            num_classes=self.num_classes,
            class_names=self.class_names,
            latents=latents,
            moments=moments,
            captioned=self.captioned,
            latent_scale=self.latent_scale,
            split_known=self.split_known,
        )


def in_memory(source: ImageSource) -> Images:
    """Return the images and labels of a small source as arrays; a source of `Images` as it is."""
    if isinstance(source, Images):
        return source
    samples = source.fetch(range(len(source)))
    if samples.images is None:
        raise UserError(f"data {source.name} gives no images")
    labels = np.zeros(len(source), dtype=np.int64) if samples.labels is None else samples.labels.numpy()
    return Images(
        name=source.name,
        split=source.split,
        images=samples.images.numpy(),
        labels=labels,
        num_classes=source.num_classes,
        class_names=source.class_names,
        split_known=source.split_known,
    )


def _shape_of(values: Array) -> Shape:
    channels, height, width = values.shape[1:]
    return channels, height, width


# --- data layouts

MEASURED = 10_000  # images, as REPA's paper measures CKNNA on (appendix C.1)

# a builder takes what follows the colon of `kind:rest` and the split ("train", "reference", "val", "test"); one that
# resizes also takes resolution=, the side in pixels or None
Builder = Callable[..., ImageSource]
BUILDER = TypeVar("BUILDER", bound=Builder)
MOST_NEIGHBOURS = 1000  # files that a misspelled path is compared with
OF_TRAINING = ("train", "reference")  # splits whose images training sees

_log = logging.getLogger(__name__)
_noted: set[str] = set()  # names of data without splits of which that was said


@dataclass(frozen=True)
class Layout:
    """A registered way to store a data set.

    build: opens it. held_out: the split of images that training never saw. recognises: whether what lies at a path is
    of this layout; None: it is opened by name only. general: it is asked after the layouts that are more special.
    resizes: its images can be cropped and resized when they are fetched.
    measured: on how many images alignment is measured where nobody says it.
    """

    build: Builder
    held_out: str = "test"
    recognises: Callable[[Path], bool] | None = None
    general: bool = False
    resizes: bool = False
    measured: int = MEASURED


DATA: Registry[Layout] = Registry("data", "repa_eval.data", group="repa_eval.data")


def data(
    name: str,
    *,
    held_out: str = "test",
    recognises: Callable[[Path], bool] | None = None,
    general: bool = False,
    resizes: bool = False,
    measured: int = MEASURED,
) -> Callable[[BUILDER], BUILDER]:
    """Register a builder of one data layout, (rest, split) -> ImageSource; it is returned unchanged.

    With resizes=True it is called as builder(rest, split, resolution=N), N being None for images as they are. See
    `Layout` for the options.
    """

    def record(builder: BUILDER) -> BUILDER:
        DATA.register(name, source=builder)(Layout(builder, held_out, recognises, general, resizes, measured))
        return builder

    return record


def load_data(spec: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return a split of the data named by `spec`: a layout ("digits", "hf:NAME", "folder:PATH"), or a path.

    What lies at a path is recognised; `kind:PATH` forces the layout, also where a path has the name of a layout.
    resolution: every image is cropped and resized to this side in pixels when it is fetched, as ADM does; an image that
    has it already stays as it is. UserError where the layout cannot do that and its images have another size.
    """
    layout, rest = find_layout(spec)
    if layout.resizes:
        source = layout.build(rest, split, resolution=resolution)
    else:
        source = layout.build(rest, split)
        if resolution is not None:
            _refuse_resizing(spec, source, resolution)
    if not source.split_known and split not in OF_TRAINING:
        _note_no_splits(source.name)
    return source


def _refuse_resizing(spec: str, source: ImageSource, resolution: int) -> None:
    """UserError unless the images have this size."""
    if source.image_shape is None or source.image_shape[1:] != (resolution, resolution):
        able = ", ".join(name for name, layout in DATA.items() if layout.resizes)
        size = "" if source.image_shape is None else f" of {source.shape[2]}x{source.shape[1]}"
        raise UserError(
            f"data {spec}: its images{size} cannot be resized to {resolution}x{resolution}; leave the resolution out "
            f"(data that can be resized: {able})"
        )


def _note_no_splits(name: str) -> None:
    """Say once that data have no splits, so that nobody takes their images for held-out ones."""
    if name not in _noted and is_first_process():
        _noted.add(name)
        _log.warning("%s has no splits: all of its images are used, and training may have seen them", name)


def held_out_split(spec: str) -> str:
    """Return the split of the data `spec` that training never saw, as its layout declares it."""
    return find_layout(spec)[0].held_out


def measured_head(spec: str, images: ImageSource, count: int | None) -> ImageSource:
    """Return the first `count` images of the data `spec`; None: all of them, up to its layout's usual number."""
    return images.head(min(len(images), find_layout(spec)[0].measured) if count is None else count)


def held_out_images(spec: str, count: int) -> ImageSource:
    """Return the first `count` images that training never saw."""
    return load_data(spec, held_out_split(spec)).head(count)


def find_layout(spec: str) -> tuple[Layout, str]:
    """Return the layout that `spec` names, and what its builder is given; UserError if there is none.

    A path that is called as a layout of files is the path: such a layout is named with a colon.
    """
    kind, colon, rest = spec.partition(":")
    if kind in DATA.names():
        layout = DATA.get(kind)
        if layout.recognises is None or rest:
            return layout, rest
        if colon or not os.path.exists(spec):
            raise UserError(f"data {kind!r} needs a name: {kind}:NAME, where NAME may be a path")
    if not os.path.exists(spec):  # also for what is no path at all
        listed = f"known: {', '.join(sorted(DATA.names()))}"
        raise UserError(
            f"unknown data {short_repr(spec)}{near_name(spec)} ({listed}); or name a path that exists: a folder of "
            "images, a .zip or a .npz"
        )
    found = layout_at(spec)
    if found is None:
        raise UserError(f"{spec}: not a known data layout ({', '.join(DATA.names())}); write KIND:{spec} to force one")
    return found, spec


def near_name(spec: str) -> str:
    """Return "; did you mean ...?" with the data set or the path that `spec` is nearest to, "" for none."""
    rest = spec.partition(":")[2]
    if rest and os.path.exists(rest):  # npz:a.npz
        return f"; did you mean {short_repr(rest)}?"
    folder, given = os.path.split(spec)
    paths: list[str] = []
    with contextlib.suppress(OSError, ValueError):
        paths = [entry.name for entry in itertools.islice(os.scandir(folder or "."), MOST_NEIGHBOURS)]
    names = paths if folder else [*DATA.names(), *paths]
    near = difflib.get_close_matches(given.partition(":")[0][:LONGEST_WORD], names, n=1, cutoff=0.5)
    return f"; did you mean {short_repr(os.path.join(folder, near[0]))}?" if near else ""


def layout_at(path: str) -> Layout | None:
    """Return the layout of what lies at a path, None if no layout recognises it; UserError if several do."""
    for general in (False, True):
        claims = {
            name: layout
            for name, layout in DATA.items()
            if layout.general is general and layout.recognises is not None and layout.recognises(Path(path))
        }
        if len(claims) > 1:
            forms = " or ".join(f"{name}:{path}" for name in claims)
            raise UserError(f"{path} fits several data layouts: write {forms}")
        if claims:
            return next(iter(claims.values()))
    return None


# --- pixels


def to_signed(images: Tensor) -> Tensor:
    """Return float32 images in [-1, 1] from uint8 ones."""
    return images.float() / 127.5 - 1.0


def to_uint8(x: Tensor, rule: str) -> Tensor:
    """Return uint8 images from floats in [-1, 1].

    rule: "floor" as REPA and REG save samples, 255 (x + 1) / 2 truncated; "round" as DiT, SiT and LightningDiT do,
    127.5 x + 128 truncated. They differ by half a grey level, which Frechet distances notice.
    """
    if rule == "floor":
        return (255.0 * (x + 1) / 2.0).clamp(0, 255).to(torch.uint8)
    if rule == "round":
        return (127.5 * x + 128.0).clamp(0, 255).to(torch.uint8)
    raise UserError(f"uint8 rule {rule!r} is not known; choose floor or round")
