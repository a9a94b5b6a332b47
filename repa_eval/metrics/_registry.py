"""The two registries of metrics: of two sets of paired features, and of real against generated features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from repa_eval.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class AlignmentMetric:
    """An alignment metric: f(x (N, D1), y (N, D2)) -> float, and the invariances that it declares (all are tested)."""

    function: Callable[..., float]
    best: float | None = 1.0  # value of f(x, x); None where it is not fixed
    chance: float | None = 0.0  # value for independent features of many samples
    symmetric: bool = True
    scale: bool = True  # x -> c x, c > 0, changes nothing
    rotation: bool = True  # x -> x Q changes nothing
    permutation: bool = True  # reordering the samples of both changes nothing


@dataclass(frozen=True, kw_only=True)
class SampleMetric:
    """A metric of generated against real samples: f(real, fake) -> {suffix: value} on what `needs` names."""

    function: Callable[..., dict[str, float]]
    needs: str  # "features" or "logits"
    gives: tuple[str, ...]  # the suffixes that the function returns, in its order


ALIGNMENT: Registry[AlignmentMetric] = Registry("alignment metric", "repa_eval.metrics", group="repa_eval.metrics")
SAMPLE: Registry[SampleMetric] = Registry("sample metric", "repa_eval.metrics", group="repa_eval.metrics")


def alignment_metric(name: str, **declared: Any) -> Callable[[F], F]:
    """Register an alignment metric; the function itself is returned unchanged."""

    def record(function: F) -> F:
        ALIGNMENT.register(name, source=function)(AlignmentMetric(function=function, **declared))
        return function

    return record


def sample_metric(name: str, *, needs: str, gives: tuple[str, ...]) -> Callable[[F], F]:
    """Register a metric of generated against real features; the function itself is returned unchanged."""

    def record(function: F) -> F:
        SAMPLE.register(name, source=function)(SampleMetric(function=function, needs=needs, gives=gives))
        return function

    return record
