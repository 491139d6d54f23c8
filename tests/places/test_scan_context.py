"""Scan context against the paper's equations in loops."""

from __future__ import annotations

import numpy as np
import pytest

from pcdet_ext.places.scan_context import ScanContext

SMALL = ScanContext(rings=4, sectors=6, radius=20.0, sensor_height=2.0)


def by_loops(points: np.ndarray, method: ScanContext) -> np.ndarray:
    found = np.zeros((method.rings, method.sectors))
    for x, y, z in points[:, :3].tolist():
        away, turn = np.hypot(x, y), np.degrees(np.arctan2(y, x)) % 360
        if 0 < away < method.radius:
            ring, sector = int(away / method.radius * method.rings), int(turn / 360 * method.sectors)
            found[ring, sector] = max(found[ring, sector], z + method.sensor_height)
    return found


def distance_by_loops(a: np.ndarray, b: np.ndarray) -> float:
    best = 1.0
    for shift in range(a.shape[1]):
        turned = np.roll(b, -shift, axis=1)
        terms = [
            1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            for x, y in zip(a.T, turned.T, strict=True)
            if x.any() and y.any()
        ]
        best = min(best, float(np.mean(terms)) if terms else 1.0)
    return best


def cloud(seed: int, count: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-15, -15, -2], [15, 15, 6], (count, 3))


def test_descriptor_has_the_greatest_height_in_each_cell() -> None:
    for seed in range(5):
        np.testing.assert_allclose(SMALL.describe(cloud(seed)), by_loops(cloud(seed), SMALL), rtol=1e-5)
    assert not SMALL.describe(np.zeros((0, 3))).any()


def test_distance_is_that_of_the_best_rotation() -> None:
    contexts = np.stack([SMALL.describe(cloud(seed, 4 + 3 * seed)) for seed in range(6)]).astype(np.float64)
    wanted = [[distance_by_loops(a, b) for b in contexts] for a in contexts]
    np.testing.assert_allclose(SMALL.distances(contexts, contexts), wanted, atol=1e-9)
    np.testing.assert_allclose(SMALL.distances(contexts.reshape(6, -1), contexts.reshape(6, -1)), wanted, atol=1e-9)


def test_a_turned_cloud_is_at_distance_zero() -> None:
    points, angle = cloud(1), 2 * np.pi / 6 * 2
    turned = points.copy()
    turned[:, 0] = np.cos(angle) * points[:, 0] - np.sin(angle) * points[:, 1]
    turned[:, 1] = np.sin(angle) * points[:, 0] + np.cos(angle) * points[:, 1]
    contexts = np.stack([SMALL.describe(p) for p in (points, turned)])
    assert SMALL.distances(contexts[:1], contexts[1:])[0, 0] < 1e-6


def test_numbers_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="above 0"):
        ScanContext(rings=0)
