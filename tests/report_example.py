"""A synthetic table like the demo's: three arms, 15 evaluations, maps at three checkpoints, logs and sample strips.

Every number comes from closed formulas, so that a test can say in advance what the report must say.
"""

from __future__ import annotations

import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from repa_eval.results import Row, append, make_row, protocol_hash

STEPS = tuple(range(100, 1501, 100))
MAP_STEPS = (500, 1000, 1500)
LAYERS = (1, 2, 3, 4, 5, 6)
TIMES = (0.05, 0.1, 0.3, 0.5, 0.6)
FACTORS = {"vanilla": 1.0, "repa": 0.85, "repa-random": 0.82}  # on the Frechet distance, at every step
HEIGHTS = {"vanilla": 0.09, "repa": 0.39, "repa-random": 0.12}  # CKNNA at block 3, t = 0.1
MS = {"vanilla": 31.0, "repa": 35.0, "repa-random": 35.0}

_QUALITY = {
    "kind": "sample quality",
    "extractor": "digits-judge",
    "extractor_weights": "sha256:51f0c1c2",
    "reference": "digits train, augmented",
    "reference_hash": "9c41d0aa77e0",
    "sampler": "ode-euler",
    "cfg_scale": 1.0,
    "labels": "balanced",
    "uint8": "round half to even",
    "seed": 0,
}
FREQUENT = _QUALITY | {"num_samples": 512, "num_steps": 16}
FINAL = _QUALITY | {"num_samples": 2000, "num_steps": 25}
PIXELS = {"extractor": "pixel-pca-32", "extractor_weights": None}


def alignment(metric: str, teacher: str) -> dict[str, Any]:
    return {
        "kind": "alignment",
        "metric": metric,
        "teacher": teacher,
        "teacher_weights": f"sha256:{len(teacher):08x}",
        "pooling": "mean",
        "label": None,
        "data": "digits",
        "split": "held out",
        "num_images": 600,
        "normalise": True,
        "k": 10 if metric != "cka" else None,
        "t_convention": "1 = noise",
        "seed": 0,
    }


def distance(run: str, step: int) -> float:
    return FACTORS[_arm(run)] * (1.0 + 0.02 * _seed(run)) * (12.0 * math.exp(-step / 280) + 0.97)


def run_row(run: str, **columns: Any) -> Row:
    method = "vanilla" if run.startswith("vanilla") else "repa"
    system = "vanilla SiT" if method == "vanilla" else "REPA"
    return make_row(run=run, method=method, system=system, train_seed=_seed(run), **columns)


def quality_rows(run: str, steps: Sequence[int] = STEPS) -> list[Row]:
    rows = []
    for step in steps:
        for record, n in ((FREQUENT, 512), (FINAL, 2000)):
            if n == 512 or step == steps[-1]:
                values = _quality(run, step, 0.85 if n == 2000 else 1.0)
                common = {"step": step, "weights": "ema", "n": n, "seed": 0}
                rows += [
                    run_row(
                        run, metric=name, value=value, protocol=record | (PIXELS if "pixel" in name else {}), **common
                    )
                    for name, value in values.items()
                ]
    return rows


def _quality(run: str, step: int, scale: float) -> dict[str, float]:
    fd = scale * distance(run, step)
    return {
        "fd_digits": fd,
        "is_digits": 1.5 + 4.2 / (1 + 0.25 * fd),
        "precision_digits": 0.82 / (1 + 0.15 * fd),
        "recall_digits": 0.9 - 0.02 * fd - (0.01 if run != "vanilla" else 0),
        "fd_pixel_pca": 0.12 + 0.03 * fd,
    }


def map_rows(run: str, metrics: Sequence[str] = ("cknna", "cka", "mutual_knn")) -> list[Row]:
    rows = []
    teachers = ["digits-vit"] + (["random-vit"] if _arm(run) == "repa-random" else [])
    for metric, teacher, step in itertools.product(metrics, teachers, MAP_STEPS):
        record = alignment(metric, teacher)
        common = {"metric": metric, "step": step, "weights": "ema", "n": 600, "seed": 0, "protocol": record}
        for layer, time in itertools.product(LAYERS, TIMES):
            value = _height(run, metric, teacher, step, layer, time)
            rows.append(run_row(run, value=value, layer=layer, timestep=time, **common))
    return rows


def _height(run: str, metric: str, teacher: str, step: int, layer: int, time: float) -> float:
    top = 0.45 if teacher == "random-vit" else HEIGHTS[_arm(run)]
    peak = 1 / (1 + 0.35 * abs(layer - 3)) if _arm(run) != "vanilla" else 0.8 + 0.04 * layer
    noise = math.exp(-((time - 0.1) ** 2) / 0.06)
    value = top * peak * noise * (1 - math.exp(-step / 400)) / (1 - math.exp(-1500 / 400))
    return min(1.0, 2.1 * value) if metric == "cka" else value


