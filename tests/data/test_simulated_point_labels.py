"""Simulated drives in SemanticKITTI's layout: what the labels say agrees with where the points are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.semantickitti import CLASSES, SemanticKittiDataset, read_labels
from pcdet_ext.data.simulation import SpinningLidar, drive, simulate_semantickitti
from pcdet_ext.data.simulation.generate import _held_out
from pcdet_ext.data.simulation.semantickitti import MOVING, SemanticKittiWriter, object_ids, sequence_names
from pcdet_ext.structures import Sample

SENSOR = SpinningLidar(beams=32, azimuths=700)
FRAMES = 3
SPAN = [-200, -200, -50, 200, 200, 50]


HELD_OUT = _held_out(2, 3, 0.5).tolist()
NAMES = dict(zip(sequence_names(HELD_OUT), ["val" if held_out else "train" for held_out in HELD_OUT], strict=True))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labels") / "sim"
    simulate_semantickitti(root, scenes=2, frames=FRAMES, seed=3, val_fraction=0.5, workers=1, sensor=SENSOR)
    assert main(["prepare", "semantickitti", "--root", str(root), "--quiet"]) == 0
    return root


def dataset_of(root: Path, split: str) -> SemanticKittiDataset:
    return SemanticKittiDataset(root=str(root), classes=tuple(CLASSES), point_cloud_range=SPAN, split=split)


def of_class(sample: Sample, name: str) -> np.ndarray:
    return sample.points[np.asarray(sample.targets.point_labels) == list(CLASSES).index(name)]


def test_names_are_the_published_ones_while_they_suffice() -> None:
    assert sequence_names([False, True, False]) == ["00", "08", "01"]
    many = sequence_names([i % 4 == 0 for i in range(16)])
    assert many[:5] == ["08", "00", "01", "02", "22"]
    assert len(set(many)) == 16
    assert not {*many} & {f"{number:02d}" for number in range(11, 22)}


def test_surfaces_lie_where_they_should(simulated: Path) -> None:
    for split in ("train", "val"):
        sample = dataset_of(simulated, split)[0]
        near = np.hypot(*sample.points[:, :2].T) < 20
        near_sample = sample.select_points(near)
        assert {*np.unique(near_sample.targets.point_labels)} >= {list(CLASSES).index(n) for n in ("road", "sidewalk")}
        road, building = of_class(near_sample, "road"), of_class(sample, "building")
        assert len(road) > 500
        np.testing.assert_allclose(road[:, 2].mean(), -SENSOR.height, atol=0.4)
        assert road[:, 2].max() < -0.7
        assert np.percentile(building[:, 2], 90) > 0  # walls are higher than the sensor, where it looks so high
        labelled = np.asarray(sample.targets.point_labels) >= 0
        assert labelled.mean() > 0.9


def test_instances_are_the_objects_and_keep_their_numbers(simulated: Path) -> None:
    index, name, split = next((i, name, split) for i, (name, split) in enumerate(NAMES.items()) if split == "train")
    street = drive(np.random.default_rng([3, index]), (FRAMES - 1) * 0.1)
    dataset, ids = dataset_of(simulated, split), object_ids(street)
    seen = []
    for number in range(FRAMES):
        sample = dataset[number]
        pose = street.ego_pose(number * 0.1)
        pose[:3, 3] += pose[:3, 2] * SENSOR.height
        world = (sample.points[:, :3] @ pose[:3, :3].T + pose[:3, 3]).astype(np.float32)
        boxes = street.boxes(number * 0.1)
        raw, instances = read_labels(simulated / f"sequences/{name}/labels/{number:06d}.label")
        np.testing.assert_array_equal(sample.targets.point_instances, instances)
        counted = np.unique(instances[instances > 0])
        assert len(counted) > 3
        seen.append(set(counted.tolist()))
        for track in counted.tolist():
            own = instances == track
            assert {*raw[own].tolist()} == {int(ids[track - 1])}
            box = boxes[track - 1 : track].astype(np.float32).copy()
            box[:, 3:6] += 0.2  # range noise
            assert inside_boxes(world[own], box)[0].all()
    assert len(seen[0] & seen[-1]) > 3
    assert np.isin(ids, [*MOVING.values()]).any()
    first = np.linalg.inv(dataset[0].pose)
    for number in range(FRAMES):
        pose = street.ego_pose(number * 0.1)
        pose[:3, 3] += pose[:3, 2] * SENSOR.height
        start = street.ego_pose(0.0)
        start[:3, 3] += start[:3, 2] * SENSOR.height
        np.testing.assert_allclose(first @ dataset[number].pose, np.linalg.inv(start) @ pose, atol=1e-5)


def test_a_drive_is_the_same_whatever_else_is_simulated(simulated: Path, tmp_path: Path) -> None:
    _, _, files = SemanticKittiWriter(tmp_path, 3, FRAMES, tuple(NAMES), SENSOR).write_scene(1)
    assert len(files) == 2 * FRAMES + 3
    for path in files:
        assert path.read_bytes() == (simulated / path.relative_to(tmp_path)).read_bytes(), path
