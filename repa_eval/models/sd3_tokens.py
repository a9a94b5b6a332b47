"""SoftREPA's soft text tokens (arXiv 2503.08250) before the text of the first blocks of a frozen Stable Diffusion 3.

The network is diffusers' own, reached by hooks that live for one forward; names are those of softrepa/SoftREPA.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.models.layers import check_taps

TIME_BINS = 100  # of 10 steps each


def build_sd3(config: Mapping[str, Any]) -> nn.Module:
    """Return diffusers' SD3Transformer2DModel of these arguments; UserError if diffusers is not installed."""
    try:
        from diffusers import SD3Transformer2DModel
    except ImportError as error:
        raise UserError("Stable Diffusion 3 needs diffusers: pip install 'repa-eval[latents]'") from error
    network: Any = SD3Transformer2DModel(**config)
    return network  # type: ignore[no-any-return]


class SD3Tokens(nn.Module):
    """A frozen SD3 transformer and, for each of its first blocks, tokens that are put before the text.

    base_model: see `build_sd3`. num_layers: blocks with tokens, -1 = all. token_width: joint_attention_dim (tokens
    pass the text's own embedder, with its bias) or caption_projection_dim (used as they are: the published files).
    time_offsets: one more vector a block, by the time's bin, the same for all tokens of the block.
    """

    def __init__(
        self,
        base_model: Any,
        *,
        num_tokens: int = 4,
        num_layers: int = 5,
        token_width: int | None = None,
        time_offsets: bool = True,
    ) -> None:
        super().__init__()
        self.base_model: Any = base_model.requires_grad_(False)
        given = self.base_model.config
        layers, inside = given.num_layers if num_layers == -1 else num_layers, given.caption_projection_dim
        width = given.joint_attention_dim if token_width is None else token_width
        if not 1 <= layers <= given.num_layers:
            raise UserError(f"num_layers {num_layers}: this model has blocks 1..{given.num_layers}; -1 means all")
        if width not in (inside, given.joint_attention_dim):
            raise UserError(
                f"token_width {width}: {given.joint_attention_dim} before the text's embedder, or {inside} after it"
            )
        self.dc_tokens = nn.Parameter(torch.empty(layers, num_tokens, width))
        self.dc_t_tokens = nn.Embedding(TIME_BINS, layers * inside) if time_offsets else None
        for weight in (self.dc_tokens, *(self.dc_t_tokens.parameters() if self.dc_t_tokens else ())):
            nn.init.normal_(weight, std=0.02)

    @property
    def depth(self) -> int:
        """Number of blocks, the largest layer that can be tapped."""
        return len(self.base_model.transformer_blocks)

    def soft_tokens(self, t: Tensor) -> Tensor:
        """Return the tokens of every block that has some, (B, blocks, n, D), at timesteps t (B,) in 0..1000.

        The published code moves ALL times of a batch by one step if any of them is 1000; here only that one.
        """
        tokens = self.dc_tokens
        if tokens.shape[-1] != self.base_model.config.caption_projection_dim:
            tokens = self.base_model.context_embedder(tokens)
        if self.dc_t_tokens is None:
            return tokens.expand(len(t), -1, -1, -1)
        bins = (t.long() - (t >= 1000).long()) // 10
        offsets = self.dc_t_tokens(bins).unflatten(1, (len(tokens), 1, -1))  # (B, blocks, 1, D)
        return tokens + offsets  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        pooled: Tensor,
        *,
        tokens: bool = True,
        taps: Collection[int] = (),
        contexts: Collection[int] = (),
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (velocity noise - data (B, C, H, W), hidden) for noisy x, t (B,), text y (B, L, D), pooled (B, P).

        t: 0..1000, 1000 = noise. tokens: False for the plain network. taps: layers (1-based) whose image tokens
        (B, N, D) are wanted. contexts: layers whose INCOMING text, soft tokens first, goes to
        hidden["context", layer].
        """
        check_taps((*taps, *contexts), self.depth)
        if self.base_model.gradient_checkpointing:
            raise UserError("soft tokens and gradient checkpointing of diffusers do not go together: switch it off")
        hidden: dict[Any, Tensor] = {}
        soft = self.soft_tokens(t) if tokens else None
        with self._attached(soft, y.shape[1], hidden, taps, contexts):
            velocity: Tensor = self.base_model(
                hidden_states=x, encoder_hidden_states=y, pooled_projections=pooled, timestep=t, return_dict=False
            )[0]
        return velocity, hidden

    @contextmanager
    def _attached(
        self,
        soft: Tensor | None,
        num_text: int,
        hidden: dict[Any, Tensor],
        taps: Collection[int],
        contexts: Collection[int],
    ) -> Iterator[None]:
        def enter(layer: int, given: dict[str, Any]) -> dict[str, Any]:
            # what the block before made of its own tokens is thrown away
            context = given["encoder_hidden_states"][:, -num_text:]
            if soft is not None and layer <= soft.shape[1]:
                context = torch.cat([soft[:, layer - 1].to(context.dtype), context], dim=1)
            if layer in contexts:
                hidden["context", layer] = context
            return {**given, "encoder_hidden_states": context}

        def leave(layer: int, made: tuple[Tensor, Tensor]) -> None:
            if layer in taps:
                hidden[layer] = made[1]

        with ExitStack() as hooks:
            for layer, block in enumerate(self.base_model.transformer_blocks, 1):
                before = block.register_forward_pre_hook(
                    lambda _block, args, given, layer=layer: (args, enter(layer, given)), with_kwargs=True
                )
                after = block.register_forward_hook(lambda _block, _args, made, layer=layer: leave(layer, made))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield
