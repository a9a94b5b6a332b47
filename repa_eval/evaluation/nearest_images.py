"""The samples closest to a real image, each beside its nearest real images."""

from __future__ import annotations

from typing import Any

import numpy as np

from repa_eval.errors import UserError
from repa_eval.evaluation.reference import reference_of
from repa_eval.evaluation.sample_features import Workers, gather
from repa_eval.interfaces.extractor import Extractor
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.metrics.shared.kernels import normalise_rows
from repa_eval.metrics.shared.manifold import nearest
from repa_eval.sampling.sample_files import png

NEIGHBOURS, PICTURED = 5, 10  # real images beside a sample, samples shown


def nearest_picture(
    fake: ImageSource, real: ImageSource, judge: Extractor, *, batch_size: int = 256, workers: Workers | None = None
) -> tuple[bytes, dict[str, Any]] | None:
    """Return a PNG, the samples most like a real image with their nearest real images beside them, and its words.

    Nearest by the cosine of the judge's features, a row each, the most similar first; None in every process but the
    first. words: what the rows are, as the report reads them.
    """
    judge.prepare(real)
    made = gather(fake, judge, keep=("features",), batch_size=batch_size, workers=workers)
    known = reference_of(
        real, judge, {"keep": {"features"}, "stream": set()}, batch_size=batch_size, workers=workers
    )  # often of the call before
    if made is None or known is None:
        return None
    seen = known.seen
    unit = [normalise_rows(side.rows["features"]) for side in (made, seen)]
    distance, index = nearest(unit[0], unit[1], k=min(NEIGHBOURS, seen.n))
    rows, names = [], []
    for place in np.argsort(distance[:, 0], kind="stable")[:PICTURED]:
        names.append(f"cosine {1.0 - distance[place, 0] ** 2 / 2.0:.3f}")  # of two vectors of length 1
        one, near = fake.pixels([int(place)]), real.pixels(sorted(map(int, index[place])))
        near = near[np.argsort(np.argsort(index[place]))]
        channels = max(one.shape[1], near.shape[1])
        images = [part.expand(-1, channels, -1, -1).numpy() for part in (one, near)]
        if images[0].shape[1:] != images[1].shape[1:]:
            raise UserError(f"samples are {images[0].shape[2:]} and real images {images[1].shape[2:]}: add --resize N")
        framed = np.pad(np.concatenate(images), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=96)
        rows.append(np.concatenate(list(framed), axis=-1))
    words = {
        "caption": f"Left: the {len(rows)} samples (of {made.n}) closest to one of {seen.n} real images ({real.name}). "
        f"Right: the {index.shape[1]} nearest real images, by cosine similarity of {judge.name} features.",
        "rows": names,
        "columns": 1 + index.shape[1],
        "tile": rows[0].shape[-2],
    }
    return png(np.concatenate(rows, axis=-2)), words
