"""`repa-eval demo`: the main job on the embedded data, from real images to a report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from repa_eval.console.app import INTERRUPTED, Command, example
from repa_eval.errors import UserError
from repa_eval.runtime.device import choose_device

ARMS = ("vanilla", "repa", "repa-random")
CONTROL = "repa-random"
FULL_STEPS = 1500
MIN_STEPS = 20
SMOKE = 300  # fewer steps than these: one map, few samples, to see in a minute that everything works


@click.command(cls=Command)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="demo", show_default=True, help="folder"
)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="train every arm N times")
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="seed of the first time")
@click.option(
    "--steps", type=click.IntRange(min=MIN_STEPS), default=FULL_STEPS, show_default=True, help="fewer: a smoke test"
)
@click.option("--device", default="cpu", show_default=True, help="the models are so small that a CPU is enough")
@click.option("--quiet", is_flag=True, help="show no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@example("repa-eval demo --out demo")
def command(out: Path, seeds: int, first_seed: int, steps: int, device: str, quiet: bool, as_json: bool) -> None:
    """Train three arms on real handwritten digits, measure them, and write OUT/report.html.

    The arms: a plain SiT, a SiT aligned with a self-supervised teacher (REPA), and a control aligned with the same
    teacher network with random weights. Nothing is downloaded. About seven minutes on two cores; an interrupted demo
    continues where it stopped.
    """
    import json

    from repa_eval.commands.report import write_report

    began = time.perf_counter()
    place = choose_device(device)
    runs = [
        _arm(arm, out / (f"{arm}-s{repeat}" if repeat else arm), first_seed + repeat, steps, place, quiet)
        for repeat in range(seeds)
        for arm in ARMS
    ]
    report = out / "report.html"
    write_report(tuple(runs), report, "REPA on handwritten digits")
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps({"runs": [str(run) for run in runs], "report": str(report), "seconds": seconds}))
    else:
        click.echo(f"done in {seconds:.0f} s; open {report.resolve().as_uri()}")


def _arm(arm: str, run: Path, seed: int, steps: int, device: str, quiet: bool) -> Path:
    """Train and measure one arm; return its run folder. A finished arm is left as it is."""
    from repa_eval.diffusion.timesteps import TIMESTEPS
    from repa_eval.interfaces.monitor import Only
    from repa_eval.monitors.alignment import AlignmentMap
    from repa_eval.monitors.copies import Copies
    from repa_eval.monitors.probes import Probes
    from repa_eval.monitors.real_level import Floor
    from repa_eval.monitors.sample_quality import Quality
    from repa_eval.monitors.shared.run import Subject
    from repa_eval.monitors.suites import of_recipe
    from repa_eval.monitors.token_colours import TokenPictures
    from repa_eval.train.loop import Interrupted, train
    from repa_eval.train.state import read_run

    recipe = _recipe(arm, seed, steps)
    record = read_run(run)
    for key, wanted in (("max_steps", steps), ("seed", seed)):
        if record is not None and record.get(key) != wanted:
            raise UserError(f"{run} holds a demo with {key} {record.get(key)}, not {wanted}; choose another --out")
    if record is not None and record.get("status") == "done":
        return run
    every = recipe.settings.evaluation.eval_every
    points = steps // every
    at = {every * max(1, points // 5), every * max(1, points // 2), steps} if steps >= SMOKE else {steps}
    subject = Subject(recipe, run, device)
    times = TIMESTEPS if steps >= SMOKE else TIMESTEPS[1:4:2]
    slow = [
        AlignmentMap(subject, _teachers(arm), timesteps=times, metrics=("cknna", "cka", "mutual_knn")),
        Probes(subject, _teachers(arm), timesteps=times),
        TokenPictures(subject, _teachers(arm)[-1]),
    ]
    watchers = [
        *of_recipe(subject),
        Floor(subject),
        Copies(Quality(subject)),
        *(Only(measure, at) for measure in slow),
    ]
    labels = {"control": arm == CONTROL, "baseline": arm == "vanilla"}
    try:
        train(recipe, run, monitors=watchers, resume=True, device=device, progress=not quiet, labels=labels)
    except Interrupted as stop:
        click.echo(f"{stop}; continue with the same command", err=True)
        raise SystemExit(INTERRUPTED) from stop
    return run


def _teachers(arm: str) -> list[str]:
    """Return what an arm is compared with: always the trained teacher, and the control's own as well."""
    return ["digits-vit", *(["digits-vit-random"] if arm == CONTROL else [])]


def _recipe(arm: str, seed: int, steps: int) -> Any:
    from repa_eval.train.recipe import read_recipe, resolve

    overrides: dict[str, Any] = {"seed": seed, "max_steps": steps}
    if steps < FULL_STEPS:
        # the same shape at any length: 15 points, or 4 in a smoke test, and a final measurement that its time allows
        points = 15 if steps >= SMOKE else 4
        overrides |= {"eval_every": max(1, steps // points), "checkpoint_every": max(1, steps // 3)}
        overrides |= {"warmup_steps": min(50, steps // 4)}
    if steps < SMOKE:
        overrides |= {"final_samples": 512, "num_samples": 256}
    return resolve(read_recipe(f"digits-{arm}"), overrides)
