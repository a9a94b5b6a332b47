"""`repa-eval captions`: the numbers, what they depend on, token files, the report's section."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from helpers import run, tiny, tiny_base
from repa_eval import checkpoints, results
from repa_eval.checkpoints.shared.token_files import Tokens, attach, read_tokens, to_bytes, token_record
from repa_eval.cli import main
from repa_eval.errors import Failure, UserError
from repa_eval.evaluation.caption_classifier import pair_judge
from repa_eval.evaluation.captions import (
    Examination,
    _moments,
    candidates,
    caption_errors,
    examine,
    first,
    picture,
    share,
)
from repa_eval.interfaces.images import load_data
from repa_eval.reports.html import render
from repa_eval.reports.numbers.arms import arms_of
from repa_eval.reports.numbers.caption_charts import charts
from repa_eval.results import Row, make_row, records_of
from repa_eval.runtime.hashing import digest_module
from repa_eval.sampling.generate import generate

QUICK = Examination(
    num_samples=12, num_steps=2, cfg_scales=(1.0, 2.0), num_images=6, num_candidates=5, timesteps=(0.3, 0.8)
)
WORDS = ["--num-samples", "12", "--num-steps", "2", "--cfg-scales", "1,2"]
WORDS += ["--num-images", "6", "--candidates", "5", "--timesteps", "0.3,0.8"]


@pytest.fixture(scope="module")
def soft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a tiny run of tokens, strong enough to show."""
    folder = tmp_path_factory.mktemp("runs")
    return run(tiny("softrepa", learning_rate=0.3, warmup_steps=0), folder / "soft")


def evaluate(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def values(rows: Sequence[Row]) -> dict[tuple[Any, ...], float | None]:
    return {(row.metric, row.timestep, row.protocol): row.value for row in rows}


def both(model: Any, plan: Examination) -> list[Row]:
    return examine(model, plan, strengths={"": 1.0, "_base": 0.0}, columns={"run": "soft", "step": 6})


def test_the_numbers_are_those_of_the_samples_and_errors(soft: Path) -> None:
    model = checkpoints.load(soft).model
    rows = both(model, QUICK)
    found = {(row.metric, records_of([row])[row.protocol].get("cfg_scale"), row.timestep): row for row in rows}
    for suffix, strength in {"": 1.0, "_base": 0.0}.items():
        with model.at_strength(strength):
            errors = caption_errors(model, load_data("digits-captions", "test").head(6), QUICK)
            parts = generate(model, range(12), QUICK.sampler(2.0))
            [(_, images, labels)] = list(parts)
        for place, t in enumerate(QUICK.timesteps):
            row = found[f"caption_rank1{suffix}", None, t]
            assert (row.value, row.n) == (float((errors[place, :, 0] < errors[place, :, 1:].min(1)).mean()), 6)
        mean = errors.mean(0)
        assert found[f"caption_rank1_all{suffix}", None, None].value == (mean[:, 0] < mean[:, 1:].min(1)).mean()
        right = pair_judge().right(images.numpy(), labels.numpy())
        assert found[f"guided_digits{suffix}", 2.0, None].value == right.mean()
        assert found[f"guided_both{suffix}", 2.0, None].value == right.all(1).mean()
        for name in ("digits", "both"):
            assert found[f"caption_{name}{suffix}", 1.0, None].value == found[f"guided_{name}{suffix}", 1.0, None].value
        assert found[f"fd_pixels{suffix}", 1.0, None].value == found[f"guided_fd_pixels{suffix}", 1.0, None].value
        assert (f"caption_digits{suffix}", 2.0, None) not in found
    assert any(values(rows)[key] != values(rows).get((f"{key[0]}_base", *key[1:])) for key in values(rows))


def test_the_frozen_model_is_measured_as_it_is(soft: Path) -> None:
    plain = examine(checkpoints.load(tiny_base()).model, QUICK, strengths={"": 1.0}, columns={})
    frozen = [row for row in both(checkpoints.load(soft).model, QUICK) if row.metric.endswith("_base")]
    expected = values([dataclasses.replace(row, metric=f"{row.metric}_base") for row in plain])
    assert frozen
    assert all(expected[key] == value for key, value in values(frozen).items())


def test_batches_do_not_matter(soft: Path) -> None:
    model = checkpoints.load(soft).model
    whole = values(both(model, QUICK))
    for size in (5, 7):
        other = values(both(model, dataclasses.replace(QUICK, batch_size=size)))
        assert other.keys() == whole.keys()
        assert all(other[key] == pytest.approx(whole[key], rel=1e-3) for key in whole)


def test_seeds_do(soft: Path) -> None:
    model = checkpoints.load(soft).model
    images = load_data("digits-captions", "test").head(6)
    errors = [caption_errors(model, images, dataclasses.replace(QUICK, seed=seed)) for seed in (0, 0, 1)]
    assert np.array_equal(errors[0], errors[1])
    assert not np.allclose(errors[0], errors[2])


def test_a_model_that_knows_the_answer_is_first_everywhere(soft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = checkpoints.load(soft).model, load_data("digits-captions", "test").head(6)
    clean = torch.from_numpy(images.images).float() / 127.5 - 1
    owner = dict(zip(images.labels.tolist(), clean, strict=True))  # one image a caption
    assert len(owner) == 6

    def velocity(x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, dict[Any, torch.Tensor]]:
        known = torch.stack([owner.get(label, torch.ones(1, 8, 16)) for label in y.tolist()])
        return (x - known) / t.view(-1, 1, 1, 1), {}  # noise - data, of x = (1 - t) data + t noise

    monkeypatch.setattr(type(model), "forward", lambda _self, *given: velocity(*given))
    errors = caption_errors(model, images, QUICK)
    assert errors[..., 0] == pytest.approx(np.zeros((2, 6)), abs=1e-6)
    assert errors[..., 1:].min() > 1e-3


def test_distances_are_of_pixels_from_minus_one_to_one() -> None:
    images = load_data("digits-captions", "reference").images
    shifted = np.clip(images.astype(int) + 51, 0, 255)  # grey levels; 51 are 0.4
    mean = (shifted - images.astype(int)).reshape(len(images), -1).mean(0) / 127.5
    found, plain = (_moments(each)[0] for each in (shifted, images))
    assert found - plain == pytest.approx(mean)
    assert (plain.min(), _moments(images)[1].shape) == (pytest.approx(-1.0), (128, 128))


def test_candidates_hold_the_true_caption_once() -> None:
    plan = Examination(num_candidates=16)
    for row, label in enumerate((0, 37, 99)):
        found = candidates(label, row, 100, plan).tolist()
        assert (found[0], len(found), len(set(found))) == (label, 16, 16)
        assert all(0 <= caption < 100 for caption in found)
    assert sorted(candidates(5, 0, 100, Examination(num_candidates=100)).tolist()) == list(range(100))
    assert candidates(5, 0, 100, plan).tolist() != candidates(5, 1, 100, plan).tolist()
    with pytest.raises(UserError, match="num_candidates 101: the data have 100 captions"):
        candidates(5, 0, 100, Examination(num_candidates=101))


def test_a_tie_is_no_success() -> None:
    assert first(np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [2.0, 1.0, 3.0]])).tolist() == [True, False, False]
    value, error = share(np.array([True, False, True, True]))
    assert value == 0.75
    assert error == pytest.approx(0.25)