def log_rows(run: str) -> list[Row]:
    rows = []
    for step in range(10, STEPS[-1] + 1, 10):
        wobble = 0.02 * math.sin(step * 1.7) + 0.01 * math.sin(step * 0.31)
        loss = 0.41 + 0.6 * math.exp(-step / 150) + wobble
        values = {
            "denoising_loss": loss,
            "grad_norm": 1.1 * math.exp(-step / 300) + 0.3 + wobble,
            "learning_rate": 3e-3 * min(1, step / 50),
        }
        if _arm(run) != "vanilla":
            values["proj_loss"] = -0.9 + 0.8 * math.exp(-step / 250) + wobble
        values["loss"] = loss + values.get("proj_loss", 0.0)
        values["train_seconds"] = step * MS[_arm(run)] / 1000
        rows += [run_row(run, metric=name, value=value, step=step) for name, value in values.items()]
    return rows


def strip(run: str, step: int, count: int = 10) -> bytes:
    """Return two rows of 8x8 pictures that get clearer with training."""
    clear = min(1.0, step / 900 / FACTORS[_arm(run)])
    image = Image.new("L", (8 * count, 16))
    for place in range(count):
        for x in range(8):
            for y in range(8):
                ring = abs(math.hypot(x - 3.5, (y - 3.5) * (0.6 + 0.08 * place)) - 2.4) < 0.8
                grain = (x * 73 + y * 151 + place * 29) % 97 / 96
                for row in (0, 8):
                    shade = clear * ring * (1 - row / 24) + (1 - clear) * grain
                    image.putpixel((8 * place + x, row + y), int(255 * shade))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def facts(run: str) -> dict[str, Any]:
    arm = _arm(run)
    result: dict[str, Any] = {
        "run": run, "method": "vanilla" if arm == "vanilla" else "repa", "systems": ["REPA"], "seed": _seed(run),
        "status": "done", "steps": STEPS[-1], "description": "no alignment",
    }  # fmt: skip
    if arm != "vanilla":
        result |= {
            "aligned_layer": 3,
            "teacher": "digits-vit",
            "description": "aligned to the self-supervised teacher digits-vit",
        }
    if arm == "repa-random":
        result |= {
            "control": True,
            "teacher": "random-vit",
            "description": "aligned to a frozen teacher with random weights",
        }
    return result


def example(runs: Sequence[str] = ("vanilla", "repa", "repa-random")) -> dict[str, Any]:
    """Return the arguments of render()."""
    rows = [row for run in runs for row in quality_rows(run) + map_rows(run)]
    floor = FREQUENT | {"kind": "reference level"}
    rows.append(make_row(metric="fd_digits_floor", value=0.45, n=512, protocol=floor))
    return {
        "rows": rows,
        "curves": [row for run in runs for row in log_rows(run)],
        "media": {f"{run}/samples-{step:07d}.png": strip(run, step) for run in runs for step in STEPS},
        "protocols": protocols(),
        "runs": {run: facts(run) for run in runs},
    }


def protocols() -> dict[str, dict[str, Any]]:
    records = [FREQUENT, FINAL, FREQUENT | PIXELS, FINAL | PIXELS, FREQUENT | {"kind": "reference level"}]
    records += [
        alignment(metric, teacher)
        for metric in ("cknna", "cka", "mutual_knn")
        for teacher in ("digits-vit", "random-vit")
    ]
    return {protocol_hash(record): record for record in records}


def write(folder: Path, runs: Sequence[str] = ("vanilla", "repa", "repa-random")) -> list[Path]:
    """Write run folders as a demo leaves them and return them."""
    inputs = example(runs)
    for run in runs:
        append(folder / run, [row for row in inputs["rows"] if row.run in (run, None)])
        append(folder / run / "log.jsonl", [row for row in inputs["curves"] if row.run == run])
        (folder / run / "run.json").write_text(json.dumps(inputs["runs"][run]))
        (folder / run / "media").mkdir()
        for name, data in inputs["media"].items():
            owner, _, file = name.rpartition("/")
            if owner == run:
                (folder / run / "media" / file).write_bytes(data)
    return [folder / run for run in runs]


def _arm(run: str) -> str:
    return run.rsplit("-s", 1)[0] if run[-1].isdigit() else run


def _seed(run: str) -> int:
    return int(run.rsplit("-s", 1)[1]) if run[-1].isdigit() else 0


if __name__ == "__main__":  # PYTHONPATH=.:tests python tests/report_example.py report.html
    import sys

    from repa_eval.reports.html import render

    Path(sys.argv[1]).write_text(render(**example()), encoding="utf-8")
