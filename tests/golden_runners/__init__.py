"""Runners of golden cases: what computes, with our code, the outputs of a case of one (system, kind).

A new system is a new file here, named as the system with "-" as "_" (repa.py, u_repa.py), whose functions register:

    @runner("repa", "forward")
    def forward(case: dict[str, Any], arrays: Arrays) -> Arrays: ...

`case` is the json, `arrays` the npz without the outputs; returned are the outputs by name, and "start:NAME" where a
tolerance says `of: "change"`.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Case = dict[str, Any]
Arrays = dict[str, np.ndarray]
Run = Callable[[Case, Arrays], Arrays]
Expect = Callable[[Case], Arrays]


class NoRunnerError(Exception):
    """Nothing here computes cases of that system and kind."""


@dataclass(frozen=True)
class Runner:
    run: Run
    expect: Expect | None  # the expected values where these stand in the json itself


_RUNNERS: dict[tuple[str, str], Runner] = {}


def runner(system: str, kind: str, *, expect: Expect | None = None) -> Callable[[Run], Run]:
    """Register the decorated function for the cases of (system, kind).

    expect: reads the expected values from the json, for cases that have no npz; `state_dict` cases need none
    (see compare.expected).
    """

    def record(run: Run) -> Run:
        if (system, kind) in _RUNNERS:
            raise AssertionError(f"two runners for {system}/{kind}")
        _RUNNERS[system, kind] = Runner(run, expect)
        return run

    return record


def find(system: str, kind: str) -> Runner:
    """Return the runner of (system, kind); NoRunnerError if there is none, naming those that there are.

    The system's own file is imported first and the others only if it does not help, so that a case of one system
    needs nothing that only another system's file imports.
    """
    own = f"{__name__}." + re.sub(r"\W", "_", system)
    if importlib.util.find_spec(own) is not None:
        importlib.import_module(own)
    if (system, kind) not in _RUNNERS:
        for module in pkgutil.iter_modules(__path__):
            importlib.import_module(f"{__name__}.{module.name}")
    if (system, kind) not in _RUNNERS:
        known = ", ".join(sorted("/".join(key) for key in _RUNNERS))
        raise NoRunnerError(f"no runner for system {system!r}, kind {kind!r} (there are: {known})")
    return _RUNNERS[system, kind]
