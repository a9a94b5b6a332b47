"""Networks of somebody else: which output, which layout, which network and call; and they are left as they were."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel

from helpers import digits
from repa_eval.diffusion.layers import layer_numbers
from repa_eval.errors import UserError
from repa_eval.evaluation.alignment import align_foreign
from repa_eval.features.call_identity import call_identity
from repa_eval.features.capture import Capture
from repa_eval.features.foreign import foreign_features
from repa_eval.features.model_state import preserved, unwrapped
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.results import records_of

IMAGES = digits("test").head(6)


class Pair(NamedTuple):
    text: Tensor
    image: Tensor


class Answers(nn.Module):
    """A block that returns text and image tokens in the form asked for."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form = form
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        tokens = self.dropout(x.flatten(2).transpose(1, 2))  # (B, 64, 1)
        return self.form(tokens[:, :3] * 0 + 7, tokens)


class Net(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.block = block
        self.idle = nn.Identity()

    def forward(self, x: Tensor) -> Any:
        return self.block(x * self.scale)


def take(network: nn.Module, layer: str = "block", **more: Any) -> np.ndarray:
    def call(pixels: Tensor, _indices: Any) -> object:
        return network(pixels.float())

    return foreign_features(network, IMAGES, layers=[layer], call=call, **more)[layer]


@pytest.mark.parametrize(
    ("form", "part"),
    [
        (lambda text, image: (text, image), 1),
        (lambda text, image: [text, image], -1),
        (lambda text, image: {"text": text, "image": image}, "image"),
        (lambda text, image: {"text": text, "image": image}, 1),
        (Pair, "image"),
        (Pair, 1),
        (lambda text, image: (image,), None),
        (lambda text, image: (None, image), None),
    ],
)
def test_a_part_of_the_output(form: Any, part: Any) -> None:
    expected = IMAGES.pixels(range(6)).float().flatten(1).mean(1, keepdim=True)
    np.testing.assert_allclose(take(Net(Answers(form)), part=part), expected.numpy(), rtol=1e-6)


def test_several_tensors_and_nobody_said_which() -> None:
    with pytest.raises(UserError, match=r"block returns a tuple of 2 \(0 6x3x1, 1 6x64x1\): say which with part="):
        take(Net(Answers(lambda text, image: (text, image))))
    with pytest.raises(UserError, match=r"returns a dict of 2 .*part='images' is no tensor of it"):
        take(Net(Answers(lambda text, image: {"text": text, "image": image})), part="images")
    with pytest.raises(UserError, match="part=2 is no tensor of it"):
        take(Net(Answers(lambda text, image: (text, image))), part=2)
    with pytest.raises(UserError, match="returns a str, not a tensor"):
        take(Net(Answers(lambda text, image: "words")))


def test_a_layer_that_never_runs_is_named() -> None:
    with pytest.raises(UserError, match="submodule idle never ran"):
        take(Net(nn.Identity()), layer="idle")


def test_a_swin_of_timm_is_read_channels_last() -> None:
    torch.manual_seed(0)
    network = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=16, patch_size=2, window_size=2, in_chans=1, embed_dim=8,
        depths=(1, 1), num_heads=(1, 1), num_classes=0,
    )  # fmt: skip

    def call(pixels: Tensor, _indices: Any) -> object:
        return network(nn.functional.interpolate(pixels.float(), size=16) / 255)

    found = foreign_features(network, IMAGES, layers=["layers.0"], call=call)["layers.0"]
    with torch.no_grad():
        maps = network.eval().layers[0](
            network.patch_embed(nn.functional.interpolate(IMAGES.pixels(range(6)).float(), size=16) / 255)
        )
    assert maps.shape == (6, 8, 8, 8)  # (B, H, W, C): all sides equal, so that only the declaration tells
    np.testing.assert_allclose(found, maps.mean((1, 2)).numpy(), rtol=1e-5)


