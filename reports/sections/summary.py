"""The summary in words. Every sentence is computed from rows and claims no more than they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from repa_eval.interfaces.section import section
from repa_eval.reports.drawing import panels as drawing
from repa_eval.reports.drawing.figure import LARGE
from repa_eval.reports.numbers import caption_charts, merged
from repa_eval.reports.numbers.arms import Arm
from repa_eval.reports.numbers.compare import EARLY, Comparison, compare, early
from repa_eval.reports.numbers.frames import Map, Panel, groups_of, is_curve_row, without_merged
from repa_eval.reports.numbers.pairs import Spread, spread
from repa_eval.reports.numbers.protocols import Records, difference, field
from repa_eval.reports.numbers.time_to_reach import TimeToReach, time_to_reach
from repa_eval.reports.numbers.words import listing, number, over_seeds, plural
from repa_eval.reports.page import Page
from repa_eval.reports.sections.shared.alignment_summary import Item, representation_items
from repa_eval.reports.sections.shared.control import control_text
from repa_eval.results import Row


@dataclass(frozen=True)
class Summary:
    """One sentence, then what stands behind it."""

    lead: str
    items: tuple[Item, ...]
    panel: Panel | None  # the panel that the first sentence speaks of


@section(order=10, anchor="summary", title="Summary", header=True)
def build(page: Page) -> dict[str, Any]:
    """Return the first sentence, what stands behind it, and the curves that decide."""
    summary = summarise(page)
    figure = None if summary.panel is None else drawing.quality(summary.panel, page.records, width=LARGE)
    return {"summary": _led(summary, page), "figure": figure}


def _led(summary: Summary, page: Page) -> Summary:
    """Return the summary with the lead of merged encoders, or of captions, where there is nothing above them."""
    found = merged.merges(page.rows, page.records)
    if found and not without_merged(page.arms, page.rows):
        return replace(summary, lead=merged.lead_of(found))
    if summary.panel is None and (lead := caption_charts.lead_of(page.rows, page.arms)):
        return replace(summary, lead=lead)
    return summary


def summarise(page: Page) -> Summary:
    """Return the summary of all arms."""
    panel, arms, rows = page.headline, page.arms, page.rows
    align = representation_items(page.maps, rows, arms, page.records)
    measured = (Item("Measured", measured_text(panel, page)),) if panel else ()
    baseline = next((arm for arm in arms if arm.role == "baseline"), None)
    treated = [arm for arm in arms if arm.role == "treated"]
    if panel is None:
        return Summary(_without_quality(arms, page.maps), tuple(align), None)
    if baseline is None or len(arms) == 1:
        return Summary(_uncompared(panel, arms), (*align, *measured), panel)
    controls = [arm for arm in arms if arm.role == "control"]
    results = {arm.name: compare(panel, rows, arm, baseline) for arm in (*treated, *controls)}
    items: list[Item] = []
    judged = treated or controls
    for arm in judged:
        own = _arm_items(results[arm.name], panel, page, arm, baseline)
        items += [Item(f"{arm.name}: {item.label.lower()}", item.text) for item in own] if len(judged) > 1 else own
    for control in controls if treated else ():
        items.append(Item("Control", control_text(control, treated, results, panel, rows)))
    items += [*align, *seeds_items(results, arms), *measured]
    lead = _lead([results[arm.name] for arm in judged], panel, arms)
    return Summary(lead, tuple(items), panel)


def _lead(results: Sequence[Comparison | None], panel: Panel, arms: Sequence[Arm]) -> str:
    known = [result for result in results if result is not None]
    if len(known) > 2:
        return _overview(known)
    return " ".join(headline(result) for result in known) or _uncompared(panel, arms)


def _overview(results: Sequence[Comparison]) -> str:
    """Return one sentence for many arms; their items hold the numbers."""
    words = {"better": "better", "worse": "worse", "mixed": "no clear difference"}
    named = {word: [one.arm.name for one in results if one.outcome == key] for key, word in words.items()}
    found = "; ".join(f"{word}: {listing(names)}" for word, names in named.items() if names)
    return f"Compared with {results[0].other.name} in {results[0].group.metric}: {found}."


def headline(result: Comparison) -> str:
    """Return who is better, in how many evaluations and by how much."""
    metric, arm, other = result.group.metric, result.arm.name, result.other.name
    points = plural(result.points, "evaluation point")
    ratio = ratio_text(result)
    word = result.direction or "higher"
    opposite = "higher" if word == "lower" else "lower"
    if result.outcome == "better":
        return f"{arm} has {word} {metric} than {other} at {result.better} of {points}, {ratio}."
    if result.outcome == "worse":
        return f"{arm} is worse than {other}: its {metric} is {opposite} at {result.worse} of {points}, {ratio}."
    return f"No clear difference in {metric}: {arm} is better than {other} at {result.better} of {points}, {ratio}."


def ratio_text(result: Comparison) -> str:
    """Return "mean ratio 0.78 (0.75 to 0.81 over 3 seeds)"."""
    found = result.spread
    if found is None:
        return "no ratio: values are not positive"
    return f"mean ratio {over_seeds(found.mean, found.low, found.high, found.seeds)}"


def _arm_items(result: Comparison | None, panel: Panel, page: Page, arm: Arm, baseline: Arm) -> list[Item]:
    if result is None:
        return [Item(arm.name, _why_not_compared(panel, page.rows, arm, baseline, page.records))]
    rows, metric, name = page.rows, result.group.metric, arm.name
    step, own, base = result.last
    counted = f" with {panel.group.n} samples" if panel.group.n else ""
    by_how_much = (
        f"At step {step:.0f}{counted}, {name}'s {metric} is {number(own)} and {baseline.name}'s {number(base)} "
        f"({change(own, base)}{_over(result.seeds)}).{_other_counts(panel, rows, arm, baseline)}"
    )
    start = early(panel, rows, arm, baseline)
    if start is not None and start.points < result.points:
        by_how_much += f" Over steps {EARLY[0]} to {EARLY[1]} alone: {ratio_text(start)}."
    if result.lasting is None:
        since = f"At the last evaluation {name} is not better than {baseline.name}."
    elif result.lasting == result.first[0]:
        since = f"{name} is better from the first evaluation (step {result.lasting:.0f}) to the last."
    else:
        since = f"{name} is better at every evaluation from step {result.lasting:.0f} on."
    arrival = time_to_reach(panel, rows, page.timing, arm, baseline)
    if arrival is not None:
        since = f"{since} {reach_text(arrival, arm, baseline)}"
    return [Item("By how much", by_how_much), Item("From when", since)]


def _over(seeds: int) -> str:
    return f", means over {seeds} seeds" if seeds > 1 else ""


def _other_counts(panel: Panel, rows: Sequence[Row], arm: Arm, baseline: Arm) -> str:
    """Return the same comparison at the end under the metric's other protocols, e.g. with more samples."""
    texts = []
    quality = [row for row in rows if is_curve_row(row) and row.metric == panel.group.metric]
    for group in groups_of(quality):
        result = None if group == panel.group else compare(replace(panel, group=group, curves=()), rows, arm, baseline)
        if result is not None and result.last[0] >= 1 and group.n != panel.group.n:
            _, own, base = result.last
            texts.append(f" With {group.n} samples: {number(own)} and {number(base)} ({change(own, base)}).")
    return "".join(texts)


