"""The flags of the official trainers (REPA, HASTE, REG, ERW), accepted as their READMEs type them.

Each flag is one line of FLAGS. Most are a field of the recipe; some need a word of their own; the rest have no effect
here and are named in one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
NO_EFFECT = ""


@dataclass(frozen=True)
class Flag:
    """An official flag.

    key: the field of the recipe that it sets, NO_EFFECT for none. switch: it takes no value, and has a form that turns
    it off. text: its value is a word as it stands, whatever YAML would make of it ("off", "007"). help: what it does
    where that is not the field's own.
    """

    key: str
    switch: bool = False
    text: bool = False
    help: str = ""


FLAGS: dict[str, Flag] = {
    "--model": Flag("model"),
    "--num-classes": Flag("architecture.num_classes"),
    "--encoder-depth": Flag("encoder_depth"),
    "--fused-attn": Flag("architecture.fused_attn", switch=True),
    "--qk-norm": Flag("architecture.qk_norm", switch=True),
    "--use_rope": Flag("architecture.use_rope", switch=True),
    "--data-dir": Flag("data", text=True),
    "--resolution": Flag("architecture.input_size", help="side of the images; latents have an eighth of it"),
    "--batch-size": Flag("batch_size"),
    "--mixed-precision": Flag("mixed_precision", text=True),
    "--allow-tf32": Flag("allow_tf32", switch=True),
    "--epochs": Flag("max_steps", help="ends the run after so many passes over the data, if max_steps is not before"),
    "--max-train-steps": Flag("max_steps"),
    "--checkpointing-steps": Flag("checkpoint_every"),
    "--sampling-steps": Flag("eval_every"),
    "--gradient-accumulation-steps": Flag("gradient_accumulation"),
    "--learning-rate": Flag("learning_rate"),
    "--adam-beta1": Flag("adam_beta1"),
    "--adam-beta2": Flag("adam_beta2"),
    "--adam-weight-decay": Flag("weight_decay"),
    "--adam-epsilon": Flag("adam_epsilon"),
    "--max-grad-norm": Flag("max_grad_norm"),
    "--seed": Flag("seed"),
    "--num-workers": Flag("num_workers"),
    "--path-type": Flag("path_type", text=True),
    "--prediction": Flag("prediction", text=True),
    "--weighting": Flag("weighting", text=True),
    "--cfg-prob": Flag("cfg_prob"),
    "--legacy": Flag("cfg_prob", switch=True, help="labels are dropped twice, as in REPA's first experiments"),
    "--enc-type": Flag("enc_type", text=True),
    "--teacher-weights": Flag("teacher_weights", text=True, help="file that replaces the weights of the first teacher"),
    "--proj-coeff": Flag("proj_coeff"),
    "--attn-coeff": Flag("attn_coeff"),
    "--early-stop-point": Flag("early_stop_point"),
    "--cls": Flag("cls_coeff"),
    "--warmup-steps": Flag("stage1_steps"),
    "--l2r-depth": Flag("l2r_depth"),
    "--report-to": Flag("log_with"),
    "--output-dir": Flag(NO_EFFECT, help="with --exp-name: the run folder is OUTPUT_DIR/EXP_NAME"),
    "--exp-name": Flag(NO_EFFECT, help="with --output-dir (exps): the run folder is OUTPUT_DIR/EXP_NAME"),
    "--resume-step": Flag(NO_EFFECT, help="above 0: the same as --resume, from the checkpoint of that step"),
    "--logging-dir": Flag(NO_EFFECT),
    "--ops-head": Flag(NO_EFFECT),
}
PLACED = ("--output-dir", "--exp-name", "--resume-step")  # they say where a run lies
SPECIAL = ("--resolution", "--epochs", "--legacy", "--report-to", "--model", *PLACED)
# flags that only one system has: they tell the method where --method does not
OF_METHOD = {
    "--attn-coeff": "haste", "--early-stop-point": "haste", "--cls": "reg", "--ops-head": "reg", "--use_rope": "erw",
    "--warmup-steps": "erw", "--l2r-depth": "erw",
}  # fmt: skip
OUTPUT_DIR = "exps"


def official(function: F) -> F:
    """Add the flags to a command, which is given them as keyword arguments `flag_...`."""
    for name, flag in reversed(FLAGS.items()):
        text = flag.help or (f"the same as {flag.key}=VALUE" if flag.key else "has no effect here")
        if flag.switch:
            words = f"{name}/--no-{name.removeprefix('--')}"
            function = click.option(words, _argument(name), default=None, help=text.replace("VALUE", "true"))(function)
        else:
            function = click.option(name, _argument(name), metavar="VALUE", help=text)(function)
    return function


def _argument(name: str) -> str:
    return f"flag_{name.strip('-').replace('-', '_')}"


@dataclass
class Typed:
    """The official flags of a command line, and what they mean.

    values: flag -> its value as typed, True or False of a switch. overrides: fields of the recipe. notes: what has no
    effect. method: told by a flag that one system alone has.
    """

    values: Mapping[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def method(self) -> str | None:
        """The method that a flag of one system tells."""
        return next((OF_METHOD[name] for name in self.values if name in OF_METHOD), None)

    def flag_of(self, key: str) -> str | None:
        """The flag that was typed for a field of the recipe, by its bare or full key."""
        return next(
            (name for name in self.values if key in (FLAGS[name].key, FLAGS[name].key.rpartition(".")[2])), None
        )

    @property
    def folder(self) -> Path | None:
        """The run folder by --output-dir and --exp-name."""
        given = [self.values.get(name) for name in ("--output-dir", "--exp-name")]
        if given == [None, None]:
            return None
        return Path(given[0] or OUTPUT_DIR) / (given[1] or "")

    @property
    def resume_step(self) -> int:
        """The step of --resume-step, 0 where it was not given; UserError for what is no number."""
        from repa_eval.errors import UserError

        value = str(self.values.get("--resume-step", "0"))
        if not value.isdecimal():
            raise UserError(f"--resume-step: {value!r} is not a whole number")
        return int(value)


def read_flags(given: Mapping[str, Any]) -> Typed:
    """Return what was typed of the keyword arguments that `official` adds; UserError for a value that is no YAML."""
    from repa_eval.config import read_yaml

    values = {name: value for name in FLAGS if (value := given[_argument(name)]) is not None}
    typed = Typed(values)
    for name, value in values.items():
        key = FLAGS[name].key
        if name in SPECIAL:
            continue
        if key:
            plain = isinstance(value, bool) or FLAGS[name].text
            typed.overrides[key] = value if plain else read_yaml(value, f"{name}: cannot read it")
        else:
            typed.notes.append(name)
    if "--model" in values:
        typed.overrides["model"] = values["--model"]
    if "--report-to" in values:
        _report_to(typed, str(values["--report-to"]))
    if "--resolution" in values:
        typed.overrides["architecture.input_size"] = _whole(values, "--resolution") // 8
    return typed


def _report_to(typed: Typed, trackers: str) -> None:
    """Take over the trackers that are installed; the others are named: a copied command must not end at one."""
    from repa_eval.train.trackers import missing_trackers

    names = [name.strip() for name in trackers.split(",") if name.strip().lower() not in ("", "none")]
    missing = missing_trackers(names)
    typed.overrides["log_with"] = ",".join(name for name in names if name not in missing)
    typed.notes += [f"--report-to {name} (not installed; log.jsonl has the curves)" for name in missing]


def _whole(values: Mapping[str, Any], name: str) -> int:
    from repa_eval.errors import UserError

    if not str(values[name]).isdecimal() or int(values[name]) < 1:
        raise UserError(f"{name}: {values[name]!r} is not a whole number above 0")
    return int(values[name])


def refine(typed: Typed, recipe: Any) -> dict[str, Any]:
    """Return the overrides of the flags whose meaning depends on the recipe and its data: --legacy and --epochs."""
    more: dict[str, Any] = {}
    if typed.values.get("--legacy"):
        kept = 1 - recipe.method.cfg_prob
        more["cfg_prob"] = 1 - kept * kept  # dropped by the trainer, then by the model
    if "--epochs" in typed.values:
        from repa_eval.train.dry_run import data_of

        epochs, images = _whole(typed.values, "--epochs"), data_of(recipe)
        if images is not None:  # incomplete batches are left out, as the official loaders do
            steps = epochs * max(1, len(images) // recipe.settings.batch_size)
            more["max_steps"] = min(recipe.settings.max_steps, steps)
    return more


def as_typed(message: str, typed: Typed) -> str:
    """Return an error with the flag as it was typed in the place of the field that it sets."""
    data = typed.values.get("--data-dir")
    if data is not None and message.startswith(f"unknown data {data!r}"):
        return f"--data-dir {data}: there is no such folder or file, and no data of that name"
    for name in typed.values:
        key = FLAGS[name].key.rpartition(".")[2]
        if not key or name in ("--epochs", "--legacy"):
            continue
        shown = f"{name} {typed.values[name]}, side of the latents" if name == "--resolution" else name
        message, found = re.subn(rf"^(?:[a-z_]+\.)*{key}(?=[:\s])", shown, message)
        if found:
            break
        if message.startswith(f"unknown key '{FLAGS[name].key}'"):
            return f"{name}: the method or the model of this recipe has no such option"
    return message
