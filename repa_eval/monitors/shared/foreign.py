"""A run that no recipe of ours describes: what is measured, and how, is what the user said."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.statistics import Statistics
from repa_eval.diffusion.conventions import unwrap
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.evaluation.reference_features import ReferenceCache
from repa_eval.features.capture import Capture, ClassTokens
from repa_eval.interfaces.extractor import Extractor
from repa_eval.interfaces.image_source import ImageSource, Shape
from repa_eval.interfaces.images import Images
from repa_eval.interfaces.sampler import SamplerSettings
from repa_eval.interfaces.teacher import Teacher
from repa_eval.monitors.shared.run import EvaluatedRun, SampleRound
from repa_eval.monitors.shared.samples import draw, keep_newest
from repa_eval.probes.splits import Splits
from repa_eval.results import protocol_hash
from repa_eval.runtime.distributed import ALONE, Share
from repa_eval.runtime.hashing import digest_module
from repa_eval.sampling.filling import fill_samples
from repa_eval.sampling.sample_record import record_path
from repa_eval.sampling.vae import VaeDecoder

IN_MEMORY = 1 << 28  # bytes of samples that are not written to disk


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a run is measured with, opened and checked.

    images: of the alignment maps; splits: of the probes, None for none; reference: of the samples, None where none are
    drawn; extractors: those that measure samples, each with its metrics; decoder: from latents to images, None where
    the model makes images itself; model_shape, sample_shape: (C, H, W) of what the
    model makes, and of the images; cache: of the reference's features.
    capture: how hidden states are taken; teachers: what they are compared with. layers: block numbers, 1-based.
    """

    images: ImageSource
    splits: Splits | None
    capture: Capture
    teachers: tuple[Teacher, ...]
    layers: tuple[int, ...]
    timesteps: tuple[float, ...]
    reference: ImageSource | Statistics | None
    extractors: tuple[tuple[Extractor, tuple[str, ...]], ...]
    decoder: VaeDecoder | None
    model_shape: Shape
    sample_shape: Shape
    sampling: SamplerSettings
    cache: ReferenceCache | None = None


@dataclass(frozen=True, kw_only=True)
class ForeignRun(EvaluatedRun):
    """An EvaluatedRun whose monitors read what is `measured`."""

    measured: Measured

    @property
    def layers(self) -> Sequence[int]:
        """The blocks that are measured."""
        return self.measured.layers

    @property
    def timesteps(self) -> Sequence[float]:
        """The times at which hidden states are measured."""
        return self.measured.timesteps

    @property
    def probes(self) -> bool:
        """Whether the data has labels that probes can be fitted to."""
        return self.measured.splits is not None

    @property
    def has_teachers(self) -> bool:
        """Whether there is something to compare hidden states with."""
        return bool(self.measured.teachers)

    @property
    def capture(self) -> Capture:
        """How hidden states are taken."""
        return self.measured.capture

    @property
    def reference_cache(self) -> ReferenceCache | None:
        """Where the reference's features are kept for later calls."""
        return self.measured.cache

    @functools.cached_property
    def class_tokens(self) -> ClassTokens | None:
        """The function from images to the clean class tokens that the model reads."""
        return self.measured.capture.class_tokens

    @functools.cached_property
    def reference_teachers(self) -> list[Teacher]:
        """The teachers that hidden states are compared with."""
        return list(self.measured.teachers)

    @functools.cached_property
    def probe_splits(self) -> Splits:
        """The images that probes are fitted to and scored on."""
        assert self.measured.splits is not None
        return self.measured.splits

    @functools.cached_property
    def reference(self) -> ImageSource | Statistics:
        """What samples are compared with."""
        assert self.measured.reference is not None
        return self.measured.reference

    @functools.cached_property
    def judges(self) -> list[tuple[Extractor, Sequence[str]]]:
        """The extractors that measure samples."""
        return list(self.measured.extractors)

    def images(self, usual: int) -> ImageSource:
        """Return the images that the user chose, whatever number is usual."""
        return self.measured.images

    def sampler(self, num_steps: int, **more: Any) -> SamplerSettings:
        """Return the settings that the user chose; labels that are given stay."""
        if self.measured.sampling.labels:
            more.pop("balanced", None)
        return dataclasses.replace(self.measured.sampling, **more)

    def sample_record(self, sampler: SamplerSettings) -> dict[str, Any]:
        """Return the protocol entries of samples of the model, those of the decoder among them."""
        decoder = self.measured.decoder
        return {**super().sample_record(sampler), **({} if decoder is None else decoder.record())}

    def draw(self, model: DiffusionModel, count: int, sampler: SamplerSettings, processes: Share = ALONE) -> Images:
        """Return decoded samples in memory."""
        decode = self.measured.decoder
        return draw(model, count, sampler, processes, batch_size=self.batch_size, decode=decode)

    @contextlib.contextmanager
    def samples(self, step: int, model: DiffusionModel, samples: SampleRound) -> Iterator[ImageSource]:
        """Yield the samples of a step; those of many bytes are on disk, where an interrupted call finds them again."""
        if math.prod(self.measured.sample_shape) * samples.num_samples <= IN_MEMORY:
            with super().samples(step, model, samples) as images:
                yield images
            return
        sampler = self.sampler(samples.num_steps)
        record = {**self.full_sample_record(step, sampler), "weights_hash": digest_module(unwrap(model))}
        kept = self.sample_file(step)
        file = kept.with_name(f"{step:07d}-{protocol_hash(record)}.npz")
        if self.processes.first:
            _forget_others(file, step)
        made: dict[str, Any] = {"batch_size": self.batch_size, "decode": self.measured.decoder}
        fill_samples(file, record, samples.num_samples, model, sampler, share=self.processes, **made)
        yield open_images(file)
        self.processes.wait()
        if not self.processes.first:
            return
        if self.keep_samples:
            record_path(file).replace(record_path(kept))
            file.replace(kept)
            keep_newest(kept.parent, self.keep_samples)
        else:
            record_path(file).unlink()
            file.unlink()


def _forget_others(file: Path, step: int) -> None:
    """Delete what was begun of a step's samples with other settings."""
    for other in file.parent.glob(f".{step:07d}-*.npz.partial"):
        if other.name != f".{file.name}.partial":
            shutil.rmtree(other, ignore_errors=True)
