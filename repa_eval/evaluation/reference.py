"""The reference as a judge sees it: from images, or from a file of statistics that must fit what is measured."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from repa_eval.data.readers.listing import is_hidden, list_folder
from repa_eval.data.readers.statistics import Statistics
from repa_eval.errors import UserError
from repa_eval.evaluation.reference_features import ReferenceCache, record_for
from repa_eval.evaluation.sample_features import Gathered, Workers, gather
from repa_eval.interfaces.extractor import Extractor
from repa_eval.interfaces.image_source import ImageSource
from repa_eval.metrics.fid import Gaussian, gaussian_of

KEEP = 8  # references whose features stay in memory


@dataclass
class Real:
    """What is known of the reference; each covariance is factored once, for however many sets of samples.

    missing: why a kind of features ("rows": features of single images) is not there.
    """

    seen: Gathered
    gaussians: dict[str, Gaussian] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def gaussian(self, kind: str) -> Gaussian:
        """Return the Gaussian of a kind of features."""
        if kind not in self.gaussians:
            held = self.seen.moments.get(kind)
            self.gaussians[kind] = gaussian_of(self.seen.rows[kind] if held is None else held)
        return self.gaussians[kind]


_kept: dict[tuple[str, ...], Real | None] = {}  # content-addressed: reference, extractor, kinds


def reference_of(
    reference: ImageSource | Statistics,
    judge: Extractor,
    wanted: Mapping[str, Collection[str]],
    *,
    batch_size: int = 256,
    workers: Workers | None = None,
    cache: ReferenceCache | None = None,
) -> Real | None:
    """Return what a judge sees in the reference; None in every process but the first.

    wanted: `keep` and `stream` of `gather`. What was seen is kept in memory for the next call, features of images also
    in the cache.
    """
    kinds = (*sorted(wanted["keep"]), "/", *sorted(wanted["stream"]))
    key = (reference.digest(), judge.digest, judge.resize, str(batch_size), *kinds)  # rounding depends on batches
    if key in _kept:
        return _kept[key]
    see = functools.partial(_seen, judge=judge, batch_size=batch_size, workers=workers, cache=cache)
    if isinstance(reference, Statistics):
        real = _of_file(reference, wanted, see, first=workers is None or workers.rank == 0)
    else:
        seen = see(reference, wanted)
        real = None if seen is None else Real(seen)
    if len(_kept) >= KEEP:
        _kept.clear()
    _kept[key] = real
    return real


def _seen(
    images: ImageSource,
    wanted: Mapping[str, Collection[str]],
    *,
    judge: Extractor,
    batch_size: int,
    workers: Workers | None,
    cache: ReferenceCache | None,
) -> Gathered | None:
    """Return what a judge sees in images: of the cache, else extracted by all processes; None but in the first one."""
    first = workers is None or workers.rank == 0
    cache = cache if _keeps(judge) else None
    record = record_for(images.digest(), len(images), judge, batch_size, wanted) if cache is not None else {}
    held = cache.read(record) if cache is not None and first else None
    present = held is not None
    if workers is not None and workers.count > 1:
        present = workers.gather([present])[0]  # as the first process found it
    if present:
        return held
    seen = gather(images, judge, **wanted, batch_size=batch_size, workers=workers)
    if cache is not None and seen is not None:
        cache.write(record, seen)
    return seen


def _keeps(judge: Extractor) -> bool:
    """Return whether an extractor's digest says all of it: the code of a user's own may change without it."""
    return type(judge).__module__.startswith("repa_eval.extractors.")


def refuse_misfit(reference: Statistics, judge: Extractor, shape: tuple[int, ...]) -> None:
    """UserError where statistics that say what they were made of do not fit this judge, or these images (C, H, W).

    Both hashes are shown. A file that says nothing of itself is taken as it is: only its widths can tell.
    """
    made = reference.provenance
    now = {
        "extractor": judge.name,
        "extractor_hash": judge.digest,
        "resize": judge.resize,
        "resolution": f"{shape[1]}x{shape[2]}",
    }
    differing = [f"{key} {made[key]}, now {value}" for key, value in now.items() if made.get(key, value) != value]
    source = Path(str(made.get("source", "")))
    if "listing" in made and (listing := _listing_now(source, reference.n)) not in (None, made["listing"]):
        differing.append(f"files of {source} {made['listing']}, now {listing}")
    if differing:
        raise UserError(
            f"reference {reference.name} ({reference.digest()}) was made with different settings: "
            f"{'; '.join(differing)}; make it again: repa-eval stats DATA --out {reference.name}"
        )


def _listing_now(source: Path, count: int | None) -> str | None:
    """Return the hash of what lies at the path that a file of statistics names, None where nothing is there.

    Names, sizes and times are looked at and no file is opened. A folder that holds far more than `count` files is not
    listed to its end, for the path may be anything: "/" too.
    """
    try:
        if not source.is_dir():
            return listing_hash(source) if source.is_file() else None
        most = 1000 + 10 * (count or 0)
        held = sum(len(files) + len(folders) for _, folders, files in itertools.islice(os.walk(source), most))
        return "more files" if held > most else listing_hash(source)
    except (OSError, ValueError, UserError):  # not to be listed, or no path at all
        return None


def listing_hash(path: Path) -> str:
    """Return a hash of the names, sizes and times of a file, or of a folder's images: cheap, and changed by any change.

    A folder without images, of another layout, is taken by all its files that are not hidden.
    """
    content = hashlib.sha256()
    for name in [""] if path.is_file() else _names_in(path):
        state = (path / name).stat()
        content.update(f"{name or '.'} {state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return content.hexdigest()[:12]


def _names_in(folder: Path) -> list[str]:
    """Return the relative paths of the files that are read from a folder, sorted part by part."""
    names = list_folder(folder).members
    if not names:
        files = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
        names = [name for name in files if not is_hidden(name)]
    return sorted(names, key=lambda name: PurePosixPath(name).parts)


def _of_file(
    reference: Statistics,
    wanted: Mapping[str, Collection[str]],
    see: Callable[[ImageSource, Mapping[str, Collection[str]]], Gathered | None],
    *,
    first: bool,
) -> Real | None:
    real = Real(Gathered(reference.n or 0))
    if reference.mu is not None and reference.sigma is not None:
        real.gaussians["features"] = Gaussian(reference.mu, reference.sigma)
    if reference.mu_s is not None and reference.sigma_s is not None:
        real.gaussians["spatial"] = Gaussian(reference.mu_s, reference.sigma_s)
    else:
        real.missing["spatial"] = f"{reference.name} has no mu_s and sigma_s"
    if reference.features is not None:
        real.seen.rows["features"] = reference.features
    elif reference.images is None:
        real.missing["rows"] = f"{reference.name} has no images (arr_0)"
    elif "features" in wanted["keep"]:
        seen = see(reference.images, {"keep": ("features",), "stream": ()})
        real.seen.rows.update({} if seen is None else seen.rows)
    return real if first else None
