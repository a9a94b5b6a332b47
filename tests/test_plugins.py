"""Plug-ins of every kind: named by --plugin, installed, broken, recorded with a run, and changed behind its back.

The examples of CONTRIBUTING.md are the plug-ins.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from helpers import MY_LOSS, ROOT, environment, run, tiny
from repa_eval import checkpoints, plugins, results
from repa_eval.cli import main as repa_eval_main
from repa_eval.errors import UserError
from repa_eval.interfaces.method import METHODS
from repa_eval.interfaces.metric import ALIGNMENT
from repa_eval.plugin_files import installed, loading, records
from repa_eval.train.cli import main as repa_train_main

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUICK = ["--device", "cpu", "--quiet"]
SMALL = [
    "depth=2",
    "hidden_size=32",
    "num_heads=2",
    "max_steps=2",
    "checkpoint_every=2",
    "batch_size=8",
    "eval_every=0",
]
SMALL += ["final_samples=0"]


def example(kind: str) -> str:
    """The code below the heading "Adding a KIND" of CONTRIBUTING.md."""
    section = re.split(r"## Adding an? ", PAGE)
    [text] = [part for part in section if part.startswith(f"{kind}\n")]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]


def repa_eval(*words: object) -> Result:
    return CliRunner().invoke(repa_eval_main, [str(word) for word in words])


def repa_train(*words: object) -> Result:
    return CliRunner().invoke(repa_train_main, [str(word) for word in words])


def fails(done: Result, text: str, code: int = 2) -> str:
    """Assert one line on stderr that holds `text`, and nothing on stdout."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.exit_code, done.stdout, len(lines)) == (code, "", 1), done.output
    assert text in lines[0], lines[0]
    return lines[0]


