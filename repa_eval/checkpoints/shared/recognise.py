"""Recognise a file by what is in it, never by its name, and build the model that it holds.

Nothing in a file is executed: tensors and plain values only (see reading.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from repa_eval.checkpoints.shared import behaviour, networks
from repa_eval.checkpoints.shared.systems import READINGS, readings_of
from repa_eval.diffusion.conventions import converted, unwrap
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import Failure, UserError, unknown
from repa_eval.models.shared.encoder import Encoder
from repa_eval.registry import Registry
from repa_eval.weight_files.reading import read_file


@dataclass(frozen=True)
class Request:
    """How a checkpoint is to be opened. overrides: what neither shapes nor the file tell (num_heads, system, ...)."""

    weights: str = "ema"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    allow_nan: bool = False

    def choose(self, content: Mapping[str, Any], path: Path) -> Any:
        """Return the state dict of the wanted weights from {model, ema, ...}."""
        key = "ema" if self.weights == "ema" else "model"
        if key not in content:
            other = "online" if key == "ema" else "ema"
            raise UserError(f"{path} holds no {self.weights} weights (no entry {key!r}); use --weights {other}")
        return content[key]


@dataclass
class Checkpoint:
    """An opened checkpoint. models: one per convention that it can have; recipe: the settings recorded in it."""

    path: Path
    layout: str
    systems: tuple[str, ...]
    model_name: str
    models: tuple[nn.Module, ...]  # in the project's convention
    weights: str
    step: int | None
    recipe: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)  # for `inspect`, where the network's own config does not say

    @cached_property
    def model(self) -> nn.Module:
        """The model in the project's one convention; where two are possible, its answers decide (behaviour.py)."""
        return self.models[0] if len(self.models) == 1 else behaviour.likeliest(self.models)

    @property
    def diffusion_model(self) -> DiffusionModel:
        """The model, where it is a diffusion model; UserError where it is a vision encoder or a file of tokens."""
        if isinstance(self.model, DiffusionModel):
            return self.model
        hint = "; name it as --teacher" if isinstance(self.model, Encoder) else ""
        raise UserError(
            f"{self.path} holds {self.model_name}, which is no diffusion model: it has no blocks to measure{hint}"
        )

    @property
    def network(self) -> Any:
        """The network with its published names."""
        return unwrap(self.models[0])

    @property
    def run(self) -> str:
        """The name of the run: the folder above checkpoints/, else the file's stem."""
        folder = self.path.parent
        return folder.parent.name if folder.name == "checkpoints" else self.path.stem

    def option(self, key: str) -> Any:
        """Return a recorded option of the method, or None."""
        return self.recipe.get("options", {}).get(key)

    def columns(self) -> dict[str, Any]:
        """Return the columns of a row that say which checkpoint it is of."""
        return {
            "run": self.run,
            "system": self.systems[0] if self.systems else None,
            "method": self.recipe.get("method"),
            "step": self.step,
            "weights": self.weights,
            "train_seed": self.recipe.get("seed"),
        }

    def info(self) -> dict[str, Any]:
        """Return what `inspect` shows (product.md 7); what does not apply is None."""
        network = self.network
        config = getattr(network, "config", None)
        sizes = ("depth", "hidden_size", "num_heads", "patch_size", "in_channels", "input_size", "num_classes")
        diffusion = isinstance(network, DiffusionModel)
        memory = network.snippet_memory if diffusion else None
        return {
            "path": str(self.path),
            "layout": self.layout,
            "systems": list(self.systems),
            "model": self.model_name,
            "step": self.step,
            "weights": self.weights,
            **{name: getattr(config, name, None) for name in sizes},
            **({"depth": network.depth} if diffusion else {}),
            "class_token": isinstance(network, DiffusionModel | Encoder) and network.has_class_token,
            "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
            "convention": " or ".join(str(model.native) for model in self.models) if diffusion else None,
            "teacher": self.option("enc_type"),
            "encoder_depth": self.option("encoder_depth"),
            **({} if memory is None else {"memory_bank": memory.describe()}),
            **(network.facts() if isinstance(network, Encoder) else {}),
            **self.facts,
        }


