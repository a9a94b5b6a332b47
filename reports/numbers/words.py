"""What the report calls things: direction and meaning of a metric as declared, numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MINUS = "\N{MINUS SIGN}"
MORE = {"alignment": "more similar", "structure": "more spatial structure"}  # kinds that are no quality of their own
ORDER = (
    "fid", "fd_dinov2", "fd_digits", "sfid", "fd_", "kid", "cmmd", "inception_score", "is_", "precision", "recall",
    "density", "coverage", "vendi", "cknna", "cka", "mutual_knn", "probe_accuracy", "knn_accuracy",
    "linear_bn_accuracy", "logistic_accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Metrics:
    """What the numbers of a report mean.

    declared: name -> {"better": "lower", "higher" or None, "meaning": half a sentence, "kind": e.g. "alignment"}. A
    name stands for those that begin with it and an underscore as well, the longest that fits: "fd" for "fd_dinov2".
    """

    declared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def direction(self, metric: str) -> str | None:
        """Return which values of a quality are better, "lower" or "higher"; None where neither is.

        Alignment has no better: it is no quality of its own. An undeclared name that ends in _loss is better lower.
        """
        declared = self._of(metric)
        if declared is None:
            return "lower" if metric.endswith("_loss") else None
        return None if declared.get("kind") in MORE else declared.get("better")

    def axis(self, metric: str) -> str:
        """Return the axis label: the metric and which way is better, or what higher values mean."""
        declared = self._of(metric) or {}
        more = MORE.get(declared.get("kind", ""))
        if more is not None and declared.get("better"):
            return f"{metric} ({declared['better']}: {more})"
        better = self.direction(metric)
        return metric if better is None else f"{metric} ({better} is better)"

    def meaning(self, metric: str) -> str:
        """Return what the metric measures, in half a sentence; empty if nobody declares it."""
        return str((self._of(metric) or {}).get("meaning") or "")

    def _of(self, metric: str) -> Mapping[str, Any] | None:
        parts = metric.split("_")
        names = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
        return next((self.declared[name] for name in names if name in self.declared), None)


def rank(metric: str) -> tuple[int, str]:
    """Return the sort key that puts the metrics in the order in which people read them."""
    fits = [(len(name), place) for place, name in enumerate(ORDER) if metric.startswith(name)]
    return (max(fits)[1] if fits else len(ORDER), metric)


def number(value: float | None, digits: int = 3, *, fixed: bool = False) -> str:
    """Return a number with `digits` significant digits, without an exponent where people would write none.

    fixed: keep trailing zeros, for columns.
    """
    if value is None:
        return "—"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e7:
        return f"{value:.{digits - 1}e}"
    if size >= 10 ** (digits - 1):
        return f"{value:.0f}"
    if fixed and size >= 1e-3:
        return f"{value:#.{digits}g}".rstrip(".")
    text = f"{value:.{digits}g}"
    if "e" in text:
        return f"{value:.0f}" if size >= 1 else f"{value:.{digits + 4}f}".rstrip("0")
    whole, _, fraction = text.partition(".")
    kept = max(0, digits - len(whole.lstrip("-"))) if whole.lstrip("-") != "0" else len(fraction)
    return f"{float(text):.{kept}f}" if kept else whole


def listing(items: Iterable[str]) -> str:
    """Return "a", "a and b", "a, b and c"."""
    words = list(items)
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def plural(count: int, word: str) -> str:
    """Return "1 step", "2 steps"."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def over_seeds(mean: float, low: float, high: float, seeds: int) -> str:
    """Return "0.780 (0.750 to 0.810 over 3 seeds)"; the number alone for one seed, which has no spread."""
    if seeds < 2:
        return number(mean)
    texts = [number(value, fixed=True) for value in (mean, low, high)]
    return f"{texts[0]} ({texts[1]} to {texts[2]} over {seeds} seeds)"
