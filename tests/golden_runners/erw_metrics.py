"""LINs-lab/ERW: its variant of CKNNA, and for contrast that of platonic-rep on the same features."""

from __future__ import annotations

import re

import numpy as np

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import numbers_in
from repa_eval.metrics.cknna import cknna as platonic
from repa_eval.metrics.cknna_erw import cknna_erw
from repa_eval.metrics.shared.kernels import normalise_rows


@runner("erw", "cknna")
def cknna(case: Case, arrays: Arrays) -> Arrays:
    a, b = arrays["A"], arrays["B"]
    [k] = numbers_in(case["outputs"].get("self_unbiased", {}).get("meaning", "k=10"))
    out = {"self_unbiased": cknna_erw(a, a, k=int(k), unbiased=True)}
    for name in case["outputs"]:
        if match := re.fullmatch(r"(platonic_)?(un)?biased_k(\d+)", name):
            options = {"k": int(match[3]), "unbiased": match[2] is not None}
            if match[1]:
                out[name] = platonic(normalise_rows(a), normalise_rows(b), **options)
            else:
                out[name] = cknna_erw(a, b, **options)
    return {name: np.asarray(value) for name, value in out.items()}
