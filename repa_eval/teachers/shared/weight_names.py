"""Names of an encoder's weights as other libraries write them, taken back to those of the release or of timm.

transformers' (`embeddings.patch_embeddings.projection.weight`, separate queries, keys and values) and those of a model
that went through ONNX, whose linear layers have no names (`onnx::MatMul_123`, transposed).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from repa_eval.errors import Failure
from repa_eval.weight_files.state_dicts import State

# a part of a name of transformers (ViT, DINOv2, DINOv3, CLIP, SigLIP) -> the release's
RULES = (
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.(position_embeddings|position_embedding\.weight)$", "pos_embed"),
    (r"^embeddings\.(patch_embeddings\.projection|patch_embeddings|patch_embedding)\.", "patch_embed.proj."),
    (r"^(encoder\.)?layers?\.(\d+)\.", r"blocks.\2."),
    (r"\.(attention\.attention\.|attention\.|self_attn\.)(query|key|value)\.", r".attn.\2."),
    (r"\.(attention|self_attn)\.([qkv])_proj\.", r".attn.\2."),
    (r"\.attention\.output\.dense\.|\.attention\.o_proj\.|\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.(layernorm_before|layer_norm1)\.", ".norm1."),
    (r"\.(layernorm_after|layer_norm2)\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.w12."),
    (r"\.mlp\.weights_out\.", ".mlp.w3."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^pre_layrnorm\.", "norm_pre."),
    (r"^(post_layernorm|layernorm)\.", "norm."),
)
MARK = re.compile(r"(^|.*\.)embeddings\.patch_embeddings?\.")  # a name that only transformers gives
OF_NO_ENCODER = ("text_model.", "pooler.", "head.", "visual_projection.", "text_projection.", "classifier.")
LETTERS = {"query": "q", "key": "k", "value": "v", "q": "q", "k": "k", "v": "v"}
ONNX = re.compile(r"onnx::MatMul_(\d+)")
LINEARS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")  # of a block, in the order in which they compute


def published_names(state: State, *, owner: str, path: Path) -> State:
    """Return the weights of an encoder under the names of its release or of timm; as they are if those are not known.

    Failure for weights without names whose place cannot be told.
    """
    state = {re.sub(r"^(blocks\.)\d+\.(\d+\.)", r"\1\2", name): tensor for name, tensor in state.items()}  # in chunks
    if any(ONNX.fullmatch(name) for name in state):
        state = _named(state, owner=owner, path=path)
    prefix = next((found[1] for name in state if (found := MARK.match(name))), None)
    return state if prefix is None else _of_transformers(state, prefix)


def _of_transformers(state: State, prefix: str) -> State:
    """Return the weights under `prefix` by the release's names, queries, keys and values joined."""
    found: State = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        own = name.removeprefix(prefix)
        if not name.startswith(prefix) or own.startswith(OF_NO_ENCODER):
            continue
        for pattern, replacement in RULES:
            own = re.sub(pattern, replacement, own)
        if split := re.fullmatch(r"(blocks\.\d+\.attn)\.(query|key|value|[qkv])\.(weight|bias)", own):
            parts.setdefault(f"{split[1]}|{split[3]}", {})[LETTERS[split[2]]] = tensor
        else:
            found[own] = tensor
    for place, three in parts.items():
        attention, kind = place.split("|")
        if set(three) == set("qkv"):
            found[f"{attention}.qkv.{kind}"] = torch.cat([three[letter] for letter in "qkv"])
        else:  # DINOv3's keys have no bias
            found |= {f"{attention}.{letter}_{kind}": tensor for letter, tensor in three.items()}
    for name in ("cls_token", "pos_embed"):  # CLIP's and SigLIP's have fewer dimensions
        if name in found and found[name].ndim < 3:
            found[name] = found[name].reshape(1, -1, found[name].shape[-1])
    return _of_dinov3(found) if "blocks.0.mlp.up_proj.weight" in found else found


def _of_dinov3(state: State) -> State:
    """Return DINOv3's weights by timm's names: its feed-forward part, registers and scales are called otherwise."""
    gated = any(".mlp.gate_proj." in name for name in state)
    names = {
        "mlp.gate_proj": "mlp.fc1_g",
        "mlp.up_proj": "mlp.fc1_x" if gated else "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
        "ls1.gamma": "gamma_1",
        "ls2.gamma": "gamma_2",
        "register_tokens": "reg_token",
    }
    found: State = {}
    for name, tensor in state.items():
        if name == "mask_token":
            continue
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = tensor
    return found


def _named(state: State, *, owner: str, path: Path) -> State:
    """Return the weights with those that ONNX left without names at the places that are free, in their order.

    An export numbers the matrices in the order in which they compute; what stands before `blocks.` is cut. Failure
    unless each fits its place.
    """
    first = "blocks.0.attn.qkv.bias"
    prefix = next((name.removesuffix(first) for name in state if name.endswith(first)), "")
    numbered = sorted((int(found[1]), name) for name in state if (found := ONNX.fullmatch(name)))
    blocks = 1 + max((int(n) for name in state for n in re.findall(r"(?:^|\.)blocks\.(\d+)\.", name)), default=-1)
    names = [f"{prefix}blocks.{block}.{linear}.weight" for block in range(blocks) for linear in LINEARS]
    free = [name for name in names if name not in state]
    matrices = [state[name] for _, name in numbered]
    if not _fit(state, free, matrices):
        raise Failure(
            f"{owner}: {path} holds {len(matrices)} matrices that an ONNX export left without names "
            f"({numbered[0][1]}, ...), and where they belong cannot be told; save the network's state_dict() instead"
        )
    named = {name: matrix.T for name, matrix in zip(free, matrices, strict=True)}
    kept = {name: tensor for name, tensor in state.items() if not ONNX.fullmatch(name)} | named
    return {name.removeprefix(prefix): tensor for name, tensor in kept.items() if name.startswith(prefix)}


def _fit(state: State, free: Sequence[str], matrices: Sequence[Tensor]) -> bool:
    """Return whether each matrix has as many columns as the bias at its place has entries."""
    if len(free) != len(matrices):
        return False
    biases = [state.get(f"{name.removesuffix('weight')}bias") for name in free]
    pairs = zip(biases, matrices, strict=True)
    return all(bias is not None and matrix.ndim == 2 and matrix.shape[1] == len(bias) for bias, matrix in pairs)
