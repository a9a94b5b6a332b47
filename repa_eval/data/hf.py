"""Data sets of the library `datasets`: of the hub by name, of folders, saved to disk, and tars of WebDataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repa_eval.data.readers.dataset_rows import open_rows
from repa_eval.data.readers.listing import SUFFIXES, printable
from repa_eval.errors import Failure, UnknownSplitError, UserError, first_line, short_repr
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import data
from repa_eval.runtime.files import lies_beside, read_object

SAVED, SAVED_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"  # what save_to_disk writes
# the names that data sets give to the splits that the commands ask for
ALIASES = {
    "reference": ("reference", "train"),
    "val": ("val", "validation", "valid", "dev"),
    "held-out": ("test", "validation", "val", "valid", "dev"),
}


def is_saved(path: Path) -> bool:
    """Return whether a data set that was saved to disk, or tars of WebDataset, lie at a path."""
    return _is_saved(path) or bool(_tars(path))


@data("hf", held_out="held-out", recognises=is_saved, resizes=True)
def load(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return a split of the hub's data set hf:NAME or hf:NAME:CONFIG, or of a folder that `datasets` reads."""
    found, name = _opened(rest, split, streaming=False), f"hf:{printable(rest)}"
    more: dict[str, Any] = {"split": found.split or "all", "split_known": found.split is not None}
    return open_rows(found.dataset, name=name, resize=resolution, roots=_roots(rest), **more)


@data("hf-stream", held_out="held-out", resizes=True)
def stream(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return a split as hf:NAME does, read on the way: nothing is downloaded before, and nothing kept on disk."""
    from repa_eval.data.readers.dataset_stream import DatasetStream

    found, name = _opened(rest, split, streaming=True), f"hf-stream:{printable(rest)}"
    more: dict[str, Any] = {"split": found.split or "all", "count": found.count}
    source = DatasetStream(found.dataset, name=name, resize=resolution, roots=_roots(rest), **more)
    source.split_known = found.split is not None
    return source


@dataclass(frozen=True)
class _Opened:
    """A table or stream. split: its name, None where the data have no splits. count: the rows of a stream, if known."""

    dataset: Any
    split: str | None
    count: int | None = None


def _opened(rest: str, split: str, *, streaming: bool) -> _Opened:
    """Return a split of a data set; no code of a data set is run."""
    import datasets

    kind = "hf-stream" if streaming else "hf"
    if not rest:
        raise UserError(f"data {kind!r} needs a name: {kind}:NAME")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    datasets.config.HF_DATASETS_TRUST_REMOTE_CODE = False  # versions before 4 could run a script of the data set
    path, called = Path(rest), f"{kind}:{printable(rest)}"
    if os.path.exists(rest) and (tars := _tars(path)):
        more: dict[str, Any] = {"data_files": {"train": [str(tar) for tar in tars]}, "split": "train"}
        return _Opened(_loaded(called, lambda: datasets.load_dataset("webdataset", streaming=streaming, **more)), None)
    if os.path.exists(rest) and _is_saved(path):
        _check_saved(path)
        found = _loaded(called, lambda: datasets.load_from_disk(rest))
        if not isinstance(found, dict):
            found = {None if found.split is None else str(found.split): found}
        chosen = None if None in found else _split_of(called, found, split)
        rows = found[chosen]
        return _Opened(rows.to_iterable_dataset() if streaming else rows, chosen, len(rows))
    name, _, config = (rest, "", "") if os.path.exists(rest) else rest.partition(":")
    found = _loaded(called, lambda: datasets.load_dataset(name, config or None, streaming=streaming))
    chosen = _split_of(called, found, split)
    sizes = getattr(found[chosen].info, "splits", None) or {}
    return _Opened(found[chosen], chosen, getattr(sizes.get(chosen), "num_examples", None) or None)


def _roots(rest: str) -> Sequence[str]:
    """Return where the images of a data set may lie that are not in its tables: its folder, the hub, its caches."""
    import datasets
    from huggingface_hub import constants

    if os.path.exists(rest):
        return [] if _is_saved(Path(rest)) or _tars(Path(rest)) else [os.path.join(os.path.abspath(rest), "")]
    caches = (constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)
    return [f"hf://datasets/{rest.partition(':')[0]}", *(os.path.join(os.path.abspath(cache), "") for cache in caches)]


def _loaded(called: str, load: Callable[[], Any]) -> Any:
    """Return what `datasets` loads; Failure for whatever it raises: it has errors of its own for files and networks."""
    try:
        return load()
    except Exception as error:
        text = first_line(error)
        raise Failure(f"cannot load data {called}: {text}; without a network it must be in the cache") from error


def _split_of(called: str, splits: Iterable[Any], split: str) -> str:
    """Return the name that a data set gives to a split; UnknownSplitError where it has none."""
    there = [str(name) for name in splits]
    for name in ALIASES.get(split, (split,)):
        if name in there:
            return name
    meant = "split of held-out images" if split == "held-out" else f"split {split!r}"
    raise UnknownSplitError(f"data {called} has no {meant}; choose one of {', '.join(there)}")


def _is_saved(path: Path) -> bool:
    return (path / SAVED_SPLITS).is_file() or all((path / name).is_file() for name in SAVED)


def _check_saved(path: Path) -> None:
    """Failure where the records of a saved data set name what lies elsewhere: `datasets` would open it."""
    for record in (path / SAVED[0], *sorted(path.glob(f"*/{SAVED[0]}"))):
        files = read_object(record).get("_data_files") if record.is_file() else []
        files = files if isinstance(files, list) else [files]
        _refuse_elsewhere(record, [file.get("filename") if isinstance(file, dict) else file for file in files])
    record = path / SAVED_SPLITS
    _refuse_elsewhere(record, (read_object(record).get("splits") if record.is_file() else None) or [])


def _refuse_elsewhere(record: Path, names: Any) -> None:
    for name in names if isinstance(names, list) else [names]:
        if not lies_beside(name):
            raise Failure(f"{printable(record)} names {short_repr(name)}, which does not lie beside it")


def _tars(path: Path) -> Sequence[Path]:
    """Return the tars that lie at a path: a file, or those of a folder that holds no images and no other folders."""
    if path.suffix.lower() == ".tar" and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    entries = [entry for entry in os.scandir(path) if not entry.name.startswith(".")]
    suffixes = {Path(entry.name).suffix.lower() for entry in entries}
    if ".tar" not in suffixes or suffixes & SUFFIXES or any(entry.is_dir() for entry in entries):
        return []
    return sorted(Path(entry.path) for entry in entries if entry.name.lower().endswith(".tar"))
