"""The report as a file: same bytes, nothing from outside, escaped, and alive in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import report_example as sample
from repa_eval.commands.shared.metric_words import metric_words
from repa_eval.errors import UserError
from repa_eval.reports.drawing.grids import grids
from repa_eval.reports.drawing.strips import strips, thinned
from repa_eval.reports.html import collect, render
from repa_eval.reports.numbers.arms import arms_of
from repa_eval.reports.numbers.compare import summary
from repa_eval.reports.numbers.words import Metrics
from repa_eval.reports.page import prepare
from repa_eval.reports.sections import maps as maps_section
from repa_eval.results import Row, append, make_row
from repa_eval.runtime.run_lock import RunLock

LIMIT = 3_000_000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run "
    "--disable-background-networking --disable-component-update --disable-sync"
)


@pytest.fixture(scope="module")
def page() -> str:
    return render(**sample.example())


def small(runs=("vanilla", "repa"), metrics=("fd_digits",)):
    """Return a table of one metric, which renders in no time."""
    inputs = sample.example(runs)
    return inputs | {"rows": [row for row in inputs["rows"] if row.metric in metrics], "curves": [], "media": {}}


def test_two_processes_give_the_same_bytes(page, tmp_path):
    command = (
        "import sys, pathlib, report_example as s; from repa_eval.reports.html import render; "
        "pathlib.Path(sys.argv[1]).write_text(render(**s.example()), encoding='utf-8')"
    )
    root = Path(__file__).resolve().parents[1]
    search = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": search,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "SOURCE_DATE_EPOCH": "1",
    }
    subprocess.run([sys.executable, "-c", command, str(tmp_path / "other.html")], check=True, env=environment)
    assert (tmp_path / "other.html").read_bytes() == page.encode()


def test_the_file_is_small_and_asks_for_nothing(page):
    assert len(page.encode()) < LIMIT
    assert set(re.findall(r"https?://[^\"'\s<)]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert "default-src 'none'" in page


def test_every_section_is_there(page):
    for section in ("finals", "quality", "maps", "against", "features", "samples", "training", "protocols", "missing"):
        assert f'<section id="{section}">' in page
    assert "num_samples (2000 or 512) and num_steps (25 or 16)" in page
    assert len(re.findall(r'data-map="map\d+"', page)) == 18
    assert page.count("data:image/png;base64,") == 45 + 9


def test_every_string_is_escaped():
    evil = '</script><script>alert("x")</script><img src=x onerror=y>'
    inputs = sample.example(("vanilla",))
    rows = [replace(row, run=evil, note=evil, value=None if row.step == 300 else row.value) for row in inputs["rows"]]
    rows += [Row(run=evil, metric=evil, step=step, value=1.0, n=5, protocol="p") for step in (1, 2)]
    rows += [Row(run=evil, metric=evil, step=2, layer=layer, timestep=0.1, value=0.3) for layer in (1, 2)]
    text = render(
        rows,
        protocols={"p": {"kind": evil, evil: evil}},
        runs={evil: {"method": "vanilla", "description": evil, "status": evil, evil: evil}},
        media={f"{evil}/samples-0000001.png": sample.strip("vanilla", 1), f"{evil}/odd.json": b"{}"},
        title=evil,
    )
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert text.count("</script>") == 2


def test_collect_reads_what_a_demo_leaves(page, tmp_path):
    inputs = collect(sample.write(tmp_path))
    assert len(inputs.rows) == len(sample.example()["rows"])
    assert render(**inputs.arguments(), metrics=sample.metric_words()) == page


def test_a_torn_last_line_is_ignored(tmp_path):
    run = sample.write(tmp_path, ("vanilla",))[0]
    with open(run / "results.jsonl", "a") as table:
        table.write('{"run": "vanilla", "metr')
    assert len(collect([run]).rows) == len(sample.example(("vanilla",))["rows"])


def test_a_picture_that_is_far_too_large_is_left_out(tmp_path, caplog):
    """A file of 6 GB (a hole on the disk, here) is not read."""
    run = sample.write(tmp_path, ("vanilla",))[0]
    before = collect([run]).media
    with open(run / "media" / "samples-9999999.png", "wb") as handle:
        handle.truncate(6 << 30)
    assert collect([run]).media == before
    assert "samples-9999999.png has 6,442,450,944 bytes and is left out of the report" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "is not a run folder: it holds no results.jsonl"),
        ("", "is empty: measure something first"),
        ("hello\n", "line 1: not JSON"),
        ('{"epoch": 3}\n', "line 1: not a row of results"),
        ('{"metric": "fid", "fid50k": 3}\n', "line 1: unknown columns fid50k"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "results.jsonl").write_text(content)
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        collect([tmp_path])
    assert "\n" not in str(caught.value)


def test_wrong_paths_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        collect([tmp_path / "nothing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        collect([tmp_path / "file"])
    with pytest.raises(UserError, match="no run given"):
        collect([])
    sample.write(tmp_path / "demo", ("vanilla",))
    with pytest.raises(UserError, match="the run folders inside are vanilla"):
        collect([tmp_path / "demo"])


def test_two_runs_of_one_name_are_refused_and_one_run_twice_is_one(tmp_path):
    first, second = (sample.write(tmp_path / name, ("vanilla",))[0] for name in "ab")
    with pytest.raises(UserError, match="two runs are called 'vanilla'"):
        collect([first, second])
    assert list(collect([first, first]).runs) == ["vanilla"]


@pytest.mark.parametrize("form", ["name", "folder", "folder of another place"])
def test_any_run_is_the_baseline(tmp_path, form):
    folders = sample.write(tmp_path, ("vanilla", "repa", "repa-random"))
    chosen = "repa" if form == "name" else tmp_path / "repa"
    given = [folder for folder in folders if form != "folder of another place" or folder.name != "repa"]
    inputs = collect(given, baseline=chosen)
    arms = arms_of([*inputs.rows, *inputs.curves], inputs.runs)
    assert (arms[0].name, arms[0].role) == ("repa", "baseline")
    assert {arm.name: arm.role for arm in arms} == {"repa": "baseline", "vanilla": "treated", "repa-random": "control"}
    lines = summary(inputs.rows, inputs.curves, inputs.runs, Metrics(metric_words()))
    compared = {(line["baseline"], line["treated"]) for line in lines}
    assert compared == {("repa", "vanilla"), ("repa", "repa-random")}
    assert arms_of(collect(folders).rows, collect(folders).runs)[0].name == "vanilla"
    with pytest.raises(UserError, match=r"^--baseline nobody is none of the runs \(vanilla, repa, repa-random\)"):
        collect(folders, baseline="nobody")


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"[" * 100_000, b'{"run": ["a"]}', b'{"run": 5}'])
def test_a_report_needs_no_run_file(tmp_path, caplog, content):
    run = sample.write(tmp_path, ("vanilla",))[0]
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_bytes(content)
    inputs = collect([run])
    assert list(inputs.runs) == ["vanilla"]  # the folder's name
    assert ("run.json is damaged" in caplog.text) == (content is not None and not content.startswith(b'{"'))
    assert "vanilla" in render(**inputs.arguments())


@pytest.mark.parametrize(("status", "shown"), [("running", "stopped"), ("failed", "failed"), ("done", "done")])
def test_a_run_that_nobody_writes_has_stopped(tmp_path, status, shown):
    run = sample.write(tmp_path, ("vanilla",))[0]
    record = json.loads((run / "run.json").read_text()) | {"status": status, "reason": "step 3: a loss is not finite"}
    (run / "run.json").write_text(json.dumps(record))
    assert collect([run]).runs["vanilla"]["status"] == shown
    with RunLock(run):
        inputs = collect([run])
    assert inputs.runs["vanilla"]["status"] == status
    text = f"status is &#39;{status}&#39; (step 3: a loss is not finite)"
    assert (text in render(**inputs.arguments())) == (status != "done")


def test_a_folder_whose_name_is_no_utf8(tmp_path):
    run = sample.write(tmp_path, ("vanilla",))[0]
    (run / "run.json").unlink()
    moved = run.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    assert list(collect([moved]).runs) == ["caf\\xe9"]


def test_a_report_of_released_weights(tmp_path):
    cells = [(layer, t) for layer in (1, 2) for t in (0.1, 0.5)]
    rows = [make_row(metric="cka", value=t / layer, layer=layer, timestep=t, n=16, run="free") for layer, t in cells]
    page = render(rows)
    assert "no rows with a layer and a timestep" not in page
    assert "<figcaption>no step" in page.replace("\n", "")
    assert "step None" not in page
    assert "end of training" not in page
    append(tmp_path / "results.jsonl", [replace(row, run=None) for row in rows])
    inputs = collect([tmp_path])  # of a file that names no run: the folder is one
    assert [row.run for row in inputs.rows] == [tmp_path.name] * 4


def test_an_empty_table_is_refused():
    with pytest.raises(UserError, match="nothing to report"):
        render([])


@pytest.mark.parametrize(
    "rows",
    [
        [Row(metric="fd_digits_floor", value=0.4, n=512)],
        [Row(run="a", metric="fid", step=1, value=3.0)],
        [Row(run="a", metric="fid", step=step, value=None, note="no samples") for step in (1, 2)],
        [Row(run="a", metric="fid", step=step, value=2.0) for step in (1, 2)],
        [Row(run="a", metric="cka", step=1, layer=2, timestep=0.5, value=None, note="constant features")],
        [Row(run="a", metric="cka", step=1, layer=2, timestep=0.5, value=0.2)],
        [Row(run="a", metric="fid", step=step, value=-0.1) for step in (1, 2)],
        [Row(metric="fid", step=step, value=1.0) for step in (1, 2)],
    ],
)
def test_little_or_odd_tables_render(rows):
    assert "</html>" in render(rows)


def test_a_missing_metric_has_its_reason():
    inputs = small(metrics=("fd_digits", "is_digits"))
    rows = [row for row in inputs["rows"] if not (row.run == "repa" and row.metric == "is_digits")]
    text = render(**inputs | {"rows": rows})
    assert "no rows for repa" in text
    assert '<small class="none">not measured</small>' in text


def test_one_run_and_many_seeds_render():
    assert "Only one run, so nothing is compared." in render(**small(("repa",)))
    assert "at 30 of 30" in render(**small(("vanilla", "repa", "vanilla-s1", "repa-s1")))


def test_the_summary_changes_with_the_numbers():
    inputs = small()
    worse = [replace(row, value=row.value * 2) if row.run == "repa" else row for row in inputs["rows"]]
    assert "<h1>repa has lower fd_digits than vanilla at 15 of 15" in render(**inputs)
    assert "<h1>repa is worse than vanilla" in render(**inputs | {"rows": worse})


@pytest.mark.parametrize(("better", "word"), [("lower", "lower"), ("higher", "is worse than vanilla: its")])
def test_a_metric_of_the_users_is_drawn_with_its_own_direction_and_words(better, word):
    inputs = small()
    rows = [replace(row, metric="mine_digits") for row in inputs["rows"] if row.metric == "fd_digits"]
    words = {"mine": {"better": better, "meaning": "half a sentence on mine"}}
    text = render(**inputs | {"rows": rows, "metrics": words})
    assert f"<h1>repa {'has lower' if better == 'lower' else word} mine_digits" in text
    assert f">mine_digits ({better} is better)</text>" in text
    assert "mine_digits: half a sentence on mine." in text
    unknown = render(**inputs | {"rows": rows, "metrics": None})
    assert "is better)</text>" not in unknown


def test_pictures_keep_to_their_budget_and_bad_ones_are_named():
    steps = {step: bytes(100) for step in range(1, 11)}
    assert list(thinned(steps, 0.3)) == [3, 7, 10]
    assert list(thinned(steps, 0.0)) == [10]
    shown, left = strips({"a/samples-1.png": b"not a png", "b/samples-0000001.png": sample.strip("repa", 1)}, [], 9)
    assert shown == []
    assert dict(left) == {"a/samples-1.png": "not a readable PNG", "b/samples": "the results name no such run"}


def test_large_pictures_make_way_for_the_rest():
    inputs = small(("vanilla",))
    heavy = sample.strip("vanilla", 1)
    heavy = heavy[:-12] + b"\x00" * 400_000 + heavy[-12:]
    text = render(**inputs | {"media": {f"vanilla/samples-{step:07d}.png": heavy for step in range(100, 1600, 100)}})
    assert len(text.encode()) < LIMIT
    assert text.count("data:image/png;base64,") == 5
    assert "10 of 15 steps left out to keep the file small" in text


def test_nothing_of_ours_above_results_is_imported():
    code = "import sys, repa_eval.reports.html; print(*sys.modules)"
    root = str(Path(__file__).resolve().parents[1])
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": root}
    )
    modules = found.stdout.split()
    assert "torch" not in modules
    ours = {name.split(".")[1] for name in modules if name.startswith("repa_eval.")}
    assert ours <= {"reports", "errors", "results", "registry", "plugin_files", "config", "runtime", "interfaces"}
    assert [name for name in modules if name.startswith("repa_eval.interfaces.")] == ["repa_eval.interfaces.section"]


def test_grids_have_the_names_of_their_rows_beside_them(page):
    features = page[page.index('<section id="features">') : page.index('<section id="samples">')]
    lists = re.findall(r"<ol [^>]*>(.*?)</ol>", features)
    assert len(lists) == 9
    assert re.findall(r"<li>(.*?)</li>", lists[0]) == list(sample.PCA_ROWS)
    assert features.count(sample.PCA_CAPTION) == 1
    last, earlier = features.split("<summary>Earlier steps</summary>")
    assert re.findall(r'alt="(.*?)"', last) == [f"pca of {run} at step 1500" for run in sample.FACTORS]
    assert re.findall(r'alt="(.*?)"', earlier)[:2] == ["pca of vanilla at step 500", "pca of vanilla at step 1000"]
    assert features.count('class="pixels"') == 9


def test_every_kind_of_grid_has_a_section():
    inputs = small(("vanilla",))
    media = {f"vanilla/{kind}-0000005.png": sample.tiles("vanilla", 5) for kind in ("pca", "neighbours")}
    media |= {"vanilla/neighbours-0000005.json": side(caption="nearest of all")}
    text = render(**inputs | {"media": media})
    assert [text.count(f'<section id="{anchor}">') for anchor in ("features", "neighbours", "samples")] == [1, 1, 0]
    nearest = text[text.index('<section id="neighbours">') :]
    assert nearest.index("nearest of all") < nearest.index("neighbours of vanilla at step 5")
    assert '<a href="#neighbours">Neighbours</a>' in text


def test_ways_between_snippets_have_a_section_of_their_own():
    inputs = small(("vanilla", "repa")) | {"media": sample.media("repa")}
    words = {
        "caption": "From snippet to snippet.",
        "rows": [f"{i} to {i + 1}" for i in range(8)],
        "columns": 8,
        "tile": 8,
    }
    for step in (5, 10):
        inputs["media"][f"repa/interpolation-{step:07d}.png"] = sample.tiles("repa", step)
        inputs["media"][f"repa/interpolation-{step:07d}.json"] = json.dumps(words).encode()
    text = render(**inputs)
    section = text[text.index('<section id="interpolations">') :].partition("</section>")[0]
    assert section.count("From snippet to snippet.") == 1
    assert re.findall(r'alt="(.*?)"', section) == [
        "interpolation of repa at step 10",
        "interpolation of repa at step 5",
    ]
    assert re.findall(r"<li>(.*?)</li>", section)[:8] == words["rows"]
    assert "conditioned on a snippet" in section
    assert '<a href="#interpolations">' in text
    assert "interpolation" not in text[text.index('<section id="features">') :].partition("</section>")[0]
    for name in list(inputs["media"]):
        if "interpolation" in name:
            del inputs["media"][name]
    without = render(**inputs)
    assert "interpolations" not in without
    assert '<section id="features">' in without
    inputs["media"] = {name: data for name, data in inputs["media"].items() if "/pca-" not in name}
    assert '<section id="features">' not in render(**inputs)


def side(**changes) -> bytes:
    return json.dumps({"caption": "c", "rows": sample.PCA_ROWS, "columns": 8, "tile": 8} | changes).encode()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (None, "missing, so the rows"),
        (b"{", "damaged"),
        (b"[1]", "damaged"),
        (b"null", "damaged"),
        (side(rows=None), "damaged"),
        (side(rows=["one"]), "does not fit its picture of 71 x 71: 1 x 8 tiles of 8 pixels"),
        (side(columns=9), "does not fit"),
        (side(tile=0), "does not fit"),
        (side(rows=list(range(8))), "does not fit"),
    ],
)
def test_a_grid_without_a_fitting_side_file_is_shown_without_names(data, why):
    inputs = small(("vanilla",))
    media = {"vanilla/pca-0000005.png": sample.tiles("vanilla", 5)}
    media |= {} if data is None else {"vanilla/pca-0000005.json": data}
    found, left = grids(media, arms_of(inputs["rows"], inputs["runs"]), 10**6, kinds=("pca",))
    assert found[0].steps[0].rows == ()
    assert [name for name, _ in left] == ["vanilla/pca-0000005.json"]
    assert why in left[0][1]
    text = render(**inputs | {"media": media})
    assert "pca of vanilla at step 5" in text
    assert "<ol" not in text


def test_grids_keep_to_their_room_and_their_runs():
    inputs = small(("vanilla",))
    media = sample.media("vanilla") | {
        "nobody/pca-0000005.png": sample.tiles("vanilla", 5),
        "vanilla/pca-0000001.png": b"x",
    }
    found, left = grids(media, arms_of(inputs["rows"], inputs["runs"]), 1, kinds=("pca",))
    assert [grid.picture.step for grid in found[0].steps] == [1500]
    assert dict(left) == {
        "nobody/pca": "the results name no such run",
        "vanilla/pca-0000001.png": "not a readable PNG",
        "pca of vanilla": "2 of 3 steps left out for size",
    }


def test_what_a_side_file_says_is_escaped():
    evil = "<img src=x>"
    inputs = small(("vanilla",))
    media = {"vanilla/pca-0000005.png": sample.tiles("vanilla", 5)}
    media["vanilla/pca-0000005.json"] = side(caption=evil, rows=[evil] * 8)
    text = render(**inputs | {"media": media})
    assert "<img src=x" not in text
    assert text.count("&lt;img src=x&gt;") == 9


def test_quality_against_the_probe_is_drawn_or_its_absence_explained(page):
    assert "<h4>fd_digits against probe_accuracy</h4>" in page
    assert "correlation along one curve is not evidence of causation" in page
    inputs = small(metrics=("fd_digits", "probe_accuracy"))
    rows = [row for row in inputs["rows"] if row.metric == "fd_digits" or row.step == 1500]
    text = render(**inputs | {"rows": rows})
    assert '<section id="against">' not in text
    assert "fd_digits against probe_accuracy</dt><dd>fewer than two steps have both" in text
    assert "<code>repa-eval sweep vanilla</code>" in text


def test_the_teachers_level_is_in_the_page(page):
    block = page[page.index("<summary>probe_accuracy") : page.index("<summary>knn_accuracy")]
    assert block.count("Dotted: the same probe on clean images, random-vit 0.86 and digits-vit 0.93.") == 3
    assert block.count(">digits-vit</text>") == 3
    assert "The same probe on a teacher&#39;s features of clean images: random-vit 0.86 and digits-vit 0.93." in page
    assert re.search(r'<details class="block" open><summary>probe_accuracy', page)


def test_three_seeds_stay_small_and_fold_what_repeats():
    runs = [arm + seed for seed in ("", "-s1", "-s2") for arm in sample.FACTORS]
    text = render(**sample.example(runs))
    assert len(text.encode()) < LIMIT
    assert "<h1>repa has lower fd_digits than vanilla at 45 of 45 evaluation points, mean ratio 0.853 (0.833 to" in text
    assert text.count("<summary>Further seeds</summary>") == 2
    assert '"arm":"repa, mean of 3 seeds"' in text
    assert "Maps are means over seeds" in text


# how far, in pixels, the name of a row stands from the middle of its row in the picture; a long name must not push
ROWS_OF_TILES = """() => {
    const table = document.querySelector(".tiles .table");
    const names = [...table.querySelectorAll("li")];
    names[1].textContent = "teacher with a name that needs two lines";
    const picture = table.querySelector("img").getBoundingClientRect();
    const middle = (box) => (box.top + box.bottom) / 2;
    return Math.max(...names.map((name, place) => Math.abs(
        middle(name.getBoundingClientRect()) - picture.top - (place + 0.5) * picture.height / names.length)));
}"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here (chromium, chromium-browser or google-chrome on PATH)")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield chromium
        chromium.close()


