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

from repa_eval.commands.shared.metric_words import metric_words
from repa_eval.reports.numbers.words import Metrics
from repa_eval.reports.page import Page, prepare
from repa_eval.results import Row, append, make_row, protocol_hash

STEPS = tuple(range(100, 1501, 100))
MAP_STEPS = (500, 1000, 1500)
LAYERS = (1, 2, 3, 4, 5, 6)
TIMES = (0.05, 0.1, 0.3, 0.5, 0.6)
FACTORS = {"vanilla": 1.0, "repa": 0.85, "repa-random": 0.82}  # on the Frechet distance, at every step
HEIGHTS = {"vanilla": 0.09, "repa": 0.39, "repa-random": 0.12}  # CKNNA at block 3, t = 0.1
PROBES = {"vanilla": 0.78, "repa": 0.86, "repa-random": 0.83}  # accuracy at block 3, t = 0.1
TEACHERS = {"digits-vit": 0.93, "random-vit": 0.86}
SEEDS = (0.0, 0.03, -0.02)  # what a training seed changes about the treated arms' distance
PCA_ROWS = ("image", "teacher digits-vit", *(f"block {layer}" for layer in range(1, 7)))
PCA_CAPTION = "First three principal components of the tokens as red, green and blue, fitted on 64 images at t = 0.1."
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
    luck = 0.0 if _arm(run) == "vanilla" else SEEDS[_seed(run)]
    return FACTORS[_arm(run)] * (1.0 + luck) * (1.0 + 0.02 * _seed(run)) * (12.0 * math.exp(-step / 280) + 0.97)


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
    top -= 0.02 * _seed(run) * (_arm(run) != "vanilla")
    peak = 1 / (1 + 0.35 * abs(layer - 3)) if _arm(run) != "vanilla" else 0.8 + 0.04 * layer
    noise = math.exp(-((time - 0.1) ** 2) / 0.06)
    value = top * peak * noise * (1 - math.exp(-step / 400)) / (1 - math.exp(-1500 / 400))
    return min(1.0, 2.1 * value) if metric == "cka" else value


def probe(features: str, **more: Any) -> dict[str, Any]:
    record = {"kind": "probe", "features": features, "pooling": "token mean", "linear": "ridge", "knn": "cosine"}
    return record | {"data": "digits", "split": "held out", "num_train": 1500, "num_test": 600} | more


HIDDEN = probe("hidden states", t_convention="1 = noise", label=None, seed=0)


def probe_rows(run: str) -> list[Row]:
    rows = []
    for metric, step, layer, time in itertools.product(("probe_accuracy", "knn_accuracy"), MAP_STEPS, LAYERS, TIMES):
        common = {"metric": metric, "step": step, "layer": layer, "timestep": time, "weights": "ema", "n": 600}
        rows.append(run_row(run, value=accuracy(run, metric, step, layer, time), seed=0, protocol=HIDDEN, **common))
    return rows


def accuracy(run: str, metric: str, step: int, layer: int, time: float) -> float:
    top = PROBES[_arm(run)] - 0.01 * _seed(run) - 0.1 - (0.05 if metric == "knn_accuracy" else 0)
    place = 1 / (1 + 0.04 * abs(layer - 3)) * math.exp(-((time - 0.1) ** 2) / 0.25)
    return 0.1 + top * place * (1 - math.exp(-step / 350)) / (1 - math.exp(-1500 / 350))


def teacher_rows(n: int = 600) -> list[Row]:
    return [
        make_row(metric=f"{metric}_teacher", value=value - lower, n=n, protocol=probe(f"teacher {name}"))
        for metric, lower in (("probe_accuracy", 0.0), ("knn_accuracy", 0.02))
        for name, value in TEACHERS.items()
    ]


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


def tiles(run: str, step: int, columns: int = 8, tile: int = 8) -> bytes:
    """Return a grid of coloured tiles, one row a name of PCA_ROWS, with gaps of one pixel."""
    rows = len(PCA_ROWS)
    image = Image.new("RGB", (columns * (tile + 1) - 1, rows * (tile + 1) - 1), (255, 255, 255))
    for row, column, x, y in itertools.product(range(rows), range(columns), range(tile), range(tile)):
        ring = abs(math.hypot(x - 3.5, (y - 3.5) * (0.6 + 0.08 * column)) - 2.4) < 0.8
        patch = (x // 2 * 53 + y // 2 * 91 + column * 17 + row * 5) % 200
        shade = (255 * ring,) * 3 if row == 0 else (patch, (patch * step // 100) % 255, 200 * ring)
        image.putpixel((column * (tile + 1) + x, row * (tile + 1) + y), shade)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def media(run: str) -> dict[str, bytes]:
    found = {f"{run}/samples-{step:07d}.png": strip(run, step) for step in STEPS}
    side = json.dumps({"caption": PCA_CAPTION, "rows": PCA_ROWS, "columns": 8, "tile": 8}).encode()
    for step in MAP_STEPS:
        found |= {f"{run}/pca-{step:07d}.png": tiles(run, step), f"{run}/pca-{step:07d}.json": side}
    return found


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
    rows = [row for run in runs for row in quality_rows(run) + map_rows(run) + probe_rows(run)]
    rows += teacher_rows()
    floor = FREQUENT | {"kind": "reference level"}
    rows.append(make_row(metric="fd_digits_floor", value=0.45, n=512, protocol=floor))
    return {
        "rows": rows,
        "curves": [row for run in runs for row in log_rows(run)],
        "media": {name: data for run in runs for name, data in media(run).items()},
        "protocols": protocols(),
        "runs": {run: facts(run) for run in runs},
        "metrics": metric_words(),
    }


def page(inputs: dict[str, Any]) -> Page:
    """Return what a section is given, for the arguments of render()."""
    tables = (inputs["rows"], inputs["curves"], inputs["media"], inputs["protocols"], inputs["runs"])
    return prepare(*tables, Metrics(inputs["metrics"]))


def protocols() -> dict[str, dict[str, Any]]:
    records = [FREQUENT, FINAL, FREQUENT | PIXELS, FINAL | PIXELS, FREQUENT | {"kind": "reference level"}]
    records += [
        alignment(metric, teacher)
        for metric in ("cknna", "cka", "mutual_knn")
        for teacher in ("digits-vit", "random-vit")
    ]
    records += [HIDDEN, *(probe(f"teacher {name}") for name in TEACHERS)]
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


if __name__ == "__main__":  # PYTHONPATH=.:tests python tests/report_example.py report.html [SEEDS]
    import sys

    from repa_eval.reports.html import render

    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    names = [arm + (f"-s{seed}" if seed else "") for seed in range(count) for arm in FACTORS]
    Path(sys.argv[1]).write_text(render(**example(names)), encoding="utf-8")
