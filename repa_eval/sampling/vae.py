"""A VAE of diffusers (extra `latents`): images from latents, and latents or their moments from images.

AutoencoderKL (REPA's, SiT's and DiT's is sd-vae-ft-ema), AutoencoderDC and AutoencoderRAE; the class is read from the
VAE's config.json.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure, UserError, first_line
from repa_eval.interfaces.image_source import LatentScale, Shape
from repa_eval.interfaces.images import to_signed
from repa_eval.runtime.files import read_object
from repa_eval.runtime.hashing import digest_module
from repa_eval.runtime.shard_index import check_for_diffusers

CHUNK = 16  # images at once: a VAE needs far more memory than a transformer
IMAGE_CHANNELS = (1, 3)
EXAMPLE = "stabilityai/sd-vae-ft-ema"
# the words of SiT's and REPA's own --vae, and the names without their owner
SHORT = {word: f"stabilityai/sd-vae-ft-{kind}" for kind in ("ema", "mse") for word in (kind, f"sd-vae-ft-{kind}")}
COLOURS = {1: "grey", 3: "RGB"}
CLASSES = ("AutoencoderKL", "AutoencoderDC", "AutoencoderRAE")


@dataclass(frozen=True)
class Vae:
    """An autoencoder of diffusers, float32, frozen. name: as the user gave it."""

    name: str
    network: Any

    @property
    def kind(self) -> str:
        """The class in diffusers."""
        return type(self.network).__name__

    @property
    def draws(self) -> bool:
        """Whether it encodes to a posterior over latents; AutoencoderDC and AutoencoderRAE give the latent itself."""
        return self.kind == "AutoencoderKL"

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        config = self.network.config
        return int(config.encoder_hidden_size if self.kind == "AutoencoderRAE" else config.latent_channels)

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        config = self.network.config
        return int(config.num_channels if self.kind == "AutoencoderRAE" else config.in_channels)

    @property
    def factor(self) -> int | None:
        """Side of an image by that of its latent; None for AutoencoderRAE, which resizes images to its own side."""
        config = self.network.config
        if self.kind == "AutoencoderRAE":
            return None
        blocks = config.block_out_channels if self.kind == "AutoencoderKL" else config.encoder_block_out_channels
        return int(2 ** (len(blocks) - 1))

    @cached_property
    def scale(self) -> LatentScale:
        """How a model reads its latents, by its config.json (0.18215 where AutoencoderKL's is silent).

        AutoencoderRAE shifts and scales inside.
        """
        if self.kind == "AutoencoderRAE":
            return LatentScale()
        vae_config = self.network.config
        factor = float(vae_config.scaling_factor)
        means, deviations = (getattr(vae_config, name, None) for name in ("latents_mean", "latents_std"))
        if means and deviations:
            return LatentScale(tuple(factor / float(each) for each in deviations), tuple(map(float, means)))
        return LatentScale((factor,), (float(getattr(vae_config, "shift_factor", None) or 0.0),))

    @cached_property
    def digest(self) -> str:
        """Hash of its weights."""
        return digest_module(self.network)

    def latent_shape(self, shape: Shape) -> Shape:
        """Return (c, h, w) of a latent of images (C, H, W); UserError for images that it cannot encode."""
        channels, height, width = shape
        if channels != self.image_channels:
            wanted, given = (COLOURS.get(number, f"{number}-channel") for number in (self.image_channels, channels))
            raise UserError(f"--vae {self.name} encodes {wanted} images; these are {given}")
        if height != width or height % (self.factor or 1):
            rule = "squares" + (f" whose side is a multiple of {self.factor}" if self.factor else "")
            raise UserError(f"--vae {self.name} encodes {rule}; these are {height}x{width}: add --resolution N")
        if self.factor is not None:
            return self.channels, height // self.factor, width // self.factor
        side = int(self.network.config.encoder_input_size) // int(self.network.config.encoder_patch_size)
        return self.channels, side, side

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return moments (B, 2c, h, w), mean and STANDARD DEVIATION, or latents (B, c, h, w), of uint8 (B, C, H, W).

        Float32 on the CPU, unscaled (but AutoencoderRAE's).
        """
        like, parts = next(self.network.parameters()), []
        for part in (to_signed(images) if self.kind != "AutoencoderRAE" else images.float() / 255).split(CHUNK):
            found = self.network.encode(part.to(like))
            held = [found.latent_dist.mean, found.latent_dist.std] if self.draws else [found.latent]
            parts.append(torch.cat(held, dim=1).float().cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return images (B, C, H, W) near [-1, 1] of unscaled latents (B, c, h, w)."""
        ready = latents.to(next(self.network.parameters()))
        images = torch.cat([self.network.decode(part).sample for part in ready.split(CHUNK)])
        return images * 2 - 1 if self.kind == "AutoencoderRAE" else images


class VaeDecoder:
    """images = decode(latents / scale + shift), in float32, as the VAE's own config or `scale` says them."""

    def __init__(self, vae: Vae, scale: LatentScale | None = None) -> None:
        self.vae, self.scale = vae, scale or vae.scale

    def __call__(self, latents: Tensor) -> Tensor:
        """Return images (B, 3, H, W), float32, near [-1, 1], from latents (B, C, h, w)."""
        return self.vae.decode(self.scale.undo(latents))

    def record(self) -> dict[str, object]:
        """Return the decoder as protocol entries."""
        scale, shift = (values[0] if len(values) == 1 else values for values in (self.scale.scale, self.scale.shift))
        return {"vae": self.vae.name, "vae_hash": self.vae.digest, "latent_scale": [scale, shift]}


def decoder_for(
    model: DiffusionModel, name: str | None, device: str, scale: LatentScale | None = None
) -> VaeDecoder | None:
    """Return the decoder that a model's samples need, None if the model makes or decodes images itself.

    name: of a VAE on the Hugging Face hub, or a folder that contains one. scale: of the latents that the model was
    trained on, where its checkpoint records it. UserError where the VAE is missing or unfit.
    """
    channels = model.image_shape[0]
    if name is None:
        if not model.decodes and channels not in IMAGE_CHANNELS:
            raise UserError(f"this model makes latents of {channels} channels: add --vae {EXAMPLE}, or --vae FOLDER")
        return None
    vae = open_vae(name, device)
    if vae.channels != channels:
        raise UserError(f"--vae {name} decodes {vae.channels} channels; this model makes {channels}")
    return VaeDecoder(vae, None if scale is None else scale.fitting(channels))


def open_vae(given: Any, device: str) -> Vae:
    """Return the VAE meant by a folder, a name on the Hugging Face hub (on `device`), or an autoencoder of diffusers.

    An autoencoder stays as it is, and where it is. UserError or Failure in one line.
    """
    if isinstance(given, Vae):
        return given
    if isinstance(given, nn.Module):
        if type(given).__name__ not in CLASSES:
            raise UserError(f"a {type(given).__name__} is no VAE that can be used: give one of {', '.join(CLASSES)}")
        return Vae(type(given).__name__, given)
    name = str(given)
    return Vae(name, _load(name).eval().requires_grad_(False).to(device))


def _load(name: str) -> Any:
    """Return the autoencoder, float32, of a folder or of the Hugging Face hub."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError("--vae needs diffusers: pip install 'repa-eval[latents]'") from error
    folder = Path(name)
    place = name if folder.is_dir() else SHORT.get(name, name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        if not (folder / "vae" / "config.json").is_file():
            raise UserError(f"--vae {name}: the folder contains no config.json of an autoencoder")
        place = str(folder / "vae")  # of a whole pipeline
    if Path(place).is_dir():
        check_for_diffusers(Path(place))
    try:
        with _quiet():  # no pickles: nothing in a file is executed
            kind = _class_of(place, name, diffusers)
            network, info = kind.from_pretrained(
                place, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except NameError as error:  # diffusers builds AutoencoderRAE's encoder with transformers
        raise UserError(f"--vae {name} needs transformers: pip install transformers") from error
    except (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, UserError | Failure):
            raise
        if folder.is_dir():
            raise Failure(f"--vae {name} cannot be opened: {first_line(error)}") from error
        raise Failure(
            f"--vae {name} is no folder here and could not be fetched; without a network name a folder that contains it"
        ) from error
    if lacking := info.get("missing_keys"):
        raise Failure(f"--vae {name} cannot be opened: its file lacks {len(lacking)} tensors, such as {lacking[0]}")
    return network


def _class_of(place: str, name: str, diffusers: Any) -> Any:
    """Return the class of diffusers that a VAE's config.json names; AutoencoderKL where it names none."""
    file = Path(place) / "config.json"
    config = read_object(file) if file.is_file() else diffusers.AutoencoderKL.load_config(place)
    kind = str(config.get("_class_name") or CLASSES[0])
    if kind not in CLASSES:
        raise UserError(f"--vae {name} is of the class {kind[:40]}; one of {', '.join(CLASSES)} is needed")
    if not hasattr(diffusers, kind):
        version = diffusers.__version__
        raise UserError(
            f"--vae {name} is an {kind}, which the installed diffusers {version} lacks; install a newer one"
        )
    return getattr(diffusers, kind)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the library's warnings and retries: an error is reported in one line of ours."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class VaeEncoder:
    """What a VAE gives of images: an `Encoder` for `features.encoded`, and what a trainer draws its latents from."""

    def __init__(self, vae: Any, device: str) -> None:
        self.vae = open_vae(vae, device)
        self.name, self.digest, self.scale = self.vae.name, self.vae.digest, self.vae.scale
        self.kind = "moments" if self.vae.draws else "latents"

    def latent_shape(self, shape: Shape) -> Shape:
        """Return (c, h, w) of a latent of images (C, H, W); UserError for images that it cannot encode."""
        return self.vae.latent_shape(shape)

    def __call__(self, images: Tensor) -> Tensor:
        """Return moments (B, 2c, h, w) or latents (B, c, h, w), float32 on the CPU, of uint8 images (B, C, H, W)."""
        return self.vae.encode(images)

    def record(self) -> dict[str, object]:
        """Return the encoder as entries of a record."""
        what = {"moments": "mean, standard deviation"} if self.vae.draws else {"latents": self.vae.kind}
        # where it lies is no part of a record, and a short name means one of the hub
        name = Path(self.name).name if Path(self.name).is_dir() else SHORT.get(self.name, self.name)
        return {"vae": name, "vae_hash": self.digest, **what}
