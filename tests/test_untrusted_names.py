"""A name that comes out of a file imports nothing, and opens and writes nothing that the user did not name."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import repa_eval
from fuzz_targets import a_run, diffusers_files, picture, targets
from helpers import save_small_data
from repa_eval import checkpoints
from repa_eval.cli import main
from repa_eval.data.readers.image_files import open_images
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.reference import refuse_misfit
from repa_eval.interfaces.extractor import load_extractor
from repa_eval.interfaces.images import load_data
from repa_eval.train import state
from repa_eval.train.recipe import resolve

MARKER = "marks_its_import"
CODE = "import pathlib\npathlib.Path(__file__).with_name('imported').touch()\nclass Judge:\n    __call__ = print\n"
ROUNDS = 3  # names that every word is exchanged for; 3 and their number have no common divisor
QUICK = ["--device", "cpu", "--quiet"]


class Trap:
    """A folder that nobody names: with an image, weights, and what was opened or listed in it.

    modules: another folder, with a module; it is on sys.path, whose folders Python lists whenever it looks for one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.touched, self.watching = folder, list[str](), False
        self.modules = folder.with_name("modules")
        self.modules.mkdir(parents=True)
        (self.modules / f"{MARKER}.py").write_text(CODE)
        (folder / "images").mkdir(parents=True)
        (folder / "images" / "0.png").write_bytes(picture())
        torch.save({"weight": torch.zeros(1)}, folder / "weights.pt")
        np.savez(folder / "images.npz", arr_0=np.zeros((4, 8, 8, 1), dtype=np.uint8))

    def saw(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        if event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system"):
            self.touched.append(f"{event} {arguments[1:]}")
        elif event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename", "os.remove", "import"):
            with contextlib.suppress(Exception):
                path = os.fsdecode(arguments[0])
                inside = event != "import" and os.path.realpath(path).startswith(str(self.folder))
                if MARKER in path or inside:
                    self.touched.append(f"{event} {path}")

    @contextlib.contextmanager
    def unsprung(self) -> Iterator[None]:
        """Fail if something in the folder is touched meanwhile."""
        self.touched, self.watching = [], True
        try:
            yield
        finally:
            self.watching = False
        assert not self.touched, self.touched
        assert not (self.modules / "imported").exists()


_traps: list[Trap] = []  # an audit hook stays for as long as the process


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for trap in _traps:
        trap.saw(event, arguments)


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trap]:
    made = Trap(tmp_path_factory.mktemp("outside").resolve() / "trap")
    _traps.append(made)
    sys.addaudithook(_audit)
    sys.path.insert(0, str(made.modules))
    yield made
    sys.path.remove(str(made.modules))
    _traps.clear()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_run(tmp_path_factory.mktemp("made"))


def names_of(trap: Trap) -> list[str]:
    """What a file may try to name."""
    return [
        f"{MARKER}:Judge", MARKER, str(trap.modules / f"{MARKER}.py"), f"folder:{trap.folder / 'images'}",
        str(trap.folder / "images.npz"), "hf:somebody/something", "timm:local-dir:" + str(trap.folder),
        "../" * 20 + str(trap.folder / "weights.pt").lstrip("/"),
    ]  # fmt: skip


