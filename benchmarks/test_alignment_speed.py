"""Speed and memory of the alignment metrics, as ratios to a peer in the same run: one thread, CPU time.

Sizes are those of the paper's analysis: 10,000 images, 768 features, 10 neighbours. Every measurement has a process of
its own, whose peak is the whole process with all its imports. cka-pytorch: `pip install repa-eval[crosscheck]`.
`python -m pytest -q -s benchmarks/test_alignment_speed.py` prints the table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

COMMON = """
import json, resource, time
import numpy as np, torch
torch.set_num_threads(1)
def pair(n, d):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((n, 64), dtype=np.float32)
    sides = (np.tanh(base @ rng.standard_normal((64, d), dtype=np.float32) / 8) for _ in range(2))
    return [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
def seconds(function, rounds=1):
    times = []
    for _ in range(rounds):
        began = time.process_time()
        value = function()
        times.append(time.process_time() - began)
    return min(times), value
def tell(**found):
    print(json.dumps({**found, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""

OURS = """
from repa_eval.metrics.cknna import cknna
x, y = pair({n}, 768)
cknna(x[:500], y[:500])
taken, value = seconds(lambda: cknna(x, y))
tell(seconds=taken, value=value)
"""

MANY = """
from repa_eval.metrics.shared.prepared import prepare
from repa_eval.metrics.cknna import cknna
x, y = pair({n}, 768)
teacher = prepare(y)
cknna(x, teacher)
taken, value = seconds(lambda: cknna(x, teacher))
tell(seconds=taken, value=value)
"""

DENSE = """
def hsic(a, b):
    n = len(a)
    total = (a * b.T).sum(dtype=np.float64) + a.sum(dtype=np.float64) * b.sum(dtype=np.float64) / ((n - 1) * (n - 2))
    return (total - 2 * (a @ b).sum(dtype=np.float64) / (n - 2)) / (n * (n - 3))
def masked(x, k=10):
    gram = x @ x.T
    np.fill_diagonal(gram, -np.inf)
    mask = np.zeros(gram.shape, dtype=bool)
    np.put_along_axis(mask, np.argpartition(gram, len(x) - k, axis=1)[:, -k:], True, axis=1)
    np.fill_diagonal(gram, 0)
    return gram, mask
def dense(x, y):
    (K, M), (L, N) = masked(x), masked(y)
    cross = hsic(K * (M & N), L * (M & N))
    K *= M
    L *= N
    return cross / (np.sqrt(hsic(K, K) * hsic(L, L)) + 1e-6)
x, y = pair({n}, 768)
taken, value = seconds(lambda: dense(x, y))
tell(seconds=taken, value=float(value))
"""

MATRIX = """
from repa_eval.metrics.cka_minibatch import MinibatchCKA
rng = np.random.default_rng(0)
base = rng.standard_normal(({n}, 32), dtype=np.float32)
layers = [[base @ rng.standard_normal((32, {d}), dtype=np.float32) / 8 for _ in range(12)] for _ in range(2)]
layers = [[layer - layer.mean(axis=0) for layer in side] for side in layers]  # the calculator does not centre
class Looked(torch.nn.Module):
    def __init__(self, side):
        super().__init__()
        self.features = [torch.from_numpy(layer) for layer in side]
        self.taps = torch.nn.ModuleList(torch.nn.Identity() for _ in side)
        self.weight = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        for tap, layer in zip(self.taps, self.features):
            tap(layer)
        return x
from cka_pytorch import CKACalculator
names = [f"taps.{{i}}" for i in range(12)]
def peer():
    made = CKACalculator(Looked(layers[0]), Looked(layers[1]), names, names, verbose=False)
    loader = [(torch.zeros(1), None)]
    return made.calculate_cka_matrix(loader, num_epochs=1, epsilon=0.0).numpy()
def ours():
    made = MinibatchCKA()
    made.update(*layers)
    return made.matrix()
theirs, expected = seconds(peer, 5)
taken, value = seconds(ours, 9)
tell(seconds=taken, peer=theirs, apart=float(np.abs(value - expected).max()))
"""


def measured(code: str, **sizes: int) -> dict[str, float]:
    """Run the code in a process with one thread and return what it told."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    given = [sys.executable, "-W", "ignore", "-c", COMMON + code.format(**sizes)]
    done = subprocess.run(given, env={**os.environ, **one}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("n", [3000, 10_000])
def test_cknna_against_the_dense_definition(n: int) -> None:
    ours, again, dense = (measured(code, n=n) for code in (OURS, MANY, DENSE))
    assert ours["value"] == pytest.approx(dense["value"], rel=1e-4)
    assert again["value"] == ours["value"]
    print(
        f"\ncknna n={n}: {dense['seconds'] / ours['seconds']:.1f} times the speed ({ours['seconds']:.1f} s, dense"
        f" {dense['seconds']:.1f} s), one more layer {again['seconds']:.1f} s;"
        f" peak {ours['peak_gb']:.2f} GB, dense {dense['peak_gb']:.2f} GB"
    )
    assert ours["peak_gb"] < 2.5


@pytest.mark.slow
def test_cknna_of_fifty_thousand_samples() -> None:
    ours = measured(OURS, n=50_000)
    print(f"\ncknna n=50000: {ours['seconds']:.0f} s, peak {ours['peak_gb']:.2f} GB")
    assert ours["peak_gb"] < 6.0


@pytest.mark.parametrize(("n", "d"), [(64, 192), (256, 64), (256, 192), (256, 384)])
def test_cka_of_all_pairs_of_layers_against_cka_pytorch(n: int, d: int) -> None:
    found = measured(MATRIX, n=n, d=d)
    assert found["apart"] < 1e-4
    print(
        f"\ncka 12 x 12 layers, batch {n}, width {d}: {found['peer'] / found['seconds']:.1f} times the speed"
        f" ({1e3 * found['seconds']:.1f} ms, cka-pytorch {1e3 * found['peer']:.1f} ms), apart {found['apart']:.1e}"
    )