def metrics_of(done: Result) -> set[str]:
    assert done.exit_code == 0, done.stderr
    return {row["metric"] for row in json.loads(done.stdout)["rows"]}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and samples."""
    folder = tmp_path_factory.mktemp("work")
    file = run(tiny("repa", max_steps=2), folder / "run")
    state = torch.load(file, weights_only=True)
    torch.save({"network": state["ema"], "iteration": 2}, folder / "mine.pt")
    assert (
        repa_eval("sample", "--ckpt", file, "--num", 24, "--num-steps", 1, "--out", folder / "made", *QUICK).exit_code
        == 0
    )
    file.rename(folder / "repa.pt")
    table = folder / "run" / "results.jsonl"
    assert repa_eval("fid", "--samples", folder / "made", "--rows", table, *QUICK).exit_code == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- each kind


def train_method(work: Path, words: list[str]) -> None:
    done = repa_train("--method", "my-huber", *words, "--out", "out", *QUICK, *SMALL, "split=val")
    assert done.exit_code == 0, done.stderr


def train_model(work: Path, words: list[str]) -> None:
    small = [word for word in SMALL if not word.startswith("num_heads")]
    chosen = ["model=conv-S", "encoder_depth=1", "split=val"]
    done = repa_train("--method", "repa", *words, "--out", "out", *QUICK, *small, *chosen)
    assert done.exit_code == 0, done.stderr
    ckpt = "out/checkpoints/0000002.pt"
    info = json.loads(repa_eval("inspect", ckpt, "--json", *words).stdout)
    assert {"model": "conv-S", "depth": 2, "hidden_size": 32}.items() <= info.items()
    measure = ["--teacher", "digits-vit", "--num-images", 40, "--timesteps", 0.3, "--json", *QUICK]
    assert metrics_of(repa_eval("align", "--ckpt", ckpt, *measure, *words))
    made = repa_eval("sample", "--ckpt", ckpt, "--num", 4, "--num-steps", 1, "--out", "made", *QUICK, *words)
    assert made.exit_code == 0, made.stderr
    if words:
        loading.unload(*loading.loaded())
        fails(repa_eval("inspect", ckpt), "unknown model 'conv-S' (known: ")
        fails(repa_eval("inspect", ckpt), f"not loaded: add --plugin {Path.cwd() / words[1]}")


def train_teacher(work: Path, words: list[str]) -> None:
    done = repa_train(*words, "--out", "out", *QUICK, *SMALL, "enc_type=patches", "encoder_depth=1", "split=val")
    assert done.exit_code == 0, done.stderr
    assert metrics_of(
        repa_eval("align", "--ckpt", "out/checkpoints/0000002.pt", "--num-images", 40, "--json", *QUICK, *words)
    )


def train_projector(work: Path, words: list[str]) -> None:
    chosen = ["projector=gated", "encoder_depth=1", "split=val"]
    done = repa_train("--method", "repa", *words, "--out", "out", *QUICK, *SMALL, *chosen)
    assert done.exit_code == 0, done.stderr
    [record] = yaml.safe_load(Path("out/recipe.yaml").read_text())["plugins"]
    assert record["name"] == "mine_of_this_test"


def train_data(work: Path, words: list[str]) -> None:
    done = repa_train("--method", "vanilla", *words, "--out", "out", *QUICK, *SMALL, "data=stripes")
    assert done.exit_code == 0, done.stderr
    assert repa_eval("inspect", "out/checkpoints/0000002.pt", *words).exit_code == 0


def measure_metrics(work: Path, words: list[str]) -> None:
    chosen = ["--metrics", "norm-correlation,token-spread", "--num-images", 40, "--timesteps", 0.3, "--json", *QUICK]
    rows = metrics_of(repa_eval("align", "--ckpt", work / "repa.pt", "--teacher", "digits-vit", *chosen, *words))
    assert {"norm-correlation", "token-spread"} <= rows
    assert "mean_gap_digits" in metrics_of(
        repa_eval("fid", "--samples", work / "made", "--metrics", "mean-gap", "--json", *QUICK, *words)
    )


def measure_extractor(work: Path, words: list[str]) -> None:
    chosen = ["--extractor", "profiles", "--metrics", "fid", "--json", *QUICK]
    assert metrics_of(repa_eval("fid", "--samples", work / "made", *chosen, *words)) == {"fd_profiles"}


def sample_by_sampler(work: Path, words: list[str]) -> None:
    chosen = ["--sampler", "crowded", "--num", 4, "--num-steps", 2, "--out", "made", "--json", *QUICK]
    made = repa_eval("sample", "--ckpt", work / "repa.pt", *chosen, "--sampler-option", "power=3", *words)
    assert made.exit_code == 0, made.stderr
    code = sha256(Path("mine_of_this_test.py").read_bytes()).hexdigest()
    wanted = {"sampler": "crowded", "power": 3.0, "path_type": None, "sampler_sha256": code}
    assert wanted.items() <= json.loads(made.stdout)["record"].items()
    scored = repa_eval("fid", "--samples", "made", "--json", *QUICK)
    assert metrics_of(scored)


def monitor_run(work: Path, words: list[str]) -> None:
    often = ["eval_every=2", "evaluation.num_samples=8", "evaluation.num_steps=1"]
    done = repa_train("--method", "vanilla", *words, "--out", "out", *QUICK, *SMALL, *often, "split=val")
    assert done.exit_code == 0, done.stderr
    assert [row.step for row in results.read("out") if row.metric == "weight_norm"] == [2]
    assert "plugins" not in yaml.safe_load(Path("out/recipe.yaml").read_text())


def open_layout(work: Path, words: list[str]) -> None:
    done = repa_eval("inspect", work / "mine.pt", "--set", "num_heads=2", "--json", *words)
    assert done.exit_code == 0, done.stderr
    assert {"layout": "my-trainer", "step": 2}.items() <= json.loads(done.stdout).items()


def write_report(work: Path, words: list[str]) -> None:
    template = re.findall(r"```html\n(.*?)```", PAGE, re.DOTALL)[0]
    Path("mine_of_this_test.html").write_text(template)
    done = repa_eval("report", work / "run", "--out", "report.html", *words)
    assert done.exit_code == 0, done.stderr
    assert "<p>The fastest run is run.</p>" in Path("report.html").read_text()


# (kind of `repa-eval list`, a name that it then shows), the code, what uses it
USES: dict[str, tuple[tuple[str, str], str, Callable[[Path, list[str]], None]]] = {
    "method": (("methods", "my-huber"), MY_LOSS, train_method),
    "model": (("models", "conv-S"), example("model"), train_model),
    "teacher": (("teachers", "patches"), example("teacher"), train_teacher),
    "projector": (("projectors", "gated"), example("projector"), train_projector),
    "data": (("data", "stripes"), example("data layout"), train_data),
    "metric": (("metrics", "token-spread"), example("metric"), measure_metrics),
    "extractor": (("extractors", "profiles"), example("extractor"), measure_extractor),
    "sampler": (("samplers", "crowded"), example("sampler"), sample_by_sampler),
    "monitor": (("monitors", "weight-norm"), example("monitor"), monitor_run),
    "section of the report": (("sections", "fastest"), example("section of the report"), write_report),
    "checkpoint layout": (("layouts", "my-trainer"), example("checkpoint layout"), open_layout),
}


@pytest.mark.parametrize("way", ["option", "entry point"])
@pytest.mark.parametrize("kind", USES)
def test_each_kind_is_one_file(kind: str, way: str, work: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (listed, name), code, use = USES[kind]
    (here / "mine_of_this_test.py").write_text(code)
    words = ["--plugin", "./mine_of_this_test.py"]
    if way == "entry point":
        install(monkeypatch, here, EntryPoint("mine", "mine_of_this_test", "repa_eval.plugins"))
        words = []
    use(work, words)
    [line] = [line for line in repa_eval("list", listed, *words).stdout.splitlines() if line.split()[0] == name]
    assert line.endswith(f"[plug-in {here / 'mine_of_this_test.py'}]")
    assert repa_eval("list", "plugins", *words).stdout.startswith("mine_of_this_test  ")


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *entries: EntryPoint) -> None:
    """Make entry points whose modules lie in `folder` look installed."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(installed, "entry_points", lambda group: [entry for entry in entries if entry.group == group])
    installed.forget_installed()


