"""Rows to frames, comparisons and sentences: numbers in, numbers and words out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import report_example as sample
from repa_eval.commands.shared.metric_words import metric_words
from repa_eval.reports.numbers.arms import Arm, arms_of
from repa_eval.reports.numbers.compare import compare, early, headline_panel, summary
from repa_eval.reports.numbers.differences import differences
from repa_eval.reports.numbers.frames import (
    SECONDS,
    Group,
    Level,
    binned,
    clock,
    extent,
    interpolate,
    is_curve_row,
    maps_of,
    mean_of,
    quality_panels,
)
from repa_eval.reports.numbers.levels import teacher_levels
from repa_eval.reports.numbers.pairs import spread
from repa_eval.reports.numbers.profiles import alignment_choice, best_over_time, over_layers, over_steps, trajectories
from repa_eval.reports.numbers.protocols import difference, families, flat
from repa_eval.reports.numbers.time_to_reach import crossing, time_to_reach
from repa_eval.reports.numbers.words import Metrics, number, rank
from repa_eval.reports.sections.final_values import final_table
from repa_eval.reports.sections.missing import missing
from repa_eval.reports.sections.remarks import remarks
from repa_eval.reports.sections.shared.control import introduction
from repa_eval.reports.sections.summary import Summary
from repa_eval.reports.sections.summary import summarise as summary_of
from repa_eval.results import Row, make_row

SEEDS = ("vanilla", "repa", "repa-random", "vanilla-s1", "repa-s1")


METRICS = Metrics(metric_words())


def summarise(inputs) -> Summary:
    return summary_of(sample.page(inputs))


def words(summary: Summary) -> str:
    return " ".join([summary.lead, *(item.text for item in summary.items)])


def scaled(inputs, run: str, factor: float, metric: str = "fd_digits"):
    rows = [
        replace(row, value=row.value * factor) if row.run == run and row.metric == metric and row.value else row
        for row in inputs["rows"]
    ]
    return inputs | {"rows": rows}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.852, "0.852"),
        (0.0921, "0.0921"),
        (9.93, "9.93"),
        (1.0, "1.00"),
        (38.44, "38.4"),
        (1500, "1500"),
        (0, "0"),
        (None, "—"),
        (-0.5, "-0.5"),
        (3e-9, "3.00e-09"),
    ],
)
def test_numbers_are_written_as_people_write_them(value, text):
    assert number(value) == text


def test_words_know_metrics_of_any_extractor():
    assert METRICS.direction("fd_someone_else") == "lower"
    assert METRICS.direction("precision_clip") == "higher"
    assert METRICS.direction("proj_loss") == "lower"
    assert METRICS.direction("cknna") is None
    assert "Fréchet" in METRICS.meaning("fd_dinov2")
    assert METRICS.meaning("nobody_knows") == ""
    assert sorted(["zeta", "precision", "fid", "fd_digits"], key=rank) == ["fid", "fd_digits", "precision", "zeta"]


def test_arms_join_seeds_and_name_roles():
    inputs = sample.example(SEEDS)
    arms = arms_of(inputs["rows"], inputs["runs"])
    assert [(arm.name, arm.role, arm.runs) for arm in arms] == [
        ("vanilla", "baseline", ("vanilla", "vanilla-s1")),
        ("repa", "treated", ("repa", "repa-s1")),
        ("repa-random", "control", ("repa-random",)),
    ]
    assert len({arm.colour for arm in arms}) == 3


def test_a_name_that_only_looks_like_a_seed_stays_a_run():
    rows = [Row(run="wide-s2", step=1, metric="fid", value=1.0)]
    assert [arm.name for arm in arms_of(rows, {})] == ["wide-s2"]


def test_no_panel_mixes_protocols():
    inputs = sample.example()
    rows = inputs["rows"]
    panels = quality_panels(rows, arms_of(rows, inputs["runs"]), METRICS)
    assert {panel.group.metric for panel in panels} == {
        "fd_digits",
        "is_digits",
        "precision_digits",
        "recall_digits",
        "fd_pixel_pca",
    }
    assert {panel.group.n for panel in panels} == {512}
    for panel in panels:
        for curve in panel.curves:
            expected = {
                (row.step, row.value)
                for row in rows
                if row.run in curve.arm.runs
                and row.metric == panel.group.metric
                and row.protocol == panel.group.protocol
            }
            assert set(curve.mean) == expected
    assert panels[0].levels == (Level(0.45, "real images", 512),)


def test_a_level_measured_with_another_count_is_not_drawn():
    inputs = sample.example(("vanilla",))
    rows = [replace(row, n=2000) if row.metric.endswith("_floor") else row for row in inputs["rows"]]
    assert all(panel.levels == () for panel in quality_panels(rows, arms_of(rows, inputs["runs"]), METRICS))


def test_difference_names_the_fields():
    records = sample.protocols()
    few, many = (sample.protocol_hash(record) for record in (sample.FREQUENT, sample.FINAL))
    assert difference([few, many], records) == "num_samples (512 or 2000) and num_steps (16 or 25)"
    assert "missing" in difference([few, "0" * 12], records)
    assert flat({"a": {"b": [1, 2]}, "c": None}) == {"a.b": "1, 2", "c": "null"}


def test_families_separate_shared_and_differing_fields():
    inputs = sample.example()
    found = {family.kind: family for family in families(inputs["rows"], inputs["protocols"])}
    assert found["sample quality"].fields == ("extractor", "extractor_weights", "num_samples", "num_steps")
    assert ("sampler", "ode-euler") in found["sample quality"].shared
    assert "teacher" in found["alignment"].fields


def test_interpolation_and_crossing():
    points = ((0.0, 4.0), (10.0, 2.0), (20.0, 3.0), (30.0, 1.0))
    assert interpolate(points, 5) == 3.0
    assert interpolate(points, 30) == 1.0
    assert interpolate(points, 31) is None
    assert crossing(points, 3.0, lower=True) == 5.0
    assert crossing(points, 0.5, lower=True) is None
    assert crossing(points, 4.0, lower=True) == 0.0
    assert mean_of([((1, 2.0), (2, 4.0)), ((2, 6.0), (3, 1.0))]) == ((2, 5.0),)
    assert len(binned(tuple((float(x), 1.0) for x in range(1001)), 100)) <= 100


def test_a_clock_that_runs_backwards_is_no_clock():
    rows = [Row(run="a", step=step, metric=SECONDS, value=value) for step, value in ((1, 1.0), (2, 0.5))]
    assert clock(rows, "a") == ()
    assert clock(rows[:1], "a") == ((1.0, 1.0),)


def test_compare_and_reach_give_the_numbers_of_the_formula():
    inputs = sample.example()
    rows = inputs["rows"]
    arms = {arm.name: arm for arm in arms_of(rows, inputs["runs"])}
    panel = headline_panel(quality_panels(rows, list(arms.values()), METRICS))
    assert panel is not None
    assert panel.group.metric == "fd_digits"
    result = compare(panel, rows, arms["repa"], arms["vanilla"])
    assert result is not None
    assert (result.points, result.better, result.seeds, result.lasting) == (15, 15, 1, 100)
    assert result.ratio == pytest.approx(0.85)
    timing = [row for row in inputs["curves"] if row.metric == SECONDS]
    arrival = time_to_reach(panel, rows, timing, arms["repa"], arms["vanilla"])
    assert arrival is not None
    assert arrival.step is not None
    assert 1000 < arrival.step < 1100
    assert arrival.seconds == (pytest.approx(arrival.step * 0.035), pytest.approx(46.5))


def test_the_summary_of_the_demo():
    text = words(summarise(sample.example()))
    assert "repa has lower fd_digits than vanilla at 15 of 15 evaluation points, mean ratio 0.85." in text
    assert "first reaches vanilla's final value (1.03) at step 1098 of 1500, 1.37 times earlier in steps" in text
    assert "1.21 times earlier in training seconds" in text
    assert "With 2000 samples: 0.742 and 0.873 (15 % lower)." in text
    assert "aligned to a frozen teacher with random weights" in text
    assert "cannot be attributed to what its teacher learned" in text
    assert "cknna with digits-vit at block 3, t = 0.1" in text
    assert "repa 0.39, repa-random 0.12, vanilla 0.083" in text
    assert "One training seed per model" in text
    assert "over 2 seeds" not in text
    assert "In brackets" not in text
    assert "not comparable with a published FID" in text


@pytest.mark.parametrize(
    ("factor", "expected", "absent"),
    [
        (1.0, "cannot be attributed", "does not explain that gain away"),
        (1.13, "of repa's gain (in log ratio)", "cannot be attributed"),
        (1.22, "does not explain that gain away", "cannot be attributed"),
    ],
)
def test_the_control_sentence_follows_the_numbers(factor, expected, absent):
    text = words(summarise(scaled(sample.example(), "repa-random", factor)))
    assert expected in text
    assert absent not in text


def test_a_worse_run_is_called_worse():
    text = words(summarise(scaled(sample.example(), "repa", 1.5)))
    assert "repa is worse than vanilla: its fd_digits is higher at 15 of 15 evaluation points, mean ratio 1.27." in text
    assert "repa does not reach vanilla's final value" in text
    assert "no gain in fd_digits that would need an explanation" in text
    assert "cannot be attributed" not in text


def test_equal_runs_are_no_difference():
    text = words(summarise(scaled(sample.example(("vanilla", "repa")), "repa", 1 / 0.85)))
    assert "No clear difference in fd_digits" in text
    assert "Control" not in text


def test_a_run_that_overtakes_late_says_from_when():
    inputs = sample.example(("vanilla", "repa"))
    rows = [
        replace(row, value=row.value * 2)
        if row.run == "repa" and row.metric == "fd_digits" and row.step is not None and row.step < 700
        else row
        for row in inputs["rows"]
    ]
    text = words(summarise(inputs | {"rows": rows}))
    assert "repa is better at every evaluation from step 700 on." in text
    assert "at 9 of 15" in text


def test_seeds_are_compared_in_pairs():
    text = words(summarise(sample.example(SEEDS)))
    assert "at 30 of 30 evaluation points, mean ratio 0.863 (0.850 to 0.875 over 2 seeds)." in text
    assert "Over steps 200 to 1000 alone: mean ratio 0.863 (0.850 to 0.875 over 2 seeds)." in text
    assert "repa in 2 pairs (mean ratios 0.85, 0.875); repa-random in 1 pair (mean ratios 0.82)" in text


def test_one_run_alone_is_not_compared():
    text = words(summarise(sample.example(("repa",))))
    assert "Only one run, so nothing is compared." in text
    assert "than" not in summarise(sample.example(("repa",))).lead


def test_runs_without_a_baseline_are_not_compared():
    assert "No comparison with a baseline" in summarise(sample.example(("repa", "repa-random"))).lead


def test_different_protocols_are_not_compared():
    inputs = sample.example(("vanilla", "repa"))
    guided = sample.FREQUENT | {"cfg_scale": 1.5}
    digest = sample.protocol_hash(guided)
    rows = [
        replace(row, protocol=digest) if row.run == "repa" and row.metric == "fd_digits" and row.n == 512 else row
        for row in inputs["rows"]
        if row.n != 2000 and row.metric in ("fd_digits", "fd_digits_floor")
    ]
    text = words(summarise(inputs | {"rows": rows, "protocols": inputs["protocols"] | {digest: guided}}))
    assert "their protocols differ in cfg_scale (1.0 or 1.5)" in text
    assert "mean ratio" not in text


def test_maps_hold_every_cell_and_share_a_scale():
    inputs = sample.example()
    arms = arms_of(inputs["rows"], inputs["runs"])
    maps = maps_of(inputs["rows"], arms)
    assert [one.arm.name for one in maps if one.group.metric == "cknna"].count("repa-random") == 2
    repa = next(one for one in maps if one.arm.name == "repa" and one.group.metric == "cknna")
    assert (repa.layers, repa.timesteps, tuple(repa.values)) == (sample.LAYERS, sample.TIMES, sample.MAP_STEPS)
    assert repa.at(1500, 3, 0.1) == pytest.approx(0.39)
    assert repa.at(1400, 3, 0.1) is None
    assert extent([repa])[0] == 0
    assert over_steps([repa], 3, 0.1).curves[0].mean[-1] == (1500, pytest.approx(0.39))
    assert max(over_layers([repa], 0.1).curves[0].mean, key=lambda point: point[1])[0] == 3


def test_the_alignment_sentence_favours_no_arm():
    inputs = sample.example()
    arms = arms_of(inputs["rows"], inputs["runs"])
    chosen = alignment_choice(maps_of(inputs["rows"], arms), arms)
    assert chosen is not None
    assert (chosen[1], chosen[2]) == (3, 0.1)
    assert {one.arm.name for one in chosen[0]} == {"vanilla", "repa", "repa-random"}


def test_final_values_mark_the_best_and_give_reasons():
    inputs = sample.example(("vanilla", "repa"))
    rows = [row for row in inputs["rows"] if not (row.run == "repa" and row.metric == "is_digits")]
    note = "value is nan"
    rows = [
        replace(row, value=None, note=note)
        if row.run == "repa" and row.metric == "recall_digits" and row.n == 2000
        else row
        for row in rows
    ]
    arms = arms_of(rows, inputs["runs"])
    lines = {(line.metric, line.n): line for line in final_table(rows, arms, inputs["curves"], METRICS)}
    vanilla, repa = lines["fd_digits", 2000].cells
    assert (repa.best, repa.detail, vanilla.detail) == (True, "\N{MINUS SIGN}15.0 %", "")
    assert lines["is_digits", 512].cells[1].reason == "not measured"
    assert lines["recall_digits", 2000].cells[1].reason == note
    assert lines[SECONDS, None].cells[0].text == "46.5"
    found = {gap.what: gap for gap in missing(rows, inputs["curves"], arms, inputs["runs"])}
    assert (found["is_digits"].why, found["is_digits"].command) == ("no rows for repa", "repa-eval sweep repa")
    assert (found["recall_digits of repa at step 1500"].why, found["recall_digits of repa at step 1500"].command) == (
        note,
        "",
    )


def test_what_has_no_better_is_not_put_in_per_cent():
    inputs = sample.example(("vanilla", "repa"))
    rows = [replace(row, metric="ct_digits") if row.metric == "is_digits" else row for row in inputs["rows"]]
    arms = arms_of(rows, inputs["runs"])
    lines = {(line.metric, line.n): line for line in final_table(rows, arms, inputs["curves"], METRICS)}
    assert [(cell.best, "%" in cell.detail) for cell in lines["ct_digits", 512].cells] == [(False, False)] * 2
    assert "%" in lines["fd_digits", 512].cells[1].detail


def test_seeds_in_the_final_table_have_a_spread():
    inputs = sample.example(SEEDS)
    arms = arms_of(inputs["rows"], inputs["runs"])
    line = final_table(inputs["rows"], arms, inputs["curves"], METRICS)[0]
    assert "over 2 seeds" in line.cells[0].detail
    assert "over" not in line.cells[2].detail


def test_nan_rows_leave_gaps_not_crashes():
    rows = [make_row(run="a", method="vanilla", step=step, metric="fid", value=math.nan) for step in (1, 2)]
    arms = arms_of(rows, {})
    assert quality_panels(rows, arms, METRICS) == []
    assert final_table(rows, arms, [], METRICS)[0].cells[0].reason == "value is nan"
    assert {gap.what: gap.why for gap in missing(rows, [], arms, {})}["fid of a at 2 steps"] == "value is nan"
    assert Group.of(rows[0]).metric == "fid"
    assert is_curve_row(rows[0])


def test_many_arms_share_one_sentence_and_keep_their_items():
    inputs = sample.example(("vanilla",))
    for name, factor in (("repa", 0.8), ("haste", 0.9), ("reg", 1.2)):
        own = [
            replace(row, run=name, method=name, value=(row.value or 0) * factor)
            for row in sample.quality_rows("vanilla")
        ]
        inputs["rows"] += own
    summary = summarise(inputs)
    assert summary.lead == "Compared with vanilla in fd_digits: better: repa and haste; worse: reg."
    assert "haste: by how much" in [item.label for item in summary.items]


def test_remarks_are_counted_and_the_control_is_introduced_in_its_own_words():
    rows = [Row(run="a", metric="fid", step=step, value=1.0, note="n is small") for step in (1, 2)]
    assert remarks(rows) == [("fid, 2 values", "n is small")]
    arm = Arm("repa-random", "control", ("repa-random",), "k1", description="the control of repa, random weights")
    assert introduction(arm) == "repa-random is the control of repa, random weights."
    assert introduction(replace(arm, description="")) == "repa-random is the control."


THREE = tuple(arm + seed for seed in ("", "-s1", "-s2") for arm in ("vanilla", "repa", "repa-random"))


def framed(runs=THREE):
    inputs = sample.example(runs)
    arms = arms_of(inputs["rows"], inputs["runs"])
    return inputs, arms, maps_of(inputs["rows"], arms)


def test_spread_is_mean_range_and_sample_deviation():
    found = spread([1.0, 2.0, 4.0])
    assert found is not None
    assert (found.low, found.high, found.seeds) == (1.0, 4.0, 3)
    assert found.mean == pytest.approx(7 / 3)
    assert found.sd == pytest.approx(math.sqrt(7 / 3))
    ratios = spread([1.0, 2.0, 4.0], geometric=True)
    assert ratios is not None
    assert ratios.mean == pytest.approx(2.0)
    alone = spread([0.5])
    assert alone is not None
    assert alone.sd is None
    assert spread([]) is None


def test_three_seeds_give_ranges_in_the_words():
    inputs = sample.example(THREE)
    text = words(summarise(inputs))
    assert "at 45 of 45 evaluation points, mean ratio 0.853 (0.833 to 0.875 over 3 seeds)." in text
    assert "at step 1107 of 1500 on average, 1.36 times earlier in steps" in text
    assert "That is at 0.738 ± 0.025 of vanilla's steps (3 seeds)." in text
    assert (
        "repa 0.37 (0.35 to 0.39), repa-random 0.10 (0.080 to 0.12), vanilla 0.083. In brackets: range over 3 seeds"
        in text
    )
    assert "One training seed" not in text


def test_a_seed_that_never_arrives_is_counted_and_has_no_share():
    inputs = scaled(sample.example(THREE), "repa-s2", 3.0)
    text = words(summarise(inputs))
    assert "repa does not reach vanilla's final value (1.05) within its run in 1 of 3 seeds." in text
    assert "±" not in text
    lines = {
        (line["quantity"], line["treated"]): line
        for line in summary(inputs["rows"], inputs["curves"], inputs["runs"], METRICS)
    }
    line = lines["steps to the baseline's last fd_digits, as a share of its steps, n = 512", "repa"]
    assert (line["value"], line["low"], line["high"], line["seeds"]) == (None, None, None, 3)


def test_the_restricted_ratio_sees_only_its_steps_and_wants_three():
    inputs = sample.example(("vanilla", "repa"))
    rows = [
        replace(row, value=row.value * 2)
        if row.run == "repa" and row.metric == "fd_digits" and row.step > 1000
        else row
        for row in inputs["rows"]
    ]
    vanilla, repa = arms_of(rows, inputs["runs"])
    panel = headline_panel(quality_panels(rows, [vanilla, repa], METRICS))
    assert panel is not None
    found = early(panel, rows, repa, vanilla)
    assert found is not None
    assert (found.points, found.ratio) == (9, pytest.approx(0.85))
    whole = compare(panel, rows, repa, vanilla)
    assert whole is not None
    assert whole.ratio == pytest.approx(0.85 * 2 ** (5 / 15))
    for steps, enough in (((100, 200, 600, 1000), True), ((100, 600, 1000, 1100), False)):
        few = [row for row in rows if row.step in steps]
        assert (early(panel, few, repa, vanilla) is not None) == enough


def test_ends_are_means_at_a_step_that_all_seeds_have():
    inputs = sample.example(THREE)
    rows = [row for row in inputs["rows"] if not (row.run == "repa-s1" and (row.step or 0) > 700)]
    arms = {arm.name: arm for arm in arms_of(rows, inputs["runs"])}
    panel = headline_panel(quality_panels(rows, list(arms.values()), METRICS))
    assert panel is not None
    result = compare(panel, rows, arms["repa"], arms["vanilla"])
    assert result is not None
    assert result.last[0] == 700
    assert result.last[2] == pytest.approx(1.02 * sample.distance("vanilla", 700))
    assert result.fewest == 7


def test_differences_are_means_over_small_timesteps_in_pairs():
    _, arms, maps = framed()
    vanilla, repa, _ = arms
    found = {one.group.metric: one for one in differences(maps, repa, vanilla, 3)}
    assert set(found) == {"cknna", "cka", "mutual_knn", "probe_accuracy", "knn_accuracy"}
    probe = found["probe_accuracy"]
    assert probe.timesteps == (0.05, 0.1, 0.3)
    expected = [
        sum(
            sample.accuracy(f"repa{seed}", "probe_accuracy", 1500, 3, t)
            - sample.accuracy(f"vanilla{seed}", "probe_accuracy", 1500, 3, t)
            for t in (0.05, 0.1, 0.3)
        )
        / 3
        for seed in ("", "-s1", "-s2")
    ]
    assert probe.gain.mean == pytest.approx(sum(expected) / 3)
    assert probe.gain.seeds == 3
    assert found["cknna"].gain.low < found["cknna"].gain.high
    assert differences(maps, repa, vanilla, 99) == []


def test_differences_use_the_last_step_that_both_have():
    inputs, arms, _ = framed(("vanilla", "repa"))
    rows = [row for row in inputs["rows"] if not (row.run == "vanilla" and row.step == 1500 and row.layer)]
    vanilla, repa = arms
    (one,) = [one for one in differences(maps_of(rows, arms), repa, vanilla, 3) if one.group.metric == "probe_accuracy"]
    times = (0.05, 0.1, 0.3)
    assert one.own[0] == pytest.approx(sum(sample.accuracy("repa", "probe_accuracy", 1000, 3, t) for t in times) / 3)


def test_the_summary_table_has_the_numbers_of_the_sentences():
    inputs = sample.example(THREE)
    lines = summary(inputs["rows"], inputs["curves"], inputs["runs"], METRICS)
    keys = {"quantity", "kind", "baseline", "treated", "value", "low", "high", "sd", "seeds", "baseline_value",
            "treated_value", "protocol"}  # fmt: skip
    assert all(set(line) == keys for line in lines)
    assert {line["baseline"] for line in lines} == {"vanilla"}
    assert {line["treated"] for line in lines} == {"repa", "repa-random"}
    repa = {line["quantity"]: line for line in lines if line["treated"] == "repa"}
    for name in ("mean ratio of fd_digits, n = 512", "mean ratio of fd_digits, steps 200 to 1000, n = 512"):
        assert [round(repa[name][key], 3) for key in ("value", "low", "high")] == [0.853, 0.833, 0.875]
    share = repa["steps to the baseline's last fd_digits, as a share of its steps, n = 512"]
    assert (round(share["value"], 3), round(share["sd"], 3), share["seeds"]) == (0.738, 0.025, 3)
    seconds = repa["training seconds to the baseline's last fd_digits, as a share of its training seconds, n = 512"]
    assert seconds["value"] == pytest.approx(share["value"] * 35 / 31)
    end = repa["fd_digits at step 1500, n = 2000"]
    assert end["kind"] == "ratio"
    assert end["treated_value"] / end["baseline_value"] == pytest.approx(end["value"], rel=1e-3)
    precision = repa["precision_digits at step 1500, n = 512"]
    assert precision["kind"] == "difference"
    assert precision["value"] == pytest.approx(precision["treated_value"] - precision["baseline_value"])
    assert repa["probe_accuracy at block 3, mean over t = 0.05, 0.1, 0.3, n = 600"]["value"] > 0.05
    assert not any("recall_digits_floor" in line["quantity"] or "teacher" in line["quantity"] for line in lines)


def test_the_summary_table_of_one_seed_says_one_seed():
    inputs = sample.example(("vanilla", "repa"))
    lines = summary(inputs["rows"], inputs["curves"], inputs["runs"], METRICS)
    assert {line["seeds"] for line in lines} == {1}
    assert {line["sd"] for line in lines} == {None}
    assert summary(*(sample.example(("repa",))[name] for name in ("rows", "curves", "runs")), METRICS) == []


def probe_group(maps, metric="probe_accuracy"):
    return next(one.group for one in maps if one.group.metric == metric)


def test_a_teachers_level_needs_the_same_n_and_the_same_recipe():
    inputs, _, maps = framed(("repa",))
    group = probe_group(maps)
    found = teacher_levels(inputs["rows"], group, inputs["protocols"])
    assert [(level.label, level.value) for level in found] == [("random-vit", 0.86), ("digits-vit", 0.93)]
    assert teacher_levels(sample.teacher_rows(n=100), group, inputs["protocols"]) == ()
    other = sample.probe("teacher digits-vit", linear="logistic")
    row = make_row(metric="probe_accuracy_teacher", value=0.9, n=600, protocol=other)
    records = inputs["protocols"] | {row.protocol: other}
    assert teacher_levels([row], group, records) == ()
    assert teacher_levels([row], probe_group(maps, "knn_accuracy"), records) == ()


def test_a_teachers_level_is_no_curve_of_a_run():
    row = Row(run="a", metric="probe_accuracy_teacher", step=5, value=0.9, n=600)
    assert not is_curve_row(row)
    assert arms_of([replace(row, run=None, step=None)], {}) == []


def test_profiles_have_a_line_for_every_seed_and_their_mean():
    _, _, maps = framed()
    members = [one for one in maps if one.group.metric == "probe_accuracy"]
    for panel in (over_layers(members, 0.1), over_steps(members, 3, 0.1), best_over_time(members)):
        repa = next(curve for curve in panel.curves if curve.arm.name == "repa")
        assert len(repa.seeds) == 3
        assert repa.mean == mean_of(repa.seeds)
    end = over_steps(members, 3, 0.1).curves[1].seeds
    assert [seed[-1][1] for seed in end] == pytest.approx([0.86, 0.85, 0.84])


def test_quality_is_paired_with_a_probe_at_equal_steps():
    inputs, _, maps = framed(("vanilla", "repa", "vanilla-s1"))
    rows = [row for row in inputs["rows"] if not (row.run == "repa" and row.step == 1000)]
    members = [one for one in maps if one.group.metric == "probe_accuracy"]
    group = Group.of(next(row for row in rows if row.metric == "fd_digits" and row.n == 512))
    vanilla, repa = trajectories(members, 3, 0.1, rows, group)
    assert (vanilla.steps, repa.steps) == ((500, 1000, 1500), (500, 1500))
    assert (len(vanilla.seeds), len(repa.seeds)) == (2, 1)
    assert repa.mean[-1] == (pytest.approx(0.86), pytest.approx(sample.distance("repa", 1500)))
    assert vanilla.mean[0][1] == pytest.approx(1.01 * sample.distance("vanilla", 500))
    assert trajectories(members, 3, 0.1, rows, replace(group, n=7)) == []


def test_what_is_missing_names_its_command():
    inputs, arms, _ = framed(("vanilla", "repa"))
    rows = [row for row in inputs["rows"] if not row.metric.startswith(("probe_accuracy", "knn_accuracy_teacher"))]
    rows = [row for row in rows if not (row.run == "vanilla" and row.metric == "cka")]
    runs = inputs["runs"] | {"repa": inputs["runs"]["repa"] | {"status": "running"}}
    found = {gap.what: gap for gap in missing(rows, [], arms, runs, records=inputs["protocols"], media=inputs["media"])}
    commands = {what: gap.command for what, gap in found.items()}
    assert commands == {
        "run repa": "repa-train --recipe repa/recipe.yaml --out repa --resume",
        "cka": "repa-eval align --ckpt vanilla/checkpoints/0001500.pt --metrics cka --teacher digits-vit "
        "--layers all --rows vanilla/results.jsonl",
        "probe_accuracy": "repa-eval probe --ckpt vanilla/checkpoints/0001500.pt --teacher digits-vit "
        "--layers all --rows vanilla/results.jsonl",
        "knn_accuracy of the teacher": "repa-eval probe --ckpt vanilla/checkpoints/0001500.pt --teacher digits-vit "
        "--layers all --rows vanilla/results.jsonl",
        "training seconds of vanilla": "repa-train --recipe vanilla/recipe.yaml --out vanilla-again",
        "training seconds of repa": "repa-train --recipe repa/recipe.yaml --out repa-again",
        "training curves": "repa-train --recipe vanilla/recipe.yaml --out vanilla-again",
    }
    assert found["probe_accuracy"].others == "repa"
    nothing = {gap.what: gap.command for gap in missing(rows, [], arms, runs)}
    assert nothing["principal components of the tokens"] == "repa-eval sweep vanilla --teacher digits-vit"
    assert nothing["samples along training"] == "repa-eval sweep vanilla"


@pytest.mark.parametrize(("metric", "kind"), [("linear_bn_accuracy", "linear-bn"), ("logistic_accuracy", "logistic")])
def test_a_missing_further_probe_names_its_kind(metric, kind):
    inputs, arms, _ = framed(("vanilla", "repa"))
    [one, *_] = [row for row in inputs["rows"] if row.metric == "probe_accuracy" and row.run == "repa"]
    rows = [*inputs["rows"], replace(one, metric=metric)]
    [gap] = [gap for gap in missing(rows, inputs["curves"], arms, inputs["runs"]) if gap.what == metric]
    assert gap.command.startswith(f"repa-eval probe --ckpt vanilla/checkpoints/0001500.pt --kinds {kind} ")


def test_a_level_measured_otherwise_is_missing_with_that_reason():
    inputs, arms, _ = framed(("repa",))
    rows = [replace(row, n=100) if row.metric.endswith("_teacher") else row for row in inputs["rows"]]
    found = {
        gap.what: gap.why for gap in missing(rows, inputs["curves"], arms, inputs["runs"], records=inputs["protocols"])
    }
    assert "other images or another recipe" in found["probe_accuracy of the teacher"]


def test_names_of_runs_are_quoted_in_commands():
    rows = [Row(run="my run; rm x", metric="fid", step=step, value=1.0) for step in (1, 2)]
    commands = [gap.command for gap in missing(rows, [], arms_of(rows, {}), {})]
    assert "repa-eval sweep 'my run; rm x'" in commands
    assert all("rm x'" in command or "rm x/" in command for command in commands if command)


def test_nothing_is_missing_where_everything_is_there():
    inputs, arms, _ = framed(("vanilla", "repa"))
    assert (
        missing(
            inputs["rows"], inputs["curves"], arms, inputs["runs"], records=inputs["protocols"], media=inputs["media"]
        )
        == []
    )


def test_a_run_that_has_its_teacher_needs_no_option_for_it():
    inputs, arms, _ = framed(("vanilla", "repa", "repa-random"))
    for run, option in (("repa", ""), ("repa-random", " --teacher digits-vit"), ("vanilla", " --teacher digits-vit")):
        media = [name for name in inputs["media"] if not name.startswith(f"{run}/pca")]
        gaps = missing(inputs["rows"], inputs["curves"], arms, inputs["runs"], records=inputs["protocols"], media=media)
        assert [gap.command for gap in gaps] == [f"repa-eval sweep {run}{option}"]


# --- weights without a recorded step


def released(**columns: object) -> list[Row]:
    """Rows of an `align` of weights without a step: no run where the file names none."""
    return [
        make_row(metric="cka", value=layer / 10 + time, layer=layer, timestep=time, n=16, **columns)
        for layer in (1, 2)
        for time in (0.1, 0.5)
    ]


@pytest.mark.parametrize("run", [None, "released"])
def test_rows_without_a_step_are_a_map_of_their_own(run: str | None) -> None:
    rows = released(run=run)
    [frame] = maps_of(rows, arms_of(rows, {}))
    assert (frame.last, frame.steps, list(frame.values)) == (None, (), [None])
    assert frame.values[None] == ((0.2, 0.6), (0.30000000000000004, 0.7))
    assert frame.at(None, 2, 0.5) == 0.7
    assert frame.at(0, 2, 0.5) is None


def test_what_has_no_step_stands_beside_recorded_steps() -> None:
    rows = released(run="a") + [
        replace(row, step=step, value=step / 1000) for step in (0, 200) for row in released(run="a")
    ]
    [frame] = maps_of(rows, arms_of(rows, {}))
    assert (frame.last, frame.steps, list(frame.values)) == (200, (0, 200), [None, 0, 200])
    panel = over_steps([frame], 1, 0.1)
    assert [x for x, _ in panel.curves[0].mean] == [0.0, 200.0]


def test_a_level_of_no_run_is_no_arm() -> None:
    rows = [make_row(metric="fd_digits_floor", value=1.0, n=16), make_row(metric="cka_teachers", value=0.5, run="a")]
    assert [arm.name for arm in arms_of(rows, {})] == ["a"]
    assert not any(map(is_curve_row, rows))


def test_sample_quality_without_a_step_is_a_final_value() -> None:
    def quality(run: str, step: int | None, value: float, metric: str = "fd_digits") -> Row:
        return make_row(metric=metric, value=value, run=run, step=step, n=16)

    rows = [
        quality("a", 100, 3.0),
        quality("a", 200, 2.0),
        quality("b", None, 1.0),
        quality("a", None, 9.0, "is_digits"),
    ]
    arms = arms_of(rows, {})
    lines = {line.metric: line for line in final_table(rows, arms, [], METRICS)}
    cells = dict(zip((arm.name for arm in arms), lines["fd_digits"].cells, strict=True))
    assert {name: cell.value for name, cell in cells.items()} == {"a": 2.0, "b": 1.0}
    assert (cells["a"].detail, cells["b"].detail) == ("", "no step")
    assert [(cell.value, cell.detail) for cell in lines["is_digits"].cells] == [(9.0, "no step"), (None, "")]
