"""The command lines of four READMEs, typed as they are there, and what else official flags mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from latent_files import official_folder
from repa_eval.interfaces.teacher import TEACHERS, Teacher, teacher
from repa_eval.train.cli import main
from repa_eval.train.official_flags import FLAGS, _argument, read_flags

REPA = (
    "--report-to=wandb --allow-tf32 --mixed-precision=fp16 --seed=0 --path-type=linear --prediction=v "
    "--weighting=uniform --model=SiT-XL/2 --enc-type=dinov2-vit-b --proj-coeff=0.5 --encoder-depth=8 "
    "--output-dir=exps --exp-name=linear-dinov2-b-enc8 --data-dir=DATA"
)
HASTE = (
    "--report-to wandb --allow-tf32 --mixed-precision fp16 --seed 0 --path-type linear --prediction v "
    "--weighting uniform --model SiT-XL/2 --enc-type dinov2-vit-b --proj-coeff 0.5 --attn-coeff 0.5 --encoder-depth 8 "
    "--early-stop-point 250000 --batch-size 256 --output-dir exps --exp-name haste --data-dir DATA"
)
REG = (
    "--report-to wandb --allow-tf32 --mixed-precision fp16 --seed 0 --path-type linear --prediction v "
    "--weighting uniform --model SiT-XL/2 --enc-type dinov2-vit-b --proj-coeff 0.5 --encoder-depth 8 --output-dir exps "
    "--exp-name reg --batch-size 256 --data-dir DATA --cls 0.03 --ops-head 16"
)
ERW = (
    "--report-to wandb --allow-tf32 --mixed-precision fp16 --seed 0 --path-type linear --prediction v "
    "--weighting uniform --model SiT-XL/2 --enc-type dinov2-vit-b --encoder-depth 14 --warmup-steps 100000 "
    "--max-train-steps 300000 --checkpointing-steps 50000 --use_rope --l2r-depth 4 --data-dir DATA --output-dir exps "
    "--exp-name erw"
)
COMMON = {
    "learning_rate": 1e-4, "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.0, "max_grad_norm": 1.0,
    "ema_decay": 0.9999, "batch_size": 256, "mixed_precision": "fp16", "allow_tf32": True, "enc_type": "dinov2-vit-b",
    "cfg_prob": 0.1, "path_type": "linear", "num_classes": 1000, "in_channels": 4, "input_size": 32,
}  # fmt: skip
COMMANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "repa": (REPA, {"method": "repa", "model": "SiT-XL/2", "proj_coeff": 0.5, "encoder_depth": 8}),
    "haste": (HASTE, {"method": "haste", "attn_coeff": 0.5, "early_stop_point": 250_000, "encoder_depth": 8}),
    "reg": (REG, {"method": "reg", "model": "SiT-REG-XL/2", "cls_coeff": 0.03, "checkpoint_every": 10_000}),
    "erw": (ERW, {"model": "SiT-ERW-XL/2", "stage1_steps": 100_000, "max_steps": 300_000, "use_rope": True}),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with latents of 256 px, in the layout that REPA's preprocessing writes."""
    return official_folder(tmp_path_factory.mktemp("official"), count=4, side=32)


