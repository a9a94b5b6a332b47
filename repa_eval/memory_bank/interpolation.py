"""Interpolation between two snippets of a memory bank (GMem, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from repa_eval.errors import UserError


def _linear(a: Tensor, b: Tensor, alpha: Tensor, draws: Tensor | None) -> Tensor:
    return (1 - alpha) * a + alpha * b


def _spherical(a: Tensor, b: Tensor, alpha: Tensor, draws: Tensor | None) -> Tensor:
    angle = torch.dot(a, b).clamp(-1, 1).acos()
    if angle.sin() < 1e-3:
        if angle > 1:
            raise UserError("spherical interpolation: the snippets are opposite, so no shortest way leads between them")
        return _linear(a, b, alpha, draws)  # which the arc is, for equal ones
    return (((1 - alpha) * angle).sin() * a + (alpha * angle).sin() * b) / angle.sin()


def _concat(a: Tensor, b: Tensor, alpha: Tensor, draws: Tensor | None) -> Tensor:
    half = len(a) // 2
    return torch.cat([a[:half], b[half:]]).expand(len(alpha), -1)


def _mask(a: Tensor, b: Tensor, alpha: Tensor, draws: Tensor | None) -> Tensor:
    assert draws is not None
    return torch.where(draws > 0.5, a, b)


# (unit a (D,), unit b (D,), alpha (K, 1), uniform draws (K, D) or None) -> (K, D)
INTERPOLATIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]] = {
    "linear": _linear,
    "spherical": _spherical,
    "concat": _concat,
    "mask": _mask,
}


def interpolate(
    a: Tensor, b: Tensor, alphas: Sequence[float], method: str = "linear", *, draws: Tensor | None = None
) -> Tensor:
    """Return snippets of length 1 (K, D) between a (D,) at alpha 0 and b (D,) at alpha 1.

    linear, spherical; concat: the first half of a, the second of b, at every alpha; mask: the entries of a where
    uniform `draws` (K, D) exceed .5, else those of b, at every alpha.
    """
    if method not in INTERPOLATIONS:
        raise UserError(f"interpolation {method!r}: choose {', '.join(INTERPOLATIONS)}")
    a, b = F.normalize(a.float(), dim=0), F.normalize(b.float(), dim=0)
    weights = torch.tensor(alphas, dtype=torch.float32, device=a.device)[:, None]
    return F.normalize(INTERPOLATIONS[method](a, b, weights, draws), dim=1)
