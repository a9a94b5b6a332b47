"""REPA's `preprocess_raw_image`, family by family."""

from __future__ import annotations

import numpy as np
import torch

from golden_runners import Arrays, Case, runner
from repa_eval.teachers.official import FAMILIES


@runner("repa", "teacher_preprocess")
def teacher_preprocess(case: Case, arrays: Arrays) -> Arrays:
    outputs = {}
    for family in case["config"]["enc_types"]:
        pixels = FAMILIES[family].pixels(torch.from_numpy(arrays["image"]))
        outputs |= {
            f"{family}:shape": np.array(pixels.shape),
            f"{family}:strided": pixels[:, :, 3::9, 5::11].numpy(),
            f"{family}:corner": pixels[:, :, :4, :4].numpy(),
            f"{family}:mean": pixels.mean((2, 3)).numpy(),
            f"{family}:std": pixels.std((2, 3), correction=0).numpy(),
        }
    return outputs
