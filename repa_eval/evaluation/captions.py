"""Does a text-to-image model do what the caption says? Samples read by a judge, and retrieval by denoising error.

Everything is a function of (seed, index): the same noise for a frozen model and for the same model with soft tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repa_eval.config import option
from repa_eval.diffusion.guidance import Guidance
from repa_eval.errors import UserError
from repa_eval.evaluation.caption_classifier import PairJudge, pair_judge
from repa_eval.interfaces.images import Images, in_memory, load_data, to_signed
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.metrics.fid import frechet_distance
from repa_eval.models.text_to_image import TextToImage
from repa_eval.results import Row, make_row
from repa_eval.runtime.seeding import generator, generators, normal
from repa_eval.sampling.generate import generate
from repa_eval.sampling.sample_files import png

TIMESTEPS = tuple(round(0.05 + 0.1 * i, 2) for i in range(10))  # the middles of ten bins
SCALES = (1.0, 1.5, 3.0)
BASE = "_base"  # ends the names of the frozen model's numbers
FLOOR = "_floor"  # ends the names of the level of held-out real images
DATA = "digits-captions"  # the judge reads these
PICTURED = 8  # captions of the picture, and images each
FRAME, BETWEEN = 96, 3  # grey between images; white pixels between one strength's and the next one's
Array = np.ndarray[Any, Any]
# name of a number -> (which values are better, half a sentence on it, as the report explains it)
MEANINGS = {
    "caption_digits": ("higher", "share of digits in samples that match the caption, as read by a classifier"),
    "caption_both": ("higher", "share of samples whose digits all match the caption, as read by a classifier"),
    "caption_rank1": ("higher", "share of held-out images whose true caption has the lowest denoising error"),
    "fd_pixels": ("lower", "Fréchet distance on the pixels"),
}


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How much is measured, and with what."""

    num_samples: int = option(1000, help="samples per guidance scale", least=2)
    num_steps: int = option(16, help="Euler steps per sample", least=1)
    cfg_scales: tuple[float, ...] = SCALES
    num_images: int = option(256, help="held-out images whose caption is looked for", least=2)
    num_candidates: int = option(16, help="captions among which the true one is looked for", least=2)
    timesteps: tuple[float, ...] = TIMESTEPS
    seed: int = 0
    batch_size: int = 256

    def sampler(self, cfg_scale: float) -> SamplerSettings:
        """Return how samples are made at a guidance scale: captions drawn, one noise for all models and scales."""
        return SamplerSettings(num_steps=self.num_steps, guidance=Guidance(cfg_scale=cfg_scale), seed=self.seed)


def examine(
    model: TextToImage, plan: Examination, *, strengths: Mapping[str, float], columns: Mapping[str, Any]
) -> list[Row]:
    """Return the rows of a model at each of `strengths` (suffix of the names -> strength of its soft tokens).

    caption_digits, caption_both, fd_pixels: without guidance; guided_*: the same at every scale, for the curve.
    caption_rank1: at every timestep; caption_rank1_all: by the mean error. columns: entries of every row.
    """
    judge, reference = pair_judge(), in_memory(load_data(DATA, "reference"))
    test = in_memory(load_data(DATA, "test"))
    rows: list[Row] = []
    for suffix, strength in strengths.items():
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        facts = {"dtype": dtype, **({} if strength in (0, 1) else {"token_strength": strength})}
        with model.at_strength(strength):
            errors = caption_errors(model, test.head(plan.num_images), plan)
            found = [(scale, _samples(model, plan, scale)) for scale in plan.cfg_scales]
        own = {"seed": plan.seed, **columns}
        for scale, (images, labels) in found:
            made = {**plan.sampler(scale).for_model(model).record(), **facts}
            rows += _of_samples(images, labels, judge, reference, made, suffix, own)
        rows += _of_errors(errors, test.head(plan.num_images), plan, facts, suffix, own)
    real = test.head(min(plan.num_samples, len(test)))
    level = {key: columns[key] for key in ("run",) if key in columns}
    return rows + _of_samples(real.images, real.labels, judge, reference, {"samples": "real, test split"}, FLOOR, level)


def _samples(model: TextToImage, plan: Examination, scale: float) -> tuple[Array, Array]:
    """Return uint8 images (N, C, H, W) and the labels (N,) of their captions."""
    parts = list(generate(model, range(plan.num_samples), plan.sampler(scale), batch_size=plan.batch_size))
    return torch.cat([images for _, images, _ in parts]).numpy(), torch.cat([labels for _, _, labels in parts]).numpy()


def _of_samples(
    images: Array,
    labels: Array,
    judge: PairJudge,
    reference: Images,
    made: Mapping[str, Any],
    suffix: str,
    columns: Mapping[str, Any],
) -> list[Row]:
    right = judge.right(images, labels)
    record = {"kind": "captions, by samples", "data": DATA, **judge.record(), **made}
    pixels = {"reference_hash": reference.digest(), "reference_n": len(reference), "space": "pixels in [-1, 1]"}
    distance = frechet_distance(*_moments(reference.images), *_moments(images))
    values: list[tuple[str, float, float | None, Mapping[str, Any]]] = [
        ("digits", *share(right.mean(1)), record),
        ("both", *share(right.min(1)), record),
        ("fd_pixels", distance, None, {**record, **pixels}),
    ]
    names = {"guided_{}": True, "caption_{}": made.get("cfg_scale", 1.0) == 1.0}
    rows = []
    for pattern in (pattern for pattern, wanted in names.items() if wanted):
        for name, value, error, protocol in values:
            plain = name if (pattern, name) == ("caption_{}", "fd_pixels") else pattern.format(name)
            own = {"stderr": error, "n": len(images), "protocol": protocol, **columns}
            rows.append(make_row(metric=f"{plain}{suffix}", value=value, **own))
    return rows


