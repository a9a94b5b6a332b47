"""The whole layer x timestep map against its forward passes alone: depth 12, width 384, 16 tokens, n = 2,000."""

from __future__ import annotations

import time
from typing import Any

import torch

from repa_eval.evaluation.alignment import align
from repa_eval.interfaces.images import load_data, to_signed
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.sit import SiT, SiTConfig

N, BATCH = 2000, 250
TIMESTEPS = (0.1, 0.2, 0.3, 0.5, 0.7)


def test_the_map_against_its_forward_passes(benchmark: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"input_size": 8, "in_channels": 1, "patch_size": 2, "hidden_size": 384, "depth": 12, "num_heads": 6}
    model = SiT(SiTConfig(**sizes, num_classes=10)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.02)
    images, teacher = load_data("digits", "train").head(N), load_teacher("digits-vit")
    x = to_signed(images.pixels(range(N)))

    @torch.no_grad()
    def forwards() -> None:
        for t in TIMESTEPS:
            for first in range(0, N, BATCH):
                part = x[first : first + BATCH]
                model(part, torch.full((len(part),), t), model.null_condition(len(part)))

    began = time.process_time()
    forwards()
    alone = time.process_time() - began
    began = time.process_time()
    rows = benchmark.pedantic(
        lambda: align(model, teacher, images, layers=range(1, 13), timesteps=TIMESTEPS), rounds=1, iterations=1
    )
    whole = time.process_time() - began
    assert len(rows) == 12 * 5 * 2
    benchmark.extra_info.update({"forward_s": round(alone, 1), "map_over_forward": round(whole / alone, 3)})
    print(f"\nforward passes {alone:.1f} CPU s, whole map {whole:.1f}: {whole / alone:.2f} times")
