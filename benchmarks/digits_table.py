"""Print the tables of docs/digits.md from the run folders of `repa-eval demo --seeds 3 --first-seed 3`.

    python benchmarks/digits_table.py DEMO [RETRAINED ...]

DEMO is the folder of the demo; further folders hold runs of digits-repa with a retrained teacher.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from repa_eval.commands.shared.metric_words import metric_words
from repa_eval.reports.inputs import collect
from repa_eval.reports.numbers.compare import summary
from repa_eval.reports.numbers.words import Metrics

STEPS = (100, 200, 300, 500, 700, 1000, 1200, 1500)


def main(folders: list[Path]) -> None:
    demo, retrained = folders[0], folders[1:]
    inputs = collect(sorted(path.parent for path in demo.glob("*/run.json")))
    print("\n".join(curve_table(inputs.rows)))
    print()
    print("\n".join(summary_table(summary(inputs.rows, inputs.curves, inputs.runs, Metrics(metric_words())))))
    if retrained:
        print()
        print("\n".join(curve_table(collect(retrained).rows)))


def curve_table(rows: Any) -> list[str]:
    """Return fd_digits by run and step, 512 samples."""
    values = {(row.run, row.step): row.value for row in rows if row.metric == "fd_digits" and row.n == 512}
    runs = sorted({run for run, _ in values})
    lines = [f"| run | {' | '.join(map(str, STEPS))} |", "|---" * (len(STEPS) + 1) + "|"]
    return lines + [f"| {run} | {' | '.join(_number(values.get((run, step))) for step in STEPS)} |" for run in runs]


def summary_table(entries: list[dict[str, Any]]) -> list[str]:
    """Return a line per quantity and arm."""
    lines = ["| quantity | arm | value | lowest .. highest | sd | seeds | baseline | arm's own |", "|---" * 8 + "|"]
    for entry in entries:
        spread = f"{_number(entry['low'])} .. {_number(entry['high'])}"
        own = (_number(entry["baseline_value"]), _number(entry["treated_value"]))
        cells = (entry["quantity"], entry["treated"], _number(entry["value"]), spread, _number(entry["sd"]))
        lines.append(f"| {' | '.join(map(str, (*cells, entry['seeds'], *own)))} |")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])