def test_an_installed_package_and_the_variable_in_a_process_of_their_own(here: Path) -> None:
    (here / "site").mkdir()
    for name, code in {"mine": example("metric"), "broken": "import nothing_of_that_name\n"}.items():
        (here / "site" / f"{name}_plugin.py").write_text(code)
        info = here / "site" / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[repa_eval.plugins]\n{name} = {name}_plugin\n")
    (here / "stripes.py").write_text(example("data layout"))
    env = {**environment(), "PYTHONPATH": str(here / "site"), "REPA_EVAL_PLUGINS": "./stripes.py,./absent.py"}
    code = "import sys; from repa_eval.cli import main; sys.argv[0] = 'repa-eval'; main()"
    words = [sys.executable, "-c", code, "list", "metrics", "--json"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mean-gap" in json.loads(done.stdout)
    warnings = done.stderr.splitlines()
    assert len(warnings) == 2, done.stderr
    assert "plug-in './absent.py' does not exist; correct it, or take it out of REPA_EVAL_PLUGINS" in warnings[0]
    assert "plug-in 'broken_plugin' cannot be imported (ModuleNotFoundError" in warnings[1]
    assert "update or uninstall the package (entry point 'broken' of broken)" in warnings[1]


# --- the door


def test_the_door_says_the_same_to_python_and_to_a_type_checker() -> None:
    tree = ast.parse((ROOT / "repa_eval" / "plugins.py").read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    checked = {
        (node.module, alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert checked == {(f"repa_eval.{module}", name) for module, names in plugins.MODULES.items() for name in names}
    for name in dir(plugins):
        assert getattr(plugins, name) is not None
    with pytest.raises(AttributeError, match=r"repa_eval\.plugins has no 'metric'"):
        plugins.metric  # noqa: B018


def test_a_metric_imports_no_torch(here: Path) -> None:
    (here / "metric.py").write_text(example("metric"))
    code = "import sys; from repa_eval import plugins; plugins.load('metric.py'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True)


# --- once, and wholly or not at all

METRIC = """
from repa_eval.plugins import alignment_metric
LOADED = []
@alignment_metric("{name}", definition="one", range="1", meaning="one")
def one(x, y):
    return 1.0
"""


def test_a_file_is_loaded_once_however_it_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "once_only.py").write_text(METRIC.format(name="once"))
    (here / "link.py").symlink_to(here / "once_only.py")
    first = plugins.load("./once_only.py")
    entry = EntryPoint("once", "once_only", "repa_eval.metrics")
    install(monkeypatch, here, entry)
    for named in ("once_only.py", here / "once_only.py", "link.py", "once_only"):
        assert plugins.load(named) is first
    assert "once" in ALIGNMENT.names()
    assert loading.registered_by(first) == [("alignment metric", "once")]
    assert first.record() == {
        "name": "once_only",
        "path": str(here / "once_only.py"),
        "sha256": sha256((here / "once_only.py").read_bytes()).hexdigest(),
    }
    import once_only  # type: ignore[import-not-found]

    assert ALIGNMENT.get("once").function is once_only.one


def test_the_module_may_come_first(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "imported_first.py").write_text(METRIC.format(name="early"))
    monkeypatch.syspath_prepend(here)
    __import__("imported_first")
    assert ALIGNMENT.plugin_of("early") is None
    plugin = plugins.load("./imported_first.py")
    assert ALIGNMENT.plugin_of("early") == plugin


def test_files_of_one_name_do_not_meet(here: Path) -> None:
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "json.py").write_text(METRIC.format(name=name))
        plugins.load(f"{name}/json.py")
    assert ALIGNMENT.get("a").function is not ALIGNMENT.get("b").function
    assert sys.modules["json"] is json


def test_a_package_is_hashed_as_a_whole(here: Path) -> None:
    package = here / "my_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import metrics\n")
    (package / "metrics.py").write_text("from .inner.names import NAME\n" + METRIC.replace('"{name}"', "NAME"))
    (package / "inner" / "__init__.py").touch()
    (package / "inner" / "names.py").write_text("NAME = 'packaged'\n")
    first = plugins.load("my_package")
    assert (first.name, first.path) == ("my_package", package)
    assert ALIGNMENT.plugin_of("packaged") == first
    loading.unload(first)
    assert "packaged" not in ALIGNMENT.names()
    (package / "inner" / "names.py").write_text("NAME = 'packed'\n")
    second = plugins.load("my_package/metrics.py")  # a part of it, with its relative imports
    assert (second.name, second.path) == ("my_package.metrics", package / "metrics.py")
    assert second.sha256 != first.sha256
    assert ALIGNMENT.plugin_of("packed") == second


GOOD = METRIC.format(name="good")
ABSTRACT = MY_LOSS.replace("def losses(", "def loss(").replace("def draws(", "def draw(")


@pytest.mark.parametrize(
    ("file", "code", "text"),
    [
        ("absent.py", None, "plug-in 'absent.py' does not exist"),
        ("absent_module", None, "plug-in 'absent_module' is neither a file nor a module that can be imported"),
        ("no-module", None, "plug-in 'no-module' is neither a file nor the name of a module"),
        ("notes.txt", "x", "plug-in 'notes.txt' is not a Python file"),
        ("folder/x.txt", "", "plug-in 'folder' is a folder without __init__.py: name one of its files"),
        (
            "raises.py",
            GOOD + "1 / 0\n",
            "cannot be imported (ZeroDivisionError: division by zero); correct it",
        ),
        ("exits.py", GOOD + "raise SystemExit(0)\n", "plug-in 'exits.py' cannot be imported (SystemExit: 0)"),
        ("prose.py", "This is no Python.", "plug-in 'prose.py' cannot be imported (SyntaxError in line 1"),
        ("empty.py", "", "plug-in 'empty.py': it registers nothing; use a decorator of repa_eval.plugins"),
        ("taken.py", GOOD + GOOD.replace("good", "cka"), "alignment metric 'cka' is registered twice: by "),
        ("wrong.py", "from repa_eval.plugins import metric\n", "ImportError: cannot import name 'metric'"),
        ("abstract.py", GOOD + ABSTRACT, "method 'my-huber': class MyHuber in "),
    ],
)
def test_a_plug_in_that_cannot_be_loaded_is_one_line(file: str, code: str | None, text: str, here: Path) -> None:
    named = file.partition("/")[0]
    if code is not None:
        (here / file).parent.mkdir(exist_ok=True)
        (here / file).write_text(code)
    line = fails(repa_eval("list", "metrics", "--plugin", named), text)
    assert named in line
    assert fails(repa_eval("--plugin", named, "list", "metrics"), text) == line
    assert fails(repa_train("--plugin", named, "--dry-run"), text) == line
    assert "good" not in ALIGNMENT.names()
    assert not [module for module in sys.modules if module in ("raises", "exits", "empty", "taken", "abstract")]
    (here / file).parent.mkdir(exist_ok=True)
    if file.endswith(".py"):  # corrected, it is loaded in the same process
        (here / file).write_text(GOOD)
        plugins.load(named)
        assert "good" in ALIGNMENT.names()


def test_an_abstract_class_is_named_with_what_it_lacks(here: Path) -> None:
    (here / "mine.py").write_text(ABSTRACT)
    done = repa_train("--method", "./mine.py", "--dry-run")
    fails(done, "class MyHuber in " + str(here / "mine.py") + " lacks draws, losses; its contract Method asks for them")
    assert "my-huber" not in METHODS.names()


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("class MyHuber(Method)", "class MyHuber", "MyHuber is no subclass of Method: write class NAME(Method)"),
        ("@dataclasses.dataclass(frozen=True, kw_only=True)", "", "MyHuber is no dataclass: write @method above"),
        ('option(0.01, help="weight of the penalty")', "dataclasses.field()", "MyHuber has no default for norm_coeff"),
    ],
)
def test_a_class_that_cannot_be_a_method_is_refused(old: str, new: str, text: str, here: Path) -> None:
    (here / "mine.py").write_text(MY_LOSS.replace(old, new))
    fails(repa_train("--method", "./mine.py", "--dry-run"), f"method file './mine.py': method 'my-huber': {text}")


