"""Metrics of generated samples beyond FID: kernel distances, balls, diversity, memorisation; ADM's Inception."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from inception_weights import bare_inception, fill_inception

import published_variants
from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import numbers_in
from repa_eval.extractors.inception import Inception
from repa_eval.extractors.shared.resize import resized
from repa_eval.metrics.authpct import authpct
from repa_eval.metrics.cmmd import cmmd
from repa_eval.metrics.density_coverage import prdc
from repa_eval.metrics.fd_infinity import extrapolated, sizes_of
from repa_eval.metrics.fid import gaussian_of
from repa_eval.metrics.kid import kid_subsets
from repa_eval.metrics.memorisation import cell_scores, ct_score, mann_whitney_z
from repa_eval.metrics.mifid import cosine_distance, penalty
from repa_eval.metrics.realism import realism_scores
from repa_eval.metrics.shared.checks import Array
from repa_eval.metrics.shared.manifold import nearest
from repa_eval.metrics.shared.mmd import Kernel, KernelSums, kernel_sums, polynomial, rbf
from repa_eval.metrics.sliced_wasserstein import sliced_wasserstein
from repa_eval.metrics.vendi import vendi, vendi_score


def subsets_of(config: dict[str, Any], name: str) -> dict[str, int]:
    """Return number and size of the subsets that the words of a case's config name."""
    if match := re.search(r"subsets (\d+), size (\d+)", config[name]):
        return {"subsets": int(match[1]), "size": int(match[2])}
    first, second = numbers_in(config[name].partition("(real,fake,")[2])[:2]
    return {"subsets": int(first), "size": int(second)}


def seed_of(config: dict[str, Any], name: str) -> int:
    """Return the seed that the words name: RandomState(2020), or np.random.seed(0)."""
    [seed] = re.findall(r"(?:RandomState|seed)\((\d+)\)", config[name])
    return int(seed)


def second_kernel(text: str) -> tuple[Kernel, int]:
    """Return the kernel and the seed of "poly2: degree 2, gamma 0.01, coef0 0.5, seed 7"."""
    said = dict(re.findall(r"(degree|gamma|coef0|seed) ([\d.]+)", text.partition("poly2:")[2]))
    degree, gamma, coef0 = int(said["degree"]), float(said["gamma"]), float(said["coef0"])
    return polynomial(degree=degree, gamma=gamma, coef0=coef0), int(said["seed"])


@runner("evaluation", "kid")
def kid(case: Case, arrays: Arrays) -> Arrays:
    real, fake, config = arrays["real"], arrays["fake"], case["config"]
    tf, dgm, (kernel, seed) = subsets_of(config, "tf"), subsets_of(config, "dgm"), second_kernel(config["tf"])
    draws = {
        "tf_poly": kid_subsets(real, fake, **tf, seed=seed_of(config, "tf")),
        "tf_poly2": kid_subsets(real, fake, **tf, seed=seed, kernel=kernel),
        "dgm": kid_subsets(real, fake, **dgm, seed=seed_of(config, "dgm"), real_first=True),
    }
    clean = kid_subsets(real, fake, **subsets_of(config, "cleanfid"), seed=seed_of(config, "cleanfid")).mean()
    for width in {match[1] for name in case["outputs"] if (match := re.fullmatch(r"out_tf_rbf(\d+)_\w+", name))}:
        draws[f"tf_rbf{width}"] = kid_subsets(real, fake, **tf, seed=seed_of(config, "tf"), kernel=rbf(float(width)))
    out = {f"{name}_{kind}": getattr(values, kind)() for name, values in draws.items() for kind in ("mean", "std")}
    both = min(len(real), len(fake))
    real, fake = real[:both], fake[:both]
    full = kernel_sums(real.astype(np.float64), fake.astype(np.float64), polynomial())
    out |= {
        "dgm_all": draws["dgm"],
        "cleanfid": clean,
        "mmd2_full_biased": full.biased(),
        "mmd2_full_unbiased": full.unbiased(),
        "mmd2_full_ustatistic": _u_statistic(full, real, fake, polynomial()),
    }
    return {f"out_{name}": np.asarray(value) for name, value in out.items()}


