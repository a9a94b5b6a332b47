"""Alignment of hidden states with teachers: of a diffusion model, along a training, and of any other network."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.api.encoding import Encoding, ScaleLike, VaeLike
from repa_eval.api.opening import (
    ImagesLike,
    Model,
    OpenedModel,
    Teachers,
    class_tokens_of,
    device_of,
    lent,
    open_images,
    open_model,
    open_teachers,
)
from repa_eval.api.results import LayerMap
from repa_eval.diffusion.layers import Layers, layer_numbers
from repa_eval.errors import UserError
from repa_eval.evaluation import alignment
from repa_eval.evaluation.alignment import METRICS, TIMESTEPS, Preparation
from repa_eval.features.capture import Capture
from repa_eval.features.hooks import Part
from repa_eval.features.model_state import unwrapped
from repa_eval.interfaces import monitor as contract
from repa_eval.interfaces.teacher import Teacher
from repa_eval.results import Row, append, read_protocols, records_of

PREPARED = Preparation()
MODEL_FREE = ("kind", "data_hash", "num_images", "teacher_hash", *PREPARED.record())  # entries of every protocol
CAPTURED = ("pooling", "path_type", "seed")  # entries that `capture` says where it is given
Run = Callable[[Any, Tensor], object]  # (network, uint8 images (B, C, H, W)) -> anything


def align(
    model: Model,
    teacher: Teachers | None = None,
    images: ImagesLike | None = None,
    *,
    layers: Layers = "all",
    timesteps: float | Iterable[float] = TIMESTEPS,
    metrics: str | Iterable[str] = METRICS,
    preparation: Preparation = PREPARED,
    capture: Capture | None = None,
    confidence: bool = False,
    columns: Mapping[str, Any] | None = None,
    num_images: int | None = None,
    split: str | None = None,
    resolution: int | None = None,
    vae: VaeLike | None = None,
    posterior: str = "sample",
    latent_scale: ScaleLike | None = None,
    device: str | None = None,
) -> LayerMap:
    """Measure the alignment of a diffusion model's hidden states with one or several teachers.

    model: a checkpoint, its path, or a model, also behind DDP, torch.compile or PEFT; it is left in the mode and on the
    device that it was on. teacher: names, files of weights or Teacher objects; None for what the checkpoint was trained
    with. images: the name of a data set, a path, an array or tensor of uint8, or a source (see `images`); None for
    what the checkpoint was trained on. layers: block numbers, 1-based: 3, [3, 4], "3,4", "1-6" or "all". timesteps: in
    [0, 1], 1 = noise. metrics: of `repa-eval list metrics`.

    num_images: the first so many; None for all, and for at most 10,000 of a named data set (digits: 600), whose split
    is one that training never saw. resolution: the side in pixels to which image files are cropped and resized.
    vae: encodes the images for a model that reads latents: a name, a folder, or an autoencoder of diffusers. posterior:
    "sample", a latent is drawn by seed and index, or "mean". latent_scale: a number, (scale, shift) or a LatentScale;
    None for what the checkpoint, the data or the VAE's config say, in this order.
    confidence: add standard errors and permutation baselines. columns: further entries of every row. capture,
    preparation: how hidden states are taken, and what is done to them before a metric sees them.
    """
    opened = open_model(model, device)
    numbers = layer_numbers(layers, opened.model.depth, aligned=opened.aligned_layer, names=opened.model.layer_names)
    source = open_images(images, opened.data, split=split, num_images=num_images, resolution=resolution)
    teachers = open_teachers(teacher, opened, opened.device or device_of(opened.model))
    encoding = Encoding(vae=vae, posterior=posterior, latent_scale=latent_scale)
    how = encoding.capture(opened, capture or capture_of(opened, teacher))
    rows: list[Row] = []
    with lent(opened.model, *teachers, *encoding.networks, device=opened.device):
        source = encoding.images(source, opened, how)
        for one in teachers:
            rows += alignment.align(
                opened.model,
                one,
                source,
                layers=numbers,
                timesteps=times_of(timesteps),
                metrics=_names(metrics),
                preparation=preparation,
                capture=how,
                confidence=confidence,
                columns={**opened.columns, **(columns or {})},
            )
    return LayerMap(tuple(rows))


@dataclass(frozen=True, kw_only=True)
class Monitor(contract.Monitor):
    """Alignment along a training that is not ours: call it as monitor(step, model) every so many steps.

    teacher, images, layers, timesteps, metrics: as for `align`. table: a run folder or results.jsonl to which the rows
    are appended, with their protocols besides. columns: further entries of every row, such as {"run": "mine"}.
    """

    teacher: Teachers
    images: ImagesLike
    layers: Layers | None = None
    timesteps: float | Sequence[float] = (0.1, 0.3)
    metrics: str | Sequence[str] = METRICS
    capture: Capture | None = None
    table: str | Path | None = None
    columns: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Open teacher and images once, so that every call finds them ready."""
        teachers: list[Teacher] = open_teachers(self.teacher, None, "cpu")
        given = [self.teacher] if isinstance(self.teacher, nn.Module | str | Path) else list(self.teacher)
        object.__setattr__(self, "_lent", [unwrapped(one) for one in given if isinstance(one, nn.Module)])
        object.__setattr__(self, "teacher", teachers)
        object.__setattr__(self, "images", open_images(self.images, None, split=None, num_images=None))

    def __call__(self, step: int, model: nn.Module) -> LayerMap:
        """Return the rows of this step; the model is left in the mode that it was in."""
        found = align(
            model,
            self._near(model),
            self.images,
            layers="all" if self.layers is None else self.layers,
            timesteps=self.timesteps,
            metrics=self.metrics,
            capture=self.capture,
            columns={**(self.columns or {}), "step": step},
        )
        if self.table is not None:
            append(self.table, found.rows)
        return found

    def done(self, step: int, rows: Collection[Row]) -> bool:
        """Return whether rows hold every metric of a step at every timestep and layer, against every teacher.

        rows: returned by this monitor, or read from `table`. Where all layers are meant, those that the rows of the
        step have count as all.
        """
        records = records_of(rows) | (read_protocols(self.table) if self.table is not None else {})
        columns = {**(self.columns or {}), "step": step}
        own = [row for row in rows if all(getattr(row, name) == value for name, value in columns.items())]
        return all(
            self._complete([row for row in own if facts.items() <= records.get(row.protocol or "", {}).items()])
            for facts in self._facts()
        )

    def _complete(self, rows: Collection[Row]) -> bool:
        """Return whether the rows of a step against one teacher are a whole map."""
        cells = {(row.metric, row.timestep, row.layer) for row in rows}
        several = self.layers is None or self.layers == "all"
        layers = {row.layer for row in rows} if several else layer_numbers(self.layers or (), sys.maxsize)
        expected = set(itertools.product(_names(self.metrics), times_of(self.timesteps), layers))
        return bool(cells) and expected <= cells

    def _facts(self) -> list[dict[str, Any]]:
        """Return, teacher by teacher, the protocol entries that do not depend on the model."""
        assert isinstance(self.teacher, list)
        images = open_images(self.images, None, split=None, num_images=None)
        names = MODEL_FREE if self.capture is None else (*MODEL_FREE, *CAPTURED)
        capture = self.capture or Capture()
        records = [alignment.protocol(teacher, images, capture, PREPARED) for teacher in self.teacher]
        return [{name: record[name] for name in names} for record in records]

    def _near(self, model: nn.Module) -> list[Teacher]:
        """Return the teachers, those that were named on the model's device; objects stay where they are."""
        assert isinstance(self.teacher, list)
        lent_ones: list[nn.Module] = getattr(self, "_lent", [])
        named = [not any(teacher is one for one in lent_ones) for teacher in self.teacher]
        device = device_of(model)
        return [teacher.to(device) if own else teacher for teacher, own in zip(self.teacher, named, strict=True)]


