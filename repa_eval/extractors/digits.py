"""The embedded judge: a small supervised classifier of digits, independent of every teacher."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from repa_eval.errors import UserError
from repa_eval.interfaces.extractor import Extractor, Features, extractor
from repa_eval.interfaces.images import to_signed
from repa_eval.models.encoders.cnn import CNN, CNNConfig
from repa_eval.runtime.hashing import digest_module
from repa_eval.weight_files.state_dicts import NOTHING, load_strictly, read_state

WEIGHTS = "digits-judge.safetensors"


class DigitsJudge(Extractor):
    """64 features and 10 logits of 8x8 grey images."""

    name = "digits"

    def __init__(self, network: CNN) -> None:
        self.network = network.eval().requires_grad_(False)
        self.digest = digest_module(network)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return Features of uint8 images (B, 1, 8, 8)."""
        if images.shape[1:] != (1, 8, 8):
            given = "x".join(map(str, images.shape[1:]))
            raise UserError(f"extractor digits reads 1x8x8 images, not {given}; choose another --extractor")
        device = next(self.network.parameters()).device
        features = self.network.features(to_signed(images.to(device)))
        return Features(features.cpu().numpy(), self.network.head(features).cpu().numpy())

    def to(self, device: torch.device | str) -> DigitsJudge:
        """Move the network."""
        self.network.to(device)
        return self


@extractor("digits")
def digits(weights: Path | None) -> Extractor:
    """Return the judge; its weights ship with the package."""
    network = CNN(CNNConfig())
    path = Path(str(files("repa_eval") / "weights" / WEIGHTS)) if weights is None else weights
    owner = "extractor digits"
    state = read_state(path, owner=owner, names=network.state_dict())
    load_strictly(network, state, drop=NOTHING, owner=owner, path=path)
    return DigitsJudge(network)
