"""What registration refuses by name, and clouds in which there is nothing, or something very far away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.registration import FPFH, register
from pcdet_ext.registration.checks import FARTHEST
from pcdet_ext.registration.ground import above_ground
from pcdet_ext.structures import Array

CLOUD = np.random.default_rng(0).uniform(-5, 5, (50, 3)).astype(np.float32)


def as_they_are(points: Array) -> tuple[torch.Tensor, torch.Tensor]:
    cloud = torch.from_numpy(points[:, :3].astype(np.float32))
    return cloud, cloud


def one_by_one(points: Array, cloud: Array, height: float) -> Array:
    """What `above_ground` says it does: the lowest of all points whose cell is at most two away in x and y."""
    cells = np.floor(cloud[:, :2])
    near = [(np.abs(cells - np.floor(point[:2])) <= 2).all(1) for point in points]
    lowest = np.array([cloud[n, 2].min() if n.any() else np.inf for n in near])
    return np.asarray(points[:, 2] - lowest > height)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([1.0, 8.0, 1e4]))
def test_the_ground_is_the_lowest_of_five_by_five_cells(seed: int, count: int, extent: float) -> None:
    rng = np.random.default_rng(seed)
    cloud = rng.uniform((-extent, -extent, 0), (extent, extent, 2), (count, 3))
    inside = rng.uniform(cloud.min(0), cloud.max(0), (40, 3))
    for points in (cloud, inside):
        np.testing.assert_array_equal(above_ground(points, cloud, 0.4), one_by_one(points, cloud, 0.4))


@pytest.mark.parametrize("far", [1e5, FARTHEST])
def test_a_far_point_costs_no_memory(far: float) -> None:
    cloud = np.concatenate([CLOUD, [[far, -far, 0]]])
    np.testing.assert_array_equal(above_ground(cloud, cloud, 0.4)[:50], above_ground(CLOUD, CLOUD, 0.4))


def test_ground_of_nothing_is_not_known() -> None:
    with pytest.raises(ValueError, match="cloud has no points, so that the ground under 50 points is not known"):
        above_ground(CLOUD, CLOUD[:0], 0.4)


def with_row(*row: float) -> Array:
    return np.concatenate([CLOUD, [row]])


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (with_row(np.nan, 0, 0), ValueError, "1 of 51 points are NaN or infinite"),
        (with_row(0, 0, -np.inf), ValueError, "1 of 51 points are NaN or infinite"),
        (with_row(1e30, 0, 0), ValueError, r"1 of 51 points are over 1e\+07 m away"),
        (CLOUD[:, :2], ValueError, r"must be \[N, 3\+\], got \[50, 2\]"),
        (CLOUD[0], ValueError, r"must be \[N, 3\+\], got \[3\]"),
        (torch.from_numpy(CLOUD), TypeError, r"must be a NumPy array \[N, 3\+\], got Tensor"),
        (CLOUD.astype(object), TypeError, "must hold real numbers, got object"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_clouds_that_are_none_are_named(wrong: Any, error: type[Exception], message: str) -> None:
    for name, clouds in {"source": (wrong, CLOUD), "target": (CLOUD, wrong)}.items():
        with pytest.raises(error, match=f"{name}.*{message}"):
            register(*clouds, as_they_are, 1.0)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"ground": math.nan}, ValueError, "ground must be at least 0 and finite, got nan"),
        ({"ground": -1.0}, ValueError, "ground must be at least 0 and finite, got -1.0"),
        ({"ground": "a"}, TypeError, "ground must be a number of metres, got 'a'"),
        ({"distance": math.inf}, ValueError, "distance must be above 0 and finite, got inf"),
        ({"distance": None}, TypeError, "distance must be a number of metres, got None"),
        ({"min_inliers": 2}, ValueError, "min_inliers must be at least 3, got 2"),
        ({"min_inliers": 3.5}, TypeError, "min_inliers must be a whole number, got 3.5"),
        ({"describe": "fpfh"}, TypeError, "describe must be called with points"),
    ],
)
def test_arguments_that_make_no_sense_are_named(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register(CLOUD, CLOUD, **({"describe": as_they_are, "distance": 1.0} | wrong))


@pytest.mark.parametrize("size", [0, -1, math.nan, math.inf])
def test_voxels_of_fpfh_have_an_edge(size: float) -> None:
    with pytest.raises(ValueError, match="voxel_size must be above 0 and finite"):
        FPFH(size)
    with pytest.raises(TypeError, match="voxel_size must be a number of metres"):
        FPFH(str(size))  # type: ignore[arg-type]


def test_fpfh_says_which_voxels_are_too_many() -> None:
    pytest.importorskip("open3d")
    with pytest.raises(ValueError, match=r"voxel_size: a cloud 1e\+07 m wide has too many voxels of 0.001 m"):
        register(with_row(FARTHEST, 0, 0), CLOUD, FPFH(1e-3), 1.0)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fpfh_finds_nothing_in_next_to_nothing(count: int) -> None:
    pytest.importorskip("open3d")
    for clouds in ((CLOUD[:count], CLOUD), (CLOUD, CLOUD[:count])):
        found = register(*clouds, FPFH(), 1.0)
        assert found.pose is None
        assert found.matches <= count
