"""facebookresearch/DiT: forward, guided forward, names and shapes."""

from __future__ import annotations

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import network_of, plain_and_guided, shapes_of


@runner("dit", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    return plain_and_guided(network_of(case, "DiT"), case, arrays)


@runner("dit", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return shapes_of(case["model"], case)