@pytest.mark.browser
def test_in_a_browser(browser, page, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab = browser.new_page(viewport={"width": 1280, "height": 800})
    complaints, requests = [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    tab.goto(file.as_uri())

    cell = tab.locator('[data-map="map1"] .cell').nth(11)  # block 3, t = 0.1 of repa
    before = cell.evaluate("node => getComputedStyle(node).fill")
    cell.scroll_into_view_if_needed()
    tab.evaluate(
        "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )  # scrolling hides the tip
    cell.hover()
    tip = tab.locator("#tip")
    assert tip.is_visible()
    assert tip.inner_text() == "cknna 0.39\nrepa, step 1500, block 3, t = 0.1"
    tab.locator("#step").focus()
    tab.keyboard.press("Home")
    assert tab.locator("#step-value").inner_text() == "500"
    assert cell.evaluate("node => getComputedStyle(node).fill") != before
    tab.mouse.move(0, 0)
    cell.hover()
    assert "step 500" in tip.inner_text()
    assert "0.39" not in tip.inner_text()

    for width, scheme in ((390, "light"), (390, "dark"), (320, "light")):
        tab.set_viewport_size({"width": width, "height": 844})
        tab.emulate_media(color_scheme=scheme)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(ROWS_OF_TILES) < 3
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert requests.count(file.as_uri()) == 1
    tab.close()


# --- pages that would be too large


def large(steps: int, runs: int = 2) -> list[Row]:
    cells = [(layer, t) for layer in range(1, 5) for t in (0.1, 0.3, 0.5, 0.9)]
    return [
        make_row(
            metric="cka", value=1 / (3 + step + layer + t), step=step, layer=layer, timestep=t, n=16, run=f"r{run}"
        )
        for run in range(runs)
        for step in range(steps)
        for layer, t in cells
    ]


def test_numbers_of_maps_are_thinned_as_far_as_needed():
    build = maps_section.build(prepare(large(64), [], {}, {}, {}, Metrics({})))
    data = build["data"]
    whole = len(json.dumps(data, separators=(",", ":")))
    seen = set()
    for room in (whole, int(0.8 * whole), whole // 2, whole // 5, whole // 10, 0):
        smaller, said = maps_section.shrink(data, room)
        size = len(json.dumps(smaller, separators=(",", ":")))
        assert size <= room or room == 0
        assert (smaller["steps"][0], smaller["steps"][-1]) == ("0", "63")
        for one, before in zip(smaller["maps"], data["maps"], strict=True):
            assert set(one["steps"]) == set(smaller["steps"])
            for step, values in one["steps"].items():
                assert values == pytest.approx(before["steps"][step], rel=0.05)
        seen.add((len(smaller["steps"]), said))
    assert len(seen) >= 4
    assert maps_section.shrink(data, whole)[1] == "shown with 5 digits; results.jsonl has all of them"


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(monkeypatch):
    rows = large(64)
    free = len(render(rows).encode())
    monkeypatch.setattr("repa_eval.reports.html.LIMIT", free - 8000)
    page = render(rows)
    assert len(page.encode()) <= free - 7500
    assert "numbers of Representations" in page
    assert re.search(r"shown with 3 digits at \d+ of 64 steps; results\.jsonl has all of them", page)
