"""Both programs: what they print, their exit codes, and one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from PIL import Image

from helpers import digits, environment, files_of, finish, launch, run, tiny
from repa_eval import results
from repa_eval.cli import main as evaluate
from repa_eval.console import tables
from repa_eval.console.app import CommandFolder
from repa_eval.train.cli import main as trainer
from repa_eval.train.official_flags import FLAGS
from repa_eval.train.recipe import builtin_recipes

COMMANDS = CommandFolder("x").list_commands(click.Context(evaluate))
COLUMNS = (
    "run", "system", "method", "step", "weights", "layer", "timestep", "metric", "value", "stderr", "n", "seed",
    "train_seed", "protocol", "note", "version",
)  # fmt: skip
INSPECTED = (
    "path", "layout", "systems", "model", "step", "weights", "depth", "hidden_size", "num_heads", "patch_size",
    "in_channels", "input_size", "num_classes", "class_token", "num_parameters", "convention", "teacher",
    "encoder_depth",
)  # fmt: skip


def repa_eval(*words: object) -> Result:
    return CliRunner().invoke(evaluate, list(map(str, words)))


def repa_train(*words: object) -> Result:
    return CliRunner().invoke(trainer, list(map(str, words)))


def fails(done: Result, code: int, text: str) -> None:
    """One line on stderr that holds `text`, the exit code, nothing on stdout."""
    assert done.stdout == ""
    lines = done.stderr.lstrip("\n").splitlines()  # click ends the line of a ^C
    assert len(lines) == 1, done.stderr or repr(done.exception)
    assert lines[0].startswith("error: ")
    assert text in lines[0]
    assert done.exit_code == code


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every kind: repa.pt (six blocks), vanilla.pt, judge.pt, and files that are none."""
    folder = tmp_path_factory.mktemp("work")
    deep = tiny("repa", depth=6, encoder_depth=3, max_steps=3)
    for name, recipe in {"repa": deep, "vanilla": tiny("vanilla"), "judge": tiny("classifier")}.items():
        run(recipe, folder / name).rename(folder / f"{name}.pt")
    (folder / "text.pt").write_text("weights, honestly")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "half.pt").write_bytes((folder / "repa.pt").read_bytes()[:5000])
    torch.save({"state_dict": {"w": torch.zeros(2)}, "epoch": 3}, folder / "foreign.pt")
    return folder


