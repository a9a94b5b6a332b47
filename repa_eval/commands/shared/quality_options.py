"""The options of `repa-eval fid`, and the reference, held-out images and weights that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from repa_eval.commands.shared.named_images import check_name, open_named
from repa_eval.console.file_types import PngFile
from repa_eval.console.numbers import COUNT, Whole
from repa_eval.console.option_groups import flag, option_group
from repa_eval.errors import UserError

PROTOCOLS = ("adm", "torch-fidelity", "clean", "all")


@dataclass(frozen=True, kw_only=True)
class QualityOptions:
    """Samples, what they are compared with, and how."""

    samples: Path = flag(
        "--samples",
        required=True,
        type=click.Path(path_type=Path),
        help="folder of images, .zip or .npz (arr_0); a folder of .npz files is a curve over their steps",
    )
    run: str | None = flag(
        "--run", metavar="NAME", help="name of the run in the rows; default: the one recorded beside the samples"
    )
    step: int | None = flag(
        "--step",
        type=Whole(),
        help="training step in the rows; default: the recorded one, else that of the file's name",
    )
    reference: str | None = flag(
        "--reference",
        metavar="PATH|NAME",
        help="images, a file of statistics or data by name; default: the registered data recorded beside the samples",
    )
    extractor_name: str = flag(
        "--extractor",
        metavar="NAME",
        default="auto",
        help="network that extracts features: one of `repa-eval list extractors`, or module:Class of your own",
    )
    extractor_weights: tuple[str, ...] = flag(
        "--extractor-weights",
        multiple=True,
        metavar="[NAME=]FILE",
        help="load the extractor's weights from this file; NAME= for those of another extractor",
    )
    metrics: str = flag(
        "--metrics",
        metavar="NAME[,NAME]",
        default="fd,sfd,inception_score,precision_recall",
        help="`repa-eval list metrics` explains them; fd_dinov2 is fd on the extractor dinov2",
    )
    protocol: str = flag(
        "--protocol",
        type=click.Choice(PROTOCOLS),
        default="adm",
        help="published evaluator whose resize rule, splits and random draws are used",
    )
    resize: int | None = flag("--resize", type=COUNT, help="crop and resize all images to this side in pixels")
    held_out: str | None = flag(
        "--held-out", metavar="PATH|NAME", help="real images outside the training set, for the metric memorisation"
    )
    neighbours: Path | None = flag(
        "--neighbours",
        type=PngFile(),
        help="write a PNG of samples and their nearest real images",
    )

    @property
    def extractor(self) -> str | None:
        """The extractor that the user chose, None for none."""
        return None if self.extractor_name == "auto" else self.extractor_name

    def names(self) -> list[str]:
        """Return the metrics, in the order given; UserError if there are none."""
        names = [name for part in self.metrics.split(",") if (name := part.strip())]
        if not names:
            raise UserError("--metrics names none; see `repa-eval list metrics`")
        return names

    def weights(self, default: str) -> dict[str, Path]:
        """Return {extractor: file}; a file without a name is that of the extractor `default`."""
        files: dict[str, Path] = {}
        for text in self.extractor_weights:
            name, equals, file = text.partition("=")
            files[name if equals else default] = Path(file if equals else text)
        return files

    def open_reference(self, record: Mapping[str, Any]) -> Any:
        """Return the images or statistics that the user named, else the data in the samples' record."""
        from repa_eval.interfaces.images import load_data
        from repa_eval.interfaces.recorded_names import recorded_data

        if self.reference is None:
            recorded = recorded_data(record.get("data"), self.samples, "--reference")
            if recorded is None:
                allowed = "--reference DIR, --reference FILE.npz or --reference digits"
                raise UserError(f"{self.samples} names no reference: add {allowed}")
            return load_data(recorded, "reference")
        if not Path(self.reference).exists():
            check_name(self.reference, "reference")
        return _statistics(Path(self.reference)) or open_named(self.reference, split="reference", resize=self.resize)

    def open_held_out(self) -> Any:
        """Return the held-out images, None if none are named."""
        return None if self.held_out is None else open_named(self.held_out, split="test", resize=self.resize)


@dataclass(frozen=True, kw_only=True)
class ReferenceCacheOptions:
    """Where features of references are kept for later calls."""

    folder: Path | None = flag(
        "--cache",
        type=click.Path(file_okay=False, path_type=Path),
        help="keep the reference's features in this folder for later calls; default: the user's cache",
    )
    no_cache: bool = flag("--no-cache", is_flag=True, help="keep the reference's features in memory only")

    def open(self) -> Any:
        """Return the cache, None for none."""
        from repa_eval.evaluation.reference_features import cache_in

        return None if self.no_cache else cache_in(self.folder)


quality_options = option_group("quality", QualityOptions)
reference_cache_options = option_group("cache", ReferenceCacheOptions)


def _statistics(path: Path) -> Any:
    from repa_eval.data.readers.statistics import open_statistics

    return open_statistics(path) if path.exists() else None
