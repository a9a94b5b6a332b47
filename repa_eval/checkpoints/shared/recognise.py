"""Recognise a file by what is in it, never by its name, and build the model that it holds.

Nothing in a file is executed: tensors and plain values only (see reading.py).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from torch import Tensor

from repa_eval.checkpoints.shared import networks, state_dicts
from repa_eval.checkpoints.shared.records import check_record
from repa_eval.checkpoints.shared.systems import READINGS, readings_of
from repa_eval.checkpoints.shared.weight_folders import read_weights
from repa_eval.diffusion.conventions import converted
from repa_eval.errors import Failure, UserError, first_line, reason_of, unknown
from repa_eval.interfaces.checkpoint_layout import LAYOUTS, Checkpoint, Reader, Request
from repa_eval.models.shared.encoder import Encoder
from repa_eval.plugin_files.records import warn_of_differences
from repa_eval.runtime.shard_index import INDEX
from repa_eval.weight_files.hub import ENDINGS
from repa_eval.weight_files.names import flat, unwrapped

STEP_NAME = re.compile(r"\d{7}")  # as SiT, DiT, REPA and GMem name their files
SHARD = re.compile(r"-\d{5}-of-(?!00001\.)\d{5}\.")


def recognise(path: str | Path, request: Request) -> Checkpoint:
    """Return the checkpoint at `path`; UserError or Failure in one line if it is none that can be opened."""
    if request.weights not in ("ema", "online"):
        raise UserError(f"weights {request.weights!r}: choose ema or online")
    file = Path(path)
    if not file.exists():
        raise UserError(f"checkpoint {str(path)!r} does not exist")
    if SHARD.search(file.name) and any(file.parent.glob(f"*{INDEX}")):
        raise UserError(f"{file} is one of several files of the same weights: name the folder that holds all of them")
    content = read_weights(file)
    for name, reader in _readers():
        checkpoint = _read(name, reader, file, content, request)
        if checkpoint is not None:
            return _finished(checkpoint, request)
    if file.is_dir():
        example = _example(file)
        if example is None:
            raise UserError(f"{file} is a folder in which no file of weights lies; name a file")
        raise UserError(f"{file} is a folder; name a file, for example {example}")
    raise _unknown(file, content)


def _finished(checkpoint: Checkpoint, request: Request) -> Checkpoint:
    """Return the checkpoint with its models in eval mode; Failure where weights are not finite."""
    check_record(checkpoint)
    warn_of_differences(checkpoint.recipe, checkpoint.path)
    if checkpoint.step is None and STEP_NAME.fullmatch(checkpoint.path.stem):
        checkpoint.step, checkpoint.step_from = int(checkpoint.path.stem), "file name"
    if isinstance(network := checkpoint.network, Encoder):
        checkpoint.is_encoder = True
        checkpoint.facts = {"class_token": network.has_class_token, **network.facts(), **checkpoint.facts}
    for model in checkpoint.models:
        model.eval().requires_grad_(False)
    if not request.allow_nan:
        networks.refuse_unfinite(network, checkpoint.path)
    return checkpoint


def _readers() -> Iterator[tuple[str, Reader]]:
    """Yield the readers, those of plug-ins first: they know their files best."""
    yield from sorted(LAYOUTS.items(), key=lambda pair: LAYOUTS.plugin_of(pair[0]) is None)


def _read(name: str, reader: Reader, file: Path, content: Any, request: Request) -> Checkpoint | None:
    """Return what a reader makes of the content; a line that names the file, and a plug-in whose reader breaks."""
    plugin = LAYOUTS.plugin_of(name)
    try:
        return reader(file, content, request)
    except UserError as error:
        raise error if str(file) in str(error) else type(error)(f"{file}: {error}") from error
    except Exception as error:  # it may stumble over any value where it expects others
        if plugin is None:
            raise Failure(f"{file} is not a readable checkpoint: {reason_of(error)}") from error
        raise Failure(
            f"checkpoint layout {name!r} of {plugin.path} broke on {file} ({type(error).__name__}: "
            f"{first_line(error)}); a reader returns None for a file that is not its own"
        ) from error


def locate(state: Mapping[str, Tensor], request: Request, path: Path) -> state_dicts.Located | None:
    """Return the diffusion model in a state dict, else the encoder, None where there is neither."""
    for encoders in (False, True):
        known = functools.partial(networks.is_network, encoders=encoders)
        found = state_dicts.locate(dict(state), request, path, is_network=known)
        if found is not None:
            return found
    return None


def from_state(
    path: Path, state: Mapping[str, Tensor], request: Request, *, options: Mapping[str, Any] = {}, **facts: Any
) -> Checkpoint | None:
    """Return the checkpoint that a state dict with published names is, None if it is no network of the family.

    Names of wrappers (`module.`, `_orig_mod.`) are cut; the network may lie under a prefix, beside others.
    options: the arguments recorded in the file, which decide where the weights cannot. facts: further fields.
    """
    located = locate(state, request, path)
    if located is None:
        return None
    state = networks.renamed(located.state)
    found = networks.candidates(state)
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
    if located.others:
        facts["facts"] = {**facts.get("facts", {}), "other_networks": ", ".join(located.others)}
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
    whole = unwrapped(flat(content))
    states = {"": whole, **state_dicts.parts(whole)}
    by_today = {prefix: networks.renamed(state) for prefix, state in states.items()}
    name, wrong = networks.nearest(by_today, dict.fromkeys(r.architecture for r in READINGS))
    if name:
        systems = ", ".join(dict.fromkeys(r.system for r in READINGS if r.architecture == name and not r.only_told))
        wrong = wrong or ["its tensors have other shapes"]
        shown = "; ".join(wrong[:3]) + (f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else "")
        return UserError(f"{file} is a checkpoint of no known system; nearest is {name} ({systems}), but {shown}")
    shown = ", ".join(sorted(map(str, content))[:5]) if isinstance(content, dict) else type(content).__name__
    return UserError(f"{file} is a checkpoint of no known layout ({', '.join(LAYOUTS.names())}); it holds: {shown}")


def _example(folder: Path) -> Path | None:
    """Return a checkpoint in a folder of a run, or of several, or any file of weights in it."""
    for pattern in ("checkpoints/*.pt", "*/checkpoints/*.pt", *(f"*{ending}" for ending in ENDINGS)):
        if found := sorted(folder.glob(pattern)):
            return found[-1]
    return None
