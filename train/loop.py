"""The trainer: one loop, read from top to bottom. It knows no method by name.

Order, noise, times and label drops are functions of (seed, step, position in the batch): the same for any number of
processes, and a resumed run equals one that never stopped.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from repa_eval.checkpoints.repa_train import KEYS
from repa_eval.diffusion import conventions
from repa_eval.errors import UserError
from repa_eval.features.model_input import ModelInput
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.method import Batch, Method, name_of
from repa_eval.interfaces.monitor import piece_of
from repa_eval.interfaces.teacher import Teacher
from repa_eval.results import Row
from repa_eval.runtime import seeding
from repa_eval.runtime.run_lock import RunLock
from repa_eval.train import batches, finite, resumption, stages, state, whole_batch
from repa_eval.train.callbacks import Callback, Callbacks, LogFunction
from repa_eval.train.given_features import load_teachers
from repa_eval.train.progress import Progress
from repa_eval.train.recipe import Recipe, Settings
from repa_eval.train.stopping import Interrupted as Interrupted
from repa_eval.train.stopping import interruptible
from repa_eval.train.trackers import Trackers, named_trackers, project_of
from repa_eval.train.writer import Writer, environment

log = logging.getLogger(__name__)
Evaluate = Callable[[int, Any], Iterable[Row]]  # (step, averaged model) -> rows: a Monitor, or any function


class Objective(nn.Module):
    """Model, extras and method as one module, so that a wrapper such as DDP sees a single forward."""

    def __init__(self, model: nn.Module, extras: nn.ModuleDict, method: Method) -> None:
        super().__init__()
        self.model = model
        self.extras = extras
        self.method = method

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Return the method's terms, each reduced to its mean."""
        batch.modules = self.extras
        whole_batch.encode(self.model, batch)
        return {name: term.mean() for name, term in self.method.losses(self.model, batch, step).items()}


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    monitors: Sequence[Evaluate] = (),
    callbacks: Iterable[Callback | LogFunction] = (),
    resume: bool = False,
    allow_changed_plugin: bool = False,
    device: str = "auto",
    progress: bool = True,
    labels: Mapping[str, Any] | None = None,
) -> Path:
    """Train a recipe into the folder `out` (what lies there: product.md 7) and return its last checkpoint.

    monitors: called with (step, averaged model) every evaluation.eval_every steps and after the last; their rows are
    appended to results.jsonl. callbacks: told of curves, rows and checkpoints, by the first process.
    resume: continue from the last checkpoint, or start where nothing is there.
    allow_changed_plugin: even if the file of a plug-in is not the one that the run began with.
    labels: further entries of run.json, for the report. Raises Interrupted after Ctrl-C, SIGTERM or SIGUSR1,
    everything saved. Failure where a loss or a weight is no longer finite: such a step is never saved.
    """
    run, settings = Path(out), recipe.settings
    accelerator = accelerator_for(settings, device, run)
    trackers = Trackers(accelerator, recipe)
    told = Callbacks((trackers, *callbacks))
    share = batches.share_of(settings.batch_size, accelerator, settings.gradient_accumulation)
    resumption.open_run(run, recipe, resume=resume)
    accelerator.wait_for_everyone()  # every process has looked before one of them writes

    with contextlib.ExitStack() as opened:
        if accelerator.is_main_process:
            opened.enter_context(RunLock(run))
        images = _images_of(recipe)
        teachers = load_teachers(recipe, images, accelerator.device)
        resolved = stages.resolve_stages(recipe, images, teachers)
        recipe = resolved[-1].recipe
        position = resumption.position_of(run, resolved, allow_changed_plugin=allow_changed_plugin)
        if position.checkpoint is not None and position.complete:
            return position.checkpoint
        step, stopped_by = position.step, None
        writer = None
        if accelerator.is_main_process:
            writer = opened.enter_context(Writer(run, recipe, _record(recipe, run, labels), step))
        seconds = writer.seconds if writer else 0.0
        shown = opened.enter_context(Progress(recipe, step, shown=progress and writer is not None))
        interrupted = opened.enter_context(interruptible())
        if writer:
            for note in position.notes:
                log.warning("%s", note)

        for stage in position.remaining:
            _, objective = build(stage.recipe, images, teachers)
            optimizer = settings.optim.build(stage.recipe.method.parameter_groups(objective.model, objective.extras))
            resumed = position.resumes(stage)
            begin = functools.partial(stages.begin, stage, run, objective.model, images, teachers)
            if not resumed:
                begin()
            reads = batches.reads_of(images, objective.model)
            if accelerator.num_processes * settings.gradient_accumulation > 1:
                _refuse_coupled_terms(objective, stage, step, images, reads, teachers, accelerator.device)
            ema = state.average_of(objective.model)
            if resumed:
                position.restore(objective, ema, optimizer, accelerator.scaler, begin=begin)
            ema.to(accelerator.device)
            wrapped, optimizer = accelerator.prepare(objective, optimizer)
            if writer and stage is position.remaining[0]:
                writer.start()  # from here on the folder changes
            torch.manual_seed(seeding.derive(settings.seed, "torch", step))  # ours never draw from it; a plug-in might
            watched = monitors if stage.samples else ()
            if resumed and position.status != "done":  # it may have been killed between checkpoint and measurement
                _evaluate(writer, told, watched, ema, step, settings)
            for fetched in batches.loader(images, stage.recipe, step, share, reads=reads):
                began = time.perf_counter()
                asked = () if stage.recipe.method.stopped(objective.extras) else teachers
                parts = batches.parts(fetched, stage.recipe, step, share, asked, accelerator.device, reads=reads)
                terms, norm = update(
                    accelerator, wrapped, parts, step, optimizer, ema, stage.recipe.settings, first=stage.first
                )
                step += 1
                seconds += time.perf_counter() - began

                done = step == stage.last
                stopped_by = _anywhere(accelerator, interrupted()) if step < settings.max_steps else None
                logs = done or step % settings.log_every == 0
                saves = done or bool(stopped_by) or step % settings.checkpoint_every == 0
                values = _losses(terms, norm) if logs or saves else {}
                finite.refuse_losses(step, values)
                if writer and logs:
                    values = {**values, "learning_rate": optimizer.param_groups[0]["lr"], "train_seconds": seconds}
                    writer.curves(step, values)
                    told.on_log(step, values)
                    shown.point(step, values)
                if saves:
                    bare = accelerator.unwrap_model(wrapped)
                    finite.refuse_weights(step, bare.model, ema, bare.extras, optimizer)
                if saves and writer:
                    writer.sync()
                    told.on_checkpoint(_save(run, accelerator, bare, ema, optimizer, step, stage.recipe, reads))
                    state.remove_others(run, settings.keep)
                if stopped_by:
                    break
                shown.pause()
                _evaluate(writer, told, watched, ema, step, settings)
                shown.go_on()
                shown.advance()
            if stopped_by:
                break
            accelerator.wait_for_everyone()  # the checkpoint that the next stage starts from is written
            if stage is not resolved[-1]:
                accelerator.free_memory()
        accelerator.wait_for_everyone()
        if writer:
            writer.finish("interrupted" if stopped_by else "done", step)
            trackers.finish()
    if stopped_by:
        raise Interrupted(f"stopped at step {step}; everything is saved", stopped_by)
    return state.checkpoint_path(run, step)


