"""Reading an architecture's arguments off the names and shapes of its parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Set
from typing import Any

from repa_eval.interfaces.architecture import Shapes


def count(shapes: Shapes, prefix: str) -> int:
    """Return how many entries a list of modules called `prefix` has: 1 + the largest index, 0 if there is none.

    Never more than there are names (and one): a single name must not ask for a network of a million blocks.
    """
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in shapes)
    return min(max((int(match[1]) + 1 for match in found if match), default=0), len(shapes) + 1)


def projector_widths(shapes: Shapes, prefix: str = "projectors") -> dict[str, Any]:
    """Return z_dims, and projector_dim if there is any projector."""
    heads = range(count(shapes, prefix))
    widths: dict[str, Any] = {"z_dims": tuple(shapes.get(f"{prefix}.{i}.4.weight", (0,))[0] for i in heads)}
    if heads:
        widths["projector_dim"] = shapes.get(f"{prefix}.0.0.weight", (0,))[0]
    return widths


def transformer_fields(shapes: Shapes) -> dict[str, Any] | None:
    """Return the fields of a patch transformer of the SiT family that its shapes tell; None if it is none.

    Told: input_size, patch_size, in_channels, hidden_size, depth. num_heads only where a head's norm is there.
    """
    patch, positions = shapes.get("x_embedder.proj.weight"), shapes.get("pos_embed")
    depth = count(shapes, "blocks")
    if patch is None or len(patch) != 4 or positions is None or len(positions) != 3 or not depth:
        return None
    fields: dict[str, Any] = {
        "patch_size": patch[2],
        "in_channels": patch[1],
        "hidden_size": patch[0],
        "depth": depth,
        "input_size": math.isqrt(positions[1]) * patch[2],
    }
    head = shapes.get("blocks.0.attn.q_norm.weight")
    if head is not None:
        fields["num_heads"] = patch[0] // head[0]
    return fields


def label_fields(shapes: Shapes) -> dict[str, Any]:
    """Return num_classes of a label table whose last row is the null label; `networks.label_table` knows others."""
    rows = shapes.get("y_embedder.embedding_table.weight", (0,))[0]
    return {"num_classes": rows - 1}


def mlp_ratio(shapes: Shapes, name: str = "blocks.0.mlp.fc1.weight") -> dict[str, Any]:
    """Return the MLP's width over the width of the tokens."""
    rows, columns = shapes[name][:2] if len(shapes.get(name, ())) >= 2 else (4, 1)
    return {"mlp_ratio": rows / columns}


# the modules that hold parameters in a network of the SiT family, list indices left out
SIT = frozenset(
    [
        *("pos_embed", "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.embedding_table"),
        *("blocks.attn.qkv", "blocks.attn.proj", "blocks.mlp.fc1", "blocks.mlp.fc2", "blocks.adaLN_modulation.1"),
    ]
)
FINAL = frozenset(("final_layer.linear", "final_layer.adaLN_modulation.1"))
EXTRAS = frozenset(("blocks.attn.q_norm", "blocks.attn.k_norm", "projectors.0", "projectors.2", "projectors.4"))


def has_parts(shapes: Shapes, parts: Set[str], *, extras: Set[str] = EXTRAS) -> bool:
    """Return whether a state dict consists of exactly these modules, besides any of `extras`.

    Exactly: a network that is a SiT but for one more module is another architecture, not a SiT with a surplus.
    """
    found = {re.sub(r"^(blocks|projectors)\.\d+\.", r"\1.", name) for name in shapes}
    modules = {re.sub(r"\.(weight|bias)$", "", name) for name in found}
    return parts <= modules <= parts | extras and transformer_fields(shapes) is not None


def sit_fields(shapes: Shapes) -> dict[str, Any]:
    """Return the fields of TransformerConfig that the shapes tell, for a state dict that has the parts of SIT."""
    fields = transformer_fields(shapes)
    assert fields is not None
    told = {**fields, **label_fields(shapes), **mlp_ratio(shapes), **projector_widths(shapes)}
    return {**told, "qk_norm": "blocks.0.attn.q_norm.weight" in shapes}
