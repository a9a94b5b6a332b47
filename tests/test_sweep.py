"""`repa-eval sweep`, `probe` and the monitors behind them: complete, repeatable, safe to interrupt and to run twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from helpers import ROOT
from repa_eval import results
from repa_eval.cli import main as repa_eval
from repa_eval.monitors import alignment
from repa_eval.probes import splits
from repa_eval.runtime.run_lock import RunLock
from repa_eval.train.cli import main as repa_train

SMALL = ["max_steps=4", "checkpoint_every=2", "batch_size=8", "depth=2", "encoder_depth=1", "hidden_size=32"]
SMALL += ["num_heads=2", "eval_every=0", "evaluation.num_samples=16", "evaluation.num_steps=2", "final_samples=0"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained run with two checkpoints and no measurement; probes and maps on few images."""
    monkeypatch.setattr(alignment, "MAP_IMAGES", 40)
    monkeypatch.setattr(splits, "PROBE_TRAIN", 60)
    monkeypatch.setattr(splits, "PROBE_TEST", 30)
    out = tmp_path / "small"
    done = CliRunner().invoke(repa_train, ["--recipe", "digits-repa", *SMALL, "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    return out


def sweep(run: Path) -> list[results.Row]:
    done = CliRunner().invoke(repa_eval, ["sweep", str(run), "--device", "cpu", "--json"])
    assert done.exit_code == 0, done.output
    return [results.Row(**row) for row in json.loads(done.stdout)["rows"]]


def test_sweep_measures_everything_once(run: Path) -> None:
    added = sweep(run)
    assert {row.step for row in added if row.step} == {2, 4}
    metrics = {row.metric for row in added}
    assert {"fd_digits", "is_digits", "precision_digits", "recall_digits", "fd_pixel_pca", "fd_digits_floor"} <= metrics
    assert {"cknna", "cka", "mutual_knn", "probe_accuracy", "knn_accuracy", "probe_accuracy_teacher"} <= metrics
    cells = {(row.layer, row.timestep) for row in added if row.metric == "cknna" and row.step == 4}
    assert len(cells) == 2 * 5
    pictures = sorted(path.name for path in (run / "media").glob("*.png"))
    assert pictures == [
        "neighbours-0000004.png",
        *(f"{kind}-000000{step}.png" for kind in ("pca", "samples") for step in (2, 4)),
    ]
    assert {row.step for row in added if row.metric in ("ct_digits", "authpct_digits")} == {4}
    assert sweep(run) == []
    assert sorted(map(str, results.read(run))) == sorted(map(str, added))


def test_a_sweep_that_lost_rows_gives_the_same_table(run: Path) -> None:
    sweep(run)
    table = run / results.TABLE
    whole = table.read_text(encoding="utf-8").splitlines()
    for kept in (0, 7, len(whole) // 2, len(whole) - 1):
        table.write_text("".join(f"{line}\n" for line in whole[:kept]) + whole[kept][:20], encoding="utf-8")
        sweep(run)
        assert sorted(table.read_text(encoding="utf-8").splitlines()) == sorted(whole)


def test_the_trainer_and_sweep_take_the_same_measure(run: Path, tmp_path: Path) -> None:
    """What the trainer measured of itself is what sweep finds: same key, same value, nothing to add."""
    apart = ("ct_digits", "authpct_digits")  # of which the trainer takes neither
    rows = [row for row in sweep(run) if row.metric.endswith("_digits") and row.metric not in apart]
    swept = {row.key(): row.value for row in rows}
    out = tmp_path / "again" / "small"
    words = ["--recipe", "digits-repa", *SMALL, "--out", str(out), "--device", "cpu", "evaluation.eval_every=2"]
    words.remove("eval_every=0")
    assert CliRunner().invoke(repa_train, words).exit_code == 0
    own = {row.key(): row.value for row in results.read(out)}
    assert own.items() >= swept.items()
    assert not [row for row in sweep(out) if row.metric in ("fd_digits", "is_digits", "fd_pixel_pca")]


def set_status(run: Path, **entries: str) -> None:
    record = json.loads((run / "run.json").read_text()) | entries
    (run / "run.json").write_text(json.dumps(record))


def watch(run: Path) -> Result:
    return CliRunner().invoke(repa_eval, ["sweep", str(run), "--watch", "--every", "0.1", "--quiet", "--device", "cpu"])


def test_watching_a_trainer_that_is_dead_ends(run: Path) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    set_status(run, status="running")
    done = watch(run)
    assert done.exit_code == 1
    assert done.stdout == f"0 rows added; next: repa-eval report {run}\n"
    assert done.stderr.count("\n") == 1
    assert "no trainer runs (nobody holds its lock); continue with: repa-train --recipe" in done.stderr
    set_status(run, status="failed", reason="step 3: a loss is not finite")
    done = watch(run)
    assert (done.exit_code, done.stderr) == (1, f"error: {run}: training failed: step 3: a loss is not finite\n")
    for status in ("interrupted", "done"):
        set_status(run, status=status)
        assert watch(run).exit_code == 0
    set_status(run, status="running")
    assert sweep(run) == []  # nobody waits


def test_watching_a_trainer_that_lives_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    set_status(run, status="running")
    lock, looks = RunLock(run), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            set_status(run, status="done")
            lock.release()

    monkeypatch.setattr(time, "sleep", sleep)
    assert watch(run).exit_code == 0
    assert looks == [0.1, 0.1, 0.1]


def test_a_damaged_checkpoint_does_not_keep_the_others_from_being_measured(run: Path) -> None:
    file = run / "checkpoints" / "0000002.pt"
    file.write_bytes(file.read_bytes()[:-100])
    (run / "checkpoints" / "0000002-copy.pt").write_bytes(b"mine")
    done = CliRunner().invoke(repa_eval, ["sweep", str(run), "--quiet", "--device", "cpu"])
    assert done.exit_code == 1
    left, error = done.stderr.splitlines()
    assert left.startswith(f"left out: {file}")
    assert error == f"error: {run}: 0000002.pt could not be measured"
    assert {row.step for row in results.read(run) if row.step} == {4}


def test_two_sweeps_divide_the_work(run: Path) -> None:
    """Each monitor of each step is measured by one of them, and no number is there twice."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests")!r})
from repa_eval.monitors import alignment
from repa_eval.probes import splits
from repa_eval.runtime.run_lock import RunLock
from repa_eval.cli import main
alignment.MAP_IMAGES, splits.PROBE_TRAIN, splits.PROBE_TEST = 40, 60, 30
main(["sweep", {str(run)!r}, "--device", "cpu"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=environment) for _ in "ab"
    ]
    announced: list[str] = []
    for one in both:
        _, said = one.communicate(timeout=150)
        assert one.returncode == 0, said
        announced += [line for line in said.splitlines() if line.startswith("step")]
    assert announced
    assert len(announced) == len(set(announced))
    lines = (run / results.TABLE).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(results.read(run)) > 0
    assert sweep(run) == []


def test_what_somebody_else_measures_is_waited_for(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
from pathlib import Path
from repa_eval.runtime.claims import Claims
with Claims(Path({str(run)!r})).taken("4 SampleQuality") as mine:
    print(mine, flush=True)
    input()
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code], text=True, env=environment, **pipes)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    waits: list[set[int | None]] = []

    def sleep(_seconds: float) -> None:
        waits.append({row.step for row in results.read(run) if row.metric == "fd_digits"})
        other.kill()
        other.wait()

    monkeypatch.setattr(time, "sleep", sleep)
    added = sweep(run)
    assert waits == [{2}]  # everything but that one was measured; then its holder died
    assert {row.step for row in added if row.metric == "fd_digits"} == {2, 4}


def test_equal_samples_are_measured_once(tmp_path: Path) -> None:
    words = [word for word in SMALL if not word.startswith(("eval_every", "final"))]
    words += ["eval_every=2", "final_samples=16", "final_num_steps=2"]
    out = tmp_path / "small"
    done = CliRunner().invoke(repa_train, ["--recipe", "digits-repa", *words, "--out", str(out), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    lines = (out / results.TABLE).read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(results.read(out)) > 0


def test_sweep_wants_a_run_folder(tmp_path: Path) -> None:
    done = CliRunner().invoke(repa_eval, ["sweep", str(tmp_path)])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "no run folder" in done.stderr


def test_probe_command(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ckpt = str(run / "checkpoints" / "0000004.pt")
    done = CliRunner().invoke(
        repa_eval, ["probe", "--ckpt", ckpt, "--layer", "2", "--timesteps", "0.1", "--device", "cpu", "--json"]
    )
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    found = {(row["metric"], row["layer"], row["timestep"]) for row in answer["rows"]}
    assert {("probe_accuracy", 2, 0.1), ("knn_accuracy", 2, 0.1), ("probe_accuracy_teacher", None, None)} <= found
    assert all(0 <= row["value"] <= 1 and row["n"] == 30 for row in answer["rows"])
    kinds = {record["features"] for record in answer["protocols"].values()}
    assert kinds == {"hidden states", "teacher digits-vit"}
    wrong = CliRunner().invoke(repa_eval, ["probe", "--ckpt", ckpt, "--probes", "mlp"])
    assert wrong.exit_code == 2
    assert "linear, knn" in wrong.stderr


@pytest.mark.slow
def test_two_evaluators_and_a_trainer_lose_no_row(tmp_path: Path) -> None:
    out = tmp_path / "busy"
    words = [word for word in SMALL if not word.startswith(("max_steps", "checkpoint_every"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    train = [sys.executable, "-m", "repa_eval.train.cli", "--recipe", "digits-repa", *words, "--device", "cpu"]
    trainer = subprocess.Popen(
        [*train, "max_steps=400", "checkpoint_every=100", "--out", str(out), "--quiet"], env=environment
    )
    while not (out / "checkpoints").is_dir():
        assert trainer.poll() is None
        time.sleep(0.1)
    command = [sys.executable, "-m", "repa_eval.cli", "sweep", str(out), "--watch", "--every", "0.5", "--quiet"]
    sweeps = [subprocess.Popen([*command, "--device", "cpu"], env=environment) for _ in range(2)]
    time.sleep(8)
    sweeps[0].send_signal(signal.SIGKILL)
    sweeps[0].wait()
    assert trainer.wait() == 0
    assert sweeps[1].wait() == 0
    rows = results.read(out)
    steps = {row.step for row in rows if row.metric == "cknna"}
    assert steps == {100, 200, 300, 400}
    for step in steps:
        assert len([row for row in rows if row.metric == "cknna" and row.step == step]) == 2 * 5
        assert len([row for row in rows if row.metric == "fd_digits" and row.step == step]) == 1
    lines = (out / results.TABLE).read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["metric"] for line in lines)
    log = results.read(out / results.CURVES)
    assert len([row for row in log if row.metric == "loss"]) == 40
