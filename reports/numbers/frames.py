"""From rows to what figures and tables show: plain dataclasses, no drawing, nothing measured here.

Only rows of one metric, one protocol, one kind of weights and one n ever share a curve or a map.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from repa_eval.reports.numbers.arms import Arm, run_name
from repa_eval.reports.numbers.words import Metrics, rank
from repa_eval.results import Row

SECONDS = "train_seconds"
FLOOR = "_floor"  # ending of a metric: the same number for other real images
MERGE = ("merge_difference_", "ms_per_image_", "num_parameters_", "speedup")  # what `repa-eval reparam` measures
TEACHER = "_teacher"  # ending of a metric: the same number for the teacher's own features
OTHERS = "_teachers"  # ending of a metric: the same number between two teachers
NO_STEP = "no step"  # of weights that record none, such as released ones: a point of its own
FROZEN = "_base"  # ending of a metric: the same number for the frozen model under the trained tokens
GUIDED = "guided_"  # beginning of a metric: a point of a curve over guidance scales
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Group:
    """What must be equal before two numbers may stand in one curve."""

    metric: str
    protocol: str | None
    weights: str | None = None
    n: int | None = None

    @staticmethod
    def of(row: Row) -> Group:
        """Return the group of a row."""
        return Group(row.metric, row.protocol, row.weights, row.n)

    def order(self) -> tuple[tuple[int, str], int, str, str]:
        """Return the sort key: metrics as people read them, many samples before few."""
        return (rank(self.metric), -(self.n or 0), self.protocol or "", self.weights or "")


@dataclass(frozen=True)
class Curve:
    """One line: the points of one arm, and those of each of its seeds."""

    arm: Arm
    mean: Points
    seeds: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Level:
    """A reference level: a number that no run produced, measured like the curves beside it."""

    value: float
    label: str
    n: int | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes: curves of one group."""

    group: Group
    curves: tuple[Curve, ...]
    levels: tuple[Level, ...] = ()  # e.g. the distance of other real images, the accuracy of a teacher
    direction: str | None = None  # which values are better: "lower" or "higher"
    label: str = ""  # of the vertical axis; the metric's name where it is empty


@dataclass(frozen=True)
class Trace:
    """One arm's way through two metrics along training: (x, y) at every step that has both."""

    arm: Arm
    steps: tuple[int, ...]
    mean: Points  # at the steps that all seeds have
    seeds: tuple[Points, ...] = ()


@dataclass(frozen=True)
class Map:
    """Layer x timestep values of one arm and group, at every step measured."""

    arm: Arm
    group: Group
    layers: tuple[int, ...]
    timesteps: tuple[float, ...]
    values: Mapping[int | None, tuple[tuple[float | None, ...], ...]]  # step -> rows of layers; means over the seeds
    singles: Mapping[str, Map] = field(default_factory=dict)  # run -> its own map

    @property
    def seeds(self) -> int:
        """Return how many runs stand behind the map."""
        return max(1, len(self.singles))

    @property
    def last(self) -> int | None:
        """Return the last step at which something was measured; None where no step is recorded."""
        return max(self.values, key=in_order)

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the recorded steps, rising."""
        return tuple(step for step in self.values if step is not None)

    def at(self, step: int | None, layer: int, timestep: float) -> float | None:
        """Return one value, or None where nothing was measured."""
        if step not in self.values or layer not in self.layers or timestep not in self.timesteps:
            return None
        return self.values[step][self.layers.index(layer)][self.timesteps.index(timestep)]


def in_order(step: int | None) -> int:
    """Return the sort key of a step: what records none stands first."""
    return -1 if step is None else step


def step_name(step: int | None) -> str:
    """Return "step 100", or the words for weights that record no step."""
    return NO_STEP if step is None else f"step {step}"


def is_curve_row(row: Row) -> bool:
    """Return whether the row is a number of a whole checkpoint (sample quality), not of a layer or a timestep."""
    whole = (row.step is not None or row.run is not None) and row.layer is None and row.timestep is None
    other = row.metric == SECONDS or row.metric.startswith(GUIDED) or is_level_row(row) or is_merge_row(row)
    return whole and not other


def is_level_row(row: Row) -> bool:
    """Return whether the row is a reference level, which no run produced."""
    return row.metric.endswith((FLOOR, TEACHER, OTHERS, FROZEN))


def is_merge_row(row: Row) -> bool:
    """Return whether the row speaks of an encoder that was merged: another kind of run than those that generate."""
    return row.metric.startswith(MERGE) or row.metric.endswith(("_original", "_merged"))


def without_merged(arms: Sequence[Arm], rows: Sequence[Row]) -> list[Arm]:
    """Return the arms that are no merged encoders, of which other numbers can be asked for."""
    names = {run_name(row) for row in rows if is_merge_row(row)}
    return [arm for arm in arms if not names & set(arm.runs)]


def is_map_row(row: Row) -> bool:
    """Return whether the row is a cell of a layer x timestep map."""
    return row.layer is not None and row.timestep is not None


def groups_of(rows: Iterable[Row]) -> list[Group]:
    """Return the groups of rows in reading order."""
    return sorted({Group.of(row) for row in rows}, key=Group.order)


def series(rows: Iterable[Row], group: Group, run: str) -> Points:
    """Return (step, value) of one run in one group; several evaluation seeds of a step become their mean."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if Group.of(row) == group and run_name(row) == run and row.value is not None and row.step is not None:
            found.setdefault(row.step, []).append(row.value)
    return tuple((float(step), sum(values) / len(values)) for step, values in sorted(found.items()))


