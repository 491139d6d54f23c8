"""The simulated sequences of ONCE hold what was simulated."""

from __future__ import annotations

import numpy as np
import pytest

from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.once import OnceDataset, OnceFrames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.simulation import EvenLidar, simulate_once
from pcdet_ext.structures import Detections

open3d = pytest.importorskip("open3d", exc_type=ImportError)

CLASSES = ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> OnceDataset:
    root = tmp_path_factory.mktemp("simulated")
    simulate_once(root, 2, 3, seed=4, workers=1, sensor=EvenLidar(beams=16, azimuths=300))
    prepare(OnceFrames(root), progress=False)
    return OnceDataset(root=root, classes=CLASSES, point_cloud_range=[-80, -80, -5, 80, 80, 5], split="val")


def test_the_vehicle_drives_towards_negative_y_over_the_ground(found: OnceDataset) -> None:
    poses = np.array([info.pose for info in found.frames])
    way = poses[-1, :3, 3] - poses[0, :3, 3]
    assert np.linalg.norm(way[:2]) > 2
    assert -poses[0, :3, 1] @ way > 0.9 * np.linalg.norm(way)
    for info in found.frames:
        below = found.read(info).points[:, 2].min()
        assert -4 < below < -1  # the sensor is above the road


def test_what_stands_still_stays_where_it_is_and_holds_its_points(found: OnceDataset) -> None:
    centers = []
    for info in found.frames:
        sample = found.read(info)
        np.testing.assert_array_equal(inside_boxes(sample.points, sample.targets.boxes).sum(axis=1), info.points_in_box)
        assert info.points_in_box.sum() > 50
        centers.append(info.boxes[:, :3] @ info.pose[:3, :3].T + info.pose[:3, 3])
    same = np.linalg.norm(centers[0][:, None] - centers[1][None], axis=2).min(axis=1)
    assert (same < 1e-3).sum() > 5


def test_what_is_labelled_has_the_best_score(found: OnceDataset) -> None:
    metric = found.evaluator()
    for i in range(len(found)):
        sample = found[i]
        labels = np.array([CLASSES.index(name) for name in sample.targets.names], np.int64)
        boxes = sample.targets.boxes
        metric.add(sample, Detections(boxes, np.ones(len(boxes)), labels, tuple(CLASSES)))
    result = metric.result()
    for (name, distance), curve in result.curves.items():
        assert curve.ap == pytest.approx(100 if curve.truths else 0), (name, distance)
    assert result.curves["Vehicle", "0-30m"].truths >= 5