def _of_errors(
    errors: Array,
    images: Images,
    plan: Examination,
    facts: Mapping[str, Any],
    suffix: str,
    columns: Mapping[str, Any],
) -> list[Row]:
    record = {
        "kind": "captions, by denoising error",
        "data": images.name,
        "split": images.split,
        "data_hash": images.digest(),
        "num_candidates": plan.num_candidates,
        "candidates": "the true caption and others, drawn by image",
        "noise": "one per image, the same for its captions and times",
        **facts,
    }
    whole = {**record, "timesteps": list(plan.timesteps)}
    cells = [("caption_rank1", t, record, of_time) for t, of_time in zip(plan.timesteps, errors, strict=True)]
    rows = []
    for name, t, protocol, values in [*cells, ("caption_rank1_all", None, whole, errors.mean(0))]:
        value, error = share(first(values))
        own = {"timestep": t, "n": len(images), "protocol": protocol, **columns}
        rows.append(make_row(metric=f"{name}{suffix}", value=value, stderr=error, **own))
    return rows


@torch.no_grad()
def caption_errors(model: TextToImage, images: Images, plan: Examination) -> Array:
    """Return the mean squared velocity error (T, N, K) of every image under its candidates, the true one first."""
    like, count = next(model.parameters()), plan.num_candidates
    found = np.empty((len(plan.timesteps), len(images), count))
    for rows in _blocks(len(images), max(1, plan.batch_size // count)):
        x, labels = to_signed(images.pixels(rows)), images.labels[rows]
        noise = normal(generators(plan.seed, "caption noise", rows), x.shape[1:])
        places = zip(labels.tolist(), rows, strict=True)
        y = torch.stack([candidates(label, row, images.num_classes, plan) for label, row in places]).to(like.device)
        for place, t in enumerate(plan.timesteps):
            noisy, target = (each.to(like).repeat_interleave(count, 0) for each in ((1 - t) * x + t * noise, noise - x))
            velocity, _ = model(noisy, torch.full_like(noisy[:, 0, 0, 0], t), y.flatten())
            errors = (velocity.float() - target.float()).square().flatten(1).mean(1).unflatten(0, y.shape)
            found[place, rows] = errors.cpu().double().numpy()
    return found


def candidates(label: int, row: int, num_captions: int, plan: Examination) -> Tensor:
    """Return the captions (K,) of image `row`, int64: its own, then others, all different."""
    if plan.num_candidates > num_captions:
        raise UserError(f"num_candidates {plan.num_candidates}: the data have {num_captions} captions")
    order = torch.randperm(num_captions - 1, generator=generator(plan.seed, "other captions", row))
    others = order[: plan.num_candidates - 1]
    return torch.cat([torch.tensor([label]), others + (others >= label)])


def first(errors: Array) -> Array:
    """Return whether the true caption, the first of (N, K), has the lowest error: a tie is no success, (N,) bool."""
    best: Array = errors[:, 0] < errors[:, 1:].min(1)
    return best


def share(values: Array) -> tuple[float, float]:
    """Return mean and standard error of the mean of (N,) values."""
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(len(numbers)))


def _moments(images: Array) -> tuple[Array, Array]:
    """Return mean and covariance of pixels in [-1, 1]."""
    flat = images.reshape(len(images), -1) / 127.5 - 1
    return flat.mean(0), np.cov(flat, rowvar=False)


def _blocks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def picture(model: TextToImage, plan: Examination, strengths: Sequence[float]) -> tuple[bytes, dict[str, Any]]:
    """Return a PNG and the words beside it: a caption per row, samples without guidance, every strength's in turn.

    The captions are spread over all of them; each strength starts from the same noise.
    """
    captions = model.config.captions
    labels = np.linspace(0, len(captions) - 1, PICTURED).round().astype(int).tolist()
    each = PICTURED // len(strengths)
    sampler = dataclasses.replace(plan.sampler(1.0), labels=tuple(label for label in labels for _ in range(each)))
    rows = []
    for strength in strengths:
        with model.at_strength(strength):
            parts = generate(model, range(len(labels) * each), sampler, batch_size=plan.batch_size)
            images = torch.cat([images for _, images, _ in parts]).numpy()
        rows.append(images.reshape(len(labels), each, *images.shape[1:]))
    tiles = np.concatenate(rows, axis=1)  # (captions, strengths x each, C, H, W)
    words = "Samples without guidance. " + (
        f"Left {each}: the frozen model; right {each}: the same noise with soft tokens." if len(strengths) > 1 else ""
    )
    side = {"caption": words.strip(), "rows": [captions[label] for label in labels]}
    sizes = {"columns": tiles.shape[1] * tiles.shape[-1] // tiles.shape[-2], "tile": tiles.shape[-2]}
    framed = np.pad(tiles, [(0, 0)] * 3 + [(1, 0), (1, 0)], constant_values=FRAME)
    halves: list[Array] = np.split(framed, len(strengths), axis=1)
    columns: list[Array] = [np.concatenate(list(half.swapaxes(0, 1)), axis=-1) for half in halves]
    between: Array = np.full((*columns[0].shape[:-1], BETWEEN), 255, dtype=np.uint8)  # (captions, C, H, W)
    joined = [part for column in columns for part in (between, column)][1:]
    lines = np.concatenate(list(np.concatenate(joined, axis=-1)), axis=-2)
    return png(np.pad(lines, ((0, 0), (0, 1), (0, 1)), constant_values=FRAME)), {**side, **sizes}
