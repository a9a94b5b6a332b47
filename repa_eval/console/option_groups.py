"""Groups of command-line options as frozen dataclasses: the function of a command receives one typed object a group."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import Field, field, fields
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def flag(*names: str, **settings: Any) -> Any:
    """Return a dataclass field that is an option of the command line.

    names: as typed ("--layer", "--layers"); settings: those of `click.option`. A default is shown in the help. The
    field's own default is the option's, so that a group can be built without a command line; a required option has
    none.
    """
    metadata = {"names": names, "settings": settings}
    if settings.get("required"):
        return field(metadata=metadata)
    missing = False if settings.get("is_flag") else () if settings.get("multiple") else None
    return field(default=settings.get("default", missing), metadata=metadata)


def option_group(name: str, group: type[Any]) -> Callable[[F], F]:
    """Return a decorator: adds the options of the dataclass `group`, and passes their values as the argument `name`.

    Required options come first in the help.
    """
    members = sorted(fields(group), key=lambda member: not member.metadata["settings"].get("required"))

    def attach(function: F) -> F:
        taken = {parameter.name for parameter in getattr(function, "__click_params__", ())}
        assert taken.isdisjoint(member.name for member in members), f"{group.__name__}: two options of one name"

        @functools.wraps(function)
        def run(*positional: Any, **values: Any) -> Any:
            options = group(**{member.name: values.pop(member.name) for member in members})
            return function(*positional, **{name: options}, **values)

        decorated: Any = run
        for member in reversed(members):
            decorated = _option(member)(decorated)
        return decorated  # type: ignore[no-any-return]

    return attach


def given(name: str) -> bool:
    """Return whether the option of this field was given to the running command, in place of its default."""
    return click.get_current_context().get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _option(member: Field[Any]) -> Callable[[Any], Any]:
    settings = dict(member.metadata["settings"])
    default = settings.get("default")
    settings.setdefault("show_default", not (default is None or default is False or default == ""))
    return click.option(*member.metadata["names"], member.name, **settings)
