"""The registries of metrics: of paired features, of one encoder's token grid, of real against generated features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from repa_eval.errors import UserError
from repa_eval.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
BETTER = ("lower", "higher", None)


@dataclass(frozen=True, kw_only=True)
class AlignmentMetric:
    """An alignment metric: f(x (N, D1), y (N, D2)) -> float, and what it declares (all of it is tested).

    x and y are arrays, or `Prepared` (see `metrics/shared/prepared.py`), which keep what was computed of one side.
    """

    function: Callable[..., float]
    definition: str  # one line
    range: str  # of the values, for people
    meaning: str  # half a sentence, as the report explains it
    better: str | None = "higher"  # which values mean more alike: "higher" or "lower"
    best: float | None = 1.0  # value of f(x, x); None where it is not fixed
    chance: float | None = 0.0  # value for independent features of many samples; None where it is not fixed
    symmetric: bool = True
    scale: bool = True  # x -> c x, c > 0, changes nothing
    rotation: bool = True  # x -> x Q changes nothing
    shift: bool = True  # x -> x + 1 m^T changes nothing
    permutation: bool = True  # reordering the samples of both changes nothing


@dataclass(frozen=True, kw_only=True)
class SpatialMetric:
    """A metric of the token grid of ONE encoder: f(tokens (N, T, D), ...) -> float, the mean over the images."""

    function: Callable[..., float]
    definition: str
    range: str
    meaning: str  # half a sentence, as the report explains it
    better: str | None = "higher"  # which values mean more spatial structure; None where neither does
    needs_mask: bool = False  # f(tokens, masks (N, T)), true in the foreground


@dataclass(frozen=True, kw_only=True)
class SampleMetric:
    """A metric of generated against real samples: f(real, fake) -> {suffix: value} on what `needs` names.

    better: "lower", "higher", or None where neither is, of every suffix. meaning: half a sentence on every suffix, as
    the report explains it; further keys are names of stored numbers that need words of their own, e.g. "fid" for "fd".
    """

    function: Callable[..., dict[str, float]]
    needs: str  # "features", "logits" or "spatial"
    gives: tuple[str, ...]  # the suffixes that the function returns, in its order
    better: Mapping[str, str | None]
    meaning: Mapping[str, str]
    definition: str = ""  # one line; the first line of the docstring where it is empty
    range: str = ""
    streams: bool = False  # takes Moments in place of features, which then need not be kept
    extractor: str = ""  # that it is defined on, where the user names none
    held_out: bool = False  # f(real, fake, held_out): features of real images that training never saw
    warns: Callable[[int, int], str | None] | None = None  # (samples, features) -> what is to be said of the number
    stderr: Callable[..., dict[str, float]] | None = None  # (real, fake, values) -> {suffix: standard error}


PACKAGE, GROUP = "repa_eval.metrics", "repa_eval.metrics"
ALIGNMENT: Registry[AlignmentMetric] = Registry("alignment metric", PACKAGE, group=GROUP)
SPATIAL: Registry[SpatialMetric] = Registry("spatial metric", PACKAGE, group=GROUP)
SAMPLE: Registry[SampleMetric] = Registry("sample metric", PACKAGE, group=GROUP)


def alignment_metric(
    name: str, *, definition: str, range: str, meaning: str, better: str | None = "higher", **declared: Any
) -> Callable[[F], F]:
    """Register an alignment metric; the function itself is returned unchanged. declared: fields of AlignmentMetric."""
    _check_direction(name, better)

    def record(function: F) -> F:
        described = {"definition": definition, "range": range, "meaning": meaning, "better": better, **declared}
        ALIGNMENT.register(name, source=function)(AlignmentMetric(function=function, **described))
        return function

    return record


def spatial_metric(
    name: str,
    *,
    definition: str,
    range: str,
    meaning: str,
    better: str | None = "higher",
    needs_mask: bool = False,
) -> Callable[[F], F]:
    """Register a metric of one encoder's tokens; the function itself is returned unchanged."""
    _check_direction(name, better)

    def record(function: F) -> F:
        metric = SpatialMetric(
            function=function,
            definition=definition,
            range=range,
            meaning=meaning,
            better=better,
            needs_mask=needs_mask,
        )
        SPATIAL.register(name, source=function)(metric)
        return function

    return record


def sample_metric(
    name: str,
    *,
    needs: str,
    gives: tuple[str, ...],
    better: str | Mapping[str, str | None] | None,
    meaning: str | Mapping[str, str],
    definition: str = "",
    range: str = "",
    **declared: Any,
) -> Callable[[F], F]:
    """Register a metric of generated against real features; the function itself is returned unchanged.

    It returns a value for each suffix of `gives` and may add its standard error as SUFFIX_stderr; where the error is
    declared as a function of its own, the metric returns values only. better, meaning: one for all suffixes, or by
    suffix. declared: further fields of SampleMetric.
    UserError: a suffix without a direction or a meaning, a direction that is neither "lower", "higher" nor None.
    """
    directions = better if isinstance(better, Mapping) else dict.fromkeys(gives, better)
    meanings = meaning if isinstance(meaning, Mapping) else dict.fromkeys(gives, meaning)
    for suffix in gives:
        if suffix not in directions or not meanings.get(suffix):
            raise UserError(f"sample metric {name!r}: declare better= and meaning= of {suffix!r}")
        _check_direction(name, directions[suffix])

    def record(function: F) -> F:
        described = {"definition": definition, "range": range, "better": directions, "meaning": meanings, **declared}
        metric = SampleMetric(function=function, needs=needs, gives=gives, **described)
        SAMPLE.register(name, source=function)(metric)
        return function

    return record


def _check_direction(name: str, better: str | None) -> None:
    if better not in BETTER:
        raise UserError(f"metric {name!r}: better={better!r}; choose 'lower', 'higher' or None where neither is better")
