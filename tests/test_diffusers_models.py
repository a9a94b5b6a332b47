"""Networks of diffusers by command: their scheduler's time, image tokens and null conditions, against raw calls."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from repa_eval import checkpoints
from repa_eval.cli import main
from repa_eval.diffusion.interpolant import Interpolant
from repa_eval.errors import Failure, UserError
from repa_eval.features.hidden_states import hidden_features
from repa_eval.interfaces.images import load_data

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TEXT = {"joint_attention_dim": 8, "pooled_projection_dim": 4}
UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


def dit() -> Any:
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=2, sample_size=8,
        num_embeds_ada_norm=10,
    )  # fmt: skip


def sd3() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=1, out_channels=1, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, pos_embed_max_size=8, **TEXT,
    )  # fmt: skip


def flux() -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=2, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        axes_dims_rope=(2, 2, 4), guidance_embeds=True, **TEXT,
    )  # fmt: skip


def unet(**more: Any) -> Any:
    return diffusers.UNet2DModel(
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        **UNET, **more,
    )  # fmt: skip


def conditioned(**more: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, **UNET, **more,
    )  # fmt: skip


def call_dit(network: Any, x: Tensor, time: Tensor) -> Tensor:
    return network(x, timestep=time.long(), class_labels=torch.full((len(x),), 10)).sample


def call_sd3(network: Any, x: Tensor, time: Tensor) -> Tensor:
    text, pooled = torch.zeros(len(x), 333, 8), torch.zeros(len(x), 4)
    return network(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=time).sample


def call_flux(network: Any, x: Tensor, time: Tensor) -> Tensor:
    packs = torch.nn.functional.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)  # (B, 16, 4)
    places = torch.tensor([[0.0, row, column] for row in range(4) for column in range(4)])
    text, pooled = torch.zeros(len(x), 512, 8), torch.zeros(len(x), 4)
    out = network(
        packs, encoder_hidden_states=text, pooled_projections=pooled, timestep=time / 1000, img_ids=places,
        txt_ids=torch.zeros(512, 3), guidance=torch.ones(len(x)),
    ).sample  # fmt: skip
    return torch.nn.functional.pixel_shuffle(out.transpose(1, 2).unflatten(2, (4, 4)), 2)


def call_unet(network: Any, x: Tensor, time: Tensor) -> Tensor:
    return network(x, time.long()).sample


def call_conditioned(network: Any, x: Tensor, time: Tensor) -> Tensor:
    return network(x, time.long(), encoder_hidden_states=torch.zeros(len(x), 77, 12)).sample


UNET_LAYERS = (
    "down_blocks.0.resnets.0 down_blocks.1.attentions.0 mid_block up_blocks.0.attentions.0 up_blocks.0.attentions.1 "
    "up_blocks.1.resnets.0 up_blocks.1.resnets.1"
)
# name -> network, how a pipeline calls it, its layers, betas (first, last, power) or none for flow matching
KINDS: dict[str, tuple[Callable[[], Any], Callable[..., Tensor], str, tuple[float, float, float] | None]] = {
    "DiT": (dit, call_dit, "transformer_blocks.0 transformer_blocks.1", (1e-4, 0.02, 1)),
    "SD3": (sd3, call_sd3, "transformer_blocks.0 transformer_blocks.1 transformer_blocks.2", None),
    "Flux": (flux, call_flux, "transformer_blocks.0 transformer_blocks.1 single_transformer_blocks.0", None),
    "UNet": (unet, call_unet, UNET_LAYERS, (1e-4, 0.02, 1)),
    "conditioned UNet": (conditioned, call_conditioned, UNET_LAYERS, (0.00085, 0.012, 2)),
}
SIDE = {"Flux": {"input_size": 8}}


def saved(kind: str, folder: Path) -> Any:
    torch.manual_seed(0)
    network = KINDS[kind][0]().eval()
    with torch.no_grad():
        for tensor in network.parameters():  # nothing is zero, as in a network that was trained
            tensor.add_(0.05 * torch.randn(tensor.shape))
    network.save_pretrained(folder)
    return network


def shares(first: float, last: float, power: float) -> Any:
    betas = np.linspace(first ** (1 / power), last ** (1 / power), 1000, dtype=np.float64) ** power
    return np.cumprod(1 - betas)


def image_tokens(output: Any, kind: str) -> Tensor:
    """What the test's own hook makes of a layer's output."""
    if kind in ("SD3", "Flux"):
        output = output[1] if isinstance(output, tuple) else output[:, 512:]
    elif not isinstance(output, Tensor):
        output = output[0]
    return output if output.ndim == 3 else output.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hidden_states_and_velocity_are_those_of_its_own_forward(kind: str, tmp_path: Path) -> None:
    network, (_, call, names, betas) = saved(kind, tmp_path), KINDS[kind]
    model = checkpoints.load(tmp_path, overrides=SIDE.get(kind)).diffusion_model
    assert list(model.layer_names) == names.split()
    assert model.image_shape == (1, 8, 8)
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(3, 1, 8, 8, generator=generator) for _ in range(2))
    for t in (0.02, 0.3, 0.9):
        times = torch.full((3,), t)
        if betas is None:
            x, told, alpha, sigma = (1 - t) * clean + t * noise, torch.full((3,), 1000 * t), 0.0, 0.0
        else:
            cumulative = shares(*betas)
            ratios = np.sqrt((1 - cumulative) / cumulative)
            step = int(np.abs(np.log(ratios) - np.log(t / (1 - t))).argmin())
            alpha, sigma = float(np.sqrt(cumulative[step])), float(np.sqrt(1 - cumulative[step]))
            x, told = alpha * clean + sigma * noise, torch.full((3,), float(step))
        torch.testing.assert_close(model.noised(clean, noise, times, Interpolant(path_type="cosine")), x, **CLOSE)
        outputs: dict[str, Any] = {}
        handles = [
            network.get_submodule(name).register_forward_hook(
                lambda _m, _given, output, name=name, kept=outputs: kept.update({name: output})
            )
            for name in model.layer_names
        ]
        raw = call(network, x, told)
        for handle in handles:
            handle.remove()
        velocity, hidden = model(x, times, model.null_condition(3), taps=tuple(range(1, model.depth + 1)))
        wanted = raw if betas is None else raw[:, :1] - (x - sigma * raw[:, :1]) / alpha
        torch.testing.assert_close(velocity, wanted, rtol=1e-3, atol=1e-4)
        for layer, name in enumerate(model.layer_names, 1):
            torch.testing.assert_close(hidden[layer], image_tokens(outputs[name], kind), **CLOSE)
            assert hidden[layer].shape[:2] == (3, 64 if "UNet" in kind and hidden[layer].shape[1] == 64 else 16)


def align(*words: str) -> Any:
    ran = CliRunner().invoke(main, ["align", *words], catch_exceptions=False)
    return ran


@pytest.mark.parametrize("kind", KINDS)
def test_alignment_by_command(kind: str, tmp_path: Path) -> None:
    saved(kind, tmp_path / "net")
    side = ["--set", "input_size=8"] if kind == "Flux" else []
    names = KINDS[kind][2].split()
    ran = align(
        "--ckpt", str(tmp_path / "net"), *side, "--teacher", "digits-vit", "--data", "digits", "--num-images", "8",
        "--layer", f"1,{names[-1]}", "--timesteps", "0.1,0.9", "--metrics", "cka", "--json", "--no-cache", "--quiet",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    assert [(row["layer"], row["timestep"]) for row in answer["rows"]] == [
        (1, 0.1), (len(names), 0.1), (1, 0.9), (len(names), 0.9),
    ]  # fmt: skip
    assert all(np.isfinite(row["value"]) for row in answer["rows"])
    [record] = answer["protocols"].values()
    betas = KINDS[kind][3]
    assert ("steps 0..999" in record["native_convention"]) == (betas is not None)
    assert ("flow matching, timestep 1000 t" in record["native_convention"]) == (betas is None)
    assert "assumed" in record["native_convention"]
    assert record["layer_names"] == names
    assert ("text" in record) == (kind in ("SD3", "Flux", "conditioned UNet"))
    assert record.get("text", "zeros").startswith("zeros")
    assert record["label"] == "null"


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        (diffusers.DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"), "predicts v_predict"),
        (diffusers.DDPMScheduler(num_train_timesteps=500, prediction_type="sample"), "steps 0..499, 499 = noise"),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow matching, timestep 1000 t"),
    ],
)
@torch.no_grad()
def test_the_scheduler_of_the_pipeline_says_what_is_predicted(scheduler: Any, said: str, tmp_path: Path) -> None:
    network = saved("UNet", tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    clean, noise, t = torch.rand(1, 1, 8, 8), torch.randn(1, 1, 8, 8), torch.tensor([0.4])
    for folder in (tmp_path, tmp_path / "unet"):
        model = checkpoints.load(folder).diffusion_model
        assert said in model.native
        assert "assumed" not in model.native
        x = model.noised(clean, noise, t, Interpolant())
        velocity, _ = model(x, t, model.null_condition(1))
        if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            torch.testing.assert_close(velocity, network(x, torch.tensor([400.0])).sample)
            continue
        ratios = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().log()
        step = int((ratios - np.log(0.4 / 0.6)).abs().argmin())
        out = network(x, step).sample
        # diffusers' own words for what an output means
        data = scheduler.step(out, step, x).pred_original_sample if not scheduler.config.clip_sample else None
        alpha, sigma = scheduler.alphas_cumprod[step].sqrt(), (1 - scheduler.alphas_cumprod[step]).sqrt()
        if data is None:
            data = out if scheduler.config.prediction_type == "sample" else alpha * x - sigma * out
        torch.testing.assert_close(velocity, (x - alpha * data) / sigma - data, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    saved("Flux", tmp_path / "flux")
    model = checkpoints.load(tmp_path / "flux").diffusion_model
    with pytest.raises(UserError, match=r"the images are 1x8x8 .*this model reads 1x128x128"):
        hidden_features(model, load_data("digits", "test").head(4), layers=[1], t=0.1)
    saved("UNet", tmp_path / "unet")
    with pytest.raises(UserError, match=r"--set depth: .*only input_size may be set"):
        checkpoints.load(tmp_path / "unet", overrides={"depth": 3})
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "scheduler").mkdir()
    config = tmp_path / "scheduler" / "scheduler_config.json"
    for text, said in {
        '{"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}': "a EDMEulerScheduler .* is neither DDPM's steps",
        '{"_class_name": "DDPMScheduler", "beta_schedule": "none"}': "describes no schedule of DDPM",
        '{"_class_name": "DDPMScheduler", "beta_schedule": "linear", "num_train_timesteps": "x"}': "no number of steps",
    }.items():
        config.write_text(text)
        with pytest.raises((UserError, Failure), match=said) as caught:
            checkpoints.load(tmp_path)
        assert "\n" not in str(caught.value)
    config.unlink()
    diffusers.UNet1DModel(sample_size=16, block_out_channels=(8, 8, 8)).save_pretrained(tmp_path / "other")
    ran = align("--ckpt", str(tmp_path / "other"), "--layer", "1", "--teacher", "digits-vit", "--data", "digits")
    assert ran.exit_code == 2
    assert "holds UNet1DModel, which is no diffusion model that is known here: a plug-in can wrap one" in ran.stderr
    ran = align("--ckpt", str(tmp_path), "--layer", "down_blocks.7.resnets.0", "--teacher", "digits-vit")
    assert ran.exit_code == 2
    assert (
        "this network has the layers down_blocks.0.resnets.0, down_blocks.1.attentions.0, ..., up_blocks." in ran.stderr
    )


@torch.no_grad()
def test_labels_of_a_network_without_a_null_label_and_the_inputs_of_xl(tmp_path: Path) -> None:
    torch.manual_seed(0)
    unet(num_class_embeds=10).save_pretrained(tmp_path / "labelled")
    model = checkpoints.load(tmp_path / "labelled").diffusion_model
    assert (model.num_classes, model.has_null_label) == (10, False)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.5, 0.5])
    one, other = (model(x, t, torch.full((2,), label))[0] for label in (1, 2))
    assert not torch.equal(one, other)
    network = conditioned(
        addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=17
    )
    network.eval().save_pretrained(tmp_path / "xl")
    model = checkpoints.load(tmp_path / "xl").diffusion_model
    steps = model._time.told(t)
    more = {"text_embeds": torch.zeros(2, 5), "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)}
    text = torch.zeros(2, 77, 12)
    noise = network(x, steps, encoder_hidden_states=text, added_cond_kwargs=more).sample
    torch.testing.assert_close(model(x, t, model.null_condition(2))[0], model._time.velocity(x, noise, t))
    assert "pooled zeros (5)" in model.record()["text"]


def test_a_pipeline_of_latents_is_measured_on_plain_images_by_its_own_vae(tmp_path: Path) -> None:
    torch.manual_seed(0)
    diffusers.UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12, **{**UNET, "in_channels": 4, "out_channels": 4},
    ).save_pretrained(tmp_path / "pipe" / "unet")  # fmt: skip
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4,
    ).save_pretrained(tmp_path / "pipe" / "vae")  # fmt: skip
    diffusers.PNDMScheduler(beta_schedule="scaled_linear").save_pretrained(tmp_path / "pipe" / "scheduler")
    (tmp_path / "pipe" / "model_index.json").write_text("{}")
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    ran = align(
        "--ckpt", str(tmp_path / "pipe"), "--vae", str(tmp_path / "pipe" / "vae"), "--resolution", "16", "--teacher",
        "timm:test_vit", "--teacher-weights", str(tmp_path / "vit.pth"), "--data", f"folder:{tmp_path / 'images'}",
        "--num-images", "6", "--layer", "mid_block", "--timesteps", "0.3", "--metrics", "cka,lds", "--json",
        "--no-cache", "--quiet",
    )  # fmt: skip
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    [cka] = [row for row in answer["rows"] if row["metric"] == "cka"]
    record = answer["protocols"][cka["protocol"]]
    assert (cka["layer"], cka["system"], record["model_input"]) == (3, None, "latents")
    assert "steps 0..999" in record["native_convention"]
    assert "assumed" not in record["native_convention"]


PLUGIN = '''
"""A network of somebody else's, and the layout of its files."""
import torch

