"""What a picture may show beside points and boxes: predicted paths, a map, occupied cells, a planned path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pcdet_ext.structures import Array

FORECAST_COLOUR, PLAN_COLOUR = "#c77dff", "#ff4fa3"


@dataclass(frozen=True, eq=False)
class Forecast:
    """Where one object may go.

    Args:
        name: its class.
        paths: float [K, T, 2 or 3], its places in each of K modes, in metres in the LiDAR frame of the picture.
        probabilities: float [K], of the modes, not negative; None where all are equally likely.
        score: of the detection in [0, 1]; None for what is labelled.
        track_id: number of the object, -1 for none.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.
    """

    name: str
    paths: Array
    probabilities: Array | None = None
    score: float | None = None
    track_id: int = -1

    def __post_init__(self) -> None:
        _check_path(self.paths, 3, f"the forecast of a {self.name}")
        weights = self.probabilities
        if weights is None:
            return
        if np.shape(weights) != (len(self.paths),) or not (
            np.isfinite(weights).all() and (np.asarray(weights) >= 0).all()
        ):
            raise ValueError(f"a {self.name} has {len(self.paths)} paths, but probabilities {np.asarray(weights)}")

    @property
    def weights(self) -> Array:
        """float64 [K]: the probabilities, equal ones where they are not known."""
        count = len(self.paths)
        return (
            np.full(count, 1 / max(count, 1)) if self.probabilities is None else np.asarray(self.probabilities, float)
        )


@dataclass(frozen=True, eq=False)
class MapLayer:
    """A map of the ground.

    Args:
        masks: bool [C, H, W], where each class is; row 0 is the lowest y, column 0 the lowest x. None without.
        extent: (xmin, ymin, xmax, ymax) of the masks in metres in the LiDAR frame of the picture.
        class_names: C names of the masks.
        lines: polylines [K, 2] or [K, 3] by the name of their class, as lane borders.

    Raises:
        ValueError: the shapes do not fit.
    """

    masks: Array | None = None
    extent: tuple[float, float, float, float] = (-50.0, -50.0, 50.0, 50.0)
    class_names: tuple[str, ...] = ()
    lines: Mapping[str, Sequence[Array]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.masks is not None and (self.masks.ndim != 3 or len(self.masks) != len(self.class_names)):
            raise ValueError(f"masks must be [{len(self.class_names)}, H, W], got {list(self.masks.shape)}")
        xmin, ymin, xmax, ymax = self.extent
        if not (np.isfinite(self.extent).all() and xmin < xmax and ymin < ymax):
            raise ValueError(f"the extent of a map must be (xmin, ymin, xmax, ymax), got {self.extent}")
        for name, lines in self.lines.items():
            for line in lines:
                _check_path(line, 2, f"a line of {name}")

    @property
    def names(self) -> tuple[str, ...]:
        """All classes that this map knows, of masks and then of lines."""
        return tuple(dict.fromkeys((*self.class_names, *self.lines)))


@dataclass(frozen=True, eq=False)
class OccupancyLayer:
    """The class of each cell of a grid.

    Args:
        labels: int [X, Y, Z], positions in `class_names`; what is outside of them, as Occ3D's 17, is free.
        low: (x, y, z) of the grid's lowest corner in metres in the LiDAR frame of the picture.
        cell: (x, y, z) size of a cell in metres.
        class_names: of the occupied classes.

    Raises:
        ValueError: the shapes do not fit, or a cell has no size.
    """

    labels: Array
    low: tuple[float, float, float]
    cell: tuple[float, float, float]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.labels.ndim != 3 or not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(f"labels must be integers [X, Y, Z], got {self.labels.dtype} {list(self.labels.shape)}")
        if len(self.low) != 3 or len(self.cell) != 3 or not min(self.cell) > 0 or not np.isfinite(self.low).all():
            raise ValueError(f"low and cell must be three numbers each, cell positive, got {self.low} and {self.cell}")

    def cells(self) -> Array:
        """int64 [N, 4]: (x, y, z, class) of the occupied cells that have a free neighbour, or lie at the border."""
        full = (self.labels >= 0) & (self.labels < len(self.class_names))
        walled = np.pad(full, 1)
        inner = full.copy()
        for axis in range(3):
            for step in (-1, 1):
                inner &= np.roll(walled, step, axis)[1:-1, 1:-1, 1:-1]
        places = np.argwhere(full & ~inner)
        return np.column_stack([places, self.labels[tuple(places.T)]])


@dataclass(frozen=True, eq=False)
class Plan:
    """The way that the vehicle is to go.

    Args:
        path: float [T, 2 or 3], places in metres in the LiDAR frame of the picture.
        found: whether it was planned by a network; otherwise it is what the driver did.

    Raises:
        ValueError: the path has another shape, or a number that is not finite.
    """

    path: Array
    found: bool = True

    def __post_init__(self) -> None:
        _check_path(self.path, 2, "a planned path")


@dataclass(frozen=True, eq=False)
class Layers:
    """What one frame shows beside points and boxes."""

    forecasts: Sequence[Forecast] = ()
    map: MapLayer | None = None
    occupancy: OccupancyLayer | None = None
    plans: Sequence[Plan] = ()


def _check_path(path: Array, dimensions: int, what: str) -> None:
    if np.ndim(path) != dimensions or np.shape(path)[-1] not in (2, 3):
        raise ValueError(f"{what} must have places [T, 2 or 3], got {list(np.shape(path))}")
    if not np.isfinite(path).all():
        raise ValueError(f"{what} has a number that is not finite")


def rectangles(mask: Array) -> Array:
    """int64 [K, 4]: rectangles (column, row, end of columns, end of rows) that cover a mask [H, W] exactly.

    They are runs along a row, joined with equal runs of the rows that follow.
    """
    begun: dict[tuple[int, int], int] = {}  # the row where a run that reaches the row before began
    done: list[tuple[int, int, int, int]] = []
    for row, runs in enumerate([*_runs(mask), set()]):
        done += [(a, top, b, row) for (a, b), top in begun.items() if (a, b) not in runs]
        begun = {run: begun.get(run, row) for run in sorted(runs)}
    return np.array(done, np.int64).reshape(-1, 4)


def _runs(mask: Array) -> list[set[tuple[int, int]]]:
    """The runs of each row, as their first column and the one behind their last."""
    steps = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    runs: list[set[tuple[int, int]]] = [set() for _ in mask]
    rows, first = np.nonzero(steps == 1)
    for row, a, b in zip(rows.tolist(), first.tolist(), np.nonzero(steps == -1)[1].tolist(), strict=True):
        runs[row].add((a, b))
    return runs