def places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every word in a tree; of a list, in its first entries."""
    keys = list(tree) if isinstance(tree, dict) else range(min(len(tree), 3)) if isinstance(tree, list) else []
    found = [(tree, key) for key in keys if isinstance(tree[key], str | None)]
    return found + [place for key in keys for place in places(tree[key])]


def test_the_trap_can_be_sprung(trap: Trap) -> None:
    for touch in (lambda: open_images(trap.folder / "images"), lambda: (trap.folder / "weights.pt").read_bytes()):
        with pytest.raises(AssertionError, match="trap"), trap.unsprung():
            touch()
    with pytest.raises(AssertionError, match=MARKER), trap.unsprung():
        load_extractor(f"{MARKER}:Judge")
    (trap.modules / "imported").unlink()
    del sys.modules[MARKER]


KINDS = (
    "results.jsonl", "log.jsonl", "protocols.json", "run.json", "run.json of a report", "recipe.yaml",
    "recipe.yaml of a run", "plug-in records", "samples.json", "prepare.json", "media .json", "checkpoint of ours",
    "checkpoint to resume from", "checkpoint of REPA's trainer", "config.json", "index of shards",
    "diffusers' config.json", "diffusers' scheduler", "soft tokens", "dataset.json",
    "prepare.json of latents",
)  # fmt: skip


@pytest.fixture(scope="module")
def readers(made: Path) -> dict[str, Any]:
    return targets(made.parent)


@pytest.mark.parametrize("kind", KINDS)
def test_every_name_in_every_kind_of_file(kind: str, trap: Trap, readers: dict[str, Any], tmp_path: Path) -> None:
    """Each word of a valid file in turn is one of the names that lead outside, and the file is read."""
    target = readers[kind]
    path = target.lay_out(tmp_path / "files")
    hostile, count = names_of(trap), 0
    before = {file: file.read_bytes() for file in (tmp_path / "files").rglob("*") if file.is_file()}
    for number in range(ROUNDS * len(places(target.values))):
        values = copy.deepcopy(target.values)
        node, key = places(values)[number // ROUNDS]
        node[key] = hostile[number % len(hostile)]
        before[path] = target.written(values)
        path.write_bytes(before[path])
        with trap.unsprung(), contextlib.suppress(UserError):
            target.read(path)
        count += 1
    assert count
    assert {file.name for file in tmp_path.iterdir()} == {"files"}
    assert {file for file in (tmp_path / "files").rglob("*") if file.is_file()} == set(before)


# --- data that a record names


def call(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def refused(done: Result, text: str) -> None:
    assert done.exit_code == 2, done.output
    assert text in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    save_small_data(tmp_path / "s.npz", count=16)
    return tmp_path / "s.npz"


def record(samples: Path, **entries: object) -> None:
    (samples.parent / "s.npz.json").write_text(json.dumps(entries))


def data_names(trap: Trap) -> list[str]:
    images = trap.folder / "images"
    return [f"folder:{images}", str(images), str(trap.folder / "images.npz"), "hf:somebody/something", "folder"]


def test_the_reference_of_samples(trap: Trap, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = ["--extractor", "pixel_pca", "--metrics", "fd", *QUICK]
    monkeypatch.chdir(trap.folder / "images")  # `folder` alone would be the current one
    for name in data_names(trap):
        record(samples, data=name)
        with trap.unsprung():
            refused(call("fid", "--samples", samples, *judge), f"add --reference {name}")
            with pytest.raises(UserError, match=r"the samples: its record names the data .*: add reference="):
                repa_eval.fid(samples, extractor="pixel_pca")
    for wrong in (5, ["digits"], {"a": 1}, True):
        record(samples, data=wrong)
        refused(call("fid", "--samples", samples, *judge), "add --reference")
    record(samples, data="digits")
    (trap.folder / "images" / "digits").mkdir()  # a folder of that name is not what is meant
    done = call("fid", "--samples", samples, *judge, "--json")
    assert done.exit_code == 0, done.stderr
    assert {row["metric"] for row in json.loads(done.stdout)["rows"]} == {"fd_pixel_pca"}
    record(samples, data=f"folder:{samples}")
    assert call("fid", "--samples", samples, "--reference", f"folder:{samples}", *judge).exit_code == 0


def test_the_extractor_of_samples(trap: Trap, samples: Path) -> None:
    for name in (f"{MARKER}:Judge", MARKER, "os:system", ["digits"], 5):
        record(samples, data="digits", extractor=name)
        with trap.unsprung():
            refused(call("fid", "--samples", samples, *QUICK), "which is not registered; choose one with --extractor")


def with_recipe(made: Path, out: Path, **entries: Any) -> Path:
    """The checkpoint of a run, with other entries in its recipe, alone in a run folder."""
    saved = state.load_checkpoint(next((made / "checkpoints").glob("*.pt")))
    options = {**saved["recipe"]["options"], **entries.pop("options", {})}
    saved["recipe"] = {**saved["recipe"], "options": options, **entries}
    file = out / "checkpoints" / "0000002.pt"
    state.save_checkpoint(file, saved)
    return file


def test_the_data_of_a_checkpoint(trap: Trap, made: Path, tmp_path: Path) -> None:
    few = ["--timesteps", "0.5", "--no-cache", *QUICK]
    for name in data_names(trap):
        file = with_recipe(made, tmp_path / "run", data=name)
        with trap.unsprung():
            for command in ("align", "probe"):
                refused(call(command, "--ckpt", file, *few), f"add --data {name}")
            refused(call("sweep", tmp_path / "run", *QUICK), f"add --data {name}")
            for measure in (repa_eval.align, repa_eval.probe, repa_eval.features):
                with pytest.raises(UserError, match="add images="):
                    measure(file)
            assert call("inspect", file).exit_code == 0
            assert call("convert", file, "--to", tmp_path / "converted").exit_code == 0
    assert not (tmp_path / "run" / "results.jsonl").exists()
    pixels = np.random.default_rng(0).integers(0, 255, (640, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "own.npz", arr_0=pixels, arr_1=np.arange(640) % 10)
    own = ["--data", f"folder:{tmp_path / 'own.npz'}"]
    done = call("align", "--ckpt", file, *few, *own, "--num-images", "20")
    assert done.exit_code == 0, done.stderr
    evaluation = {**state.load_checkpoint(file)["recipe"]["evaluation"], "num_samples": 8}
    with_recipe(made, tmp_path / "run", data=own[1], evaluation=evaluation)
    swept = call("sweep", tmp_path / "run", *own, *QUICK, "--json")
    assert swept.exit_code == 0, swept.stderr
    assert json.loads(swept.stdout)["rows"]


def test_an_encoder_is_not_calibrated_on_data_that_nobody_named(trap: Trap, tmp_path: Path) -> None:
    from helpers import run, tiny

    made = tmp_path / "made"
    run(tiny("classifier"), made)
    file = with_recipe(made, tmp_path / "run", data=f"folder:{trap.folder / 'images'}")
    with trap.unsprung():
        refused(call("convert", file, "--to", tmp_path / "out"), "add --data folder:")
    assert not (tmp_path / "out").exists()


def test_a_script_beside_data_is_not_run(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "data.py").write_text(CODE)
    with pytest.raises(Failure, match="cannot load data hf:"):
        load_data(f"hf:{tmp_path / 'data'}", "train")
    assert not (tmp_path / "data" / "imported").exists()
    assert datasets.config.HF_DATASETS_TRUST_REMOTE_CODE is False


# --- teachers, weights and banks that a record names


def test_a_recorded_teacher(trap: Trap, made: Path, tmp_path: Path) -> None:
    """A registered name, or a regular file that is read as any checkpoint is; never an address or a folder."""
    few = ["--timesteps", "0.5", "--no-cache", "--num-images", "20", *QUICK]
    pipe = tmp_path / "pipe.pt"
    os.mkfifo(pipe)
    cases = {
        f"timm:local-dir:{trap.folder}": "timm has no network",
        "timm:hf-hub:somebody/something": "timm has no network",
        f"{MARKER}:Judge": "unknown teacher",
        str(pipe): "does not exist",
        str(trap.folder): "unknown teacher",
        "hf:somebody/something": "unknown teacher",
    }
    for name, text in cases.items():
        teachers = [{"name": name, "weights": None}]
        file = with_recipe(made, tmp_path / "run", teachers=teachers, data="digits")
        with trap.unsprung():
            refused(call("align", "--ckpt", file, *few), text)
    for weights in (pipe, trap.folder, "hf:somebody/something"):
        teachers = [{"name": "digits-vit", "weights": str(weights)}]
        file = with_recipe(made, tmp_path / "run", teachers=teachers, data="digits")
        with trap.unsprung():
            refused(call("align", "--ckpt", file, *few), "name the file of digits-vit")


class Touches:
    """A pickle that runs code when it is loaded without care."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_recorded_weights_run_nothing(made: Path, tmp_path: Path) -> None:
    torch.save({"a": Touches(tmp_path / "ran")}, tmp_path / "evil.pt")
    teachers = [{"name": "digits-vit", "weights": str(tmp_path / "evil.pt")}]
    file = with_recipe(made, tmp_path / "run", teachers=teachers, data="digits")
    done = call("align", "--ckpt", file, "--timesteps", "0.5", "--no-cache", *QUICK)
    assert done.exit_code == 1
    assert "needs code execution to load" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_the_rest_of_a_recorded_recipe_is_not_followed(trap: Trap, made: Path, tmp_path: Path) -> None:
    """start_from, banks and plug-ins of a checkpoint's recipe matter when somebody trains it."""
    plugin = {"name": MARKER, "path": str(trap.modules / f"{MARKER}.py"), "sha256": "0" * 64}
    outside = str(trap.folder / "weights.pt")
    options = {"start_from": outside, "bank": outside, "base": outside}
    file = with_recipe(made, tmp_path / "run", options=options, plugins=[plugin], name="../../up", split="val")
    few = ["--timesteps", "0.5", "--no-cache", "--num-images", "20", *QUICK]
    with trap.unsprung():
        assert call("inspect", file).exit_code == 0
        assert call("align", "--ckpt", file, *few).exit_code == 0
        assert (
            call("sample", "--ckpt", file, "--num", "4", "--num-steps", "2", "--out", tmp_path / "s", *QUICK).exit_code
            == 0
        )
        refused(call("sweep", tmp_path / "run", *QUICK), "is not the name of a folder")


