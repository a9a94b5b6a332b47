"""Both forms of an opened encoder, and every measurement of them: equality, sizes, speed, likeness, probes -> rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.checkpoint_layout import Checkpoint
from repa_eval.models.shared.encoder import Encoder
from repa_eval.reparameterisation import merged as merging
from repa_eval.reparameterisation.merged import Pair
from repa_eval.results import Row

LIMIT = 1e-4  # relative; rounding of float32 alone is 1e-7 to 1e-6


def pair_of(opened: Checkpoint, device: str) -> tuple[Pair, list[str]]:
    """Return both forms of a checkpoint's encoder with the original teacher, and notes for the user.

    A note says why the teacher is missing where it cannot be opened here. UserError if there is nothing to merge.
    """
    if not isinstance(opened.network, Encoder):
        raise UserError(f"{opened.path} holds {opened.model_name}: only RePaViT's encoders are merged")
    try:
        merged = opened.network.merged()
    except UserError as error:
        raise UserError(f"{opened.path}: {error}") from error
    original, notes = None, []
    try:
        original = merging.original_of(opened)
    except UserError as error:
        notes.append(f"not compared with the original: {error}")
    if opened.facts.get("idle_ratio_from") == "published size":
        ratio = opened.network.facts()["idle_ratio"]
        notes.append(
            f"idle ratio {ratio} is that of the published size: the file does not record it (--set idle_ratio=R)"
        )
    original = original.to(device) if original is not None else None
    return Pair(opened.network.to(device), merged.to(device), original, device), notes


def measure(
    pair: Pair,
    *,
    where: str,
    data_name: str | None,
    num_images: int,
    speed_batch: int,
    rounds: int,
    with_probes: bool,
    seed: int,
    columns: Mapping[str, Any],
) -> list[Row]:
    """Return the rows of a merge; Failure if the merged form computes something else.

    where: the checkpoint, for that error. data_name: real images, None for two photographs. speed_batch: images per
    timed forward pass, in each of `rounds` rounds. with_probes: compare with the original teacher as well. seed: of the
    noise images.
    """
    images = merging.images_of(pair.network.config, data_name, num_images)
    rows = merging.equality(pair, images, seed=seed, columns=columns)
    for row in rows:
        if row.value is None or row.value > LIMIT:
            raise Failure(f"{where}: the merged form differs by {row.value} ({row.metric}); nothing was written")
    rows += merging.sizes(pair, columns=columns)
    rows += merging.speed(pair, batch_size=speed_batch, rounds=rounds, columns=columns)
    if pair.original is not None and data_name and with_probes:
        shared: dict[str, Any] = {"batch_size": merging.BATCH, "columns": columns}
        rows += merging.likeness(pair, images, **shared)
        rows += merging.probes(pair, data_name, **shared)
    return rows
