"""What the report calls things: direction and meaning of a metric, numbers as text."""

from __future__ import annotations

from collections.abc import Iterable

MINUS = "\N{MINUS SIGN}"
LOWER = ("fid", "sfid", "kid", "cmmd", "fd_", "loss", "mse")
HIGHER = ("caption_", "inception_score", "is_", "precision", "recall", "density", "coverage", "vendi")
ALIKE = (
    "cknna",
    "cka",
    "unbiased_cka",
    "mutual_knn",
    "svcca",
    "cycle_knn",
    "lcs_knn",
)  # likeness, no quality of its own
ORDER = (
    "fid", "fd_dinov2", "fd_digits", "sfid", "fd_", "kid", "cmmd", "inception_score", "is_", "precision", "recall",
    "density", "coverage", "vendi", "cknna", "cka", "mutual_knn", "probe_accuracy", "knn_accuracy",
    "linear_bn_accuracy", "logistic_accuracy",
)  # fmt: skip

_MEANING = {
    "fid": "Fréchet distance on Inception features (ADM evaluator's definition)",
    "sfid": "Fréchet distance on spatial Inception features",
    "fd_pixel_pca": "Fréchet distance on the principal components of the pixels",
    "fd_": "Fréchet distance on the features of the protocol's extractor; not comparable with a published FID",
    "inception_score": "inception score",
    "is_": "inception score computed from the extractor's class probabilities",
    "precision": "share of generated images inside the neighbourhoods of the real ones",
    "recall": "share of real images inside the neighbourhoods of the generated ones",
    "ct": "whether samples lie closer to training images than unseen images do: a z-score, well below 0 means copies",
    "authpct": "percentage of samples farther from their nearest training image than that is from its own nearest one",
    "cknna": "centred kernel nearest-neighbour alignment of hidden states and teacher features",
    "cka": "centred kernel alignment of hidden states and teacher features",
    "mutual_knn": "share of nearest neighbours that hidden states and teacher features have in common",
    "probe_accuracy": "accuracy of a linear classifier on the hidden states",
    "linear_bn_accuracy": "accuracy of a linear classifier after batch norm, trained by Adam, on the hidden states",
    "logistic_accuracy": "accuracy of a logistic regression on the hidden states",
    "knn_accuracy": "accuracy of a nearest-neighbour classifier on the hidden states",
    "probe_accuracy_teacher": "accuracy of a linear classifier on the teacher's features of clean images",
    "knn_accuracy_teacher": "accuracy of a nearest-neighbour classifier on the teacher's features of clean images",
    "caption_digits": "share of the digits of samples that are those of the caption, by a judge",
    "caption_both": "share of samples whose digits are all those of the caption, by a judge",
    "caption_rank1": "share of held-out images whose true caption has the lowest denoising error",
    "fd_pixels": "Fréchet distance on the pixels",
    "contrastive_loss": "contrast of the caption with the others of the batch",
    "loss": "sum of the weighted training terms",
    "denoising_loss": "velocity (denoising) term",
    "proj_loss": "alignment term",
    "grad_norm": "norm of the gradient before clipping",
    "learning_rate": "learning rate",
    "train_seconds": "training time of the run on its machine, evaluation excluded",
}


def direction(metric: str) -> str | None:
    """Return "lower", "higher" (is better), or None where neither is."""
    if metric.startswith(LOWER) or metric.endswith("_loss"):
        return "lower"
    if metric.startswith(HIGHER) or metric.endswith("_accuracy"):
        return "higher"
    return None


def axis(metric: str) -> str:
    """Return the axis label: the metric and which way is better."""
    better = direction(metric)
    if metric.startswith(ALIKE):
        return f"{metric} (higher: more alike)"
    return metric if better is None else f"{metric} ({better} is better)"


def meaning(metric: str) -> str:
    """Return what the metric measures, in half a sentence; empty if it is not one of ours."""
    if metric in _MEANING:
        return _MEANING[metric]
    prefixes = [
        key for key in _MEANING if metric.startswith(key) and (key.endswith("_") or metric[len(key) :][:1] == "_")
    ]
    return _MEANING[max(prefixes, key=len)] if prefixes else ""


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
