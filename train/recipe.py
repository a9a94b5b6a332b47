"""The recipe: every setting of a run. Defaults live here and in the dataclasses that it holds, nowhere else."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from repa_eval.config import from_dict, full_key, nest, option, read_yaml, split_known, to_dict
from repa_eval.diffusion.model import DiffusionModel
from repa_eval.errors import UserError, short_repr, unknown
from repa_eval.interfaces.architecture import MODELS, architectures_for, find_preset
from repa_eval.interfaces.extractor import EXTRACTORS
from repa_eval.interfaces.images import DATA, find_layout
from repa_eval.interfaces.method import METHODS, Method, name_of
from repa_eval.interfaces.projector import PROJECTORS
from repa_eval.interfaces.sampler import SAMPLERS, default_sampler
from repa_eval.interfaces.teacher import TEACHERS, RecordedTeacher, recorded_teachers, registered_name
from repa_eval.plugin_files.loading import Plugin
from repa_eval.plugin_files.records import naming_plugins, records_of
from repa_eval.train.optim import Average, Optim

log = logging.getLogger(__name__)
_told: set[tuple[str, ...]] = set()  # unknown keys that were warned of: a sweep reads a recipe per checkpoint


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the trainer evaluates along a run."""

    eval_every: int = option(0, help="steps between measurements of sample quality; 0 = never", least=0)
    num_samples: int = option(512, help="samples per measurement", least=4, most=10_000_000)
    num_steps: int = option(16, help="ODE steps per sample", least=1, most=100_000)
    final_samples: int = option(
        0, help="samples of the measurement after the last step; 0 = none", least=0, most=10_000_000
    )
    final_num_steps: int = option(25, help="ODE steps of that measurement", least=1, most=100_000)
    extractor: str = option("digits", help="network that judges the samples")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The fields of a recipe that do not depend on the method or the model."""

    description: str = option("", help="one sentence")
    data: str = option("digits", help="training data")
    split: str = option("train", help="split of the data")
    batch_size: int = option(256, help="images per step over all processes", least=1, most=10_000_000)
    max_steps: int = option(400_000, help="training steps", least=1, most=10**12)
    checkpoint_every: int = option(50_000, help="steps between checkpoints", least=1)
    log_every: int = option(10, help="steps between points of the training curves", least=1)
    start_from: str | None = option(
        None, help="any checkpoint of the family whose weights a fresh run begins with; ERW's stage=full: its warm-up"
    )
    keep: str = option(
        "all", help="checkpoints that stay: all, N = the newest, every:M = those of steps k x M, and the newest"
    )
    teacher_weights: str | None = option(None, help="file that replaces the weights of the first teacher")
    seed: int = option(0, help="seed of weights, order, noise, times and label drops", least=0, most=2**63 - 1)
    mixed_precision: str = option("no", help="accelerate's mixed precision", choices=("no", "fp16", "bf16"))
    allow_tf32: bool = option(False, help="multiply float32 matrices in TF32 on CUDA")
    gradient_accumulation: int = option(1, help="parts that a process splits its batch into", least=1, most=10_000_000)
    num_workers: int = option(0, help="processes that read images", least=0, most=1024)
    log_with: str = option("", help="trackers, joined by commas: tensorboard, wandb, trackio, mlflow, ...")
    optim: Optim = Optim()
    ema: Average = Average()
    evaluation: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        kept_steps(self.keep, [])


def kept_steps(keep: str, steps: Sequence[int]) -> set[int]:
    """Return which of the steps of checkpoints, in ascending order, `keep` lets stay; UserError for another wording."""
    rule, _, number = keep.rpartition(":")
    if keep == "all":
        return set(steps)
    if rule not in ("", "every") or not number.isdecimal() or int(number) < 1:
        raise UserError(f"keep: {short_repr(keep)} is not allowed; write all, a number N, or every:M")
    if rule == "every":
        return {step for step in steps if step % int(number) == 0} | set(steps[-1:])
    return set(steps[-int(number) :])


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A run: the settings, the method with its options, and the model's architecture."""

    name: str
    settings: Settings
    method: Method
    model: str  # a size, such as SiT-XL/2
    architecture: Any  # the config of that model
    stated: Mapping[str, Any] = field(default_factory=dict, compare=False)  # values of it that were said
    fitted: bool = field(default=False, compare=False)  # whether the data and the teachers are in it

    @property
    def teachers(self) -> tuple[RecordedTeacher, ...]:
        """The method's teachers with their files of weights."""
        return recorded_teachers(self.method.teachers(), self.settings.teacher_weights)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved tree: what recipe.yaml, a checkpoint and --dry-run show."""
        head = {
            "name": self.name,
            "method": name_of(self.method),
            "systems": list(self.method.systems),
            "model": self.model,
            "teachers": [{"name": teacher.name, "weights": teacher.weights} for teacher in self.teachers],
            "aligned_layer": self.method.aligned_layer(),
        }
        tree = {"options": to_dict(self.method), "architecture": self._known_architecture()}
        plugins = self.plugins()
        return {**head, **to_dict(self.settings), **tree, **({"plugins": plugins} if plugins else {})}

    def _known_architecture(self) -> dict[str, Any]:
        """Return the architecture, without what nobody has said and only data and teachers tell."""
        values = to_dict(self.architecture)
        if self.fitted:
            return values
        return {key: value for key, value in values.items() if key not in OF_DATA + OF_TEACHERS or key in self.stated}

    def plugins(self) -> list[dict[str, str]]:
        """Return name, path and sha256 of the plug-ins that what the run is made with comes from."""
        settings, (architecture, _) = self.settings, find_preset(self.model)
        network = architecture.build
        used = [
            METHODS.plugin_of(name_of(self.method)),
            MODELS.plugin_of(architecture.name),
            _plugin_of_data(settings.data),
            EXTRACTORS.plugin_of(settings.evaluation.extractor),
            PROJECTORS.plugin_of(str(to_dict(self.method).get("projector"))),
            *(TEACHERS.plugin_of(registered_name(name)) for name in self.method.teachers()),
        ]
        if isinstance(network, type) and issubclass(network, DiffusionModel):
            used.append(SAMPLERS.plugin_of(default_sampler(network)))
        return records_of(used)

    def defaults(self) -> Recipe:
        """Return the recipe of this method and model in which nothing is set."""
        method, architecture = type(self.method)(), type(self.architecture)()
        return dataclasses.replace(self, settings=Settings(), method=method, architecture=architecture)


def _plugin_of_data(spec: str) -> Plugin | None:
    """Return the plug-in whose layout opens the data `spec`; None for a layout of ours, and for data that are gone."""
    try:
        chosen, _ = find_layout(spec)
    except UserError:
        return None
    return next((DATA.plugin_of(name) for name, layout in DATA.items() if layout is chosen), None)


LONGEST_NAME = 100  # letters
# follow from the method and the rest: a resolved recipe shows them, none is read
DERIVED = ("systems", "teachers", "aligned_layer", "plugins", "resolved", "latent_scale", "latent_shift")
# entries of an architecture that the data tell, and what the teachers do
OF_DATA = ("in_channels", "input_size", "input_shape", "num_classes", "captions", "bank_size")
OF_TEACHERS = ("z_dims",)


def builtin_recipes() -> dict[str, Path]:
    """Return name -> file of the recipes that ship with the package; `imagenet/repa` lies in a folder of its own."""
    folder = Path(str(files("repa_eval.train") / "recipes"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def read_recipe(name_or_file: str) -> dict[str, Any]:
    """Return the tree of a shipped recipe or of a YAML file, its name put in."""
    shipped = builtin_recipes()
    path = shipped.get(name_or_file, Path(name_or_file))
    if not path.is_file():
        raise unknown("recipe", name_or_file, shipped)
    tree = read_yaml(path.read_bytes(), f"recipe {name_or_file!r} is not YAML")
    if not isinstance(tree, dict):
        raise UserError(f"recipe {name_or_file!r} holds no keys")
    return {"name": name_or_file if name_or_file in shipped else path.stem, **tree}


def resolve(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return the recipe of a tree with overrides ("a.b" or a bare unique key) put on top.

    Order: default < recipe file < override. Where an override changes the method, the recipe's options that the new
    method does not have are left out; where it changes the model, so is the recipe's architecture.
    A key that a run has recorded and this version does not have is left out, with a warning.
    UserError names the key that is unknown, ambiguous or of a wrong type.
    """
    own = {key: value for key, value in tree.items() if key not in DERIVED}
    with naming_plugins(tree):
        return _resolve(own, dict(overrides or {}), recorded="systems" in tree)


