"""Boxes and points against shapely's polygons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pcdet_ext.data import geometry


def random_boxes(rng: np.random.Generator, count: int, spread: float = 6.0) -> np.ndarray:
    sizes = rng.uniform(0.5, 5, (count, 3))
    return np.column_stack([rng.uniform(-spread, spread, (count, 3)), sizes, rng.uniform(-7, 7, count)])


def polygon(box: np.ndarray):
    """The footprint as shapely turns it."""
    affinity, geometry_ = pytest.importorskip("shapely.affinity"), pytest.importorskip("shapely.geometry")
    upright = geometry_.box(-box[3] / 2, -box[4] / 2, box[3] / 2, box[4] / 2)
    return affinity.translate(affinity.rotate(upright, box[6], origin=(0, 0), use_radians=True), box[0], box[1])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_overlap_is_a_positive_intersection(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, 6), random_boxes(rng, 5)
    areas = np.array([[polygon(p).intersection(polygon(q)).area for q in b] for p in a])
    overlap = geometry.overlap_from_above(a, b)
    clear = (areas == 0) | (areas > 1e-9)
    np.testing.assert_array_equal(overlap[clear], (areas > 0)[clear])


def test_touching_boxes_overlap_with_a_margin_only() -> None:
    a = np.array([[0.0, 0, 0, 4, 2, 1, 0]])
    for b in ([4.0, 0, 0, 4, 2, 1, 0], [0, 2.005, 0, 4, 2, 1, np.pi], [3.005, 0, 0, 2, 2, 1, np.pi / 2]):
        assert not geometry.overlap_from_above(a, np.array([b])).any()
        assert geometry.overlap_from_above(a, np.array([b]), margin=0.01).all()
        assert not geometry.overlap_from_above(a, np.array([b]), margin=0.001).any() or b[0] == 4.0
    assert geometry.overlap_from_above(a, a).all()
    assert geometry.overlap_from_above(a, np.zeros((0, 7))).shape == (1, 0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), margin=st.sampled_from([0.0, 0.3]))
def test_points_inside_boxes(seed: int, margin: float) -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(seed)
    boxes, points = random_boxes(rng, 4), rng.uniform(-7, 7, (300, 4))
    inside = geometry.inside_boxes(points, boxes, margin)
    for row, box in zip(inside, boxes, strict=True):
        grown = box + [0, 0, 0, 2 * margin, 2 * margin, 0, 0]
        expected = shapely.contains_xy(polygon(grown), points[:, 0], points[:, 1])
        expected &= np.abs(points[:, 2] - box[2]) <= box[5] / 2
        np.testing.assert_array_equal(row, expected)


def test_ranges_are_half_open() -> None:
    points = np.array([[0, 0, 0, 1], [1, 0, 0, 1], [0, -1, 9, 1], [0.5, 0.999, -9, 1]], np.float32)
    span = [0, -1, -1, 1, 1, 1]
    assert geometry.points_in_range(points, span).tolist() == [True, False, True, True]
    assert geometry.points_in_range(points, span, use_z=True).tolist() == [True, False, False, False]


def test_boxes_in_range_by_centre_or_corners() -> None:
    boxes = np.array([[0.5, 0, 0, 4, 0.2, 1, 0], [-0.5, 0, 0, 4, 0.2, 1, 0], [-3, 0, 0, 4, 0.2, 1, 0]], np.float32)
    span = [0, -10, -1, 10, 10, 1]
    assert geometry.boxes_in_range(boxes, span).tolist() == [True, False, False]
    assert geometry.boxes_in_range(boxes, span, min_corners=4).tolist() == [True, True, False]
    assert geometry.boxes_in_range(boxes, span, min_corners=5).tolist() == [False, False, False]


def test_points_that_are_not_finite_are_dropped_and_counted() -> None:
    points = np.ones((4, 4), np.float32)
    assert geometry.finite_points(points)[1] == 0
    points[1, 3], points[2, 0] = np.nan, -np.inf
    kept, dropped = geometry.finite_points(points)
    assert (len(kept), dropped) == (2, 2)
    assert np.isfinite(kept).all()


@given(st.floats(-1000, 1000))
def test_wrapped_angles_point_the_same_way(angle: float) -> None:
    wrapped = float(geometry.wrap_angle(np.float64(angle)))
    assert -np.pi <= wrapped <= np.pi
    assert np.cos(wrapped - angle) == pytest.approx(1)


@given(matrix=arrays(np.float64, (4, 4), elements=st.floats(-100, 100)), count=st.integers(0, 20))
def test_transform_is_the_matrix_product(matrix: np.ndarray, count: int) -> None:
    xyz = np.random.default_rng(count).normal(size=(count, 5)).astype(np.float32)
    expected = [matrix[:3, :3] @ point[:3].astype(np.float64) + matrix[:3, 3] for point in xyz]
    np.testing.assert_allclose(geometry.transform(xyz, matrix), np.reshape(expected, (-1, 3)), rtol=1e-12, atol=1e-10)


def test_turned_is_a_complex_product() -> None:
    xy = np.random.default_rng(0).normal(size=(50, 2))
    expected = (xy[:, 0] + 1j * xy[:, 1]) * np.exp(0.7j)
    np.testing.assert_allclose(geometry.turned(xy, 0.7), np.stack([expected.real, expected.imag], axis=1), rtol=1e-14)
    assert geometry.turned(xy.astype(np.float32), 0.7).dtype == np.float32


BUSY_THREADS = """
import os
import time
from pathlib import Path
import numpy as np
from pcdet_ext.data import geometry

def others():
    ticks = {}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        ticks[task.name] = int(fields[11]) + int(fields[12])
    return sum(t for name, t in ticks.items() if name != str(os.getpid()))

points, pose = np.ones((200_000, 4), np.float32), np.eye(4)
before = -1
while before != others():  # threads that were started with the libraries wait for work a while
    before = others()
    time.sleep(0.5)
for _ in range(20):
    geometry.transform(points, pose)
    geometry.turned(points[:, :2], 0.3)
print(others() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed by Linux alone")
def test_no_other_thread_works_on_points() -> None:
    """Threads of a BLAS library that wait for one another took six times what a loader worker needed itself."""
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", BUSY_THREADS], env=environment, capture_output=True, check=True)
    assert int(done.stdout) == 0


def test_the_border_of_a_range_is_outside_at_its_end_unless_it_is_closed() -> None:
    extent = [0, 0, -1, 4, 4, 1]
    border = np.array([[0, 0, -1], [4, 2, 0], [2, 4, 0], [2, 2, 1], [2, 2, 2]], np.float32)
    inside = geometry.points_in_range(border, extent), geometry.points_in_range(border, extent, use_z=True)
    assert [found.tolist() for found in inside] == [[True, False, False, True, True], [True] + [False] * 4]
    assert geometry.points_in_range(border, extent, use_z=True, closed=True).tolist() == [True] * 4 + [False]
    boxes = np.column_stack([border, np.tile([2, 2, 1, 0], (5, 1))]).astype(np.float32)
    assert geometry.boxes_in_range(boxes, extent).tolist() == [True] + [False] * 4
    assert geometry.boxes_in_range(boxes, extent, closed=True).tolist() == [True] * 4 + [False]