def mean_of(seeds: Sequence[Points]) -> Points:
    """Return the mean at those x that every seed has."""
    tables = [dict(points) for points in seeds if points]
    if not tables:
        return ()
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    return tuple((x, sum(table[x] for table in tables) / len(tables)) for x in common)


def quality_panels(rows: Sequence[Row], arms: Sequence[Arm], metrics: Metrics, *, points: int = 2) -> list[Panel]:
    """Return a panel for every group in which some run was measured at `points` steps or more."""
    by_group = split(row for row in rows if is_curve_row(row))
    floors = [row for row in rows if row.metric.endswith(FLOOR) and row.value is not None]
    panels = []
    for group in sorted(by_group, key=Group.order):
        curves = curves_of(by_group[group], group, arms)
        if any(len(seed) >= points for curve in curves for seed in curve.seeds):
            levels, metric = _floor(floors, group), group.metric
            panels.append(Panel(group, curves, levels, metrics.direction(metric), metrics.axis(metric)))
    return panels


def split(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """Return the rows by group."""
    result: dict[Group, list[Row]] = {}
    for row in rows:
        result.setdefault(Group.of(row), []).append(row)
    return result


def curves_of(rows: Sequence[Row], group: Group, arms: Sequence[Arm]) -> tuple[Curve, ...]:
    """Return a curve for every arm that has values in the group."""
    curves = []
    for arm in arms:
        seeds = tuple(points for run in arm.runs if (points := series(rows, group, run)))
        if seeds:
            curves.append(Curve(arm, mean_of(seeds), seeds))
    return tuple(curves)


def _floor(floors: Sequence[Row], group: Group) -> tuple[Level, ...]:
    """Return the reference level measured with as many images as the panel's values, if there is one."""
    fits = [row for row in floors if row.metric == group.metric + FLOOR and row.n == group.n]
    values = [row.value for row in fits if row.value is not None]
    return (Level(sum(values) / len(values), "real images", group.n),) if values else ()


def clock(rows: Iterable[Row], run: str) -> Points:
    """Return (step, cumulative training seconds) of a run; empty if the times ever decrease."""
    found = {row.step: row.value for row in rows if row.metric == SECONDS and run_name(row) == run}
    points = [(float(step), value) for step, value in found.items() if step is not None and value is not None]
    points.sort()
    rising = all(first[1] <= second[1] for first, second in itertools.pairwise(points))
    return tuple(points) if rising else ()


def interpolate(points: Points, x: float) -> float | None:
    """Return the value at x on the straight line between the neighbours; None outside."""
    xs = [point[0] for point in points]
    place = bisect.bisect_left(xs, x)
    if place < len(xs) and xs[place] == x:
        return points[place][1]
    if place in (0, len(xs)):
        return None
    (x0, y0), (x1, y1) = points[place - 1], points[place]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def against_seconds(panel: Panel, rows: Sequence[Row], timing: Sequence[Row]) -> Panel | None:
    """Return the panel with training seconds in place of steps; None if a run has no clock."""
    curves = []
    for curve in panel.curves:
        seeds = []
        for run in curve.arm.runs:
            times = clock(timing, run)
            points = series(rows, panel.group, run)
            moved = [(interpolate(times, step), value) for step, value in points]
            if points:
                seeds.append(tuple((time, value) for time, value in moved if time is not None))
        if not all(seeds):
            return None
        curves.append(Curve(curve.arm, seeds[0] if len(seeds) == 1 else (), tuple(seeds)))
    return replace(panel, curves=tuple(curves))


def binned(points: Points, most: int = 120) -> Points:
    """Return at most `most` points: means over equal numbers of neighbours."""
    if len(points) <= most:
        return points
    size = math.ceil(len(points) / most)
    parts = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts)


