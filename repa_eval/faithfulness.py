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
from repa_eval.data._registry import Images, load_data, to_signed
from repa_eval.errors import UserError
from repa_eval.extractors._digit_pairs import PairJudge, pair_judge
from repa_eval.metrics.fid import frechet_distance
from repa_eval.models.text_to_image import TextToImage
from repa_eval.results import Row, make_row
from repa_eval.sampling.generate import generate
from repa_eval.sampling.guidance import Guidance
from repa_eval.sampling.settings import SamplerSettings
from repa_eval.seeding import generator, generators, normal

TIMESTEPS = tuple(round(0.05 + 0.1 * i, 2) for i in range(10))  # the middles of ten bins
SCALES = (1.0, 1.5, 2.0, 3.0)
BASE = "_base"  # ends the names of the frozen model's numbers
REAL = "_real"  # ends the names of the level of held-out real images


@dataclass(frozen=True, kw_only=True)
class Examination:
    """How much is measured, and with what."""

    data: str = option("digits-captions", help="images with captions; samples are compared with its training images")
    num_samples: int = option(1000, help="samples per guidance scale", least=2)
    num_steps: int = option(16, help="Euler steps per sample", least=1)
    cfg_scales: tuple[float, ...] = SCALES
    num_images: int = option(256, help="held-out images whose caption is looked for", least=1)
    num_candidates: int = option(16, help="captions among which the true one is looked for", least=2)
    timesteps: tuple[float, ...] = TIMESTEPS
    seed: int = 0
    batch_size: int = 256

    def sampler(self, cfg_scale: float) -> SamplerSettings:
        """Return how samples are made at a guidance scale: captions drawn, one noise for all models and scales."""
        return SamplerSettings(num_steps=self.num_steps, guidance=Guidance(cfg_scale=cfg_scale), seed=self.seed)


