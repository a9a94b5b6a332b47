"""REG's sampler of latent and class token, by our SiT with a class token."""

from __future__ import annotations

import numpy as np
import torch

from golden_runners import Arrays, Case, runner
from golden_runners.sit_models import network
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.sampling.samplers.joint import sample_joint_sde

OPTIONS = ("num_steps", "cfg_scale", "cls_cfg_scale", "guidance_low", "guidance_high", "path_type")


@runner("reg", "sampler")
def sampler(case: Case, arrays: Arrays) -> Arrays:
    config = case["config"]
    model = network("SiT-REG", config, keep=case["fill"]["kept_as_initialised"], ignored=OPTIONS)
    seen: list[tuple[torch.Tensor, torch.Tensor, float, int]] = []
    count = len(arrays["y"])

    def watch(_model: object, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]) -> None:
        x, t = inputs[:2]
        seen.append((x[:count], named["cls_token"][:count], float(t[0]), len(x)))

    model.register_forward_pre_hook(watch, with_kwargs=True)
    noises = zip(*(torch.from_numpy(arrays[name]) for name in ("draw_noise", "draw_noise_cls")), strict=True)
    samples = sample_joint_sde(
        model,
        (torch.from_numpy(arrays["latents"]), torch.from_numpy(arrays["cls_latents"])),
        torch.from_numpy(arrays["y"]),
        num_steps=config["num_steps"],
        step_noise=noises.__next__,
        interpolant=Interpolant(path_type=config["path_type"]),
        guidance=Guidance(cfg_scale=config["cfg_scale"], low=config["guidance_low"], high=config["guidance_high"]),
        cls_cfg_scale=config["cls_cfg_scale"],
    )
    return {
        "samples": samples.numpy(),
        "x_at_call": torch.stack([x for x, _, _, _ in seen]).numpy(),
        "cls_at_call": torch.stack([token for _, token, _, _ in seen]).numpy(),
        "t_at_call": np.array([t for _, _, t, _ in seen]),
        "batch_at_call": np.array([size for _, _, _, size in seen]),
    }
