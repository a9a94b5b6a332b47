"""Data sets of the library `datasets`: of the hub by name, of folders, saved to disk, and tars of WebDataset."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from repa_eval.data.readers.dataset_rows import open_rows
from repa_eval.data.readers.listing import SUFFIXES, printable
from repa_eval.errors import Failure, UserError, first_line, short_repr
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.interfaces.images import data
from repa_eval.runtime.files import lies_beside, read_object

SAVED, SAVED_SPLITS = ("state.json", "dataset_info.json"), "dataset_dict.json"  # what save_to_disk writes
# the names that data sets give to the splits that the commands ask for
ALIASES = {"reference": ("reference", "train"), "val": ("val", "validation", "valid", "dev")}


def is_saved(path: Path) -> bool:
    """Return whether a data set that was saved to disk, or tars of WebDataset, lie at a path."""
    return _is_saved(path) or bool(_tars(path))


@data("hf", recognises=is_saved, resizes=True)
def load(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return a split of the hub's data set hf:NAME or hf:NAME:CONFIG, or of a folder that `datasets` reads."""
    dataset, known = _opened(rest, split, streaming=False)
    name = f"hf:{printable(rest)}"
    return open_rows(
        dataset, name=name, split=split if known else "all", resize=resolution, split_known=known, roots=_roots(rest)
    )


@data("hf-stream", resizes=True)
def stream(rest: str, split: str, *, resolution: int | None = None) -> ImageSource:
    """Return a split as hf:NAME does, read on the way: nothing is downloaded before, and nothing kept on disk."""
    from repa_eval.data.readers.dataset_stream import DatasetStream

    dataset, known = _opened(rest, split, streaming=True)
    splits = getattr(dataset.info, "splits", None) or {}
    count = getattr(splits.get(str(dataset.split)), "num_examples", None) or None
    name = f"hf-stream:{printable(rest)}"
    source = DatasetStream(
        dataset,
        name=name,
        split=split if known else "all",
        resize=resolution,
        count=count if known else None,
        roots=_roots(rest),
    )
    source.split_known = known
    return source


def _opened(rest: str, split: str, *, streaming: bool) -> tuple[Any, bool]:
    """Return a split of a data set, and whether it is known to be that split; no code of a data set is run."""
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
        return _loaded(called, lambda: datasets.load_dataset("webdataset", streaming=streaming, **more)), False
    if os.path.exists(rest) and _is_saved(path):
        _check_saved(path)
        found = _loaded(called, lambda: datasets.load_from_disk(rest))
        known = isinstance(found, dict) or found.split is not None
        if known and not isinstance(found, dict):
            found = {str(found.split): found}
        dataset = _split_of(called, found, split) if known else found
        return (dataset.to_iterable_dataset() if streaming else dataset), known
    name, _, config = (rest, "", "") if os.path.exists(rest) else rest.partition(":")
    found = _loaded(called, lambda: datasets.load_dataset(name, config or None, streaming=streaming))
    return _split_of(called, found, split), True


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


def _split_of(called: str, splits: dict[str, Any], split: str) -> Any:
    there = {str(name): dataset for name, dataset in splits.items()}
    for name in ALIASES.get(split, (split,)):
        if name in there:
            return there[name]
    raise UserError(f"data {called} has no split {split!r}; choose one of {', '.join(there)}")


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
