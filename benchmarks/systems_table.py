"""The table and curves of docs/systems.md from finished runs: python benchmarks/systems_table.py RUN... --out docs."""

from __future__ import annotations

from pathlib import Path

import click
import matplotlib
import matplotlib.pyplot as plt

from repa_eval import results

STEPS = (100, 300, 500, 700, 1000, 1400)
METRIC = "fd_digits"


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(runs: tuple[Path, ...], out: Path) -> None:
    """Print the table (one line a run, in the order given) and write systems.png."""
    matplotlib.use("agg")
    _, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    print(f"| run | {' | '.join(f'step {step}' for step in STEPS)} | last, n=2000 | training seconds |")
    print("|---|" + "---|" * (len(STEPS) + 2))
    for run in runs:
        rows = [row for row in results.read(run) if row.metric == METRIC and row.step]
        curve = {row.step: row.value for row in rows if row.n == 512}
        last = next(row.value for row in rows if row.n == 2000)
        seconds = [row.value for row in results.read(run / results.CURVES) if row.metric == "train_seconds"]
        cells = [f"{value:.2f}" if (value := curve.get(step)) is not None else "-" for step in STEPS]
        print(f"| {run.name} | {' | '.join(cells)} | {last:.2f} | {seconds[-1]:.0f} |")
        axes.plot(list(curve), list(curve.values()), label=run.name, marker=".", linewidth=1)
    axes.set(xlabel="step", ylabel=f"{METRIC} (lower is better)", yscale="log")
    axes.legend()
    plt.savefig(out / "systems.png", dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