def test_a_teacher_that_cannot_be_built_is_named(here: Path) -> None:
    (here / "mine.py").write_text(example("teacher").replace("def forward(", "def forwards("))
    words = ["--plugin", "mine.py", "--out", "out", *QUICK, *SMALL, "enc_type=patches"]
    text = f"teacher 'patches' of {here / 'mine.py'}: Can't instantiate abstract class Patches"
    fails(repa_train(*words), text)


def test_a_reader_that_breaks_is_named(work: Path, here: Path) -> None:
    code = example("checkpoint layout").replace('set(content) != {"network", "iteration"}', '"iteration" in content')
    (here / "mine.py").write_text(code)
    done = repa_eval("inspect", work / "repa.pt", "--plugin", "mine.py")
    fails(done, f"checkpoint layout 'my-trainer' of {here / 'mine.py'} broke on {work / 'repa.pt'} (KeyError", code=1)


# --- what is recorded with a run


def train_mine(*words: str) -> Result:
    return repa_train("--method", "./my_loss.py", "--out", "out", *QUICK, *SMALL, "split=val", *words)


def test_a_run_records_its_plug_ins_and_refuses_changed_ones(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "my_loss.py").write_text(MY_LOSS)
    (here / "patches.py").write_text(example("teacher"))
    assert train_mine("max_steps=2").exit_code == 0
    first = sha256(MY_LOSS.encode()).hexdigest()
    record = {"name": "my_loss", "path": str(here / "my_loss.py"), "sha256": first}
    ckpt = "out/checkpoints/0000002.pt"
    assert yaml.safe_load(Path("out/recipe.yaml").read_text())["plugins"] == [record]
    assert torch.load(ckpt, weights_only=True)["recipe"]["plugins"] == [record]
    loading.unload(*loading.loaded())
    # a changed file
    (here / "my_loss.py").write_text(MY_LOSS + "# changed\n")
    second = sha256((here / "my_loss.py").read_bytes()).hexdigest()
    line = fails(train_mine("--resume", "max_steps=4"), "put the file back, or add --allow-changed-plugin")
    assert first[:12] in line
    assert second[:12] in line
    with caplog.at_level(logging.WARNING):
        assert repa_eval("inspect", ckpt).exit_code == 0
    assert (
        f"trained with plug-in my_loss of sha256 {first[:12]}, but {here / 'my_loss.py'} has {second[:12]}"
        in caplog.text
    )
    assert train_mine("--resume", "--allow-changed-plugin", "max_steps=4").exit_code == 0
    assert checkpoints.load("out/checkpoints/0000004.pt").recipe["plugins"] == [{**record, "sha256": second}]
    # another process, which does not know the file: named, not run
    loading.unload(*loading.loaded())
    wanted = f"add --plugin {here / 'my_loss.py'}"
    fails(repa_eval("sweep", "out", *QUICK), wanted)
    fails(repa_train("--recipe", "out/recipe.yaml", "--out", "out", "--resume", *QUICK), wanted)
    assert not loading.loaded()
    resumed = repa_train("--recipe", "out/recipe.yaml", "--out", "out", "--resume", "--plugin", "my_loss.py", *QUICK)
    assert resumed.exit_code == 0, resumed.stderr


