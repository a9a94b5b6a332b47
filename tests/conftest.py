"""The options of our test suite, and one thread for it: sums are bit-equal for equal thread counts only."""

from __future__ import annotations

import os
from pathlib import Path

# before numpy and torch are imported; processes that tests start inherit it
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"

import pytest  # noqa: E402  (after the threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of golden cases, <system>/<case>.json with its .npz beside it (default: tests/golden)",
    )
