"""What a trainer measures of its own model: callables (step, model) -> rows. Here training and measuring meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repa_eval.align import METRICS, TIMESTEPS, align
from repa_eval.data._registry import Images, load_data
from repa_eval.extractors._registry import load_extractor
from repa_eval.fidelity import evaluate
from repa_eval.interpolant import Interpolant
from repa_eval.models.layers import DiffusionModel
from repa_eval.results import Row, write_atomic
from repa_eval.sampling.generate import SamplerSettings, generate
from repa_eval.teachers._registry import Teacher, load_teacher
from repa_eval.train.loop import Monitor
from repa_eval.train.recipe import Recipe

STRIP = 10  # images of a preview, always from the same noise and of the first ten classes
GAP = 1  # pixels between them
MAP_IMAGES = 600


def columns_of(recipe: Recipe, run: Path, step: int) -> dict[str, Any]:
    """Return the columns that say which model a row speaks of."""
    from repa_eval.train.methods.base import name_of

    systems = recipe.method.systems
    return {
        "run": run.name,
        "system": systems[0] if systems else None,
        "method": name_of(recipe.method),
        "step": step,
        "weights": "ema",
        "train_seed": recipe.settings.seed,
    }


def quality_monitor(recipe: Recipe, run: Path, *, device: str = "cpu") -> Monitor:
    """Return a monitor of sample quality by the recipe's extractor, and by pixels as a second opinion."""
    settings = recipe.settings.evaluation
    reference = load_data(recipe.settings.data, "reference")
    judge, second = load_extractor(settings.extractor).to(device), load_extractor("pixel_pca")

    def measure(step: int, model: DiffusionModel) -> Iterable[Row]:
        last = step >= recipe.settings.max_steps
        rounds = [(settings.num_samples, settings.num_steps)]
        if last and settings.final_samples:
            rounds.append((settings.final_samples, settings.final_num_steps))
        rows = []
        for count, num_steps in rounds:
            sampler = SamplerSettings(num_steps=num_steps, seed=0)
            samples = draw(model, count, sampler)
            columns = {**columns_of(recipe, run, step), "seed": sampler.seed}
            record = {**sampler.record(), "weights": "ema", "dtype": "float32"}
            rows += evaluate(samples, reference, judge, protocol=record, columns=columns)
            rows += evaluate(samples, reference, second, metrics=("fd",), protocol=record, columns=columns)
        return rows

    return measure


def floor_monitor(recipe: Recipe, run: Path, *, device: str = "cpu") -> Monitor:
    """Return a monitor that measures, once, real training images against the reference: the level samples can reach."""
    settings = recipe.settings.evaluation
    train, reference = load_data(recipe.settings.data, "train"), load_data(recipe.settings.data, "reference")
    judge = load_extractor(settings.extractor).to(device)
    columns = {"run": run.name, "train_seed": recipe.settings.seed}

    def measure(step: int, model: DiffusionModel) -> Iterable[Row]:
        if step < recipe.settings.max_steps:
            return []
        rows: list[Row] = []
        for count in (settings.num_samples, settings.final_samples):
            # the reference is the head of the training images: take others
            others = train.part(len(reference), len(reference) + count)
            record = {"samples": "real training images outside the reference"}
            measured = evaluate(others, reference, judge, metrics=("fd",), protocol=record, columns=columns)
            rows += [dataclasses.replace(row, metric=f"{row.metric}_floor") for row in measured]
        return rows

    return measure


def preview_monitor(run: Path) -> Monitor:
    """Return a monitor that leaves media/samples-<step>.png: the same noise at every step, in every run."""

    def draw_strip(step: int, model: DiffusionModel) -> Iterable[Row]:
        images = draw(model, STRIP, SamplerSettings(num_steps=25, seed=1, balanced=True)).images
        write_atomic(run / "media" / f"samples-{step:07d}.png", strip(images))
        return ()

    return draw_strip


def map_monitor(
    recipe: Recipe,
    run: Path,
    *,
    teachers: Sequence[str],
    at: Collection[int],
    timesteps: Sequence[float] = TIMESTEPS,
    metrics: Sequence[str] = METRICS,
    num_images: int = MAP_IMAGES,
    device: str = "cpu",
) -> Monitor:
    """Return a monitor of the whole layer x timestep map against each teacher, at the steps in `at`."""
    images = load_data(recipe.settings.data, "test-large").head(num_images)
    loaded: list[Teacher] = [load_teacher(name).to(device) for name in teachers]
    interpolant = getattr(recipe.method, "interpolant", Interpolant())

    def measure(step: int, model: DiffusionModel) -> Iterable[Row]:
        if step not in at:
            return []
        layers = range(1, model.config.depth + 1)
        columns = columns_of(recipe, run, step)
        rows: list[Row] = []
        for teacher in loaded:
            rows += align(
                model,
                teacher,
                images,
                layers=layers,
                timesteps=timesteps,
                metrics=metrics,
                interpolant=interpolant,
                columns=columns,
            )
        return rows

    return measure


def draw(model: DiffusionModel, count: int, sampler: SamplerSettings) -> Images:
    """Return `count` samples of a model, held in memory."""
    parts = list(generate(model, range(count), sampler, batch_size=min(count, 256)))
    images = torch.cat([images for _, images, _ in parts]).numpy()
    labels = torch.cat([labels for _, _, labels in parts]).numpy()
    return Images("samples", "all", images, labels, model.config.num_classes)


def strip(images: np.ndarray[Any, Any]) -> bytes:
    """Return a PNG with images uint8 (N, C, H, W) side by side."""
    from repa_eval.samples import png

    framed = np.pad(images, ((0, 0), (0, 0), (GAP, GAP), (GAP, GAP)), constant_values=96)
    return png(np.concatenate(list(framed), axis=-1))


def of_recipe(recipe: Recipe, run: Path, *, device: str = "cpu") -> list[Monitor]:
    """Return the monitors that a recipe asks for."""
    if not recipe.settings.evaluation.eval_every or not recipe.method.samples:
        return []
    return [quality_monitor(recipe, run, device=device), preview_monitor(run)]