@torch.no_grad()
def align_module(
    network: nn.Module,
    teacher: Teachers,
    images: ImagesLike,
    *,
    layers: str | Sequence[str],
    run: Run | None = None,
    part: Part = None,
    channels_last: bool | None = None,
    prefix_tokens: int = 0,
    t: float | None = None,
    metrics: str | Iterable[str] = METRICS,
    preparation: Preparation = PREPARED,
    capture: Capture | None = None,
    confidence: bool = False,
    columns: Mapping[str, Any] | None = None,
    num_images: int | None = None,
    split: str | None = None,
    call_id: str = "",
) -> LayerMap:
    """Measure the alignment of a network that is not ours with one or several teachers, submodule by submodule.

    layers: names of submodules, such as ["blocks.3"]; they are numbered 1, 2, ... in the rows, and named in the notes.
    run: (network, uint8 images (B, C, H, W) on its device) -> anything; None gives it floats in [-1, 1], or as timm's
    `pretrained_cfg` of the network says. part: which entry of a tuple (index) or dict (key) a submodule returns.
    channels_last: whether maps are (B, H, W, C); None to tell it, or to refuse. prefix_tokens: tokens before the
    patches. t: the time that `run` uses, for a network that has one. call_id: names the call in protocol and cache
    where the code of `run` does not tell all. The others are as for `align`.
    """
    inner = unwrapped(network)
    source = open_images(images, None, split=split, num_images=num_images)
    teachers = open_teachers(teacher, None, device_of(inner))
    call = (lambda net, pixels: net(default_input(net, pixels))) if run is None else run
    names = [layers] if isinstance(layers, str) else list(layers)
    identity = call_id or ("" if run is not None else "pixels in [-1, 1], or by pretrained_cfg")

    def forward(pixels: Tensor, _indices: Sequence[int]) -> object:
        return call(inner, pixels.to(device_of(inner)))

    rows: list[Row] = []
    with lent(inner, *teachers):
        for one in teachers:
            rows += alignment.align_foreign(
                inner,
                one,
                source,
                layers=names,
                call=forward,
                t=t,
                prefix_tokens=prefix_tokens,
                part=part,
                channels_last=channels_last,
                metrics=_names(metrics),
                preparation=preparation,
                capture=capture,
                confidence=confidence,
                columns=columns,
                call_id=identity,
            )
    return LayerMap(tuple(rows))