def test_the_name_of_a_recipe_stays_in_runs() -> None:
    for name in ("../up", "/root", "a/b", "~", ".", "..", "-o", "", "a\\b", "a\nb", "x" * 101, None, ["a"]):
        with pytest.raises(UserError, match="is not the name of a folder") as caught:
            resolve({"name": name, "method": "vanilla", "model": "SiT-digits"})
        assert "\n" not in str(caught.value)


# --- what names files beside it


def test_an_index_of_diffusers_names_files_beside_it(trap: Trap, tmp_path: Path) -> None:
    config, weights = diffusers_files()
    (tmp_path / "config.json").write_text(json.dumps(config))
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    for name in (str(trap.folder / "weights.pt"), os.path.relpath(trap.folder / "weights.pt", tmp_path)):
        index.write_text(json.dumps({"metadata": {}, "weight_map": {"pos_embed.proj.weight": name}}))
        with trap.unsprung(), pytest.raises(Failure, match="which is no file beside it"):
            checkpoints.load(tmp_path)
    index.unlink()
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(weights)
    checkpoints.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gguf"}}))
    with pytest.raises(UserError, match="asks for quantised weights"):
        checkpoints.load(tmp_path)
    for entry in (
        {"num_layers": 10**7},
        {"sample_size": 65_537},
        {"attention_head_dim": 10**6},
        {"norm_eps": float("1e300")},
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **entry}))
        with pytest.raises(Failure, match="no network has more than"):
            checkpoints.load(tmp_path)


