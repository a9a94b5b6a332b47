"""LightningDiT with class labels: its files open, and its hidden states are those of a forward that is written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers import wake
from repa_eval import checkpoints
from repa_eval.diffusion.conventions import REVERSED, unwrap
from repa_eval.models.lightning_dit_class import LightningDiTClass, LightningDiTClassConfig
from repa_eval.models.sit import SiT, SiTConfig

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
SIZES: dict[str, Any] = {"input_size": 4, "in_channels": 5, "hidden_size": 24, "depth": 3, "num_heads": 3}


def small(**more: Any) -> LightningDiTClass:
    torch.manual_seed(0)
    model = LightningDiTClass(LightningDiTClassConfig(**SIZES, num_classes=7, **more))
    wake(model, scale=0.1)
    return model.eval()


def written_out(state: dict[str, Tensor], x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The output and every block's tokens: RMSNorm (eps 1e-6), SwiGLU, rotary positions, adaLN of six chunks."""
    width, heads = 24, 3

    def linear(v: Tensor, name: str) -> Tensor:
        return F.linear(v, state[f"{name}.weight"], state[f"{name}.bias"])

    def rms(v: Tensor, name: str) -> Tensor:
        return v / (v.square().mean(-1, keepdim=True) + 1e-6).sqrt() * state[f"{name}.weight"]

    def turned(v: Tensor) -> Tensor:  # (B, heads, N, 8): four numbers turn by the row, four by the column
        found = v.clone()
        for n in range(16):
            for axis, place in enumerate((n // 4, n % 4)):
                for pair in range(2):
                    i = 4 * axis + 2 * pair
                    angle = place * 10000 ** (-2 * pair / 4)
                    a, b = v[:, :, n, i], v[:, :, n, i + 1]
                    found[:, :, n, i] = a * math.cos(angle) - b * math.sin(angle)
                    found[:, :, n, i + 1] = b * math.cos(angle) + a * math.sin(angle)
        return found

    tokens = F.conv2d(x, state["x_embedder.proj.weight"], state["x_embedder.proj.bias"]).flatten(2).transpose(1, 2)
    tokens = tokens + state["pos_embed"]
    angles = t[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
    sinusoid = torch.cat([angles.cos(), angles.sin()], dim=1)
    c = linear(F.silu(linear(sinusoid, "t_embedder.mlp.0")), "t_embedder.mlp.2")
    c = c + state["y_embedder.embedding_table.weight"][y]
    hidden = []
    for i in range(3):
        block = f"blocks.{i}"
        six = linear(F.silu(c), f"{block}.adaLN_modulation.1").chunk(6, dim=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (part[:, None] for part in six)
        given = rms(tokens, f"{block}.norm1") * (1 + scale_a) + shift_a
        parts = linear(given, f"{block}.attn.qkv").chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        weights = (turned(q) @ turned(k).transpose(-2, -1) / math.sqrt(width / heads)).softmax(-1)
        tokens = tokens + gate_a * linear((weights @ v).transpose(1, 2).flatten(2), f"{block}.attn.proj")
        given = rms(tokens, f"{block}.norm2") * (1 + scale_m) + shift_m
        gate, value = linear(given, f"{block}.mlp.w12").chunk(2, dim=-1)
        tokens = tokens + gate_m * linear(F.silu(gate) * value, f"{block}.mlp.w3")
        hidden.append(tokens)
    shift, scale = (part[:, None] for part in linear(F.silu(c), "final_layer.adaLN_modulation.1").chunk(2, dim=1))
    out = linear(rms(tokens, "final_layer.norm_final") * (1 + scale) + shift, "final_layer.linear")
    return out.transpose(1, 2).unflatten(2, (4, 4)), hidden


@pytest.mark.parametrize("learn_sigma", [False, True])
@torch.no_grad()
def test_a_published_file_opens_and_computes_as_written_out(learn_sigma: bool, tmp_path: Path) -> None:
    model = small(learn_sigma=learn_sigma)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert state["y_embedder.embedding_table.weight"].shape == (8, 24)
    torch.save({"ema": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "0080000.pt")
    opened = checkpoints.load(tmp_path / "0080000.pt")
    info = opened.info()
    assert (info["systems"], info["model"], info["step"]) == (["LightningDiT"], "LightningDiT", 80_000)
    assert (info["num_classes"], info["num_heads"], info["depth"], info["convention"]) == (7, 3, 3, REVERSED)
    x, y = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 7])
    t = torch.tensor([0.2, 0.9])
    wanted, hidden = written_out(state, x, 1 - t, y)  # ours: 1 = noise; its own: 0
    velocity, found = opened.model(x, t, y, taps=(1, 2, 3))
    torch.testing.assert_close(velocity, -wanted[:, :5], **CLOSE)
    for layer in (1, 2, 3):
        torch.testing.assert_close(found[layer], hidden[layer - 1], **CLOSE)
    assert int(opened.model.null_condition(1)[0]) == 7


@pytest.mark.usefixtures("hollow_files")
def test_the_published_size_is_named_and_its_neighbours_are_not_taken_for_it(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = LightningDiTClass(LightningDiTClassConfig()).state_dict()
    one = torch.zeros(1)
    torch.save({name: one.expand(tensor.shape) for name, tensor in shapes.items()}, tmp_path / "xl.pt")
    opened = checkpoints.load(tmp_path / "xl.pt", allow_nan=True)
    assert (opened.model_name, opened.systems) == ("LightningDiT-XL/1", ("LightningDiT",))
    assert 670e6 < sum(tensor.numel() for tensor in unwrap(opened.models[0]).parameters()) < 690e6
    torch.manual_seed(0)
    sit = SiT(SiTConfig(input_size=8, hidden_size=32, depth=2, num_heads=2, num_classes=7))
    torch.save(sit.state_dict(), tmp_path / "sit.pt")
    systems = checkpoints.load(tmp_path / "sit.pt", overrides={"num_heads": 2}).systems
    assert "LightningDiT" not in systems