def repa_train(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def resolved(*words: str) -> tuple[dict[str, Any], str]:
    """The tree of a dry run, and the lines on stderr."""
    done = repa_train(*words, "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree, done.stderr


def leaf(tree: Any, key: str) -> Any:
    """The value of the first entry `key` in a tree, outermost first."""
    level = [tree]
    while level:
        for each in level:
            if key in each:
                return each[key]
        level = [value for each in level for value in each.values() if isinstance(value, dict)]
    raise KeyError(key)


@pytest.mark.parametrize("system", COMMANDS)
def test_the_command_of_a_readme_means_what_it_means_there(system: str, data: Path) -> None:
    words, own = COMMANDS[system]
    tree, said = resolved(*words.replace("DATA", str(data)).split())
    assert {key: leaf(tree, key) for key in {**COMMON, **own}} == {**COMMON, **own}
    assert (tree["resolved"]["samples"], tree["resolved"]["model_reads"]) == (4, "moments")
    assert leaf(tree, "z_dims") == [768]
    assert tree["seed"] == 0
    assert said.count("\n") == said.count("note: without effect here: ") <= 1
    assert ("--ops-head" in said) == (system == "reg")


def test_a_tracker_that_is_not_installed_ends_no_copied_command(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repa_eval.train.trackers.get_available_trackers", lambda: ["tensorboard"])
    tree, said = resolved("--report-to", "tensorboard,wandb", "--data-dir", str(data))
    assert tree["log_with"] == "tensorboard"
    assert said == "note: without effect here: --report-to wandb (not installed; log.jsonl has the curves)\n"
    assert (
        repa_train("log_with=wandb", "--out", str(data / "run")).exit_code == 2
    )  # said in our own words, it is wanted


# flag -> (words, entry of the recipe, its value)
MEANINGS: dict[str, tuple[str, str, Any]] = {
    "--model": ("--model SiT-B/2", "model", "SiT-B/2"),
    "--num-classes": ("--num-classes 20", "num_classes", 20),
    "--encoder-depth": ("--encoder-depth 3", "encoder_depth", 3),
    "--fused-attn": ("--no-fused-attn", "fused_attn", False),
    "--qk-norm": ("--qk-norm", "qk_norm", True),
    "--use_rope": ("--no-use_rope --model SiT-XL/2", "use_rope", False),
    "--resolution": ("--resolution 256", "input_size", 32),
    "--batch-size": ("--batch-size 8", "batch_size", 8),
    "--mixed-precision": ("--mixed-precision bf16", "mixed_precision", "bf16"),
    "--allow-tf32": ("--no-allow-tf32", "allow_tf32", False),
    "--epochs": ("--epochs 3 --batch-size 2", "max_steps", 6),
    "--max-train-steps": ("--max-train-steps 7", "max_steps", 7),
    "--checkpointing-steps": ("--checkpointing-steps 5", "checkpoint_every", 5),
    "--sampling-steps": ("--sampling-steps 5", "eval_every", 5),
    "--gradient-accumulation-steps": ("--gradient-accumulation-steps 2", "gradient_accumulation", 2),
    "--learning-rate": ("--learning-rate=2e-4", "learning_rate", 2e-4),
    "--adam-beta1": ("--adam-beta1 0.5", "adam_beta1", 0.5),
    "--adam-beta2": ("--adam-beta2 0.5", "adam_beta2", 0.5),
    "--adam-weight-decay": ("--adam-weight-decay 0.1", "weight_decay", 0.1),
    "--adam-epsilon": ("--adam-epsilon 1e-6", "adam_epsilon", 1e-6),
    "--max-grad-norm": ("--max-grad-norm 2", "max_grad_norm", 2.0),
    "--seed": ("--seed 5", "seed", 5),
    "--num-workers": ("--num-workers 1", "num_workers", 1),
    "--path-type": ("--path-type cosine", "path_type", "cosine"),
    "--prediction": ("--prediction v", "prediction", "v"),
    "--weighting": ("--weighting lognormal", "weighting", "lognormal"),
    "--cfg-prob": ("--cfg-prob 0.2", "cfg_prob", 0.2),
    "--legacy": ("--legacy --cfg-prob 0.2", "cfg_prob", pytest.approx(0.36)),  # 1 - 0.8 x 0.8
    "--enc-type": ("--enc-type mocov3-vit-b", "enc_type", "mocov3-vit-b"),
    "--teacher-weights": (f"--teacher-weights {__file__}", "teacher_weights", __file__),
    "--proj-coeff": ("--proj-coeff 0.25", "proj_coeff", 0.25),
    "--attn-coeff": ("--attn-coeff 1", "attn_coeff", 1.0),
    "--early-stop-point": ("--early-stop-point 9", "early_stop_point", 9),
    "--cls": ("--cls 0.1", "cls_coeff", 0.1),
    "--warmup-steps": ("--warmup-steps 9", "stage1_steps", 9),
    "--l2r-depth": ("--l2r-depth 2", "l2r_depth", 2),
    "--report-to": ("--report-to none", "log_with", ""),
}
WITHOUT_EFFECT = ("--logging-dir", "--ops-head")
PLACES = ("--data-dir", "--output-dir", "--exp-name", "--resume-step")  # tested below


def test_every_flag_is_tested() -> None:
    assert set(FLAGS) == {*MEANINGS, *WITHOUT_EFFECT, *PLACES}


@pytest.mark.parametrize("flag", MEANINGS)
def test_a_flag_means_its_field(flag: str, data: Path) -> None:
    words, key, value = MEANINGS[flag]
    tree, said = resolved(*words.split(), "--data-dir", str(data))
    assert leaf({**tree, "resolved": {}}, key) == value
    assert said == ""
    assert tree["name"].startswith("imagenet/")
    assert tree["data"] == str(data)


@pytest.mark.parametrize("flag", WITHOUT_EFFECT)
def test_a_flag_without_effect_is_named(flag: str, data: Path) -> None:
    words = (flag, "logs", "--data-dir", str(data), "--method", "repa")
    assert resolved(*words)[1] == f"note: without effect here: {flag}\n"
    assert resolved(*words, "--quiet")[1] == ""


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--cls abc", "--cls: 'abc' is not a number"),
        ("--recipe imagenet/repa --cls 1", "--cls: the method or the model of this recipe has no such option"),
        ("--encoder-depth 99 --data-dir DATA", "--encoder-depth 99: this model has blocks 1..28"),
        ("--resolution 512 --data-dir DATA", "--resolution 512, side of the latents: 64 was given, but the data"),
        ("--resolution large", "--resolution: 'large' is not a whole number above 0"),
        ("--epochs 0 --data-dir DATA", "--epochs: '0' is not a whole number above 0"),
        ("--data-dir nowhere", "--data-dir nowhere: there is no such folder or file, and no data of that name"),
        ("--resume-step 5 --output-dir DATA --exp-name none", "--resume-step 5: there is no checkpoint of repa-train"),
        ("--batch-siz 3", "no such option --batch-siz; did you mean --batch-size?"),
        ("--zzz", "no such option --zzz (known: --adam-beta1, "),
    ],
)
def test_errors_speak_of_the_flag_as_typed(words: str, text: str, data: Path) -> None:
    dry = [] if "--resume-step" in words or "nowhere" in words else ["--dry-run"]
    done = repa_train(*words.replace("DATA", str(data)).split(), *dry)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"error: {text}")
    assert "overrides" not in done.stderr


