"""The documents cannot rot: every command is described, every command shown exists, every link leads somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from repa_eval import __version__
from repa_eval.cli import main as repa_eval_main
from repa_eval.train.cli import main as repa_train_main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [path for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))]
COMMANDS = repa_eval_main.list_commands(click.Context(repa_eval_main))


def shown() -> list[str]:
    """Every command line of ours in a code block of a document."""
    found = []
    for path in DOCUMENTS:
        for block in re.findall(r"```(?:sh|bash|console)?\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            joined = block.replace("\\\n", " ")
            for line in joined.splitlines():
                parts = line.lstrip("$ ").split("&&")
                found += [part.strip() for part in parts if re.match(r"\s*repa-(eval|train)\b", part)]
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme_and_has_an_example(name: str) -> None:
    assert f"repa-eval {name}" in README
    command = repa_eval_main.get_command(click.Context(repa_eval_main), name)
    assert command is not None
    assert f"repa-eval {name}" in (command.help or "")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


def test_examples_were_found() -> None:
    assert len(shown()) >= 5


@pytest.mark.parametrize("line", shown())
def test_shown_commands_use_options_that_exist(line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "repa-train":
        command: click.Command = repa_train_main
    else:
        names = [word for word in words[1:] if not word.startswith("-")]
        if not names:
            return
        found = repa_eval_main.get_command(click.Context(repa_eval_main), names[0])
        assert found is not None
        command = found
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    for word in words[1:]:
        if word.startswith("-"):
            assert word.split("=")[0] in known, line


def test_the_two_commands() -> None:
    assert "pip install . && repa-eval demo" in README
    assert "pip install tox && tox" in README


def test_links_lead_somewhere() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_changelog_speaks_of_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
