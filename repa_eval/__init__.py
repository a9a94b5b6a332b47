"""Evaluation, representation analysis and training for representation-aligned diffusion models.

Everything a notebook needs is a name of this package (`dir(repa_eval)`); torch is imported when one is first used.
"""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# name -> the module that defines it; __init__.pyi says the same to type checkers
_PLACES = {
    "load": "checkpoints",
    "align": "api.alignment",
    "align_module": "api.alignment",
    "Monitor": "api.alignment",
    "features": "api.hidden_states",
    "probe": "api.probing",
    "fid": "api.sample_quality",
    "FrechetDistance": "api.frechet",
    "images": "api.image_arrays",
    "wrap": "api.wrapping",
    "sample": "api.sampling",
    "train": "train.start",
    "Measurement": "api.results",
    "LayerMap": "api.results",
    "Checkpoint": "interfaces.checkpoint_layout",
    "Callback": "train.callbacks",
    "Row": "results",
    "UserError": "errors",
}
_MODULES = {"align", "features", "train"}  # functions that have the name of a module
_DOORS = ("checkpoints", "data", "extractors", "teachers")  # packages with a load(name) each
__all__ = [*_PLACES, *_DOORS]


class _CallableModule(ModuleType):
    """`repa_eval.align`, `.features` and `.train` are modules to import from, and functions to call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _defined(self.__name__.rpartition(".")[2])(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        """The function's, for inspect and notebooks."""
        import inspect

        return inspect.signature(_defined(self.__name__.rpartition(".")[2]))


class _Package(ModuleType):
    """This package: a submodule that has the name of a function becomes callable when it is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _MODULES and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def _defined(name: str) -> Any:
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES or name in _DOORS:
        return import_module(f"{__name__}.{name}")  # which makes it callable, see _Package
    found = globals()[name] = _defined(name)
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


# probes/, reports/ and train/ lie at the top of a checkout but are imported as repa_eval.*:
# an installed package maps them (setup.cfg), a bare clone finds them through these lines.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "probes").is_dir():
    __path__.append(str(_root))