def test_names_of_the_run_folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Path, bool]] = []

    def train(_recipe: Any, run: Path, go_on: dict[str, Any], *_rest: Any) -> Path:
        seen.append((run, go_on["resume"]))
        return run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("repa_eval.train.cli._train", train)
    (tmp_path / "out/one/checkpoints").mkdir(parents=True)
    (tmp_path / "out/one/checkpoints/0000005.pt").touch()
    words = ["--data-dir", str(data)]
    repa_train(*words)
    repa_train(*words, "--exp-name", "one")
    repa_train(*words, "--exp-name", "one", "--output-dir", "out", "--resume-step", "0")
    repa_train(*words, "--exp-name", "one", "--output-dir", "out", "--resume-step", "5")
    repa_train(*words, "--exp-name", "one", "--out", "mine")
    assert seen == [
        (Path("runs/imagenet/repa"), False),
        (Path("exps/one"), False),
        (Path("out/one"), False),
        (Path("out/one"), True),
        (Path("mine"), False),
    ]


@pytest.mark.parametrize("name", ["off", "no", "007", "1e3", "null"])
def test_data_may_be_called_anything(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (["--data-dir", f"./{name}"], ["--data-dir", f"{name}/x"], [f"data={name}/x"]):
        assert resolved(*words)[0]["data"] == words[-1].removeprefix("data=")
    assert read_flags({**dict.fromkeys(map(_argument, FLAGS)), "flag_data_dir": name}).overrides["data"] == name


@pytest.mark.parametrize(
    ("words", "name", "model"),
    [
        ("--model SiT-B/2", "imagenet/repa", "SiT-B/2"),
        ("model=SiT-L/2", "imagenet/repa", "SiT-L/2"),
        ("--method haste --model SiT-B/2", "imagenet/haste-sit-b-2", "SiT-B/2"),
        ("--method haste --resolution 512", "imagenet/haste-sit-xl-2-512", "SiT-XL/2"),
        ("--method urepa --model SiT-L/2", "imagenet/u-repa-sit-down-l-2", "SiT-down-L/2"),
        ("--method vanilla --model SiT-B/2", "imagenet/sit-vanilla", "SiT-B/2"),
        ("--recipe imagenet/reg --model SiT-B/2", "imagenet/reg", "SiT-REG-B/2"),
        ("--method gmem data=no/such", "imagenet/gmem", "LightningDiT-XL/1"),
        ("--encoder-depth 2", "digits-repa", "SiT-digits/2"),
        ("--cls 0.1", "digits-reg", "SiT-REG-digits/2"),
        ("--model SiT-digits/2", "digits-repa", "SiT-digits/2"),
        ("--data-dir digits", "digits-repa", "SiT-digits/2"),
    ],
)
def test_a_command_without_recipe_means_the_published_one_of_its_scale(words: str, name: str, model: str) -> None:
    tree, _ = resolved(*words.split())
    assert (tree["name"], tree["model"]) == (name, model)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--data-dir nowhere", "--data-dir nowhere: there is no such folder or file"),
        ("--data-dir DATA/images", "hold images and no latents, and this recipe trains on latents of 4x32x32: make "
         "them with repa-eval prepare DATA/images DIR --resolution 256 --vae stabilityai/sd-vae-ft-mse, then name DIR"),
        ("--data-dir DATA --teacher-weights none.pth", "teacher weights 'none.pth' do not exist"),
        ("--data-dir DATA --resolution 512", "64 was given, but the data"),
        ("--data-dir DATA --num-classes 2", "--num-classes: 2 was given, but the data"),
        ("--data-dir DATA --batch-size 3 gradient_accumulation=2", "batch-size 3 does not divide"),
    ],
)  # fmt: skip
def test_a_start_that_is_refused_leaves_nothing(
    words: str, text: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_teacher: None
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words.replace("DATA", str(data)).split()
    enc = [] if "--teacher-weights" in words else ["--enc-type", "eight-wide"]
    done = repa_train(
        "--model", "SiT-S/2", *given, *enc, "--mixed-precision", "no", "--output-dir", "a", "--exp-name", "b"
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert text.replace("DATA", str(data)) in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher of which only the width is ever asked for."""

    class EightWide(Teacher):
        name, width, digest = "eight-wide", 8, "none"

        def forward(self, images: Any) -> Any:
            raise AssertionError(images)

    TEACHERS.names()
    monkeypatch.setattr(TEACHERS, "_objects", dict(TEACHERS._objects))
    monkeypatch.setattr(TEACHERS, "_origins", dict(TEACHERS._origins))

    @teacher("eight-wide")
    def build(_name: str, _weights: Path | None) -> Teacher:
        """Eight wide."""
        return EightWide()
