"""A trained vision transformer as a RePaViT encoder (arXiv 2505.21847): same function but for what idle channels lose.

LayerNorm becomes the batch norm that is nearest to it on the images given, and every hidden unit that is to be idle
the affine map that is nearest to its GELU; the units that lose most by that stay active. What is left is distilled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Mlp as TimmMlp
from timm.models.vision_transformer import Attention as TimmAttention
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.interfaces.teacher import Teacher
from repa_eval.models.encoders.conv_vit import ConvViT
from repa_eval.models.encoders.repa_conv_vit import RePaConvViT, RePaConvViTConfig
from repa_eval.models.encoders.repa_vit import RePaViT, RePaViTConfig
from repa_eval.models.shared.idle_feed_forward import FeedForward
from repa_eval.teachers.shared.preprocessing import pixels_of, recorded

CHUNK = 4096  # tokens whose hidden units are in memory at once
IMAGES = 32  # images per forward


def config_of(teacher: Teacher, image: Tensor, config: Any) -> Any:
    """Return `config` with the sizes and the preprocessing of a teacher that reads images like `image` (1, C, H, W).

    UserError if the teacher is no plain transformer, or if the config is of the other architecture.
    """
    network: Any = getattr(teacher, "network", None)  # a plug-in may have none
    if isinstance(network, ConvViT):
        if not isinstance(config, RePaConvViTConfig):
            raise UserError(f"teacher {teacher.name} is converted to model=RePaConvViT-digits")
        names = {field.name for field in dataclasses.fields(network.config)}
        return dataclasses.replace(config, **{name: getattr(network.config, name) for name in names})
    refuse(teacher, network)
    if not isinstance(config, RePaViTConfig):
        raise UserError(f"teacher {teacher.name} is converted to model=RePaViT")
    with torch.no_grad():
        teacher(image.to(next(teacher.parameters()).device))  # fits its position table to images of this size
    first: Any = network.blocks[0]
    pixels: Any = teacher.pixels
    sides = network.patch_embed.img_size
    if sides[0] != sides[1]:
        raise UserError(f"teacher {teacher.name} reads images of {sides[0]}x{sides[1]}: only squares are converted")
    norms = [norm for norm in (network.norm, network.norm_pre) if isinstance(norm, nn.LayerNorm)]
    return dataclasses.replace(
        config,
        input_size=sides[0],
        patch_size=network.patch_embed.patch_size[0],
        in_channels=network.patch_embed.proj.in_channels,
        num_classes=0,
        hidden_size=network.embed_dim,
        depth=len(network.blocks),
        num_heads=first.attn.num_heads,
        mlp_ratio=first.mlp.fc1.out_features / network.embed_dim,
        qkv_bias=first.attn.qkv.bias is not None,
        qk_norm=isinstance(first.attn.q_norm, nn.LayerNorm),
        pre_norm=isinstance(network.norm_pre, nn.LayerNorm),
        fc_norm=False,
        final_norm=isinstance(network.norm, nn.LayerNorm),
        norm_eps=first.norm1.eps,
        final_eps=norms[0].eps if norms else config.final_eps,
        class_token=network.cls_token is not None,
        num_registers=network.reg_token.shape[1] if network.reg_token is not None else 0,
        embed_prefix=not network.no_embed_class,
        pixels=recorded(pixels, resolution=image.shape[-1]),
    )


def refuse(teacher: Teacher, network: Any) -> None:
    """UserError that says what keeps a teacher's network from being converted, if anything does."""
    why = "" if isinstance(network, VisionTransformer) else f"it is a {type(network).__name__}"
    why = why or next(filter(None, map(_odd_block, network.blocks)), "")
    if not why and network.pos_embed is None:
        why = "it has no table of positions"
    if not why and not isinstance(network.patch_embed.norm, nn.Identity):
        why = "its patches are normalised"
    if why:
        raise UserError(
            f"teacher {teacher.name} cannot be converted: {why}; what can are digits-vit and timm's plain vision "
            "transformers (LayerNorm, GELU, learned positions)"
        )


def _odd_block(block: Any) -> str:
    """Return what of a block has no counterpart in RePaViT's, "" if nothing."""
    if type(block) is not TimmBlock:
        return f"its blocks are {type(block).__name__}"
    if not _plain_attention(block):
        return "its attention is not the plain one"
    if type(block.mlp) is not TimmMlp or not isinstance(block.mlp.norm, nn.Identity):
        return f"its feed-forwards are {type(block.mlp).__name__}"
    if not isinstance(block.mlp.act, nn.GELU):
        return f"its activation is {type(block.mlp.act).__name__}, not GELU"
    if not all(isinstance(norm, nn.LayerNorm) for norm in (block.norm1, block.norm2)):
        return f"its norms are {type(block.norm1).__name__}"
    return ""


def _plain_attention(block: Any) -> bool:
    attn = block.attn
    # norm, gate and a width of its own came to timm after 1.0.15
    plain = type(attn) is TimmAttention and isinstance(getattr(attn, "norm", nn.Identity()), nn.Identity)
    return plain and getattr(attn, "gate", None) is None and attn.proj.in_features == attn.proj.out_features


