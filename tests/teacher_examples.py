"""Published files of every family of teachers, made small, and the networks that they are for, written out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn
from torchvision.transforms.functional import normalize

from repa_eval.interfaces.teacher import load_teacher
from repa_eval.teachers import official
from repa_eval.teachers.shared.timm_teacher import VisionTeacher

State = dict[str, Tensor]
WIDTH, DEPTH, HEADS = 24, 2, 3
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def image(side: int = 256, *, count: int = 1, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(side)
    return torch.randint(0, 256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def draw(shapes: dict[str, tuple[int, ...]]) -> State:
    """Weights of a size at which every layer shows in the output: norms and layer scales near 1."""
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name, tensor in state.items():
        tensor.mul_(tensor.shape[1] ** -0.5 if tensor.ndim == 2 else 0.1)
        tensor.add_(float(name.endswith("gamma") or ("norm" in name and name.endswith("weight"))))
    return state


def vit(*, patch: int, rows: int, width: int = WIDTH, registers: int = 0, dinov2: bool = False, glu: int = 0) -> State:
    """A state dict under the names that all published ViTs but CLIP's share; rows of its position table."""
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, rows, width)}
    if rows % 2 == 0 or dinov2:  # a class token beside an odd grid
        shapes["cls_token"] = (1, 1, width)
    shapes |= {"patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,)}
    if dinov2:
        shapes["mask_token"] = (1, width)
    if registers:
        shapes["register_tokens"] = (1, registers, width)
    for i in range(DEPTH):
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        if glu:
            linears |= {"mlp.w12": (2 * glu, width), "mlp.w3": (width, glu)}
        else:
            linears |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for name, (out, given) in linears.items():
            shapes |= {f"blocks.{i}.{name}.weight": (out, given), f"blocks.{i}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (width,), f"blocks.{i}.{name}.bias": (width,)}
        if dinov2:
            shapes |= {f"blocks.{i}.ls1.gamma": (width,), f"blocks.{i}.ls2.gamma": (width,)}
    return draw(shapes | {"norm.weight": (width,), "norm.bias": (width,)})


def reference(
    state: State, pixels: Tensor, *, heads: int = HEADS, last_norm: bool = True
) -> tuple[Tensor, list[Tensor]]:
    """Tokens (B, prefix + T, D), class token and registers first, and every block's attention logits."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    kernel, table = state["patch_embed.proj.weight"], state["pos_embed"]
    x = F.conv2d(pixels, kernel, state["patch_embed.proj.bias"], stride=kernel.shape[-1])
    grid = x.shape[-1]
    x = x.flatten(2).transpose(1, 2)
    width, has_class = x.shape[-1], "cls_token" in state
    old = int((table.shape[1] - has_class) ** 0.5)
    places = table[:, has_class:].reshape(1, old, old, width).permute(0, 3, 1, 2)
    if old != grid:
        places = F.interpolate(places, size=(grid, grid), mode="bicubic", antialias=True, align_corners=False)
    x = x + places.permute(0, 2, 3, 1).flatten(1, 2)
    prefix = [state["cls_token"] + table[:, :1]] if has_class else []
    prefix += [state["register_tokens"]] if "register_tokens" in state else []
    x = torch.cat([part.expand(len(x), -1, -1) for part in prefix] + [x], dim=1)
    logits = []
    for i in range(DEPTH):
        block = f"blocks.{i}"
        q, k, v = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        logits.append(q @ k.transpose(-2, -1) / (width / heads) ** 0.5)
        mixed = linear((logits[-1].softmax(-1) @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        x = x + mixed * state.get(f"{block}.ls1.gamma", torch.ones(()))
        y = norm(x, f"{block}.norm2")
        if f"{block}.mlp.w12.weight" in state:
            gate, value = linear(y, f"{block}.mlp.w12").chunk(2, dim=-1)
            y = linear(F.silu(gate) * value, f"{block}.mlp.w3")
        else:
            y = linear(F.gelu(linear(y, f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
        x = x + y * state.get(f"{block}.ls2.gamma", torch.ones(()))
    return (norm(x, "norm") if last_norm else x), logits


def moco(state: State) -> dict[str, Any]:
    inside = {f"module.base_encoder.{name}": tensor for name, tensor in state.items()}
    heads = {"module.base_encoder.head.0.weight": torch.ones(5, 4), "module.predictor.0.weight": torch.ones(2, 2)}
    momentum = {f"module.momentum_encoder.{name}": torch.zeros_like(tensor) for name, tensor in state.items()}
    return {"epoch": 300, "arch": "vit_small", "state_dict": momentum | inside | heads, "optimizer": {"state": {}}}


def jepa(state: State) -> dict[str, Any]:
    def parallel(factor: float) -> State:
        return {f"module.{name}": factor * tensor for name, tensor in state.items()}

    predictor = {"module.mask_token": torch.ones(1, 1, 4)}
    return {"encoder": parallel(1.0), "target_encoder": parallel(0.5), "predictor": predictor, "epoch": 300, "lr": 0.1}


def mae(state: State) -> dict[str, Any]:
    decoder = {"decoder_pos_embed": torch.ones(1, 2, 2), "decoder_blocks.0.norm1.bias": torch.ones(2)}
    return {"model": state | decoder | {"mask_token": torch.ones(1, 1, 2)}}


@dataclasses.dataclass
class Example:
    """A family's official file: its state dict and what is wrapped around it."""

    state: Callable[[], State]
    wrap: Callable[[State], Any] = dict
    heads: int = HEADS
    width: int = WIDTH
    last_norm: bool = True


# position tables as published: 37x37 for DINOv2 (here 5x5, which is resampled as well), 14x14 at patch 16 (here 7x7)
EXAMPLES = {
    "dinov2-vit-b": Example(lambda: vit(patch=14, rows=26, dinov2=True)),
    "dinov2-vit-g": Example(lambda: vit(patch=14, rows=26, dinov2=True, glu=64)),
    "dinov2reg-vit-l": Example(lambda: vit(patch=14, rows=26, dinov2=True, registers=4)),
    "dinov1-vit-b": Example(lambda: vit(patch=16, rows=50)),
    "mocov3-vit-b": Example(lambda: vit(patch=16, rows=50), moco),
    "mocov3-vit-s": Example(lambda: vit(patch=16, rows=50, width=48), moco, heads=12, width=48),
    "mae-vit-l": Example(lambda: vit(patch=16, rows=50), mae, last_norm=False),
    "jepa-vit-h": Example(lambda: vit(patch=14, rows=49), jepa),
}


def published_pixels(images: Tensor, family: str) -> Tensor:
    """What the REPA trainer does, operation by operation."""
    x = images / 255.0
    if family == "clip":
        return normalize(F.interpolate(x, 224, mode="bicubic"), OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    x = normalize(x, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    if family in ("mocov3", "mae", "dinov1", "dinov3"):
        return x
    return F.interpolate(x, 224 * (images.shape[-1] // 256), mode="bicubic")


class OpenClip(nn.Module):
    """CLIP's image tower up to what REPA takes from it: no ln_post, no projection."""

    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(257, WIDTH))
        self.proj = nn.Parameter(torch.randn(WIDTH, 8))
        self.conv1 = nn.Conv2d(3, WIDTH, 14, stride=14, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(self.block() for _ in range(DEPTH))

    def block(self) -> nn.Module:
        block = nn.Module()
        block.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        block.ln_1, block.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        block.mlp = nn.Module()
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        return block

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        for block in self.transformer.resblocks:
            y = block.ln_1(x)
            x = x + block.attn(y, y, y, need_weights=False)[0]
            y = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
        return x


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family's networks are small; what the table says of a size (MoCo's heads) still holds."""
    for name, family in list(official.FAMILIES.items()):
        sizes = {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
        told = {letter: own for letter, own in family.arguments.items() if "embed_dim" not in own}
        arguments = {
            letter: sizes | ({"embed_dim": 48, **told[letter]} if letter in told else {}) for letter in family.letters
        }
        monkeypatch.setitem(official.FAMILIES, name, dataclasses.replace(family, arguments=arguments))


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def teacher_of(name: str, tmp_path: Path) -> VisionTeacher:
    example = EXAMPLES[name]
    teacher = load_teacher(name, saved(example.wrap(example.state()), tmp_path / f"{name}.pth"))
    assert isinstance(teacher, VisionTeacher)
    return teacher
