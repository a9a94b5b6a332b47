"""Capturing features: a cache that survives an interruption, processes, poolings, networks that are not ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from test_align import Spy, awake
from torch import Tensor, nn

from helpers import digits
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.alignment import Preparation, align, teacher_baseline
from repa_eval.evaluation.uncertainty import half_sample_error, permutation_baseline
from repa_eval.features import store as cache
from repa_eval.features.capture import Capture
from repa_eval.features.foreign import foreign_features
from repa_eval.features.hidden_states import hidden_features
from repa_eval.features.hooks import captured
from repa_eval.features.teacher import teacher_features
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.sit_reg import SiTCls, SiTClsConfig
from repa_eval.results import Row
from repa_eval.runtime.hashing import digest_module

IMAGES = 30


def values(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [(row.key(), row.value) for row in rows]


class StoppedError(Exception):
    """Stands for a kill."""


class Tiring(Spy):
    """Stops at its n-th forward."""

    def __init__(self, model: Any, last: int) -> None:
        super().__init__(model)
        self.last = last

    def forward(self, *given: Any, **more: Any) -> Any:
        if len(self.seen) == self.last:
            raise StoppedError
        return super().forward(**more)


def test_an_interrupted_map_goes_on_where_it_stopped(tmp_path: Path) -> None:
    teacher, images, model = load_teacher("digits-vit"), digits("test").head(IMAGES), awake()
    cell: dict[str, Any] = {"layers": (1, 3), "timesteps": (0.1, 0.3)}
    whole = align(model, teacher, images, **cell, capture=Capture(batch_size=8))
    capture = Capture(batch_size=8, cache=tmp_path)  # 4 batches per timestep
    tiring = Tiring(model, last=6)
    with pytest.raises(StoppedError):
        align(tiring, teacher, images, **cell, capture=capture)
    again = Spy(model)
    assert values(align(again, teacher, images, **cell, capture=capture)) == values(whole)
    assert len(again.seen) == 2  # of 8 batches 6 were there
    third = Spy(model)
    assert values(align(third, teacher, images, **cell, capture=capture)) == values(whole)
    assert third.seen == []


def test_what_decides_the_features_decides_the_entry(tmp_path: Path) -> None:
    images, model = digits("test").head(12), awake()
    other = awake()
    with torch.no_grad():
        other.blocks[0].attn.proj.bias.add_(0.1)

    def take(which: Any = model, t: float = 0.3, count: int = 12, **more: Any) -> np.ndarray:
        capture = Capture(**{"batch_size": 5, "cache": tmp_path, **more})
        part = images.head(count)
        digest = digest_module(which)
        return hidden_features(which, part, layers=(1,), t=t, capture=capture, weights_hash=digest)[1]

    first = take()
    others = [take(seed=1), take(t=0.4), take(other), take(count=11), take(stream="probe train"), take(batch_size=4)]
    others.append(take(pool="none"))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 8
    assert not any(other.shape == first.shape and np.array_equal(other, first) for other in others[:5])
    spy = Spy(model)
    assert np.array_equal(take(spy), first)  # Spy has the names of its model in front, hence another hash
    both: dict[str, Any] = {"layers": (1, 2), "t": 0.3, "weights_hash": digest_module(model)}
    both["capture"] = Capture(batch_size=5, cache=tmp_path)
    hidden_features(model, images, **both)
    asked = Spy(model)
    hidden_features(asked, images, **both)
    assert asked.seen == []  # both layers are there now


def test_a_layer_that_is_missing_is_the_only_one_that_is_computed(tmp_path: Path) -> None:
    model, images = awake(), digits("test").head(6)
    capture = Capture(batch_size=6, cache=tmp_path)
    hidden_features(model, images, layers=(2,), t=0.2, capture=capture, weights_hash="x")
    spy = Spy(model)
    found = hidden_features(spy, images, layers=(2, 3), t=0.2, capture=capture, weights_hash="x")
    assert [taps for *_, taps in spy.seen] == [(3,)]
    plain = hidden_features(model, images, layers=(2, 3), t=0.2, capture=Capture(batch_size=6))
    assert all(np.array_equal(found[layer], plain[layer]) for layer in (2, 3))


def test_entries_say_what_is_wrong(tmp_path: Path) -> None:
    entry = cache.Entry(tmp_path, {"a": 1}, 4)
    assert entry.lacking(["x"], [0, 1]) == ["x"]
    entry.write("x", [0, 1], np.ones((2, 3), np.float32))
    assert entry.lacking(["x"], [0, 1]) == []
    assert entry.lacking(["x"], [1, 2]) == ["x"]
    with pytest.raises(Failure, match="features of x are missing"):
        entry.read("x")
    with pytest.raises(Failure, match="rows of another shape"):
        entry.write("x", [2], np.ones((1, 4), np.float32))
    second = cache.Entry(tmp_path, {"a": 1}, 4)  # another process
    second.write("x", [2, 3], np.full((2, 3), 2, np.float32))
    assert entry.read("x")[:, 0].tolist() == [1, 1, 2, 2]
    (second.folder / "x.npy").write_bytes(b"no array")
    with pytest.raises(Failure, match=r"x\.npy is damaged; delete"):
        cache.Entry(tmp_path, {"a": 1}, 4).read("x")
    assert json.loads((second.folder / "record.json").read_text()) == {"a": 1}
    cache.forget(tmp_path, [{"a": 1}])
    assert not second.folder.exists()


WORKER = """
import json, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from helpers import digits
from repa_eval.evaluation.alignment import align
from repa_eval.features.capture import Capture
from repa_eval.runtime.distributed import join, leave
from repa_eval.interfaces.teacher import load_teacher
from test_align import awake
share = join("cpu")
rows = align(awake(), load_teacher("digits-vit"), digits("test").head({images}), layers=(1, 3), timesteps=(0.1, 0.3),
             capture=Capture(batch_size=8, cache=Path(sys.argv[1]), share=share))
