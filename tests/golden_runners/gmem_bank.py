"""GMem's memory bank: its SVD form, rows that are added, and snippets between two others."""

from __future__ import annotations

import re

import numpy as np
import torch

from golden_runners import Arrays, Case, runner
from repa_eval.memory_bank.bank import FullBank, compressed
from repa_eval.memory_bank.interpolation import interpolate


@runner("gmem", "memory_bank_svd")
def memory_bank_svd(case: Case, arrays: Arrays) -> Arrays:
    """The indices and weights of interpolations stand in the outputs' names."""
    full = FullBank(torch.from_numpy(arrays["bank"]))
    bank = compressed(full, case["config"]["latent_dim"])
    exact = bank.added(torch.from_numpy(arrays["new_snippet"]))
    found = {
        "mean": bank.mean,
        "singular_values": bank.S,
        "reconstruction": bank.read(torch.arange(len(bank))),
        "C_times_Mt": bank.C @ bank.M.T,
        "M_Mt": bank.M @ bank.M.T,
        "add_exact": exact.row(len(exact) - 1),
    }
    for name in case["outputs"]:
        if parts := re.match(r"(get|add|full)_interpolated_(\d+)_(\d+)_([\d.]+)", name):
            kind, first, second, alpha = parts[1], int(parts[2]), int(parts[3]), float(parts[4])
            larger = {"get": bank, "add": exact, "full": full}[kind].added_between(first, second, alpha)
            found[name] = larger.row(len(larger) - 1)
            if kind == "add":
                found["capacity_after"] = torch.tensor(len(larger))
    return {name: found[name].numpy() for name in case["outputs"]}


@runner("gmem", "snippet_interpolation")
def snippet_interpolation(case: Case, arrays: Arrays) -> Arrays:
    a, b = torch.from_numpy(arrays["a"]), torch.from_numpy(arrays["b"])
    alphas = np.linspace(0, 1, case["config"]["total_steps"]).tolist()
    draws = torch.from_numpy(arrays["draw_uniform"])
    return {name: interpolate(a, b, alphas, name, draws=draws).numpy() for name in case["outputs"]}
