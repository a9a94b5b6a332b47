"""A small convolutional classifier: the network of the embedded judge `digits`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from repa_eval.config import option
from repa_eval.interfaces.architecture import model


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Arguments of CNN."""

    input_size: int = option(8, help="side of the image")
    in_channels: int = option(1, help="channels of the image")
    num_classes: int = option(10, help="classes")
    feature_size: int = option(64, help="width of the features that statistics are taken of", least=1)


@model("CNN", defaults=CNNConfig(), presets={"CNN-digits": {}}, abilities={"class logits"})
class CNN(nn.Module):
    """Three 3x3 convolutions (32, 64, 64 channels, strides 1, 2, 2) with batch norm, a feature layer, a classifier."""

    def __init__(self, config: CNNConfig) -> None:
        super().__init__()
        self.config = config
        sizes = [(config.in_channels, 32, 1), (32, 64, 2), (64, 64, 2)]
        layers: list[nn.Module] = []
        for inputs, outputs, stride in sizes:
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.fc = nn.Linear(64 * (config.input_size // 4) ** 2, config.feature_size)
        self.head = nn.Linear(config.feature_size, config.num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Return (B, feature_size), after the ReLU, for images x (B, C, H, W) in [-1, 1]."""
        return F.relu(self.fc(self.convolutions(x).flatten(1)))

    def forward(self, x: Tensor, *, taps: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """Return (logits (B, K), {1: features} if layer 1 is asked for) for images x (B, C, H, W) in [-1, 1]."""
        features = self.features(x)
        logits: Tensor = self.head(features)
        return logits, {1: features} if 1 in taps else {}
