"""Polygons and lines on grids of cells: which cell centres lie inside, or near."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcdet_ext.scenes import Scope, cells_of
from pcdet_ext.structures import Array


def cell_centres(scope: Scope) -> Array:
    """Centres of the cells along an axis, float64 [N]."""
    return scope[0] + (np.arange(cells_of(scope)) + 0.5) * scope[2]


def fill_polygon(rings: Sequence[Array], x: Scope, y: Scope) -> Array:
    """Which cells have their centre inside a polygon, bool [Y, X].

    Args:
        rings: its outline and the outlines of its holes, float64 [N, 2] each, closed or not, in any direction. A
            centre is inside where a ray from it crosses an odd number of their edges.
        x: the columns of the grid.
        y: its rows.
    """
    rows, columns = cell_centres(y), cell_centres(x)
    inside = np.zeros((len(rows), len(columns) + 1), np.int64)
    edges = [np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1) for ring in rings if len(ring) > 2]
    if not edges:
        return inside[:, :-1].astype(bool)
    x0, y0, x1, y1 = np.concatenate(edges).T
    low, high = np.minimum(y0, y1), np.maximum(y0, y1)
    first, last = np.searchsorted(rows, low, side="left"), np.searchsorted(rows, high, side="left")
    count = last - first  # rows with low <= row < high, so that a corner counts for one of its two edges
    edge = np.repeat(np.arange(len(count)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
    share = (rows[row] - y0[edge]) / (y1[edge] - y0[edge])
    crossing = x0[edge] + share * (x1[edge] - x0[edge])
    np.add.at(inside, (row, np.searchsorted(columns, crossing, side="left")), 1)
    return np.asarray(inside.cumsum(axis=1)[:, :-1] % 2 == 1)


def near_line(line: Array, distance: float, x: Scope, y: Scope) -> Array:
    """The cells whose centres are near a line.

    Args:
        line: float64 [N, 2], its points.
        distance: in metres, up to which a centre is near.
        x, y: the axes of the grid.

    Returns:
        bool [Y, X].
    """
    rows, columns = cell_centres(y), cell_centres(x)
    near = np.zeros((len(rows), len(columns)), bool)
    lows, highs = np.minimum(line[:-1], line[1:]) - distance, np.maximum(line[:-1], line[1:]) + distance
    reaches = ((highs >= (x[0], y[0])) & (lows <= (x[1], y[1]))).all(axis=1)
    for start, end, low, high in zip(line[:-1][reaches], line[1:][reaches], lows[reaches], highs[reaches], strict=True):
        i, j = (
            slice(*np.searchsorted(axis, ends))
            for axis, ends in ((rows, (low[1], high[1])), (columns, (low[0], high[0])))
        )
        if i.start == i.stop or j.start == j.stop:
            continue
        step = end - start
        dx, dy = columns[j][None] - start[0], rows[i][:, None] - start[1]
        along = np.clip((dx * step[0] + dy * step[1]) / max(float(step @ step), 1e-12), 0.0, 1.0)
        near[i, j] |= (dx - along * step[0]) ** 2 + (dy - along * step[1]) ** 2 <= distance**2
    return near