def statistics(path: Path, **provenance: object) -> Path:
    mu, sigma = np.zeros(64), np.eye(64)
    np.savez(path, mu=mu, sigma=sigma, provenance=np.array(json.dumps(provenance)))
    return path


def test_the_source_of_statistics_is_not_opened(trap: Trap, tmp_path: Path) -> None:
    from repa_eval.data.readers.statistics import open_statistics

    judge = load_extractor("digits")
    for source in (str(trap.folder / "images.npz"), str(trap.folder / "weights.pt"), "nul\0", "", 5, ["/"]):
        found = open_statistics(statistics(tmp_path / "ref.npz", source=source, listing="0" * 12, n=4))
        assert found is not None
        with trap.unsprung(), contextlib.suppress(UserError):
            refuse_misfit(found, judge, (1, 8, 8))
    many = tmp_path / "many"
    for index in range(1050):
        (many / str(index)).mkdir(parents=True)
    found = open_statistics(statistics(tmp_path / "ref.npz", source=str(many), listing="0" * 12, n="x"))
    assert found is not None
    with pytest.raises(UserError, match="now more files"):
        refuse_misfit(found, judge, (1, 8, 8))


HOSTILE_MEMBERS = {
    "../up.png": "points outside of the archive", "/root.png": "points outside of the archive",
    "..\\up.png": "points outside of the archive", "C:\\up.png": "points outside of the archive",
    "a/../../up.png": "points outside of the archive", "": "", ".": "", "..": "points outside of the archive", "a/": "",
    "\\": "", "\x1b[31m.png": "", "nul\0.png": "",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_MEMBERS)