def examine(
    model: TextToImage,
    plan: Examination,
    *,
    strengths: Mapping[str, float],
    columns: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    """Return the rows of a model at each of `strengths` (suffix of the names -> strength of its soft tokens).

    columns, facts: suffix -> entries of every row, and of its protocol record. The level of real images comes last.
    """
    judge, reference = pair_judge(), load_data(plan.data, "reference")
    held_out = load_data(plan.data, "test").head(plan.num_images)
    rows: list[Row] = []
    for suffix, strength in strengths.items():
        with model.at_strength(strength):
            common: dict[str, Any] = {"seed": plan.seed, **columns[suffix]}
            for scale in plan.cfg_scales:
                rows += _of_samples(model, plan, scale, judge, reference, suffix, facts[suffix], common)
            rows += _of_retrieval(model, plan, held_out, suffix, facts[suffix], common)
    return rows + _level(plan, judge, next(iter(columns.values())))


def _of_samples(
    model: TextToImage,
    plan: Examination,
    scale: float,
    judge: PairJudge,
    reference: Images,
    suffix: str,
    facts: Mapping[str, Any],
    columns: Mapping[str, Any],
) -> list[Row]:
    sampler = plan.sampler(scale).for_model(model)
    parts = list(generate(model, range(plan.num_samples), sampler, batch_size=plan.batch_size))
    images, labels = (torch.cat([part[place] for part in parts]).numpy() for place in (1, 2))
    right = judge.right(images, labels)
    record = {
        "kind": "captions, by samples",
        "data": plan.data,
        "num_samples": plan.num_samples,
        **sampler.record(),
        **judge.record(),
        **facts,
    }
    pixels = {"reference": "reference", "reference_hash": reference.digest(), "space": "pixels in [-1, 1]"}
    values = {"caption_digits": share(right.mean(1)), "caption_both": share(right.all(1))}
    rows = [
        make_row(metric=f"{name}{suffix}", value=value, stderr=error, n=plan.num_samples, protocol=record, **columns)
        for name, (value, error) in values.items()
    ]
    distance = frechet_distance(*_moments(reference.images), *_moments(images))
    of_pixels = {"n": plan.num_samples, "protocol": {**record, **pixels}}
    return [*rows, make_row(metric=f"fd_pixels{suffix}", value=distance, **of_pixels, **columns)]


def _of_retrieval(
    model: TextToImage,
    plan: Examination,
    images: Images,
    suffix: str,
    facts: Mapping[str, Any],
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
    own = {"n": len(images), "protocol": record, **columns}
    errors = caption_errors(model, images, plan)  # (T, N, K)
    rows = []
    for t, of_time in zip(plan.timesteps, errors, strict=True):
        value, error = share(first(of_time))
        rows.append(make_row(metric=f"caption_rank1{suffix}", value=value, stderr=error, timestep=t, **own))
    value, error = share(first(errors.mean(0)))
    whole = {**own, "protocol": {**record, "timesteps": list(plan.timesteps)}}
    return [*rows, make_row(metric=f"caption_rank1_all{suffix}", value=value, stderr=error, **whole)]


@torch.no_grad()
def caption_errors(model: TextToImage, images: Images, plan: Examination) -> np.ndarray:
    """Return the mean squared velocity error (T, N, K) of every image under its candidates, the true one first."""
    like = next(model.parameters())
    found = np.empty((len(plan.timesteps), len(images), plan.num_candidates))
    for rows in _blocks(len(images), max(1, plan.batch_size // plan.num_candidates)):
        pixels, labels = images.fetch(rows)
        x = to_signed(pixels)
        noise = normal(generators(plan.seed, "caption noise", rows), x.shape[1:])
        y = torch.stack(
            [candidates(int(label), row, images.num_classes, plan) for label, row in zip(labels, rows, strict=True)]
        )
        for place, t in enumerate(plan.timesteps):
            noisy, target = ((1 - t) * x + t * noise).to(like), (noise - x).to(like)
            wide = noisy.repeat_interleave(plan.num_candidates, dim=0)
            velocity, _ = model(wide, torch.full_like(wide[:, 0, 0, 0], t), y.flatten().to(like.device))
            errors = velocity.float() - target.repeat_interleave(plan.num_candidates, dim=0).float()
            found[place, rows] = errors.square().flatten(1).mean(1).unflatten(0, y.shape).cpu().double().numpy()
    return found


def candidates(label: int, row: int, num_captions: int, plan: Examination) -> Tensor:
    """Return the captions (K,) of image `row`, int64: its own, then others, all different."""
    if plan.num_candidates > num_captions:
        raise UserError(f"num_candidates {plan.num_candidates}: the data have {num_captions} captions")
    order = torch.randperm(num_captions - 1, generator=generator(plan.seed, "other captions", row))
    others = order[: plan.num_candidates - 1]
    return torch.cat([torch.tensor([label]), others + (others >= label)])


def first(errors: np.ndarray) -> np.ndarray:
    """Return whether the true caption, the first of (N, K), has the lowest error: a tie is no success, (N,) bool."""
    best: np.ndarray = errors[:, 0] < errors[:, 1:].min(1)
    return best


def share(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error of the mean of (N,) values."""
    numbers = np.asarray(values, dtype=np.float64)
    return float(numbers.mean()), float(numbers.std(ddof=1) / math.sqrt(len(numbers))) if len(numbers) > 1 else math.nan


def _moments(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and covariance of pixels in [-1, 1]."""
    flat = images.reshape(len(images), -1) / 127.5 - 1
    return flat.mean(0), np.cov(flat, rowvar=False)


def _blocks(count: int, size: int) -> Iterator[list[int]]:
    for start in range(0, count, size):
        yield list(range(start, min(start + size, count)))


def _level(plan: Examination, judge: PairJudge, columns: Mapping[str, Any]) -> list[Row]:
    """Return what the judge says of real images that neither it nor the model has seen, and their distance."""
    images, reference = load_data(plan.data, "test"), load_data(plan.data, "reference")
    images = images.head(min(plan.num_samples, len(images)))
    right = judge.right(images.images, images.labels)
    record = {"kind": "captions, of real images", "data": plan.data, "split": "test", **judge.record()}
    rows = {"caption_digits": share(right.mean(1)), "caption_both": share(right.all(1))}
    own = {"run": columns.get("run"), "n": len(images), "protocol": record}
    made = [make_row(metric=f"{name}{REAL}", value=v, stderr=e, **own) for name, (v, e) in rows.items()]
    distance = frechet_distance(*_moments(reference.images), *_moments(images.images))
    return [*made, make_row(metric=f"fd_pixels{REAL}", value=distance, **own)]


def pictures(model: TextToImage, plan: Examination, labels: Sequence[int], strengths: Sequence[float]) -> Tensor:
    """Return uint8 samples (strengths, len(labels), C, H, W) of the captions, from the same noise, without guidance."""
    sampler = dataclasses.replace(plan.sampler(1.0), labels=tuple(labels))
    made = []
    for strength in strengths:
        with model.at_strength(strength):
            parts = generate(model, range(len(labels)), sampler, batch_size=plan.batch_size)
            made.append(torch.cat([images for _, images, _ in parts]))
    return torch.stack(made)