def _evaluate(
    writer: Writer | None, told: Callbacks, monitors: Iterable[Evaluate], ema: nn.Module, step: int, settings: Settings
) -> None:
    """Write the rows of the monitors, where a step is due for them: every eval_every, and the last."""
    if writer and step and (step == settings.max_steps or _due(step, settings.evaluation.eval_every)):
        for monitor in monitors:
            with writer.claims.taken(piece_of(step, monitor)):  # a sweep of the run leaves it to the trainer
                told.on_rows(writer.rows(monitor(step, conventions.as_project_convention(ema.eval()))))


def build(recipe: Recipe, images: ImageSource, teachers: Sequence[Teacher]) -> tuple[Recipe, Objective]:
    """Return the recipe with its architecture resolved against data and teachers, and the fresh objective."""
    recipe = stages.fitted(recipe, images, teachers)
    architecture, _ = find_preset(recipe.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(recipe.settings.seed, "weights"))
        model = architecture.build(recipe.architecture)
        extras = recipe.method.modules(model, teachers)
    return recipe, Objective(model, extras, recipe.method)


def update(
    accelerator: Accelerator,
    wrapped: nn.Module,
    parts: Iterable[Batch],
    step: int,
    optimizer: torch.optim.Optimizer,
    ema: nn.Module,
    settings: Settings,
    *,
    first: int = 0,
    lap: batches.Lap = batches.no_lap,
) -> tuple[dict[str, Tensor], Tensor]:
    """Take one optimisation step; return its terms (means over all processes) and the gradient norm before clipping.

    Order as in REPA's trainer: backward, clip, optimiser, average. first: the step at which the stage began, from which
    its schedules count. lap: called with the name of each part of the step when it is done.
    """
    wrapped.train()
    terms: dict[str, Tensor] = {}
    settings.optim.set_rates(optimizer, step - first, settings.max_steps - first)
    for batch in parts:
        batch.ema = ema
        with accelerator.autocast():
            part = {name: term / settings.gradient_accumulation for name, term in wrapped(batch, step).items()}
        lap("forward")
        accelerator.backward(torch.stack(list(part.values())).sum())
        lap("backward")
        terms = {name: terms.get(name, 0) + term.detach() for name, term in part.items()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = accelerator.clip_grad_norm_(parameters, settings.optim.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    lap("optimiser")
    bare: Objective = accelerator.unwrap_model(wrapped)
    state.update_average(ema, bare.model, settings.ema.decay(step - first, settings.max_steps - first))
    with torch.no_grad():
        bare.method.after_step(bare.model, bare.extras, batch, step)
    lap("average")
    if accelerator.num_processes > 1:
        terms = accelerator.reduce(terms, reduction="mean")
    return terms, norm


def _refuse_coupled_terms(
    objective: Objective,
    stage: stages.ResolvedStage,
    step: int,
    images: ImageSource,
    reads: ModelInput,
    teachers: Sequence[Teacher],
    device: torch.device,
) -> None:
    """UserError if several processes or parts would train another loss than one; looked at as the stage begins."""
    count = min(whole_batch.IMAGES, len(images)) // 2 * 2
    if not count:
        return
    looked_at = {
        number: batches.first_batch(count, images, stage.recipe, number, teachers, device, reads=reads)
        for number in sorted({step, max(step, stage.last - 1)})
    }
    parts = stage.recipe.settings.gradient_accumulation
    whole_batch.refuse_coupled_terms(objective.model, objective.extras, objective.method, looked_at, num_parts=parts)


def _images_of(recipe: Recipe) -> ImageSource:
    """Return the data of a training; UserError, before a teacher is loaded, for what cannot be used."""
    settings = recipe.settings
    images = load_data(settings.data, settings.split)
    if images.sequential:
        raise UserError(f"data {settings.data} is read in order, and training shuffles it; use hf:NAME instead")
    stages.refuse_images_for_latents(recipe, images)
    images.survey(range(len(images)))
    return images


def accelerator_for(settings: Settings, device: str, run: Path) -> Accelerator:
    """Return accelerate's object on the device asked for; "cuda:1" is a wish that only its environment can tell it."""
    if device.startswith("cuda:"):
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    if settings.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if device == "cpu" and settings.mixed_precision == "fp16":
        log.warning("mixed_precision fp16 has no effect on the CPU, which computes in float32")
    # a term that has stopped (or a stub's missing part) leaves parameters without a gradient
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    AcceleratorState._reset_state()  # accelerate remembers the precision of a training before this one in the process
    return Accelerator(
        mixed_precision=settings.mixed_precision,
        cpu=device == "cpu",
        kwargs_handlers=[unused],
        log_with=named_trackers(settings.log_with) or None,
        project_config=project_of(run),
    )


def _save(
    run: Path,
    accelerator: Accelerator,
    bare: Objective,
    ema: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int,
    recipe: Recipe,
    reads: ModelInput,
) -> Path:
    rng = {"seed": recipe.settings.seed, "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {}}
    states = (bare.model.state_dict(), ema.state_dict(), bare.extras.state_dict(), optimizer.state_dict())
    scale = {} if reads.kind == "images" else reads.scale.record()
    values = (*states, step, rng, {**recipe.to_dict(), **scale})
    path = state.checkpoint_path(run, step)
    state.save_checkpoint(path, dict(zip(KEYS, values, strict=True)))
    return path


def _record(recipe: Recipe, run: Path, labels: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "run": run.name,
        "recipe": recipe.name,
        "description": recipe.settings.description,
        "method": name_of(recipe.method),
        "system": recipe.method.systems[0] if recipe.method.systems else None,
        "systems": list(recipe.method.systems),
        "teacher": ",".join(recipe.method.teachers()) or None,
        "aligned_layer": recipe.method.aligned_layer(),
        "aligned_until": recipe.method.aligned_until(),
        "max_steps": recipe.settings.max_steps,
        "seed": recipe.settings.seed,
        "train_seed": recipe.settings.seed,
        "environment": environment(),
        **(labels or {}),
    }


def _losses(terms: Mapping[str, Tensor], norm: Tensor) -> dict[str, float]:
    values = {name: float(term) for name, term in terms.items()}
    return {"loss": sum(values.values()), **values, "grad_norm": float(norm)}


def _anywhere(accelerator: Accelerator, signal: int | None) -> int | None:
    """Return the signal that any process was sent, so that all of them stop at the same step."""
    if accelerator.num_processes == 1:
        return signal
    sent = accelerator.gather(torch.tensor([signal or 0], device=accelerator.device))
    return int(sent.max()) or None


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