def training_panels(curves: Sequence[Row], arms: Sequence[Arm], *, most: int = 120) -> list[Panel]:
    """Return a panel for every training curve, thinned to `most` points by means over neighbours."""
    wanted = split(row for row in curves if is_curve_row(row))
    panels = []
    for group in sorted(wanted, key=lambda group: (_TRAINING.get(group.metric, 9), group.order())):
        lines = curves_of(wanted[group], group, arms)
        thin = (
            Curve(line.arm, binned(line.mean, most), tuple(binned(seed, most) for seed in line.seeds)) for line in lines
        )
        if lines:
            panels.append(Panel(group, tuple(thin)))
    return panels


_TRAINING = {"loss": 0, "denoising_loss": 1, "proj_loss": 2, "grad_norm": 3, "learning_rate": 4}


def maps_of(rows: Sequence[Row], arms: Sequence[Arm]) -> list[Map]:
    """Return the layer x timestep maps, group after group; a group's maps share their axes."""
    wanted = split(row for row in rows if is_map_row(row))
    result = []
    for group in sorted(wanted, key=Group.order):
        cells = wanted[group]
        layers = tuple(sorted({row.layer for row in cells if row.layer is not None}))
        times = tuple(sorted({row.timestep for row in cells if row.timestep is not None}))
        for arm in arms:
            own = {run: found for run in arm.runs if (found := [row for row in cells if run_name(row) == run])}
            singles = {run: Map(arm, group, layers, times, _grids(found, layers, times)) for run, found in own.items()}
            if singles:
                together = _grids([row for found in own.values() for row in found], layers, times)
                result.append(Map(arm, group, layers, times, together, singles))
    return result


def _grids(
    rows: Sequence[Row], layers: tuple[int, ...], times: tuple[float, ...]
) -> dict[int | None, tuple[tuple[float | None, ...], ...]]:
    cells: dict[tuple[int | None, int | None, float | None], list[float]] = {}
    for row in rows:
        if row.value is not None:
            cells.setdefault((row.step, row.layer, row.timestep), []).append(row.value)
    steps = sorted({row.step for row in rows}, key=in_order)
    means = {place: sum(values) / len(values) for place, values in cells.items()}
    return {step: tuple(tuple(means.get((step, layer, time)) for time in times) for layer in layers) for step in steps}


def extent(maps: Iterable[Map]) -> tuple[float, float]:
    """Return the colour scale that all maps of a metric share; it holds 0 if everything is positive."""
    values = [
        value for one in maps for grid in one.values.values() for line in grid for value in line if value is not None
    ]
    if not values:
        return (0.0, 1.0)
    low, high = min(min(values), 0.0), max(values)
    return (low, high if high > low else low + 1.0)
