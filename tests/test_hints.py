"""Every option that an error names exists on the command that raises it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import click
import pytest
from test_architecture import MODULES

from repa_eval.cli import main
from repa_eval.train.cli import main as train

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*[a-z0-9]")
COMMAND = re.compile(r"repa-eval ([a-z]+)|(repa-train)")
LOADING = "align captions convert inspect probe reparam sample"  # what opens a checkpoint that the user names
# room or module -> the commands that reach its errors; a longer name wins. Modules of commands are their own command,
# and a module that is not listed may name what any command has
RAISED_BY: dict[str, str] = {
    "checkpoints": LOADING,
    "interfaces.checkpoint_layout": LOADING,
    "commands.shared.checkpoint": "align probe",
    "commands.shared.session": "align probe",
    "commands.shared.measured_data": "align probe",
    "commands.shared.generate_flags": "sample",
    "commands.shared.interpolate": "sample",
    "commands.shared.sample_options": "sample",
    "commands.shared.soft_tokens": "captions sample",
    "commands.shared.quality_options": "fid",
    "console.options": "align captions fid probe reparam",
    "data": "align prepare probe",
    "data.readers.statistics": "stats",
    "data.repa": "align prepare probe",
    "evaluation": "fid",
    "extractors": "fid stats sweep",
    "interfaces.extractor": "fid stats",
    "interfaces.recorded_names": "fid",
    "features": "align probe",
    "interfaces.image_source": "align fid probe",
    "interfaces.teacher": "align prepare probe sweep repa-train",
    "teachers": "align prepare probe sweep repa-train",
    "plugin_files.records": "repa-train",
    "preparation": "prepare",
    "reparameterisation": "reparam",
    "runtime.device": "align captions demo fid prepare probe reparam sample stats sweep repa-train",
    "sampling": "sample",
    "sampling.vae": "align prepare probe sample",
    "probes": "probe",
    "train": "repa-train",
    "train.demo": "demo",
    "reports.drawing": "align",
}


def options() -> dict[str, set[str]]:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    commands["repa-train"] = train
    return {
        name: {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
        for name, command in commands.items()
        if command is not None
    }


KNOWN = options()


def hints(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, option, and the command that the text names before it, "" for the one that runs."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            text = ast.get_source_segment(source, node) or ""
            for found in OPTION.finditer(text):
                named = [match[1] or match[2] for match in COMMAND.finditer(text[: found.start()])]
                yield node.lineno, found[0], named[-1] if named else ""


def commands_of(module: str) -> list[str]:
    parts = module.split(".")
    if parts[0] == "commands" and parts[1] != "shared":
        return [parts[1].rstrip("_")]
    prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((RAISED_BY[prefix].split() for prefix in prefixes if prefix in RAISED_BY), [])


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if "--" in path.read_text(encoding="utf-8")])
def test_an_error_names_options_that_its_command_has(module: str) -> None:
    for line, option, named in hints(MODULES[module].read_text(encoding="utf-8")):
        commands = [named] if named in KNOWN else commands_of(module)
        assert any(option in known for known in KNOWN.values()), f"{module}:{line} names {option}, which nothing has"
        lacking = [command for command in commands if option not in KNOWN[command]]
        assert not lacking, f"{module}:{line} names {option}, which {', '.join(lacking)} lacks"


def test_the_test_sees_a_hint_that_is_wrong() -> None:
    source = 'def f():\n    raise UserError(f"{x}: add --resize N, or make it again: repa-eval stats DATA --out {x}")\n'
    assert list(hints(source)) == [(2, "--resize", ""), (2, "--out", "stats")]
    assert "--resize" not in KNOWN["align"]
    assert "--out" in KNOWN["stats"]
