"""A RePaViT encoder as teacher, merged or in its training form: what `repa-eval reparam` or a trainer wrote.

The file itself may stand for the name, wherever a teacher is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from repa_eval import checkpoints
from repa_eval.errors import UserError
from repa_eval.interfaces.teacher import Teacher, Tokens, teacher
from repa_eval.models.shared.encoder import Encoder
from repa_eval.runtime.hashing import digest_module
from repa_eval.teachers.shared.preprocessing import pixels_of


class EncoderTeacher(Teacher):
    """An Encoder behind the preprocessing that its file records: ImageNet's at 224 px for published files."""

    def __init__(self, name: str, network: Encoder) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.digest = digest_module(network)
        self.pixels = pixels_of(network.config)
        self.prefix_tokens = network.prefix_tokens
        sizes = network.config.hidden_size
        stages = sizes if isinstance(sizes, tuple) else (sizes,)
        doubled = isinstance(network.config.depth, tuple) and len(stages) == 1  # Swin's width doubles at every stage
        self.width = stages[-1] << (len(network.config.depth) - 1 if doubled else 0)

    def forward(self, images: Tensor) -> Tokens:
        """Return Tokens for uint8 images (B, C, H, W) of any size that the preprocessing takes."""
        tokens = self.network.features(self.pixels(images, name=self.name))
        cls = tokens[:, 0] if getattr(self.network, "cls_token", None) is not None else None
        return Tokens(patches=tokens[:, self.prefix_tokens :], cls=cls)

    def attentions(self) -> Sequence[nn.Module]:
        """Return the attention module of each block; none where it is not a plain one."""
        blocks = list(getattr(self.network, "blocks", ()))
        found = [block.get_submodule("attn") for block in blocks if hasattr(block, "attn")]
        return found if len(found) == len(blocks) else ()


@teacher("repavit")
def repavit(name: str, weights: Path | None) -> Teacher:
    """A RePaViT encoder, merged or not: its file is the name, or is given by --teacher-weights."""
    if weights is None:
        raise UserError("teacher repavit has no weights of its own: give its file as --teacher-weights, or as the name")
    opened = checkpoints.load(weights)
    if not isinstance(opened.network, Encoder):
        raise UserError(f"teacher {name}: {weights} holds {opened.model_name}, which is no encoder")
    return EncoderTeacher(name, opened.network)