def change(own: float, base: float) -> str:
    """Return "19 % lower" where a share makes sense, else the difference."""
    if own == base:
        return "equal"
    word = "lower" if own < base else "higher"
    if base <= 0 or own < 0:
        return f"{number(abs(own - base))} {word}"
    return f"{number(100 * abs(own - base) / base, 2)} % {word}"


def reach_text(arrival: TimeToReach, arm: Arm, baseline: Arm) -> str:
    """Return when the arm first has the baseline's last value, in steps and in seconds."""
    goal = f"{baseline.name}'s final value ({number(arrival.target)})"
    if arrival.step is None:
        pairs = f" in {arrival.seeds - arrival.reached} of {arrival.seeds} seeds" if arrival.seeds > 1 else ""
        return f"{arm.name} does not reach {goal} within its run{pairs}."
    on_average = " on average" if arrival.seeds > 1 else ""
    text = f"{arm.name} first reaches {goal} at step {arrival.step:.0f} of {arrival.last_step:.0f}{on_average}"
    if arrival.step > 0:
        text += f", {_times(arrival.last_step / arrival.step)} in steps"
    if arrival.seconds and arrival.seconds[0] > 0:
        own, base = arrival.seconds
        text += f" and {_times(base / own)} in training seconds ({number(own)} s against {number(base)} s)"
    return f"{text}.{_shares_text(spread(arrival.shares), baseline)}"


