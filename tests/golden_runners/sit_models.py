"""willisma/SiT: forward, guided forward, names and shapes; and what the runners of SiT's kin share."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from repa_eval.config import from_dict
from repa_eval.diffusion.guidance import Guidance
from repa_eval.interfaces.architecture import MODELS, find_preset

# official arguments without effect on the network or its outputs
IGNORED = {"class", "decoder_hidden_size", "encoder_depth", "use_cfg"}


def network(name: str, config: dict[str, Any], *, keep: Collection[str], ignored: Collection[str] = ()) -> nn.Module:
    """Return the architecture `name` for official constructor arguments, filled, in eval mode."""
    architecture = MODELS.get(name)
    known = {field.name for field in dataclasses.fields(architecture.defaults)}
    if unknown := set(config) - known - IGNORED - set(ignored):
        raise AssertionError(f"arguments that our {name} does not have: {sorted(unknown)}")
    ours = {key: value for key, value in config.items() if key in known}
    model = architecture.build(from_dict(architecture.defaults, ours))
    fill(model, keep=keep)
    return model.eval()


def shapes_of(size: str, *, field: str = "state_dict", **changes: Any) -> Arrays:
    """Return "FIELD:PARAMETER" -> shape of a named size, some of its arguments changed."""
    architecture, config = find_preset(size)
    with torch.device("meta"):
        model = architecture.build(dataclasses.replace(config, **changes))
    return {f"{field}:{name}": np.array(tensor.shape) for name, tensor in model.state_dict().items()}


def inputs(arrays: Arrays, *names: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[name]) for name in names]


def guided_halves(doubled: Tensor, cfg_scale: float) -> Tensor:
    """Return what `forward_with_cfg` does (2B, C, H, W): 3 channels guided in both halves, each keeping its others."""
    conditional, unconditional = doubled.chunk(2)
    guidance = Guidance(cfg_scale=cfg_scale, channels=3)
    guided = guidance.mix(conditional, unconditional)
    return torch.cat([guided, torch.cat([guided[:, :3], unconditional[:, 3:]], dim=1)])


def plain_and_guided(model: nn.Module, arrays: Arrays) -> Arrays:
    """Return the outputs that the forward cases of SiT and DiT have in common."""
    x, t, y, y_cfg = inputs(arrays, "x", "t", "y", "y_cfg")
    depth = model.config.depth
    with torch.no_grad():
        out, hidden = model(x, t, y, taps=range(1, depth + 1))
        doubled, _ = model(x.repeat(2, 1, 1, 1), t.repeat(2), y_cfg)
    return {
        "out": out.numpy(),
        "hidden_mean": torch.stack([hidden[layer].mean(1) for layer in range(1, depth + 1)]).numpy(),
        "hidden_last": hidden[depth].numpy(),
        "out_cfg": guided_halves(doubled, 2.5).numpy(),
    }


@runner("sit", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    return plain_and_guided(network("SiT", case["config"], keep=case["fill"]["kept_as_initialised"]), arrays)


@runner("sit", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return shapes_of(case["model"].removesuffix(" (willisma)"), learn_sigma=True)
