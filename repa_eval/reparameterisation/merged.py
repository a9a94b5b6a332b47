"""What a merge is worth: does it change anything, how fast is it, and what of the original teacher is left -> rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import METRICS, Preparation
from repa_eval.features.capture import Capture
from repa_eval.features.foreign import foreign_features
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import Images, held_out_split, load_data
from repa_eval.interfaces.metric import ALIGNMENT
from repa_eval.interfaces.teacher import Teacher
from repa_eval.models.encoders.repa_vit import RePaViT
from repa_eval.models.shared.encoder import Encoder
from repa_eval.probes import grid
from repa_eval.probes.splits import probe_splits
from repa_eval.results import Row, make_row
from repa_eval.runtime.hashing import digest_module
from repa_eval.teachers.repavit import EncoderTeacher
from repa_eval.teachers.shared.preprocessing import pixels_of
from repa_eval.teachers.shared.timm_teacher import VisionTeacher

ORIGINAL, TRAINING, MERGED = "original", "training", "merged"
FORMS = (ORIGINAL, TRAINING, MERGED)
BATCH = 32  # images per forward where nothing is timed


@dataclass(frozen=True)
class Pair:
    """An encoder in both forms, and the teacher that it was converted from where the file says which."""

    network: Encoder
    merged: Encoder
    original: Teacher | None = None
    device: str = "cpu"

    def record(self) -> dict[str, Any]:
        """Return the protocol entries that say what was merged."""
        return {
            "kind": "merge",
            "encoder_hash": digest_module(self.network),
            "merged_hash": digest_module(self.merged),
            "idle_ratio": self.network.facts()["idle_ratio"],
            **({"original": self.original.name, "original_hash": self.original.digest} if self.original else {}),
        }


def original_of(opened: Any) -> Teacher | None:
    """Return the teacher that a converted encoder was made from, None where the file names none."""
    return opened.teachers[0].load() if opened.teachers else None


def images_of(config: Any, data_name: str | None, count: int) -> ImageSource:
    """Return real images that training never saw: of the data, else crops of the two photographs of scikit-learn."""
    if data_name is not None:
        found = load_data(data_name, held_out_split(data_name))
        return found.head(min(count, len(found)))
    if config.in_channels != 3:
        raise UserError(f"the encoder reads {config.in_channels} channels: name real images with --data")
    from sklearn.datasets import load_sample_images

    side = config.pixels.resolution or 256
    corners = [(top, left) for top in (0, 427 - side) for left in (0, (640 - side) // 2, 640 - side)]
    photographs = [np.asarray(image) for image in load_sample_images().images]
    crops = [image[top : top + side, left : left + side] for image in photographs for top, left in corners]
    pixels = np.stack(crops).transpose(0, 3, 1, 2).copy()
    return Images("scikit-learn's photographs", "crops", pixels, np.zeros(len(pixels), dtype=np.int64), 1)


@torch.no_grad()
def difference(pair: Pair, x: Tensor) -> float:
    """Return |merged - training form| / |training form| of the tokens and the logits of images x, the larger."""
    worst = 0.0
    for part in ("tokens", "logits"):
        apart = whole = 0.0
        for chunk in x.split(BATCH):
            a, b = (_answer(network, chunk, part).double() for network in (pair.network, pair.merged))
            apart, whole = apart + float((a - b).square().sum()), whole + float(a.square().sum())
        worst = max(worst, (apart / whole) ** 0.5 if whole else float(apart > 0))
    return worst


def _answer(network: Encoder, x: Tensor, part: str) -> Tensor:
    return network(x)[0] if part == "tokens" else network.logits(x)


def equality(pair: Pair, images: ImageSource, *, seed: int, columns: Mapping[str, Any]) -> list[Row]:
    """Return merge_difference_random (on normal noise) and merge_difference_real (on the images)."""
    config, generator = pair.network.config, torch.Generator().manual_seed(seed)
    noise = torch.randn(16, config.in_channels, config.input_size, config.input_size, generator=generator)
    parts = (rows.tolist() for rows in np.array_split(np.arange(len(images)), 8) if len(rows))
    real = torch.cat([pixels_of(config)(images.pixels(rows)) for rows in parts])
    record = {**pair.record(), "data": images.name, "split": images.split}
    rows = []
    for name, x in (("random", noise), ("real", real)):
        value = difference(pair, x.to(pair.device))
        own = {**record, "data": "normal noise", "split": None} if name == "random" else record
        rows.append(
            make_row(metric=f"merge_difference_{name}", value=value, n=len(x), seed=seed, protocol=own, **columns)
        )
    return rows


def counterpart(pair: Pair) -> tuple[str, Callable[[Tensor], object]] | None:
    """Return (name, forward) of the network that the training form replaced, None where there is none to compare with.

    That is the teacher it was converted from, else timm's own network of the same sizes, with random weights.
    """
    if pair.original is not None:
        # timm's fits its table of positions to the images first
        forward = pair.original.tokens if isinstance(pair.original, VisionTeacher) else pair.original.network
        return pair.original.name, forward  # type: ignore[return-value]
    config = pair.network.config
    if not isinstance(pair.network, RePaViT) or not config.class_token:
        return None
    from timm.models.vision_transformer import VisionTransformer

    twin = VisionTransformer(
        img_size=config.input_size,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        num_classes=0,
        embed_dim=config.hidden_size,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        qkv_bias=config.qkv_bias,
        reg_tokens=config.num_registers,
        weight_init="skip",
    )
    return "timm's VisionTransformer of the same sizes", twin.to(pair.device).eval().forward_features


@torch.inference_mode()
def speed(pair: Pair, *, batch_size: int, rounds: int, columns: Mapping[str, Any]) -> list[Row]:
    """Return ms_per_image_FORM, the median of `rounds` rounds in which the forms take turns, and the ratios.

    speedup: original over merged; speedup_training: training form over merged. stderr is that of the median, from the
    quartiles, as for a normal distribution.
    """
    config = pair.network.config
    x = torch.randn(batch_size, config.in_channels, config.input_size, config.input_size).to(pair.device)
    found = counterpart(pair)
    arms: dict[str, Callable[[Tensor], object]] = {TRAINING: pair.network, MERGED: pair.merged}
    if found is not None:
        arms = {ORIGINAL: found[1], **arms}
    times = interleaved({name: _call(arm, x) for name, arm in arms.items()}, rounds=rounds, device=pair.device)
    device = torch.cuda.get_device_name() if pair.device.startswith("cuda") else "cpu"
    record = {**pair.record(), "timed": "forward without the head", "original": found[0] if found else None}
    record |= {
        "batch_size": batch_size,
        "threads": torch.get_num_threads(),
        "device": device,
        "torch": torch.__version__,
    }
    rows = []
    medians = {name: statistics.median(values) / batch_size * 1000 for name, values in times.items()}
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
        error = 1.2533 * (high - low) / 1.349 / len(values) ** 0.5 / batch_size * 1000
        cell = {"n": rounds, "protocol": record, **columns}
        rows.append(make_row(metric=f"ms_per_image_{name}", value=medians[name], stderr=error, **cell))
    ratios = {"speedup": ORIGINAL, "speedup_training": TRAINING}
    for metric, slow in ratios.items():
        if slow in medians:
            value = medians[slow] / medians[MERGED]
            rows.append(make_row(metric=metric, value=value, n=rounds, protocol=record, **columns))
    return rows


def _call(arm: Callable[[Tensor], object], x: Tensor) -> Callable[[], object]:
    return lambda: arm(x)


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Return the seconds of each arm in each round; they take turns, so that a busy machine slows all of them."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for name, arm in [*arms.items()] * (rounds + 1):  # the first round warms up
        began = clock()
        arm()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times[name].append(clock() - began)
    return {name: values[1:] for name, values in times.items()}


def sizes(pair: Pair, *, columns: Mapping[str, Any]) -> list[Row]:
    """Return num_parameters_FORM."""
    forms: dict[str, Any] = {TRAINING: pair.network, MERGED: pair.merged}
    if pair.original is not None:
        forms[ORIGINAL] = pair.original.network
    return [
        make_row(metric=f"num_parameters_{name}", value=_count(form), protocol=pair.record(), **columns)
        for name, form in forms.items()
    ]


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def likeness(pair: Pair, images: ImageSource, *, batch_size: int, columns: Mapping[str, Any]) -> list[Row]:
    """Return METRIC_merged per block: the merged encoder's tokens against the original's of the same block."""
    assert pair.original is not None
    merged = EncoderTeacher("merged", pair.merged)
    names = [f"network.blocks.{i}" for i in range(len(pair.merged.active_channels()))]
    capture, preparation = Capture(batch_size=batch_size), Preparation()
    found = []
    for teacher in (merged, pair.original):
        layers = foreign_features(
            teacher,
            images,
            layers=names,
            call=_reader(teacher, pair.device),
            prefix_tokens=teacher.prefix_tokens,
            capture=capture,
        )
        found.append([preparation(layers[name], name) for name in names])
    record = {**pair.record(), "data": images.name, "split": images.split, "num_images": len(images)}
    record |= {"pooling": "token mean", **preparation.record()}
    rows = []
    for metric in METRICS:
        for layer, (mine, theirs) in enumerate(zip(*found, strict=True), 1):
            value = ALIGNMENT.get(metric).function(mine, theirs)
            cell = {"layer": layer, "n": len(images), "protocol": record, **columns}
            rows.append(make_row(metric=f"{metric}_{MERGED}", value=value, **cell))
    return rows


def _reader(teacher: Teacher, device: str) -> Callable[[Tensor, Sequence[int]], object]:
    return lambda pixels, _indices: teacher(pixels.to(device))


def probes(pair: Pair, data_name: str, *, batch_size: int, columns: Mapping[str, Any]) -> list[Row]:
    """Return probe_accuracy_FORM and knn_accuracy_FORM of the mean patch token, of the original and the merged one."""
    assert pair.original is not None
    splits = probe_splits(data_name)
    rows = []
    for form, teacher in ((ORIGINAL, pair.original), (MERGED, EncoderTeacher("merged", pair.merged))):
        found = grid.teacher_level(teacher, splits, capture=Capture(batch_size=batch_size), columns=columns)
        rows += [replace(row, metric=f"{row.metric.removesuffix('_teacher')}_{form}") for row in found]
    return rows
