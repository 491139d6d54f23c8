"""Range images against a pixel-by-pixel conversion, and frames joined against their own arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.conformance.waymo_published import moved_as_published
from pcdet_ext.data.waymo import EarlierFrame, Laser, image_points, join, moved
from pcdet_ext.structures import Array


def rotation(roll: float, pitch: float, yaw: float) -> Array:
    cr, sr, cp, sp, cy, sy = (f(a) for a in (roll, pitch, yaw) for f in (math.cos, math.sin))
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    return z @ y @ x


def matrix(roll: float, pitch: float, yaw: float, place: tuple[float, float, float]) -> Array:
    found = np.eye(4)
    found[:3, :3], found[:3, 3] = rotation(roll, pitch, yaw), place
    return found


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_every_pixel_is_where_its_beam_points(height: int, width: int, uniform: bool, moving: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-20, 70, (height, width, 4)).astype(np.float32)
    extrinsic = matrix(*rng.uniform(-0.2, 0.2, 2), rng.uniform(-3, 3), tuple(rng.uniform(-2, 2, 3)))
    beams = np.sort(rng.uniform(-0.4, 0.1, height))
    low, high = -0.5, 0.2
    laser = Laser(extrinsic, np.zeros(0) if uniform else beams, low, high)
    pose = matrix(*rng.uniform(-0.1, 0.1, 2), rng.uniform(-3, 3), (9000.0, -4000.0, 30.0))
    poses = np.concatenate([rng.uniform(-0.1, 0.1, (height, width, 3)), rng.uniform(8990, 9010, (height, width, 3))], 2)
    poses = poses.astype(np.float32)
    found = image_points(image, laser, poses if moving else None, pose if moving else None)
    expected = []
    for row in range(height):
        for column in range(width):
            distance = float(image[row, column, 0])
            if distance <= 0:
                continue
            k = height - 1 - row
            inclination = low + (k + 0.5) / height * (high - low) if uniform else beams[k]
            turn = (width - column - 0.5) / width
            azimuth = (turn * 2 - 1) * math.pi - math.atan2(extrinsic[1, 0], extrinsic[0, 0])
            flat = math.cos(inclination) * distance
            own = [flat * math.cos(azimuth), flat * math.sin(azimuth), distance * math.sin(inclination), 1]
            place = extrinsic @ own
            if moving:
                numbers = poses[row, column].astype(float)
                world = matrix(*numbers[:3], tuple(numbers[3:])) @ place
                place = np.linalg.inv(pose) @ world
            expected.append([*place[:3], *image[row, column, 1:]])
    assert found.shape == (len(expected), 6)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 6), atol=1e-5 if not moving else 2e-5)


def test_shapes_that_do_not_fit_are_refused() -> None:
    laser = Laser(np.eye(4), np.zeros(3), 0.0, 0.0)
    with pytest.raises(ValueError, match="4 rows, but the laser has 3 beams"):
        image_points(np.ones((4, 2, 4), np.float32), laser)
    with pytest.raises(ValueError, match=r"must be \[H, W, 4\]"):
        image_points(np.ones((3, 2, 3), np.float32), laser)
    with pytest.raises(ValueError, match="poses of pixels"):
        image_points(np.ones((3, 2, 4), np.float32), laser, np.zeros((3, 1, 6)), np.eye(4))


def test_frames_are_joined_in_the_coordinates_of_the_first() -> None:
    rng = np.random.default_rng(0)
    now = matrix(0.01, -0.02, 1.0, (9000.0, -8000.0, 40.0))
    before = matrix(0.0, 0.01, 0.9, (8997.0, -8004.0, 39.5))
    points = rng.uniform(-40, 40, (50, 5)).astype(np.float32)
    world = points[:, :3].astype(np.float64) @ before[:3, :3].T + before[:3, 3]
    expected = (world - now[:3, 3]) @ np.linalg.inv(now[:3, :3]).T
    np.testing.assert_allclose(moved(points, before, now)[:, :3], expected, atol=1e-4)
    np.testing.assert_allclose(moved_as_published(points, before, now)[:, :3], expected, atol=5e-3)
    joined, age, counts = join(points, now, [EarlierFrame(points, before, 1), EarlierFrame(points, now, 4)])
    far = (np.abs(expected[:, :2]) >= 1).any(axis=1).sum()
    own = (np.abs(points[:, :2]) >= 1).any(axis=1).sum()
    assert counts.tolist() == [50, far, own]
    np.testing.assert_array_equal(joined[:50], points)
    np.testing.assert_array_equal(age, np.repeat([0, 1, 4], counts))


def test_points_near_the_vehicle_go_only_from_earlier_frames_and_where_it_is_now() -> None:
    ahead = matrix(0, 0, 0, (5.0, 0.0, 0.0))
    points = np.array([[5.5, 0.5, 0.0], [0.5, 0.5, 0.0], [5.5, 1.0, 0.0]], np.float32)
    joined, _, counts = join(points, ahead, [EarlierFrame(points, np.eye(4), 1)])
    assert counts.tolist() == [3, 2]
    np.testing.assert_allclose(joined[3:], [[-4.5, 0.5, 0.0], [0.5, 1.0, 0.0]])
    assert join(points, ahead, [EarlierFrame(points, np.eye(4), 1)], near=0.0)[2].tolist() == [3, 3]
