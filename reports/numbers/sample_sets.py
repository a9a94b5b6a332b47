"""Rows on samples of other programs: one curve along training, although each row names the set of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from repa_eval.results import SAMPLES, SAMPLES_HASH, Row, protocol_hash

Records = Mapping[str, Mapping[str, Any]]


def along_training(rows: Sequence[Row], records: Records) -> tuple[list[Row], dict[str, Mapping[str, Any]]]:
    """Return rows and records in which the protocol of such a row no longer names its samples, as its step does that.

    Left as they are: rows without a step, and those of several sets at one step of a run, none of which is the point of
    the curve.
    """
    general: dict[str, dict[str, Any]] = {}
    for digest, record in records.items():
        if SAMPLES_HASH in record:
            general[digest] = {key: value for key, value in record.items() if key not in (SAMPLES, SAMPLES_HASH)}
    hashes = {digest: protocol_hash(record) for digest, record in general.items()}
    places: dict[tuple[Any, ...], set[str]] = {}
    for row in rows:
        if row.protocol in hashes:
            places.setdefault(_place(row, hashes), set()).add(row.protocol)
    changed = [
        replace(row, protocol=hashes[row.protocol])
        if row.protocol in hashes and row.step is not None and len(places[_place(row, hashes)]) == 1
        else row
        for row in rows
    ]
    found = {**records, **{hashes[digest]: record for digest, record in general.items()}}
    used = {row.protocol for row in changed} | set(records) - set(hashes)
    return changed, {digest: record for digest, record in found.items() if digest in used}


def _place(row: Row, hashes: Mapping[str, str]) -> tuple[Any, ...]:
    """Return the key that a row has once its protocol does not name its samples."""
    return replace(row, protocol=hashes[row.protocol or ""]).key()
