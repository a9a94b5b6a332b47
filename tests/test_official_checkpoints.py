"""Files of the published layouts open without a word about them; bad ones say what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import official_files as official
from golden_runners.fill import fill_values
from repa_eval import checkpoints
from repa_eval.diffusion import behaviour
from repa_eval.diffusion.conventions import EPSILON, REVERSED, VELOCITY, NoisePrediction, ReversedTime
from repa_eval.errors import Failure, UserError
from repa_eval.interfaces.architecture import find_preset
from repa_eval.results import make_row

# case -> systems of its bare weights, model, depth, width, heads, patch, channels, side, class token
SIZES: dict[str, tuple[Any, ...]] = {
    "repa/state_dict_SiT-B-2": ("REPA HASTE", "SiT-B/2", 12, 768, 12, 2, 4, 32, False),
    "repa/state_dict_SiT-L-2": ("REPA HASTE", "SiT-L/2", 24, 1024, 16, 2, 4, 32, False),
    "repa/state_dict_SiT-XL-2": ("REPA HASTE", "SiT-XL/2", 28, 1152, 16, 2, 4, 32, False),
    "repa/state_dict_MMDiT-t2i": ("REPA HASTE", "MMDiT", 24, 768, 24, 2, 4, 32, False),
    "haste/state_dict_SiT-B_2": ("REPA HASTE", "SiT-B/2", 12, 768, 12, 2, 4, 32, False),
    "haste/state_dict_SiT-L_2": ("REPA HASTE", "SiT-L/2", 24, 1024, 16, 2, 4, 32, False),
    "haste/state_dict_SiT-XL_2": ("REPA HASTE", "SiT-XL/2", 28, 1152, 16, 2, 4, 32, False),
    "haste/state_dict_MMDiT": ("REPA HASTE", "MMDiT", 24, 768, 24, 2, 4, 32, False),
    "reg/state_dict_SiT-B-2": ("REG", "SiT-B/2", 12, 768, 12, 2, 4, 32, True),
    "reg/state_dict_SiT-L-2": ("REG", "SiT-L/2", 24, 1024, 16, 2, 4, 32, True),
    "reg/state_dict_SiT-XL-2": ("REG", "SiT-XL/2", 28, 1152, 16, 2, 4, 32, True),
    "erw/state_dict_SiT-B-2": ("ERW", "SiT-B/2", 12, 768, 12, 2, 4, 32, False),
    "erw/state_dict_SiT-XL-2": ("ERW", "SiT-XL/2", 28, 1152, 16, 2, 4, 32, False),
    "gmem/state_dict_LightningDiT-B-1": ("GMem", "LightningDiT-B/1", 12, 768, 12, 1, 32, 16, False),
    "gmem/state_dict_LightningDiT-XL-1": ("GMem", "LightningDiT-XL/1", 28, 1152, 16, 1, 32, 16, False),
    "sit/state_dict_SiT-XL-2": ("SiT DiT", "SiT-XL/2", 28, 1152, 16, 2, 4, 32, False),
    "dit/state_dict_DiT-XL-2": ("SiT DiT", "SiT-XL/2", 28, 1152, 16, 2, 4, 32, False),
    "u-repa/state_dict_U-DiT-S": ("U-DiT", "U-DiT-S", 22, 96, 4, None, 4, 32, False),
    "u-repa/state_dict_U-DiT-B": ("U-DiT", "U-DiT-B", 22, 192, 8, None, 4, 32, False),
    "u-repa/state_dict_U-DiT-L": ("U-DiT", "U-DiT-L", 22, 384, 16, None, 4, 32, False),
    "softrepa/state_dict_SD3Transformer2DModel_DC": ("SoftREPA", "SD3-medium", 24, 1536, 24, 2, 16, 128, False),
}
pytestmark = pytest.mark.usefixtures("hollow_files")
FIELDS = ("model", "depth", "hidden_size", "num_heads", "patch_size", "in_channels", "input_size", "class_token")

# what the trainer's arguments decide: case, arguments, systems, convention
TOLD: list[tuple[str, dict[str, Any], str, str]] = [
    ("repa/state_dict_SiT-XL-2", official.REPA, "REPA", VELOCITY),
    ("haste/state_dict_SiT-XL_2", official.HASTE, "HASTE", VELOCITY),
    ("reg/state_dict_SiT-XL-2", official.REG, "REG", VELOCITY),
    ("erw/state_dict_SiT-XL-2", official.ERW, "ERW", VELOCITY),
    ("repa/state_dict_SiT-XL-2", official.ERW, "ERW", VELOCITY),  # without rotary tables it looks like REPA's
    ("repa/state_dict_MMDiT-t2i", official.REPA, "REPA", VELOCITY),
    ("haste/state_dict_MMDiT", official.HASTE, "HASTE", VELOCITY),
    ("sit/state_dict_SiT-XL-2", official.SIT, "SiT", REVERSED),
    ("dit/state_dict_DiT-XL-2", official.DIT, "DiT", EPSILON),
    ("u-repa/state_dict_U-DiT-B", {"model": "U-DiT-B"}, "U-DiT", EPSILON),
]


@pytest.mark.parametrize("case", SIZES)
def test_bare_weights_tell_architecture_and_sizes(tmp_path: Path, case: str) -> None:
    torch.save(official.hollow(official.shapes(case)), tmp_path / "0400000.bin")
    opened = checkpoints.load(tmp_path / "0400000.bin", allow_nan=True)  # 2.7 GB of one number need no look
    info = opened.info()
    systems, *sizes = SIZES[case]
    assert info["systems"] == systems.split()
    assert [info[field] for field in FIELDS] == sizes
    assert (info["step"], info["step_from"], info["weights"]) == (400_000, "file name", "ema")
    assert info["teacher"] is None
    state = opened.network.state_dict()
    assert {name: list(tensor.shape) for name, tensor in state.items()} == official.shapes(case)
    assert not any(tensor.is_meta for tensor in opened.network.state_dict().values())
    assert json.loads(json.dumps(info)) == info


def test_every_published_list_is_in_the_table() -> None:
    """The lists of RePaViT are encoders, not diffusion models."""
    found = {f"{path.parent.name}/{path.stem}" for path in official.GOLDEN.glob("*/state_dict_*.json")}
    assert {case for case in found if not case.startswith("repavit/")} == set(SIZES)
    assert len(SIZES) == 21


@pytest.mark.parametrize(("case", "args", "system", "convention"), TOLD)
def test_arguments_in_the_file_decide(
    tmp_path: Path, case: str, args: dict[str, Any], system: str, convention: str
) -> None:
    file = official.trainer_file(tmp_path / "x.pt", official.hollow(official.shapes(case)), **args)
    opened = checkpoints.load(file, allow_nan=True)
    info = opened.info()
    assert (info["layout"], info["systems"], info["step"]) == ("trainer", [system], 400_000)
    assert info["convention"] == convention == opened.model.native
    assert (info["teacher"], info["encoder_depth"]) == (args.get("enc_type"), args.get("encoder_depth"))


def test_the_warm_up_stub_of_erw(tmp_path: Path) -> None:
    state = official.hollow(official.shapes("erw/state_dict_SiT-XL-2", "state_dict_stage1"))
    file = official.trainer_file(tmp_path / "warmup_final.pt", state, steps=100_000, **official.ERW)
    info = checkpoints.load(file).info()
    assert (info["systems"], info["model"], info["depth"]) == (["ERW"], "SiT-XL/2, first 4 blocks", 4)


def test_gmem_files_hold_their_config(tmp_path: Path) -> None:
    state = official.hollow(official.shapes("gmem/state_dict_LightningDiT-B-1"))
    config = {"model": {"model_type": "LightningDiT-B/1", "use_rope": True}, "train": {"global_batch_size": 1024}}
    torch.save({"model": state, "ema": state, "config": config}, tmp_path / "0080000.pt")
    info = checkpoints.load(tmp_path / "0080000.pt").info()
    assert (info["systems"], info["model"], info["convention"]) == (["GMem"], "LightningDiT-B/1", REVERSED)


# --- small real weights


def small(size: str = "SiT-S/2", **changes: Any) -> tuple[dict[str, Tensor], nn.Module]:
    """A filled state dict of a small network, and the network."""
    from dataclasses import replace

    architecture, config = find_preset(size)
    network = architecture.build(
        replace(
            config, **{"depth": 2, "hidden_size": 48, "num_heads": 4, "input_size": 8, "num_classes": 10, **changes}
        )
    )
    state = network.state_dict()
    network.load_state_dict(fill_values(state, keep=[name for name in state if "pos_embed" in name]), strict=False)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, network.eval()


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path)
    return path


HEADS = {"num_heads": 4}


def batch(channels: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, channels, 8, 8, generator=generator), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1, 9, 10])


def test_averaged_or_trained_weights(tmp_path: Path) -> None:
    state, _ = small()
    online = {name: tensor + 1 for name, tensor in state.items()}
    torch.save({"model": online, "ema": state, "steps": 3}, tmp_path / "a.pt")
    for weights, expected in {"ema": state, "online": online}.items():
        opened = checkpoints.load(tmp_path / "a.pt", weights=weights, overrides=HEADS)
        assert opened.weights == weights
        assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.network.state_dict().items())
    torch.save({"model": online, "steps": 3}, tmp_path / "b.pt")
    with pytest.raises(UserError, match=r"b\.pt holds no ema weights \(no entry 'ema'\); use --weights online"):
        checkpoints.load(tmp_path / "b.pt", overrides=HEADS)
    with pytest.raises(UserError, match="is a bare state dict: it holds one set of weights; leave --weights out"):
        checkpoints.load(saved(tmp_path / "c.pt", state), weights="online", overrides=HEADS)


def test_wrappers_prefixes_and_decoder_blocks(tmp_path: Path) -> None:
    state, network = small(depth=4)
    older = {
        (f"decoder_blocks.{int(name.split('.')[1]) - 1}." + name.split(".", 2)[2])
        if name.startswith("blocks.") and int(name.split(".")[1]) >= 1
        else name: tensor
        for name, tensor in state.items()
    }
    assert "decoder_blocks.2.mlp.fc1.bias" in older
    for number, names in enumerate((older, {f"module._orig_mod.{name}": tensor for name, tensor in state.items()})):
        opened = checkpoints.load(saved(tmp_path / f"{number}.pt", names), overrides=HEADS)
        assert torch.equal(opened.model(*batch())[0], network(*batch())[0])
    assert checkpoints.load(tmp_path / "0.pt", overrides=HEADS).option("encoder_depth") == 1
    renamed = checkpoints.load(tmp_path / "0.pt", overrides=HEADS).network.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in renamed.items())


def test_heads_come_from_the_file_the_table_or_the_user(tmp_path: Path) -> None:
    state, _ = small()
    file = saved(tmp_path / "a.pt", state)
    with pytest.raises(UserError, match=r"width 48, depth 2: .* add --set num_heads=N"):
        checkpoints.load(file)
    assert checkpoints.load(file, overrides={"num_heads": 6}).info()["num_heads"] == 6
    with pytest.raises(UserError, match="48 is not a multiple of num_heads 5"):
        checkpoints.load(file, overrides={"num_heads": 5})
    with pytest.raises(UserError, match=r"unknown --set key 'num_head'.*num_heads"):
        checkpoints.load(file, overrides={"num_head": 4})
    normed, _ = small(qk_norm=True)
    assert checkpoints.load(saved(tmp_path / "b.pt", normed)).info()["num_heads"] == 4  # told by the norm's width
    config = {"model": {"num_heads": 3}}
    torch.save({"ema": state, "config": config}, tmp_path / "c.pt")
    assert checkpoints.load(tmp_path / "c.pt").info()["num_heads"] == 3


def test_one_convention_inside(tmp_path: Path) -> None:
    x, t, y = batch()
    state, network = small(learn_sigma=True)
    file = saved(tmp_path / "a.pt", state)
    reversed_time = checkpoints.load(file, overrides={**HEADS, "system": "SiT"}).model
    assert isinstance(reversed_time, ReversedTime)
    out, hidden = reversed_time(x, t, y, taps=(1,))
    expected, inner = network(x, 1 - t, y, taps=(1,))
    assert torch.equal(out, -expected)
    assert torch.equal(hidden[1], inner[1])
    noise_prediction = checkpoints.load(file, overrides={**HEADS, "system": "DiT"}).model
    assert isinstance(noise_prediction, NoisePrediction)
    with pytest.raises(UserError, match="unknown system 'REG'"):
        checkpoints.load(file, overrides={**HEADS, "system": "REG"})


def test_a_step_of_ddpm_is_matched_by_its_noise_to_signal_ratio() -> None:
    cumulative = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    steps = torch.tensor([0, 10, 300, 999])
    ratio = ((1 - cumulative[steps]) / cumulative[steps]).sqrt()
    model = NoisePrediction(small("DiT-S/2")[1])  # type: ignore[arg-type]
    assert torch.equal(model.step_of(ratio / (1 + ratio)), steps)
    assert model.step_of(torch.tensor([0.0, 1.0])).tolist() == [0, 999]
    x, noise = torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8)
    t = (ratio / (1 + ratio)).float()
    alpha, sigma = (
        part.float()[:, None, None, None] for part in (cumulative[steps].sqrt(), (1 - cumulative[steps]).sqrt())
    )
    x_t = model.noised(x, noise, t, None)  # type: ignore[arg-type]
    torch.testing.assert_close(x_t, alpha * x + sigma * noise)
    # from the true noise the velocity is exactly noise - x, so the conversion is the right one
    model.network.forward = lambda x_t, step, y, taps=(): (torch.cat([noise, noise], 1), {})  # type: ignore
    torch.testing.assert_close(model(x_t, t, torch.zeros(4))[0], noise - x, rtol=1e-3, atol=1e-3)


class Answering(nn.Module):
    """Knows noise when it sees it: as the published system would at its noisiest time."""

    def __init__(self, system: str) -> None:
        super().__init__()
        self.system = system

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, taps: Any = ()) -> tuple[Tensor, dict[int, Tensor]]:
        steps = float(t[0]) > 1
        if self.system == "DiT":
            return x if steps else torch.zeros_like(x), {}
        return torch.zeros_like(x) if steps else -x, {}


@pytest.mark.parametrize("system", ["SiT", "DiT"])
def test_sit_and_dit_are_told_apart_by_what_they_answer(tmp_path: Path, system: str) -> None:
    state, _ = small(learn_sigma=True)
    opened = checkpoints.load(saved(tmp_path / "a.pt", state), overrides=HEADS)
    assert opened.systems == ("SiT", "DiT")
    assert opened.info()["convention"] == f"{REVERSED} or {EPSILON}"
    assert behaviour.likeliest(opened.models) is opened.models[0]  # these weights know nothing: the first is taken
    for model in opened.models:
        answering = Answering(system)
        model.network.forward = answering.forward
    expected = {"SiT": ReversedTime, "DiT": NoisePrediction}[system]
    assert isinstance(opened.model, expected)


# --- other containers


def test_safetensors_with_and_without_a_config(tmp_path: Path) -> None:
    state, network = small()
    save_file(state, tmp_path / "plain.safetensors")
    opened = checkpoints.load(tmp_path / "plain.safetensors", overrides=HEADS)
    assert (opened.layout, opened.systems) == ("state-dict", ("REPA", "HASTE"))
    assert torch.equal(opened.model(*batch())[0], network(*batch())[0])


def test_a_file_from_before_zip_archives(tmp_path: Path) -> None:
    state, network = small()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoints.load(tmp_path / "old.pth", overrides=HEADS).model(*batch())[0], network(*batch())[0])


def test_soft_tokens(tmp_path: Path) -> None:
    torch.save(nn.Parameter(torch.randn(5, 4, 1536)), tmp_path / "dc_tokens.pth")
    torch.save(nn.Embedding(100, 7680), tmp_path / "dc_t_tokens.pth")
    info = checkpoints.load(tmp_path / "dc_tokens.pth").info()
    assert (info["systems"], info["layout"], info["depth"], info["hidden_size"]) == (
        ["SoftREPA"], "softrepa-tokens", 5, 1536,
    )  # fmt: skip
    assert info["num_parameters"] == 5 * 4 * 1536
    assert checkpoints.load(tmp_path / "dc_t_tokens.pth").info()["num_parameters"] == 100 * 7680
    torch.save(torch.randn(640, 768), tmp_path / "bank.pth")  # a memory bank is no set of tokens
    with pytest.raises(UserError, match="of no known layout"):
        checkpoints.load(tmp_path / "bank.pth")


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from diffusers import SD3Transformer2DModel

    folder = tmp_path_factory.mktemp("sd3")
    SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=8, out_channels=4,
        pos_embed_max_size=8,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_a_folder_of_diffusers(sd3: Path, tmp_path: Path) -> None:
    info = checkpoints.load(sd3).info()
    assert (info["layout"], info["model"], info["systems"]) == ("diffusers", "SD3Transformer2DModel", ["SoftREPA"])
    assert (info["depth"], info["hidden_size"], info["num_heads"], info["patch_size"]) == (2, 16, 2, 2)
    shutil.copytree(sd3, tmp_path / "pipe" / "transformer")
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    assert checkpoints.load(tmp_path / "pipe").info()["depth"] == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
    with pytest.raises(UserError, match="holds a FlowMatchEulerDiscreteScheduler, which the installed diffusers"):
        checkpoints.load(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("{")
    with pytest.raises(Failure, match=r"config\.json is damaged"):
        checkpoints.load(tmp_path / "other")


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = small()
    file = saved(tmp_path / "SiT-small.pt", state)
    asked: list[tuple[str, ...]] = []
    there = ["README.md", "SiT-small.pt"]

    def fetch(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repository: there)
    for path in ("hf:someone/sit", "hf:someone/sit:SiT-small.pt"):
        assert checkpoints.load(path, overrides=HEADS).info()["model"] == "SiT"
    assert asked == [("someone/sit", "SiT-small.pt")] * 2
    there.append("other.pt")
    with pytest.raises(UserError, match=r"several files .*SiT-small\.pt, other\.pt\): add :FILE"):
        checkpoints.load("hf:someone/sit")
    with pytest.raises(UserError, match="expected hf:owner/name or hf:owner/name:file"):
        checkpoints.load("hf:sit")

    def fail(*_: object) -> str:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(Failure, match=r"hf:someone/sit cannot be fetched: no route$"):
        checkpoints.load("hf:someone/sit:a.pt")


# --- bad files


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    state, _ = small()
    state["blocks.1.mlp.fc1.bias"][3] = float("nan")
    state["final_layer.linear.bias"][0] = float("inf")
    file = saved(tmp_path / "a.pt", state)
    with pytest.raises(Failure, match=r"blocks\.1\.mlp\.fc1\.bias and 1 more are not finite; --allow-nan opens it"):
        checkpoints.load(file, overrides=HEADS)
    assert checkpoints.load(file, overrides=HEADS, allow_nan=True).systems == ("REPA", "HASTE")


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if name not in names}


def test_what_does_not_fit_is_said_in_one_line(tmp_path: Path) -> None:
    state, _ = small()
    nearest = r"nearest is SiT \(REPA, HASTE, SiT\), but y_embedder\S+ is missing; odd is unknown"
    cases: list[tuple[dict[str, Tensor], str]] = [
        (without(state, "blocks.1.attn.proj.bias"), r"blocks\.1\.attn\.proj\.bias \[48\] is missing"),
        (
            {**state, "blocks.1.mlp.fc2.bias": torch.zeros(3)},
            r"blocks\.1\.mlp\.fc2\.bias has shape \[3\], expected \[48\]",
        ),
        (
            {**without(state, "y_embedder.embedding_table.weight"), "odd": torch.zeros(2)},
            nearest,
        ),
        ({"a.weight": torch.zeros(2)}, "of no known layout"),
        ({**state, "surprise.weight": torch.zeros(3)}, "surprise.weight"),
    ]
    for content, text in cases:
        with pytest.raises(UserError, match=text) as caught:
            checkpoints.load(saved(tmp_path / "a.pt", content), overrides=HEADS)
        assert "\n" not in str(caught.value)


def test_nothing_runs_and_nothing_but_arguments_is_unpickled(tmp_path: Path) -> None:
    state, _ = small()

    class Odd:
        pass

    import test_official_checkpoints as here

    here.Odd = Odd  # type: ignore[attr-defined]
    Odd.__qualname__ = "Odd"
    torch.save({"ema": state, "args": Odd()}, tmp_path / "a.pt")
    with pytest.raises(
        Failure,
        match=r"needs code execution to load \(it asks for test_official_checkpoints\.Odd\), which is never allowed",
    ):
        checkpoints.load(tmp_path / "a.pt", overrides=HEADS)


@pytest.mark.parametrize(
    ("name", "content", "step", "step_from"),
    [
        ("0400000.pt", "bare", 400_000, "file name"),
        ("0400000.pt", "ema only", 400_000, "file name"),
        ("0400000.pt", "steps 7", 7, None),  # what a file records wins
        ("last.pt", "bare", None, None),
        ("400000.pt", "bare", None, None),
    ],
)
def test_the_step_of_a_file_without_one_is_its_name(
    tmp_path: Path, name: str, content: str, step: int | None, step_from: str | None
) -> None:
    state = official.hollow(official.shapes("repa/state_dict_SiT-B-2"))
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    path = tmp_path / "run" / "checkpoints" / name
    kinds = {"bare": state, "ema only": {"ema": state, "config": {}}, "steps 7": {"ema": state, "steps": 7}}
    torch.save(kinds[content], path)
    opened = checkpoints.load(path, allow_nan=True)
    info = opened.info()
    assert (info["step"], info.get("step_from")) == (step, step_from)
    row = make_row(metric="cka", value=0.5, protocol={"kind": "alignment"}, **opened.columns())
    assert (row.run, row.step) == ("run", step)
    assert row.record == {"kind": "alignment", **({} if step_from is None else {"step_from": step_from})}
