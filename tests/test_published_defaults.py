"""What a user gets without a word is what was published: weights of losses, layers, neighbours, kernels.

The golden cases bring their own settings, so that they pass whatever the defaults are.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import published_variants
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.interfaces.method import METHODS
from repa_eval.metrics.cmmd import cmmd
from repa_eval.metrics.density_coverage import density_coverage, prdc
from repa_eval.metrics.fd_infinity import fd_infinity, sizes_of
from repa_eval.metrics.inception_score import inception_score_adm, inception_score_torch_fidelity
from repa_eval.metrics.kid import kid, kid_subsets
from repa_eval.metrics.precision_recall import precision_recall
from repa_eval.metrics.realism import realism
from repa_eval.metrics.vendi import vendi_score
from repa_eval.sampling.samplers.flow import flow_timesteps
from repa_eval.train.contrastive_loss import scaled_linear_schedule

LINEAR = Interpolant(path_type="linear", prediction="v", weighting="uniform")
OF_REPA = {"enc_type": "dinov2-vit-b", "proj_coeff": 0.5, "interpolant": LINEAR, "cfg_prob": 0.1}
METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    "vanilla": {"interpolant": LINEAR, "cfg_prob": 0.1},
    "repa": {**OF_REPA, "encoder_depth": 8, "proj_loss": "cosine"},  # arXiv 2410.06940, train.py
    "urepa": {**OF_REPA, "encoder_depth": 18, "manifold_coeff": 3.0},  # 2503.18414, eq. 7
    "haste": {**OF_REPA, "encoder_depth": 8, "attn_coeff": 0.5, "early_stop_point": 250_000},  # 2505.16792, train.py
    "reg": {**OF_REPA, "encoder_depth": 8, "cls_coeff": 0.03},  # 2507.01467, train.sh
    "erw": {  # 2504.10188, README
        **OF_REPA, "encoder_depth": 14, "l2r_depth": 4, "stage1_steps": 10_000,
    },
    "gmem": {  # 2412.08781, the projector's block is written in the code
        "enc_type": "dinov2-vit-b", "encoder_depth": 4, "proj_coeff": 0.5, "cosine_coeff": 1.0, "latent_dim": 64,
        "snippet": "cls", "interpolant": dataclasses.replace(LINEAR, weighting="lognormal"),
    },
    "softrepa": {  # 2503.08250, SD3
        "objective": "contrastive", "temp": 0.07, "scale": 4.0, "dweight": 0.0, "tokens": 4, "layers": 5,
        "use_dc_t": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", METHOD_DEFAULTS)
def test_options_of_a_method(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(METHODS.get(name))}
    assert {key: fields[key] for key in METHOD_DEFAULTS[name]} == METHOD_DEFAULTS[name]


# of functions that are called by these names without a setting, by a command or by the code they repeat
FUNCTION_DEFAULTS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (precision_recall, {"k": 3}),  # ADM's evaluator
    (published_variants.realism, {"k": 3}),
    (realism, {"k": 3}),  # 1904.06991, dgm-eval
    (prdc, {"k": 5}),  # the prdc package
    (density_coverage, {"k": 5}),
    (kid, {"seed": 2020}),  # torch-fidelity
    (kid_subsets, {"subsets": 100, "size": 1000, "seed": 2020}),
    (vendi_score, {"q": 1.0}),
    (inception_score_adm, {"split_size": 5000}),
    (inception_score_torch_fidelity, {"splits": 10, "shuffle": True}),
    (published_variants.inception_score_dgm, {"splits": 10}),
    (fd_infinity, {"points": 15}),
    (flow_timesteps, {"shift": 3.0}),  # Stable Diffusion 3's scheduler
    (scaled_linear_schedule, {"first": 0.00085, "last": 0.012, "num_steps": 1000}),  # Stable Diffusion 1.5's scheduler
]


@pytest.mark.parametrize(("function", "published"), FUNCTION_DEFAULTS)
def test_settings_of_a_function(function: Callable[..., Any], published: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    assert {key: parameters[key].default for key in published} == published


def test_sizes_of_the_subsets_of_fd_infinity() -> None:
    sizes = sizes_of(60_000)
    assert (len(sizes), sizes[0], sizes[-1]) == (15, 5000, 60_000)  # arXiv 1911.07023, its code
    assert sizes_of(3000)[0] == 300


def test_cmmd_without_settings() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 30, 6))
    x, y = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in (x, y))

    def kernel(a: Any, b: Any) -> float:  # the published function is 1000 times the biased estimate, sigma 10
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / 200).mean())

    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert cmmd(x, y)["cmmd"] == pytest.approx(expected, rel=1e-9)
