"""Networks whose features sample quality is measured on, by name: `load(name)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from repa_eval.interfaces.extractor import Extractor


def load(name: str, weights: str | Path | None = None) -> Extractor:
    """Return the extractor `name`: one of `repa-eval list extractors`, or module:Class of your own.

    weights: a file that replaces the extractor's own. UserError for an unknown name or a file that does not exist.
    """
    from repa_eval.interfaces.extractor import load_extractor

    return load_extractor(name, weights)
