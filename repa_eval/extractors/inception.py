"""ADM's Inception (the 2015 TensorFlow graph) through torch-fidelity: 2048 pool features and logits without bias.

One forward pass serves FID, inception score, precision and recall.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repa_eval.errors import Failure, first_line
from repa_eval.extractors._registry import Extractor, Features, extractor
from repa_eval.hashing import digest_module

LAYERS = ["2048", "logits_unbiased"]


class Inception(Extractor):
    """torch-fidelity's inception-v3-compat: uint8 RGB in, resized as TensorFlow 1 does it."""

    name = "inception"
    resize = "tf1-bilinear-299"

    def __init__(self, network: torch.nn.Module) -> None:
        self.network = network.eval()
        self.digest = digest_module(network)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return Features of uint8 images (B, C, H, W); grey ones are repeated over three channels."""
        device = next(self.network.parameters()).device
        rgb = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
        pooled, logits = self.network(rgb.contiguous().to(device))
        return Features(pooled.cpu().numpy().astype(np.float32), logits.cpu().numpy().astype(np.float32))

    def to(self, device: torch.device | str) -> Inception:
        """Move the network."""
        self.network.to(device)
        return self


@extractor("inception")
def inception(weights: Path | None) -> Extractor:
    """Return ADM's Inception; without a file torch-fidelity downloads the weights."""
    from torch_fidelity.utils import create_feature_extractor

    path = None if weights is None else str(weights)
    try:
        if weights is not None:
            # torch-fidelity would run the code that a pickle asks for: refuse such a file before it sees it
            torch.load(weights, map_location="cpu", weights_only=True)
        network = create_feature_extractor(
            "inception-v3-compat", LAYERS, cuda=False, feature_extractor_weights_path=path, verbose=False
        )
    except pickle.UnpicklingError as error:
        raise Failure(
            f"extractor inception: {path} holds no weights, or asks to run code; it was not opened"
        ) from error
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, EOFError) as error:
        first = first_line(error)
        if path is not None:
            raise Failure(f"extractor inception: {path} does not hold its weights ({first})") from error
        raise Failure(
            f"extractor inception has no weights here ({first}): fetch weights-inception-2015-12-05-6726825d.pth "
            "from torch-fidelity's release page and name it with --extractor-weights"
        ) from error
    return Inception(network)
