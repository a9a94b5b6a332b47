"""Attention logits of a frozen network's blocks, read by hooks: HASTE (arXiv 2505.16792) distils them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from repa_eval.errors import UserError


@contextmanager
def read_logits(
    blocks: Sequence[nn.Module], layers: Collection[int], *, prefix_tokens: int, name: str
) -> Iterator[dict[int, Tensor]]:
    """Fill the yielded {layer: (B, heads, T, T)} with each forward pass that runs inside; the last one stays.

    The logits are (q head_width^-0.5) k^T before the softmax, rows queries, columns keys, with the rows and columns of
    the first `prefix_tokens` tokens cut: those of the class token, as HASTE does, and of registers, which HASTE's
    own slice [1:, 1:] leaves in. They have the dtype of the queries.

    blocks: the attention module of each block, with qkv, num_heads, q_norm and k_norm as timm names them.
    layers: numbers of blocks, 1-based. name: the teacher, for messages. The hooks are removed in any case.
    UserError for a layer that does not exist.
    """
    if not blocks:
        raise UserError(f"teacher {name} has no attention whose logits can be read")
    for layer in layers:
        if not 1 <= layer <= len(blocks):
            raise UserError(f"layer {layer}: teacher {name} has blocks 1..{len(blocks)}")
    collected: dict[int, Tensor] = {}
    with ExitStack() as hooks:
        for layer in layers:
            attention: Any = blocks[layer - 1]
            handle = attention.qkv.register_forward_hook(_reader(attention, layer, prefix_tokens, collected))
            hooks.callback(handle.remove)
        yield collected
    if silent := sorted(set(layers) - set(collected)):
        raise AssertionError(f"teacher {name} ran without its blocks {silent}, or did not run at all")


def _reader(attention: Any, layer: int, prefix: int, collected: dict[int, Tensor]) -> Callable[..., None]:
    def read(_module: nn.Module, _given: Any, qkv: Tensor) -> None:
        batch, tokens, _ = qkv.shape
        q, k, _v = qkv.reshape(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = attention.q_norm(q), attention.k_norm(k)  # (B, heads, N, head width)
        scaled = q[:, :, prefix:] * q.shape[-1] ** -0.5
        collected[layer] = scaled @ k[:, :, prefix:].transpose(-2, -1)

    return read
