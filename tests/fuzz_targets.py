"""What is fuzzed: every kind of file that the suite reads, a valid example of it, and the reader.

A kind of file of a new reader is one entry of `targets()`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save as safetensors_of

import fuzz_forms as forms
from helpers import run, tiny
from repa_eval import checkpoints, results
from repa_eval.checkpoints.shared.token_files import read_tokens
from repa_eval.commands.shared.verification import faults_of
from repa_eval.data.readers.image_files import open_images
from repa_eval.data.readers.statistics import open_statistics
from repa_eval.diffusion.conventions import VELOCITY
from repa_eval.interfaces.images import load_data
from repa_eval.interfaces.recorded_names import recorded_data, recorded_extractor
from repa_eval.memory_bank.files import load_bank
from repa_eval.models.sit import SiT, SiTConfig
from repa_eval.plugin_files.records import warn_of_differences
from repa_eval.preparation import images as preparation
from repa_eval.reports.inputs import collect
from repa_eval.reports.numbers.words import Metrics
from repa_eval.reports.page import fitting, prepare
from repa_eval.runtime.run_record import status_of
from repa_eval.sampling.sample_record import check_complete, read_record
from repa_eval.train.recipe import read_recipe, resolve
from repa_eval.train.state import load_good_checkpoint, read_run


@dataclass(frozen=True)
class Target:
    """One kind of file.

    file: its path in a folder of its own. valid: its bytes. changed: makes the bytes of a changed one. read: what is
    done with it, by its path. beside: further files of the folder, by their paths. opens: whether the valid file is one
    that may be read. values: what the file holds, where these are values of JSON or of a pickle; written: makes the
    bytes of such values.
    """

    file: str
    valid: bytes
    changed: Callable[[Random], bytes]
    read: Callable[[Path], object]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    opens: bool = True
    values: Any = None
    written: Callable[[Any], bytes] = field(default=lambda values: as_json(values))

    def lay_out(self, folder: Path) -> Path:
        """Write the valid files into an empty folder; the path of the one that is changed."""
        for name, content in {**self.beside, self.file: self.valid}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder / self.file


def json_target(
    file: str, tree: Any, read: Callable[[Path], object], beside: Mapping[str, bytes] | None = None
) -> Target:
    changed = functools.partial(forms.as_json, tree)
    return Target(file, json.dumps(tree).encode(), changed, read, beside or {}, values=tree)


def yaml_target(file: str, tree: Any, read: Callable[[Path], object]) -> Target:
    return Target(file, yaml.safe_dump(tree).encode(), functools.partial(forms.as_yaml, tree), read, values=tree)


def lines_target(
    file: str, values: Sequence[Any], read: Callable[[Path], object], beside: Mapping[str, bytes]
) -> Target:
    changed = functools.partial(forms.as_lines, list(values))
    return Target(file, lines(values), changed, read, beside, values=list(values), written=lines)


def torch_target(file: str, content: Any, read: Callable[[Path], object]) -> Target:
    changed = functools.partial(forms.as_torch, content)
    return Target(file, pickled(content), changed, read, values=content, written=pickled)


def as_json(values: Any) -> bytes:
    return json.dumps(values).encode()


def pickled(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def changed_plugins(recipe: Mapping[str, Any], rng: Random) -> bytes:
    """A recipe of which the plug-ins, and nothing else, are changed."""
    return as_json({**recipe, "plugins": forms.changed_tree(recipe["plugins"], rng)})


def lines(values: Sequence[Any]) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


# --- readers


def read_report(table: Path) -> None:
    """What `repa-eval report` reads of a run folder, before it draws."""
    inputs = collect([table.parent])
    page = prepare(inputs.rows, inputs.curves, inputs.media, inputs.protocols, inputs.runs, Metrics({}))
    fitting(inputs.media, page.arms, ("tokens", "samples"), 100_000)


def read_run_record(file: Path) -> None:
    status_of(file.parent)
    read_run(file.parent)


def read_sample_record(file: Path) -> None:
    record = read_record(file.parent) or {}
    check_complete(file.parent, record, 4)
    recorded_extractor(record.get("extractor"), file.parent)
    recorded_data(record.get("data"), file.parent, "--reference")


def read_recipe_file(file: Path) -> None:
    tree = read_recipe(str(file))
    resolve(tree)
    warn_of_differences(tree, file)


def read_images(path: Path) -> None:
    source = open_images(path)
    source.fetch(range(min(len(source), 8)))


def read_statistics(path: Path) -> None:
    found = open_statistics(path)
    if found is not None and found.images is not None:
        found.images.fetch([0])


def read_prepared(file: Path) -> None:
    preparation.begin(file.parent, {"num_images": 4, "resolution": "8x8", "version": "0"})


def read_checkpoint(path: Path, **overrides: Any) -> None:
    opened = checkpoints.load(path, overrides=overrides)
    opened.info()
    opened.columns()


# --- what valid files hold


def picture(kind: str = "PNG", *, mode: str = "RGB", side: int = 8, **options: Any) -> bytes:
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format=kind, **options)
    return buffer.getvalue()


PICTURES = [
    picture(), picture(mode="L"), picture(mode="P"), picture(mode="RGBA"), picture(mode="1"), picture("JPEG"),
    picture("JPEG", mode="L", progressive=True), picture("BMP"), picture("GIF", mode="P"),
    picture("WEBP", lossless=True),
    picture("TIFF"), picture("TIFF", compression="tiff_lzw"), picture("TIFF", compression="tiff_adobe_deflate"),
]  # fmt: skip


def rows() -> list[dict[str, Any]]:
    common = {"run": "r", "method": "repa", "system": "REPA", "weights": "ema", "train_seed": 0}
    return [
        results.Row(**common, step=1, metric="fd_digits", value=2.5, n=64, seed=0, protocol="abc").columns(),
        results.Row(**common, step=2, metric="fd_digits", value=1.5, stderr=0.1, note="n", protocol="abc").columns(),
        results.Row(**common, step=2, metric="cknna", layer=1, timestep=0.5, value=0.3).columns(),
        results.Row(**common, step=2, metric="train_seconds", value=3.0).columns(),
        results.Row(**common, step=2, metric="confusion", value=3.0, note='{"a": [1]}').columns(),
    ]


@functools.cache
def small_state() -> dict[str, torch.Tensor]:
    config = SiTConfig(depth=1, hidden_size=8, num_heads=2, in_channels=1, input_size=4, num_classes=3, projector_dim=4,
                       z_dims=(4,))  # fmt: skip
    torch.manual_seed(0)
    return {name: tensor.detach().clone() for name, tensor in SiT(config).state_dict().items()}


@functools.cache
def a_run(folder: Path) -> Path:
    """A run folder with everything that a trainer writes, and pictures."""
    path = folder / "run"
    options = {"hidden_size": 8, "num_heads": 2, "projector_dim": 4, "max_steps": 2, "checkpoint_every": 2}
    run(tiny("repa", **options), path)
    (path / "media").mkdir()
    side = {"caption": "c", "rows": ["a"], "columns": 1, "tile": 8}
    (path / "media" / "tokens-0000002.png").write_bytes(picture())
    (path / "media" / "tokens-0000002.json").write_text(json.dumps(side))
    (path / results.TABLE).write_bytes(lines(rows()))
    (path / results.PROTOCOLS).write_text(json.dumps({"abc": {"teacher": "digits-vit", "n": 3}}))
    return path


def targets(folder: Path) -> dict[str, Target]:
    """Every target by name; the folder is for what has to be made first."""
    return {
        **run_targets(a_run(folder)),
        **image_targets(),
        **layout_targets(),
        **checkpoint_targets(a_run(folder)),
        **weight_targets(),
    }


def run_targets(made: Path) -> dict[str, Target]:
    beside = {
        name: (made / name).read_bytes() for name in (results.TABLE, results.CURVES, results.PROTOCOLS, "run.json")
    }
    recipe = yaml.safe_load((made / "recipe.yaml").read_bytes())
    plugins = {**recipe, "plugins": [{"name": "my", "path": "/my.py", "sha256": "0" * 64}]}
    grid = "media/tokens-0000002"
    pictures = {f"{grid}.{kind}": (made / f"{grid}.{kind}").read_bytes() for kind in ("png", "json")}
    curves = [json.loads(line) for line in beside[results.CURVES].splitlines()]
    trees = {name: json.loads(beside[name]) for name in (results.PROTOCOLS, "run.json")}
    sample = {"seed": 0, "num": 4, "data": "digits", "extractor": "digits", "weights": "ema", "cfg_scale": 1.5}
    four = {f"{index}.png": picture() for index in range(4)}

    def of_run(file: Path) -> None:
        faults_of(file.parent)

    def report_of(file: Path) -> None:
        read_report(file.parent / results.TABLE)

    def with_side(file: Path) -> None:
        report_of(file.parent)
        of_run(file.parent)

    def check_table(path: Path) -> None:
        results.check(path)
        read_report(path)

    return {
        "results.jsonl": lines_target(results.TABLE, rows(), check_table, beside),
        "log.jsonl": lines_target(results.CURVES, curves[:6], report_of, beside),
        "protocols.json": json_target(results.PROTOCOLS, trees[results.PROTOCOLS], of_run, beside),
        "run.json": json_target("run.json", trees["run.json"], read_run_record, beside),
        "run.json of a report": json_target("run.json", trees["run.json"], report_of, beside),
        "recipe.yaml": yaml_target("recipe.yaml", recipe, read_recipe_file),
        "recipe.yaml of a run": yaml_target("recipe.yaml", recipe, read_run_record),
        "plug-in records": dataclasses.replace(
            yaml_target("recipe.yaml", plugins, read_recipe_file), changed=lambda rng: changed_plugins(plugins, rng)
        ),
        "samples.json": json_target("samples.json", sample, read_sample_record, four),
        "prepare.json": json_target("prepare.json", {"num_images": 4, "resolution": "8x8"}, read_prepared),
        "media .json": json_target(
            f"{grid}.json", json.loads(pictures[f"{grid}.json"]), with_side, {**beside, **pictures}
        ),
        "media .png": Target(
            f"{grid}.png",
            pictures[f"{grid}.png"],
            functools.partial(forms.as_bytes, picture()),
            with_side,
            {**beside, **pictures},
        ),
    }


def image_targets() -> dict[str, Target]:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)
    images = {"arr_0": pixels, "arr_1": np.arange(6)}
    mu, sigma = np.zeros(4), np.eye(4)
    statistics = {
        "mu": mu, "sigma": sigma, "mu_s": mu, "sigma_s": sigma, "arr_0": pixels,
        "provenance": np.array(json.dumps({"n": 6, "resize": "none"})),
    }  # fmt: skip
    files = {"a/000.png": picture(), "a/001.png": picture(), "b/002.png": picture()}

    def npz(name: str, arrays: Mapping[str, Any], read: Callable[[Path], object]) -> Target:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        return Target(name, buffer.getvalue(), functools.partial(forms.as_npz, arrays), read)

    def zipped() -> bytes:
        buffer = io.BytesIO()
        with forms.zipfile.ZipFile(buffer, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return buffer.getvalue()

    cache = {"mu": torch.zeros(4), "sigma": torch.eye(4)}
    return {
        "npz of images": npz("a.npz", images, read_images),
        "npz of statistics": npz("a.npz", statistics, read_statistics),
        "npz of features": npz("a.npz", {"feats": np.zeros((6, 4), dtype=np.float32)}, read_statistics),
        "zip of images": Target("a.zip", zipped(), functools.partial(forms.as_zip, files), read_images),
        "one image": Target("s/0.png", PICTURES[0], functools.partial(forms.one_of, PICTURES),
                            lambda path: read_images(path.parent)),
        "torch-fidelity's statistics": torch_target("a.pt", cache, read_statistics),
        "torch-fidelity's features": torch_target("a.pt", torch.zeros(6, 4), read_statistics),
    }  # fmt: skip


def layout_targets() -> dict[str, Target]:
    """Files of the layouts of latents: labels, moments, shards and their statistics, features of captions."""
    moments = np.ones((4, 2, 2), dtype=np.float32)
    names = [f"00000/img-mean-std-0000000{index}.npy" for index in range(2)]
    arrays = {f"vae-sd/{name}": npy(moments) for name in names}
    labels = {"labels": [[name, index] for index, name in enumerate(names)]}
    listed = {**arrays, "vae-sd/dataset.json": as_json(labels)}
    shard = {"latents": torch.ones(3, 2, 2, 2), "latents_flip": torch.ones(3, 2, 2, 2), "labels": torch.arange(3)}
    statistics = {"mean": torch.zeros(1, 2, 1, 1), "std": torch.ones(1, 2, 1, 1)}
    shards = {"s/latents_rank00_shard000.safetensors": safetensors_of(shard), "s/latents_stats.pt": pickled(statistics)}
    captions = {"c/0.npy": npy(moments), "c/0_0.npy": npy(np.ones((3, 4), dtype=np.float32))}

    def of(layout: str, levels: int, path: Path) -> None:
        source = load_data(f"{layout}:{path.parents[levels]}", "train")
        source.fetch([0], source.gives)

    def part(file: str, files: Mapping[str, bytes], changed: Callable[[Random], bytes], layout: str) -> Target:
        levels = 0 if layout != "repa" else file.count("/")
        return Target(file, files[file], changed, functools.partial(of, layout, levels), files)

    held = {"tensors": shard, "metadata": {}}
    spoilt = functools.partial(forms.as_npy, moments)
    with_prepared = {**listed, "prepare.json": as_json({"class_names": ["a", "b"], "vae": "v", "vae_hash": "0"})}
    return {
        "dataset.json": json_target("vae-sd/dataset.json", labels, functools.partial(of, "repa", 1), with_prepared),
        "prepare.json of latents": json_target(
            "prepare.json", json.loads(with_prepared["prepare.json"]), functools.partial(of, "repa", 0), listed
        ),
        "moments": part(f"vae-sd/{names[0]}", listed, spoilt, "repa"),
        "features of captions": part("c/0_0.npy", captions, spoilt, "coco"),
        "shard of latents": part(next(iter(shards)), shards, functools.partial(forms.as_safetensors, held), "shards"),
        "statistics of latents": part(
            "s/latents_stats.pt", shards, functools.partial(forms.as_torch, statistics), "shards"
        ),
    }


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def diffusers_files() -> tuple[dict[str, Any], bytes]:
    """The config and the weights of a small network of diffusers."""
    from diffusers import DiTTransformer2DModel

    network = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=4, in_channels=1, out_channels=1,
                                    num_layers=1, sample_size=4, norm_num_groups=1, num_embeds_ada_norm=3)  # fmt: skip
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    return json.loads(network.to_json_string()), safetensors_of(state)


def checkpoint_targets(made: Path) -> dict[str, Target]:
    saved = torch.load(next((made / "checkpoints").glob("*.pt")), weights_only=True)
    recipe = saved["recipe"]
    light = {**saved, "opt": {}, "rng": {}}
    state = small_state()
    official = {"model": state, "ema": state, "opt": {}, "args": {"enc_type": "dinov2-vit-b", "encoder_depth": 1,
                "num_heads": 2, "proj_coeff": 0.5, "path_type": "linear"}, "steps": 7}  # fmt: skip
    config = {"class": "SiT", "model": recipe["model"], "architecture": recipe["architecture"], "systems": ["REPA"],
              "conventions": [VELOCITY], "weights": "ema", "step": 2, "recipe": recipe}  # fmt: skip
    weights = safetensors_of({name: tensor.contiguous() for name, tensor in saved["ema"].items()})
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    folder = {"model-00001-of-00001.safetensors": safetensors_of(state)}
    denoiser, denoiser_weights = diffusers_files()

    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02,
                 "beta_schedule": "linear", "prediction_type": "epsilon", "trained_betas": None}  # fmt: skip
    pipeline = {
        "model_index.json": as_json({"_class_name": "DiTPipeline"}),
        "transformer/config.json": as_json(denoiser),
        "transformer/diffusion_pytorch_model.safetensors": denoiser_weights,
    }

    def of_folder(path: Path) -> None:
        read_checkpoint(path.parent)

    def of_pipeline(path: Path) -> None:
        read_checkpoint(path.parents[1])

    return {
        "checkpoint of ours": torch_target("0000002.pt", light, read_checkpoint),
        "checkpoint to resume from": torch_target("0000002.pt", saved, load_good_checkpoint),
        "checkpoint of REPA's trainer": torch_target("0000007.pt", official, read_checkpoint),
        "bare weights": torch_target("a.pt", state, functools.partial(read_checkpoint, num_heads=2)),
        "pickle": Target("a.pt", b"\x80\x02N.", functools.partial(forms.as_pickle, {"ema": [1.0, "x"], "steps": 3}),
                         read_checkpoint, opens=False),
        "config.json": json_target("config.json", config, of_folder, {"model.safetensors": weights}),
        "index of shards": json_target("model.safetensors.index.json", index,
                                       lambda path: read_checkpoint(path.parent, num_heads=2), folder),
        "diffusers' scheduler": json_target("scheduler/scheduler_config.json", scheduler, of_pipeline, pipeline),
        "diffusers' config.json": json_target("config.json", denoiser, of_folder,
                                              {"diffusion_pytorch_model.safetensors": denoiser_weights}),
    }  # fmt: skip


def weight_targets() -> dict[str, Target]:
    state = small_state()
    bank = {
        "tensors": {"snippets": torch.ones(6, 4)},
        "metadata": {"memory_bank": json.dumps({"teacher": "digits-vit"})},
    }
    parts = {"C": torch.ones(6, 2), "M": torch.ones(4, 2), "S": torch.ones(2), "mean": torch.ones(4), "latent_dim": 2,
             "feature_dim": 4}  # fmt: skip
    tokens = {
        "tokens": torch.ones(2, 3, 8), "t_offsets.weight": torch.ones(100, 16), "format": "soft tokens",
        "num_layers": 2, "num_tokens": 3, "width": 8, "space": "after the text's embedder", "time_bins": 100,
        "base": "T2I", "base_hash": "0" * 12, "step": 3, "recipe": {"name": "t2i", "seed": 0},
    }  # fmt: skip
    array = np.ones((6, 4), dtype=np.float32)
    held = {"tensors": dict(state), "metadata": {}}
    return {
        "safetensors": Target("a.safetensors", safetensors_of(state), functools.partial(forms.as_safetensors, held),
                              functools.partial(read_checkpoint, num_heads=2)),
        "bank .safetensors": Target("a.safetensors", safetensors_of(bank["tensors"], bank["metadata"]),
                                    functools.partial(forms.as_safetensors, bank), load_bank),
        "bank .pth": torch_target("a.pth", torch.ones(6, 4), load_bank),
        "bank of parts": torch_target("a.pth", parts, load_bank),
        "bank .npy": Target("a.npy", npy(array), functools.partial(forms.as_npy, array), load_bank),
        "soft tokens": torch_target("a.pt", tokens, read_tokens),
    }  # fmt: skip
