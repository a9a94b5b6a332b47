"""The golden cases notice what people get wrong: each change below, made for the time of one check, fails one."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from golden_runners import compare
from repa_eval.memory_bank.bank import FullBank, SVDBank, compressed
from repa_eval.memory_bank.interpolation import _mask, _spherical, interpolate
from repa_eval.models.encoders.repa_swin import Block as SwinBlock
from repa_eval.models.encoders.repa_swin import PatchMerging
from repa_eval.models.encoders.repa_vit import RePaViT
from repa_eval.models.shared.idle_feed_forward import FeedForward, merge
from repa_eval.models.shared.layers import Attention, modulate, sincos_table
from repa_eval.models.shared.soft_tokens import SoftTokens
from repa_eval.models.shared.token_hosts import UNetHost
from repa_eval.models.sit_reg import SiTCls
from repa_eval.sampling.samplers.flow import edit_flow, guided
from repa_eval.sampling.samplers.repa import sample_ode
from repa_eval.sampling.samplers.shared.sde import sde_step
from repa_eval.train.contrastive_loss import contrastive_losses, flow_pair, pair_errors, scaled_linear_schedule
from repa_eval.train.methods.erw import ERW, fading
from repa_eval.train.methods.gmem import GMem
from repa_eval.train.methods.reg import REG
from repa_eval.train.methods.softrepa import SoftREPA

GOLDEN = Path(__file__).resolve().parent / "golden"

CHANGES: dict[str, tuple[str, Callable[..., Any], str, str]] = {
    # what: (case, function, its text, the wrong text)
    "halves of the sin-cos table swapped": (
        "repa/sit_forward_a", sincos_table, "torch.cat([columns, rows], dim=-1)", "torch.cat([rows, columns], dim=-1)",
    ),
    "sines and cosines swapped": (
        "repa/sit_forward_a", sincos_table, "[axis.sin(), axis.cos()]", "[axis.cos(), axis.sin()]",
    ),
    "Heun on the last step": ("repa/sample_ode_heun", sample_ode, "if heun and after > 0:", "if heun:"),
    "guidance judged at t_next": (
        "repa/sample_ode_euler_cfg", sample_ode, "guidance.applies(now)", "guidance.applies(after)",
    ),
    "the score's sign": ("repa/sample_sde", sde_step, "velocity - 0.5 * diffusion", "velocity + 0.5 * diffusion"),
    "the SDE's w = t": ("repa/sample_sde", sde_step, "diffusion = 2 * now", "diffusion = now"),
    "head count halved": (
        "repa/sit_forward_a", Attention.heads,
        "3, self.num_heads, width // self.num_heads)", "3, self.num_heads // 2, 2 * width // self.num_heads)",
    ),
    "queries not scaled": ("haste/sit_forward_a", Attention.forward, "(q * q.shape[-1] ** -0.5)", "q"),
    "scale without the one": ("repa/sit_forward_a", modulate, "1 + scale.unsqueeze(1)", "scale.unsqueeze(1)"),
    "class token appended": (
        "reg/forward_base", SiTCls.forward,
        "torch.cat([front, self.x_embedder(x)]", "torch.cat([self.x_embedder(x), front]",
    ),
    "another weight of the class token": (
        "reg/loss_linear_uniform", REG.losses, "self.cls_coeff * class_error", "0.04 * class_error",
    ),
    "the class token aligned with its negative": (
        "reg/loss_linear_uniform", REG.losses, "torch.cat([a[:, None], b]", "torch.cat([-a[:, None], b]",
    ),
    "the class token's noise that of another sample": (
        "reg/loss_cosine_uniform", REG.losses,
        "self.interpolant.velocity(token, class_noise, t)", "self.interpolant.velocity(token, class_noise.flip(0), t)",
    ),
    "the class token's error summed": (
        "reg/train_steps", REG.losses, "class_error.square().mean(1)", "class_error.square().sum(1)",
    ),
    "no channel idle": ("repavit/ffn_bn", FeedForward.activated, "if self.active == channels:", "if True:"),
    "the last channels active": (
        "repavit/ffn_bn", FeedForward.activated, "torch.cat([F.gelu(active), idle]", "torch.cat([active, F.gelu(idle)]",
    ),
    "GELU by tanh": (
        "repavit/ffn_bn", FeedForward.activated, "F.gelu(active)", "F.gelu(active, approximate='tanh')",
    ),
    "the residual not merged": ("repavit/vit_idle100", merge, "+ torch.eye(", "+ 0 * torch.eye("),
    "the second norm's bias not merged": ("repavit/swin", merge, "@ b1[a:] + b2", "@ b1[a:]"),
    "no norm before the blocks": (
        "repavit/vit_idle075", RePaViT.embed,
        "return self.norm_pre(torch.cat([*prefix, patches], dim=1) + self.pos_embed)",
        "return torch.cat([*prefix, patches], dim=1) + self.pos_embed",
    ),
    "windows see across the edge": (
        "repavit/swin", SwinBlock.forward, "self.window), self.attn_mask)", "self.window), None)",
    ),
    "patches merged in another order": (
        "repavit/swin", PatchMerging.forward, "((0, 0), (1, 0), (0, 1), (1, 1))", "((0, 0), (0, 1), (1, 0), (1, 1))",
    ),
    "stage 1 at the time of noise": ("erw/loss_warmup", ERW._warmup, "torch.zeros(len(y)", "torch.ones(len(y)"),
    "the first sample instead of the last": (
        "erw/loss_warmup", ERW._warmup, "projected)[-1] / len(y)", "projected)[0] / len(y)",
    ),
    "the last sample not divided by the batch": (
        "erw/loss_warmup_two_teachers", ERW._warmup, "[-1] / len(y)", "[-1]",
    ),
    "the weight falls from the first step on": (
        "erw/coefficient_schedule", fading, "max(step - warmup, 0)", "max(step, 0)",
    ),
    "logits -e / temp": (
        "softrepa/contrastive_loss", contrastive_losses,
        "scale * torch.exp(-errors / temp)", "0 * scale - errors / temp",
    ),
    "from text to image": (
        "softrepa/contrastive_loss", contrastive_losses, "logits.log_softmax(dim=1)", "logits.log_softmax(dim=0)",
    ),
    "the target's sign": (
        "softrepa/standin_errors", flow_pair, "t * noise, noise - x", "t * noise, x - noise",
    ),
    "errors transposed": (
        "softrepa/standin_errors", pair_errors, "unflatten(0, pairs)", "unflatten(0, pairs).T",
    ),
    "the step shifted in training": (
        "softrepa/sd3_train_step", flow_pair, "t = step / TRAIN_STEPS", "t = 3 * step / (TRAIN_STEPS + 2 * step)",
    ),
    "no weight of the denoising error": (
        "softrepa/sd3_train_step", SoftREPA.losses, "self.dweight * errors.gather", "0 * errors.gather",
    ),
    "tokens of one block less": (
        "softrepa/sd3_train_step", SoftTokens._attached, "<= soft.shape[1]", "< soft.shape[1]",
    ),
    "tokens that stay in the text": (
        "softrepa/sd3_tokens_direct", SoftTokens._attached, "host.text_of(call)[:, -num_text:]", "host.text_of(call)",
    ),
    "the plain network sampled": (
        "softrepa/sd3_sample", SoftTokens.forward, "if strength else None", "if False else None",
    ),
    "the usual guidance of an edit": ("softrepa/sd3_flowedit", guided, "cfg_scale + 1 if", "cfg_scale if"),
    "an edit that starts at the noise": (
        "softrepa/sd3_flowedit", edit_flow, "[-num_edited:]", "[:num_edited]",
    ),
    "tokens of a UNet in place of words": (
        "softrepa/sd15_unet_tokens", UNetHost.join, "text[:, 1:]]", "text[:, 3:]]",
    ),
    "tokens in every stage": ("softrepa/sd15_unet_tokens", UNetHost.blocks, "int(stage in self.stages)", "1"),
    "another bin of the time": ("softrepa/sd15_unet_tokens", SoftTokens.soft_tokens, "// 10", "// 11"),
    "linear betas": ("softrepa/sd15_unet_tokens", scaled_linear_schedule, "roots.square()", "roots * roots.mean()"),
    "stage 2 aligned by stage 1's weight": (
        "erw/loss_full", ERW.losses, "weight * cosine_alignment", "self.proj_coeff * cosine_alignment",
    ),
    "no cosine between velocities": (
        "gmem/transport_loss_uniform", GMem.losses, "self.cosine_coeff * (1 - cosine)", "0 * (1 - cosine)",
    ),
    "that cosine over the whole sample": (
        "gmem/transport_loss_lognorm", GMem.losses,
        "F.cosine_similarity(predicted, target, dim=1)",
        "F.cosine_similarity(predicted.flatten(1), target.flatten(1))[:, None]",
    ),
    "dropped entries kept": (
        "gmem/transport_loss_uniform", GMem.losses, ">= model.config.condition_dropout", ">= 0",
    ),
    "GMem's network given our time": (
        "gmem/transport_loss_uniform", GMem.losses, "convention(model)(x_t, t,", "convention(model)(x_t, 1 - t,",
    ),
    "a code scaled by S instead of its root": (
        "gmem/memory_bank_svd", compressed, "@ V / S.sqrt()", "@ V / S",
    ),
    "one direction fewer": (
        "gmem/memory_bank_svd", compressed,
        "S[:latent_dim], vectors.flip(1)[:, :latent_dim]", "S[: latent_dim - 1], vectors.flip(1)[:, : latent_dim - 1]",
    ),
    "a new snippet not divided by S": (
        "gmem/memory_bank_svd", SVDBank.added, " / self.S.float()", "",
    ),
    "alpha on the second row of a full bank": (
        "gmem/memory_bank_svd", FullBank.added_between,
        "alpha * self.row(first) + (1 - alpha)", "(1 - alpha) * self.row(first) + alpha",
    ),
    "alpha on the second row of a compressed bank": (
        "gmem/memory_bank_svd", SVDBank.added_between,
        "alpha * self.C[first].float() + (1 - alpha)", "(1 - alpha) * self.C[first].float() + alpha",
    ),
    "straight instead of along the sphere": (
        "gmem/snippet_interpolation", _spherical,
        "return (((1 - alpha)", "return _linear(a, b, alpha, draws) + 0 * (((1 - alpha)",
    ),
    "snippets between, not normalised": (
        "gmem/snippet_interpolation", interpolate,
        "F.normalize(INTERPOLATIONS[method](a, b, weights, draws), dim=1)",
        "INTERPOLATIONS[method](a, b, weights, draws)",
    ),
    "the mask the other way round": ("gmem/snippet_interpolation", _mask, "draws > 0.5, a, b", "draws > 0.5, b, a"),
}  # fmt: skip


@contextmanager
def changed(function: Callable[..., Any], old: str, new: str) -> Iterator[None]:
    """Let a function run with `new` in place of `old` in its source; everybody who imported it sees the change."""
    plain = inspect.unwrap(function)
    source = textwrap.dedent(inspect.getsource(plain))
    assert source.count(old) == 1, f"{old!r} is not, or not once, in {plain.__qualname__}: this test is out of date"
    namespace = dict(plain.__globals__)
    body = source[source.index("def ") :].replace(old, new)  # without its decorators, which stay in place
    exec(compile("from __future__ import annotations\n" + body, inspect.getfile(plain), "exec"), namespace)
    before = plain.__code__
    plain.__code__ = namespace[plain.__name__].__code__
    try:
        yield
    finally:
        plain.__code__ = before


@pytest.mark.parametrize("what", CHANGES)
def test_a_wrong_constant_is_noticed(what: str) -> None:
    case, function, old, new = CHANGES[what]
    path = GOLDEN / f"{case}.json"
    assert compare.check(path)[0] == []
    with changed(function, old, new):
        wrong, compared = compare.check(path)
    assert compared
    assert wrong, f"{what}: {case} did not notice"
    assert compare.check(path)[0] == []  # and all is well again


def test_the_change_is_made_and_taken_back() -> None:
    with changed(modulate, "1 + scale.", "2 + scale."):
        assert "2" in str(inspect.unwrap(modulate).__code__.co_consts)
    with pytest.raises(AssertionError, match="out of date"), changed(modulate, "3 + scale", ""):
        pass