def _shares_text(shares: Spread | None, baseline: Arm) -> str:
    """Return the share of the baseline's steps with its spread over seeds; nothing for one seed."""
    if shares is None or shares.sd is None:
        return ""
    mean, sd = number(shares.mean, fixed=True), number(shares.sd, 2, fixed=True)
    return f" That is at {mean} ± {sd} of {baseline.name}'s steps ({shares.seeds} seeds)."


def _times(factor: float) -> str:
    text = f"{factor:.2f}" if factor < 10 else number(factor)
    if text == "1.00":
        return "equally early"
    return f"{text} times earlier" if factor > 1 else f"{1 / factor:.2f} times later"


def _why_not_compared(panel: Panel, rows: Sequence[Row], arm: Arm, baseline: Arm, records: Records) -> str:
    metric = panel.group.metric
    here = [row.protocol for row in rows if row.metric == metric and row.run in baseline.runs]
    there = [row.protocol for row in rows if row.metric == metric and row.run in arm.runs]
    if not there:
        return f"{arm.name} has no {metric}, so it is not compared with {baseline.name}."
    if not set(here) & set(there):
        fields = difference([here[0] if here else None, there[0]], records)
        return f"{arm.name} and {baseline.name} are not compared: their protocols differ in {fields}."
    return f"{arm.name} and {baseline.name} are not compared: they share no step or no seed."


def seeds_items(results: dict[str, Comparison | None], arms: Sequence[Arm]) -> list[Item]:
    """Return how many training seeds stand behind the comparison."""
    pairs = {name: result.seeds for name, result in results.items() if result is not None}
    if not pairs:
        return []
    if max(pairs.values()) == 1:
        text = "One training seed per model: differences between models have no error bar."
        return [Item("Seeds", text)]
    parts = []
    for result in filter(None, results.values()):
        ratios = ", ".join(number(ratio) for ratio in result.ratios)
        parts.append(f"{result.arm.name} in {plural(result.seeds, 'pair')} (mean ratios {ratios})")
    return [Item("Seeds", f"Training seeds were compared in pairs: {'; '.join(parts)}.")]


def measured_text(panel: Panel, page: Page) -> str:
    """Return what the deciding number is: extractor, samples, sampler, reference."""
    group, records = panel.group, page.records
    text = f"{group.metric}: {page.metrics.meaning(group.metric) or 'as recorded in its protocol'}"
    extractor = field(records, group.protocol, "extractor")
    reference = field(records, group.protocol, "reference", "data")
    sampler = field(records, group.protocol, "sampler", "mode")
    steps = field(records, group.protocol, "num_steps", "nfe")
    scale = field(records, group.protocol, "cfg_scale")
    facts = [f"extractor {extractor}" if extractor else "", f"{group.n} samples an evaluation" if group.n else ""]
    facts += [f"reference {reference}" if reference else "", f"sampler {sampler}" if sampler else ""]
    facts += [f"{steps} sampling steps" if steps else "", f"guidance scale {scale}" if scale else ""]
    facts += [f"{group.weights} weights" if group.weights else ""]
    known = ", ".join(filter(None, facts))
    return f"{text}. {known[:1].upper()}{known[1:]}." if known else f"{text}. No protocol record."


def _uncompared(panel: Panel, arms: Sequence[Arm]) -> str:
    parts = []
    for curve in panel.curves:
        (first, start), (last, end) = _mean_ends(curve.seeds)
        metric = panel.group.metric
        change = f"{number(start)} at step {first:.0f} to {number(end)} at step {last:.0f}"
        parts.append(f"{curve.arm.name}: {metric} goes from {change}.")
    why = (
        "Only one run, so nothing is compared."
        if len(arms) == 1
        else "No comparison with a baseline: no run has the method vanilla; choose one with --baseline RUN."
    )
    return " ".join([*parts, why])


def _mean_ends(seeds: Sequence[Sequence[tuple[float, float]]]) -> tuple[tuple[float, float], tuple[float, float]]:
    ends = []
    for place in (0, -1):
        points = [seed[place] for seed in seeds]
        ends.append((points[0][0], sum(value for _, value in points) / len(points)))
    return ends[0], ends[1]


def _without_quality(arms: Sequence[Arm], maps: Sequence[Map]) -> str:
    names = listing(arm.name for arm in arms) or "No run is named in the table"
    if maps:
        return f"{names}: no sample quality was measured at two steps or more; the layer by timestep maps are below."
    return f"{names}: nothing was measured at two steps or more, so there is nothing to compare yet."
