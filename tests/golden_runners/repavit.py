"""RePaViT: the feed-forward and its merge, four architectures in both forms, names and shapes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from golden_runners import Arrays, Case, runner
from golden_runners.fill import fill
from repa_eval.config import from_dict
from repa_eval.interfaces.architecture import MODELS, find_preset
from repa_eval.models.shared.encoder import Encoder
from repa_eval.models.shared.idle_feed_forward import (
    BATCH_NORM,
    LAYER_NORM,
    FeedForward,
    MergedFeedForward,
    active_of,
    merge,
)

# official constructor argument -> ours
ARGUMENTS = {
    "img_size": "input_size",
    "in_chans": "in_channels",
    "embed_dim": "hidden_size",
    "embed_dims": "hidden_size",
    "depths": "depth",
    "layers": "depth",
    "num_blocks": "depth",
    "in_patch_size": "patch_size",
    "in_stride": "patch_stride",
    "in_pad": "patch_padding",
    "down_pad": "down_padding",
}
# what a case says about itself, and what only training reads
NOTES = {"class", "params_training_form", "params_reparam_form", "act_channels", "act_channels_per_block",
         "mlp_ratio_meaning", "drop_path_rate", "drop_path", "drop_rate", "layer_scale_init_value"}  # fmt: skip


def settings(config: dict[str, Any]) -> dict[str, Any]:
    return {ARGUMENTS.get(key, key): value for key, value in config.items() if key not in NOTES}


def build(name: str, given: dict[str, Any]) -> Encoder:
    """Return the filled encoder in eval mode; an argument that ours does not have is refused by from_dict."""
    architecture = MODELS.get(name)
    network = architecture.build(from_dict(architecture.defaults, given))
    assert isinstance(network, Encoder)
    fill(network, keep=[key for key in network.state_dict() if key.endswith("attn_mask")])
    return network.eval()


def both(name: str, case: Case, arrays: Arrays, given: dict[str, Any]) -> tuple[Encoder, Encoder | None, Tensor]:
    """Return (training form, merged form or None, images), the numbers of parameters and of channels checked."""
    network = build(name, given)
    merged = network.merged() if network.config.feature_norm == BATCH_NORM else None
    config = case["config"]
    for form, key in ((network, "params_training_form"), (merged, "params_reparam_form")):
        if key in config and form is not None:
            assert sum(p.numel() for p in form.parameters()) == config[key], key
    if merged is not None:
        assert merged.active_channels() == network.active_channels()
    return network, merged, torch.from_numpy(arrays["x"])


@runner("repavit", "ffn")
def ffn(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    x = torch.from_numpy(arrays["x"])
    outputs = set(case["outputs"])
    if "y_idle" in outputs or "y_full" in outputs:
        return _layer_norm(config, x)
    part = _feed_forward(config, idle=config["channel_idle"])
    if "y_train" in outputs:
        with torch.no_grad():
            found = {"y_train": part.train()(x)}
        return {name: value.numpy() for name, value in (found | dict(part.state_dict())).items() if name in outputs}
    tensors = merge(part)
    merged = MergedFeedForward(config["dim_in"], part.active).eval()
    merged.load_state_dict(tensors)
    assert part.active == config.get("act_channels", part.active)
    with torch.no_grad():
        y, y_merged = part(x), merged(x)
    named = {"y": y, "y_reparam": y_merged, **{f"reparam.{name}": tensor for name, tensor in tensors.items()}}
    named["residual_of_official"] = _single_precision_residual(part, x)
    return {name: value.numpy() for name, value in named.items()}


@torch.no_grad()
def _single_precision_residual(part: FeedForward, x: Tensor) -> Tensor:
    """Return the rounding of a merge in float32, which is how the published code computes; ours is float64.

    It is a sum of rounding errors: the same to the last bits only if every operation is, hence the transposes.
    """
    (w1, b1), (w2, b2) = _folded_in_place(part.fc1, part.norm1), _folded_in_place(part.fc2, part.norm2)
    a, width = part.active, x.shape[-1]
    square = w1[a:].T @ w2[:, a:].T + torch.eye(width)
    bias = (b1[a:].unsqueeze(0) @ w2[:, a:].T).squeeze() + b2
    h = part.fc1(part.norm1(x.transpose(1, 2)).transpose(1, 2))
    h = torch.where(torch.arange(h.shape[-1]) < a, F.gelu(h), h)
    y = part.fc2(part.norm2(h.transpose(1, 2)).transpose(1, 2)) + x
    merged = F.linear(x, square.T.contiguous(), bias)
    if a:
        merged = F.linear(F.gelu(F.linear(x, w1[:a], b1[:a])), w2[:, :a]) + merged
    return (merged.double() - y.double()).norm() / y.double().norm()


def _folded_in_place(linear: Any, norm: Any) -> tuple[Tensor, Tensor]:
    std = torch.sqrt(norm.running_var + norm.eps)
    return linear.weight / std[None] * norm.weight[None], linear(-norm.running_mean / std * norm.weight + norm.bias)


def _feed_forward(config: dict[str, Any], *, idle: bool, norm: str | None = None) -> FeedForward:
    hidden = config["dim_hidden"]
    active = active_of(hidden, config["idle_ratio"]) if idle else hidden
    part = FeedForward(config["dim_in"], hidden, active, norm=norm or config["feature_norm"])
    fill(part)
    return part.eval()


def _layer_norm(config: dict[str, Any], x: Tensor) -> Arrays:
    with torch.no_grad():
        forms = {"y_idle": True, "y_full": False}
        return {name: _feed_forward(config, idle=idle, norm=LAYER_NORM)(x).numpy() for name, idle in forms.items()}


@runner("repavit", "vit")
def vit(case: Case, arrays: Arrays) -> Arrays:
    network, merged, x = both("RePaViT", case, arrays, settings(case["config"]))
    with torch.no_grad():
        layers = range(1, network.config.depth + 1)
        tokens, hidden = network(x, taps=layers)
        found = {"logits": network.logits(x), "tokens": tokens}
        found |= {f"tokens_block{layer - 1}": hidden[layer] for layer in layers}
        if merged is not None:
            found |= {"logits_reparam": merged.logits(x), "tokens_reparam": merged(x)[0]}
    return {name: value.numpy() for name, value in found.items()}


def _classified(name: str, case: Case, arrays: Arrays, given: dict[str, Any]) -> dict[str, Tensor]:
    network, merged, x = both(name, case, arrays, given)
    with torch.no_grad():
        found = {"logits": network.logits(x)}
        if merged is not None:
            found["logits_reparam"] = merged.logits(x)
    return found


@runner("repavit", "swin")
def swin(case: Case, arrays: Arrays) -> Arrays:
    found = _classified("RePaSwin", case, arrays, settings(case["config"]))
    return {name: value.numpy() for name, value in found.items()}


@runner("repavit", "mlpmixer")
def mlpmixer(case: Case, arrays: Arrays) -> Arrays:
    given = settings(case["config"])
    tokens, channels = given.pop("mlp_ratio", (0.5, 4.0))
    found = _classified("RePaMLPMixer", case, arrays, {**given, "token_ratio": tokens, "mlp_ratio": channels})
    return {name: value.numpy() for name, value in found.items()}


@runner("repavit", "poolformer")
def poolformer(case: Case, arrays: Arrays) -> Arrays:
    """The merged form of ours must equal the TRAINING form; the published merge is wrong, and is shown to be ours
    with the bias left unscaled."""
    network, merged, x = both("RePaPoolFormer", case, arrays, settings(case["config"]))
    found = {}
    with torch.no_grad():
        found["logits"] = network.logits(x)
        if merged is not None:
            right = merged.logits(x)
            assert (right - found["logits"]).norm() / found["logits"].norm() < 1e-5
            for name, part in network.feed_forwards().items():
                if part.ls is not None:
                    tensors = merge(part)
                    b2 = tensors["fc1.bias"].double()
                    scaled, plain = _second_bias(part)
                    merged.get_submodule(name).fc1.bias.copy_((b2 - scaled + plain).float())
            found["logits_reparam_official_wrong"] = merged.logits(x)
    return {name: value.numpy() for name, value in found.items()}


def _second_bias(part: FeedForward) -> tuple[Tensor, Tensor]:
    """Return b2~ with and without the layer scale, float64."""
    norm: Any = part.norm2
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    assert part.fc2.bias is not None
    assert part.ls is not None
    plain = part.fc2.bias.double() + part.fc2.weight.double().flatten(1) @ shift
    return plain * part.ls.double(), plain


@runner("repavit", "state_dict")
def state_dict(case: Case, arrays: Arrays) -> Arrays:
    architecture, preset = find_preset(case["model"])
    with torch.device("meta"):
        network = architecture.build(dataclasses.replace(preset, idle_ratio=case["idle_ratio"]))
    assert isinstance(network, Encoder)
    forms = {"state_dict": network, "state_dict_reparam": network.merged()}
    for field, key in (("state_dict", "params_training_form"), ("state_dict_reparam", "params_reparam_form")):
        assert sum(p.numel() for p in forms[field].parameters()) == case[key], key
    states = {field: form.state_dict() for field, form in forms.items()}
    return {f"{field}:{name}": np.array(t.shape) for field, state in states.items() for name, t in state.items()}
