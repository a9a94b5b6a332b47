"""`dataset.json` of EDM2's and REPA's tools: {"labels": [["00000/img00000000.png", 7], ...]}, or null for no labels.

Numbers are class indices; nothing is read out of the order or the names of folders.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from repa_eval.data.readers.listing import leads_outside, printable
from repa_eval.data.readers.members import Members
from repa_eval.data.readers.npz import MAX_LABEL
from repa_eval.errors import UserError, short_repr
from repa_eval.interfaces.image_source import Array
from repa_eval.runtime.files import parse_json

LIST = "dataset.json"
MAX_BYTES = 1 << 30  # 1,281,167 entries take 45 MB


@dataclass(frozen=True)
class Labels:
    """The classes of N files. values: int64 (N,), None where there are none; count: classes are 0..count-1."""

    values: Array | None = None
    count: int = 1
    names: tuple[str, ...] = ()


UNLABELLED = Labels()


def read_labels(members: Members, files: Sequence[str]) -> Labels:
    """Return what the dataset.json beside `files` says of each of them, in their order.

    UserError where it is missing, names a file outside of the folder or one that is not there, or lacks one.
    """
    where = members.where(LIST)
    if not members.holds(LIST):
        raise UserError(f'{where} is missing: add it, or write {{"labels": null}} into it for data without labels')
    content = _content(members)
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(
            f'{where} has no "labels": expected {{"labels": [["00000/NAME", 0], ...]}}, or null; a dataset.json of '
            "something else is left unread by folder:PATH"
        )
    entries = content["labels"]
    if entries is None:
        return UNLABELLED
    if not isinstance(entries, list):
        raise UserError(f"{where}: labels are {short_repr(entries)}; expected a list of [name, class], or null")
    found = _by_name(entries, where, frozenset(files))
    if lacking := [name for name in files if name not in found]:
        raise UserError(
            f"{where} has {len(found)} labels for {len(files)} files; it lacks {printable(lacking[0])}: add its "
            "label, or remove the file"
        )
    values = np.array([found[name] for name in files], dtype=np.int64)
    names = checked_names(content.get("class_names"), where)
    return Labels(values, max(int(values.max(initial=0)) + 1, len(names)), names)


def has_labels(members: Members) -> bool:
    """Return whether a dataset.json with labels, or with null for none, lies beside files."""
    return members.holds(LIST) and isinstance(content := _content(members), dict) and "labels" in content


def _content(members: Members) -> Any:
    return parse_json(members.read(LIST, MAX_BYTES), f"{members.where(LIST)} is damaged")


def checked_names(names: Any, where: str) -> tuple[str, ...]:
    """Return the names of classes 0, 1, ... from a file that may give none (None); UserError for anything else."""
    if names is None:
        return ()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: class_names are {short_repr(names)}; expected a list of names")
    return tuple(names)


def _by_name(entries: list[Any], where: str, there: Collection[str]) -> dict[str, int]:
    """Return {file: class}; UserError for an entry that is none, or whose file is elsewhere or missing."""
    found: dict[str, int] = {}
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise UserError(f"{where}: {short_repr(entry)} is not [name, class]")
        written, label = entry
        name = written.replace("\\", "/")
        if leads_outside(written, name):
            raise UserError(f"{where} names {printable(written)}, which lies outside of the folder; remove that entry")
        if type(label) is not int or not 0 <= label <= MAX_LABEL:
            raise UserError(
                f"{where}: the label of {printable(name)} is {short_repr(label)}; a class is a whole number from 0 to "
                f"{MAX_LABEL:,}"
            )
        if name in found:
            raise UserError(f"{where} names {printable(name)} twice; remove one of the entries")
        if name not in there:
            raise UserError(f"{where} names {printable(name)}, which is not there: add the file, or remove the entry")
        found[name] = label
    return found
