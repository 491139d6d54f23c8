"""Polygons and lines on grids, against shapely."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.data.raster import cell_centres, fill_polygon, near_line

shapely = pytest.importorskip("shapely")
X, Y = (-5.0, 7.0, 0.5), (-4.0, 4.0, 0.25)
PLACES = st.tuples(st.floats(-9, 9), st.floats(-9, 9))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_polygons_with_holes_fill_the_cells_that_shapely_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 12))))
    outline = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(1, 8, (len(angles), 1)) + rng.normal(
        0, 2, 2
    )
    hole = outline.mean(0) + (outline - outline.mean(0)) * 0.3
    x, y = np.meshgrid(cell_centres(X), cell_centres(Y))
    want = shapely.contains_xy(shapely.Polygon(outline), x, y) ^ shapely.contains_xy(shapely.Polygon(hole), x, y)
    np.testing.assert_array_equal(fill_polygon([outline, hole[::-1]], X, Y), want)


@settings(max_examples=60, deadline=None)
@given(st.lists(PLACES, min_size=2, max_size=6), st.floats(0.1, 2))
def test_cells_near_a_line_are_those_that_shapely_says(places: list[tuple[float, float]], distance: float) -> None:
    x, y = np.meshgrid(cell_centres(X), cell_centres(Y))
    found = shapely.distance(shapely.LineString(places), shapely.points(x, y))
    clear = np.abs(found - distance) > 1e-9
    np.testing.assert_array_equal(near_line(np.array(places), distance, X, Y)[clear], (found <= distance)[clear])


def test_edges_on_cell_centres_split_the_cells_between_neighbours() -> None:
    rings = [np.array([[0, 0], [2, 0], [2, 2], [0, 2]], float), np.array([[2, 0], [4, 0], [4, 2], [2, 2]], float)]
    grid = (-0.5, 4.5, 1.0)
    both = [fill_polygon([ring], grid, grid).astype(int) for ring in rings]
    assert (both[0] + both[1]).max() == 1
    assert (both[0] + both[1]).sum() == 8


def test_what_has_no_area_fills_nothing() -> None:
    for ring in (np.zeros((0, 2)), np.array([[0.0, 0], [1, 1]]), np.array([[0.0, 0], [3, 0], [3, 0]])):
        assert not fill_polygon([ring], X, Y).any()