# --- the command


def test_the_command(soft: Path, tmp_path: Path) -> None:
    extra = ["--rows", tmp_path / "rows.jsonl", "--plot", tmp_path / "p.svg", "--samples", tmp_path / "s.png"]
    done = evaluate("captions", "--ckpt", soft, *WORDS, *extra, "--device", "cpu", "--quiet", "--json")
    assert done.exit_code == 0, done.stderr
    said = json.loads(done.stdout)
    rows = results.read(tmp_path / "rows.jsonl")
    assert values(rows) == {(r["metric"], r["timestep"], r["protocol"]): r["value"] for r in said["rows"]}
    assert {(row.run, row.system, row.step) for row in rows if row.step} == {("soft", "SoftREPA", 6)}
    record = said["protocols"][next(row.protocol for row in rows if row.metric == "caption_digits")]
    assert (record["judge_accuracy"], record["num_steps"], record["cfg_scale"]) == (0.9917, 2, 1.0)
    assert (tmp_path / "p.svg").read_text().count("rank@1") == 1
    words = json.loads((tmp_path / "s.json").read_text())
    assert len(words["rows"]) == 8
    assert words["rows"][1] == "a one left of a four"
    shown = evaluate("captions", "--ckpt", soft, *WORDS, "--device", "cpu", "--quiet").stdout
    assert "frozen model" in shown
    assert "soft tokens" in shown
    assert "real images" in shown
    assert len(shown.splitlines()) == 1 + 2 * 3 + 2 + 1


