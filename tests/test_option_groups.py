"""Groups of options: one dataclass drives the command line, its help and its defaults."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any

import click
import pytest
from click.testing import CliRunner

from repa_eval.cli import main as evaluate
from repa_eval.console.app import CommandFolder
from repa_eval.console.numbers import Real, Whole
from repa_eval.console.option_groups import flag, given, option_group
from repa_eval.console.options import ComputeOptions, GridOptions, checkpoint_options, compute_options, parse_times
from repa_eval.errors import UserError
from repa_eval.train.cli import main as trainer

COMMANDS = CommandFolder("x").list_commands(click.Context(evaluate))


@dataclass(frozen=True, kw_only=True)
class Fruit:
    """Options of a test."""

    count: int = flag("--count", "-c", type=int, default=2, help="how many")
    skipped: int = flag("--skip", type=int, default=0, help="how many not")
    kinds: tuple[str, ...] = flag("--kind", multiple=True, help="which")
    ripe: bool = flag("--ripe", is_flag=True, help="only ripe ones")
    name: str | None = flag("--name", help="its name")


def call(*words: str) -> Any:
    received: list[Any] = []

    @click.command()
    @option_group("fruit", Fruit)
    @click.option("--plain")
    def command(fruit: Fruit, plain: str | None) -> None:
        received.extend([fruit, plain, given("count")])

    result = CliRunner().invoke(command, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return received or result.output


def test_a_command_receives_one_object_a_group() -> None:
    assert call() == [Fruit(), None, False]
    words = ["-c", "5", "--kind", "fig", "--kind", "plum", "--ripe", "--plain", "x"]
    assert call(*words) == [Fruit(count=5, kinds=("fig", "plum"), ripe=True), "x", True]


def test_help_shows_defaults_where_there_are_some() -> None:
    lines = {line.split()[0].rstrip(","): line for line in call("--help").splitlines() if line.strip().startswith("-")}
    assert "[default: 2]" in lines["-c"]
    assert "[default: 0]" in lines["--skip"]
    assert not [line for name, line in lines.items() if name not in ("-c", "--skip") and "default" in line]


def test_required_options_come_first() -> None:
    command = checkpoint_options(lambda checkpoint: None)
    assert next(parameter.name for parameter in reversed(command.__click_params__)) == "ckpt"


def test_every_command_is_summed_up_in_one_short_line() -> None:
    listing = CliRunner().invoke(evaluate, ["--help"]).stdout.partition("Commands:\n")[2].splitlines()
    lines = [line.split(maxsplit=1) for line in listing if line.strip()]
    assert sorted(name for name, _ in lines) == COMMANDS
    assert not [text for _, text in lines if len(text) > 45 or (text.endswith("...") and "," not in text)]


def test_a_group_can_be_built_without_a_command_line_and_is_frozen() -> None:
    options: Any = ComputeOptions(seed=3)
    assert (options.device, options.batch_size, options.quiet) == ("auto", 256, False)
    with pytest.raises(FrozenInstanceError):
        options.seed = 4
    assert GridOptions().times() == [0.05, 0.1, 0.2, 0.3, 0.5]


def test_two_options_of_one_name_are_refused() -> None:
    with pytest.raises(AssertionError, match="ComputeOptions: two options of one name"):
        compute_options(click.option("--seed")(lambda seed: None))


def test_every_command_names_an_option_once() -> None:
    folder = CommandFolder("x")
    context = click.Context(folder)
    for name in folder.list_commands(context):
        command = folder.get_command(context, name)
        assert command is not None
        names = [parameter.name for parameter in command.params]
        assert len(names) == len(set(names)), name


# --- numbers


def numeric_options() -> list[tuple[str, click.Option]]:
    """Every option of both programs that takes a number."""
    folder = CommandFolder("x")
    commands = {name: folder.get_command(click.Context(evaluate), name) for name in COMMANDS}
    commands["repa-train"] = trainer
    return [
        (f"{name} {option.opts[0]}", option)
        for name, command in commands.items()
        if command is not None
        for option in command.params
        if isinstance(option, click.Option)
        and isinstance(option.type, click.types.IntParamType | click.types.FloatParamType)
    ]


NUMERIC = numeric_options()


@pytest.mark.parametrize("option", [option for _, option in NUMERIC], ids=[name for name, _ in NUMERIC])
def test_every_number_is_finite_and_in_a_range(option: click.Option) -> None:
    assert isinstance(option.type, Whole | Real)
    context = click.Context(evaluate)
    for text in ("nan", "inf", "-inf", "1e999", "1" + "0" * 30 + ("" if isinstance(option.type, Whole) else "e400")):
        with pytest.raises(click.UsageError):
            option.type.convert(text, option, context)
    if isinstance(option.default, int | float):
        assert option.type.convert(option.default, option, context) == option.default


@pytest.mark.parametrize("text", ["", " ", ",", "nan", "0.1,inf", "0.1,x"])
def test_a_list_of_numbers_has_some_and_finite_ones(text: str) -> None:
    with pytest.raises(UserError, match="--timesteps"):
        parse_times(text)


def test_a_number_named_twice_counts_once() -> None:
    assert parse_times("0.3, 0.1,.3,1e-1") == [0.3, 0.1]