@torch.no_grad()
def convert(model: RePaViT | RePaConvViT, teacher: Teacher, images: Tensor) -> None:
    """Give `model` the function of `teacher`, as far as its idle channels allow on uint8 images (N, C, H, W)."""
    network: Any = teacher.network
    _copy_around(model, network)
    pixels = pixels_of(model.config)
    model.eval()
    x = torch.cat([model.embed(pixels(part, name=teacher.name)) for part in images.split(IMAGES)])  # (N, T, D)
    pairs: Any = zip(model.blocks, network.blocks, strict=True)
    for mine, theirs in pairs:
        _copy_attention(mine.attn, theirs)
        x = torch.cat([part + mine.attn(part) for part in x.split(IMAGES)])
        fit(mine.mlp, x.flatten(0, 1), theirs.norm2, *_linears(theirs))
        x = torch.cat([mine.mlp(part) for part in x.split(IMAGES)])


def _copy_around(model: Any, network: Any) -> None:
    """Copy what is not a block."""
    if isinstance(model, RePaConvViT):
        own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("blocks.")}
    else:
        names = ("patch_embed.proj.", "cls_token", "reg_token", "pos_embed", "norm_pre.", "norm.")
        own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith(names)}
    left = [name for name in model.load_state_dict(own, strict=False).missing_keys if not name.startswith("blocks.")]
    assert not left, left


def _copy_attention(mine: Any, theirs: Any) -> None:
    """Copy a block's norm and attention; LayerScale, a factor per channel of its output, goes into the projection."""
    mine.norm.load_state_dict(theirs.norm1.state_dict())
    for name in ("qkv", "q_norm", "k_norm"):
        getattr(mine, name).load_state_dict(getattr(theirs.attn, name).state_dict())
    weight, bias = _scaled(theirs.attn.proj, getattr(theirs, "ls1", None))
    mine.proj.weight.copy_(weight)
    mine.proj.bias.copy_(bias)


def _linears(block: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the feed-forward's fc1 weight and bias, fc2 weight and bias, float64, LayerScale in the latter."""
    return *_scaled(block.mlp.fc1, None), *_scaled(block.mlp.fc2, getattr(block, "ls2", None))


def _scaled(linear: Any, scale: Any) -> tuple[Tensor, Tensor]:
    weight = linear.weight.detach().double().cpu()
    bias = torch.zeros(len(weight), dtype=torch.float64) if linear.bias is None else linear.bias.detach().double().cpu()
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return weight, bias
    factor = gamma.detach().double().cpu()
    return weight * factor[:, None], bias * factor


@torch.no_grad()
def fit(part: FeedForward, x: Tensor, norm: Any, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    """Fill a feed-forward in place from the one it replaces, as it acts on tokens x (M, C).

    norm: the LayerNorm before w1 (H, C), b1, GELU, w2 (C, H), b2. Sums are float64.
    """
    mean, var = _moments(x.double().split(CHUNK))
    inverse = (var + part.norm1.eps).rsqrt()  # type: ignore[operator]
    gamma, beta = _nearest_affine(x, norm, mean, inverse)

    def hidden() -> Iterator[Tensor]:
        for chunk in x.split(CHUNK):
            yield ((chunk.double() - mean) * inverse * gamma + beta) @ w1.T + b1

    count, sums = len(x), torch.zeros(5, len(w1), dtype=torch.float64)
    for h in hidden():
        g = F.gelu(h)
        sums += torch.stack([v.sum(0) for v in (h, g, h * h, g * g, h * g)])
    mean_h, mean_g, square_h, square_g, product = sums / count
    var_h, var_g = square_h - mean_h**2, square_g - mean_g**2
    slope = (product - mean_h * mean_g) / var_h.clamp_min(1e-12)
    loss = (var_g - slope**2 * var_h).clamp_min(0) * w2.square().sum(0)
    order = loss.argsort(descending=True, stable=True)
    active, idle = order[: part.active], order[part.active :]

    columns = torch.cat([w2[:, active], w2[:, idle] * slope[idle]], dim=1)
    offset = (mean_g - slope * mean_h)[idle]
    put(part.fc1, weight=w1[order], bias=b1[order])
    put(part.fc2, weight=columns, bias=b2 + w2[:, idle] @ offset)
    put(part.norm1, weight=gamma, bias=beta, running_mean=mean, running_var=var)
    mean_2, var_2 = torch.cat([mean_g[active], mean_h[idle]]), torch.cat([var_g[active], var_h[idle]]).clamp_min(0)
    # the second norm starts as the identity
    spread = (var_2 + part.norm2.eps).sqrt()  # type: ignore[operator]
    put(part.norm2, weight=spread, bias=mean_2, running_mean=mean_2, running_var=var_2)


def _moments(chunks: Any) -> tuple[Tensor, Tensor]:
    chunks = list(chunks)
    count = sum(map(len, chunks))
    mean = torch.stack([chunk.sum(0) for chunk in chunks]).sum(0) / count
    return mean, torch.stack([(chunk - mean).square().sum(0) for chunk in chunks]).sum(0) / count


def _nearest_affine(x: Tensor, norm: Any, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Return per channel the (factor, offset) that bring standardised x nearest to norm(x), by least squares."""
    weight, bias = norm.weight.detach().double().cpu(), norm.bias.detach().double().cpu()
    sums = torch.zeros(3, x.shape[1], dtype=torch.float64)
    for chunk in x.split(CHUNK):
        z = (chunk.double() - mean) * inverse
        target = F.layer_norm(chunk.double(), norm.normalized_shape, weight, bias, norm.eps)
        sums += torch.stack([target.sum(0), (z * target).sum(0), (z * z).sum(0)])  # z has mean 0
    return sums[1] / sums[2].clamp_min(1e-12), sums[0] / len(x)


def put(module: nn.Module, **tensors: Tensor) -> None:
    """Copy tensors into the parameters and buffers of a module."""
    for name, tensor in tensors.items():
        getattr(module, name).copy_(tensor)
