"""The simulated logs of Argoverse 2 hold what was simulated, and what a detector's data set makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import feather

from pcdet_ext.data.argoverse2 import Argoverse2Dataset, Argoverse2Frames
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.simulation import EvenLidar, simulate_argoverse2
from pcdet_ext.evaluation.argoverse2 import CATEGORIES
from pcdet_ext.evaluation.argoverse2_files import read_region
from pcdet_ext.structures import Detections

open3d = pytest.importorskip("open3d", exc_type=ImportError)

RANGE = [-80, -80, -5, 80, 80, 5]
CLASSES = [name.capitalize() for name in CATEGORIES]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate_argoverse2(folder, 2, 3, seed=4, workers=1, sensor=EvenLidar(beams=16, azimuths=300))
    prepare(Argoverse2Frames(folder), progress=False)
    return folder


def dataset(root: Path, **options: object) -> Argoverse2Dataset:
    return Argoverse2Dataset(root=root, classes=CLASSES, point_cloud_range=RANGE, split="val", **options)


def test_files_have_the_released_columns(root: Path) -> None:
    (log,) = (root / "val").iterdir()
    schema = feather.read_table(min((log / "sensors/lidar").iterdir())).schema
    kinds = {"x": "halffloat", "y": "halffloat", "z": "halffloat"}
    kinds |= {"intensity": "uint8", "laser_number": "uint8", "offset_ns": "int32"}
    assert {field.name: str(field.type) for field in schema} == kinds
    (sensor,) = feather.read_table(log / "calibration/egovehicle_SE3_sensor.feather").to_pylist()
    assert sensor["sensor_name"] == "up_lidar"
    np.testing.assert_allclose([sensor["tx_m"], sensor["tz_m"]], [1.35, 1.84])


def test_objects_hold_the_points_that_their_annotations_say(root: Path) -> None:
    found = dataset(root, min_points=0)
    for info in found.frames:
        sample = found.read(info)
        counted = inside_boxes(sample.points, sample.targets.boxes).sum(axis=1)
        close = np.abs(counted - info.points_in_box) <= 1 + 0.1 * counted  # boxes lean with the vehicle, here upright
        assert close.mean() > 0.9
        assert info.points_in_box.sum() > 50


def test_what_stands_still_stays_where_it_is_in_the_city(root: Path) -> None:
    places: dict[int, list[np.ndarray]] = {}
    found = dataset(root)
    for info in found.frames:
        city = info.boxes[:, :3] @ info.pose[:3, :3].T + info.pose[:3, 3]
        for track, place in zip(info.track_ids.tolist(), city, strict=True):
            places.setdefault(track, []).append(place)
    moved = np.array([np.ptp(place, axis=0).max() for place in places.values() if len(place) == 3])
    assert (moved < 1e-3).sum() > 5  # parked
    assert (moved > 0.5).any()


def test_the_official_metric_finds_the_road_and_what_is_on_it(root: Path) -> None:
    found = dataset(root)
    metric = found.evaluator({"only_present": True})
    for sample in (found[i] for i in range(len(found))):
        boxes = sample.targets.boxes
        names = [CLASSES.index(name) for name in sample.targets.names]
        metric.add(sample, Detections(boxes, np.ones(len(boxes)), np.array(names, np.int64), tuple(CLASSES)))
    cars = metric.result().classes["REGULAR_VEHICLE"]
    assert cars.annotations > 5
    assert cars.true_positives[0] >= cars.annotations - 1


def test_the_map_has_the_road_where_the_vehicle_is(root: Path) -> None:
    for log in (*(root / "train").iterdir(), *(root / "val").iterdir()):
        region = read_region(log)
        points = np.array([[0.0, 0.0, 0.0], [0.0, 45.0, 0.0], [0.0, -45.0, 0.0]])
        for timestamp in region.poses:
            on_road = region.touches(np.repeat(points[:, None], 8, axis=1), timestamp)
            assert on_road.tolist() == [True, False, False]
