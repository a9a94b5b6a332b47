"""SoftREPA's soft text tokens (arXiv 2503.08250) in a frozen text-to-image network: SD3, MMDiT or the UNet of SD 1.5.

The network is used as it is, its text reached by hooks that live for one forward; names are those of softrepa/SoftREPA.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.diffusion.model import check_taps
from repa_eval.errors import UserError
from repa_eval.models.shared.token_hosts import STAGES, Call, UNetHost, host_of

TIME_BINS = 100  # of 10 steps each
START_STD = 0.02  # of tokens and time offsets


def build_sd3(config: Mapping[str, Any]) -> nn.Module:
    """Return diffusers' SD3Transformer2DModel of these arguments; UserError if diffusers is not installed."""
    try:
        from diffusers import SD3Transformer2DModel
    except ImportError as error:
        raise UserError("Stable Diffusion 3 needs diffusers: pip install 'repa-eval[latents]'") from error
    network: Any = SD3Transformer2DModel(**config)
    return network  # type: ignore[no-any-return]


def build_unet(config: Mapping[str, Any]) -> nn.Module:
    """Return diffusers' UNet2DConditionModel (SD 1.5) of these arguments; UserError if diffusers is not installed."""
    try:
        from diffusers import UNet2DConditionModel
    except ImportError as error:
        raise UserError("Stable Diffusion's UNet needs diffusers: pip install 'repa-eval[latents]'") from error
    network: Any = UNet2DConditionModel(**config)
    return network  # type: ignore[no-any-return]


class SoftTokens(nn.Module):
    """A frozen text-to-image network and, for each of its first blocks, tokens that are put before the text.

    base_model: diffusers' SD3 or UNet, or our MMDiT. num_tokens: 0 leaves the plain network. num_layers: blocks with
    tokens, -1 = all; a UNet has one bank for all stages. token_width: that of the text before the network's embedder
    (with its bias) or inside, where they are used as they are (SD3's published files). time_offsets: one more vector
    a block, by the time's bin, the same for all tokens of the block. start: where tokens of a UNet begin (D,), the
    start token of the empty prompt in the published code; noise keeps them apart, equal ones would stay equal for ever.
    """

    time_scale: float = 1.0  # steps per unit of t

    def __init__(
        self,
        base_model: Any,
        *,
        num_tokens: int = 4,
        num_layers: int = 5,
        token_width: int | None = None,
        time_offsets: bool = True,
        stages: Sequence[str] = STAGES[:1],
        start: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.base_model: Any = base_model
        self._host = host = host_of(base_model, stages)
        self.dc_tokens: nn.Parameter | None = None
        self.dc_t_tokens: nn.Embedding | None = None
        if not num_tokens:
            return
        base_model.requires_grad_(False)
        layers, (before, inside) = host.layers if num_layers == -1 else num_layers, host.widths
        width = before if token_width is None else token_width
        if isinstance(host, UNetHost):
            layers = 1
        if not 1 <= layers <= host.layers:
            raise UserError(f"num_layers {layers}: this model has blocks 1..{host.layers}; -1 means all")
        if width not in host.widths:
            raise UserError(f"token_width {width}: {before} before the text's embedder, or {inside} after it")
        banks = () if isinstance(host, UNetHost) else (layers,)
        self.dc_tokens = nn.Parameter(torch.empty(*banks, num_tokens, width))
        self.dc_t_tokens = nn.Embedding(TIME_BINS, layers * inside) if time_offsets else None
        for weight in (self.dc_tokens, *(self.dc_t_tokens.parameters() if self.dc_t_tokens else ())):
            nn.init.normal_(weight, std=START_STD)
        if start is not None:
            with torch.no_grad():
                self.dc_tokens.add_(start)

    @property
    def depth(self) -> int:
        """Number of blocks, the largest layer that can be tapped; 0 for a UNet."""
        return 0 if isinstance(self._host, UNetHost) else self._host.layers

    def soft_tokens(self, t: Tensor) -> Tensor | None:
        """Return the tokens of every block that has some, (B, blocks, n, D), at times t (B,); None if there are none.

        The published code moves ALL times of a batch by one step if any of them is 1000; here only that one.
        """
        if self.dc_tokens is None:
            return None
        tokens = self.dc_tokens if self.dc_tokens.ndim == 3 else self.dc_tokens[None]
        tokens = self._host.embed(tokens)
        if self.dc_t_tokens is None:
            return tokens.expand(len(t), -1, -1, -1)
        steps = t.float() * self.time_scale
        bins = (steps.long() - (steps >= 1000).long()) // 10
        offsets = self.dc_t_tokens(bins).unflatten(1, (len(tokens), 1, -1))  # (B, blocks, 1, D)
        return tokens + offsets  # type: ignore[no-any-return]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        pooled: Tensor | None = None,
        *,
        tokens: bool | float | None = None,
        taps: Collection[int] = (),
        contexts: Collection[int] = (),
    ) -> tuple[Tensor, dict[Any, Tensor]]:
        """Return (output (B, C, H, W), hidden) for noisy x, t (B,), text y (B, L, D); pooled (B, P): of SD3, else 0.

        Outputs are the network's own: velocity noise - data, a UNet's noise. t: 0..1000, 1000 = noise. tokens: False
        or 0 for the plain network; a number s for plain + s (with tokens - plain), at twice the cost. taps: layers
        (1-based) whose image tokens (B, N, D) are wanted. contexts: layers whose INCOMING text, soft tokens included,
        goes to hidden["context", layer].
        """
        check_taps((*taps, *contexts), self.depth or max(contexts, default=0))
        hidden: dict[Any, Tensor] = {}
        steps = t * self.time_scale
        strength = 1.0 if tokens is None else float(tokens)
        soft = self.soft_tokens(t) if strength else None
        with self._attached(soft, y.shape[1], hidden, taps, contexts):
            output = self._host.run(x, steps, y, pooled)
        if soft is not None and strength != 1:
            with self._attached(None, y.shape[1], {}, (), ()):
                plain = self._host.run(x, steps, y, pooled)
            output = plain + strength * (output - plain)
        return output, hidden

    @contextmanager
    def _attached(
        self,
        soft: Tensor | None,
        num_text: int,
        hidden: dict[Any, Tensor],
        taps: Collection[int],
        contexts: Collection[int],
    ) -> Iterator[None]:
        host = self._host

        def enter(number: int, layer: int, call: Call) -> Call:
            # what the block before made of its own tokens is thrown away
            text = host.text_of(call) if host.text_stays else host.text_of(call)[:, -num_text:]
            if soft is not None and 1 <= layer <= soft.shape[1]:
                text = host.join(soft[:, layer - 1].to(text.dtype), text)
            if number in contexts:
                hidden["context", number] = text
            return host.with_text(call, text)

        def leave(number: int, made: Any) -> None:
            if number in taps:
                hidden[number] = host.image_of(made)

        with ExitStack() as hooks:
            for number, (layer, block) in enumerate(host.blocks(), 1):
                before = block.register_forward_pre_hook(
                    lambda _block, args, given, number=number, layer=layer: enter(number, layer, (args, given)),
                    with_kwargs=True,
                )
                after = block.register_forward_hook(lambda _block, _args, made, number=number: leave(number, made))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield
