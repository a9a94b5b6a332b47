"""From a state dict to a network: the architecture is told by names and shapes, built without memory, then filled."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from repa_eval import __version__
from repa_eval.config import from_dict, to_dict
from repa_eval.errors import Failure, UserError, first_line, short_repr
from repa_eval.interfaces.architecture import MODELS, Architecture, Shapes, find_preset
from repa_eval.models.shared.encoder import Encoder

State = Mapping[str, Tensor]
_log = logging.getLogger(__name__)


def renamed(state: State) -> dict[str, Tensor]:
    """Return the state dict with REPA's older `decoder_blocks` under the names that they have today."""
    first = encoder_blocks(state)
    if first is None:
        return dict(state)

    def today(name: str) -> str:
        return re.sub(r"^decoder_blocks\.(\d+)\.", lambda found: f"blocks.{first + int(found[1])}.", name)

    return {today(name): tensor for name, tensor in state.items()}


def encoder_blocks(names: Any) -> int | None:
    """Return the number of `blocks` before the `decoder_blocks` of an older REPA file, its aligned block; else None."""
    numbers = {match[1]: int(match[2]) for name in sorted(names, key=_numbers) if (match := _BLOCK.match(name))}
    return numbers["blocks"] + 1 if {"blocks", "decoder_blocks"} <= set(numbers) else None


_BLOCK = re.compile(r"(blocks|decoder_blocks)\.(\d+)\.")


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def candidates(state: State, *, warn: bool = True) -> list[tuple[Architecture, dict[str, Any]]]:
    """Return (architecture, fields told by names and shapes) of every architecture that the state dict can be.

    warn: of a plug-in that breaks on it.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    read = ((architecture, _fields_read(architecture, shapes, warn)) for _, architecture in MODELS.items())
    return [(architecture, told) for architecture, told in read if told is not None]


def is_network(state: State, *, encoders: bool) -> bool:
    """Return whether a state dict is that of a diffusion model, or of an encoder."""
    found = candidates(renamed(state), warn=False)
    return any(encoders == (isinstance(one.build, type) and issubclass(one.build, Encoder)) for one, _ in found)


def _fields_read(architecture: Architecture, shapes: Shapes, warn: bool) -> dict[str, Any] | None:
    """Return what `architecture.read` tells; a plug-in's that breaks on another network's names is passed over."""
    if architecture.read is None:
        return None
    try:
        return architecture.read(shapes)
    except Exception as error:
        plugin = MODELS.plugin_of(architecture.name)
        if plugin is None:
            if isinstance(error, ArithmeticError | LookupError):  # its names with other dimensions, or none
                return None
            raise
        if warn:
            _log.warning(
                "model %s of %s: its `read` broke (%s: %s); it returns None for another network's names",
                architecture.name, plugin.path, type(error).__name__, first_line(error),
            )  # fmt: skip
        return None


def complete(
    architecture: Architecture, told: Mapping[str, Any], options: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[Any, str]:
    """Return (config, name of its size). What shapes cannot tell comes from --set, the file, then the preset table.

    options: the file's own arguments. overrides: config fields given by the user. UserError if the heads stay open.
    """
    known = {field.name for field in dataclass_fields(architecture.defaults)}
    said = {key: value for key, value in overrides.items() if key in known}
    if {"num_classes", "class_dropout_prob"} <= known and "num_classes" in told:
        told = {**told, **label_table(told["num_classes"] + 1, options, said)}
    given = {**told, **_untold(architecture, told, options, said), **said}
    if "num_heads" in known and "num_heads" not in given:
        given["num_heads"] = _heads(architecture, given, options)
    config = from_dict(architecture.defaults, given)
    return config, size_name(architecture, config)


def label_table(rows: int, options: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """Return num_classes of a label table, and class_dropout_prob 0 where its last row is no null label.

    options, said: what the file's arguments and the user say, the user first; without either, the last row is the null
    label, as in every published file. UserError where they say neither `rows` nor one less, and for a table of as many
    rows as a common data set has classes, which may be either.
    """
    if rows < 1:
        raise Failure("its label table has no rows")
    dropout = said.get("class_dropout_prob", options.get("class_dropout_prob"))
    classes = said.get("num_classes", options.get("num_classes"))
    if classes is None and not isinstance(dropout, int | float):
        if rows in AMBIGUOUS:
            raise UserError(
                f"its label table has {rows} rows, and nothing says whether the last one is the null label: "
                f"add --set num_classes={rows} (it is not) or --set num_classes={rows - 1} (it is)"
            )
        return {}
    if classes is None:
        return {"num_classes": rows, "class_dropout_prob": 0.0} if dropout == 0 else {}
    if classes == rows:
        return {"num_classes": rows, "class_dropout_prob": 0.0}
    if classes != rows - 1 and "num_classes" in said:
        raise UserError(
            f"num_classes {classes}: its label table has {rows} rows; say {rows - 1}, or {rows} (no null label)"
        )
    return {}


AMBIGUOUS = (10, 100, 1000)  # classes of MNIST and CIFAR-10, of CIFAR-100, of ImageNet


def _untold(
    architecture: Architecture, told: Mapping[str, Any], options: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields that no shape tells: by the file's own arguments, else those of the size with these shapes."""
    found = {key: options[key] for key in architecture.recorded if key in options}
    rows = architecture.presets.values()
    alike = [row for row in rows if all(_plain(told[key]) == _plain(row[key]) for key in row if key in told)]
    for key in (key for key in architecture.recorded if key not in {**told, **found, **said}):
        values = [row[key] for row in alike if key in row]
        if values:
            found[key] = values[0]
        elif key == "idle_ratio" and told.get("channel_idle", True):
            size = f"width {told.get('hidden_size')}, depth {told.get('depth')}"
            raise UserError(
                f"a {architecture.name} of {size}: neither file nor shapes tell the idle ratio, and no published size "
                "has these; add --set idle_ratio=0.75"
            )
    return found


def source_of(key: str, told: Mapping[str, Any], options: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Return who says what a field of `Architecture.recorded` is."""
    places = {"--set": overrides, "file": options, "shapes": told}
    return next((name for name, place in places.items() if key in place), "published size")


def size_name(architecture: Architecture, config: Any) -> str:
    """Return the preset that a config is (data and teachers aside), else the architecture's name."""
    own = to_dict(config)
    stub = bool(own.get("warmup"))  # ERW's first stage: the first blocks of a size
    free = {*FREE, "depth"} if stub else FREE
    for size, row in architecture.presets.items():
        if all(_plain(own.get(key)) == _plain(value) for key, value in row.items() if key not in free):
            return f"{size}, first {own['depth']} blocks" if stub else size
    return architecture.name


FREE = {"projector_dim", "z_dims", "num_classes", "input_size", "in_channels", "idle_ratio"}  # do not make another size


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _heads(architecture: Architecture, given: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    if isinstance(options.get("num_heads"), int):
        return int(options["num_heads"])
    named = str(options.get("model") or options.get("model_type"))
    rows = [architecture.presets[named]] if named in architecture.presets else list(architecture.presets.values())
    width, depth = given.get("hidden_size"), _plain(given.get("depth"))
    fitting = [row for row in rows if row.get("hidden_size") == width]
    exact = [row for row in fitting if _plain(row.get("depth")) == depth] or fitting
    heads = {row["num_heads"] for row in exact if "num_heads" in row}
    if len(heads) == 1:
        return int(heads.pop())
    raise UserError(
        f"a {architecture.name} of width {width}, depth {depth}: shapes do not tell the number of heads "
        "and no published size has these; add --set num_heads=N"
    )


class Uninitialised(TorchFunctionMode):
    """Leaves random initialisation out: the meta device has no values, and drawing there would load torch's compiler.

    Which takes 0.16 GB and half a second.
    """

    DRAWS = frozenset({"normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return the tensor as it is where `func` would fill it, else what `func` returns."""
        if getattr(func, "__name__", "") in self.DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def assemble(architecture: Architecture, config: Any, state: State, *, where: str) -> nn.Module:
    """Return the network with the tensors of `state` as its own: built on the meta device, nothing is copied."""
    _check_size(config, state, where)
    with torch.device("meta"), Uninitialised():
        network = architecture.build(config)
    fill(network, state, size=size_name(architecture, config), where=where)
    return network.eval().requires_grad_(False)


def _check_size(config: Any, state: State, where: str) -> None:
    """Failure for a recorded size that the tensors cannot fill: building it would take hours, or all memory."""
    numbers = sum(tensor.numel() for tensor in state.values())
    recorded = {field.name: getattr(config, field.name) for field in dataclass_fields(config)}
    depth, heads = _total(recorded.get("depth", 0)), len(recorded.get("z_dims", ()))
    for name, value in {"depth": depth, "z_dims": heads}.items():
        if value > len(state):
            raise Failure(f"{where}: its {name} is {value}, but the file holds {len(state)} tensors")
    for name, value in recorded.items():
        if _total(value) > max(numbers, LEAST_NUMBERS):
            raise Failure(f"{where}: its {name} is {_total(value)}, but the file holds {numbers} numbers")
    side = _total(recorded.get("input_size", 0)) // max(_total(recorded.get("patch_size", 1)), 1)
    table = side**2 * _total(recorded.get("hidden_size", 1))
    if table > max(numbers, LEAST_NUMBERS):
        raise Failure(f"{where}: its {side}x{side} positions are too many for a file of {numbers} numbers")


LEAST_NUMBERS = 1 << 22  # what a network may always declare


def _total(value: Any) -> int:
    """Return a whole number, or the sum of several; 0 for anything else."""
    if isinstance(value, tuple):
        return sum(_total(one) for one in value)
    return value if isinstance(value, int) else 0


def fill(network: nn.Module, state: State, *, size: str, where: str) -> None:
    """Give a network on the meta device the tensors of `state`; Failure that says what does not fit."""
    wanted = network.state_dict()
    wrong = misfits({name: tuple(tensor.shape) for name, tensor in wanted.items()}, state)
    wrong += [
        f"{name} holds {tensor.dtype}, expected floats"
        for name, tensor in state.items()
        if name in wanted and wanted[name].is_floating_point() and not tensor.is_floating_point()
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise Failure(f"{where}: the weights do not fit {size}: {wrong[0]}{more}")
    network.load_state_dict(_of_one_kind(state, wanted), strict=True, assign=True)


def _of_one_kind(state: State, wanted: State) -> State:
    """Return the state dict with floats of one kind, in which a network can compute.

    8-bit floats, and weights saved in several kinds, become float32; a tensor that the network has in another kind than
    float32 keeps its own.
    """
    ordinary = [name for name, tensor in wanted.items() if tensor.dtype == torch.float32]
    kinds = {state[name].dtype for name in ordinary}
    if len(kinds) <= 1 and all(kind.itemsize > 1 for kind in kinds):
        return state
    return {**state, **{name: state[name].float() for name in ordinary}}


def misfits(wanted: Mapping[str, tuple[int, ...]], state: State) -> list[str]:
    """Return one line for each name that is missing, of another shape, or not known to the architecture."""
    lines = [f"{name} {list(shape)} is missing" for name, shape in wanted.items() if name not in state]
    for name, tensor in state.items():
        if name not in wanted:
            lines.append(f"{name} {list(tensor.shape)} is not one of its parameters")
        elif tuple(tensor.shape) != wanted[name]:
            lines.append(f"{name} has shape {list(tensor.shape)}, expected {list(wanted[name])}")
    return lines


def refuse_unfinite(network: nn.Module, path: Path) -> None:
    """Failure that names the weights which hold NaN or infinities."""
    bad = [name for name, tensor in network.state_dict().items() if not _finite(tensor)]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise Failure(f"{path}: the weights {bad[0]}{more} are not finite; --allow-nan opens it all the same")


def _finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # the extremes pass NaN on and need no further memory, unlike isfinite of every entry
    return all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor))


def nearest(states: Mapping[str, State], order: Iterable[str]) -> tuple[str, list[str]]:
    """Return the first of the best architectures whose names are like those of a state dict, and what does not fit it.

    "" if none is like any. states: {prefix in the file: state dict}. order: names of architectures, the most common
    first. Names that an architecture has or has not (projectors, norms of queries and keys) do not count.
    """
    best: tuple[float, str, set[str], AbstractSet[str]] = (0.0, "", set(), set())
    found = [_patterns(state) for state in states.values()]
    for name in order:
        architecture = MODELS.get(name)
        wanted = _patterns_of(architecture.build, architecture.preset(next(iter(architecture.presets))))
        for own in found:
            score = len(own & wanted) / max(len(own | wanted), 1)
            if score > best[0]:
                best = (score, name, own, wanted)
    _, name, held, asked = best
    missing = [f"{pattern} is missing" for pattern in sorted(asked - held)]
    return name, missing + [f"{pattern} is unknown" for pattern in sorted(held - asked)]


@functools.cache
def _patterns_of(build: Callable[[Any], nn.Module], config: Any) -> frozenset[str]:
    """Return the patterns of a network's names; building a large one takes a tenth of a second even without memory."""
    with torch.device("meta"):
        return frozenset(_patterns(build(config).state_dict()))


def _patterns(state: State) -> set[str]:
    return {_pattern(name) for name in state if not OPTIONAL.search(name)}


OPTIONAL = re.compile(r"(^|\.)(projectors?\.|[qk]_norm\.)")


def _pattern(name: str) -> str:
    """Return a name without the number of its block; those within an embedder are no blocks."""
    return name if "embedder" in name else re.sub(r"\.\d+\.", ".N.", name, count=1)


def preset_of(size: str, fields: Any) -> tuple[Architecture, Any]:
    """Return (architecture, config) of a size with the recorded fields laid over it."""
    architecture, preset = find_preset(size)
    return architecture, recorded_config(architecture, preset, fields)


def recorded_config(architecture: Architecture, base: Any, fields: Any) -> Any:
    """Return `base` with the fields that a file records laid over it; Failure for those of another version."""
    newer = set(fields) - {field.name for field in dataclass_fields(base)} if isinstance(fields, Mapping) else ()
    if newer:
        named = ", ".join(short_repr(name) for name in sorted(newer, key=str)[:3])
        raise Failure(
            f"its {architecture.name} has fields that repa-eval {__version__} does not know ({named}), as a newer "
            "version writes: open it with that version"
        )
    return from_dict(base, fields, where="architecture")
