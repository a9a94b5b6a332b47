"""Extensions of the suite, each one plug-in file of tests/plugins: trained, aligned, sampled and shown in a report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.plugin_files import loading
from repa_eval.train.cli import main as repa_train

PLUGINS = Path(__file__).parent / "plugins"
QUICK = ["--device", "cpu", "--quiet"]
TINY = {"split": "val", "batch_size": 16, "max_steps": 8, "checkpoint_every": 8, "log_every": 1, "eval_every": 0}
TINY |= {"final_samples": 0, "warmup_steps": 0, "learning_rate": 3e-3}
OF_SIT = {"depth": 2, "hidden_size": 32, "num_heads": 2}  # what makes SiT-digits/2 small


@dataclass(frozen=True)
class Extension:
    """A plug-in, and how a run of it is asked for.

    method: its own or one of ours. falls: the terms that a few steps lower. teacher: to align with, where the run
    records none. sampler, align, fid: further words of these commands. sampled_by: the plug-in's sampler, its model's
    default. measured: metrics that the table then holds.
    """

    file: str
    method: str
    settings: dict[str, object] = field(default_factory=dict)
    falls: tuple[str, ...] = ("denoising_loss",)
    teacher: str | None = None
    sampler: tuple[str, ...] = ("--num-steps", "2")
    sampled_by: str | None = None
    align: tuple[str, ...] = ()
    fid: tuple[str, ...] = ()
    measured: frozenset[str] = frozenset({"cknna", "cka", "fd_digits"})


EXTENSIONS = [
    Extension("irepa.py", "irepa", {}, ("denoising_loss", "proj_loss")),
    Extension("irepa.py", "repa", {"projector": "irepa", "encoder_depth": 1}, ("proj_loss",)),
    Extension("dispersive.py", "dispersive", {}, ("denoising_loss", "dispersive_loss"), teacher="digits-vit"),
    Extension("sra.py", "sra", {}, ("denoising_loss", "self_loss"), teacher="digits-vit"),
    Extension("layer_sync.py", "layer-sync", {}, teacher="digits-vit"),
    Extension(
        "mean_flow.py",
        "mean-flow",
        {"model": "Mixer-tiny"},
        ("mean_flow_loss",),
        teacher="digits-vit",
        sampler=("--num-steps", "1"),
        sampled_by="mean-flow",
    ),
    Extension("register_dit.py", "repa", {"model": "RegisterDiT-tiny", "encoder_depth": 1}, ("proj_loss",)),
    Extension("end_to_end.py", "end-to-end", {"model": "LatentDiT-tiny"}, ("recon_loss", "proj_loss")),
    Extension("own_teacher.py", "repa", {"enc_type": "oriented-gradients", "encoder_depth": 1}, ("proj_loss",)),
    Extension("own_data.py", "repa", {"data": "spots", "encoder_depth": 1}, ("proj_loss",)),
    Extension(
        "own_metrics.py",
        "vanilla",
        teacher="digits-vit",
        align=("--metrics", "cknna,distance-correlation"),
        fid=("--metrics", "fd,effective-rank"),
        measured=frozenset({"distance-correlation", "effective_rank_digits", "effective_rank_real_digits"}),
    ),
]


def call(program: object, extension: Extension, *words: object) -> Result:
    """Run a command with the plug-in, as a process of its own would: nothing is left of it afterwards."""
    try:
        plugin = ["--plugin", str(PLUGINS / extension.file)]
        done = CliRunner().invoke(program, [*map(str, words), *plugin])  # type: ignore[arg-type]
    finally:
        loading.unload(*loading.loaded())
    assert done.exit_code == 0, done.output
    return done


def test_every_file_is_short() -> None:
    lengths = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in PLUGINS.glob("*.py")}
    assert max(lengths.values()) <= 100, lengths


@pytest.mark.parametrize("extension", EXTENSIONS, ids=lambda extension: f"{extension.file}-{extension.method}")
def test_an_extension_from_training_to_the_report(
    extension: Extension, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {**TINY, **(extension.settings if "model" in extension.settings else {**OF_SIT, **extension.settings})}
    words = [f"{key}={value}" for key, value in settings.items()]
    call(repa_train, extension, "--method", extension.method, "--out", "run", *QUICK, *words)
    curves: dict[str, list[float]] = {}
    for row in results.read(Path("run/log.jsonl")):
        curves.setdefault(row.metric, []).append(row.value or 0.0)
    for term in extension.falls:
        assert min(curves[term][-2:]) < curves[term][0], curves[term]

    ckpt, table = "run/checkpoints/0000008.pt", ["--rows", "run/results.jsonl"]
    teacher = ["--teacher", extension.teacher] if extension.teacher else []
    measure = ["--timesteps", 0.1, "--num-images", 20, "--no-cache", *QUICK]
    call(repa_eval, extension, "align", "--ckpt", ckpt, *teacher, *measure, *extension.align, *table)
    call(repa_eval, extension, "sample", "--ckpt", ckpt, "--num", 12, "--out", "made", *extension.sampler, *QUICK)
    pictures = [np.asarray(Image.open(file)) for file in sorted(Path("made").rglob("*.png"))]
    assert len(pictures) == 12
    assert {picture.shape for picture in pictures} == {(8, 8)}  # images, whatever is denoised
    assert len({picture.tobytes() for picture in pictures}) == 12
    call(repa_eval, extension, "fid", "--samples", "made", *QUICK, *extension.fid, *table)
    records = results.read_protocols(Path("run")).values()
    assert extension.sampled_by in {record.get("sampler") for record in records}
    measured = {row.metric for row in results.read(Path("run"))}
    assert extension.measured <= measured
    call(repa_eval, extension, "report", "run", "--out", "report.html")
    page = Path("report.html").read_text(encoding="utf-8")
    assert all(metric in page for metric in extension.measured)
