"""SoftREPA: token files, and a whole SD3 transformer with its tokens.

Published token files are a bare parameter (layers, n, D) or (n, D), and the time offsets as a pickled nn.Embedding;
the two of a training lie side by side: dc_tokens*.pth and dc_t_tokens*.pth. Ours are one dict of tensors and plain
values (`token_record`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from repa_eval.checkpoints.shared import networks
from repa_eval.checkpoints.shared.token_files import BINS, FORMAT, TokenFile
from repa_eval.errors import Failure
from repa_eval.interfaces.architecture import Shapes
from repa_eval.interfaces.checkpoint_layout import Checkpoint, Request, checkpoint_layout
from repa_eval.models.shared.soft_tokens import SoftTokens, build_sd3
from repa_eval.models.shared.state_dict_shapes import count
from repa_eval.weight_files.pickled import EmbeddingState

SIZES = {(24, 1536): "SD3-medium"}  # (blocks, width) -> name
HEAD_WIDTH = 64  # of every published SD3
MOST = 64  # tokens of a layer: a longer table of vectors is another thing, such as a memory bank
KEYS = {"tokens", "t_offsets.weight"}  # the safetensors form that public ports write
FACTS = {"format", "num_layers", "num_tokens", "width", "space", "time_bins", "base", "base_hash", "step", "recipe"}


@checkpoint_layout("softrepa-tokens")
def read(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint; it is used beside the frozen text-to-image model that it was trained for."""
    tokens, offsets = _parts(content)
    if tokens is None and offsets is None:
        return None
    _check(tokens, offsets, path)
    layers = tokens.shape[0] if tokens is not None and tokens.ndim == 3 else None
    facts: dict[str, Any] = {"hidden_size": tokens.shape[-1] if tokens is not None else None, "depth": layers}
    step, recipe = None, {}
    if isinstance(content, dict) and content.get("format") == FORMAT:
        own = {"num_tokens": tokens.shape[-2], "width": tokens.shape[-1]} if tokens is not None else {}
        wrong = [name for name, value in own.items() if content[name] != value]
        texts = {name: content[name] for name in ("space", "base_hash")}
        wrong += [name for name, text in texts.items() if not isinstance(text, str | None)]
        if wrong:
            raise Failure(f"{path}: its record does not fit its tokens ({', '.join(wrong)})")
        facts |= {"soft_tokens": own.get("num_tokens"), **texts}
        step, recipe = content["step"], content["recipe"]
    return Checkpoint(
        path=path,
        layout="softrepa-tokens",
        systems=("SoftREPA",),
        model_name="dc_tokens" if tokens is not None else "dc_t_tokens",
        models=(TokenFile(tokens, offsets),),
        weights=request.weights,
        step=step,
        recipe=recipe,
        facts=facts,
    )


def _check(tokens: Any, offsets: Any, path: Path) -> None:
    """Failure unless tokens are floats (layers, n, D) or (n, D), and time offsets floats (100, layers * C)."""
    for name, value, known in (("tokens", tokens, (2, 3)), ("time offsets", offsets, (2,))):
        if value is None:
            continue
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim not in known:
            raise Failure(f"{path}: its soft {name} are no table of vectors")


def _parts(content: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return (tokens, time offsets), None for what the content does not hold."""
    if isinstance(content, EmbeddingState):
        weight = content.weight
        return (None, weight) if weight.ndim == 2 and len(weight) == BINS else (None, None)
    if isinstance(content, dict) and "tokens" in content and set(content) <= KEYS | FACTS:
        return content.get("tokens"), content.get("t_offsets.weight")
    few = isinstance(content, Tensor) and content.ndim in (2, 3) and content.shape[-2] <= MOST
    if few and content.is_floating_point():
        return content.detach(), None
    return None, None


@checkpoint_layout("softrepa")
def read_whole(path: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return the checkpoint of a transformer `base_model.*` with its `dc_tokens`."""
    if not isinstance(content, dict) or "dc_tokens" not in content:
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in content.items() if isinstance(tensor, Tensor)}
    try:
        config = _sd3_config(shapes)
    except (KeyError, IndexError, ValueError) as error:
        raise Failure(f"{path}: dc_tokens stand beside no SD3 transformer ({error} is missing)") from error
    with torch.device("meta"):
        network = SoftTokens(
            build_sd3(config),
            num_tokens=shapes["dc_tokens"][1],
            num_layers=shapes["dc_tokens"][0],
            token_width=shapes["dc_tokens"][2],
            time_offsets="dc_t_tokens.weight" in shapes,
        )
    network.eval().requires_grad_(False)
    width, layers = config["caption_projection_dim"], config["num_layers"]
    size = SIZES.get((layers, width), "SD3")
    networks.fill(network, content, size=size, where=str(path))
    facts = {
        "depth": layers,
        "hidden_size": width,
        "num_heads": config["num_attention_heads"],
        "patch_size": config["patch_size"],
        "in_channels": config["in_channels"],
        "input_size": config["sample_size"],
    }
    return Checkpoint(
        path=path,
        layout="softrepa",
        systems=("SoftREPA",),
        model_name=size,
        models=(network,),
        weights=request.weights,
        step=None,
        facts=facts,
    )


def _sd3_config(shapes: Shapes) -> Mapping[str, Any]:
    """Return the arguments of diffusers' SD3Transformer2DModel that its shapes tell."""

    def shape(name: str) -> tuple[int, ...]:
        return shapes[f"base_model.{name}"]

    patch, text = shape("pos_embed.proj.weight"), shape("context_embedder.weight")
    positions = int(shape("pos_embed.pos_embed")[1] ** 0.5)
    return {
        # the side for which the table was made: no shape tells it, SD3's own is two thirds of the table
        "sample_size": positions * patch[2] // 3,
        "patch_size": patch[2],
        "in_channels": patch[1],
        "num_layers": count(shapes, "base_model.transformer_blocks"),
        "attention_head_dim": HEAD_WIDTH,
        "num_attention_heads": text[0] // HEAD_WIDTH,
        "joint_attention_dim": text[1],
        "caption_projection_dim": text[0],
        "pooled_projection_dim": shape("time_text_embed.text_embedder.linear_1.weight")[1],
        "out_channels": shape("proj_out.weight")[0] // patch[2] ** 2,
        "pos_embed_max_size": positions,
    }
