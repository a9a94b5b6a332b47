"""What a measurement returns: rows with their protocols, and the forms in which notebooks and papers want them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from repa_eval.errors import UserError, unknown
from repa_eval.results import Row, records_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Measurement(Sequence[Row]):
    """Measured numbers: a sequence of rows. protocols: how each was measured, hash -> record."""

    rows: tuple[Row, ...]

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        """Return a row by its position."""
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def protocols(self) -> dict[str, dict[str, Any]]:
        """The records that the column `protocol` of the rows names by hash."""
        return records_of(self.rows)

    @property
    def warnings(self) -> list[str]:
        """The notes of the rows, each once."""
        return sorted({row.note for row in self.rows if row.note and not row.note.startswith("{")})

    @property
    def metrics(self) -> list[str]:
        """The names of the metrics, in the order of the rows."""
        return list(dict.fromkeys(row.metric for row in self.rows))

    def value(self, metric: str) -> float:
        """Return the number of a metric that occurs once; NaN where it has none, UserError where it is not unique."""
        rows = self._of(metric)
        if len(rows) > 1:
            raise UserError(f"metric {metric} has {len(rows)} values; read them from rows, to_frame() or to_array()")
        return _number(rows[0])

    def to_frame(self) -> pandas.DataFrame:
        """Return a pandas DataFrame: a line for each row, a column for each field of a row."""
        import pandas

        return pandas.DataFrame([row.columns() for row in self.rows])

    def _of(self, metric: str) -> list[Row]:
        rows = [row for row in self.rows if row.metric == metric]
        if not rows:
            raise unknown("metric", metric, self.metrics)
        return rows


@dataclass(frozen=True)
class LayerMap(Measurement):
    """Numbers of hidden states over layers and timesteps."""

    @property
    def layers(self) -> list[int]:
        """The block numbers, rising: the first axis of `to_array`."""
        return sorted({row.layer for row in self.rows if row.layer is not None})

    @property
    def timesteps(self) -> list[float]:
        """The timesteps, rising: the second axis of `to_array`."""
        return sorted({row.timestep for row in self.rows if row.timestep is not None})

    def to_array(self, metric: str, *, teacher: str | None = None) -> NDArray[np.float64]:
        """Return a metric's values (layers, timesteps), NaN where there is none.

        The second axis has length 1 for networks without a timestep. teacher: which one, where there are several.
        """
        rows = self._map_of(metric, teacher)
        layers = {layer: place for place, layer in enumerate(self.layers)}
        times: Mapping[float | None, int] = {t: place for place, t in enumerate(self.timesteps or [None])}
        values = np.full((len(layers), len(times)), np.nan)
        for row in rows:
            if row.layer is not None:
                values[layers[row.layer], times[row.timestep]] = _number(row)
        return values

    def plot(self, metric: str, ax: Axes | None = None, *, teacher: str | None = None) -> Axes:
        """Draw a metric's map, layers upwards and timesteps to the right, and return its matplotlib Axes.

        ax: where to draw; None for a new figure.
        """
        from repa_eval.reports.drawing.plots import draw_map

        values, rows = self.to_array(metric, teacher=teacher), self._map_of(metric, teacher)
        named = self.protocols.get(rows[0].protocol or "", {}).get("teacher")
        title = f"{metric} with {named}" if named else metric
        return draw_map(values, ax, layers=self.layers, timesteps=self.timesteps, title=title)

    def _map_of(self, metric: str, teacher: str | None) -> list[Row]:
        """Return the rows of one map; UserError unless metric and teacher name exactly one."""
        rows = [row for row in self._of(metric) if row.layer is not None]
        if not rows:
            raise UserError(f"metric {metric} is no map: it has no layers; read it with value({metric!r})")
        records = self.protocols
        named = {row.protocol: str(records.get(row.protocol or "", {}).get("teacher")) for row in rows}
        if teacher is not None:
            if teacher not in named.values():
                raise unknown("teacher", teacher, named.values())
            rows = [row for row in rows if named[row.protocol] == teacher]
        elif len(set(named.values())) > 1:
            names = " or ".join(repr(name) for name in dict.fromkeys(named.values()))
            raise UserError(f"metric {metric} was measured with several teachers: say teacher={names}")
        return rows


def _number(row: Row) -> float:
    return float("nan") if row.value is None else row.value