if share.first:
    Path(sys.argv[2]).write_text(json.dumps([row.value for row in rows]))
else:
    assert rows == []
leave()
"""


def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parent
    (tmp_path / "worker.py").write_text(WORKER.format(paths=[str(here), str(here.parent)], images=IMAGES))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path / "cache"), str(tmp_path / "rows.json")],
        check=True,
        capture_output=True,
        timeout=300,
    )
    images = digits("test").head(IMAGES)
    rows = align(
        awake(), load_teacher("digits-vit"), images, layers=(1, 3), timesteps=(0.1, 0.3), capture=Capture(batch_size=8)
    )
    assert json.loads((tmp_path / "rows.json").read_text()) == pytest.approx([row.value for row in rows], rel=1e-6)


# --- poolings and class tokens


def with_class_token() -> SiTCls:
    torch.manual_seed(0)
    model = SiTCls(
        SiTClsConfig(
            input_size=8,
            patch_size=2,
            in_channels=1,
            hidden_size=32,
            depth=2,
            num_heads=2,
            num_classes=10,
            z_dims=(96,),
        )
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_a_class_token_is_noised_at_the_same_t_and_left_out_of_the_mean() -> None:
    model, teacher, images = with_class_token(), load_teacher("digits-vit"), digits("test").head(9)
    seen: list[dict[str, Tensor]] = []
    model.register_forward_pre_hook(lambda _model, _args, given: seen.append(given), with_kwargs=True)

    def clean(pixels: Tensor) -> Tensor:
        cls = teacher(pixels).cls
        assert cls is not None
        return cls

    capture = Capture(class_tokens=clean)
    mean = hidden_features(model, images, layers=(2,), t=0.25, capture=capture)[2]
    tokens = hidden_features(model, images, layers=(2,), t=0.25, capture=Capture(class_tokens=clean, pool="none"))[2]
    cls = hidden_features(model, images, layers=(2,), t=0.25, capture=Capture(class_tokens=clean, pool="cls"))[2]
    assert tokens.shape == (9, 16, 32)
    np.testing.assert_allclose(mean, tokens.mean(1), atol=1e-6)
    assert not np.allclose(cls, mean)
    noise = (seen[0]["cls_token"] - 0.75 * clean(images.pixels(range(9)))) / 0.25
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1
    with pytest.raises(UserError, match="reads a class token beside the image"):
        hidden_features(model, images, layers=(1,), t=0.5)
    rows = align(model, teacher, images.head(9), layers=(1,), timesteps=(0.1,), metrics=("cka",), capture=capture)
    from repa_eval.results import records_of

    [record] = records_of(rows).values()
    assert record["class_token"] == "the teacher's, noised at the same t"
    assert record["pooling"] == "token mean"


def test_pooling_by_a_class_token_that_is_not_there() -> None:
    with pytest.raises(UserError, match="have no class token"):
        hidden_features(awake(), digits("test").head(4), layers=(1,), t=0.1, capture=Capture(pool="cls"))
    with pytest.raises(UserError, match="pooling 'max': choose mean, cls, none"):
        Capture(pool="max")
    teacher, images = load_teacher("digits-vit"), digits("test").head(4)
    expected = teacher(images.pixels(range(4))).cls
    assert expected is not None
    np.testing.assert_allclose(teacher_features(teacher, images, capture=Capture(pool="cls")), expected.numpy())


# --- networks that are not ours


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, in_chans=1, embed_dim=24, depth=3, num_heads=2, num_classes=0
    ).eval()


def test_features_of_a_timm_network() -> None:
    network, images = vit(), digits("test").head(7)
    pixels = images.pixels(range(7)).float() / 255
    found = foreign_features(
        network, images, layers=["blocks.0", "blocks.2"], call=lambda x, _: network(x.float() / 255), prefix_tokens=1,
        capture=Capture(batch_size=3),
    )  # fmt: skip
    with torch.no_grad():
        tokens = network.norm_pre(network.pos_drop(network._pos_embed(network.patch_embed(pixels))))
        for name, block in zip(("blocks.0", "", "blocks.2"), network.blocks, strict=True):
            tokens = block(tokens)
            if name:
                np.testing.assert_allclose(found[name], tokens[:, 1:].mean(1).numpy(), atol=1e-5)
    assert not any(module._forward_hooks for module in network.modules())


def test_hooks_go_away_and_silence_is_an_error() -> None:
    network = vit()
    with pytest.raises(StoppedError), captured(network, ["blocks.1"]):
        raise StoppedError
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(UserError, match=r"submodule blocks\.1 never ran"), captured(network, ["blocks.1"]):
        pass
    wrong = r"unknown submodule 'block\.1'; did you mean 'blocks\.1'"
    with pytest.raises(UserError, match=wrong), captured(network, ["block.1"]):
        pass
    assert not any(module._forward_hooks for module in network.modules())


# --- how sure a number is


def test_the_standard_error_is_that_of_fresh_samples() -> None:
    rng = np.random.default_rng(0)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        base = rng.standard_normal((n, 4))
        return base, base + rng.standard_normal((n, 4))

    def metric(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.corrcoef(x[:, 0], y[:, 0])[0, 1])

    true = float(np.std([metric(*draw(200)) for _ in range(400)]))
    estimates = [half_sample_error(metric, *draw(200), seed=seed) for seed in range(20)]
    assert np.mean(estimates) == pytest.approx(true, rel=0.15)
    mean, deviation = permutation_baseline(metric, *draw(200))
    assert abs(mean) < 0.05
    assert deviation == pytest.approx(1 / np.sqrt(200), rel=0.4)


def test_rows_with_confidence_and_levels() -> None:
    teacher, images = load_teacher("digits-vit"), digits("test-large").head(60)
    rows = align(awake(), teacher, images, layers=(2,), timesteps=(0.1,), metrics=("cka",), confidence=True)
    permuted, value = rows
    assert (permuted.metric, value.metric) == ("cka_permuted", "cka")
    assert permuted.value is not None
    assert value.value is not None
    assert value.stderr is not None
    assert permuted.value < value.value
    assert 0 < value.stderr < 0.2
    [other] = teacher_baseline(teacher, [load_teacher("digits-vit-random")], images, metrics=("cka",))
    assert (other.metric, other.layer, other.note) == ("cka_teachers", None, "digits-vit-random against digits-vit")
    [itself] = teacher_baseline(teacher, [teacher], images, metrics=("cka",), preparation=Preparation(clamp=1.0))
    assert itself.value == pytest.approx(1.0, abs=1e-5)


# --- spatial metrics


def test_spatial_metrics_of_a_model_and_its_teacher() -> None:
    from repa_eval.evaluation.token_structure import spatial, spatial_level
    from repa_eval.metrics.lds import lds

    model, teacher, images = awake(), load_teacher("digits-vit"), digits("test").head(10)
    rows = spatial(
        model, images, layers=(1, 3), timesteps=(0.2,), metrics=("lds", "rmsc"), capture=Capture(batch_size=4)
    )
    assert [(row.layer, row.metric) for row in rows] == [(1, "lds"), (1, "rmsc"), (3, "lds"), (3, "rmsc")]
    tokens = hidden_features(model, images, layers=(3,), t=0.2, capture=Capture(pool="none"))[3]
    assert rows[2].value == pytest.approx(lds(tokens), rel=1e-5)
    [own] = spatial_level(teacher, images, metrics=("lds",), capture=Capture(batch_size=4))
    patches = teacher_features(teacher, images, capture=Capture(pool="none"))
    assert (own.metric, own.layer) == ("lds_teacher", None)
    assert own.value == pytest.approx(lds(patches), rel=1e-5)
    with pytest.raises(UserError, match="srss needs a mask of the foreground"):
        spatial(model, images, layers=(1,), timesteps=(0.2,), metrics=("srss",))