def test_tokens_travel(soft: Path, tmp_path: Path) -> None:
    done = evaluate("convert", soft, "--to", tmp_path, "--tokens", "--name", "mine")
    assert done.stdout.strip() == str(tmp_path / "mine.pt"), done.stderr
    content = torch.load(tmp_path / "mine.pt", weights_only=True)
    base = checkpoints.load(tiny_base())
    assert content["base_hash"] == digest_module(base.network.base_model)
    facts = {key: content[key] for key in ("num_layers", "num_tokens", "width", "space", "time_bins", "step")}
    assert facts == {
        "num_layers": 2, "num_tokens": 4, "width": 32, "space": "after the text's embedder", "time_bins": 100, "step": 6
    }  # fmt: skip
    shown = evaluate("inspect", tmp_path / "mine.pt", "--json")
    facts = json.loads(shown.stdout)
    assert (facts["systems"], facts["step"], facts["base_hash"]) == (["SoftREPA"], 6, content["base_hash"])
    quick = [*WORDS, "--device", "cpu", "--quiet", "--json"]
    one = evaluate("captions", "--ckpt", soft, *quick)
    two = evaluate("captions", "--ckpt", tiny_base(), "--tokens", tmp_path / "mine.pt", *quick)
    three = evaluate("captions", "--ckpt", tiny_base(), "--tokens", soft, *quick)
    numbers = [[(r["metric"], r["value"]) for r in json.loads(each.stdout)["rows"]] for each in (one, two, three)]
    assert numbers[0] == numbers[1] == numbers[2]
    assert json.loads(two.stdout)["rows"][0]["run"] == "mine"


def published(network: Any, folder: Path) -> None:
    """Write tokens as the official trainer does: a parameter and a pickled module."""
    folder.mkdir()
    torch.save(network.dc_tokens, folder / "dc_tokens_best.pth")
    torch.save(network.dc_t_tokens, folder / "dc_t_tokens_best.pth")


def test_the_published_two_files_with_their_time_offsets(soft: Path, tmp_path: Path) -> None:
    # the published sampler forgets the offsets and draws random ones
    network = checkpoints.load(soft).network
    published(network, tmp_path / "official")
    tokens = read_tokens(tmp_path / "official")
    assert torch.equal(tokens.tokens, network.dc_tokens)
    assert torch.equal(tokens.offsets, network.dc_t_tokens.weight)
    common = ["--num", "4", "--num-steps", "2", "--device", "cpu", "--quiet"]
    for name, words in {"a": ["--ckpt", soft], "b": ["--ckpt", tiny_base(), "--tokens", tmp_path / "official"]}.items():
        done = evaluate("sample", *words, *common, "--out", tmp_path / f"{name}.npz")
        assert done.exit_code == 0, done.stderr
    a, b = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "ab")
    assert np.array_equal(a, b)
    done = evaluate("sample", "--ckpt", soft, "--token-strength", "0", *common, "--out", tmp_path / "c.npz")
    assert done.exit_code == 0
    evaluate("sample", "--ckpt", tiny_base(), *common, "--out", tmp_path / "d.npz")
    c, d = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "cd")
    assert np.array_equal(c, d)
    assert not np.array_equal(a, c)


def test_tokens_that_do_not_fit(soft: Path, tmp_path: Path) -> None:
    network = checkpoints.load(soft).network
    other = run(tiny("t2i", seed=1), tmp_path / "other")
    (tmp_path / "mine.pt").write_bytes(to_bytes(token_record(network, step=1, recipe={})))
    published(network, tmp_path / "official")
    (tmp_path / "official" / "dc_tokens_best.pth").unlink()
    torch.save(torch.zeros(2, 4, 50), tmp_path / "wide.pth")
    torch.save(torch.zeros(3, 4, 32), tmp_path / "deep.pth")
    for words, message in {
        ("--ckpt", other, "--tokens", tmp_path / "mine.pt"): "these soft tokens are for the network",
        ("--ckpt", tiny_base(), "--tokens", tmp_path / "wide.pth"): "soft tokens (2, 4, 50); this network takes",
        (
            "--ckpt",
            tiny_base(),
            "--tokens",
            tmp_path / "deep.pth",
        ): "soft tokens of 3 blocks; this model has blocks 1..2",
        ("--ckpt", tiny_base(), "--tokens", tmp_path / "official"): "holds 0 files of soft tokens",
        ("--ckpt", tiny_base(), "--tokens", other): "no soft tokens",
        ("--ckpt", tiny_base(), "--tokens", "none.pt"): "'none.pt' does not exist",
        ("--ckpt", soft, "--tokens", tmp_path / "mine.pt"): "has its own soft tokens",
        ("--ckpt", tmp_path / "mine.pt"): "no text-to-image model with captions",
        ("--ckpt", soft, "--cfg-scales", "2"): "must include 1 (no guidance)",
        ("--ckpt", soft, "--timesteps", "1.5"): "timestep 1.5 is outside [0, 1]",
        ("--ckpt", soft, "--plot", "p.gif"): "choose a file that ends in png, svg, pdf",
        ("--ckpt", soft, "--candidates", "200"): "num_candidates 200: the data have 100 captions",
    }.items():
        done = evaluate("captions", *words, *([] if "--candidates" in words else ["--device", "cpu"]))
        assert (done.exit_code, done.stdout) == (2, ""), (words, done.stderr)
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    with pytest.raises(UserError, match="holds no soft tokens"):
        token_record(checkpoints.load(tiny_base()).network, step=None, recipe={})
    with pytest.raises(Failure, match="time offsets"):
        attach(checkpoints.load(tiny_base()).network, Tokens(network.dc_tokens, torch.zeros(100, 7)), where="x")
    done = evaluate("sample", "--ckpt", tiny_base(), "--token-strength", "0.5", "--num", "1", "--out", tmp_path / "n")
    assert "there are no soft tokens" in done.stderr


