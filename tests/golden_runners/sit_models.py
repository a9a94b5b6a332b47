"""willisma/SiT: forward, guided forward, names and shapes; and what the runners of SiT's kin share."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
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
IGNORED = {"class", "decoder_hidden_size", "encoder_depth", "use_cfg", "fused_attn", "path_type"}
# what a published file may have in another size than the preset of its name
SIZES = ("input_size", "in_channels", "num_classes", "z_dims", "projector_dim", "condition_size", "learn_sigma")
SIZES += ("qk_norm", "use_qknorm")


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


def shapes_of(size: str, case: Case, *, field: str = "state_dict", **changes: Any) -> Arrays:
    """Return "FIELD:PARAMETER" -> shape of a named size, some of its arguments changed.

    Its widths and depth are the preset's. What a run chooses (SIZES) is read from the published names and shapes by the
    code that opens such files, and then from the case's config, which wins.
    """
    architecture, config = find_preset(size)
    known = {field.name for field in dataclasses.fields(config)}
    assert architecture.read is not None
    read = architecture.read({name: tuple(shape) for name, shape in case[field].items()}) or {}
    said = case.get("config", {})
    chosen = {name: source[name] for source in (read, said) for name in SIZES if name in source and name in known}
    with torch.device("meta"):
        model = architecture.build(from_dict(config, {**chosen, **changes}))
    return {f"{field}:{name}": np.array(tensor.shape) for name, tensor in model.state_dict().items()}


def numbered(arrays: Mapping[str, Any], prefix: str) -> list[Any]:
    """Return the arrays PREFIX0, PREFIX1, ... in order."""
    return [arrays[f"{prefix}{i}"] for i in range(len(arrays)) if f"{prefix}{i}" in arrays]


def numbers_in(text: str) -> list[float]:
    """Return the numbers that a text names, in order."""
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", text)]


def rope_tables(config: Mapping[str, Any]) -> list[str]:
    """Return the buffers that a network with rotary positions makes itself."""
    return ["feat_rope.freqs_cos", "feat_rope.freqs_sin"] if config.get("use_rope") else []


def network_of(case: Case, name: str, *, ignored: Collection[str] = ()) -> nn.Module:
    """Return the architecture `name` of a case, filled as it says, in eval mode."""
    config = {key: value for key, value in case["config"].items() if key != "cfg_scale"}
    return network(name, config, keep=case["fill"]["kept_as_initialised"], ignored=ignored)


def inputs(arrays: Arrays, *names: str) -> list[Tensor]:
    return [torch.from_numpy(arrays[name]) for name in names]


def guided_halves(doubled: Tensor, cfg_scale: float) -> Tensor:
    """Return what `forward_with_cfg` does (2B, C, H, W): 3 channels guided in both halves, each keeping its others."""
    conditional, unconditional = doubled.chunk(2)
    guidance = Guidance(cfg_scale=cfg_scale, channels=3)
    guided = guidance.mix(conditional, unconditional)
    return torch.cat([guided, torch.cat([guided[:, :3], unconditional[:, 3:]], dim=1)])


def cfg_scale_of(case: Case) -> float:
    """Return the scale of a guided forward: the config's, else the last argument of the call in the json's words."""
    if "cfg_scale" in case["config"]:
        return float(case["config"]["cfg_scale"])
    [arguments] = re.findall(r"forward_with_cfg\(([^)]*)\)", case["outputs"]["out_cfg"]["meaning"])
    return numbers_in(arguments)[-1]


def plain_and_guided(model: nn.Module, case: Case, arrays: Arrays) -> Arrays:
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
        "out_cfg": guided_halves(doubled, cfg_scale_of(case)).numpy(),
    }


@runner("sit", "forward")
def forward(case: Case, arrays: Arrays) -> Arrays:
    return plain_and_guided(network_of(case, "SiT"), case, arrays)


@runner("sit", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    return shapes_of(case["model"].split(" ")[0], case)
