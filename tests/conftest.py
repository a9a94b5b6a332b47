"""Options of our test suite, a cache of its own, and one thread: sums are bit-equal for equal thread counts only."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# before numpy and torch are imported; processes that tests start inherit it
for _library in ("OMP", "OPENBLAS", "MKL"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"
# an interrupted test leaves its features here and not with the user's own
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="repa-eval-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import pytest  # noqa: E402  (after the threads)

from repa_eval.plugin_files import installed, loading  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir",
        type=Path,
        default=Path(__file__).parent / "golden",
        metavar="DIR",
        help="folder of golden cases, <system>/<case>.json with its .npz beside it (default: tests/golden)",
    )


@pytest.fixture(autouse=True)
def _forget_plugins() -> Iterator[None]:
    """What a test loads is unknown to the next one."""
    before = loading.loaded()
    yield
    installed.forget_installed()
    for plugin in loading.loaded():
        if plugin not in before:
            loading.unload(plugin)


@pytest.fixture
def hollow_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files declare more numbers than they hold, as `official_files.hollow` writes them."""
    from repa_eval.weight_files import pickled

    monkeypatch.setattr(pickled, "SPARE", 1 << 40)