def _u_statistic(full: KernelSums, real: Array, fake: Array, kernel: Kernel) -> float:
    """The estimator without the diagonal of Kxy, which nobody reports."""
    m = len(fake)
    pairs = [kernel(torch.from_numpy(real[i : i + 1]), torch.from_numpy(fake[i : i + 1])).item() for i in range(m)]
    return float(full.xx.sum() + full.yy.sum() - 2.0 * (full.xy.sum() - sum(pairs))) / (m * (m - 1))


@runner("evaluation", "prdc")
def prdc_cases(case: Case, arrays: Arrays) -> Arrays:
    out: Arrays = {}
    for name in case["outputs"]:
        match = re.fullmatch(r"out_(prdc|dgm)_k(\d+)_(\w+)", name)
        assert match is not None, name
        k = int(match[2])
        if match[3] == "realism":
            out[name] = realism_scores(arrays["real"], arrays["fake"], k=k)
        else:
            out[name] = np.asarray(prdc(arrays["real"], arrays["fake"], k=k)[match[3]])
    return out


@runner("evaluation", "vendi")
def vendi_cases(case: Case, arrays: Arrays) -> Arrays:
    fake = arrays["fake"]
    out = {f"out_linear_q{q}": vendi_score(fake, q=float(q)) for q in case["config"]["q"]}
    longest = np.linalg.norm(fake, axis=1).max()
    out |= {
        "out_linear_q1": vendi(None, fake)["vendi"],
        "out_linear_q1_f64": vendi_score(fake),
        "out_linear_q1_unnormalised": vendi_score(fake / longest, normalise=False),
        "out_polynomial_q1": published_variants.vendi_polynomial(fake),
        "out_per_class_q1": list(published_variants.vendi_per_class(fake, arrays["labels"]).values()),
    }
    return {name: np.asarray(value) for name, value in out.items()}


@runner("evaluation", "cmmd")
def cmmd_case(case: Case, arrays: Arrays) -> Arrays:
    value = np.asarray(cmmd(arrays["x"], arrays["y"], sigma=case["config"]["sigma"])["cmmd"])
    return {"out_cmmd_f32": value, "out_cmmd_f64": value}


@runner("evaluation", "memorisation")
def memorisation(case: Case, arrays: Arrays) -> Arrays:
    train, test, gen = arrays["train"], arrays["test"], arrays["gen"]
    distance, index = nearest(gen, train)
    scores = cell_scores((train, test, gen), [arrays[f"{name}_cells"] for name in ("train", "test", "gen")])
    raw = cosine_distance(train, gen)
    out = {
        "Zu_global": mann_whitney_z(distance, nearest(test, train)[0]),
        "Zu_cells": [score for score, _ in scores.values()],
        "C_T": ct_score(scores),
        "authpct": authpct(train, gen)["authpct"],
        "sw_approx": sliced_wasserstein(train, gen)["sw"],
        "mifid_cosine_distance": penalty(raw),
        "mifid_min_mean_raw": raw,
        "nn_distance": distance[:, 0],
        "nn_index": index[:, 0],
    }
    return {f"out_{name}": np.asarray(value) for name, value in out.items()}


@runner("evaluation", "fd_infinity")
def fd_infinity(case: Case, arrays: Arrays) -> Arrays:
    fake, points = arrays["fake"], case["config"]["num_points"]
    assert sizes_of(len(fake), points).tolist() == arrays["batch_sizes"].tolist()
    draws = [row[row >= 0] for row in arrays["draws"]]
    return {"out_fd_infinity": np.asarray(extrapolated(gaussian_of(arrays["real"]), fake, draws)["fd_infinity"])}


@runner("evaluation", "inception_one_pass")
def inception_one_pass(case: Case, arrays: Arrays) -> Arrays:
    images = torch.from_numpy(arrays["images"])
    network = bare_inception()
    fill_inception(network)
    bias = network.fc.bias.numpy().copy()
    found = Inception(network)(images)
    assert found.logits is not None
    assert found.spatial is not None
    return {
        "out_pool2048": found.features,
        "out_logits_unbiased": found.logits,
        "out_logits": found.logits + bias,
        "out_spatial2023": found.spatial,
        "out_resized": resized(images, "tf1-bilinear", 299)[:, :, ::13, ::13].numpy(),
    }