def test_members_of_a_zip(name: str, tmp_path: Path) -> None:
    """Refused in one line, or skipped, or an image; nothing is unpacked to the name."""
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("000.png", picture())
        info = zipfile.ZipInfo("x")
        info.filename = name
        archive.writestr(info, picture())
    text = HOSTILE_MEMBERS[name]
    if text:
        with pytest.raises(UserError, match=text) as caught:
            open_images(tmp_path / "s.zip")
        assert str(caught.value).isprintable()
    else:
        source = open_images(tmp_path / "s.zip")
        source.fetch(range(len(source)))
        assert "000.png" in source.members
    assert [file.name for file in tmp_path.iterdir()] == ["s.zip"]


# --- what is written from a record


def test_words_of_a_checkpoint_are_text_in_its_card(made: Path, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script> [click](http://example.org) `code` **bold**\n# heading\n- item\n\n---\n![i](x)"
    file = with_recipe(made, tmp_path / "run", description=hostile, name=hostile, data=hostile, split=hostile)
    saved = state.load_checkpoint(file)
    saved["recipe"]["systems"] = [hostile]
    state.save_checkpoint(file, saved)
    assert call("convert", file, "--to", tmp_path / "out").exit_code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert len(card.splitlines()) == 10
    spans = re.split(r"(?<!\\)`", card)
    outside_code = "".join(spans[::2])
    assert "heading" in outside_code
    for active in ("<script", "[click](", "**bold", "![i]", "://"):
        assert active not in outside_code
    assert len(spans) == 5  # two code spans, and nothing breaks out of them


def test_words_of_a_run_are_text_in_its_report(made: Path, tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    shutil.copytree(made, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(
        json.dumps({**facts, "run": hostile, "recipe": hostile, "status": hostile})
    )
    rows = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    changed = [{**row, "run": hostile, "system": hostile, "method": hostile, "note": hostile} for row in rows]
    changed += [{**rows[0], "metric": hostile}]
    (tmp_path / "run" / "results.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in changed))
    (tmp_path / "run" / "protocols.json").write_text(json.dumps({"abc": {hostile: hostile}}))
    side = {"caption": hostile, "rows": [hostile], "columns": 1, "tile": 8}
    (tmp_path / "run" / "media" / "tokens-0000002.json").write_text(json.dumps(side))
    done = call("report", tmp_path / "run", "--out", tmp_path / "r.html")
    assert done.exit_code == 0, done.stderr
    page = (tmp_path / "r.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "alert(1)" in page


def test_a_saved_data_set_names_files_beside_it(trap: Trap, tmp_path: Path) -> None:
    import datasets

    saved = tmp_path / "saved"
    columns = {"image": [np.zeros((8, 8), dtype=np.uint8)] * 4, "label": [0, 1, 0, 1]}
    features = datasets.Features({"image": datasets.Array2D((8, 8), "uint8"), "label": datasets.Value("int64")})
    plain = datasets.Dataset.from_dict(columns, features=features)
    plain.save_to_disk(saved)
    record = json.loads((saved / "state.json").read_text())
    for name in (str(trap.folder / "images.npz"), os.path.relpath(trap.folder / "images.npz", saved), None, 5):
        (saved / "state.json").write_text(json.dumps({**record, "_data_files": [{"filename": name}]}))
        with trap.unsprung(), pytest.raises(Failure, match="does not lie beside it"):
            load_data(f"hf:{saved}", "train")
    (tmp_path / "several").mkdir()
    (tmp_path / "several" / "dataset_dict.json").write_text(json.dumps({"splits": ["../saved", "train"]}))
    with trap.unsprung(), pytest.raises(Failure, match="does not lie beside it"):
        load_data(f"hf:{tmp_path / 'several'}", "train")
