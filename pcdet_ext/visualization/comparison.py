"""Two sets of frames side by side: a page of plots of what `pcdet_ext.data.kitti.statistics` measures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pcdet_ext.data.kitti.statistics import QUANTITIES, Statistics, differences
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#d95f02", "#1b6ca8")
COLUMNS = 5


def draw_comparison(path: str | Path, sets: Mapping[str, Statistics]) -> None:
    """Write a PNG with a plot of each quantity, and of points per car and ring elevations.

    Args:
        path: the file.
        sets: two sets of frames by the names that the plots give them.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are not two sets.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'pcdet_ext[vis]'") from error
    first, second = sets.values()
    rows = -(-(len(QUANTITIES) + 3) // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3 * rows), dpi=70, layout="constrained")
    axes = list(figure.subplots(rows, COLUMNS).ravel())
    apart = differences(first, second)
    for axis, name in zip(axes, QUANTITIES, strict=False):
        _draw_histogram(axis, name, sets, apart[name])
    _draw_cars(axes[len(QUANTITIES)], sets)
    _draw_rings(axes[len(QUANTITIES) + 1], sets)
    _draw_points(axes[len(QUANTITIES) + 2], sets)
    for axis in axes[len(QUANTITIES) + 3 :]:
        axis.set_axis_off()
    axes[0].legend()
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw_histogram(axis: Axes, name: str, sets: Mapping[str, Statistics], apart: float) -> None:
    quantity = QUANTITIES[name]
    for (label, statistics), colour in zip(sets.items(), COLOURS, strict=True):
        axis.stairs(statistics.histogram(name), quantity.edges, label=label, color=colour, fill=True, alpha=0.35)
        axis.stairs(statistics.histogram(name), quantity.edges, color=colour)
    axis.set_title(f"{name}: {apart:.2f} apart", fontsize=10)
    axis.set_xlabel(quantity.unit)


def _draw_cars(axis: Axes, sets: Mapping[str, Statistics]) -> None:
    for (label, statistics), colour in zip(sets.items(), COLOURS, strict=True):
        axis.scatter(statistics.cars[:, 0], statistics.cars[:, 1], s=8, color=colour, label=label, alpha=0.6)
    axis.set_yscale("symlog", linthresh=1)
    axis.set_title("points per unhidden car", fontsize=10)
    axis.set_xlabel("distance in m")


def _draw_rings(axis: Axes, sets: Mapping[str, Statistics]) -> None:
    for (label, statistics), colour in zip(sets.items(), COLOURS, strict=True):
        axis.plot(np.arange(len(statistics.elevations)), statistics.elevations, ".-", color=colour, label=label, ms=3)
    axis.set_title("elevation of the rings in degrees", fontsize=10)
    axis.set_xlabel("ring")


def _draw_points(axis: Axes, sets: Mapping[str, Statistics]) -> None:
    data: list[Array] = [statistics.points / 1000 for statistics in sets.values()]
    axis.boxplot(data, tick_labels=list(sets))
    axis.set_title("points per frame in thousands", fontsize=10)
