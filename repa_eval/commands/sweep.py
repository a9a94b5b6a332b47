"""`repa-eval sweep`: every monitor of every checkpoint of runs that has no rows yet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.foreign_runs import ForeignOptions, SampleOptions
from repa_eval.commands.shared.quality_options import ReferenceCacheOptions, reference_cache_options
from repa_eval.commands.shared.sample_options import SamplerFlags, SamplerOptions, sampler_flags
from repa_eval.commands.shared.sweep_targets import ForeignTarget, OwnTarget, Target, checkpoint_folder, is_own
from repa_eval.console.app import Command, example
from repa_eval.console.numbers import Real, Whole
from repa_eval.console.option_groups import flag, given, option_group
from repa_eval.console.options import (
    ComputeOptions,
    DataOptions,
    GridOptions,
    LoadingOptions,
    RowsOptions,
    compute_options,
    data_options,
    grid_options,
    json_option,
    loading_options,
)
from repa_eval.console.tables import deliver
from repa_eval.errors import Failure, UserError
from repa_eval.runtime.device import choose_device

# options that also apply where a recipe says how its run is measured: --data are its data, where these are files, and
# --teacher further teachers
OF_EVERY_RUN = frozenset(
    {
        "runs",
        "watch",
        "every",
        "data_name",
        "teacher_name",
        "method_file",
        "keep_samples",
        "device",
        "quiet",
        "as_json",
        "plugin",
        "debug",
    }
)


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Which checkpoints are looked at, and where the rows go."""

    out: Path | None = flag(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        help="write rows and pictures to OUT/<name of the run>; default: into the run, if repa-train made it",
    )
    watch: bool = flag("--watch", is_flag=True, help="go on until the trainer has finished; of others: until Ctrl-C")
    every: float = flag("--every", type=Real(0.1, 86_400), default=10.0, help="seconds between looks")
    method_file: str | None = flag(
        "--method", help="Python file of the method that was trained, if it is not installed"
    )
    keep_samples: int = flag(
        "--keep-samples",
        type=Whole(0),
        default=0,
        help="leave the samples of the N newest checkpoints in the folder samples/",
    )
    test_data: str | None = flag(
        "--test-data",
        metavar="NAME|KIND:PATH",
        help="test images of the probes; without it, data without splits are divided by --seed",
    )


@click.command(cls=Command, short_help="Measure every checkpoint of runs")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@option_group("options", SweepOptions)
@grid_options
@data_options
@option_group("samples", SampleOptions)
@option_group("sampler", SamplerOptions)
@sampler_flags
@loading_options
@reference_cache_options
@compute_options
@json_option
@example("repa-eval sweep runs/digits-repa")
def command(
    runs: tuple[Path, ...],
    options: SweepOptions,
    grid: GridOptions,
    images: DataOptions,
    samples: SampleOptions,
    sampler: SamplerOptions,
    flags: SamplerFlags,
    loading: LoadingOptions,
    cache: ReferenceCacheOptions,
    compute: ComputeOptions,
    as_json: bool,
) -> None:
    """Measure alignment, probes and sample quality for every checkpoint of runs that has none yet.

    A run of repa-train is measured as its recipe says. A run of another trainer (a folder with checkpoints/0050000.pt
    ...), or an own one for which such options are given, is measured as the options say: --data and --reference, --vae
    for a model of latents, --out.

    Safe to repeat, to interrupt, and to run beside the trainer: what is measured is kept, what is missing is added.
    Sweeps of one run, started beside each other, divide the work. Under `accelerate launch` or torchrun the processes
    divide samples and their features among them.
    """
    from repa_eval.interfaces.method import METHODS
    from repa_eval.runtime.distributed import join

    for run in runs:
        checkpoint_folder(run)
    if options.method_file is not None:
        METHODS.load_file(options.method_file)
    processes = join(choose_device(compute.device))
    by_options = ForeignOptions(
        loading=loading,
        grid=grid,
        data=images,
        test_data=options.test_data,
        samples=samples,
        sampler=sampler,
        flags=flags,
        compute=compute,
        keep_samples=options.keep_samples,
    )
    targets = _targets(runs, options, by_options, cache, processes)
    added = _sweep(targets, options, processes, quiet=compute.quiet)
    folders = " ".join(str(target.folder) for target in targets)
    done = f"{len(added)} rows added; next: repa-eval report {folders}"
    if processes.first:
        deliver(added, RowsOptions(as_json=as_json), show=lambda _rows: done)
    for target in targets:
        _refuse_lost(target, watched=options.watch)


