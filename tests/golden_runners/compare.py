"""Reading golden cases and comparing outputs with them, by the rules of the golden folder's README."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from golden_runners import Arrays, Case, Runner, find

RULES = {"rel", "abs", "of", "exact", "between", "skip"}


def cases(folder: Path) -> list[Path]:
    """Return the jsons of DIR/<system>/<case>.json; of DIR/<case>.json if DIR itself is one system's folder."""
    return sorted(folder.glob("*/*.json")) or sorted(folder.glob("*.json"))


def name_of(path: Path) -> str:
    """Return `system/case`."""
    return f"{path.absolute().parent.name}/{path.stem}"


def check(path: Path) -> tuple[list[str], list[str]]:
    """Run one case; return what is wrong with it, one line each, and the names that were compared."""
    case = json.loads(path.read_text(encoding="utf-8"))
    tol = case.get("tol", {})
    runner = find(case.get("system", path.absolute().parent.name), case.get("kind", ""))
    arrays = _arrays(path)
    wanted = expected(case, arrays, runner)
    given = {name: array for name, array in arrays.items() if name not in wanted}
    got = runner.run(case, given)
    compared = [name for name in wanted if "skip" not in (rule_for(name, tol) or {})]
    return problems(tol, wanted, got), compared


def expected(case: Case, arrays: Arrays, runner: Runner) -> Arrays:
    """Return the expected outputs by name; a name of the json's list that the npz lacks is left to `problems`.

    A `state_dict` case has one output "FIELD:PARAMETER", the shape, for each parameter of each field of the json
    that is called state_dict or state_dict_*: thus a missing, an additional and a misshapen parameter all fail.
    """
    if runner.expect is not None:
        return runner.expect(case)
    if "outputs" in case:
        return {name: arrays.get(name) for name in case["outputs"]}  # type: ignore[misc]
    fields = [field for field in case if field == "state_dict" or field.startswith("state_dict_")]
    return {
        f"{field}:{name}": np.asarray(shape, dtype=np.int64) for field in fields for name, shape in case[field].items()
    }


def problems(tol: dict[str, dict[str, Any]], wanted: Arrays, got: Arrays) -> list[str]:
    """Return one line for each output that fails; empty when all of them pass."""
    if not wanted:
        return ["the case lists no outputs: nothing would be compared"]
    lines = [f"{name}: {line}" for name in wanted if (line := _problem(name, tol, wanted, got))]
    unexpected = [name for name in got if name.startswith("state_dict") and name not in wanted]
    lines += [f"{name}: not in the published list" for name in unexpected]
    return lines


def rule_for(name: str, tol: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return the most specific entry for `name`: the name itself, else the longest glob that matches, else None.

    Only * and ? are wild: names hold brackets, dots and colons that must mean themselves.
    """
    if name in tol:
        return tol[name]
    globs = [pattern for pattern in tol if ("*" in pattern or "?" in pattern) and _matches(pattern, name)]
    return tol[max(globs, key=lambda pattern: (len(pattern), pattern))] if globs else None


def _matches(pattern: str, name: str) -> bool:
    wild = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(wild, name, flags=re.DOTALL) is not None


def _problem(name: str, tol: dict[str, dict[str, Any]], wanted: Arrays, got: Arrays) -> str | None:
    rule = rule_for(name, tol)
    if rule is None:
        return "no entry of `tol` matches it"
    if set(rule) - RULES or not set(rule) - {"of"}:
        return f"`tol` entry {rule} cannot be read"
    if "skip" in rule:
        return None
    if wanted[name] is None:
        return "listed in the json, missing in the npz"
    if name not in got:
        return "not computed by the runner"
    a, b = np.asarray(got[name]), np.asarray(wanted[name])
    if a.shape != b.shape:
        return f"shape {a.shape}, expected {b.shape}"
    if "of" not in rule:
        return _differs(a, b, rule)
    if rule["of"] != "change":
        return f"`of` is {rule['of']!r}, known is 'change'"
    start = got.get(f"start:{name}")
    if start is None:
        return f"the runner returns no 'start:{name}' to take the change from"
    return _differs(_wide(a) - _wide(start), _wide(b) - _wide(start), rule)


def _differs(a: np.ndarray, b: np.ndarray, rule: dict[str, Any]) -> str | None:
    """Return in which way a fails `rule` against b, or None. NaN and infinities must stand at the same places."""
    if "exact" in rule:
        floats = a.dtype.kind in "fc" and b.dtype.kind in "fc"
        return None if np.array_equal(a, b, equal_nan=floats) else f"{_short(a)} is not exactly {_short(b)}"
    if "between" in rule:
        low, high = rule["between"]
        inside = bool(((a >= low) & (a <= high)).all())  # false for NaN
        return None if inside else f"{_short(a)} is not between {low} and {high}"
    a, b = _wide(a), _wide(b)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.where(same, 0.0, np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b)))
    if not np.isfinite(apart).all():
        return f"{_short(a)}, expected {_short(b)}: not finite where it should be, or the reverse"
    largest = float(apart.max(initial=0.0))
    norm = float(np.linalg.norm(np.where(np.isfinite(b), b, 0.0)))
    relative = float(np.linalg.norm(apart)) / norm if norm else (0.0 if largest == 0.0 else np.inf)
    if relative <= rule.get("rel", -1.0) or largest <= rule.get("abs", -1.0):
        return None
    return f"{_short(a)}, expected {_short(b)}: relative {relative:.3g}, largest {largest:.3g}, allowed {rule}"


def _wide(values: np.ndarray) -> np.ndarray:
    array = np.asarray(values)
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _short(values: np.ndarray) -> str:
    return str(values.item()) if values.size == 1 else f"array {values.shape}"


def _arrays(path: Path) -> Arrays:
    file = path.with_suffix(".npz")
    if not file.exists():
        return {}
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
