"""Golden runners take sizes and options from the case: cases of the same kinds with others run through.

There are no published outputs for these; what is checked is that the runner computes every output, in its new shape.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from golden_runners import Arrays, Case, compare, find

GOLDEN = Path(__file__).resolve().parent / "golden"
GONE = object()  # a value that removes its key

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Variant:
    """A changed case.

    config, json: new entries of the config and of the json, a path by slashes. inputs: new shapes, filled with random
    values. outputs: what is computed then, with its shape.
    """

    case: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Shape] = field(default_factory=dict)
    json: Mapping[str, Any] = field(default_factory=dict)


def changed(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for dotted, value in changes.items():
        place, (*path, last) = tree, dotted.split("/")
        for key in path:
            place = place[key]
        place.pop(last) if value is GONE else place.update({last: value})


def load(name: str) -> tuple[Case, Arrays]:
    path = GOLDEN / f"{name}.json"
    case, file = json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".npz")
    if not file.exists():
        return case, {}
    with np.load(file) as archive:
        return case, {key: archive[key] for key in archive.files}


def made(variant: Variant) -> tuple[Case, Arrays]:
    case, arrays = load(variant.case)
    case = copy.deepcopy(case)
    changed(case.setdefault("config", {}), variant.config)
    changed(case, variant.json)
    arrays = {name: array for name, array in arrays.items() if name not in case["outputs"]}
    rng = np.random.RandomState(0)
    for name, shape in variant.inputs.items():
        if shape is GONE:
            del arrays[name]
            continue
        like = arrays.get(name, next(iter(arrays.values())))
        whole = like.dtype.kind in "iu"
        arrays[name] = (rng.randint(0, 4, shape) if whole else rng.standard_normal(shape)).astype(like.dtype)
    case["outputs"] = {
        name: case["outputs"].get(name, {"meaning": "", "shape": [*s]}) for name, s in variant.outputs.items()
    }
    return case, arrays


SIT = {"depth": 2, "hidden_size": 32, "num_heads": 2, "projector_dim": 16, "encoder_depth": 1}
SMALL_DIT = {**SIT, "use_rope": False, "projector": "24 out, 40 wide"}
BRANCHES = ("src", "tgt", "null")
HIDDEN = {f"hidden_{layer}": (2, 36, 32) for layer in (1, 2)}


def under(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{key}": value for key, value in values.items()}


VARIANTS = {
    "MMDiT with two projectors": Variant(
        "repa/mmdit_forward",
        {"depth": 2, "z_dims": [24, 40], "encoder_depth": 1},
        {"x": (1, 4, 8, 8), "t": (1,), "context": (1, 3, 20)},
        {"out": (1, 4, 8, 8), "hidden_mean": (2, 1, 64), "zs_0": (1, 16, 24), "zs_1": (1, 16, 40)},
    ),
    "SiT of another size": Variant(
        "repa/sit_forward_a",
        {**SIT, "patch_size": 4, "input_size": 16, "z_dims": [8, 12], "use_cfg": True, "class_dropout_prob": 0.0},
        {"x": (2, 4, 16, 16), "t": (2,), "y": (2,)},
        {"out": (2, 4, 16, 16), "hidden_mean": (2, 2, 32), "zs_0": (2, 16, 8), "zs_1": (2, 16, 12)},
    ),
    "a loss in train mode without label drop": Variant(
        "repa/loss_linear_uniform",
        {**under("model", {**SIT, "z_dims": [8], "class_dropout_prob": 0.0}), "mode": "train"},
        {"x": (2, 4, 8, 8), "y": (2,), "noise": (2, 4, 8, 8), "t_draw": (2, 1, 1, 1), "z_0": (2, 16, 8), "z_1": GONE},
        {"t": (2,), "x_t": (2, 4, 8, 8), "denoising_loss": (2,), "proj_loss": (), "grad:projectors.0.4.bias": (8,)},
    ),
    "training with two teachers": Variant(
        "repa/train_steps_ema",
        {**under("model", {**SIT, "z_dims": [8, 12]}), "steps": 2},
        {"z_0": (2, 4, 16, 8), "z_1": (2, 4, 16, 12)},
        {"loss": (2,), "grad_norm": (2,), "param:projectors.1.4.bias": (12,), "ema:projectors.1.4.bias": (12,)},
    ),
    "REPA's SDE": Variant(
        "repa/sample_sde_cosine_cfg",
        {**under("model", SIT), "sampler_args/num_steps": 4},
        {"latents": (2, 4, 8, 8), "y": (2,), "step_noise": (3, 2, 4, 8, 8)},
        {"samples": (2, 4, 8, 8), "call_t": (4,), "call_batch": (4,)},
    ),
    "SiT's forward": Variant(
        "sit/sit_forward",
        {"depth": 2, "cfg_scale": 1.5},
        {},
        {"out": (3, 4, 8, 8), "hidden_mean": (2, 3, 64), "out_cfg": (6, 4, 8, 8)},
    ),
    "SiT's transport, other solvers and last steps": Variant(
        "sit/transport",
        {**under("model", {"depth": 1}), "num_steps": 4},
        {"step_noise": (3, 2, 4, 8, 8)},
        {"ode_midpoint_Linear": (2, 4, 8, 8), "sde_constant_GVP": (2, 4, 8, 8), "loss_GVP": (2,)},
    ),
    "DiT's diffusion, respaced": Variant(
        "dit/diffusion",
        {**under("model", {"depth": 1}), "timestep_respacing": "3"},
        {"step_noise": (3, 3, 4, 8, 8)},
        {"sample": (3, 4, 8, 8), "timestep_map": (3,), "alphas_cumprod": (2,), "loss": (3,)},
        {"outputs/alphas_cumprod/meaning": "at steps 5, 900 (float64)"},
    ),
    "REG's forward": Variant(
        "reg/forward_base",
        {**SIT, "z_dims": [20, 12]},
        {"x": (2, 4, 8, 8), "t": (2,), "y": (2,), "cls_token": (2, 20)},
        {"image_out": (2, 4, 8, 8), "cls_out": (2, 20), "zs_1": (2, 17, 12), "hidden_2": (2, 17, 32)},
    ),
    "REG's sampler": Variant(
        "reg/sampler_sde_cfg",
        {**SIT, "z_dims": [20], "num_steps": 3, "path_type": "cosine"},
        {"cls_latents": (2, 20), "draw_noise": (2, 2, 4, 8, 8), "draw_noise_cls": (2, 2, 20)},
        {"samples": (2, 4, 8, 8), "x_at_call": (3, 2, 4, 8, 8), "cls_at_call": (3, 2, 20), "t_at_call": (3,)},
    ),
    "LightningDiT without rope": Variant(
        "gmem/forward_eval",
        {**SMALL_DIT, "condition_size": 20},
        {"x": (2, 8, 6, 6), "t": (2,), "c": (2, 20)},
        {"image_out": (2, 8, 6, 6), "z_tilde": (2, 9, 24), **HIDDEN},
    ),
    "LightningDiT's guidance": Variant(
        "gmem/forward_with_cfg",
        {**SMALL_DIT, "t": [0.2, 0.95], "cfg_scale": 2.0},
        {"c": (2, 20)},
        {"out_0": (4, 8, 6, 6), "out_1": (4, 8, 6, 6)},
    ),
    "LightningDiT's norms": Variant(
        "gmem/norm_eps", SMALL_DIT, {"tokens": (2, 36, 32), "c": (2, 32)},
        {"block0_out": (2, 36, 32), "final_out": (2, 36, 8)},
    ),
    "GMem's loss without cosine": Variant(
        "gmem/transport_loss_uniform",
        {**SMALL_DIT, "use_cosine_loss": False, "projector": "12 out, 40 wide"},
        {"c": (2, 20), "keep_mask": (2, 20), "z_target": (2, 16, 12)},
        {"loss": (2,), "proj_loss": (), "pred": (2, 8, 4, 4), "grad.projector.0.0.bias": (16,)},
    ),
    "GMem's SDE with a Tweedie last step": Variant(
        "gmem/sampler_sde_euler_decreasing",
        {**SMALL_DIT, "last_step": "Tweedie", "num_steps": 4},
        {"c": (2, 20), "draw_noise": (3, 2, 8, 6, 6)},
        {"samples": (2, 8, 6, 6), "t_grid_calls": (7,)},
    ),
    "GMem's SDE with an Euler last step, by Heun": Variant(
        "gmem/sampler_sde_heun",
        {**SMALL_DIT, "last_step": "Euler", "num_steps": 3},
        {"c": (2, 20), "draw_noise": (2, 2, 8, 6, 6)},
        {"samples": (2, 8, 6, 6), "t_grid_calls": (9,)},
    ),
    "ERW's forward": Variant(
        "erw/forward_stage2_qknorm",
        {**SIT, "use_rope": True, "z_dims": [8]},
        {},
        {"image_out": (2, 4, 16, 16), "zs_0": (2, 16, 8), "hidden_2": (2, 16, 32)},
    ),
    "ERW's stub": Variant(
        "erw/forward_stage1",
        {**SIT, "trainable_depth": 1, "z_dims": [8, 12]},
        {},
        {"zs_0": (3, 16, 8), "zs_1": (3, 16, 12), "hidden_1": (3, 16, 32)},
    ),
    "ERW's loss": Variant(
        "erw/loss_full",
        {**SIT, "z_dims": [8, 12], "model_name_for_c0": "SiT-B/2"},
        {"zs_target_0": (3, 16, 8), "zs_target_1": (3, 16, 12)},
        {"denoising_loss": (3,), "proj_loss": (), "coefficient": (), "grad.projectors.1.4.weight": (12, 16)},
    ),
    "ERW's variant of CKNNA": Variant(
        "erw/cknna", {}, {"A": (40, 12), "B": (40, 8)},
        {"unbiased_k7": (), "platonic_biased_k3": (), "self_unbiased": ()},
    ),
    "HASTE's forward": Variant(
        "haste/sit_forward_a",
        {**SIT, "encoder_depth": 2, "z_dims": [8, 12]},
        {"x": (1, 4, 16, 16), "t": (1,), "y": (1,)},
        {"velocity": (1, 4, 16, 16), "attn_logits": (2, 1, 2, 64, 64), "z0": (1, 64, 8), "z1": (1, 64, 12)},
    ),
    "HASTE's loss at a depth without published layers": Variant(
        "haste/loss_phase1_linear_h4",
        {"depth": 10, "encoder_depth": 9, "hidden_size": 32, "num_heads": 2, "projector_dim": 16},
        {},
        {"denoising_loss": (2,), "attn_loss_per_pair": (4,), "student_logits_sub": (9, 2, 2, 8, 8), "grad": (96, 32)},
        {"grad_norm_names": []},
    ),
    "HASTE's loss at SiT-B's depth": Variant(
        "haste/loss_phase1_linear_h4",
        {"depth": 6, "encoder_depth": 5, "hidden_size": 32, "num_heads": 2, "projector_dim": 16},
        {},
        {"attn_loss": (), "attn_loss_per_pair": (3,), "student_logits_sub": (5, 2, 2, 8, 8)},
        {"grad_norm_names": [], "grad_of": "blocks.0.attn.qkv.weight"},
    ),
    "HASTE's teacher": Variant(
        "haste/dinov2_attn_a",
        {"img_size": 42, "embed_dim": 32, "depth": 3, "num_heads": 2},
        {"image": (1, 3, 42, 42)},
        {"x_norm_patchtokens": (1, 9, 32), "x_norm_clstoken": (1, 32), "attn_act": (3, 1, 2, 9, 9)},
    ),
    "U-DiT": Variant(
        "u-repa/udit_forward_vanilla",
        {"hidden_size": 16, "depth": [1, 1, 2, 1, 1], "learn_sigma": False, "cfg_scale": 3.0, "num_classes": 7},
        {"x": (1, 4, 16, 16), "t": (1,), "y": (1,)},
        {"out": (1, 4, 16, 16), "out_cfg": (2, 4, 16, 16), "feat_latent": (1, 64, 4, 4)},
    ),
    "soft tokens of other sizes": Variant(
        "softrepa/sd3_tokens_direct",
        {"SD3Transformer2DModel/num_layers": 2, "dc_tokens_shape": [1, 3, 64], "use_dc_t": False},
        {},
        {"v": (3, 4, 8, 8), "v_no_tokens": (3, 4, 8, 8), "context_in_0": (3, 8, 64), "context_in_1": (3, 5, 64)},
    ),
    "FlowEdit of two images": Variant(
        "softrepa/sd3_flowedit",
        {"NFE": 4, "n_start": 2, "scheduler": "FlowMatchEulerDiscreteScheduler(shift=1.5)"},
        {
            "src_latent": (2, 4, 8, 8), "noises": (2, 2, 4, 8, 8),
            **{f"{k}_embs": (2, 5, 48) for k in BRANCHES}, **{f"{k}_pooled": (2, 32) for k in BRANCHES},
        },
        {"z_edit": (2, 4, 8, 8), "z_edit_usual_cfg": (2, 4, 8, 8)},
    ),
    "a step of soft tokens without time offsets": Variant(
        "softrepa/sd3_train_step",
        {"use_dc_t": False, "temp": 1.0},
        {},
        {"errors": (3, 3), "grad_dc_tokens": (2, 2, 64), "dc_tokens_delta_after_adamw": (2, 2, 64)},
    ),
    "RePaViT": Variant(
        "repavit/vit_idle075",
        {"depth": 2, "embed_dim": 32, "params_training_form": GONE, "params_reparam_form": GONE},
        {"x": (1, 3, 32, 32)},
        {"logits": (1, 10), "tokens_block1": (1, 17, 32), "tokens_reparam": (1, 17, 32)},
    ),
    "kernel distances with other subsets": Variant(
        "evaluation/kid",
        {
            "tf": "subsets 5, size 20, RandomState(3); poly2: degree 3, gamma 0.1, coef0 1, seed 2",
            "dgm": "np.random.seed(4) then compute_mmd(real,fake,6,30): draws real first, then fake",
        },
        {"real": (50, 6), "fake": (60, 6)},
        {"out_tf_poly_mean": (), "out_tf_rbf4_std": (), "out_dgm_all": (6,), "out_mmd2_full_ustatistic": ()},
    ),
    "CKA in other batches": Variant(
        "evaluation/cka",
        {"batches": "2 consecutive batches of 20"},
        {"x": (40, 6), "y": (40, 8), "z": (40, 5), "tokens": (40, 3, 4)},
        {"out_ckatorch_batch_xy_2x20": (), "out_calculator_matrix": (3, 3)},
    ),
    "CCA with another threshold": Variant(
        "evaluation/cca_procrustes_rsa", {"svcca threshold": 0.9}, {"x": (60, 6), "y": (60, 9)},
        {"out_svcca_90": (), "out_svcca_4": (), "out_cca_coefs": (6,)},
    ),
    "balls of ten neighbours": Variant(
        "evaluation/prdc", {}, {"real": (60, 6), "fake": (50, 6)},
        {"out_prdc_k10_density": (), "out_dgm_k10_realism": (50,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_case_of_another_size_runs_through(name: str) -> None:
    variant = VARIANTS[name]
    case, arrays = made(variant)
    got = find(case["system"], case["kind"]).run(case, arrays)
    assert {output: got[output].shape for output in variant.outputs} == dict(variant.outputs)


def test_a_guided_forward_takes_its_scale_from_the_words_of_the_case() -> None:
    outputs = {}
    for scale in ("2.5", "1.0"):
        meaning = f"forward_with_cfg(x2, t2, y_cfg, {scale}): only channels 0..2 are guided"
        case, arrays = made(
            Variant("sit/sit_forward", outputs={"out_cfg": ()}, json={"outputs/out_cfg/meaning": meaning})
        )
        outputs[scale] = find("sit", "forward").run(case, arrays)["out_cfg"]
    published = load("sit/sit_forward")[1]["out_cfg"]
    np.testing.assert_allclose(outputs["2.5"], published, atol=1e-5)
    assert np.abs(outputs["1.0"] - published).max() > 1e-3


def test_transfer_without_rope_and_with_it_in_both_stages() -> None:
    for rope in ((False, False), (True, True)):
        case = copy.deepcopy(load("erw/transfer_stage1_to_stage2")[0])
        for stage, used in zip(("stage1", "stage2"), rope, strict=True):
            case[stage]["use_rope"] = used
        copied, missing = find("erw", "transfer").run(case, {}).values()
        assert not set(copied) & set(missing)
        assert ("feat_rope.freqs_cos" in {*copied, *missing}) is rope[1]
        assert "blocks.3.attn.qkv.weight" in missing


def test_a_teacher_of_another_width() -> None:
    case, arrays = load("encoders/dinov2_vits14__256")
    case = copy.deepcopy(case)
    scale = {384 * k: 768 * k for k in (1, 3, 4)}
    case["state_dict"] = {name: [scale.get(side, side) for side in shape] for name, shape in case["state_dict"].items()}
    case["config"] |= {"model": "dinov2_vitb14", "patch_token_stride": 32}
    got = find("encoders", "teacher").run(case, {"image": arrays["image"]})
    assert (got["patch_tokens"].shape, got["cls_token"].shape) == ((1, 8, 768), (1, 768))


# names of arrays that change with the input's size, the teachers and the classes: (case, field, {name: shape})
LARGER: dict[str, dict[str, list[int]]] = {
    "repa/state_dict_SiT-B-2": {"pos_embed": [1, 1024, 768], "y_embedder.embedding_table.weight": [101, 768]},
    "repa/state_dict_MMDiT-t2i": {"projectors.0.4.weight": [384, 2048], "projectors.0.4.bias": [384]},
    "sit/state_dict_SiT-XL-2": {"pos_embed": [1, 1024, 1152]},
    "dit/state_dict_DiT-XL-2": {"y_embedder.embedding_table.weight": [11, 1152]},
    "gmem/state_dict_LightningDiT-B-1": {"condition_projection.linear.weight": [768, 1024]},
    "u-repa/state_dict_U-DiT-S": {f"y_embedder_{k}.embedding_table.weight": [11, 96 * 2 ** (k - 1)] for k in (1, 2, 3)},
}


@pytest.mark.parametrize("name", LARGER)
def test_names_and_shapes_of_other_sizes(name: str) -> None:
    case = copy.deepcopy(load(name)[0])
    assert set(LARGER[name]) <= set(case["state_dict"])
    case["state_dict"] |= LARGER[name]
    runner = find(case["system"], case["kind"])
    assert compare.problems(case["tol"], compare.expected(case, {}, runner), runner.run(case, {})) == []


def test_names_and_shapes_of_the_config_win() -> None:
    case = copy.deepcopy(load("reg/state_dict_SiT-B-2")[0])
    case["config"]["input_size"] = 64
    got = find("reg", "state_dict").run(case, {})
    assert got["state_dict:pos_embed"].tolist() == [1, 1025, 768]


def test_soft_tokens_of_other_counts() -> None:
    case = copy.deepcopy(load("softrepa/state_dict_SD3Transformer2DModel_DC")[0])
    case["state_dict"] |= {"dc_tokens": [3, 6, 4096], "dc_t_tokens.weight": [100, 3 * 1536]}
    runner = find("softrepa", "state_dict")
    assert compare.problems(case["tol"], compare.expected(case, {}, runner), runner.run(case, {})) == []
