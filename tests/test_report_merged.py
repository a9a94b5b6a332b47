"""The section on merged encoders: rows of `repa-eval reparam` in, sentences, a table and pictures out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from repa_eval.reports.html import render
from repa_eval.reports.numbers.merged import merges
from repa_eval.reports.numbers.words import MINUS
from repa_eval.results import Row, make_row, protocol_hash, records_of

MERGE = {"kind": "merge", "idle_ratio": 0.75}
SPEED = {**MERGE, "threads": 1, "device": "cpu", "batch_size": 4, "original": "small-vit"}
VALUES: dict[str, tuple[float, dict[str, Any]]] = {
    "merge_difference_random": (2.5e-7, MERGE),
    "merge_difference_real": (3.5e-7, MERGE),
    "num_parameters_training": (252_000, MERGE),
    "num_parameters_merged": (159_000, MERGE),
    "ms_per_image_original": (0.54, SPEED),
    "ms_per_image_training": (0.6, SPEED),
    "ms_per_image_merged": (0.36, SPEED),
    "speedup": (1.5, SPEED),
    "speedup_training": (1.67, SPEED),
    "probe_accuracy_original": (0.932, {"kind": "probe", "features": "teacher small-vit"}),
    "probe_accuracy_merged": (0.921, {"kind": "probe", "features": "teacher merged"}),
    "knn_accuracy_original": (0.903, {"kind": "probe", "probe": "knn", "features": "teacher small-vit"}),
    "knn_accuracy_merged": (0.907, {"kind": "probe", "probe": "knn", "features": "teacher merged"}),
}


def rows(**changes: float) -> list[Row]:
    shared: dict[str, Any] = {"run": "cheap", "method": "repavit", "step": 1500, "weights": "ema"}
    found = [
        make_row(metric=metric, value=changes.get(metric, value), protocol=record, n=7, **shared)
        for metric, (value, record) in VALUES.items()
    ]
    likeness = {**MERGE, "pooling": "token mean"}
    for metric, values in {"cknna_merged": (0.9, 0.94), "cka_merged": (0.99, 0.998)}.items():
        cells = enumerate(values, 1)
        found += [make_row(metric=metric, value=v, layer=i, n=600, protocol=likeness, **shared) for i, v in cells]
    return found


def section(page: str) -> str:
    return page.partition('<section id="merged">')[2].partition("</section>")[0]


def test_the_section_says_what_was_kept_saved_and_lost() -> None:
    found = rows()
    text = section(render(found, protocols=records_of(found), runs={"cheap": {"method": "repavit"}}))
    for part in (
        "relative difference 3.5e-07",
        "1.50 times the speed of small-vit and 1.67 times the speed of the training form",
        f"linear probe 0.921 for 0.932 ({MINUS}1.1 points)",
        "k-NN 0.907 for 0.903 (+0.4 points)",
        "0.25 M",
        "cpu, 1 thread, batch 4, original: small-vit",
        "of 600 unseen images",
    ):
        assert part in text, part
    assert text.count("<svg") == 2
    assert "CKNNA" in text


def test_the_page_begins_with_the_trade() -> None:
    found = rows()
    page = render(found, protocols=records_of(found), runs={"cheap": {"method": "repavit"}})
    assert re.search(r"<h1>cheap, merged: 1\.50 times the speed of small-vit .* On unseen images: linear", page)
    other = make_row(metric="fid", value=3.0, step=1, run="a", protocol={"kind": "quality"})
    page = render([*found, other], protocols=records_of([*found, other]))
    assert "<h1>cheap, merged" not in page  # there is more in it


def test_nothing_is_said_where_nothing_was_merged() -> None:
    found = [make_row(metric="fid", value=3.0, step=1, run="a", protocol={"kind": "quality"})]
    page = render(found, protocols=records_of(found))
    assert 'id="merged"' not in page
    assert "#merged" not in page


def test_a_merged_encoder_is_asked_for_nothing_that_it_cannot_have() -> None:
    found = rows()
    page = render(found, protocols=records_of(found), runs={"cheap": {"method": "repavit"}})
    gaps = page.partition('<section id="missing">')[2]
    for word in ("repa-eval sweep", "repa-eval align", "probe_accuracy of the teacher"):
        assert word not in gaps
    assert "ms_per_image" not in page.partition('<section id="finals">')[2].partition("</section>")[0]


def test_numbers_of_two_measurements_are_not_mixed() -> None:
    early, late = rows(), rows(ms_per_image_merged=0.3, ms_per_image_training=0.5, speedup=1.8)
    other = {**SPEED, "threads": 2}
    again = [
        replace(row, protocol=protocol_hash(other), record=other)
        for row in late
        if row.metric.startswith(("ms_per_image", "speedup")) and not row.metric.endswith("_original")
    ]
    [one] = merges([*early, *again], records_of([*early, *again]))
    times = {form: cells[one.columns.index("ms per image")] for form, cells in one.lines}
    assert times == {"original": "", "training form": "0.500", "merged": "0.300"}


@pytest.mark.parametrize("missing", ["_original", "cknna", "probe_accuracy", "ms_per_image", "merge_difference"])
def test_what_was_not_measured_is_left_out(missing: str) -> None:
    found = [row for row in rows() if missing not in row.metric]
    page = render(found, protocols=records_of(found), runs={"cheap": {"method": "repavit"}})
    assert 'id="merged"' in page
