"""minyoungg/platonic-rep: every metric on one pair of feature sets, and the best pair of layers."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

import published_variants
from golden_runners import Arrays, Case, runner
from repa_eval.metrics.cka import cka
from repa_eval.metrics.cknna import cknna, cknna_centred_first
from repa_eval.metrics.cycle_knn import cycle_knn
from repa_eval.metrics.edit_distance_knn import edit_distance_knn
from repa_eval.metrics.lcs_knn import lcs_knn
from repa_eval.metrics.mutual_knn import mutual_knn
from repa_eval.metrics.shared import kernels

Value = Callable[..., "float | np.ndarray"]

# Output name -> value of (a, b) and the numbers in the name.
TABLE: dict[str, Value] = {
    r"cka": lambda a, b: cka(a, b, eps=kernels.OFFICIAL_EPS),
    r"unbiased_cka": lambda a, b: cka(a, b, unbiased=True, eps=kernels.OFFICIAL_EPS),
    r"cka_rbf([\d.]+)": lambda a, b, s: cka(a, b, kernel="rbf", sigma=s, eps=kernels.OFFICIAL_EPS),
    r"unbiased_cka_rbf([\d.]+)": lambda a, b, s: cka(
        a, b, unbiased=True, kernel="rbf", sigma=s, eps=kernels.OFFICIAL_EPS
    ),
    r"cknna_k(\d+)": lambda a, b, k: cknna(a, b, k=int(k)),
    r"cknna_biased_k(\d+)": lambda a, b, k: cknna(a, b, k=int(k), unbiased=False),
    r"mutual_knn_k(\d+)": lambda a, b, k: mutual_knn(a, b, k=int(k)),
    r"cycle_knn_k(\d+)": lambda a, b, k: cycle_knn(a, b, k=int(k)),
    r"cycle_knn_BA_k(\d+)": lambda a, b, k: cycle_knn(b, a, k=int(k)),
    r"lcs_knn_k(\d+)": lambda a, b, k: lcs_knn(a, b, k=int(k)),
    r"edit_distance_knn_k(\d+)": lambda a, b, k: edit_distance_knn(a, b, k=int(k)),
    r"hsic_biased": lambda a, b: published_variants.hsic_biased(_gram(a), _gram(b)),
    r"hsic_unbiased": lambda a, b: published_variants.hsic_unbiased(_gram(a), _gram(b)),
    r"cknna_centred_first(?:_k(\d+))?": lambda a, b, k=10: cknna_centred_first(a, b, k=int(k)),
}


@runner("platonic", "metrics")
def metrics(case: Case, arrays: Arrays) -> Arrays:
    given = {"A": arrays["A"], "B": arrays["B"]}
    used = {name: kernels.normalise_rows(x) if case["config"]["normalised_first"] else x for name, x in given.items()}
    functions = {name: function for name in case["outputs"] if (function := _find(name))}
    out = {name: np.asarray(function(used["A"], used["B"])) for name, function in functions.items()}
    for name, entry in case["outputs"].items():
        if match := re.fullmatch(r"knn_([AB])", name):
            out[name] = kernels.nearest(used[match[1]], k=entry["shape"][1])
        if match := re.fullmatch(r"outliers_q(\d+)_(exact|quantile)", name):  # on A as given, not normalised
            q = int(match[1]) / 100
            out[name] = kernels.remove_outliers(given["A"], q=q, exact=match[2] == "exact")
    return out


@runner("platonic", "best_layer_pair")
def best_layer_pair(case: Case, arrays: Arrays) -> Arrays:
    k, prepare = case["config"]["topk"], kernels.normalise_rows if case["config"]["normalize"] else np.asarray
    xs, ys = ([prepare(arrays[side][:, i]) for i in range(arrays[side].shape[1])] for side in ("X", "Y"))
    out: Arrays = {}
    for name in case["outputs"]:
        if metric := _find(name) or _find(f"{name}_k{k}"):
            best, pair = _best(metric, xs, ys)
            out[name], out[f"{name}:layers"] = np.asarray(best), np.asarray(pair)
    return out


def _gram(x: np.ndarray) -> np.ndarray:
    return kernels.linear_gram(x.astype(np.float64))


def _find(name: str) -> Value | None:
    """Return the function of two feature sets that an output's name stands for, None for a name of no known form."""
    for pattern, function in TABLE.items():
        if match := re.fullmatch(pattern, name):
            numbers = [float(number) for number in match.groups() if number is not None]
            return lambda a, b, function=function, numbers=numbers: function(a, b, *numbers)
    return None


def _best(metric: Value, xs: list[np.ndarray], ys: list[np.ndarray]) -> tuple[float, list[int]]:
    """Return the largest score over the pairs of layers and where it is; a score of 0 or less is no pair."""
    best, pair = 0.0, []
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            if (score := float(metric(x, y))) > best:
                best, pair = score, [i, j]
    return best, pair