def default_input(network: nn.Module, pixels: Tensor) -> Tensor:
    """Return what a vision network reads of uint8 images: by its `pretrained_cfg` (timm), else in [-1, 1]."""
    settings: Any = getattr(network, "pretrained_cfg", None) or {}
    scaled = pixels.float() / 255
    mean, std = settings.get("mean") or (0.5,), settings.get("std") or (0.5,)
    if len(mean) not in (1, pixels.shape[1]):
        mean, std = (0.5,), (0.5,)
    return (scaled - scaled.new_tensor(mean).view(-1, 1, 1)) / scaled.new_tensor(std).view(-1, 1, 1)


def capture_of(opened: OpenedModel, teacher: Teachers | None = None, **more: Any) -> Capture:
    """Return how hidden states are taken where nobody says it: on the path, and with the class tokens, of training."""
    return Capture(interpolant=opened.interpolant, class_tokens=class_tokens_of(opened, teacher), **more)


def times_of(timesteps: float | Iterable[float]) -> list[float]:
    """Return timesteps as a list; UserError for one outside [0, 1]."""
    times = [float(timesteps)] if isinstance(timesteps, int | float) else [float(t) for t in timesteps]
    for t in times:
        if not 0.0 <= t <= 1.0:
            raise UserError(f"timestep {t} is outside [0, 1] (0 = data, 1 = noise)")
    if not times:
        raise UserError("no timesteps are given: name some in [0, 1], such as [0.1, 0.3]")
    return times


def _names(given: str | Iterable[str]) -> list[str]:
    """Return names, also those joined by commas, each once."""
    several = given.split(",") if isinstance(given, str) else given
    return list(dict.fromkeys(name.strip() for name in several))
