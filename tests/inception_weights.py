"""ADM's Inception with made-up weights: torch-fidelity has no constructor without a file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch


def bare_inception() -> Any:
    """torch-fidelity's network with fresh weights, loaded from nowhere."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Bare(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Keep the fresh weights."""

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "none.pth"
        torch.save({}, file)
        return Bare("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))


@torch.no_grad()
def fill_inception(network: Any) -> None:
    """Fill the weights as the golden case states it: He's gain, so that the image matters in the last layer."""
    state = network.state_dict()
    for k, name in enumerate(sorted(state)):
        tensor = state[name]
        if not tensor.is_floating_point():
            continue
        v = np.random.RandomState(k).standard_normal(tuple(tensor.shape))
        if v.ndim >= 2:
            v = 1.2 * v * np.sqrt(2.0 / np.prod(v.shape[1:]))
        elif name.endswith("running_var"):
            v = 1.0 + 0.2 * np.abs(v)
        elif name.endswith("weight"):
            v = 1.0 + 0.2 * v
        else:
            v = 0.02 * v
        tensor.copy_(torch.from_numpy(v.astype(np.float32)))


def write_inception(path: Path) -> Path:
    """Write such weights to a file that --extractor-weights reads."""
    network = bare_inception()
    fill_inception(network)
    torch.save(network.state_dict(), path)
    return path