# --- the report


def examined(run_name: str, shift: float, **protocol: Any) -> list[Row]:
    """Rows as `captions` writes them."""
    common: dict[str, Any] = {"run": run_name, "step": 10, "weights": "ema", "n": 100}
    errors = {"kind": "captions, by denoising error", "num_candidates": 16, **protocol}
    rows = [
        make_row(metric=f"caption_rank1{end}", value=0.5 + t / 4 + gain, timestep=t, protocol=errors, **common)
        for end, gain in (("", shift), ("_base", 0.0))
        for t in (0.1, 0.5, 0.9)
    ]
    for scale in (1.0, 3.0):
        made = {"kind": "captions, by samples", "judge": "svm", "judge_accuracy": 0.99, "cfg_scale": scale, **protocol}
        for end, gain in (("", shift), ("_base", 0.0)):
            for name in ("digits", "both", "fd_pixels"):
                value = 0.6 + scale / 10 + gain
                rows.append(make_row(metric=f"guided_{name}{end}", value=value, protocol=made, **common))
        rows.append(make_row(metric="caption_digits", value=0.7 + shift, protocol=made, **common))
    return rows


def test_charts_have_each_run_and_the_frozen_model_once() -> None:
    rows = [*examined("a", 0.1), *examined("b", 0.05)]
    found = {chart.title: chart for chart in charts(rows, arms_of(rows, {}), records_of(rows))}
    assert list(found) == ["rank@1 of the true caption", "digits right", "both digits right", "fd_pixels"]
    for chart in found.values():
        assert [curve.arm.name for curve in chart.panel.curves] == ["frozen model", "a", "b"]
        assert [curve.arm.dashed for curve in chart.panel.curves] == [True, False, False]
    frozen, a, _ = found["digits right"].panel.curves
    assert frozen.mean == ((1.0, 0.7), (3.0, pytest.approx(0.9)))
    assert a.mean == ((1.0, pytest.approx(0.8)), (3.0, pytest.approx(1.0)))
    assert [x for x, _ in found["rank@1 of the true caption"].panel.curves[1].mean] == [0.1, 0.5, 0.9]


def test_other_protocols_are_never_in_one_chart() -> None:
    rows = [*examined("a", 0.1), *examined("b", 0.1, num_steps=50)]
    found = charts(rows, arms_of(rows, {}), records_of(rows))
    assert len(found) == 8
    assert all(len(chart.panel.curves) == 2 for chart in found)


def test_a_report_of_captions_begins_with_them() -> None:
    step: dict[str, Any] = {"run": "soft", "step": 10, "n": 100}
    rows = [make_row(metric=name, value=value, protocol={"kind": "captions"}, **step) for name, value in (
        ("caption_digits", 0.75), ("caption_digits_base", 0.5), ("fd_pixels", 2.0), ("fd_pixels_base", 1.5)
    )]  # fmt: skip
    page = render(rows, protocols=records_of(rows))
    assert "soft: without guidance, 0.75 of the digits match the caption (frozen model: 0.5)" in page
    assert "Fréchet distance on pixels is 2.00 (frozen model: 1.50)" in page
    assert "without guidance" not in render(rows[:1], protocols=records_of(rows))


def test_the_report_shows_captions(soft: Path) -> None:
    rows = examined("soft", 0.1)
    png, words = picture(checkpoints.load(soft).model, QUICK, [0.0, 1.0])
    media = {"soft/captions-0000010.png": png, "soft/captions-0000010.json": json.dumps(words).encode()}
    page = render(rows, media=media, protocols=records_of(rows))
    assert '<section id="captions">' in page
    assert "Chance is 1/16 = 0.0625." in page
    assert "<li>a two left of a eight</li>" in page
    assert "Left 4: the frozen model; right 4: the same noise with soft tokens." in page
    assert '<section id="features">' not in page
    assert "guided_digits" not in page.partition('id="protocols"')[0]
    plain = [row for row in rows if not row.metric.startswith(("caption_rank1", "guided_"))]
    assert '<section id="captions">' not in render(plain, protocols=records_of(plain))
