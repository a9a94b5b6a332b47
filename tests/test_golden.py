"""Equality with the published implementations: one test for each json of `--golden-dir`, called system/case."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden_runners import NoRunnerError, compare


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("--golden-dir")
    found = compare.cases(folder)
    # A folder without cases must not pass as a run of no tests: one test that fails takes their place.
    metafunc.parametrize("path", found or [folder], ids=[compare.name_of(path) for path in found] or ["no-cases"])


def test_equals_the_published_code(path: Path) -> None:
    if path.suffix != ".json":
        pytest.fail(f"--golden-dir {path} holds no <system>/<case>.json: there is nothing to compare", pytrace=False)
    try:
        wrong, compared = compare.check(path)
    except NoRunnerError as error:
        pytest.fail(f"{compare.name_of(path)}: {error}", pytrace=False)
    if wrong:
        pytest.fail("\n".join([f"{len(wrong)} outputs of {compare.name_of(path)} fail:", *wrong]), pytrace=False)
    if not compared:
        pytest.fail(f"{compare.name_of(path)}: every output is marked as not to be compared", pytrace=False)
