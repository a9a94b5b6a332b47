"""Representation metrics of several packages: CKA, CCA, Procrustes, RSA, and iREPA's spatial metrics."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

import published_variants
from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import numbers_in
from repa_eval.metrics.cds import cds, cds_per_image
from repa_eval.metrics.cka import cka
from repa_eval.metrics.cka_minibatch import MinibatchCKA, cka_minibatch
from repa_eval.metrics.lds import lds, lds_per_image
from repa_eval.metrics.pwcca import pwcca
from repa_eval.metrics.rmsc import rmsc, rmsc_per_image
from repa_eval.metrics.rsa import rsa
from repa_eval.metrics.rv import rv
from repa_eval.metrics.shared.cca import kept_directions, thin_svd
from repa_eval.metrics.shared.prepared import prepare
from repa_eval.metrics.srss import srss, srss_per_image
from repa_eval.metrics.svcca import svcca


@runner("evaluation", "cka")
def cka_cases(case: Case, arrays: Arrays) -> Arrays:
    out: Arrays = {}
    for name in case["outputs"]:
        if match := re.fullmatch(r"out_ckatorch_(xy|xz)_(linear|rbf)_(un)?biased(?:_thr([\d.]+))?", name):
            kernel = {"linear": "linear", "rbf": "rbf_median"}[match[2]]
            a, b = (arrays[letter] for letter in match[1])
            out[name] = cka(a, b, unbiased=bool(match[3]), kernel=kernel, sigma=float(match[4] or 1.0))
        elif match := re.fullmatch(r"out_ckatorch_batch_(\w)(\w)_\d+x(\d+)", name):
            out[name] = cka_minibatch(arrays[match[1]], arrays[match[2]], batch_size=int(match[3]))
        elif match := re.fullmatch(r"out_resi_cka_(\w)(\w)", name):
            out[name] = cka(arrays[match[1]], arrays[match[2]])
    out["out_hsic1_xx_yy_zz"] = [_hsic1(arrays[a], arrays[a]) for a in "xyz"]
    out["out_hsic1_xy_xz"] = [_hsic1(arrays["x"], arrays[b]) for b in "yz"]
    size, epsilon = int(numbers_in(case["config"]["batches"])[-1]), case["config"]["epsilon"]
    out["out_calculator_matrix"] = _calculator(arrays, epochs=1, epsilon=epsilon, size=size)
    out["out_calculator_matrix_eps0_2epochs"] = _calculator(arrays, epochs=2, epsilon=0.0, size=size)
    return {name: np.asarray(value) for name, value in out.items()}


@runner("evaluation", "cca_procrustes_rsa")
def cca_procrustes_rsa(case: Case, arrays: Arrays) -> Arrays:
    x, y = arrays["x"], arrays["y"]
    correlations, threshold = published_variants.cca_correlations(x, y), case["config"]["svcca threshold"]
    fixed: dict[str, Callable[[], object]] = {
        "cca_coefs": lambda: correlations,
        "cca_coefs_qr": lambda: correlations,
        "cca_mean": lambda: correlations.mean(),
        f"svcca_{round(100 * threshold)}": lambda: svcca(x, y, threshold=threshold),
        "svcca_k": lambda: [kept_directions(thin_svd(prepare(a))[1], threshold=threshold, k=None) for a in (x, y)],
        "pwcca_definition": lambda: pwcca(x, y),
        "pwcca_google_as_is": lambda: published_variants.pwcca_google(x, y),
        "orthogonal_procrustes": lambda: published_variants.procrustes_distance(x, y, centre=False, normalise=False),
        "procrustes_size_and_shape": lambda: published_variants.procrustes_distance(x, y, normalise=False),
        "procrustes_centered_normalised": lambda: published_variants.procrustes_distance(x, y),
        "angular_shape_centered": lambda: published_variants.angular_distance(x, y),
        "aligned_cossim": lambda: published_variants.aligned_cosine(x, y),
        "rsa_correlation_spearman": lambda: rsa(x, y),
        "rsa_euclidean_spearman": lambda: rsa(x, y, dissimilarity="euclidean"),
        "rv": lambda: rv(x, y),
    }
    found = {f"out_{name}": np.asarray(function()) for name, function in fixed.items()}
    for name in set(case["outputs"]) - set(found):
        if match := re.fullmatch(r"out_svcca_(\d+)", name):  # of that many directions
            found[name] = np.asarray(svcca(x, y, k=int(match[1])))
    return found


@runner("evaluation", "spatial_metrics")
def spatial_metrics(case: Case, arrays: Arrays) -> Arrays:
    tokens, masks, config = arrays["tokens"], arrays["masks"], case["config"]
    far, most = config["far_dist"], config["dmax"]
    regions = {"near": config["d_pos"], "far": config["d_neg"]}
    alt_far, alt_most = map(int, re.findall(r"\d+", config["alt"]))
    out = {
        "lds": lds_per_image(tokens, far=far),
        "cds": cds_per_image(tokens, most=most),
        "srss": srss_per_image(tokens, masks, **regions),
        "rmsc": rmsc_per_image(tokens),
        "lds_mean": lds(tokens, far=far),
        "cds_mean": cds(tokens, most=most),
        "srss_mean": srss(tokens, masks, **regions),
        "rmsc_mean": rmsc(tokens),
        "lds_alt": lds_per_image(tokens, far=alt_far),
        "cds_alt": cds_per_image(tokens, most=alt_most),
    }
    return {f"out_{name}": np.asarray(value) for name, value in out.items()}


def _hsic1(a: np.ndarray, b: np.ndarray) -> float:
    centred = (side.astype(np.float64) - side.mean(axis=0, dtype=np.float64) for side in (a, b))
    return published_variants.hsic_unbiased(*(side @ side.T for side in centred))


def _calculator(arrays: Arrays, *, epochs: int, epsilon: float, size: int) -> np.ndarray:
    """What cka-pytorch's calculator prints: a mean over passes leaves the ratio as it is, but not the 1e-4."""
    tokens = arrays["tokens"].reshape(len(arrays["tokens"]), -1)
    rows, columns = [arrays[name] for name in "xyz"], [arrays["y"], tokens, arrays["x"]]
    sums = MinibatchCKA()
    for _ in range(epochs):
        for start in range(0, len(tokens), size):
            batch = slice(start, start + size)
            sums.update([x[batch] for x in rows], [y[batch] for y in columns])
    return sums.matrix(epsilon=epsilon)
