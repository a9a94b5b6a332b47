"""Data sets by name or path: the registry of layouts, images held in memory, and the two scales of pixels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import UserError, unknown
from repa_eval.interfaces.image_source import DEFAULT_KINDS, Array, ImageSource, LatentScale, Samples, Shape
from repa_eval.registry import Registry


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
        )


def in_memory(source: ImageSource) -> Images:
    """Return the images and labels of a small source as arrays; a source of `Images` as it is."""
    if isinstance(source, Images):
        return source
    samples = source.fetch(range(len(source)))
    if samples.images is None:
        raise UserError(f"data {source.name} gives no images")
    labels = np.zeros(len(source), dtype=np.int64) if samples.labels is None else samples.labels.numpy()
    names = source.class_names
    return Images(source.name, source.split, samples.images.numpy(), labels, source.num_classes, names)


def _shape_of(values: Array) -> Shape:
    channels, height, width = values.shape[1:]
    return channels, height, width


# --- data layouts

# a builder takes what follows the colon of `kind:rest` and the split ("train", "reference", "val", "test")
Builder = Callable[[str, str], ImageSource]


@dataclass(frozen=True)
class Layout:
    """A registered way to store a data set.

    build: opens it. held_out: the split of images that training never saw. recognises: whether what lies at a path is
    of this layout; None: it is opened by name only. general: it is asked after the layouts that are more special.
    """

    build: Builder
    held_out: str = "test"
    recognises: Callable[[Path], bool] | None = None
    general: bool = False


DATA: Registry[Layout] = Registry("data", "repa_eval.data", group="repa_eval.data")


def data(
    name: str,
    *,
    held_out: str = "test",
    recognises: Callable[[Path], bool] | None = None,
    general: bool = False,
) -> Callable[[Builder], Builder]:
    """Register a builder of one data layout, (rest, split) -> ImageSource; it is returned unchanged.

    See `Layout` for the options.
    """

    def record(builder: Builder) -> Builder:
        DATA.register(name, source=builder)(Layout(builder, held_out, recognises, general))
        return builder

    return record


def load_data(spec: str, split: str) -> ImageSource:
    """Return a split of the data named by `spec`: a layout ("digits", "hf:NAME", "folder:PATH"), or a path.

    What lies at a path is recognised; `kind:PATH` forces the layout, also where a path has the name of a layout.
    """
    layout, rest = find_layout(spec)
    return layout.build(rest, split)


def held_out_split(spec: str) -> str:
    """Return the split of the data `spec` that training never saw, as its layout declares it."""
    return find_layout(spec)[0].held_out


def held_out_images(spec: str, count: int) -> ImageSource:
    """Return the first `count` images that training never saw."""
    return load_data(spec, held_out_split(spec)).head(count)


def find_layout(spec: str) -> tuple[Layout, str]:
    """Return the layout that `spec` names, and what its builder is given; UserError if there is none."""
    kind, _, rest = spec.partition(":")
    if kind in DATA.names():
        return DATA.get(kind), rest
    if not Path(spec).exists():
        error = unknown("data", kind, DATA.names())
        raise UserError(f"{error}; or name a path that exists: a folder of images, a .zip or a .npz")
    layout = layout_at(spec)
    if layout is None:
        raise UserError(f"{spec}: not a known data layout ({', '.join(DATA.names())}); write KIND:{spec} to force one")
    return layout, spec


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
