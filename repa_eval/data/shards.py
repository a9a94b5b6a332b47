"""`shards:PATH`: a folder of safetensors with `latents` (LightningDiT, GMem, ERW), or one such file."""

from __future__ import annotations

import logging
from pathlib import Path

from repa_eval.data.readers.listing import printable
from repa_eval.data.readers.members import zip_names
from repa_eval.data.readers.shards import STATISTICS, Shards, is_shard
from repa_eval.errors import UserError
from repa_eval.interfaces.images import data
from repa_eval.runtime.distributed import is_first_process

SUFFIX = ".safetensors"

_log = logging.getLogger(__name__)


def is_shards(path: Path) -> bool:
    """Return whether shards of latents lie at a path: a folder of them, one file, or a zip that must be unpacked."""
    if path.is_dir():
        return next((is_shard(file) for file in _files(path)), False)
    if path.suffix.lower() == ".zip":
        return any(name.endswith(SUFFIX) for name in zip_names(path))
    return is_shard(path)


@data("shards", recognises=is_shards)
def load(rest: str, split: str) -> Shards:
    """Latents and labels in safetensors shards; they have no splits: every split is all of them."""
    path = Path(rest)
    if not path.exists():
        raise UserError(f"{printable(path)} does not exist: expected a folder of {SUFFIX} files with latents")
    if path.suffix.lower() == ".zip":
        raise UserError(f"{printable(path)}: shards are read by rows, which a zip does not allow; unpack it")
    files = _files(path) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{printable(path)}: no {SUFFIX} files")
    source = Shards(f"shards:{printable(path)}", files)
    if source.mirrored is not None and not source.has_statistics and is_first_process():
        _log.warning(
            "%s: no %s, so the latents are read as they are; LightningDiT's and GMem's models read them standardised "
            "by that file",
            source.name,
            STATISTICS,
        )
    return source


def _files(path: Path) -> list[Path]:
    """Return the shards of a folder in the order in which the published readers take them."""
    return sorted(file for file in path.glob(f"*{SUFFIX}") if not file.name.startswith(".") and file.is_file())