from repa_eval import wrap
from repa_eval.interfaces.checkpoint_layout import Checkpoint, checkpoint_layout


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))

    def forward(self, x, time):
        h = x.reshape(len(x), 4, 16) * (1 + time.view(-1, 1, 1) / 1000)
        for block in self.blocks:
            h = torch.tanh(block(h))
        return h.reshape(x.shape)


@checkpoint_layout("theirs")
def read(path, content, request):
    if not isinstance(content, dict) or "blocks.2.bias" not in content:
        return None
    network = Theirs()
    network.load_state_dict(content)
    model = wrap(network, layers="blocks.*", run=lambda net, x, t, y: net(x, 1000 * t), image_shape=(1, 8, 8))
    return Checkpoint(path, "theirs", (), "Theirs", (model,), request.weights, None)
'''


def test_a_plug_in_that_wraps_a_network_is_measured_by_command(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(PLUGIN)
    state = {f"blocks.{i}.{name}": torch.randn(*shape) for i in range(3) for name, shape in
             {"weight": (16, 16), "bias": (16,)}.items()}  # fmt: skip
    torch.save(state, tmp_path / "0000200.pt")
    ran = CliRunner().invoke(main, [
        "align", "--plugin", str(tmp_path / "theirs.py"), "--ckpt", str(tmp_path / "0000200.pt"), "--teacher",
        "digits-vit", "--data", "digits", "--num-images", "8", "--layer", "blocks.2", "--timesteps", "0.1,0.9",
        "--metrics", "cka", "--json", "--no-cache", "--quiet",
    ])  # fmt: skip
    assert ran.exit_code == 0, ran.output
    answer = json.loads(ran.stdout)
    assert [(row["layer"], row["timestep"], row["step"]) for row in answer["rows"]] == [(3, 0.1, 200), (3, 0.9, 200)]
    [record] = answer["protocols"].values()
    assert (record["network"], record["step_from"]) == ("Theirs", "file name")
