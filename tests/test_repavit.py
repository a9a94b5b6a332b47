"""RePaViT's encoders: both forms, their merge, published files, teachers made from files."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from official_files import GOLDEN, hollow, shapes
from repa_eval import checkpoints
from repa_eval.config import from_dict
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.architecture import MODELS, find_preset
from repa_eval.interfaces.teacher import load_teacher
from repa_eval.models.shared.encoder import Encoder
from repa_eval.models.shared.idle_feed_forward import LAYER_NORM, FeedForward, active_of, linear_ratios, merge

pytestmark = pytest.mark.usefixtures("hollow_files")
PUBLISHED = sorted(path.stem.removeprefix("state_dict_") for path in (GOLDEN / "repavit").glob("state_dict_*.json"))
TINY: dict[str, dict[str, Any]] = {
    "RePaViT": {"input_size": 32, "patch_size": 8, "hidden_size": 32, "depth": 3, "num_heads": 2, "num_classes": 5},
    "RePaSwin": {"input_size": 32, "patch_size": 2, "hidden_size": 16, "depth": (2, 2), "num_heads": (2, 4),
                 "window_size": 4, "num_classes": 5},
    "RePaMLPMixer": {"input_size": 32, "patch_size": 8, "hidden_size": 32, "depth": 2, "num_classes": 5},
    "RePaPoolFormer": {"hidden_size": (8, 16), "depth": (1, 2), "mlp_ratios": (4.0, 4.0), "downsamples": (True, True),
                       "input_size": 32, "num_classes": 5},
    "RePaConvViT": {"hidden_size": 32, "stem_size": 8},
}  # fmt: skip
every_architecture = pytest.mark.parametrize("name", TINY)


def encoder(name: str, **changes: Any) -> Encoder:
    """A tiny encoder whose batch norms, like everything else, are not as they were made."""
    architecture = MODELS.get(name)
    torch.manual_seed(0)
    network = architecture.build(from_dict(architecture.defaults, {**TINY[name], **changes})).requires_grad_(False)
    assert isinstance(network, Encoder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if key.endswith("running_var"):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif tensor.is_floating_point() and not key.endswith("attn_mask"):
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return network.eval()


def images_of(network: Encoder, count: int = 3) -> Tensor:
    side, channels = network.config.input_size, network.config.in_channels
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(2))


def official_file(path: Path, state: dict[str, Tensor], **args: Any) -> Path:
    """A checkpoint as the official trainer writes it."""
    content = {"model": state, "optimizer": {"state": {}}, "lr_scheduler": {"t": 1}, "epoch": 299,
               "model_ema": dict(state), "scaler": {"scale": 65536.0}, "args": argparse.Namespace(**args)}  # fmt: skip
    torch.save(content, path)
    return path


# The feed-forward


@pytest.mark.parametrize(
    ("hidden", "ratio", "active"),
    [
        (256, 0.9, 26),
        (256, 0.75, 64),
        (192, 0.8333333333333333, 33),
        (192, 5 / 6, 32),
        (192, 1.0, 0),
        (192, 0.0, 192),
        (192, -0.3, 192),
    ],
)
def test_active_channels_are_counted_up(hidden: int, ratio: float, active: int) -> None:
    assert active_of(hidden, ratio) == active


def test_the_linear_rule_reaches_the_published_counts() -> None:
    assert [active_of(256, ratio) for ratio in linear_ratios(0.75, 4)] == [86, 43, 0, 256]
    assert [active_of(192, ratio) for ratio in linear_ratios(0.75, 4)] == [64, 33, 0, 192]
    assert linear_ratios(0.75, 1) == [0.0]


def test_training_and_eval_differ_by_the_statistics_alone() -> None:
    torch.manual_seed(0)
    part = FeedForward(8, 32, 8)
    x = torch.randn(4, 5, 8)
    trained = part.train()(x)
    for norm in (part.norm1, part.norm2):
        assert isinstance(norm, nn.BatchNorm1d)
        norm.reset_running_stats()
        norm.momentum = 1.0
    part(x)
    spread = 4 * 5 / (4 * 5 - 1)  # the stored variance is unbiased, the one that normalises is not
    for norm in (part.norm1, part.norm2):
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_var is not None
        norm.running_var /= spread
    torch.testing.assert_close(part.eval()(x), trained, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_drops_the_branch_of_a_sample() -> None:
    part = FeedForward(8, 32, 8).eval()
    x = torch.randn(2, 5, 8)
    y = part(x, torch.tensor([0.0, 2.0]))
    assert torch.equal(y[0], x[0])
    torch.testing.assert_close(y[1] - x[1], 2 * (part(x)[1] - x[1]))


def test_a_feed_forward_with_layer_norm_is_not_merged() -> None:
    with pytest.raises(UserError, match="only batch norms are linear"):
        merge(FeedForward(8, 32, 8, norm=LAYER_NORM))


@pytest.mark.parametrize(("name", "active"), [("RePaViT", 39), ("RePaSwin", 20), ("RePaPoolFormer", 9)])
def test_a_fraction_of_a_channel_is_active_but_in_pool_formers(name: str, active: int) -> None:
    hidden = {"RePaViT": 128, "RePaSwin": 64, "RePaPoolFormer": 32}[name]
    assert 0 < hidden * 0.3 - int(hidden * 0.3) < 1
    assert encoder(name, idle_ratio=0.7).active_channels()[0] == active


def test_the_norms_are_the_published_ones() -> None:
    # a whole forward moves by 2e-6 where an eps is wrong, which no golden case notices
    vit, swin, mixer, pool = (encoder(name) for name in ("RePaViT", "RePaSwin", "RePaMLPMixer", "RePaPoolFormer"))
    eps: dict[float, set[str]] = {}
    for network in (vit, swin, mixer, pool):
        for name, part in network.named_modules():
            if isinstance(part, nn.LayerNorm | nn.GroupNorm | nn.BatchNorm1d | nn.BatchNorm2d):
                eps.setdefault(part.eps, set()).add(f"{type(network).__name__} {name}")
    assert eps.pop(1e-6) == {"RePaViT norm_pre", "RePaViT norm", "RePaMLPMixer norm"}
    assert list(eps) == [1e-5]


# Encoders in both forms


def matrices(network: Encoder) -> int:
    """The numbers in the matrices of all feed-forwards."""
    parts = [p for name, p in network.named_parameters() if ".mlp.fc" in name and p.ndim > 1]
    return sum(part.numel() for part in parts)


@every_architecture
@pytest.mark.parametrize("ratio", [0.75, 1.0, 0.0])
def test_merging_changes_nothing_but_the_parameters(name: str, ratio: float) -> None:
    network = encoder(name, idle_ratio=ratio)
    merged, x = network.merged(), images_of(network)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    for once, again in ((network(x)[0], merged(x)[0]), (network.logits(x), merged.logits(x))):
        assert float((again - once).norm() / once.norm()) < 1e-5
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    if name != "RePaMLPMixer":  # its active channels are not the ratio's, and its token MLPs stay
        fewer = matrices(merged) / matrices(network)
        assert fewer == pytest.approx(1 - ratio + 1 / (2 * network.config.mlp_ratio))
    assert not any(parameter.requires_grad for parameter in merged.parameters())


@every_architecture
def test_taps_are_the_blocks_outputs(name: str) -> None:
    network = encoder(name)
    blocks = len(network.active_channels())
    _, hidden = network(images_of(network), taps=range(blocks + 1))
    assert list(hidden) == list(range(blocks + 1))
    assert all(tokens.ndim == 3 for tokens in hidden.values())
    with pytest.raises(UserError, match=rf"layer {blocks + 1}: this model has blocks 1\.\.{blocks}"):
        network(images_of(network), taps=[blocks + 1])


@every_architecture
def test_what_cannot_be_merged_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="merged already"):
        encoder(name).merged().merged()
    with pytest.raises(UserError, match=r"^idle channels with LayerNorm cannot be merged"):
        encoder(name, feature_norm=LAYER_NORM).merged()
    with pytest.raises(UserError, match=r"^LayerNorm cannot be merged"):
        encoder(name, feature_norm=LAYER_NORM, channel_idle=False).merged()


@pytest.mark.parametrize("heuristic", ["static", "linear"])
@pytest.mark.parametrize("form", ["training", "merged"])
def test_a_file_of_any_size_opens_again(tmp_path: Path, form: str, heuristic: str) -> None:
    network = encoder("RePaViT", heuristic=heuristic, idle_ratio=0.6)
    chosen = network if form == "training" else network.merged()
    said = {"idle_ratio": 0.6, "heuristic": heuristic, "channel_idle": True, "num_heads": 2}
    opened = checkpoints.load(official_file(tmp_path / "x.pth", dict(chosen.state_dict()), **said))
    assert opened.network.active_channels() == network.active_channels()
    x = images_of(network)
    torch.testing.assert_close(opened.network.logits(x), network.logits(x), rtol=1e-4, atol=1e-5)
    assert (opened.info()["form"], opened.info()["idle_ratio_from"]) == (form, "file")


@pytest.mark.parametrize("name", sorted(set(TINY) - {"RePaViT", "RePaConvViT"}))
@pytest.mark.parametrize("form", ["training", "merged"])
def test_sizes_are_read_from_names_and_shapes(tmp_path: Path, name: str, form: str) -> None:
    network = encoder(name)
    chosen = network if form == "training" else network.merged()
    torch.save(dict(chosen.state_dict()), tmp_path / "x.pth")
    said = {} if name == "RePaMLPMixer" or form == "merged" else {"idle_ratio": 0.75}
    opened = checkpoints.load(tmp_path / "x.pth", overrides=said)
    wanted = dataclasses.replace(chosen.config, **({} if name != "RePaPoolFormer" else {"input_size": 224}))
    assert dataclasses.replace(opened.network.config, idle_ratio=0.75) == wanted
    x = images_of(network)
    torch.testing.assert_close(opened.network.logits(x), chosen.logits(x), rtol=1e-5, atol=1e-6)


def test_an_unknown_idle_ratio_is_asked_for(tmp_path: Path) -> None:
    torch.save(dict(encoder("RePaSwin").state_dict()), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"tell the idle ratio.*--set idle_ratio=0\.75"):
        checkpoints.load(tmp_path / "x.pth")


# Published files


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("field", ["state_dict", "state_dict_reparam"])
def test_published_files_open_without_a_flag(tmp_path: Path, size: str, field: str) -> None:
    state = hollow(shapes(f"repavit/state_dict_{size}", field))
    wanted = find_preset(size)[1]
    path = official_file(
        tmp_path / "checkpoint.pth", state, model=size, idle_ratio=wanted.idle_ratio, channel_idle=True
    )
    info = checkpoints.load(path).info()
    assert (info["systems"], info["model"], info["layout"], info["weights"]) == (["RePaViT"], size, "repavit", "ema")
    assert info["form"] == ("training" if field == "state_dict" else "merged")
    assert (info["idle_ratio"], info["idle_ratio_from"]) == (wanted.idle_ratio, "file")
    assert (info["input_size"], info["num_classes"]) == (224, 1000)
    assert info["hidden_size"] == wanted.hidden_size
    assert info["depth"] == wanted.depth
    torch.save(state, tmp_path / "bare.pth")
    bare = checkpoints.load(tmp_path / "bare.pth").info()
    assert (bare["model"], bare["form"], bare["idle_ratio"]) == (size, info["form"], wanted.idle_ratio)
    assert bare["idle_ratio_from"] == ("published size" if field == "state_dict" else "shapes")


def test_both_sets_of_weights_are_there(tmp_path: Path) -> None:
    state = dict(encoder("RePaViT").state_dict())
    path = official_file(tmp_path / "x.pth", state, idle_ratio=0.75, num_heads=2)
    content = torch.load(path, weights_only=False)
    content["model_ema"] = {name: t + 1 if t.is_floating_point() else t for name, t in state.items()}
    torch.save(content, path)
    for weights, surplus in (("ema", 1.0), ("online", 0.0)):
        opened = checkpoints.load(path, weights=weights)
        assert float((opened.network.pos_embed - state["pos_embed"]).mean()) == pytest.approx(surplus)
    torch.save({"model": state, "args": content["args"]}, path)  # a released file
    assert checkpoints.load(path).info()["weights"] == "online"


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    path = official_file(tmp_path / "x.pth", dict(encoder("RePaViT").state_dict()), idle_ratio=0.75, x=Evil())
    with pytest.raises(Failure, match="needs code execution to load"):
        checkpoints.load(path)
    assert not (tmp_path / "ran").exists()


# Teachers


@pytest.mark.parametrize("form", ["training", "merged"])
def test_a_file_is_a_teacher(tmp_path: Path, form: str) -> None:
    network = encoder("RePaViT")
    chosen = network if form == "training" else network.merged()
    path = official_file(tmp_path / "mine.pth", dict(chosen.state_dict()), idle_ratio=0.75, num_heads=2)
    images = torch.randint(256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_name, by_weights = load_teacher(str(path)), load_teacher("repavit", path)
    assert (by_name.name, by_weights.name, by_name.width, by_name.training) == ("mine.pth", "repavit", 32, False)
    tokens = by_name(images)
    assert tokens.cls is not None
    assert (tokens.patches.shape, tokens.cls.shape) == ((2, 16, 32), (2, 32))
    assert torch.equal(tokens.patches, by_weights(images).patches)
    shift, scale = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    small = nn.functional.interpolate(images / 255.0, size=(32, 32), mode="bicubic", antialias=True)
    expected = chosen((small - shift[:, None, None]) / scale[:, None, None])[0][:, 1:]
    torch.testing.assert_close(tokens.patches, expected, rtol=1e-4, atol=1e-5)
    assert by_name.attention_logits(images, [2])[2].shape == (2, 2, 16, 16)


@pytest.mark.parametrize(("name", "width"), [("RePaSwin", 32), ("RePaMLPMixer", 32), ("RePaPoolFormer", 16)])
def test_the_other_encoders_teach_too(tmp_path: Path, name: str, width: int) -> None:
    path = official_file(tmp_path / "x.pth", dict(encoder(name).state_dict()), idle_ratio=0.75, channel_idle=True)
    teacher = load_teacher(str(path))
    tokens = teacher(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert (teacher.width, tokens.patches.shape[-1], tokens.cls) == (width, width, None)
    with pytest.raises(UserError, match="no attention whose logits can be read"):
        teacher.attention_logits(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), [1])


def test_teachers_that_are_none_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher file 'nowhere\.pt' does not exist"):
        load_teacher("nowhere.pt")
    with pytest.raises(UserError, match="give its file as --teacher-weights, or as the name"):
        load_teacher("repavit")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no known"):
        load_teacher(str(tmp_path / "other.pt"))
    path = official_file(tmp_path / "x.pth", dict(encoder("RePaViT").state_dict()), idle_ratio=0.75, num_heads=2)
    with pytest.raises(UserError, match="leave --teacher-weights out"):
        load_teacher(str(path), path)
