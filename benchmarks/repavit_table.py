"""Print what idle channels cost the embedded teacher: itself, converted without training, and distilled.

    for ratio in 0.5 0.75 1.0; do
      repa-train --recipe digits-repavit idle_ratio=$ratio --out runs/idle-$ratio
    done
    python benchmarks/repavit_table.py runs/idle-*

One line a form: accuracy of the linear probe and of k-NN on unseen digits, cosine of the patch tokens to the
teacher's, CKNNA and CKA of each merged block with the teacher's block, largest relative difference of the merge.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from repa_eval import checkpoints
from repa_eval.interfaces.architecture import find_preset
from repa_eval.interfaces.images import Images, load_data
from repa_eval.interfaces.teacher import Teacher, load_teacher
from repa_eval.models.shared.encoder import Encoder
from repa_eval.probes import grid
from repa_eval.reparameterisation import merged as merging
from repa_eval.reparameterisation.merged import Pair
from repa_eval.runtime.seeding import permutation
from repa_eval.teachers.repavit import EncoderTeacher
from repa_eval.train.conversion import config_of, convert
from repa_eval.train.state import latest_checkpoint

TEACHER, DATA, NUM_IMAGES = "digits-vit", "digits", 600


def forms_of(run: Path, original: Teacher) -> Iterator[tuple[str, Encoder]]:
    """Yield the encoder of a run before its first step and after its last one."""
    last = latest_checkpoint(run)
    assert last is not None, run
    trained = checkpoints.load(last)
    images = load_data(DATA, "train")
    chosen = permutation(len(images), "calibration")[: trained.option("calibration_images")]
    sample = images.pixels(chosen.tolist())
    config = config_of(original, sample[:1], trained.network.config)
    fresh = find_preset(trained.model_name)[0].build(config).eval()
    convert(fresh, original, sample)  # type: ignore[arg-type]
    ratio = config.idle_ratio
    yield f"idle {ratio:g}, converted", fresh  # type: ignore[misc]
    yield f"idle {ratio:g}, {trained.step} steps", trained.network


def cosine(teacher: Teacher, original: Teacher, images: Images) -> float:
    with torch.no_grad():
        a, b = (one(torch.from_numpy(images.images)).patches for one in (teacher, original))
    return float(F.cosine_similarity(a, b, dim=-1).mean())


def accuracies(teacher: Teacher) -> list[str]:
    rows = grid.teacher_level(teacher, merging.probe_splits(DATA))
    return [f"{row.value:.3f} +- {row.stderr:.3f}" for row in rows]


def main(runs: list[str]) -> None:
    original = load_teacher(TEACHER)
    images = load_data(DATA, "test-large").head(NUM_IMAGES)
    print("| form | linear probe | k-NN | patch cosine | CKNNA by block | CKA by block | merge difference |")
    print("|---|---|---|---|---|---|---|")
    print(f"| {TEACHER} | {' | '.join(accuracies(original))} | 1 | 1, 1 | 1, 1 | - |")
    for name, network in (form for run in runs for form in forms_of(Path(run), original)):
        pair = Pair(network, network.merged(), original)
        teacher = EncoderTeacher("merged", pair.merged)
        alike = merging.likeness(pair, images, batch_size=200, columns={})
        by_metric = {
            m: ", ".join(f"{r.value:.3f}" for r in alike if r.metric == m) for m in ("cknna_merged", "cka_merged")
        }
        apart = max(row.value or 0 for row in merging.equality(pair, images, seed=0, columns={}))
        cells = [*accuracies(teacher), f"{cosine(teacher, original, images):.4f}", *by_metric.values(), f"{apart:.1e}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
