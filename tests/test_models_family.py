"""SiT's kin: what every one of them keeps, read back from shapes; and what each does its own way."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import wake
from repa_eval.config import from_dict
from repa_eval.diffusion.guidance import Guidance
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError
from repa_eval.interfaces.architecture import MODELS, find_preset
from repa_eval.models.shared.rotary import FastRope
from repa_eval.models.sit_erw import SiTRope, transfer

SMALL = {"input_size": 8, "num_classes": 10, "hidden_size": 32, "depth": 3, "num_heads": 2, "z_dims": (24,)}
SMALL["projector_dim"] = 16
FAMILY = ("SiT", "SiT-REG", "SiT-ERW", "DiT")
# the family's networks with every switch that changes names or arithmetic
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SiT": ("SiT", {}),
    "SiT with sigma": ("SiT", {"learn_sigma": True, "z_dims": ()}),
    "SiT-REG": ("SiT-REG", {}),
    "SiT-REG without heads": ("SiT-REG", {"z_dims": (), "cls_token_dim": 24}),
    "SiT-REG with qk_norm": ("SiT-REG", {"z_dims": (24, 20), "qk_norm": True}),
    "SiT-ERW": ("SiT-ERW", {}),
    "SiT-ERW with qk_norm": ("SiT-ERW", {"qk_norm": True}),
    "stub": ("SiT-ERW", {"warmup": True, "use_rope": False}),
    "stub that turns": ("SiT-ERW", {"warmup": True}),
    "DiT": ("DiT", {"z_dims": ()}),
}
SAMPLED = [name for name in VARIANTS if "stub" not in name]


def make(variant: str, **changes: Any) -> DiffusionModel:
    """The small network of a variant, in eval mode, its gates open."""
    name, given = VARIANTS[variant]
    architecture = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architecture.build(from_dict(architecture.defaults, {**SMALL, **given, **changes}))
    wake(model)
    return model.eval()


def answer(model: DiffusionModel, *, taps: Collection[int] = (), **more: Any) -> tuple[list[Tensor], dict[Any, Tensor]]:
    """What a network says of one batch: its outputs in a list, and the hidden states."""
    generator = torch.Generator().manual_seed(1)
    x, t, y = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 10])
    if model.prefix_tokens:
        more["cls_token"] = torch.randn(3, 24, generator=generator)
    out, hidden = model(x, t, y, taps=taps, **more)
    return [part for part in (out if isinstance(out, tuple) else (out,)) if part is not None], hidden


@functools.cache
def shapes_of(size: str) -> dict[str, tuple[int, ...]]:
    architecture, config = find_preset(size)
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in architecture.build(config).state_dict().items()}


def claims(shapes: dict[str, tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """The architectures that take a state dict of these names and shapes for theirs, with what they read."""
    asked = {name: architecture.read(shapes) for name, architecture in MODELS.items() if architecture.read}
    return {name: fields for name, fields in asked.items() if fields is not None}


# --- the contract


@pytest.mark.parametrize("size", [size for name in FAMILY for size in MODELS.get(name).presets])
def test_a_preset_is_read_back_from_its_shapes(size: str) -> None:
    architecture, config = find_preset(size)
    found = claims(shapes_of(size))
    assert set(found) == ({"SiT", "DiT"} if architecture.name == "DiT" else {architecture.name})
    # not told: heads, unless something is as wide as one; and the width of heads that are not there
    untold = {"num_heads": config.num_heads, "projector_dim": config.projector_dim}
    assert from_dict(architecture.defaults, {**untold, **found[architecture.name]}) == config
    assert ("num_heads" in found[architecture.name]) == (architecture.name == "SiT-ERW")


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_read_back_from_its_shapes(variant: str) -> None:
    name, _ = VARIANTS[variant]
    model = make(variant)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = claims(shapes)
    both = {"SiT", "DiT"} if variant in ("SiT with sigma", "DiT") else {name}
    assert set(found) == both
    untold = {"num_heads": 2, "projector_dim": 16}
    assert from_dict(MODELS.get(name).defaults, {**untold, **found[name]}) == model.config
    # one module more or less, and it is none of them
    assert not claims({**shapes, "blocks.1.skip_linear.weight": (32, 64)})
    assert not claims({key: shape for key, shape in shapes.items() if "t_embedder" not in key})


def test_a_full_model_without_rotation_is_a_sit() -> None:
    model, sit = make("SiT-ERW", use_rope=False), make("SiT")
    assert set(claims({key: tuple(value.shape) for key, value in model.state_dict().items()})) == {"SiT"}
    sit.load_state_dict(model.state_dict())
    assert torch.equal(answer(model)[0][0], answer(sit)[0][0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_network_made_without_memory_takes_its_weights(variant: str) -> None:
    model = make(variant)
    with torch.device("meta"):
        empty = type(model)(model.config).eval()
    tables = ("pos_embed", "feat_rope.")  # small and fixed: made as they are
    assert all(value.is_meta for name, value in empty.state_dict().items() if not name.startswith(tables))
    empty.load_state_dict(model.state_dict(), assign=True)
    taps = range(4)
    (outs, hidden), (again, hidden_again) = answer(model, taps=taps), answer(empty, taps=taps)
    assert all(torch.equal(a, b) for a, b in zip(outs, again, strict=True))
    assert all(torch.equal(hidden[layer], hidden_again[layer]) for layer in taps)


@pytest.mark.parametrize("variant", SAMPLED)
def test_a_fresh_network_outputs_zero(variant: str) -> None:
    fresh = type(make(variant))(make(variant).config)
    outs, hidden = answer(fresh)
    assert not any(part.any() for part in outs)
    assert hidden == {}
    assert all(bool(part.any()) for part in answer(make(variant))[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_taps_are_outputs_of_blocks(variant: str) -> None:
    model = make(variant)
    expected, nothing = answer(model)
    outs, hidden = answer(model, taps=(0, 1, 2, 3), attention=(2,))
    assert nothing == {}
    assert set(hidden) == {0, 1, 2, 3, ("attention", 2)}
    for a, b in zip(outs, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # logits are computed without the fused kernel
    tokens = 16 + model.prefix_tokens
    assert all(hidden[layer].shape == (3, tokens, 32) for layer in range(4))
    assert hidden["attention", 2].shape == (3, 2, tokens, tokens)
    c = model.condition(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 10]))
    for layer in (1, 3):
        again = model.blocks[layer - 1](hidden[layer - 1], c, getattr(model, "feat_rope", None))
        assert torch.equal(hidden[layer], again)
    with pytest.raises(UserError, match=r"^layer 4: this model has blocks 1\.\.3$"):
        answer(model, taps=(4,))


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant: str) -> None:
    model = make(variant)
    outs, hidden = answer(model, taps=(3,))
    heads = [head(hidden[3]) for head in model.projectors]
    sum(part.square().mean() for part in [*outs, *heads]).backward()  # type: ignore[union-attr]
    still = {name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)}
    # a bias of all keys shifts a query's logits alike, which softmax does not see: what is left there is rounding
    assert {name for name in still if not name.endswith("k_norm.bias")} == {"pos_embed"}


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("SiT", {"patch_size": 3}, "patch_size 3 does not divide the latent's side 8"),
        ("DiT", {"num_heads": 5}, "hidden_size 32 is not a multiple of num_heads 5"),
        ("SiT-REG", {"hidden_size": 30}, "hidden_size 30 is not a multiple of 4"),
        ("SiT-REG", {"z_dims": ()}, "the class token has no width: z_dims is empty, and cls_token_dim is 0"),
        ("SiT-ERW", {"hidden_size": 36}, "a head's width 18 is not a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit(variant: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(variant, **changes)
    assert "\n" not in str(caught.value)


# --- the class token


def test_the_class_token_stands_in_front_and_has_no_place() -> None:
    model = make("SiT-REG")
    fresh = type(model)(model.config)
    assert not fresh.pos_embed[:, 0].any()
    assert torch.equal(fresh.pos_embed[:, 1:], type(make("SiT"))(make("SiT").config).pos_embed)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([1, 2])
    cls_token = torch.randn(2, 24)
    (velocity, class_velocity), hidden = fresh(x, t, y, cls_token=cls_token, taps=(0,))
    assert (velocity.shape, class_velocity.shape) == ((2, 4, 8, 8), (2, 24))
    assert torch.equal(hidden[0][:, 0], fresh.wg_norm(fresh.cls_projectors2(cls_token)))
    torch.testing.assert_close(hidden[0][:, 0].std(dim=1, correction=0), torch.ones(2), rtol=1e-4, atol=0)
    assert torch.equal(hidden[0][:, 1:], fresh.x_embedder(x) + fresh.pos_embed[:, 1:])


def test_the_class_token_is_heard_by_its_own_image_alone() -> None:
    model = make("SiT-REG")
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([1, 2])
    cls_token = torch.randn(2, 24)
    changed = torch.stack([cls_token[0], cls_token[1] + 1])
    (a, a_cls), _ = model(x, t, y, cls_token=cls_token)
    (b, b_cls), _ = model(x, t, y, cls_token=changed)
    assert torch.allclose(a[0], b[0], atol=1e-6)
    assert not torch.allclose(a[1], b[1], atol=1e-4)
    assert not torch.allclose(a_cls[1], b_cls[1], atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 20), (2, 24), (3, 1, 24)])
def test_a_class_token_of_another_shape(shape: tuple[int, ...]) -> None:
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(UserError, match=re.escape(f"cls_token is {shape}, expected (3, 24)")):
        make("SiT-REG")(x, t, y, cls_token=torch.zeros(shape))


# --- rotary positions


def test_rotation_by_hand() -> None:
    rope, side, width = FastRope(8, 3), 3, 8
    q = torch.randn(2, 1, 9, width, generator=torch.Generator().manual_seed(0))
    turned = rope(q)
    for token in range(9):
        places = [token // side] * 2 + [token % side] * 2  # two pairs by row, two by column
        for pair, (place, omega) in enumerate(zip(places, [1.0, 10000**-0.5] * 2, strict=True)):
            z = torch.view_as_complex(q[..., token, 2 * pair : 2 * pair + 2].contiguous())
            expected = torch.view_as_real(z * torch.polar(torch.tensor(1.0), torch.tensor(place * omega)))
            torch.testing.assert_close(turned[..., token, 2 * pair : 2 * pair + 2], expected)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))


def test_logits_depend_on_the_distance_of_tokens() -> None:
    rope, side = FastRope(16, 5), 5
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0)).unbind()
    alike = [rope(vector.expand(1, 1, 25, 16))[0, 0] for vector in (q, k)]
    logits = (alike[0] @ alike[1].T).reshape(side, side, side, side)  # row, column of the query, of the key
    torch.testing.assert_close(logits[:4, :4, :4, :4], logits[1:, 1:, 1:, 1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits[0, 0, 0, 1], logits[0, 0, 1, 0], atol=1e-3)  # a row is not a column


def test_rotation_keeps_the_precision() -> None:
    q = torch.randn(1, 1, 4, 8)
    assert FastRope(8, 2)(q.bfloat16()).dtype is torch.bfloat16
    assert FastRope(8, 2).double()(q).dtype is torch.float32
    assert {name for name, _ in FastRope(8, 2).named_buffers()} == {"freqs_cos", "freqs_sin"}
    assert set(FastRope(8, 2).state_dict()) == {"freqs_cos", "freqs_sin"}


def test_logits_are_of_turned_queries_and_keys() -> None:
    model = make("SiT-ERW with qk_norm")
    _, hidden = answer(model, taps=(1,), attention=(2,))
    block = model.blocks[1]
    shift, scale, *_ = block.adaLN_modulation(
        model.condition(torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 10]))
    ).chunk(6, dim=-1)
    x = block.norm1(hidden[1]) * (1 + scale[:, None]) + shift[:, None]
    q, k, _ = block.attn.qkv(x).reshape(3, 16, 3, 2, 16).permute(2, 0, 3, 1, 4)
    q, k = model.feat_rope(block.attn.q_norm(q)), model.feat_rope(block.attn.k_norm(k))
    torch.testing.assert_close(hidden["attention", 2], q @ k.mT / 4, rtol=1e-4, atol=1e-5)


# --- from the warm-up stub to the full model


def test_transfer_copies_the_stub_and_nothing_else() -> None:
    stub, full = make("stub", depth=2), make("SiT-ERW")
    start = {name: value.clone() for name, value in full.state_dict().items()}
    wake(stub, seed=7)
    copied, missing = transfer(stub, full)
    after = full.state_dict()
    assert sorted([*copied, *missing]) == sorted(after)
    assert all(torch.equal(after[name], stub.state_dict()[name]) for name in copied)
    assert all(torch.equal(after[name], start[name]) for name in missing)
    assert {name.split(".")[0] for name in missing} == {"blocks", "feat_rope", "final_layer"}
    assert not any(torch.equal(start[name], after[name]) for name in copied)
    assert isinstance(full, SiTRope)
    # the stub keeps its own: training the full model must not reach back
    with torch.no_grad():
        full.x_embedder.proj.bias.add_(1.0)
    assert not torch.equal(full.x_embedder.proj.bias, stub.x_embedder.proj.bias)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 4}, "stage 1 holds blocks.3.attn.qkv.weight, which the full model lacks"),
        ({"qk_norm": True}, "stage 1 holds blocks.0.attn.q_norm.weight, which the full model lacks"),
        ({"z_dims": (20,)}, r"projectors.0.4.weight is \(20, 16\) in stage 1, \(24, 16\) in the full model"),
    ],
)
def test_a_stub_that_does_not_fit_changes_nothing(changes: dict[str, Any], message: str) -> None:
    stub, full = make("stub", **changes), make("SiT-ERW")
    start = {name: value.clone() for name, value in full.state_dict().items()}
    with pytest.raises(UserError, match=message):
        transfer(stub, full)
    assert all(torch.equal(value, start[name]) for name, value in full.state_dict().items())


def test_a_stub_answers_nothing_but_hidden_states() -> None:
    model = make("stub")
    out, hidden = model(torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64), taps=(3,))
    assert out is None
    assert hidden[3].shape == (1, 16, 32)
    assert not [name for name in model.state_dict() if name.startswith(("final_layer", "feat_rope"))]


# --- DiT, and guidance of some channels


def test_dit_takes_steps_as_they_are_and_keeps_all_channels() -> None:
    model = make("DiT")
    x, y = torch.randn(2, 4, 8, 8), torch.tensor([1, 2])
    steps = torch.tensor([3, 800])
    out, _ = model(x, steps, y)
    assert out.shape == (2, 8, 8, 8)
    assert torch.equal(out, model(x, steps.float(), y)[0])
    assert torch.equal(model.condition(steps, y), model.t_embedder(steps.float()) + model.y_embedder(y))
    assert model.native.startswith("step 0..999")
    assert make("DiT", learn_sigma=False)(x, steps, y)[0].shape == (2, 4, 8, 8)


@pytest.mark.parametrize("channels", [3, 4, 8])
def test_guidance_of_some_channels(channels: int) -> None:
    output = torch.randn(4, 8, 2, 2)
    conditional, unconditional = output.chunk(2)
    guided = Guidance(cfg_scale=2.5, channels=channels).mix(conditional, unconditional)
    by_hand = unconditional + 2.5 * (conditional - unconditional)
    assert torch.equal(guided[:, :channels], by_hand[:, :channels])
    assert torch.equal(guided[:, channels:], conditional[:, channels:])
    torch.testing.assert_close(Guidance(channels=channels).mix(conditional, unconditional), conditional)