def _resolve(tree: dict[str, Any], overrides: dict[str, Any], *, recorded: bool) -> Recipe:
    name = _plain_name(tree.pop("name", "unnamed"))
    options, architecture = (_mapping(tree, part) for part in ("options", "architecture"))
    method_name, method_changed = _choose("method", "repa", tree, overrides)
    model_name, model_changed = _choose("model", "SiT-XL/2", tree, overrides)
    method, (architecture_class, config) = METHODS.get(method_name)(), find_preset(model_name)
    if architecture_class.name not in (fitting := architectures_for(method.requires)):
        trained = ", ".join(fitting) or f"models with {', '.join(sorted(method.requires))}"
        raise UserError(f"method {method_name} does not train {model_name} ({architecture_class.name}), only {trained}")
    if method_changed:
        options = {key: value for key, value in options.items() if key in to_dict(method)}
        name = f"{name}-{method_name}"
    if model_changed:  # what is said of the data holds for every model that reads them
        names = {each.name for each in dataclasses.fields(config)}
        architecture = {key: value for key, value in architecture.items() if key in OF_DATA and key in names}
    if recorded:
        parts = {"": (Settings(), tree), "options": (method, options), "architecture": (config, architecture)}
        tree, options, architecture = _known_to_this_version(parts)
    settings = from_dict(Settings(), tree)
    method = from_dict(method, options, where="options")
    config = from_dict(config, architecture, where="architecture")
    whole = {**to_dict(settings), "options": to_dict(method), "architecture": to_dict(config)}
    given = nest({full_key(key, whole): value for key, value in overrides.items()})
    method = from_dict(method, given.pop("options", {}), where="options")
    stated = given.pop("architecture", {})
    config = from_dict(config, stated, where="architecture")
    given_keys = set(given)
    settings = from_dict(settings, given)
    if settings.evaluation.extractor not in EXTRACTORS.names():
        raise unknown("extractor", settings.evaluation.extractor, EXTRACTORS.names())  # no recipe names code
    kept = () if recorded and "data" in given_keys else architecture  # that of a run was fitted to its own data
    said = {key: value for key, value in vars(config).items() if key in kept or key in stated}
    return Recipe(name=name, settings=settings, method=method, model=model_name, architecture=config, stated=said)


def _known_to_this_version(parts: Mapping[str, tuple[Any, Any]]) -> list[Any]:
    """Return the values of each part, by its place in the tree, that the dataclass beside them has a field for."""
    found = [split_known(base, values, where=where) for where, (base, values) in parts.items()]
    unknown_keys = tuple(sorted(key for _, keys in found for key in keys))
    if unknown_keys and unknown_keys not in _told:
        _told.add(unknown_keys)
        log.warning("a recorded recipe has options that this version does not have: %s", ", ".join(unknown_keys))
    return [known for known, _ in found]


def _mapping(tree: dict[str, Any], key: str) -> dict[str, Any]:
    """Take a part of the tree out and return it; UserError unless it holds keys and values."""
    part = tree.pop(key, None) or {}
    if not isinstance(part, Mapping):
        raise UserError(f"{key}: expected keys and values, not {short_repr(part)}")
    return dict(part)


def _choose(key: str, default: str, tree: dict[str, Any], overrides: dict[str, Any]) -> tuple[str, bool]:
    """Take `key` out of both; return its value and whether the override differs from what the recipe says."""
    own = tree.pop(key, default)
    chosen = overrides.pop(key, own)
    for value in (own, chosen):
        if not isinstance(value, str):
            raise UserError(f"{key}: {short_repr(value)} is not a word")
    return chosen, chosen != own


def _plain_name(value: Any) -> str:
    """Return the name of a recipe, which is that of its folder in runs/; UserError for one that could leave it.

    The shipped ones lie in folders of their own, such as imagenet/repa.
    """
    text = str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    parts = text.split("/")
    shipped = len(parts) == 2 and (Path(str(files("repa_eval.train"))) / "recipes" / parts[0]).is_dir()
    plain = (part == part.strip() and part[:1] not in (".", "-", "~", "") and "\\" not in part for part in parts)
    if not (len(parts) == 1 or shipped) or not all(plain) or not text.isprintable() or len(text) > LONGEST_NAME:
        raise UserError(
            f"name: {short_repr(value)} is not the name of a folder: expected one word of at most {LONGEST_NAME} "
            "letters, without / and \\ and not beginning with a dot or a dash"
        )
    return text