class Maps(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return torch.arange(6.0 * np.prod(self.shape)).reshape(6, *self.shape)


def test_maps_by_their_equal_sides_by_what_is_said_or_not_at_all() -> None:
    whole = Maps(5, 4, 4)(torch.empty(0))
    np.testing.assert_allclose(take(Net(Maps(5, 4, 4))), whole.mean((2, 3)))
    np.testing.assert_allclose(take(Net(Maps(4, 4, 5))), Maps(4, 4, 5)(torch.empty(0)).mean((1, 2)))
    np.testing.assert_allclose(take(Net(Maps(5, 4, 4)), channels_last=True), whole.mean((1, 2)))
    same = r"block returns 6x4x4x4, which may be \(B, C, H, W\) or \(B, H, W, C\): say channels_last="
    with pytest.raises(UserError, match=same):
        take(Net(Maps(4, 4, 4)))
    assert take(Net(nn.Conv2d(1, 6, 3))).shape == (6, 6)  # 6x6x6, but a convolution's


def test_eval_mode_is_forced_and_the_modes_come_back() -> None:
    network = Net(Answers(lambda text, image: image)).train()
    network.idle.eval()  # a user's frozen part
    network.scale.requires_grad_(False)
    first = take(network)
    assert np.array_equal(first, take(network))  # no dropout
    with pytest.raises(UserError):
        take(network, layer="nothing")
    assert [module.training for module in network.modules()] == [True, True, True, False]
    assert not network.scale.requires_grad


def test_two_networks_two_calls_and_two_times_have_entries_of_their_own(tmp_path: Path) -> None:
    capture = Capture(cache=tmp_path)
    one, other = Net(nn.Identity()), Net(nn.Identity())
    with torch.no_grad():
        other.scale.fill_(3.0)
    assert np.array_equal(3 * take(one, capture=capture), take(other, capture=capture))

    def entries() -> int:
        return len([path for path in tmp_path.iterdir() if path.is_dir()])

    assert entries() == 2
    take(one, capture=capture)
    assert entries() == 2
    take(one, capture=capture, t=0.3)
    take(one, capture=capture, part=0)
    take(one, capture=capture, call_id="mine")
    foreign_features(one, IMAGES, layers=["block"], call=lambda x, _: one(x.float() * 2), capture=capture)
    assert entries() == 6


def test_the_identity_of_a_call() -> None:
    def scaled(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: x * factor

    network, other = nn.Linear(2, 2), nn.Linear(2, 2)
    assert call_identity(scaled(2.0)) == call_identity(scaled(2.0))
    assert call_identity(scaled(2.0)) != call_identity(scaled(3.0))
    assert call_identity(lambda x: x + 1) != call_identity(lambda x: x - 1)
    assert call_identity(partial(scaled, factor=1.0)) != call_identity(partial(scaled, factor=2.0))

    def run(net: nn.Module) -> Callable[[Tensor], object]:
        return lambda x: net(x)

    assert call_identity(run(network)) != call_identity(run(other))
    assert call_identity(run(network), apart_from=network) == call_identity(run(other), apart_from=other)
    assert call_identity(network.forward) != call_identity(other.forward)
    assert "run.<locals>.<lambda> " in call_identity(run(network))


def test_the_protocol_names_network_call_and_part() -> None:
    network = Net(Answers(lambda text, image: (text, image.repeat(1, 1, 3) + torch.arange(3.0))))
    call = lambda pixels, _: network(pixels.float())  # noqa: E731
    rows = align_foreign(
        network, load_teacher("digits-vit"), IMAGES, layers=["block"], call=call, part=1, t=0.2, metrics=("cka",)
    )
    [record] = records_of(rows).values()
    assert (rows[0].timestep, rows[0].note) == (0.2, "block")
    assert (record["network"], record["part"], record["t"]) == ("Net", 1, 0.2)
    assert record["call"] == call_identity(call, apart_from=network)
    assert len(record["weights_hash"]) == 12


def test_compiled_code_is_read_all_the_same() -> None:
    network = Net(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    compiled = torch.compile(network, backend="eager")
    compiled(torch.zeros(6, 1, 8, 8))

    def call(pixels: Tensor, _indices: Any) -> object:
        return compiled(pixels.float())

    found = foreign_features(network, IMAGES, layers=["block.1"], call=call)["block.1"]
    with torch.no_grad():
        np.testing.assert_allclose(found, network(IMAGES.pixels(range(6)).float()).numpy(), rtol=1e-5)


class Peft(nn.Module):
    """As peft.PeftModel: the base network lies below."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_model = base

    def get_base_model(self) -> nn.Module:
        return self.base_model


def test_wrappers_are_looked_through() -> None:
    network = Net(nn.Identity())
    assert unwrapped(network) is network
    assert unwrapped(torch.compile(network, backend="eager")) is network
    assert unwrapped(Peft(network)) is network
    assert unwrapped(DataParallel(Peft(network))) is network


def test_what_was_lent_is_given_back_after_an_error() -> None:
    network = Net(nn.Dropout()).train()
    network.__dict__["_original_forward"] = network.forward
    mixed = network.__dict__["forward"] = lambda x: x

    def use() -> None:
        assert not network.block.training
        assert "forward" not in network.__dict__
        network.scale.requires_grad_(False)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"), preserved(network, "cpu"):
        use()
    assert network.block.training
    assert network.scale.requires_grad
    assert network.__dict__["forward"] is mixed


@pytest.mark.parametrize(
    ("given", "numbers"),
    [(3, [3]), ([3, 1], [3, 1]), ("3,4", [3, 4]), ("1-3,6", [1, 2, 3, 6]), ("all", [1, 2, 3, 4, 5, 6]),
     (np.int64(3), [3]), (torch.tensor(3), [3]), (torch.tensor([3, 1]), [3, 1]), (np.array([2, 2]), [2]),
     ("1..3", [1, 2, 3])],
)  # fmt: skip
def test_layers(given: Any, numbers: list[int]) -> None:
    assert layer_numbers(given, 6) == numbers


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (7, r"layer 7: this model has blocks 1\.\.6; its aligned block is 3"),
        ("2-9", r"layer 7: this model has blocks 1\.\.6"),
        (0, "layer 0: this model has blocks"),
        ("one", "layers 'one': expected block numbers joined by commas, or all; 1-6 is a range"),
        ("4-", "layers '4-': expected"),
        ([], "no layers are given"),
        (2.0, "layers 2.0: expected block numbers, such as 3"),
        ([None], "layers .None.: expected block numbers, such as 3"),
        ("3-1", "layers '3-1': a range goes from the lower block to the higher one"),
    ],
)
def test_layers_that_are_none(given: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        layer_numbers(given, 6, aligned=3)
