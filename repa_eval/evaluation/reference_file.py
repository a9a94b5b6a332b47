"""Write a file of reference statistics in ADM's layout, with a record of the images and extractor it was made of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from repa_eval import __version__
from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.statistics import write_statistics
from repa_eval.evaluation.reference import listing_hash
from repa_eval.evaluation.sample_features import Gathered, Workers, gather
from repa_eval.interfaces.extractor import Extractor


@dataclass(frozen=True, kw_only=True)
class ReferenceImages:
    """The images of a reference. data: their name or path; resize: the side to which files were cropped."""

    data: str
    source: Any  # an ImageSource
    resize: int | None = None


def write_reference(
    out: Path,
    images: ReferenceImages,
    extractor: Extractor,
    *,
    keep: int,
    batch_size: int = 256,
    workers: Workers | None = None,
) -> tuple[dict[str, Any], list[str]] | None:
    """Write mu, sigma, mu_s, sigma_s, arr_0 and `provenance`; return the latter and what the file lacks.

    keep: number of images in arr_0, evenly spaced. None in every process but the first.
    """
    source, kept = images.source, min(keep, len(images.source))
    seen = gather(source, extractor, keep=(), stream=("features", "spatial"), batch_size=batch_size, workers=workers)
    if seen is None:
        return None
    arrays = {"mu": seen.moments["features"].mean, "sigma": seen.moments["features"].covariance}
    if seen.moments["spatial"].n:
        arrays |= {"mu_s": seen.moments["spatial"].mean, "sigma_s": seen.moments["spatial"].covariance}
    chosen = np.linspace(0, len(source) - 1, kept).astype(np.int64)
    channels, height, width = source.shape
    provenance = _provenance(images, extractor, seen.n, kept)
    write_statistics(out, arrays, _batches(source, chosen, batch_size), (kept, height, width, channels), provenance)
    return provenance, _warnings(seen, extractor, kept)


def _warnings(seen: Gathered, extractor: Extractor, kept: int) -> list[str]:
    warnings, width = [], len(seen.moments["features"].mean)
    if not seen.moments["spatial"].n:
        warnings.append(f"no mu_s and sigma_s: extractor {extractor.name} has no spatial map, so there is no sFID")
    if not kept:
        warnings.append("no images in arr_0, so there are no precision, recall and other metrics of neighbours")
    if seen.n < 2 * width:
        warnings.append(f"n={seen.n} is below twice the {width} features: the covariance is noisy")
    return warnings


def _batches(source: Any, indices: Any, batch_size: int) -> Iterator[Any]:
    """Yield uint8 images (B, H, W, C) at `indices`."""
    for first in range(0, len(indices), batch_size):
        yield source.pixels(indices[first : first + batch_size].tolist()).numpy().transpose(0, 2, 3, 1)


def _provenance(images: ReferenceImages, extractor: Extractor, n: int, kept: int) -> dict[str, Any]:
    path, source = Path(images.data), images.source
    files = {"source": printable(images.data)}
    if path.exists():
        files = {"source": printable(path.resolve()), "listing": listing_hash(path)}
    return {
        **files,
        "source_hash": source.digest(),
        "n": n,
        "images_kept": kept,
        "resolution": f"{source.shape[1]}x{source.shape[2]}",
        "input_resize": None if images.resize is None else f"centre-crop-{images.resize}",
        "extractor": extractor.name,
        "extractor_hash": extractor.digest,
        "resize": extractor.resize,
        "ddof": 1,
        "versions": {"repa_eval": __version__, "torch": torch.__version__, "numpy": np.__version__},
    }
