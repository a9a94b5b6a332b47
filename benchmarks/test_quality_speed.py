"""Speed and memory of sample metrics, as ratios to a peer in the same run: one thread, CPU time.

Every measurement has a process of its own. Peers: torch-fidelity, clean-fid, prdc (`pip install prdc`; without it its
definition, written out), numpy. `python -m pytest -q -s benchmarks/test_quality_speed.py` prints the table; memory is
asserted, time is not, because these machines are shared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

COMMON = """
import json, os, resource, sys, time
import numpy as np, torch
torch.set_num_threads(1)
def seconds(function, rounds=1):
    times = []
    for _ in range(rounds):
        began = time.process_time()
        value = function()
        times.append(time.process_time() - began)
    return min(times), value
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
def tell(**found):
    print(json.dumps({**found, "peak_mb": peak()}))
def normal(n, d, seed=0):
    rows = np.empty((n, d), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for start in range(0, n, 1000):
        rows[start : start + 1000] = rng.standard_normal((min(1000, n - start), d), dtype=np.float32)
    return rows
"""

FRECHET = """
from repa_eval.metrics.fid import Gaussian, frechet_distance, moments
given = [moments(normal(3 * {d}, {d}, seed) + seed * 0.05) for seed in (0, 1)]
a, b = ((m.mean, m.covariance) for m in given)
ours, value = seconds(lambda: frechet_distance(*a, *b), 3)
reference = Gaussian(*a)
reference.distance(*b)
again, same = seconds(lambda: reference.distance(*b), 3)
from torch_fidelity.metric_fid import fid_statistics_to_metric
sides = [dict(mu=mu, sigma=sigma) for mu, sigma in (a, b)]
theirs, expected = seconds(lambda: fid_statistics_to_metric(*sides, verbose=False)["frechet_inception_distance"])
from scipy.linalg import sqrtm
clean, root = seconds(lambda: sqrtm(a[1] @ b[1]))
other = float(((a[0] - b[0]) ** 2).sum() + np.trace(a[1]) + np.trace(b[1]) - 2 * np.trace(root).real)
apart = max(abs(expected / value - 1), abs(other / value - 1), abs(same - value))
tell(ours=ours, again=again, torch_fidelity=theirs, sqrtm=clean, apart=apart)
"""

BALLS = """
real, fake = normal({n}, 2048), 0.9 * normal({n}, 2048, 1)
from repa_eval.metrics.density_coverage import prdc
prdc(real[:200], fake[:200])
before, high = rss(), peak()
ours, value = seconds(lambda: prdc(real, fake, k=5))
tell(seconds=ours, extra_mb=peak() - before, **{{k: v for k, v in value.items() if "stderr" not in k}})
"""

PRDC = """
real, fake = normal({n}, 2048), 0.9 * normal({n}, 2048, 1)
import contextlib, io
import sklearn.metrics
def plain(real, fake, nearest_k):
    def apart(a, b):
        return sklearn.metrics.pairwise_distances(a, b, metric="euclidean", n_jobs=1)
    def radii(a):
        rows = apart(a, a)
        kept = np.take_along_axis(rows, np.argpartition(rows, nearest_k + 1, axis=-1)[..., : nearest_k + 1], axis=-1)
        return kept.max(axis=-1)
    r, f, d = radii(real), radii(fake), apart(real, fake)
    inside = d < r[:, None]
    shares = dict(precision=inside.any(0).mean(), recall=(d < f[None]).any(1).mean())
    return dict(**shares, density=inside.sum(0).mean() / nearest_k, coverage=(d.min(1) < r).mean())
try:
    if not {installed}:
        raise ImportError
    from prdc import compute_prdc as peer
except ImportError:
    peer = plain
plain(real[:200], fake[:200], 5)
before = rss()
with contextlib.redirect_stdout(io.StringIO()):
    taken, value = seconds(lambda: peer(real, fake, nearest_k=5))
tell(seconds=taken, extra_mb=peak() - before, **{{k: float(v) for k, v in value.items()}})
"""

INCEPTION = """
sys.path.insert(0, {tests!r})
from inception_weights import bare_inception, fill_inception
from repa_eval.extractors.inception import Inception
network = bare_inception()
fill_inception(network)
network.features_list = ["2048", "logits_unbiased"]
images = torch.randint(0, 256, (32, 3, {side}, {side}), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    network(images[:8])
    parts = lambda size: [network(part)[0] for part in images.split(size)]
    theirs, expected = min((seconds(lambda size=size: parts(size), 2) for size in (8, 32)), key=lambda pair: pair[0])
judge = Inception(network)
judge(images[:8])
ours, found = seconds(lambda: judge(images), 2)
expected = torch.cat(expected).numpy()
apart = float(np.linalg.norm(found.features - expected) / np.linalg.norm(expected))
tell(ours=len(images) / ours, theirs=len(images) / theirs, apart=apart)
"""

COVARIANCE = """
x = normal({n}, 2048)
{prepare}
before = rss()
taken, value = seconds(lambda: {work})
tell(seconds=taken, extra_mb=peak() - before, trace=float(np.trace(value)))
"""
OURS = """
from repa_eval.metrics.fid import Moments
def stream():
    seen = Moments()
    for start in range(0, len(x), 64):
        seen.update(x[start : start + 64])
    return seen.covariance
"""

COMMAND = """
from repa_eval.cli import main
from click.testing import CliRunner
began = time.process_time()
words = ["--samples", "s{n}.npz", "--reference", "ref.npz", "--extractor-weights", "w.pth", "--device", "cpu", "--json"]
done = CliRunner().invoke(main, ["fid", *words])
assert done.exit_code == 0, done.output
tell(seconds=time.process_time() - began)
"""

ROWS = """
from repa_eval.evaluation.sample_features import Gathered
from repa_eval.interfaces.metric import SAMPLE
from repa_eval.metrics.fid import Gaussian, Moments
d = 2048
fake, reference = normal({n}, d), normal(10_000, d, 1)
held = Moments()
for start in range(0, 10_000, 1000):
    held.update(reference[start : start + 1000])
real = Gaussian(held.mean, held.covariance)
times = {{}}
def timed(name, function):
    times[name], value = seconds(function)
    return value
def streamed():
    seen = Moments()
    for start in range(0, len(fake), 64):
        seen.update(fake[start : start + 64])
    return seen
seen = timed("moments", streamed)
timed("fd", lambda: SAMPLE.get("fd").function(real, seen))
timed("fd_stderr", lambda: SAMPLE.get("fd").stderr(real, fake, dict(fd=0.0)))
timed("precision_recall", lambda: SAMPLE.get("precision_recall").function(reference, fake))
tell(**times)
"""


def measured(code: str, cwd: Path = ROOT, **values: Any) -> dict[str, float]:
    """Run the code in a process with one thread and return what it told."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), "1")
    given = [sys.executable, "-W", "ignore", "-c", COMMON + code.format(**values)]
    environment = {**os.environ, **one, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(given, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_frechet_against_torch_fidelity_and_sqrtm() -> None:
    found = measured(FRECHET, d=2048)
    assert found["apart"] < 1e-5
    print(
        f"\nfrechet d=2048: {found['ours']:.2f} s; torch-fidelity {found['torch_fidelity'] / found['ours']:.1f} times, "
        f"sqrtm (clean-fid) {found['sqrtm'] / found['ours']:.1f} times; one more step {found['again']:.2f} s"
    )


@pytest.mark.parametrize("installed", [True, False])
def test_balls_against_prdc(installed: bool) -> None:
    ours, peer = measured(BALLS, n=5000), measured(PRDC, n=5000, installed=installed)
    for name in ("precision", "recall", "density", "coverage"):
        assert ours[name] == pytest.approx(peer[name], abs=1e-3)
    ratio, which = peer["seconds"] / ours["seconds"], "the package" if installed else "its definition"
    print(
        f"\nprdc n=5000 d=2048 ({which}): {ratio:.1f} times the speed ({ours['seconds']:.1f} s); "
        f"extra memory {ours['extra_mb']:.0f} MB, peer {peer['extra_mb']:.0f} MB"
    )
    assert ours["extra_mb"] < 120


@pytest.mark.slow
def test_balls_of_twenty_thousand() -> None:
    found = measured(BALLS, n=20_000)
    print(f"\nprdc n=20000: {found['seconds']:.0f} s, extra memory {found['extra_mb']:.0f} MB (a matrix: 1,600 MB)")
    assert found["extra_mb"] < 450  # two centred copies of 164 MB each


@pytest.mark.parametrize("side", [64, 256])
def test_inception_against_torch_fidelity(side: int) -> None:
    found = measured(INCEPTION, tests=str(ROOT / "tests"), side=side)
    assert found["apart"] < 1e-5
    ratio = found["ours"] / found["theirs"]
    print(
        f"\ninception {side} px: {found['ours']:.1f} images per CPU second, {ratio:.2f} times torch-fidelity "
        f"({found['theirs']:.1f}); apart {found['apart']:.1e}"
    )


def test_covariance_against_numpy() -> None:
    ours = measured(COVARIANCE, n=50_000, prepare=OURS, work="stream()")
    peer = measured(COVARIANCE, n=50_000, prepare="", work="np.cov(x, rowvar=False, dtype=np.float64)")
    assert ours["trace"] == pytest.approx(peer["trace"], rel=1e-9)
    # streaming needs no array of all rows: the peer's part of it counts for the peer
    held = 50_000 * 2048 * 4 / 1e6
    print(
        f"\ncovariance 50000 x 2048: {peer['seconds'] / ours['seconds']:.2f} times numpy's speed "
        f"({ours['seconds']:.1f} s), "
        f"memory {ours['extra_mb']:.0f} MB, numpy {peer['extra_mb'] + held:.0f} MB: "
        f"{(peer['extra_mb'] + held) / ours['extra_mb']:.0f} times"
    )


@pytest.mark.slow
def test_slopes_of_the_command(tmp_path: Path) -> None:
    """Time and peak of `repa-eval fid` on 2,000 and 6,000 images of 64 px; FID_IMAGES=200,600 for a short run."""
    import numpy as np

    sys.path.insert(0, str(ROOT / "tests"))
    from inception_weights import write_inception

    counts = [int(text) for text in os.environ.get("FID_IMAGES", "2000,6000").split(",")]
    write_inception(tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    for name, count in (("ref", 100), *((f"s{count}", count) for count in counts)):
        np.savez(tmp_path / f"{name}.npz", arr_0=rng.integers(0, 255, (count, 64, 64, 3), dtype=np.uint8))
    found = [measured(COMMAND, cwd=tmp_path, n=count) for count in counts]
    more = counts[1] - counts[0]
    times, peaks = ([part[key] for part in found] for key in ("seconds", "peak_mb"))
    print(
        f"\nrepa-eval fid, Inception, {counts} images of 64 px: {times[0]:.0f} and {times[1]:.0f} CPU s, "
        f"peak {peaks[0]:.0f} and {peaks[1]:.0f} MB: {1000 * (times[1] - times[0]) / more:.0f} ms and "
        f"{1000 * (peaks[1] - peaks[0]) / more:.0f} KB an image"
    )
    assert found[1]["peak_mb"] < 1500


@pytest.mark.slow
def test_fifty_thousand_rows() -> None:
    found = measured(ROWS, n=50_000)
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in found.items() if name != "peak_mb")
    print(
        f"\n50000 rows of 2048 against 10000: {parts}; peak {found['peak_mb']:.0f} MB, 410 and 82 MB of them features"
    )
    assert found["peak_mb"] < 1500
