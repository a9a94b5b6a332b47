"""Metrics of generated samples: Frechet distance, inception score, precision and recall."""

from __future__ import annotations

import re

import numpy as np

import published_variants
from golden_runners import Arrays, Case, runner
from repa_eval.metrics import inception_score as score
from repa_eval.metrics import precision_recall as pr
from repa_eval.metrics.fid import Moments, frechet_distance, moments
from repa_eval.probes.knn import knn_votes


@runner("evaluation", "fd")
@runner("evaluation", "fd_identical")
@runner("evaluation", "fd_rank_deficient")
def fd(case: Case, arrays: Arrays) -> Arrays:
    real, fake = moments(arrays["real"]), moments(arrays["fake"])
    value = np.asarray(frechet_distance(real.mean, real.covariance, fake.mean, fake.covariance))
    out = {name: value for name in case["outputs"] if name.startswith("out_fd_")}
    return out | _statistics("real", real) | _statistics("fake", fake)


@runner("evaluation", "inception_score")
def inception_score(case: Case, arrays: Arrays) -> Arrays:
    logits = arrays["logits"]
    found = {name: _score(name.removeprefix("out_"), logits) for name in case["outputs"]}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}


@runner("evaluation", "precision_recall")
def precision_recall(case: Case, arrays: Arrays) -> Arrays:
    real, fake, config = arrays["real"], arrays["fake"], case["config"]
    single = pr.precision_recall(real, fake, k=config["k"])
    precision, recall = pr.precision_recall_at(real, fake, ks=config["multi_k"])
    realism, nearest = published_variants.realism(
        real, fake, k=config["multi_k"][0]
    )  # ADM: the radius of the first of several k
    out = {
        "radii_real": published_variants.radii(real, ks=(config["k"],)),
        "radii_fake": published_variants.radii(fake, ks=(config["k"],)),
        "precision_multi": precision,
        "recall_multi": recall,
        "fraction": precision.mean(),
        "realism": realism,
        "nearest_real": nearest,
    }
    for prefix in ("", "tf_", "tf_part_"):
        out |= {prefix + name: value for name, value in single.items()}
    return {f"out_{name}": np.asarray(value) for name, value in out.items()}


def _statistics(side: str, seen: Moments) -> Arrays:
    return {f"out_mu_{side}": seen.mean, f"out_sigma_{side}": seen.covariance}


def _score(name: str, logits: np.ndarray) -> float | None:
    """Return the value that e.g. `tf_splits10_shuffle_mean` names, None for a name of no known form."""
    which = {"mean": 0, "std": 1}
    if match := re.fullmatch(r"tf_splits(\d+)_(shuffle|order)_(mean|std)", name):
        shuffle = match[2] == "shuffle"
        both = score.inception_score_torch_fidelity(logits, splits=int(match[1]), shuffle=shuffle)
        return both[which[match[3]]]
    if match := re.fullmatch(r"dgm_splits(\d+)_(mean|std)", name):
        return published_variants.inception_score_dgm(logits, splits=int(match[1]))[which[match[2]]]
    if match := re.fullmatch(r"adm_split_size(\d+)", name):
        return score.inception_score_adm(logits, split_size=int(match[1]))
    return None


@runner("evaluation", "knn_probe")
def knn_probe(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    labels, expected = arrays["train_labels"], arrays["val_labels"]
    votes = knn_votes(arrays["train"], labels, arrays["val"], ks=config["k"], num_classes=config["num_classes"])
    top1 = {f"out_top1_k{k}": np.array((vote.argmax(1) == expected).mean()) for k, vote in votes.items()}
    return {**{f"out_probas_k{k}": vote for k, vote in votes.items()}, **top1}
