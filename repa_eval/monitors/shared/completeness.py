"""Whether a table already holds every cell of a layer x timestep map."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from repa_eval.results import Row, protocol_hash


def is_complete(
    step: int,
    rows: Collection[Row],
    records: Iterable[dict[str, Any]],
    metrics: Sequence[str],
    layers: Sequence[int],
    timesteps: Sequence[float],
) -> bool:
    """Return whether rows hold every metric, layer and timestep under every protocol at a step."""
    known = {(row.metric, row.layer, row.timestep, row.protocol) for row in rows if row.step == step}
    hashes = [protocol_hash(record) for record in records]
    wanted = {(m, layer, t, p) for m in metrics for layer in layers for t in timesteps for p in hashes}
    return wanted <= known
