"""Recognise a file by what is in it, never by its name, and build the model that it holds.

Nothing in a file is executed: tensors and plain values only (`weights_only=True`).
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from repa_eval.errors import Failure, UserError, first_line
from repa_eval.registry import Registry


@dataclass
class Checkpoint:
    """An opened checkpoint. recipe: the settings recorded in it, empty if none are."""

    path: Path
    layout: str
    systems: tuple[str, ...]
    model_name: str
    model: Any  # an nn.Module with `config`
    weights: str
    step: int | None
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        """The name of the run: the folder above checkpoints/, else the file's stem."""
        folder = self.path.parent
        return folder.parent.name if folder.name == "checkpoints" else self.path.stem

    def option(self, key: str) -> Any:
        """Return a recorded option of the method, or None."""
        return self.recipe.get("options", {}).get(key)

    def info(self) -> dict[str, Any]:
        """Return what `inspect` shows (product.md 7); what does not apply is None."""
        config = getattr(self.model, "config", None)
        sizes = ("depth", "hidden_size", "num_heads", "patch_size", "in_channels", "input_size", "num_classes")
        return {
            "path": str(self.path),
            "layout": self.layout,
            "systems": list(self.systems),
            "model": self.model_name,
            "step": self.step,
            "weights": self.weights,
            **{name: getattr(config, name, None) for name in sizes},
            "class_token": getattr(self.model, "cls_token", None) is not None,
            "num_parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "convention": "t=1 noise, v = noise - data",
            "teacher": self.option("enc_type"),
            "encoder_depth": self.option("encoder_depth"),
        }


# a layout's reader takes (path, content, weights) and returns None where the content is not of its layout
Reader = Callable[[Path, Any, str], Checkpoint | None]
LAYOUTS: Registry[Reader] = Registry("checkpoint layout", "repa_eval.checkpoints", skip=("recognise",))


def layout(name: str) -> Callable[[Reader], Reader]:
    """Register the reader of one published layout."""
    return LAYOUTS.register(name)


def recognise(path: str | Path, *, weights: str = "ema") -> Checkpoint:
    """Return the checkpoint at `path`; UserError or Failure in one line if it is none that can be opened."""
    if weights not in ("ema", "online"):
        raise UserError(f"weights {weights!r}: choose ema or online")
    file = Path(path)
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file, for example {_example(file)}")
    if not file.is_file():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    content = _read(file)
    for _, reader in LAYOUTS.items():
        checkpoint = reader(file, content, weights)
        if checkpoint is not None:
            checkpoint.model.eval().requires_grad_(False)
            return checkpoint
    shown = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"{file} is a checkpoint of no known layout ({', '.join(LAYOUTS.names())}); it holds: {shown}")


def _read(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise Failure(f"{file} is not a checkpoint, or one that asks to run code; it was not opened") from error
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise Failure(f"{file} is not a readable checkpoint: {first_line(error)}") from error


def _example(folder: Path) -> str:
    found = sorted(folder.rglob("checkpoints/*.pt"))
    return str(found[-1]) if found else str(folder / "checkpoints" / "0001500.pt")