# a layout's reader takes (path, content, request) and returns None where the content is not of its layout
Reader = Callable[[Path, Any, Request], Checkpoint | None]
LAYOUTS: Registry[Reader] = Registry("checkpoint layout", "repa_eval.checkpoints")


def layout(name: str) -> Callable[[Reader], Reader]:
    """Register the reader of one published layout."""
    return LAYOUTS.register(name)


def recognise(path: str | Path, request: Request) -> Checkpoint:
    """Return the checkpoint at `path`; UserError or Failure in one line if it is none that can be opened."""
    if request.weights not in ("ema", "online"):
        raise UserError(f"weights {request.weights!r}: choose ema or online")
    file = Path(path)
    if not file.exists():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    content = None if file.is_dir() else read_file(file)
    for _, reader in LAYOUTS.items():
        checkpoint = reader(file, content, request)
        if checkpoint is not None:
            for model in checkpoint.models:
                model.eval().requires_grad_(False)
            if not request.allow_nan:
                networks.refuse_unfinite(checkpoint.network, file)
            return checkpoint
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a file, for example {_example(file)}")
    raise _unknown(file, content)


def from_state(
    path: Path, state: Mapping[str, Tensor], request: Request, *, options: Mapping[str, Any] = {}, **facts: Any
) -> Checkpoint | None:
    """Return the checkpoint that a state dict with published names is, None if it is no network of the family.

    options: the arguments recorded in the file, which decide where the weights cannot. facts: further fields.
    """
    state = networks.cleaned(state)
    found = networks.candidates(state)
    if not found:
        return None
    known = {"system", *(f.name for architecture, _ in found for f in fields(architecture.defaults))}
    for key in request.overrides:
        if key not in known:
            raise unknown("--set key", key, known)
    built = {}
    for architecture, told in found:
        config, size = networks.complete(architecture, told, options, request.overrides)
        built[architecture.name] = (architecture, config, size)
    wanted = request.overrides.get("system")
    readings = readings_of({name: config for name, (_, config, _) in built.items()}, options, wanted)
    if not readings:
        return None
    models, names = {}, []
    for reading in readings:
        architecture, config, size = built[reading.architecture]
        if reading.native not in models:
            network = networks.assemble(architecture, config, state, where=str(path))
            models[reading.native] = converted(network, reading.native)
            names.append(reading.published(size))
    systems = tuple(dict.fromkeys(reading.system for reading in readings))
    architecture, told = next(pair for pair in found if pair[0].name == readings[0].architecture)
    if "idle_ratio" in architecture.recorded:
        source = networks.source_of("idle_ratio", told, options, request.overrides)
        facts["facts"] = {**facts.get("facts", {}), "idle_ratio_from": source}
    return Checkpoint(path=path, systems=systems, model_name=names[0], models=tuple(models.values()), **facts)


def _unknown(file: Path, content: Any) -> UserError | Failure:
    tensors = _tensors(content)
    name, wrong = networks.nearest(networks.cleaned(tensors), dict.fromkeys(r.architecture for r in READINGS))
    if name:
        systems = ", ".join(dict.fromkeys(r.system for r in READINGS if r.architecture == name and not r.only_told))
        shown = "; ".join(wrong[:3]) + (f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else "")
        return UserError(f"{file} is a checkpoint of no known system; nearest is {name} ({systems}), but {shown}")
    shown = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
    return UserError(f"{file} is a checkpoint of no known layout ({', '.join(LAYOUTS.names())}); it holds: {shown}")


def _tensors(content: Any) -> dict[str, Tensor]:
    """Return the first level of `content` whose values are tensors: itself, or an entry such as `ema`."""
    if not isinstance(content, dict):
        return {}
    for level in (content, *(content.get(key) for key in ("ema", "model", "state_dict"))):
        if isinstance(level, dict) and level and all(isinstance(value, Tensor) for value in level.values()):
            return {str(key): value for key, value in level.items()}
    return {}


def _example(folder: Path) -> str:
    found = sorted(folder.rglob("checkpoints/*.pt"))
    return str(found[-1]) if found else str(folder / "checkpoints" / "0001500.pt")
