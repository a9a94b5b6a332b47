"""REPA's head: a multilayer perceptron per token (arXiv 2410.06940)."""

from __future__ import annotations

from torch import nn

from repa_eval.interfaces.projector import projector
from repa_eval.models.shared import layers


@projector("mlp")
def mlp(width: int, teacher_width: int, hidden_width: int) -> nn.Module:
    """Return Linear, SiLU, Linear, SiLU, Linear, xavier-initialised as in REPA's trainer."""
    head = layers.projector(width, hidden_width, teacher_width)
    for layer in head:
        if isinstance(layer, nn.Linear):
            layers.xavier(layer)
    return head
