"""The sets of samples that `fid` measures: one, or the files of a folder, which are a curve over steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repa_eval.commands.shared.quality_options import QualityOptions
from repa_eval.errors import UserError


@dataclass(frozen=True)
class SampleSet:
    """Samples at a path. record: how they were made, as recorded beside them, else as their name says it."""

    path: Path
    record: Mapping[str, Any]

    @property
    def step(self) -> int | None:
        """The training step of their model, None where nobody says it."""
        step = self.record.get("step")
        return step if isinstance(step, int) else None

    @property
    def extractor(self) -> str | None:
        """The extractor in the record; UserError unless it is registered, for no file may name code."""
        from repa_eval.interfaces.recorded_names import recorded_extractor

        return recorded_extractor(self.record.get("extractor"), self.path)


def is_curve(path: Path) -> bool:
    """Return whether a folder holds files of samples (.npz), and no images of its own beside them."""
    from repa_eval.data.readers.listing import SUFFIXES
    from repa_eval.sampling.sample_record import RECORD

    if not path.is_dir() or (path / RECORD).exists():
        return False
    suffixes = {file.suffix.lower() for file in path.iterdir() if not file.name.startswith(".")}
    return ".npz" in suffixes and suffixes.isdisjoint(SUFFIXES)


def sample_sets(quality: QualityOptions) -> list[SampleSet]:
    """Return the one set of samples, or those of a curve in order of their steps, without a step by name.

    UserError for options that mean one set, given with a folder of several.
    """
    path = quality.samples
    if not is_curve(path):
        return [_sample_set(path, quality)]
    for given, option in ((quality.step, "--step"), (quality.neighbours, "--neighbours")):
        if given is not None:
            raise UserError(f"{option}: {path} is a folder of several sets of samples; name one of its files")
    files = [file for file in path.iterdir() if file.suffix.lower() == ".npz" and not file.name.startswith(".")]
    sets = [_sample_set(file, quality) for file in sorted(files)]
    return sorted(sets, key=lambda one: (one.step is None, one.step or 0))


def _sample_set(path: Path, quality: QualityOptions) -> SampleSet:
    from repa_eval.sampling.sample_names import settings_in
    from repa_eval.sampling.sample_record import is_ours, read_record

    record, named = read_record(path) or {}, settings_in(path)
    if is_ours(record):  # it says all but a step, which its checkpoint may not have recorded
        named = {key: named[key] for key in ("step", "step_from") if key in named}
    if record.get("step") is not None:
        named.pop("step_from", None)
    found = {**named, **{key: value for key, value in record.items() if value is not None or key not in named}}
    if quality.step is not None:
        found.pop("step_from", None)
    chosen = {"run": quality.run, "step": quality.step}
    return SampleSet(path, {**found, **{key: value for key, value in chosen.items() if value is not None}})
