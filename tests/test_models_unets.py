"""The U-Nets, LightningDiT, MMDiT and the soft tokens of SD3: what the golden cases do not see."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import wake
from repa_eval.config import from_dict
from repa_eval.diffusion.conventions import EPSILON, REVERSED, VELOCITY
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import MODELS, find_preset
from repa_eval.models.mmdit import MMDiT
from repa_eval.models.shared.axial_rotary import axial_angles, axial_rotation
from repa_eval.models.shared.blocks import SwiGLU, unpatchify
from repa_eval.models.shared.layers import Attention
from repa_eval.models.shared.soft_tokens import SoftTokens, build_sd3
from repa_eval.models.shared.udit_blocks import HIGHEST_LOGIT_SCALE, BranchedMlp, SubGridAttention, modulated_norm
from repa_eval.models.sit_down import SiTDown, SiTDownConfig, upsample_tokens
from repa_eval.models.udit import UDiT
from repa_eval.runtime.hashing import digest_module

# name -> arguments of a small network, and the width of its conditions (None: labels)
SMALL: dict[str, dict[str, Any]] = {
    "LightningDiT": {"input_size": 8, "patch_size": 2, "in_channels": 1, "hidden_size": 32, "depth": 3, "num_heads": 2,
                     "condition_size": 24, "z_dims": [12], "projector_dim": 16},
    "MMDiT": {"input_size": 8, "in_channels": 1, "hidden_size": 32, "depth": 3, "num_heads": 2, "context_size": 24,
              "z_dims": [12], "projector_dim": 16},
    "SiT-down": {"input_size": 8, "in_channels": 1, "hidden_size": 32, "stages": [2, 1, 2], "num_heads": 2,
                 "num_classes": 10, "z_dims": [12], "projector_dim": 16},
    "U-DiT": {"input_size": 16, "in_channels": 1, "hidden_size": 16, "depth": [1, 1, 2, 1, 1], "num_heads": 2,
              "num_classes": 10},
}  # fmt: skip
NAMES = list(SMALL)
SIZES = [size for name in NAMES for size in MODELS.get(name).presets]


def small(name: str, **changes: Any) -> Any:
    architecture = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.build(from_dict(architecture.defaults, {**SMALL[name], **changes})).eval()
    wake(model)
    return model


def batch(model: nn.Module, count: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and the condition that this architecture takes."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    x = torch.randn(count, config.in_channels, config.input_size, config.input_size, generator=generator)
    t = torch.linspace(0.1, 0.9, count)
    if isinstance(model, UDiT):
        t = (999 * t).long()
    if isinstance(model, MMDiT):
        return x, t, torch.randn(count, 5, config.context_size, generator=generator)
    if hasattr(config, "condition_size"):
        return x, t, F.normalize(torch.randn(count, config.condition_size, generator=generator), dim=1)
    return x, t, torch.arange(count) % 11


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def on_meta(name: str, config: Any) -> nn.Module:
    with torch.device("meta"):
        return MODELS.get(name).build(config)


# --- what holds for all of them


@pytest.mark.parametrize("size", SIZES)
def test_arguments_are_read_off_names_and_shapes(size: str) -> None:
    architecture, config = find_preset(size)
    if hasattr(config, "z_dims"):
        config = dataclasses.replace(config, z_dims=(768,))
    shapes = shapes_of(on_meta(architecture.name, config))
    told = {name: read for name, each in MODELS.items() if each.read and (read := each.read(shapes)) is not None}
    assert list(told) == [architecture.name]
    assert {key: getattr(config, key) for key in told[architecture.name]} == told[architecture.name]
    rebuilt = on_meta(architecture.name, dataclasses.replace(config, **told[architecture.name]))
    assert shapes_of(rebuilt) == shapes


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("LightningDiT", {"use_qknorm": True, "use_swiglu": False, "use_rmsnorm": False, "wo_shift": True}),
        ("LightningDiT", {"use_rope": False, "mlp_ratio": 3.7, "z_dims": []}),
        ("LightningDiT", {"mlp_ratio": 2.5, "use_swiglu": False}),
        ("MMDiT", {"qk_norm": "rms"}),
        ("MMDiT", {"qk_norm": "ln", "mlp_ratio": 2.0, "z_dims": []}),
        ("SiT-down", {"z_dims": [], "patch_size": 1}),
        ("U-DiT", {"ffn_type": "basic", "rep": 0, "attn_type": None, "downsampler": "dwconv3", "mlp_ratio": 4.0}),
        ("U-DiT", {"learn_sigma": False, "posemb_type": None, "down_shortcut": 0}),
    ],
)
def test_options_are_read_off_names_and_shapes(name: str, changes: dict[str, Any]) -> None:
    architecture = MODELS.get(name)
    config = from_dict(architecture.defaults, {**SMALL[name], **changes})
    shapes = shapes_of(on_meta(name, config))
    told = architecture.read(shapes)
    assert told is not None
    assert shapes_of(on_meta(name, dataclasses.replace(config, **told))) == shapes
    # the ratio of a SwiGLU is one of many of the same width
    assert {key: getattr(config, key) for key in told if key != "mlp_ratio"} == {
        key: value for key, value in told.items() if key != "mlp_ratio"
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_network_without_memory_takes_weights_by_assignment(name: str) -> None:
    model = small(name)
    empty = on_meta(name, model.config).eval()
    empty.load_state_dict(model.state_dict(), strict=True, assign=True)
    assert not [key for key, value in (*empty.named_parameters(), *empty.named_buffers()) if value.is_meta]
    assert torch.equal(empty(*batch(model))[0], model(*batch(model))[0])


@pytest.mark.parametrize("name", NAMES)
def test_taps_are_outputs_of_blocks_and_cost_nothing(name: str) -> None:
    model = small(name)
    given = batch(model)
    kinds = {"UDiTBlock", "JointBlock"} if name in ("U-DiT", "MMDiT") else {"Block"}
    seen: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _m, _g, made: seen.append(made[0] if isinstance(made, tuple) else made))
        for module in model.modules()
        if type(module).__name__ in kinds
    ]
    if name == "MMDiT":
        assert len(hooks) == model.depth
    expected, nothing = model(*given)
    assert nothing == {}
    for hook in hooks:
        hook.remove()
    output, hidden = model(*given, taps=range(model.depth + 1))
    assert torch.equal(output, expected)
    assert expected.abs().max() > 0.01
    assert set(hidden) == set(range(model.depth + 1))
    assert len(seen) == model.depth
    for layer, made in enumerate(seen, 1):
        assert torch.equal(hidden[layer], made.flatten(2).transpose(1, 2) if made.ndim == 4 else made)
    assert len({state.sum().item() for state in hidden.values()}) == model.depth + 1


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = small(name).train()
    output, hidden = model(*batch(model), taps=(model.depth, 3))
    loss = output.square().mean() + sum(head(hidden[3]).square().mean() for head in model.projectors)
    loss.backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == ([] if name in ("MMDiT", "U-DiT") else ["pos_embed"])


@pytest.mark.parametrize("name", NAMES)
def test_every_input_changes_the_output_and_images_do_not_mix(name: str) -> None:
    model = small(name)
    x, t, y = batch(model)
    with torch.no_grad():
        base, _ = model(x, t, y)
        other = (y + 1) % 11 if not y.is_floating_point() else y.flip(0)
        later = t + 50 if not t.is_floating_point() else t + 0.05
        for changed in ((x + 0.1, t, y), (x, later, y), (x, t, other)):
            assert not torch.allclose(model(*changed)[0], base, atol=1e-5)
        alone, _ = model(x[:1], t[:1], y[:1])
    torch.testing.assert_close(alone, base[:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_tables_survive_inference_mode(name: str) -> None:
    model = small(name)
    given = batch(model)
    with torch.inference_mode():
        first, _ = model(*given)
    output, _ = model(*given)
    output.sum().backward()
    assert torch.equal(output, first)


def test_native_conventions() -> None:
    found = {name: small(name).native for name in NAMES}
    assert found == {"LightningDiT": REVERSED, "MMDiT": VELOCITY, "SiT-down": VELOCITY, "U-DiT": EPSILON}


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_one_as_published(name: str) -> None:
    architecture = MODELS.get(name)
    model = architecture.build(from_dict(architecture.defaults, SMALL[name]))
    output, _ = model(*batch(model))
    assert bool(output.any()) == (name in ("LightningDiT", "MMDiT"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("LightningDiT", {"patch_size": 3}, "patch_size 3 does not divide the latent's side 8"),
        ("LightningDiT", {"num_heads": 5}, "hidden_size 32 is not a multiple of num_heads 5"),
        ("MMDiT", {"patch_size": 3}, "patch_size 3 does not divide the latent's side 8"),
        ("MMDiT", {"qk_norm": "batch"}, "qk_norm: 'batch' is not allowed; choose one of"),
        ("SiT-down", {"stages": [2, 1, 1]}, r"stages \[2, 1, 1\]: every block after the middle takes one from before"),
        ("SiT-down", {"stages": [2, 2]}, r"stages \[2, 2\]: SiT-down has three of at least one block each"),
        ("SiT-down", {"input_size": 6}, "input_size 6 is not a multiple of 4"),
        ("U-DiT", {"depth": [1, 1, 1]}, r"depth \[1, 1, 1\]: U-DiT has 5 stages"),
        ("U-DiT", {"input_size": 12}, "input_size 12 is not a multiple of 8"),
        ("U-DiT", {"rep": 0}, "rep 0: ffn_type rep has its branches"),
        ("U-DiT", {"num_heads": 3}, "hidden_size 16 is not a multiple of num_heads 3"),
        ("U-DiT", {"num_heads": 8}, "a head's width 2 is not a multiple of 4"),
        ("SiT-down", {"num_heads": 16}, "a head's width 2 is not a multiple of 4"),
        ("LightningDiT", {"num_heads": 16}, "a head's width 2 is not a multiple of 4"),
        ("U-DiT", {"attn_type": "v3"}, "attn_type: 'v3' is not allowed; choose one of v2, None"),
    ],
)
def test_what_cannot_be_built_says_why(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        small(name, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_tap_that_does_not_exist(name: str) -> None:
    model = small(name)
    for layer in (-1, model.depth + 1):
        with pytest.raises(UserError, match=rf"layer {layer}: this model has blocks 1\.\.{model.depth}"):
            model(*batch(model), taps=(layer,))


# --- shared parts


def test_axial_positions_alternate_between_the_axes() -> None:
    angles = axial_angles(8, 2, 3)  # two frequencies an axis
    for n in range(6):
        x, y = n % 3, n // 3
        pairs = [x, y, x * 10000**-0.5, y * 10000**-0.5]
        assert angles[n].tolist() == pytest.approx([angle for angle in pairs for _ in range(2)])
    with pytest.raises(UserError, match="a head's width 6 is not a multiple of 4"):
        axial_angles(6, 2, 2)


def test_rotation_keeps_lengths_and_depends_on_distances_alone() -> None:
    rotate = axial_rotation(8, 4, 4, torch.device("cpu"))
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(q.expand(16, 8)), rotate(k.expand(16, 8))
    torch.testing.assert_close(turned[0].norm(dim=1), q.norm().expand(16))
    products = (turned[0] @ turned[1].T).reshape(4, 4, 4, 4)  # y, x of the query, y, x of the key
    torch.testing.assert_close(products[1, 2, 2, 0], products[2, 3, 3, 1])
    assert not torch.isclose(products[1, 2, 2, 0], products[2, 0, 1, 2])
    assert rotate(q.half().expand(16, 8)).dtype == torch.float16


def test_swiglu_gates_by_its_first_half() -> None:
    mlp = SwiGLU(4, 6, bias=False)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    gate, value = x @ mlp.w12.weight[:6].T, x @ mlp.w12.weight[6:].T
    torch.testing.assert_close(mlp(x), (gate * gate.sigmoid() * value) @ mlp.w3.weight.T)
    assert set(mlp.state_dict()) == {"w12.weight", "w3.weight"}


def test_patches_of_a_rectangle() -> None:
    x = torch.arange(2 * 3 * 4 * 8.0).reshape(2, 3, 4, 8)
    patches = x.reshape(2, 3, 2, 2, 4, 2).permute(0, 2, 4, 3, 5, 1).reshape(2, 8, 12)  # (B, rows columns, p p C)
    assert torch.equal(unpatchify(patches, 2, grid=(2, 4)), x)


# --- LightningDiT


def test_lightning_dit_starts_open() -> None:
    architecture = MODELS.get("LightningDiT")
    model = architecture.build(from_dict(architecture.defaults, SMALL["LightningDiT"]))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # SiT closes adaLN and the last layer; here they are xavier as the others are
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert not module.bias.any(), name
            if "t_embedder" not in name:
                assert 0.8 * bound < float(module.weight.detach().abs().max()) <= bound, name
    assert float(model.t_embedder.mlp[0].weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_constants_of_lightning_dits_norms() -> None:
    plain = small("LightningDiT", use_rmsnorm=False, use_qknorm=True).blocks[0]
    assert [norm.eps for norm in (plain.norm1, plain.norm2, plain.attn.q_norm, plain.attn.k_norm)] == [1e-6] * 2 + [
        1e-5
    ] * 2
    assert plain.norm1.weight is None
    rms = small("LightningDiT", use_qknorm=True).blocks[0]
    assert {norm.eps for norm in (rms.norm1, rms.norm2, rms.attn.q_norm, rms.attn.k_norm)} == {1e-6}
    assert {type(norm) for norm in (rms.norm1, rms.attn.q_norm)} == {nn.RMSNorm}


def test_dropped_entries_of_a_snippet() -> None:
    model = small("LightningDiT")
    x, t, y = batch(model)
    keep = (torch.rand(y.shape, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    assert torch.equal(model(x, t, y, keep=keep)[0], model(x, t, y * keep / 0.6)[0])
    assert torch.equal(model.train()(x, t, y)[0], model.eval()(x, t, y)[0])  # nothing is drawn inside


def test_the_null_snippet_and_the_projectors() -> None:
    model = small("LightningDiT")
    zeros = model.null_condition(3)
    assert zeros.shape == (3, 24)
    assert not zeros.any()
    bias = model.condition_projection.linear.bias
    torch.testing.assert_close(model.condition_projection(zeros), bias.expand(3, -1))
    assert model.projectors is model.projector
    with pytest.raises(UserError, match="memory snippets, not on labels"):
        _ = model.null_label
    assert next(key for key in model.state_dict() if "projector" in key) == "projector.0.0.weight"


# --- MMDiT


@pytest.mark.parametrize(("qk_norm", "names"), [("", set()), ("rms", {"weight"}), ("ln", {"weight", "bias"})])
def test_norms_of_queries_and_keys(qk_norm: str, names: set[str]) -> None:
    model = small("MMDiT", qk_norm=qk_norm)
    for stream in ("context_block", "x_block"):
        for norm in ("ln_q", "ln_k"):  # in the last block of the text too
            found = [key for key in model.state_dict() if f".{stream}.attn.{norm}." in key]
            assert {key.rpartition(".")[2] for key in found} == names
            assert len(found) == 3 * len(names)
    attn = model.joint_blocks[0].x_block.attn
    x = 1e-3 * torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))  # so small that eps shows
    raw, _, v = Attention.heads(attn, x)
    q, _, same = attn.heads(x)
    assert torch.equal(v, same)
    if qk_norm == "rms":
        expected = raw / (raw.square().mean(-1, keepdim=True) + 1e-6).sqrt() * attn.ln_q.weight
    elif qk_norm == "ln":
        centred = raw - raw.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        expected = scaled * attn.ln_q.weight + attn.ln_q.bias
    else:
        expected = raw
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-6)


def test_logits_between_image_tokens() -> None:
    model = small("MMDiT", qk_norm="ln")
    x, t, y = batch(model)
    output, hidden = model(x, t, y, taps=(1,), attention=(2, 3))
    assert set(hidden) == {1, ("attention", 2), ("attention", 3)}
    assert torch.equal(output, model(x, t, y)[0])
    block = model.joint_blocks[1].x_block
    shift, scale, *_ = block.chunks(model.t_embedder(t))
    q, k, _ = block.attn.heads(block.norm1(hidden[1]) * (1 + scale[:, None]) + shift[:, None])
    expected = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(16)
    torch.testing.assert_close(hidden["attention", 2], expected, rtol=1e-5, atol=1e-5)


def test_smaller_images_take_the_centre_of_the_positions() -> None:
    model = small("MMDiT", input_size=16)
    table = model.pos_embed.reshape(8, 8, 32)
    torch.testing.assert_close(model.positions(4, 4)[0].reshape(4, 4, 32), table[2:6, 2:6])
    torch.testing.assert_close(model.positions(3, 8)[0].reshape(3, 8, 32), table[2:5])
    x, t, y = batch(small("MMDiT"))
    output, hidden = model(x[..., :4, :], t, y, taps=(0,))  # a rectangle
    assert output.shape == (2, 1, 4, 8)
    assert hidden[0].shape == (2, 8, 32)
    with pytest.raises(UserError, match="9x2 patches: this model has positions for 8x8"):
        model.positions(9, 2)
    assert "pos_embed" not in dict(model.named_parameters())


def test_text_has_no_order_and_no_null() -> None:
    model = small("MMDiT")
    x, t, y = batch(model)
    torch.testing.assert_close(model(x, t, y.flip(1))[0], model(x, t, y)[0], rtol=0, atol=1e-5)
    with pytest.raises(UserError, match="empty prompt: set null_context"):
        model.null_condition(2)
    with pytest.raises(UserError, match="text, not on labels"):
        _ = model.null_label
    model.null_context = torch.ones(7, 24)
    assert torch.equal(model.null_condition(2), torch.ones(2, 7, 24))


# --- U-DiT


def test_eval_changes_nothing_and_merging_makes_new_tensors() -> None:
    model = small("U-DiT")
    before, given = digest_module(model), batch(model)
    expected, _ = model.train()(*given)
    for _ in range(3):
        model.eval()
        merged = model.merged().eval()
    assert digest_module(model) == before
    assert torch.equal(model(*given)[0], expected)
    torch.testing.assert_close(merged(*given)[0], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged.merged()(*given)[0], merged(*given)[0], rtol=0, atol=0)
    assert not any(part.requires_grad for part in merged.encoder_level_1[0].mlp1.parameters())
    drawn = torch.random.get_rng_state()
    model.merged()
    assert torch.equal(torch.random.get_rng_state(), drawn)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in merged.parameters()}
    assert not [module for module in merged.modules() if isinstance(module, BranchedMlp)]
    with torch.no_grad():
        for parameter in merged.parameters():
            parameter.zero_()
    assert digest_module(model) == before


@pytest.mark.parametrize(("size", "millions"), [("U-DiT-S", 52.05), ("U-DiT-B", 204.43), ("U-DiT-L", 810.19)])
def test_merged_sizes_are_those_of_the_paper(size: str, millions: float) -> None:
    architecture, config = find_preset(size)
    merged = on_meta(architecture.name, config).merged()
    assert sum(parameter.numel() for parameter in merged.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("offset", "reached"), [((0, 0), (0, 0)), ((1, 0), (1, 0)), ((0, 1), (0, 1)), ((3, 2), (1, 0))]
)
def test_a_pixel_attends_to_its_own_sub_grid(offset: tuple[int, int], reached: tuple[int, int]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attention = SubGridAttention(8, 2, down_factor=2, side=3, shortcut=True, cosine=True, rope=True)
    with torch.no_grad():
        attention.downsampler.layer.weight.zero_()  # which would mix neighbours
        x = torch.randn(1, 8, 8, 12, generator=torch.Generator().manual_seed(0))
        moved = x.clone()
        moved[:, :, offset[0], offset[1]] += torch.linspace(0, 9, 8)
        changed = (attention(moved) - attention(x)).abs().amax(1)[0] > 1e-7
    expected = torch.zeros(8, 12, dtype=torch.bool)
    expected[reached[0] :: 2, reached[1] :: 2] = True
    assert torch.equal(changed, expected)


def test_the_scale_of_cosine_attention() -> None:
    attention = SubGridAttention(8, 2, down_factor=1, side=3, shortcut=False, cosine=True, rope=False)
    assert attention.logit_scale.shape == (2, 1, 1)
    assert attention.logit_scale.detach().exp().flatten().tolist() == pytest.approx([10.0, 10.0])
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attention.logit_scale.copy_(torch.tensor([1.0, 9.0])[:, None, None])  # the second is too large
        cosines = F.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1)
        expected = (cosines * torch.tensor([math.e, 100.0])[:, None, None]).softmax(-1) @ v
        torch.testing.assert_close(attention._mix(q, k, v), expected, rtol=1e-4, atol=1e-5)
    assert math.exp(HIGHEST_LOGIT_SCALE) == pytest.approx(100)


def test_the_norm_of_maps() -> None:
    x = 1e-3 * torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))  # so small that eps shows
    shift, scale = torch.full((2, 8, 1, 1), 0.5), torch.full((2, 8, 1, 1), 0.25)
    variance, mean = torch.var_mean(x, dim=1, keepdim=True, correction=0)
    expected = (x - mean) / (variance + 1e-6).sqrt() * 1.25 + 0.5
    torch.testing.assert_close(modulated_norm(x, shift, scale), expected, rtol=1e-5, atol=1e-6)


def test_layers_of_udit_and_their_grids() -> None:
    model = small("U-DiT")
    assert model.depth == 6
    assert [model.stage(layer) for layer in range(7)] == [0, 0, 1, 2, 2, 3, 4]
    assert [model.grid(layer) for layer in range(7)] == [(s, s) for s in (16, 16, 8, 4, 4, 8, 16)]
    _, hidden = model(*batch(model), taps=range(7))
    assert [hidden[layer].shape[1:] for layer in range(7)] == [
        (256, 16), (256, 16), (64, 32), (16, 64), (16, 64), (64, 32), (256, 32),
    ]  # fmt: skip
    x, t, y = batch(model)
    assert model(x[..., :8], t, y)[0].shape == (2, 2, 16, 8)
    with pytest.raises(UserError, match="the input's side 12 is not a multiple of 8"):
        model(x[..., :12], t, y)


# --- SiT-down


def test_sit_down_step_by_step() -> None:
    model = small("SiT-down")
    x, t, y = batch(model)
    velocity, hidden = model(x, t, y, taps=range(6))
    outer = model.t_embedder_1(t) + model.y_embedder_1(y)
    middle = model.t_embedder_2(t) + model.y_embedder_2(y)
    rotate = {side: axial_rotation(16, side, side, x.device) for side in (4, 2)}
    embedded = model.x_embedder(x) + model.pos_embed
    first = model.encoder_blocks[0](embedded, outer, rotate[4])
    second = model.encoder_blocks[1](first, outer, rotate[4])
    maps = second.transpose(1, 2).reshape(2, 32, 4, 4)
    maps = F.pixel_unshuffle(F.conv2d(maps, model.down.body[0].weight, padding=1), 2)
    third = model.middle_blocks[0](maps.reshape(2, 32, 4).transpose(1, 2), middle, rotate[2])
    maps = third.transpose(1, 2).reshape(2, 32, 2, 2)
    maps = F.pixel_shuffle(F.conv2d(maps, model.up.body[0].weight, padding=1), 2)
    tokens = maps.reshape(2, 32, 16).transpose(1, 2)
    # the last that went in comes out first
    fourth = model.decoder_blocks[0](model.skip_linears[0](torch.cat([tokens, second], -1)), outer, rotate[4])
    fifth = model.decoder_blocks[1](model.skip_linears[1](torch.cat([fourth, first], -1)), outer, rotate[4])
    for layer, expected in enumerate((embedded, first, second, third, fourth, fifth)):
        torch.testing.assert_close(hidden[layer], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(velocity, unpatchify(model.final_layer(fifth, outer), 2), rtol=1e-5, atol=1e-6)


def test_middle_and_grids_of_sit_down() -> None:
    model = small("SiT-down")
    assert model.middle == range(3, 4)
    assert [model.grid(layer) for layer in range(6)] == [(s, s) for s in (4, 4, 4, 2, 4, 4)]
    assert model.depth == model.config.depth == 5
    xl = find_preset("SiT-down-XL/2")[1]
    with torch.device("meta"):
        assert SiTDown(xl).middle == range(11, 27)  # the paper aligns 18 of 36
    assert [find_preset(f"SiT-down-{size}")[1].mlp_width for size in ("B/2", "L/2", "XL/2")] == [2048, 2816, 3072]
    assert SiTDownConfig(hidden_size=32).mlp_width == 256
    digits = find_preset("SiT-down-digits/2")[1]
    assert SiTDown(digits).middle == range(3, 5)


def test_upsampled_tokens_lie_on_the_finer_grid() -> None:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    tokens = torch.stack([rows.flatten(), columns.flatten(), torch.ones(24)], dim=1)[None]  # (1, N, D)
    fine = upsample_tokens(tokens, (4, 6))[0].reshape(8, 12, 3)
    # the middle of a new pixel lies a quarter of an old one beside the old middle; the rim repeats
    expected_row = ((torch.arange(8) - 0.5) / 2).clamp(0, 3)
    expected_column = ((torch.arange(12) - 0.5) / 2).clamp(0, 5)
    torch.testing.assert_close(fine[:, 0, 0], expected_row)
    torch.testing.assert_close(fine[0, :, 1], expected_column)
    assert torch.equal(fine[..., 2], torch.ones(8, 12))


# --- soft tokens of SD3

SD3 = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 3, "attention_head_dim": 16,
    "num_attention_heads": 4, "joint_attention_dim": 48, "caption_projection_dim": 64, "pooled_projection_dim": 32,
    "out_channels": 4, "pos_embed_max_size": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def sd3() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = build_sd3(SD3)
    wake(base)
    return base


def sd3_batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(2)
    x, text, pooled = (torch.randn(size, generator=g) for size in ((2, 4, 8, 8), (2, 5, 48), (2, 32)))
    return x, torch.tensor([500.0, 1000.0]), text, pooled


def test_soft_tokens_train_and_the_network_does_not(sd3: nn.Module) -> None:
    model = SoftTokens(sd3, num_tokens=2, num_layers=2)
    assert {key for key, p in model.named_parameters() if p.requires_grad} == {"dc_tokens", "dc_t_tokens.weight"}
    velocity, hidden = model(*sd3_batch(), taps=(1, 3), contexts=(1, 2, 3))
    velocity.square().mean().backward()
    assert model.dc_tokens.grad is not None
    assert bool(model.dc_tokens.grad.flatten(1).any(dim=1).all())
    assert hidden[1].shape == hidden[3].shape == (2, 16, 64)
    assert [hidden["context", layer].shape[1] for layer in (1, 2, 3)] == [7, 7, 5]
    assert not torch.equal(velocity, model(*sd3_batch(), tokens=False)[0])


def test_hooks_live_for_one_forward(sd3: nn.Module) -> None:
    model = SoftTokens(sd3, num_tokens=2, num_layers=2)
    x, t, text, pooled = sd3_batch()
    with pytest.raises(RuntimeError, match="shape"):
        model(x, t, text, pooled[:, :5])
    model(x, t, text, pooled)
    blocks = model.base_model.transformer_blocks
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in blocks)


def test_time_bins_of_soft_tokens(sd3: nn.Module) -> None:
    model = SoftTokens(sd3, num_tokens=2, num_layers=-1)
    assert len(model.dc_tokens) == 3
    times = torch.tensor([0.0, 9.9, 10.0, 500.0, 999.9, 1000.0])
    offsets = model.dc_t_tokens.weight.unflatten(1, (3, 64))
    found = model.soft_tokens(times) - model.base_model.context_embedder(model.dc_tokens)
    for i, row in enumerate((0, 0, 1, 50, 99, 99)):  # 500 stays in its bin beside a 1000
        torch.testing.assert_close(found[i], offsets[row][:, None].expand(3, 2, 64), rtol=1e-4, atol=1e-6)


def test_published_tokens_are_used_as_they_are(sd3: nn.Module) -> None:
    model = SoftTokens(sd3, num_tokens=2, num_layers=2, token_width=64, time_offsets=False)
    assert "dc_t_tokens.weight" not in model.state_dict()
    assert torch.equal(model.soft_tokens(torch.tensor([3.0]))[0], model.dc_tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 4}, r"num_layers 4: this model has blocks 1\.\.3; -1 means all"),
        ({"num_layers": 0}, "num_layers 0: this model has blocks"),
        ({"num_layers": 2, "token_width": 50}, "token_width 50: 48 before the text's embedder, or 64 after it"),
    ],
)
def test_soft_tokens_that_do_not_fit(sd3: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SoftTokens(sd3, **options)


def test_soft_tokens_refuse_checkpointing(sd3: nn.Module) -> None:
    model = SoftTokens(copy.deepcopy(sd3), num_layers=2)
    model.base_model.enable_gradient_checkpointing()
    with pytest.raises(UserError, match="gradient checkpointing"):
        model(*sd3_batch())
