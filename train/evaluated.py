"""The run that monitors evaluate, filled in from the recipe that trains it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from repa_eval.diffusion.conventions import REVERSED
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.diffusion.model import DiffusionModel, depth_of, has_null_row
from repa_eval.features.hidden_states import label_record, model_record
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.method import name_of
from repa_eval.interfaces.monitor import Monitor
from repa_eval.interfaces.sampler import DEFAULT, SAMPLERS, default_sampler
from repa_eval.monitors.shared.run import EvaluatedRun, NetworkFacts, SampleRound
from repa_eval.monitors.shared.suites import training_monitors
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.train.recipe import Evaluation, Recipe


def evaluated_run(
    recipe: Recipe,
    folder: Path,
    device: str = "cpu",
    *,
    further_teachers: Sequence[str] = (),
    keep_samples: int = 0,
    processes: Share = ALONE,
) -> EvaluatedRun:
    """Return the run of a recipe that trains a diffusion model into a folder; see EvaluatedRun for the arguments."""
    method, settings = recipe.method, recipe.settings
    regular, final = _rounds(settings.evaluation)
    return EvaluatedRun(
        folder=folder,
        system=method.systems[0] if method.systems else None,
        method=name_of(method),
        train_seed=settings.seed,
        data=settings.data,
        split=settings.split,
        last_step=settings.max_steps,
        network=_network_facts(recipe),
        interpolant=getattr(method, "interpolant", Interpolant()),
        generates=generates(recipe),
        bank=f"the checkpoint's, {getattr(method, 'bank', 'full')}",
        extractor=settings.evaluation.extractor,
        regular=regular,
        final=final,
        keep_samples=keep_samples,
        teachers=tuple(method.teachers()),
        teacher_weights=settings.teacher_weights,
        further_teachers=tuple(further_teachers),
        device=device,
        processes=processes,
    )


def monitors_of(recipe: Recipe, folder: Path, device: str = "cpu") -> list[Monitor]:
    """Return the monitors that the trainer calls for a recipe: none without evaluations or without samples."""
    if not recipe.settings.evaluation.eval_every or not generates(recipe):
        return []
    return training_monitors(evaluated_run(recipe, folder, device))


def generates(recipe: Recipe) -> bool:
    """Return whether images can be generated from what is trained last: no encoder, no network without its bank."""
    return recipe.method.samples and recipe.method.stages()[-1].samples


def _rounds(evaluation: Evaluation) -> tuple[SampleRound, SampleRound | None]:
    regular = SampleRound(num_samples=evaluation.num_samples, num_steps=evaluation.num_steps)
    final = SampleRound(num_samples=evaluation.final_samples, num_steps=evaluation.final_num_steps)
    return regular, final if final.num_samples else None


def _network_facts(recipe: Recipe) -> NetworkFacts:
    network: type[DiffusionModel] = find_preset(recipe.model)[0].build  # type: ignore[assignment]
    has_null = network.conditioning != "class" or has_null_row(recipe.architecture)
    return NetworkFacts(
        depth=depth_of(recipe.architecture),
        sampler=_sampler_of(network),
        conditioning=network.conditioning,
        has_class_token=network.has_class_token,
        record={**model_record(network), **({} if has_null else label_record(recipe.architecture))},
        has_null_label=has_null,
    )


def _sampler_of(network: type[DiffusionModel]) -> str:
    """Return the sampler of all evaluations, "" for the default one where the protocols of runs do not name it.

    The published sampler of a network in reversed time is another one; its numbers belong to another table.
    """
    if network.native == REVERSED:
        return DEFAULT
    chosen = SAMPLERS.get(default_sampler(network))
    return chosen.name if chosen.named_in_runs else ""