@pytest.fixture
def here(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, the checkpoints at ../ck."""
    (tmp_path / "cwd").mkdir()
    (tmp_path / "ck").symlink_to(work)
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "cwd"


# --- help


def test_help_does_not_import_torch() -> None:
    code = """
import runpy, sys
for module, words in [("repa_eval.cli", []), ("repa_eval.train.cli", []), ("repa_eval.cli", ["align"])]:
    sys.argv = ["x", *words, "--help"]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        assert end.code == 0, end.code
    heavy = {"torch", "numpy", "sklearn", "matplotlib", "datasets", "timm", "scipy"} & set(sys.modules)
    assert heavy <= {"numpy"}, (module, heavy)
"""
    import subprocess

    from helpers import environment

    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage:") == 3


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_parses(name: str) -> None:
    shown = repa_eval(name, "--help")
    assert shown.exit_code == 0
    [line] = re.findall(r"Example:\n\s+repa-eval (.+)", shown.stdout)
    called, *words = line.split()
    assert called == name
    command = evaluate.get_command(click.Context(evaluate), name)
    command.make_context(name, words)  # refuses what does not exist


def test_the_trainer_has_an_example_that_parses() -> None:
    shown = repa_train("--help")
    [line] = re.findall(r"Example:\n\s+repa-train (.+)", shown.stdout)
    assert trainer.make_context("repa-train", line.split()).params["recipe_name"] == "digits-repa"
    assert set(FLAGS) <= set(shown.stdout.replace("\n", " ").split())


@pytest.mark.parametrize("program", [evaluate, trainer])
def test_version(program: click.Command) -> None:
    from repa_eval import __version__

    assert __version__ in CliRunner().invoke(program, ["--version"]).stdout


def test_without_a_command_help_is_shown() -> None:
    shown = repa_eval()
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in COMMANDS)


# --- repa-train


def test_dry_run_with_official_flags() -> None:
    words = "--encoder-depth 3 --proj-coeff 0.25 --enc-type digits-vit --max-train-steps 5 --learning-rate 1e-4"
    words += " --mixed-precision no --cfg-prob 0.2 --path-type cosine --model SiT-digits/2 --batch-size 32 --seed 7"
    shown = repa_train("--dry-run", *words.split(), "--checkpointing-steps", "5", "hidden_size=32")
    assert shown.exit_code == 0
    tree = yaml.safe_load(shown.stdout)
    assert tree["options"]["encoder_depth"] == 3
    assert tree["options"]["proj_coeff"] == 0.25
    assert tree["options"]["cfg_prob"] == 0.2
    assert tree["options"]["interpolant"]["path_type"] == "cosine"
    assert (tree["max_steps"], tree["checkpoint_every"], tree["batch_size"], tree["seed"]) == (5, 5, 32, 7)
    assert tree["optim"]["learning_rate"] == 1e-4
    assert tree["mixed_precision"] == "no"
    assert tree["architecture"]["hidden_size"] == 32


def test_dry_run_as_json_is_the_same() -> None:
    tree = json.loads(repa_train("--dry-run", "--json").stdout)
    assert tree == yaml.safe_load(repa_train("-n").stdout)
    assert (tree["name"], tree["method"], tree["data"]) == ("digits-repa", "repa", "digits")


def test_a_dry_run_can_be_trained_from(here: Path) -> None:
    Path("mine.yaml").write_text(repa_train("--dry-run", "proj_coeff=0.125", "max_steps=9").stdout)
    assert repa_train("--dry-run", "--recipe", "mine.yaml").stdout == Path("mine.yaml").read_text()


def test_a_method_brings_its_own_recipe() -> None:
    for words, name in {
        ("--method", "vanilla"): "digits-vanilla",
        ("--recipe", "digits-judge"): "digits-judge",
        ("--recipe", "digits-repa", "--method", "vanilla"): "digits-repa-vanilla",
    }.items():
        assert json.loads(repa_train("--dry-run", "--json", *words).stdout)["name"] == name


def test_list_of_methods_and_recipes() -> None:
    shown = repa_train("--list")
    assert all(name in shown.stdout for name in ["vanilla", "repa", "ssl", "classifier", *builtin_recipes()])
    listed = json.loads(repa_train("--list", "--json").stdout)
    assert set(listed["recipes"]) == set(builtin_recipes())


def test_the_last_line_is_the_next_command(here: Path) -> None:
    words = [
        "depth=2",
        "hidden_size=32",
        "num_heads=2",
        "max_steps=2",
        "batch_size=8",
        "split=val",
        "eval_every=0",
        "encoder_depth=1",
    ]
    words += ["--device", "cpu", "--quiet"]
    done = repa_train("--out", "mine", *words)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "repa-eval align --ckpt mine/checkpoints/0000002.pt --layer 1\n"
    again = repa_train("--out", "mine", *words, "--resume", "--json")
    assert again.stderr == ""
    assert json.loads(again.stdout) == {"run": "mine", "checkpoint": "mine/checkpoints/0000002.pt", "step": 2}
    [called, *rest] = done.stdout.split()[1:]
    assert repa_eval(called, *rest, "--timesteps", "0.3", "--num-images", "40").exit_code == 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--recipe digits-rapa", "unknown recipe 'digits-rapa'; did you mean 'digits-repa'? (known: "),
        ("--method repaa", "unknown method 'repaa'; did you mean 'repa'?"),
        ("--recpie digits-repa", "no such option --recpie; did you mean --recipe?"),
        ("--encoder-dept 3", "no such option --encoder-dept; did you mean --encoder-depth?"),
        ("batch_siz=8", "unknown key 'batch_siz'; did you mean 'batch_size'?"),
        ("optim.learning_rat=1", "unknown key 'optim.learning_rat'; did you mean 'optim.learning_rate'?"),
        ("optim=3", "unknown key 'optim'"),
        ("batch_size=two", "batch_size: 'two' is not a whole number"),
        ("batch_size=2.5", "batch_size: 2.5 is not a whole number"),
        ("batch_size=.inf", "batch_size: inf is not a whole number"),
        ("batch_size=nan", "batch_size: 'nan' is not a whole number"),
        ("batch_size=true", "batch_size: True is not a whole number"),
        ("batch_size=", "batch_size: '' is not a whole number"),
        ("proj_coeff=[1,2]", "options.proj_coeff: [1, 2] is not a number"),
        ("fused_attn=1", "architecture.fused_attn: 1 is not true or false"),
        ("schedule=linear", "optim.schedule: 'linear' is not allowed; choose one of constant, cosine"),
        ("--path-type straight", "--path-type: 'straight' is not allowed; choose one of linear, cosine"),
        ("batch_size", "cannot read 'batch_size': an override is written key=value"),
        ("seed=[", "cannot read the value of 'seed=['"),
        ("--model SiT-XL2", "unknown model 'SiT-XL2'; did you mean 'SiT-XL/2'?"),
        ("--model DiT-B/2", "method repa does not train DiT-B/2 (DiT), only SiT, SiT-ERW"),
        ("--proj-coeff 1 proj_coeff=2", "--proj-coeff and proj_coeff=... say the same; give one of them"),
        ("--method vanilla proj_coeff=2", "unknown key 'proj_coeff'"),
        ("--method missing.py", "method file 'missing.py' does not exist"),
        ("--recipe missing.yaml", "unknown recipe 'missing.yaml'"),
        ("batch_size=0", "batch_size: 0 is not allowed; it is at least 1"),
        ("max_steps=-1", "max_steps: -1 is not allowed; it is at least 1"),
        ("checkpoint_every=0", "checkpoint_every: 0 is not allowed; it is at least 1"),
        ("log_every=0", "log_every: 0 is not allowed; it is at least 1"),
        ("gradient_accumulation=0", "gradient_accumulation: 0 is not allowed; it is at least 1"),
        ("learning_rate=-1", "optim.learning_rate: -1.0 is not allowed; it is at least 0"),
        ("learning_rate=.nan", "optim.learning_rate: nan is not a number"),
        ("depth=0", "architecture.depth: 0 is not allowed; it is at least 1"),
        ("cfg_prob=2", "options.cfg_prob: 2.0 is not allowed; it is at most 1"),
        ("cfg_prob=-.1", "options.cfg_prob: -0.1 is not allowed; it is at least 0"),
        ("learning_rate=.inf", "optim.learning_rate: inf is not a number"),
        ("ema_decay=1.5", "ema.ema_decay: 1.5 is not allowed; it is at most 1"),
        ("adam_beta1=1", "optim.adam_beta1: 1.0 is not allowed; it is at most 0.999999999"),
        ("batch_size=1e12", "batch_size: 1000000000000 is not allowed; it is at most 10000000"),
        ("seed=-1", "seed: -1 is not allowed; it is at least 0"),
        ("extractor=json:loads", "unknown extractor 'json:loads'"),
    ],
)
def test_a_wrong_recipe_is_one_line(here: Path, words: str, text: str) -> None:
    fails(repa_train("--dry-run", *words.split()), 2, text)
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--device tpu", "device 'tpu': choose auto, cpu, cuda or cuda:N"),
        ("data=digit", "unknown data 'digit'; did you mean 'digits'?"),
        ("data=digits:mine", "data 'digits' takes no name after the colon (given: 'mine')"),
        ("data=folder:missing", "missing does not exist"),
        ("split=tran", "data digits has no split 'tran'; choose one of train, reference"),
        ("enc_type=digits-vi", "unknown teacher 'digits-vi'; did you mean 'digits-vit'?"),
        ("enc_type=None", "enc_type names no teacher; to train without one use the method vanilla"),
        ("encoder_depth=7", "encoder_depth 7: this model has blocks 1..6"),
        ("batch_size=9 gradient_accumulation=2", "batch_size 9 does not divide into 1 processes x 2 parts"),
        ("hidden_size=36 num_heads=5", "hidden_size 36 is not a multiple of num_heads 5"),
        ("hidden_size=30 num_heads=3", "hidden_size 30 is not a multiple of 4"),
        ("patch_size=3", "patch_size 3 does not divide the latent's side 8"),
        ("num_classes=5", "architecture.num_classes: 5 was given, but the data digits have 10; leave it out"),
        ("in_channels=3", "architecture.in_channels: 3 was given, but the data digits have 1; leave it out"),
        ("input_size=16", "architecture.input_size: 16 was given, but the data digits have 8; leave it out"),
        ("eval_every=1 extractor=digit", "unknown extractor 'digit'; did you mean 'digits'?"),
    ],
)
def test_what_cannot_be_trained_is_one_line(here: Path, words: str, text: str) -> None:
    small = ["split=val", "max_steps=1", "batch_size=8"]
    given = [word for word in small if word.split("=")[0] not in words]
    device = [] if "--device" in words else ["--device", "cpu"]
    fails(repa_train("--out", "mine", "--quiet", *device, *given, *words.split()), 2, text)


def test_a_recipe_that_is_not_yaml(here: Path) -> None:
    Path("bad.yaml").write_text("a: [")
    fails(repa_train("--recipe", "bad.yaml", "-n"), 2, "recipe 'bad.yaml' is not YAML")
    Path("list.yaml").write_text("- 1")
    fails(repa_train("--recipe", "list.yaml", "-n"), 2, "recipe 'list.yaml' holds no keys")
    Path("key.yaml").write_text("method: repa\noptim: 3")
    fails(repa_train("--recipe", "key.yaml", "-n"), 2, "optim: expected keys and values, not 3")
    for number, options in enumerate(("[1, 2]", "abc", "3", "2024-01-01")):
        Path(f"o{number}.yaml").write_text(f"method: repa\noptions: {options}\n")
        fails(repa_train("--recipe", f"o{number}.yaml", "-n"), 2, "options: expected keys and values, not")
    Path("odd.yaml").write_text("metod: repa")
    fails(repa_train("--recipe", "odd.yaml", "-n"), 2, "unknown key 'metod'")


def test_a_folder_with_something_else_in_it(here: Path, work: Path) -> None:
    words = ["--device", "cpu", "--quiet", "split=val", "max_steps=1"]
    fails(repa_train("--out", work / "vanilla", *words), 2, "holds another run (digits-vanilla, method vanilla)")
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    fails(repa_train("--out", "mine", *words), 2, "mine is not empty and holds no run; choose another --out")


# --- inspect, list


def test_inspect(work: Path) -> None:
    info = json.loads(repa_eval("inspect", work / "repa.pt", "--json").stdout)
    assert tuple(info) == INSPECTED
    expected = {"layout": "repa-eval", "model": "SiT-digits/2", "step": 3, "weights": "ema", "depth": 6, "num_heads": 2}
    expected |= {"hidden_size": 32, "patch_size": 2, "in_channels": 1, "input_size": 8, "num_classes": 10}
    expected |= {"class_token": False, "teacher": "digits-vit", "encoder_depth": 3}
    assert {key: info[key] for key in expected} == expected
    assert "REPA" in info["systems"]
    saved = torch.load(work / "repa.pt", weights_only=True)["model"]
    assert info["num_parameters"] == sum(tensor.numel() for tensor in saved.values())
    shown = repa_eval("inspect", work / "repa.pt").stdout
    assert tuple(line.split()[0] for line in shown.splitlines()) == INSPECTED
    assert json.loads(repa_eval("inspect", work / "judge.pt", "--json").stdout)["num_heads"] is None


@pytest.mark.parametrize(
    "kind", ["methods", "metrics", "models", "teachers", "extractors", "samplers", "recipes", "data"]
)
def test_list(kind: str) -> None:
    known = {"methods": "repa", "metrics": "cknna", "models": "SiT-XL/2", "teachers": "digits-vit"}
    known |= {"extractors": "inception", "samplers": "transport", "recipes": "digits-repa", "data": "digits"}
    listed = json.loads(repa_eval("list", kind, "--json").stdout)
    assert known[kind] in listed
    assert all(text and "\n" not in text for text in listed.values()), listed
    shown = repa_eval("list", kind).stdout.splitlines()
    assert [line.split()[0] for line in shown] == list(listed)


# --- align


def test_align_as_json(work: Path) -> None:
    done = repa_eval("align", "--ckpt", work / "repa.pt", "--layer", "3", "--num-images", "40", "--json")
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert set(answer) == {"rows", "protocols", "warnings"}
    assert len(answer["rows"]) == 5 * 2
    for row in answer["rows"]:
        assert tuple(row) == COLUMNS
        assert (row["layer"], row["n"], row["step"], row["method"], row["weights"]) == (3, 40, 3, "repa", "ema")
        assert row["metric"] in ("cknna", "cka")
        assert isinstance(row["value"], float)
    [(digest, record)] = answer["protocols"].items()
    assert {row["protocol"] for row in answer["rows"]} == {digest}
    assert results.protocol_hash(record) == digest
    assert (record["teacher"], record["data"], record["num_images"], record["label"]) == (
        "digits-vit",
        "digits",
        40,
        "null",
    )


def test_align_as_a_table(work: Path) -> None:
    words = ["--layers", "3,1", "--timesteps", "0.2,0.4", "--num-images", "40", "--metrics", "cka,mutual_knn"]
    shown = repa_eval("align", "--ckpt", work / "repa.pt", *words)
    assert shown.exit_code == 0
    assert shown.stdout.startswith("on 40 images of digits (test-large)\n\ncka with digits-vit, n=40")
    assert re.search(r"mutual_knn of unrelated features +about k/\(n - 1\), k=10 +0\.256", shown.stdout)  # 10 / 39
    assert "mutual_knn with digits-vit" in shown.stdout
    assert shown.stdout.count("block 3*") == 2
    assert [line.split()[0] for line in shown.stdout.splitlines() if line.strip()[:2] == "0."] == ["0.2", "0.4"] * 2


def test_rows_are_appended_once(work: Path, here: Path) -> None:
    words = ["align", "--ckpt", work / "repa.pt", "--timesteps", "0.3", "--num-images", "40", "--metrics", "cka"]
    for layers in ("3", "2", "3"):
        assert repa_eval(*words, "--layer", layers, "--rows", "table.jsonl").exit_code == 0
    assert len(Path("table.jsonl").read_text().splitlines()) == 2  # the third command adds nothing new
    rows = results.read("table.jsonl")
    assert sorted(row.layer for row in rows) == [2, 3]
    assert {row.protocol for row in rows} == set(results.read_protocols("table.jsonl"))


def test_online_weights_are_others(work: Path) -> None:
    words = ["--layer", "3", "--timesteps", "0.1", "--num-images", "40", "--metrics", "cka", "--json"]
    values = {}
    for weights in ("ema", "online"):
        answer = json.loads(repa_eval("align", "--ckpt", work / "repa.pt", "--weights", weights, *words).stdout)
        assert answer["rows"][0]["weights"] == weights
        values[weights] = answer["rows"][0]["value"]
    assert values["ema"] != values["online"]


MAP = ["--timesteps", "0.1,0.3", "--num-images", "40", "--metrics", "cka", "--plot", "map.png"]


def test_a_map_is_drawn(work: Path, here: Path) -> None:
    assert repa_eval("align", "--ckpt", work / "repa.pt", *MAP).exit_code == 0
    assert Image.open("map.png").size[0] > 100


def test_a_map_of_weights_without_a_step_is_drawn(work: Path, here: Path) -> None:
    torch.save(torch.load(work / "repa.pt", weights_only=True)["ema"], "bare.pt")
    bare = ["--ckpt", "bare.pt", "--set", "num_heads=2", "--teacher", "digits-vit", "--data", "digits"]
    assert repa_eval("align", *bare, *MAP, "--rows", "rows.jsonl").exit_code == 0
    assert Image.open("map.png").size[0] > 100
    assert {(row.run, row.step) for row in results.read("rows.jsonl")} == {("bare", None)}


def test_rows_are_written_before_anything_is_drawn(work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repa_eval.reports.drawing.plots.save_maps", wrong)
    done = repa_eval("align", "--ckpt", work / "repa.pt", *MAP, "--rows", "rows.jsonl")
    assert done.exit_code == 1
    assert "unexpected error" in done.stderr
    assert len(results.read("rows.jsonl")) >= 12
    assert "cka" in done.stdout


def test_the_file_of_a_plot_is_checked_before_anything_is_measured(here: Path) -> None:
    fails(
        repa_eval("align", "--ckpt", "nothing.pt", "--plot", "map.jpg"), 2, "choose a file that ends in png, svg, pdf"
    )


@pytest.mark.parametrize("name", ["out.csv", "out.json", "a/out.txt"])
def test_the_file_of_rows_is_checked_before_anything_is_measured(here: Path, name: str) -> None:
    done = repa_eval("align", "--ckpt", "nothing.pt", "--rows", name)
    fails(done, 2, f"{name}: a table of results is a file NAME.jsonl or a folder")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("cache", ["no home", "read-only"])
def test_a_home_is_a_help_not_a_need(
    work: Path, here: Path, cache: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    Path("file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", "" if cache == "no home" else "file")
    monkeypatch.setattr(Path, "home", homeless)
    done = repa_eval("align", "--ckpt", work / "repa.pt", "--layer", "3", *MAP[:-2], "--quiet")
    assert done.exit_code == 0, done.stderr
    [record] = [record for record in caplog.records if "no cache" in record.message]
    assert "features are kept in memory" in record.message


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("--ckpt missing.pt", 2, "checkpoint 'missing.pt' does not exist"),
        ("--ckpt ../ck", 2, "../ck is a folder; name a file"),
        ("--ckpt ../ck/text.pt", 1, "../ck/text.pt is not a"),
        ("--ckpt ../ck/empty.pt", 1, "../ck/empty.pt is not a"),
        ("--ckpt ../ck/half.pt", 1, "../ck/half.pt is not a"),
        (
            "--ckpt ../ck/foreign.pt",
            2,
            "foreign.pt is a checkpoint of no known layout (diffusers, ",
        ),
        (
            "--ckpt ../ck/judge.pt",
            2,
            "judge.pt holds CNN-digits, which is no diffusion model: it has no blocks to measure",
        ),
        ("--ckpt ../ck/vanilla.pt", 2, "records no teacher: name one with --teacher, such as digits-vit"),
        ("--ckpt ../ck/repa.pt --layer 8", 2, "layer 8: this model has blocks 1..6; its aligned block is 3"),
        ("--ckpt ../ck/repa.pt --layer 0", 2, "layer 0: this model has blocks 1..6; its aligned block is 3"),
        ("--ckpt ../ck/vanilla.pt --layer 3 --teacher digits-vit", 2, "layer 3: this model has blocks 1..2"),
        ("--ckpt ../ck/repa.pt --layer three", 2, "--layer 'three': expected block numbers joined by commas, or all"),
        ("--ckpt ../ck/repa.pt --timesteps early", 2, "--timesteps 'early': expected numbers joined by commas"),
        ("--ckpt ../ck/repa.pt --timesteps 1.5", 2, "timestep 1.5 is outside [0, 1] (0 = data, 1 = noise)"),
        ("--ckpt ../ck/repa.pt --metrics cknn", 2, "unknown alignment metric 'cknn'; did you mean 'cknna'?"),
        ("--ckpt ../ck/repa.pt --teacher digits-vi", 2, "unknown teacher 'digits-vi'; did you mean 'digits-vit'?"),
        ("--ckpt ../ck/repa.pt --teacher-weights no.pth", 2, "teacher weights 'no.pth' do not exist"),
        ("--ckpt ../ck/repa.pt --data digit", 2, "unknown data 'digit'"),
        ("--ckpt ../ck/repa.pt --split tset", 2, "data digits has no split 'tset'"),
        ("--ckpt ../ck/repa.pt --split test --num-images 361", 2, "digits:test has 360 images; 361 were asked for"),
        ("--ckpt ../ck/repa.pt --num-images 3", 2, "3 is not in the range x>=4"),
        ("--ckpt ../ck/repa.pt --device tpu", 2, "device 'tpu': choose auto, cpu, cuda or cuda:N"),
        ("--ckpt ../ck/repa.pt --weights best", 2, "'best' is not one of"),
        ("--ckpt ../ck/repa.pt --layes 3", 2, "no such option --layes; did you mean --layer"),
        ("--layer 3", 2, "Missing option '--ckpt'"),
    ],
)
def test_what_cannot_be_aligned_is_one_line(here: Path, words: str, code: int, text: str) -> None:
    defaults = [] if "--num-images" in words else ["--num-images", "40"]
    fails(repa_eval("align", "--json", *words.split(), *defaults), code, text)


# --- probe, sweep


def test_probe(work: Path, here: Path) -> None:
    words = ["probe", "--ckpt", work / "repa.pt", "--timesteps", "0.1", "--rows", "table.jsonl"]
    answer = json.loads(repa_eval(*words, "--layer", "3", "--json").stdout)
    assert set(answer) == {"rows", "protocols", "warnings"}
    found = {(row["metric"], row["layer"], row["step"]): row["value"] for row in answer["rows"]}
    own = {("probe_accuracy", 3, 3), ("knn_accuracy", 3, 3)}
    assert set(found) == own | {("probe_accuracy_teacher", None, None), ("knn_accuracy_teacher", None, None)}
    assert found["probe_accuracy_teacher", None, None] > 0.85 > 0.15 < found["probe_accuracy", 3, 3]
    assert all(tuple(row) == COLUMNS for row in answer["rows"])
    shown = repa_eval(*words, "--layers", "1,3", "--probes", "knn")
    assert "block 3*" in shown.stdout
    assert "knn_accuracy_teacher: 0." in shown.stdout
    assert {(row.metric, row.layer) for row in results.read("table.jsonl")} == {
        ("probe_accuracy", 3), ("knn_accuracy", 3), ("knn_accuracy", 1),
        ("probe_accuracy_teacher", None), ("knn_accuracy_teacher", None),
    }  # fmt: skip
    fails(repa_eval(*words, "--layer", "8"), 2, "layer 8: this model has blocks 1..6; its aligned block is 3")
    fails(repa_eval(*words, "--probes", "svm"), 2, "probe svm: choose of linear, knn")


def test_sweep_adds_what_is_missing(here: Path) -> None:
    recipe = tiny("repa", max_steps=2, checkpoint_every=2, num_samples=16, num_steps=1)
    run(recipe, here / "mine")
    first = repa_eval("sweep", "mine", "--json")
    rows = json.loads(first.stdout)["rows"]
    assert {"fd_digits", "fd_digits_floor", "cknna", "cka", "probe_accuracy", "knn_accuracy"} <= {
        row["metric"] for row in rows
    }
    assert len(first.stderr.splitlines()) > 3  # progress
    assert {"samples-0000002.png", "pca-0000002.png"} <= {path.name for path in Path("mine/media").iterdir()}
    before = files_of(Path("mine"))
    again = repa_eval("sweep", "mine", "--quiet")
    assert again.stdout == "0 rows added; next: repa-eval report mine\n"
    assert files_of(Path("mine")) == before
    table = Path("mine/results.jsonl")
    kept = [line for line in table.read_text().splitlines(keepends=True) if '"cknna"' not in line]
    table.write_text("".join(kept))
    repa_eval("sweep", "mine", "--quiet")
    assert sorted(table.read_text().splitlines()) == sorted(before["results.jsonl"].decode().splitlines())


def test_what_cannot_be_swept_is_one_line(here: Path) -> None:
    fails(repa_eval("sweep", "nothing"), 2, "nothing is no run folder: it holds no checkpoints/")
    run(tiny("classifier", max_steps=1), here / "judge")
    fails(repa_eval("sweep", "judge", "--quiet"), 2, "holds CNN-digits, which is no diffusion model")


# --- sample, fid


def test_sample_then_fid_without_other_options(work: Path, here: Path) -> None:
    words = ["sample", "--ckpt", work / "repa.pt", "--num", "24", "--num-steps", "2", "--batch-size", "16", "--quiet"]
    assert repa_eval(*words, "--out", "made").stdout == "made\n"
    assert len(list(Path("made").rglob("*.png"))) == 24
    answer = json.loads(repa_eval("fid", "--samples", "made", "--json", "--rows", "table.jsonl").stdout)
    assert set(answer) == {"rows", "protocols", "warnings"}
    assert [row["metric"] for row in answer["rows"]] == ["fd_digits", "is_digits", "precision_digits", "recall_digits"]
    for row in answer["rows"]:
        assert tuple(row) == COLUMNS
        assert (row["n"], row["step"], row["method"], row["weights"], row["seed"]) == (24, 3, "repa", "ema", 0)
    assert answer["warnings"] == ["n=24 is below twice the 64 features: the covariance is noisy"]
    [record] = answer["protocols"].values()
    made = {"num_steps": 2, "cfg_scale": 1.0, "labels": "random", "uint8": "floor", "extractor": "digits"}
    assert record | made == record
    assert (record["reference"], record["reference_n"], record["num_samples"]) == ("digits", 4000, 24)
    assert len(results.read("table.jsonl")) == 4
    shown = repa_eval("fid", "--samples", "made").stdout
    assert "n=24, extractor digits, reference digits (4000 images)" in shown
    # what is there is kept
    before = files_of(Path("made"))
    assert repa_eval(*words, "--out", "made").exit_code == 0
    assert files_of(Path("made")) == before


def test_samples_as_npz_are_the_same_images(work: Path, here: Path) -> None:
    words = ["sample", "--ckpt", work / "repa.pt", "--num", "6", "--num-steps", "2", "--batch-size", "4", "--quiet"]
    for out in ("made", "made.npz"):
        assert repa_eval(*words, "--out", out).exit_code == 0
    arrays = np.load("made.npz")
    files = sorted(Path("made").rglob("*.png"))
    assert np.array_equal(arrays["arr_0"][..., 0], np.stack([np.asarray(Image.open(file)) for file in files]))
    assert arrays["arr_0"].shape == (6, 8, 8, 1)
    assert arrays["arr_1"].shape == (6,)
    a, b = (json.loads(repa_eval("fid", "--samples", out, "--json").stdout) for out in ("made", "made.npz"))
    values = [{row["metric"]: row["value"] for row in answer["rows"]} for answer in (a, b)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--ckpt ../ck/judge.pt --out made", "judge.pt holds CNN-digits, which generates no images"),
        ("--ckpt ../ck/repa.pt --out made --num 0", "0 is not in the range x>=1"),
        (
            "--ckpt ../ck/repa.pt --out full",
            "full is not empty and contains no samples of repa-eval; choose another --out",
        ),
        ("--ckpt ../ck/repa.pt --out ours", "ours contains samples made with different settings ("),
        ("--ckpt ../ck/repa.pt --out made --mode sed", "'sed' is not"),
        ("--ckpt ../ck/repa.pt --out made --cfg-scal 2", "no such option --cfg-scal; did you mean --cfg-scale?"),
        ("--ckpt ../ck/repa.pt", "name where the images go: --out DIR or --out FILE.npz"),
    ],
)
def test_what_cannot_be_sampled_is_one_line(here: Path, words: str, text: str) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    Path("ours").mkdir()
    Path("ours/samples.json").write_text('{"run": "another"}')
    before = files_of(here)
    fails(repa_eval("sample", "--quiet", *words.split()), 2, text)
    assert files_of(here) == before


def broken_files(folder: Path) -> None:
    """Everything that somebody may take for samples."""
    for name in ("none", "bad", "sizes", "large", "few"):
        (folder / name).mkdir()
    (folder / "bad" / "a.png").write_bytes(b"no image")
    for index, side in enumerate((8, 9)):
        Image.fromarray(np.zeros((side, side), np.uint8)).save(folder / "sizes" / f"{index}.png")
    for index in range(5):
        Image.fromarray(np.full((16, 16), index, np.uint8)).save(folder / "large" / f"{index}.png")
        if index < 2:
            Image.fromarray(np.full((8, 8), index, np.uint8)).save(folder / "few" / f"{index}.png")
    (folder / "notes.txt").write_text("x")
    (folder / "bad.zip").write_text("no zip")
    with zipfile.ZipFile(folder / "none.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    (folder / "bad.npz").write_text("no npz")
    (folder / "empty.npz").write_bytes(b"")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 8, 8, 1), np.uint8))
    (folder / "array.npz").write_bytes(buffer.getvalue())
    np.savez(folder / "keys.npz", images=np.zeros((4, 8, 8, 1), np.uint8))
    np.savez(folder / "floats.npz", arr_0=np.zeros((4, 8, 8, 1)))


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ("--samples missing", 2, "missing does not exist: expected a folder of images, a .zip or a .npz"),
        ("--samples missing.zip", 2, "missing.zip does not exist"),
        ("--samples none --reference digits", 2, "none: no images (looked for .bmp, "),
        ("--samples none.zip --reference digits", 2, "none.zip: no images"),
        ("--samples bad --reference digits", 1, "bad: a.png is not a readable image"),
        ("--samples sizes --reference digits", 2, "sizes: images of different sizes; 1.png is not like the first"),
        ("--samples notes.txt", 2, "notes.txt: expected a folder of images, a .zip or a .npz"),
        ("--samples bad.zip", 1, "bad.zip cannot be read"),
        ("--samples bad.npz", 1, "bad.npz cannot be read"),
        ("--samples empty.npz", 1, "empty.npz cannot be read"),
        ("--samples array.npz", 2, "array.npz: expected arr_0 of uint8 (N, H, W, C)"),
        ("--samples keys.npz", 2, "keys.npz: expected arr_0 of uint8 (N, H, W, C)"),
        ("--samples floats.npz", 2, "floats.npz: expected arr_0 of uint8 (N, H, W, C)"),
        (
            "--samples large",
            2,
            "large names no reference: add --reference DIR, --reference FILE.npz or --reference digits",
        ),
        (
            "--samples large --reference nothing",
            2,
            "reference 'nothing' is not a folder, .zip, .npz or data set (",
        ),
        (
            "--samples large --reference digits --extractor digits",
            2,
            "extractor digits reads 1x8x8 images, not 1x16x16",
        ),
        (
            "--samples large --reference digits --extractor digts",
            2,
            "unknown extractor 'digts'; did you mean 'digits'?",
        ),
        ("--samples large --reference digits --metrics fdd", 2, "unknown sample metric 'fdd'; did you mean 'fd'?"),
        ("--samples few --reference digits", 2, "k=3 neighbours need more than 3 samples"),
        ("--samples large --extractor-weights no.pt --reference digits", 2, "extractor weights 'no.pt' do not exist"),
        (
            "--samples large --extractor-weights notes.txt --reference digits",
            1,
            "notes.txt is not a file of weights (or needs code execution",
        ),
        ("--sample large", 2, "no such option --sample; did you mean --samples?"),
    ],
)
def test_what_cannot_be_judged_is_one_line(here: Path, words: str, code: int, text: str) -> None:
    broken_files(here)
    extractor = [] if "--extractor " in words else ["--extractor", "digits"]
    fails(repa_eval("fid", "--json", *words.split(), *extractor), code, text)


def test_a_record_beside_samples_cannot_name_code(here: Path) -> None:
    broken_files(here)
    (here / "judge.py").write_text("open('ran', 'w').close()\nclass J: ...\n")
    (here / "large" / "samples.json").write_text('{"extractor": "judge:J", "data": "digits"}')
    shown = repa_eval("fid", "--samples", "large")
    fails(shown, 2, "its record names the extractor 'judge:J', which is not registered; choose one with --extractor")
    assert not (here / "ran").exists()


def test_real_images_against_themselves(here: Path) -> None:
    images = digits("reference").images[:200]
    np.savez("real.npz", arr_0=images.transpose(0, 2, 3, 1))
    words = ["--samples", "real.npz", "--reference", "real.npz", "--extractor", "digits", "--json"]
    values = {row["metric"]: row["value"] for row in json.loads(repa_eval("fid", *words).stdout)["rows"]}
    assert values["fd_digits"] == pytest.approx(0, abs=1e-3)
    assert values["precision_digits"] == values["recall_digits"] == 1


# --- report, convert


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        ('{"metric": "fid", "val', "is empty"),
        ('{"metric": "fid", "val\n', "line 1: not JSON; is this a results table?"),
        ('{"loss": 3}\n', "line 1: not a row of results (no 'metric' column)"),
        ('{"metric": "fid", "vlaue": 3}\n', "line 1: unknown columns vlaue; is this a results table of ours?"),
        ('{"metric": "fid", "value": "3"}\n', "line 1: value '3' is not a number"),
    ],
)
def test_a_report_of_a_bad_table_is_one_line(here: Path, content: str, text: str) -> None:
    Path("mine").mkdir()
    Path("mine/results.jsonl").write_text(content)
    done = repa_eval("report", "mine", "--out", "report.html")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert text in done.stderr.splitlines()[-1]
    assert not Path("report.html").exists()


def test_convert(work: Path, here: Path) -> None:
    from safetensors.torch import load_file

    assert repa_eval("convert", work / "repa.pt", "--to", "out", "--name", "mine").stdout == "out/mine.safetensors\n"
    tensors = load_file("out/mine.safetensors")
    saved = torch.load(work / "repa.pt", weights_only=True)
    assert all(torch.equal(tensors[key], value) for key, value in saved["ema"].items())
    config = json.loads(Path("out/mine.json").read_text())
    assert (config["model"], config["architecture"]["depth"], config["step"]) == ("SiT-digits/2", 6, 3)
    assert "# mine" in Path("out/mine.md").read_text()


# --- both


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("alig", "unknown command 'alig'; did you mean 'align'? (known: align, "),
        ("list metric", "'metric' is not one of"),
        ("inspect", "Missing argument 'CKPT'"),
        ("inspect a b", "unexpected extra argument"),
        ("report", "Missing argument 'RUNS...'"),
    ],
)
def test_wrong_usage_is_one_line(here: Path, words: str, text: str) -> None:
    fails(repa_eval(*words.split()), 2, text)


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("repa_eval.checkpoints.load", press)
    fails(repa_eval("inspect", work / "repa.pt"), 130, "interrupted")


def test_a_full_disk_is_one_line(monkeypatch: pytest.MonkeyPatch, work: Path, here: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "table.jsonl")

    monkeypatch.setattr(tables, "append_changed", full)
    words = ["--layer", "3", "--timesteps", "0.1", "--num-images", "40", "--rows", "table.jsonl"]
    fails(repa_eval("align", "--ckpt", work / "repa.pt", *words), 1, "No space left on device: table.jsonl")


def wrong(*_: object, **__: object) -> None:
    raise ZeroDivisionError("two\nlines")


def test_an_unexpected_error_is_one_line(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setattr("repa_eval.checkpoints.load", wrong)
    line = "line "
    fails(repa_eval("inspect", work / "repa.pt"), 1, f"unexpected error in checkpoint.py, {line}")
    fails(repa_eval("inspect", work / "repa.pt"), 1, "ZeroDivisionError: two; add --debug (or set REPA_EVAL_DEBUG=1)")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    monkeypatch.setattr("repa_eval.checkpoints.load", wrong)
    assert isinstance(repa_eval("inspect", work / "repa.pt", "--debug").exception, ZeroDivisionError)
    assert isinstance(repa_eval("--debug", "inspect", work / "repa.pt").exception, ZeroDivisionError)
    monkeypatch.setenv("REPA_EVAL_DEBUG", "1")
    assert isinstance(repa_eval("inspect", work / "repa.pt").exception, ZeroDivisionError)
    monkeypatch.setenv("REPA_EVAL_DEBUG", "0")
    assert repa_eval("inspect", work / "repa.pt").exit_code == 1


@pytest.mark.parametrize("words", ["list metrics", "--help", "align --help", "--version", "inspect {} --json"])
def test_a_reader_that_leaves_is_no_error(work: Path, words: str) -> None:
    command = [sys.executable, "-m", "repa_eval.cli", *words.format(work / "repa.pt").split()]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=environment(), cwd=work, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


FORGED = "\x1b]52;c;ZXZpbA==\x07digits\nerror: forged\u202e\x9b31m"


def test_what_a_file_says_moves_no_cursor_and_forges_no_line(work: Path, here: Path) -> None:
    content = torch.load(work / "repa.pt", weights_only=True)
    content["recipe"]["teachers"] = [{"name": FORGED, "weights": None}]
    content["recipe"]["data"] = FORGED
    torch.save(content, "forged.pt")
    shown = repa_eval("inspect", "forged.pt")
    assert len(shown.stdout.splitlines()) == len(INSPECTED)
    assert all(line.isprintable() for line in shown.stdout.splitlines())
    assert "\\x1b]52;c;ZXZpbA==\\x07digits error: forged" in shown.stdout
    fails(repa_eval("align", "--ckpt", "forged.pt", "--teacher", "digits-vit"), 2, "its record names the data")
    Path("s").mkdir()
    (Path("s") / "a\nerror: forged \x1b[31m.png").write_bytes(b"x")
    failed = repa_eval("fid", "--samples", "s", "--reference", "digits")
    assert failed.stderr.splitlines()[-1].startswith("error: ")
    assert all(line.isprintable() and not line.startswith("error: forged") for line in failed.stderr.splitlines())


def test_a_table_of_text_keeps_to_its_lines() -> None:
    text = tables.table(["a", "b"], [["x\ny", "\x1b[31mred"], ["long" * 1000, 1]])
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) == 3
    assert max(map(len, text.split("\n"))) < 1000


def test_a_warning_is_one_line() -> None:
    code = (
        "import logging, warnings; from repa_eval.console import app; app._prepare_process(); "
        "logging.getLogger('x').warning('a\\nerror: forged %s', '\\x1b[31m'); warnings.warn('b\\nc')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stderr == "WARNING: a error: forged \\x1b[31m\nwarning: b c\n"


def test_modules_run_like_the_scripts(work: Path) -> None:
    code, out, err = finish(launch("repa_eval.cli", "inspect", work / "repa.pt", "--json", cwd=work))
    assert (code, err) == (0, "")
    assert json.loads(out)["step"] == 3
    code, out, err = finish(launch("repa_eval.cli", "inspect", "nothing.pt", cwd=work))
    assert (code, out, err) == (2, "", "error: checkpoint 'nothing.pt' does not exist\n")


def test_columns_of_the_contract() -> None:
    assert results.COLUMNS == COLUMNS