def test_a_checkpoint_says_which_plug_in_it_misses(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    (here / "my_loss.py").write_text(MY_LOSS)
    assert train_mine().exit_code == 0
    loading.unload(*loading.loaded())
    records._warned.clear()
    with caplog.at_level(logging.WARNING):
        done = repa_eval("inspect", "out/checkpoints/0000002.pt", "--json")
    assert done.exit_code == 0
    assert f"which is not loaded: add --plugin {here / 'my_loss.py'}" in caplog.text
    assert json.loads(done.stdout)["plugins"][0].startswith("my_loss (sha256 ")
    assert not loading.loaded()


def test_runs_without_plug_ins_record_none(work: Path) -> None:
    assert "plugins" not in torch.load(work / "repa.pt", weights_only=True)["recipe"]
    assert "plugins" not in yaml.safe_load((work / "run" / "recipe.yaml").read_text())


# --- defaults


def dry(*words: str) -> dict[str, Any]:
    done = repa_train(*words, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def test_a_methods_own_defaults_win_over_a_recipe_that_nobody_named(here: Path) -> None:
    aligned = MY_LOSS.replace("    norm_coeff", '    enc_type: str = option("", help="teachers")\n    norm_coeff', 1)
    (here / "my_loss.py").write_text(aligned)
    tree = dry("--method", "./my_loss.py")
    assert tree["options"]["enc_type"] == ""
    assert (tree["name"], tree["model"], tree["description"]) == ("digits-my-huber", "SiT-digits/2", "")
    assert (
        dry("--plugin", "my_loss.py", "--method", "my-huber")
        == dry("--plugin", "my_loss.py", "method=my-huber")
        == tree
    )
    named = dry("--method", "./my_loss.py", "--recipe", "digits-repa")
    assert (named["options"]["enc_type"], named["name"]) == ("digits-vit", "digits-repa-my-huber")
    assert dry("--method", "./my_loss.py", "enc_type=digits-vit")["options"]["enc_type"] == "digits-vit"


def test_load_is_for_python_too(here: Path) -> None:
    with pytest.raises(UserError, match=r"plug-in 'absent\.py' does not exist"):
        plugins.load("absent.py")
