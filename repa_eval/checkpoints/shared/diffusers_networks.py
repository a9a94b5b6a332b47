"""How each network of diffusers is called without text or class, and which of its modules are its layers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from repa_eval.errors import UserError
from repa_eval.features.foreign import tokens_of

Config = Mapping[str, Any]
LINEAR_BETAS = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
STABLE_DIFFUSION = {**LINEAR_BETAS, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


class Caller(ABC):
    """One class of diffusers. config: as it was saved.

    scheduler: config of the scheduler that it was published with, for a folder without one. part: which entry of a
    layer's output the image tokens are. text_length: number of text tokens that it is given.
    """

    scheduler: ClassVar[Config] = FLOW
    part: ClassVar[int | None] = None
    text_length: ClassVar[int] = 0

    def __init__(self, config: Config) -> None:
        self.config = config
        self.check()

    def check(self) -> None:  # noqa: B027  (most need none)
        """UserError for a config whose network needs inputs that are not known here."""

    @property
    def num_classes(self) -> int | None:
        """Number of class labels, None for a network without."""
        return None

    @property
    def has_null_label(self) -> bool:
        """Whether label `num_classes` means "no class"."""
        return True

    @property
    def channels(self) -> int:
        """Channels of what is denoised."""
        return int(self.config["in_channels"])

    @property
    def side(self) -> int | None:
        """Side of what is denoised, as the config says it."""
        size = self.config.get("sample_size")
        if isinstance(size, list | tuple):
            if len(set(size)) != 1:
                raise UserError(f"its sample_size is {list(size)}: only squares are read")
            size = size[0]
        return size

    def layers(self, network: nn.Module) -> list[str]:
        """Return the names of the layers, in the order in which they compute."""
        return _numbered(network, r"transformer_blocks\.\d+")

    @abstractmethod
    def __call__(self, network: Any, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the output (B, C or more, H, W) for noisy x (B, C, H, W) at its scheduler's time (B,)."""

    def tokens(self, output: Tensor, image_tokens: int) -> Tensor:
        """Return the image tokens (B, T, D) of a layer's output; image_tokens: how many a transformer has."""
        return tokens_of(output, channels_last=False)

    def record(self) -> dict[str, Any]:
        """Return the protocol entries: what stands in the place of text and other inputs."""
        return {}