def _targets(
    runs: tuple[Path, ...],
    options: SweepOptions,
    by_options: ForeignOptions,
    cache: ReferenceCacheOptions,
    processes: Any,
) -> list[Target]:
    """Return the runs; what measures those of others is opened and checked, where they have a checkpoint already."""
    from repa_eval.interfaces.teacher import split_names

    context = click.get_current_context()
    described = any(given(name) for name in context.params if name not in OF_EVERY_RUN)
    teachers = split_names(by_options.grid.teacher_name or "")
    targets: list[Target] = []
    for run in dict.fromkeys(runs):
        own = is_own(run)
        if own and not described:
            targets.append(
                OwnTarget(
                    run,
                    processes,
                    data=by_options.grid.data_name,
                    teachers=teachers,
                    keep_samples=options.keep_samples,
                )
            )
            continue
        if options.out is None and not own:
            raise UserError(f"{run} is no run of repa-train: add --out FOLDER for its rows, and say how it is measured")
        folder = run if options.out is None else options.out / run.resolve().name
        if any(target.folder.resolve() == folder.resolve() for target in targets):
            raise UserError(f"two runs are called {folder.name}: sweep them into different --out")
        targets.append(ForeignTarget(run, folder, processes, by_options, None))
    foreign = [target for target in targets if isinstance(target, ForeignTarget)]
    opened = cache.open() if foreign else None
    for target in foreign:
        target.cache = opened
        if not target.prepare() and not options.watch:
            more = f"; {len(target.refusals) - 1} more could not be opened" if len(target.refusals) > 1 else ""
            first = next(iter(target.refusals), f"{checkpoint_folder(target.run)} holds no checkpoints yet")
            raise Failure(f"{first}{more}")
    return targets


def _sweep(targets: list[Target], options: SweepOptions, processes: Any, *, quiet: bool) -> list[Any]:
    """Return the rows that were added, once everything is measured, or once the trainers have finished."""
    from repa_eval.monitors.shared.missing import evaluate_missing
    from repa_eval.runtime.run_record import RUNNING

    if options.watch and processes.first and not quiet:
        for target in targets:
            if isinstance(target, ForeignTarget):
                click.echo(f"{target.run}: no run of repa-train, so its end is not known: stop with Ctrl-C", err=True)
    claims = {target.folder: target.claims() for target in targets if isinstance(target, OwnTarget)}
    added = list[Any]()
    while True:
        # asked before the look, so that the last checkpoint is not missed
        running = processes.agree([target.status() == RUNNING for target in targets])
        postponed = 0
        for target in targets:
            if isinstance(target, ForeignTarget) and not target.prepare():
                continue
            held = claims.setdefault(target.folder, target.claims())
            held.postponed = 0
            announce = _silent if quiet else _announcer(target if len(targets) > 1 else None)
            for rows in evaluate_missing(target.checkpoints(), announce, held):
                added += rows
            others = processes.agree(held.postponed)
            if others and isinstance(target, ForeignTarget):
                target.remeasure()
            postponed += others
        watches = options.watch and any(running)
        if not watches and not postponed:
            return added
        time.sleep(options.every if watches else min(options.every, 1.0))


def _refuse_lost(target: Target, *, watched: bool) -> None:
    """Failure if a run that was watched did not come to its end, or if checkpoints could not be measured."""
    from repa_eval.runtime.run_record import FAILED, STOPPED, read_record

    run, status = target.run, target.processes.agree(target.status()) if watched else None
    if status == STOPPED:
        again = f"repa-train --recipe {run}/recipe.yaml --out {run} --resume"
        raise Failure(
            f"{run}: its status is running, but no trainer runs (nobody holds its lock); continue with: {again}"
        )
    if status == FAILED:
        reason = (read_record(run) or {}).get("reason")
        raise Failure(f"{run}: training failed: {reason}")
    if target.damaged:
        names = ", ".join(path.name for path in sorted(target.damaged))
        raise Failure(f"{run}: {names} could not be measured")


def _announcer(target: Target | None) -> Any:
    """Return what says which monitor measures which step; of several runs, also which of them."""
    name = "" if target is None else f"{target.folder.name}, "

    def announce(step: int, monitor: object) -> None:
        click.echo(f"{name}step {step}: {type(monitor).__name__}", err=True)

    return announce


def _silent(step: int, monitor: object) -> None:
    """Announce nothing."""
