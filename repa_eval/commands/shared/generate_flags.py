"""Flags of the official scripts generate.py and sample_ddp.py (REPA, REG, HASTE, ERW, SiT, DiT), accepted as typed.

Some mean an option of ours. Those that say what the file says are checked against it. The others change nothing here,
and one line says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repa_eval.console.numbers import COUNT, SEED, Whole
from repa_eval.console.option_groups import flag, given, option_group
from repa_eval.console.options import ComputeOptions
from repa_eval.errors import UserError

if TYPE_CHECKING:
    from repa_eval.diffusion.model import DiffusionModel

SIZES = ("depth", "hidden_size", "num_heads", "patch_size")


@dataclass(frozen=True, kw_only=True)
class GenerateFlags:
    """Flags of the official scripts that no option of ours has the name of."""

    sample_dir: Path | None = flag(
        "--sample-dir", type=click.Path(path_type=Path), help="--out is a folder in this one, with the official name"
    )
    global_seed: int | None = flag("--global-seed", type=SEED, help="the same as --seed")
    per_proc_batch_size: int | None = flag("--per-proc-batch-size", type=COUNT, help="the same as --batch-size")
    tf32: bool | None = flag("--tf32/--no-tf32", default=None, help="TensorFloat-32 in matrix products on CUDA")
    model: str | None = flag("--model", help="must be the size that the file holds")
    resolution: int | None = flag("--resolution", "--image-size", type=COUNT, help="must be the model's, in pixels")
    num_classes: int | None = flag("--num-classes", type=COUNT, help="must be the model's")
    encoder_depth: int | None = flag("--encoder-depth", type=Whole(1), help="must be the aligned block, if recorded")
    projector_embed_dims: str | None = flag(
        "--projector-embed-dims", metavar="N[,N]", help="must be the widths of the model's projectors, if it has any"
    )
    class_width: int | None = flag("--cls", type=COUNT, help="REG: must be the width of the model's class token")
    qk_norm: bool | None = flag("--qk-norm/--no-qk-norm", default=None, help="must be as the file says")
    fused_attn: bool | None = flag("--fused-attn/--no-fused-attn", default=None, help="accepted, without effect")
    legacy: bool | None = flag("--legacy/--no-legacy", default=None, help="accepted: older names are recognised")

    def check_destination(self, out: Path | None) -> None:
        """UserError unless exactly one of --out and --sample-dir is given."""
        if out is not None and self.sample_dir is not None:
            raise UserError("--sample-dir: --out says where the images go; leave one of them out")
        if out is None and self.sample_dir is None:
            raise UserError("name where the images go: --out DIR or --out FILE.npz")

    def destination(self, out: Path | None, opened: Any, settings: Any, *, side: int, vae: str | None) -> Path:
        """Return where the samples go: --out, or the folder in --sample-dir that the official script makes.

        settings: of the sampler. side: of the images, in pixels. vae: as given.
        """
        if out is not None:
            return out
        assert self.sample_dir is not None
        model = (self.model or opened.model_name).replace("/", "-")
        decoder = "" if vae is None else f"-vae-{Path(vae).name}"
        record = settings.record()
        how = f"cfg-{record['cfg_scale']}-seed-{record['sampler_seed']}-{record['sampler_mode']}"
        return self.sample_dir / f"{model}-{opened.path.stem}-size-{side}{decoder}-{how}"

    def computing(self, compute: ComputeOptions) -> ComputeOptions:
        """Return how to compute, with seed and batch size by their official names; UserError for two values of one."""
        for own, official in (("seed", "global_seed"), ("batch_size", "per_proc_batch_size")):
            value = getattr(self, official)
            if value is None:
                continue
            if given(own) and getattr(compute, own) != value:
                raise UserError(f"{_spelled(official)} {value}: {_spelled(own)} says {getattr(compute, own)}")
            compute = dataclasses.replace(compute, **{own: value})
        return compute

    def check(self, opened: Any, model: DiffusionModel, *, factor: int | None) -> None:
        """UserError for a flag that contradicts the file. factor: side of an image by that of what the model makes."""
        from repa_eval.diffusion.conventions import unwrap

        config = vars(unwrap(model).config)
        if self.model is not None and not _is_size(self.model, opened, config):
            raise UserError(f"--model {self.model}: {opened.path} holds {opened.model_name}; leave --model out")
        recorded: dict[str, Any] = {
            "resolution": None if factor is None else model.image_shape[-1] * factor,
            "num_classes": model.num_classes,
            "class_width": model.class_token_width or None,
            "encoder_depth": opened.aligned_layer,
            "qk_norm": config.get("qk_norm"),
        }
        if self.projector_embed_dims is not None and (dims := config.get("z_dims")):
            recorded["projector_embed_dims"] = ",".join(map(str, dims))
        for name, value in recorded.items():
            asked = getattr(self, name)
            if asked is not None and value is not None and asked != value:
                raise UserError(f"{_spelled(name)} {asked}: {opened.path} says {value}; leave {_spelled(name)} out")

    def without_effect(self, opened: Any, model: DiffusionModel) -> list[str]:
        """Return the flags that were given and change nothing, because the file does not say what they are about."""
        from repa_eval.diffusion.conventions import unwrap

        config = vars(unwrap(model).config)
        untold = {
            "encoder_depth": opened.aligned_layer is None,
            "class_width": not model.has_class_token,
            "projector_embed_dims": not config.get("z_dims"),
            "qk_norm": "qk_norm" not in config,
        }
        idle = [name for name, nothing in untold.items() if nothing]
        return [_spelled(name) for name in (*idle, "fused_attn", "legacy") if getattr(self, name) is not None]

    def precision(self, device: str) -> dict[str, Any]:
        """Switch TensorFloat-32 on or off where it is asked for on CUDA; return the entry of the record."""
        if self.tf32 is None or not device.startswith("cuda"):
            return {}
        import torch

        torch.backends.cuda.matmul.allow_tf32 = self.tf32
        return {"tf32": self.tf32}


generate_flags = option_group("official", GenerateFlags)


def _is_size(name: str, opened: Any, config: Mapping[str, Any]) -> bool:
    """Return whether a network is of the size that the official scripts call so: REG's and ERW's are called SiT too."""
    from repa_eval.interfaces.architecture import find_preset

    if name == opened.model_name:
        return True
    preset = vars(find_preset(name)[1])
    return all(preset.get(size) == config.get(size) for size in SIZES)


def _spelled(name: str) -> str:
    return "--cls" if name == "class_width" else "--" + name.replace("_", "-")