class DiT(Caller):
    """DiTTransformer2DModel: labels, the last of which means "no class"."""

    scheduler = LINEAR_BETAS

    @property
    def num_classes(self) -> int:
        """Number of class labels."""
        return int(self.config["num_embeds_ada_norm"])

    def __call__(self, network: Any, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return noise and variance (B, 2C or C, H, W)."""
        return network(x, timestep=time, class_labels=labels, return_dict=False)[0]  # type: ignore[no-any-return]


class SD3(Caller):
    """SD3Transformer2DModel: blocks return (text, image)."""

    part = 1
    text_length = 333  # 77 of CLIP and 256 of T5, as its pipeline gives; zeros, as in training where text is dropped

    def __call__(self, network: Any, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the velocity (B, C, H, W)."""
        text = x.new_zeros(len(x), self.text_length, self.config["joint_attention_dim"])
        pooled = x.new_zeros(len(x), self.config["pooled_projection_dim"])
        return network(  # type: ignore[no-any-return]
            x, encoder_hidden_states=text, pooled_projections=pooled, timestep=time, return_dict=False
        )[0]

    def record(self) -> dict[str, Any]:
        """Return what stands in the place of the text."""
        width, pooled = self.config["joint_attention_dim"], self.config["pooled_projection_dim"]
        return {"text": f"zeros ({self.text_length}, {width}), pooled zeros ({pooled})"}


class Flux(Caller):
    """FluxTransformer2DModel: reads latents in packs of 2x2, is told t itself, and has two kinds of blocks."""

    part = 1
    text_length = 512  # of T5, as its pipeline gives

    @property
    def channels(self) -> int:
        """Channels of the latents, four times of which are a pack."""
        packed = int(self.config["in_channels"])
        if packed % 4:
            raise UserError(f"its in_channels are {packed}: packs of 2x2 latents have a multiple of 4")
        return packed // 4

    @property
    def side(self) -> int | None:
        """128, for images of 1024 px: the config does not say it."""
        return 128

    def layers(self, network: nn.Module) -> list[str]:
        """Return the blocks of two streams, then those of one."""
        return super().layers(network) + _numbered(network, r"single_transformer_blocks\.\d+")

    def __call__(self, network: Any, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the velocity (B, C, H, W)."""
        count, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        packs = (
            x.view(count, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(count, rows * columns, -1)
        )
        places = torch.zeros(rows, columns, 3, device=x.device, dtype=x.dtype)
        places[..., 1] += torch.arange(rows, device=x.device)[:, None]
        places[..., 2] += torch.arange(columns, device=x.device)
        answer = network(
            hidden_states=packs,
            encoder_hidden_states=x.new_zeros(count, self.text_length, self.config["joint_attention_dim"]),
            pooled_projections=x.new_zeros(count, self.config["pooled_projection_dim"]),
            timestep=time / 1000,  # it multiplies by 1000 itself
            img_ids=places.reshape(-1, 3),
            txt_ids=x.new_zeros(self.text_length, 3),
            guidance=x.new_ones(count) if self.config.get("guidance_embeds") else None,
            return_dict=False,
        )[0]
        whole: Tensor = answer.view(count, rows, columns, channels, 2, 2)
        return whole.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)

    def tokens(self, output: Tensor, image_tokens: int) -> Tensor:
        """Return the image tokens: blocks of one stream returned text and image in one tensor, in older versions."""
        return output[:, -image_tokens:]

    def record(self) -> dict[str, Any]:
        """Return what stands in the place of the text and of the distilled guidance."""
        width, pooled = self.config["joint_attention_dim"], self.config["pooled_projection_dim"]
        guidance = {"guidance": 1.0} if self.config.get("guidance_embeds") else {}
        return {"text": f"zeros ({self.text_length}, {width}), pooled zeros ({pooled})", **guidance}


class UNet(Caller):
    """UNet2DModel: without classes, or with classes none of which means "no class"."""

    scheduler = LINEAR_BETAS

    def check(self) -> None:
        """UserError for a class embedding that does not read labels."""
        kind = self.config.get("class_embed_type")
        if kind is not None:
            raise UserError(f"its class_embed_type is {kind!r}: only networks that read class labels are called")

    @property
    def num_classes(self) -> int | None:
        """Number of class labels."""
        return self.config.get("num_class_embeds")

    @property
    def has_null_label(self) -> bool:
        """Whether it has no labels at all: a table of labels has no row for "no class"."""
        return self.num_classes is None

    def layers(self, network: nn.Module) -> list[str]:
        """Return each residual block, or the attention behind it where there is one: down, middle, up."""
        known = {name for name, _ in network.named_modules()}
        found = []
        for name in known:
            if re.fullmatch(r"(down|up)_blocks\.\d+\.resnets\.\d+", name):
                after = name.replace("resnets", "attentions")
                found.append(after if after in known else name)
        order = sorted(found, key=lambda name: (name.startswith("up"), *map(int, re.findall(r"\d+", name))))
        ups = next((place for place, name in enumerate(order) if name.startswith("up")), len(order))
        middle = ["mid_block"] if getattr(network, "mid_block", None) is not None else []
        return order[:ups] + middle + order[ups:]

    def __call__(self, network: Any, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W)."""
        given = labels if self.num_classes is not None else None
        return network(x, time, class_labels=given, return_dict=False)[0]  # type: ignore[no-any-return]


class ConditionedUNet(UNet):
    """UNet2DConditionModel: Stable Diffusion's, and XL's with a pooled text and the size of the image."""

    scheduler = STABLE_DIFFUSION
    text_length = 77

    def check(self) -> None:
        """UserError for inputs that are not known here."""
        super().check()
        kind, widths = self.config.get("addition_embed_type"), self.config["cross_attention_dim"]
        if kind not in (None, "text_time"):
            raise UserError(f"its addition_embed_type is {kind!r}: only text_time is known")
        if self.config.get("encoder_hid_dim_type") is not None:
            raise UserError(f"its encoder_hid_dim_type is {self.config['encoder_hid_dim_type']!r}, which is not known")
        if isinstance(widths, list | tuple) and len(set(widths)) > 1:
            raise UserError(f"its cross_attention_dim is {list(widths)}: only one width of text is known")

    @property
    def _width(self) -> int:
        width = self.config["cross_attention_dim"]
        return int(width[0] if isinstance(width, list | tuple) else width)

    @property
    def _pooled(self) -> int | None:
        """Width of the pooled text, where the network reads one beside six numbers of the image's size."""
        if self.config.get("addition_embed_type") is None:
            return None
        return int(self.config["projection_class_embeddings_input_dim"]) - 6 * int(
            self.config["addition_time_embed_dim"]
        )

    def __call__(self, network: Any, x: Tensor, time: Tensor, labels: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W)."""
        text = x.new_zeros(len(x), self.text_length, self._width)
        more: dict[str, Any] = {}
        if self._pooled is not None:
            height, width = 8 * x.shape[-2], 8 * x.shape[-1]  # pixels: of the original, of the corner, of the target
            sizes = torch.tensor([height, width, 0, 0, height, width]).to(x).expand(len(x), -1)
            more["added_cond_kwargs"] = {"text_embeds": x.new_zeros(len(x), self._pooled), "time_ids": sizes}
        if self.num_classes is not None:
            more["class_labels"] = labels
        return network(x, time, encoder_hidden_states=text, return_dict=False, **more)[0]  # type: ignore[no-any-return]

    def record(self) -> dict[str, Any]:
        """Return what stands in the place of the text."""
        pooled = "" if self._pooled is None else f", pooled zeros ({self._pooled}), size of the image uncropped"
        return {"text": f"zeros ({self.text_length}, {self._width}){pooled}"}


CALLERS: dict[str, type[Caller]] = {
    "DiTTransformer2DModel": DiT,
    "SD3Transformer2DModel": SD3,
    "FluxTransformer2DModel": Flux,
    "UNet2DModel": UNet,
    "UNet2DConditionModel": ConditionedUNet,
}


def _numbered(network: nn.Module, pattern: str) -> list[str]:
    """Return the submodules whose names fit, in the order of the network."""
    return [name for name, _ in network.named_modules() if re.fullmatch(pattern, name)]
