"""`repa-eval demo`: the main job on the embedded data, from real images to a report."""

from __future__ import annotations

import time
from pathlib import Path

import click

from repa_eval.console.app import Command, example
from repa_eval.console.numbers import COUNT, SEED, Whole
from repa_eval.runtime.device import choose_device

FULL_STEPS = 1500
MIN_STEPS = 20


@click.command(cls=Command, short_help="Train, evaluate and report on digits")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="demo",
    show_default=True,
    help="folder for runs and report",
)
@click.option(
    "--seeds",
    type=COUNT,
    default=1,
    show_default=True,
    help="train every model with this many random seeds",
)
@click.option("--first-seed", type=SEED, default=0, show_default=True, help="random seed of the first repetition")
@click.option(
    "--steps",
    type=Whole(MIN_STEPS),
    default=FULL_STEPS,
    show_default=True,
    help="training steps per model; fewer than the default is a smoke test",
)
@click.option("--device", default="cpu", show_default=True, help="the models are so small that a CPU is enough")
@click.option("--quiet", is_flag=True, help="show no progress on stderr")
@click.option("--json", "as_json", is_flag=True, help="print only JSON on stdout")
@example("repa-eval demo --out demo")
def command(out: Path, seeds: int, first_seed: int, steps: int, device: str, quiet: bool, as_json: bool) -> None:
    """Train three models on real handwritten digits, evaluate them, and write OUT/report.html.

    The models: a plain SiT, a SiT aligned with a self-supervised teacher (REPA), and a control aligned with the same
    teacher network with random weights. Nothing is downloaded. The demo takes about seven minutes on two cores; an
    interrupted one continues where it stopped.
    """
    import json

    from repa_eval.commands.report import write_report
    from repa_eval.train.demo import MODELS, train_demo_model
    from repa_eval.train.loop import Interrupted

    began = time.perf_counter()
    device = choose_device(device)
    runs = []
    for repeat in range(seeds):
        for model in MODELS:
            folder = out / (f"{model}-s{repeat}" if repeat else model)
            try:
                train_demo_model(
                    model, folder, seed=first_seed + repeat, steps=steps, device=device, progress=not quiet
                )
            except Interrupted as stop:
                click.echo(f"{stop}; continue with the same command", err=True)
                raise SystemExit(stop.exit_code) from stop
            runs.append(folder)
    report = out / "report.html"
    write_report(tuple(runs), report, "REPA on handwritten digits")
    seconds = time.perf_counter() - began
    if as_json:
        click.echo(json.dumps({"runs": [str(run) for run in runs], "report": str(report), "seconds": seconds}))
    else:
        click.echo(f"done in {seconds:.0f} s; open {report.resolve().as_uri()}")
