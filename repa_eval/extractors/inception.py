"""ADM's Inception (the 2015 TensorFlow graph), its weights through torch-fidelity, in one forward pass.

2048 pool features (FID, precision, recall), the 17x17x7 spatial map (sFID) and logits without bias (IS). The forward
is torch-fidelity's, on folded batch norms and channels-last memory: the same features to 1e-6, in less time.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from repa_eval.errors import Failure, first_line
from repa_eval.extractors.shared.resize import as_rgb, resized
from repa_eval.interfaces.extractor import Array, Extractor, Features, extractor
from repa_eval.runtime.hashing import digest_module
from repa_eval.weight_files.state_dicts import read_state

LAYERS = ["2048", "logits_unbiased"]
SIDE = 299
SPATIAL_CHANNELS = 7  # the first of `mixed_6/conv`, after its ReLU: 17 x 17 x 7 = 2023 values
FILE = "weights-inception-2015-12-05-6726825d.pth"
KERNEL = "Conv2d_1a_3x3.conv.weight"
MICRO = 8  # images at a time on a CPU, where larger batches take more memory and no less time
STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2")
UNTIL_SPATIAL = (*STEM, *(f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d")))
AFTER = ("Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")


class Inception(Extractor):
    """torch-fidelity's inception-v3-compat: uint8 RGB in, resized by `rule` to 299x299, (x - 128) / 128."""

    name = "inception"
    has_spatial = True

    def __init__(self, network: nn.Module, rule: str = "tf1-bilinear") -> None:
        self.digest = digest_module(network)
        self.rule, self.resize = rule, f"{rule}-{SIDE}"
        self.network: Any = _folded(network.eval()).to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """Return Features of uint8 images (B, C, H, W); grey ones are repeated over three channels."""
        device = self.network.fc.weight.device
        step = MICRO if device.type == "cpu" else len(images)
        parts = [self._forward(part.to(device)) for part in as_rgb(images, self.name).split(step)]
        pooled, logits, spatial = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return Features(pooled, logits, spatial)

    def to(self, device: torch.device | str) -> Inception:
        """Move the network."""
        self.network.to(device)
        return self

    def _forward(self, images: Tensor) -> tuple[Array, Array, Array]:
        x = (resized(images, self.rule, SIDE) - 128.0) / 128.0  # (B, 3, 299, 299)
        x = x.contiguous(memory_format=torch.channels_last)
        for name in UNTIL_SPATIAL:
            x = getattr(self.network, name)(x)
        # The block puts its branch1x1 first. Order h, w, c: reference files hold their covariance so.
        spatial = x[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)  # (B, 2023)
        for name in AFTER:
            x = getattr(self.network, name)(x)
        pooled = x.mean(dim=(2, 3))  # (B, 2048)
        # Without bias, as ADM takes them; always of MICRO rows or more: the rounding depends on their number.
        rows = F.pad(pooled, (0, 0, 0, max(0, MICRO - len(pooled))))
        logits = (rows @ self.network.fc.weight.T)[: len(pooled)]
        return _array(pooled), _array(logits), _array(spatial)


@extractor("inception")
def inception(weights: Path | None) -> Extractor:
    """ADM's Inception; images resized as TensorFlow 1 does it (protocols adm and torch-fidelity)."""
    return Inception(_network(weights))


@extractor("inception-clean")
def inception_clean(weights: Path | None) -> Extractor:
    """The same network on images resized by Pillow's antialiased bicubic rule, as in clean-fid (protocol clean)."""
    return Inception(_network(weights), "pil-bicubic")


def _network(weights: Path | None) -> nn.Module:
    if weights is None:
        return _built(None, None)
    state = read_state(weights, owner="extractor inception", names=(KERNEL,))
    with tempfile.TemporaryDirectory() as folder:
        # torch-fidelity's own reader would run the code that a pickle asks for: it gets the tensors that were checked
        checked = Path(folder) / "weights.pt"
        torch.save(state, checked)
        return _built(checked, weights)


def _built(checked: Path | None, weights: Path | None) -> nn.Module:
    """Return torch-fidelity's network with the tensors in `checked`, read from `weights`; None: the published ones."""
    from torch_fidelity.utils import create_feature_extractor

    try:
        network: nn.Module = create_feature_extractor(
            "inception-v3-compat",
            LAYERS,
            cuda=False,
            feature_extractor_weights_path=None if checked is None else str(checked),
            verbose=False,
        )
    except Exception as error:  # of torch-fidelity's own reader
        raise _failure(None if weights is None else str(weights), first_line(error)) from error
    return network


def _failure(path: str | None, reason: str) -> Failure:
    if path is not None:
        return Failure(f"extractor inception: {path} does not hold its weights ({reason})")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if cached.is_file():
        return Failure(
            f"extractor inception: {cached} is damaged, as an interrupted download leaves it; delete it and run the "
            "command again"
        )
    return Failure(
        f"extractor inception has no weights here ({reason}): fetch {FILE} from torch-fidelity's release page and name "
        "it with --extractor-weights"
    )


def _folded(network: nn.Module) -> nn.Module:
    """Let every convolution do the batch norm behind it."""
    for module in network.modules():
        conv, norm = getattr(module, "conv", None), getattr(module, "bn", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            module.conv, module.bn = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return network


def _array(x: Tensor) -> Array:
    array: Array = x.float().cpu().numpy()
    return array
