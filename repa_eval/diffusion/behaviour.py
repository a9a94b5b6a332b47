"""Tell apart what weights cannot: SiT with learned sigma and DiT have the same names and shapes.

Both were trained to know noise when they see it. Given pure noise at its own noisiest time, a DiT answers that noise,
a SiT (velocity data - noise) its negative; read as the other system, the answer is unlike it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from repa_eval.diffusion.conventions import EPSILON, REVERSED, unwrap

SEED = 0


def likeliest(models: Sequence[Any]) -> Any:
    """Return the model whose answer to pure noise is most like that noise; the first if none is (untrained weights)."""
    likeness = [_likeness(model) for model in models]
    best = max(range(len(models)), key=likeness.__getitem__)
    return models[best] if likeness[best] > 0.5 else models[0]


@torch.no_grad()
def _likeness(model: Any) -> float:
    """Return the cosine of pure noise and what the model takes for it."""
    config, like = model.config, next(model.parameters())
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(1, config.in_channels, config.input_size, config.input_size, generator=generator).to(like)
    y, network = _any_condition(model), unwrap(model)
    if model.native == EPSILON:
        guess: Tensor = network(x, torch.full((1,), 999, device=x.device), y)[0][:, : config.in_channels]
    else:
        noisiest = 0.0 if model.native == REVERSED else 1.0
        velocity = network(x, torch.full((1,), noisiest, device=x.device).to(x), y)[0]
        guess = -velocity if model.native == REVERSED else velocity
    return float(torch.nn.functional.cosine_similarity(guess.float().flatten(), x.float().flatten(), dim=0))


def _any_condition(model: Any) -> Tensor:
    """Return "no class" (1,), or the first class of a model that has no null label: noise looks like neither."""
    if model.has_null_label:
        return model.null_condition(1)  # type: ignore[no-any-return]
    return torch.zeros(1, dtype=torch.long, device=next(model.parameters()).device)
