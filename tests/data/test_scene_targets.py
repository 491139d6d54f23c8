"""Maps, occupancy, futures and plans of simulated nuScenes drives, held against what the simulator knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.config import ConfigError
from pcdet_ext.data.augment.steps import flip, rotate, scale, translate
from pcdet_ext.data.base import collate
from pcdet_ext.data.futures import command, ego_plan
from pcdet_ext.data.nuscenes.dataset import NuScenesDataset
from pcdet_ext.data.nuscenes.maps import CityMap
from pcdet_ext.data.nuscenes.occupancy import read_labels, resampled
from pcdet_ext.data.raster import cell_centres
from pcdet_ext.files import DataError
from pcdet_ext.scenes import COMMANDS, EgoPlan
from pcdet_ext.structures import Detections, Sample, Targets

CLASSES = ["car", "truck", "bus", "pedestrian", "bicycle", "motorcycle", "trailer", "barrier", "traffic_cone"]
SCENE: dict[str, Any] = {"map_layers": "all", "occupancy": "gts", "futures": 4, "plan": 3}
FRAMES = 4


@pytest.fixture
def root(scene_root: Path) -> Path:
    return scene_root


def dataset(root: Path, **settings: Any) -> NuScenesDataset:
    settings = {"frame": "ego", "scene": SCENE, "split": "train", "max_sweeps": 1, "min_points": 0} | settings
    settings = {"point_cloud_range": [-54, -54, -3, 54, 54, 5]} | settings
    return NuScenesDataset(root=root, classes=CLASSES, **settings)


def targets(sample: Sample) -> Targets:
    assert sample.targets is not None
    return sample.targets


def test_points_lie_in_cells_of_what_they_hit(root: Path) -> None:
    sample = dataset(root)[1]
    occupancy = np.asarray(targets(sample).occupancy)
    assert occupancy.shape == (200, 200, 16)
    cell = np.floor((sample.points[:, :3] - [-40, -40, -1]) / 0.4).astype(int)
    inside = ((cell >= 1) & (cell < [199, 199, 15])).all(axis=1)
    near = np.stack([occupancy[tuple((cell[inside] + d).T)] for d in np.ndindex(3, 3, 3) for d in [np.array(d) - 1]])
    assert (near != 17).any(axis=0).mean() > 0.99  # in the cell itself, or beside it
    assert (near[13] != 17).mean() > 0.85


def test_cells_of_labelled_cars_are_cars(root: Path) -> None:
    found = targets(dataset(root)[0])
    occupancy = np.asarray(found.occupancy)
    cars = np.asarray(found.boxes)[[name == "car" for name in found.names]]
    cell = np.floor((cars[:, :3] - [-40, -40, -1]) / 0.4).astype(int)
    inside = ((cell >= 0) & (cell < [200, 200, 16])).all(axis=1)
    assert inside.sum() > 3
    assert (occupancy[tuple(cell[inside].T)] == 4).all()


def test_the_road_is_under_the_vehicle_and_its_surface_is_asphalt(root: Path) -> None:
    for sample in dataset(root):
        found = targets(sample)
        masks = dict(zip(["drivable_area", "ped_crossing", "walkway", "stop_line"], found.map_masks, strict=False))
        assert masks["drivable_area"][100, 100] == 1
        assert not (masks["drivable_area"] & masks["walkway"]).any()
        x, y = (cell_centres(axis) for axis in found.map_grid)
        columns = np.floor((x + 40) / 0.4).astype(int)
        near = (np.abs(x) < 39)[None] & (np.abs(y) < 39)[:, None] & (masks["drivable_area"] == 1)
        rows, cols = np.nonzero(near)
        cells = np.asarray(found.occupancy)[columns[cols], columns[rows]]
        assert (cells == 11).any(axis=1).mean() > 0.8


@pytest.mark.parametrize("frame", ["lidar", "ego"])
def test_futures_are_where_the_objects_are_in_the_later_frames(root: Path, frame: Any) -> None:
    scene = {"futures": 4}
    data = dataset(root, frame=frame, scene=scene)
    samples = [data[i] for i in range(FRAMES)]
    first, last = targets(samples[0]), targets(samples[2])
    assert first.futures is not None
    assert first.future_mask is not None
    assert not np.asarray(first.future_mask)[:, 3:].any()  # the scene ends
    back = np.linalg.inv(samples[0].pose) @ samples[2].pose
    moved = 0
    for row, track in enumerate(first.track_ids):
        other = np.flatnonzero(np.asarray(last.track_ids) == track)
        if not first.future_mask[row, 1]:
            continue
        moved += 1
        want = (back @ np.r_[last.boxes[other[0], :3], 1])[:2]
        np.testing.assert_allclose(first.boxes[row, :2] + first.futures[row, :2].sum(0), want, atol=2e-3)
    assert moved > 3


def test_the_plan_is_where_the_vehicle_is_later(root: Path) -> None:
    samples = list(dataset(root))
    plan = targets(samples[0]).plan
    assert plan is not None
    assert plan.mask.all()
    want = (np.linalg.inv(samples[0].pose) @ samples[3].pose)[:2, 3]
    np.testing.assert_allclose(plan.steps.sum(0), want, atol=1e-3)
    assert targets(samples[3]).plan.mask.sum() == 0
    status = targets(samples[2]).plan.status
    way = (np.linalg.inv(samples[2].pose) @ samples[1].pose)[:3, 3]
    np.testing.assert_allclose(status[6:9], -way / 0.5, atol=1e-3)
    assert samples[0].command == command(plan)
    assert collate(samples, CLASSES).commands.tolist() == [s.command for s in samples]


@pytest.mark.parametrize(
    ("steps", "told"), [([[5, 0.1], [5, 2]], "left"), ([[5, 0], [5, -2]], "right"), ([[5, 1], [5, 0.9]], "straight")]
)
def test_a_command_says_to_which_side_a_path_ends(steps: list[list[float]], told: str) -> None:
    plan = EgoPlan(np.array(steps), np.ones(2, bool), np.zeros(10))
    assert COMMANDS[command(plan)] == told


def test_a_path_ends_at_the_first_place_that_is_not_known() -> None:
    poses = [np.eye(4) for _ in range(4)]
    for number, pose in enumerate(poses):
        pose[0, 3] = number * 2.0
    plan = ego_plan([poses[0], poses[1], None, poses[3]], [])
    assert plan.mask.tolist() == [True, False, False]
    assert plan.steps.tolist() == [[2, 0], [0, 0], [0, 0]]


MOVES = {
    "RandomFlip": {"axes": ["x"], "probability": 1.0},
    "RandomRotation": {"angle_range": [0.5, 0.5]},
    "RandomScaling": {"scale_range": [1.05, 1.05]},
    "RandomTranslation": {"std": [0.5, 0.5, 0.0]},
}


@pytest.mark.parametrize("name", MOVES)
def test_what_is_drawn_moves_with_the_points(root: Path, name: str) -> None:
    augment = [{"name": name, **MOVES[name]}]
    plain, moved = dataset(root)[0], dataset(root, augment=augment, training=True)[0]
    assert moved.augmented is not None
    turn, offset = moved.augmented[:3, :3], moved.augmented[:3, 3]
    before, after = targets(plain), targets(moved)
    # the same place of the ground has the same layers
    x, y = (cell_centres(axis) for axis in before.map_grid)
    middle = np.stack(np.meshgrid(x, y), -1)
    place = middle @ turn[:2, :2].T + offset[:2]
    cell = np.floor((place + 50) / 0.5).astype(int)
    inside = ((cell >= 0) & (cell < 200)).all(axis=-1)
    same = after.map_masks[:, cell[inside][:, 1], cell[inside][:, 0]] == before.map_masks[:, inside]
    assert same.mean() > 0.99
    # points are in the same cells of the occupancy
    labels = [_labels(s.points, np.asarray(targets(s).occupancy)) for s in (plain, moved)]
    rows = {_key(p): n for p, n in zip(plain.points[:, :3] @ turn.T + offset, labels[0], strict=True)}
    pairs = [
        (rows[key], label)
        for p, label in zip(moved.points, labels[1], strict=True)
        if (key := _key(p[:3])) in rows and label != 255 and rows[key] != 255
    ]
    assert len(pairs) > 200
    assert np.mean([a == b for a, b in pairs]) > 0.7  # cells are cut anew
    # paths are turned alike
    own = {int(t): f for t, f in zip(before.track_ids, before.futures, strict=True)}
    for track, future in zip(after.track_ids, after.futures, strict=True):
        np.testing.assert_allclose(future, own[int(track)] @ turn[:2, :2].T, atol=1e-3)
    np.testing.assert_allclose(after.plan.steps, before.plan.steps @ turn[:2, :2].T, atol=1e-3)
    rate = 1 if np.linalg.det(turn) > 0 else -1
    np.testing.assert_allclose(after.plan.status[5], rate * before.plan.status[5], atol=1e-5)


def _key(point: Any) -> tuple[int, ...]:
    """A place in centimetres."""
    return tuple(np.round(100 * point).astype(int).tolist())


def _labels(points: Any, occupancy: Any) -> Any:
    cell = np.floor((points[:, :3] - [-40, -40, -1]) / 0.4).astype(int)
    inside = ((cell >= 0) & (cell < [200, 200, 16])).all(axis=1)
    return np.where(inside, occupancy[tuple(np.where(inside[:, None], cell, 0).T)], 255)


def test_moves_are_remembered_in_their_order() -> None:
    points = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    sample = Sample(points, ("x", "y", "z", "intensity"), "")
    moved = translate(flip(scale(rotate(sample, 0.3), 1.1), "y"), (1.0, 2, 3))
    assert moved.augmented is not None
    np.testing.assert_allclose(
        points[:, :3] @ moved.augmented[:3, :3].T + moved.augmented[:3, 3], moved.points[:, :3], atol=1e-5
    )


def test_the_frame_of_the_vehicle_is_that_of_the_lidar_moved(root: Path) -> None:
    wide = {"scene": None, "point_cloud_range": [-200, -200, -20, 200, 200, 50]}
    ego, lidar = dataset(root, **wide)[0], dataset(root, frame="lidar", **wide)[0]
    np.testing.assert_allclose(ego.points[:, 0], lidar.points[:, 1] + 0.94, atol=1e-4)
    np.testing.assert_allclose(ego.points[:, 1], -lidar.points[:, 0], atol=1e-4)
    world = [s.points[:, :3] @ s.pose[:3, :3].T + s.pose[:3, 3] for s in (ego, lidar)]
    np.testing.assert_allclose(*world, atol=1e-3)
    boxes = [np.asarray(targets(s).boxes) for s in (ego, lidar)]
    np.testing.assert_allclose(boxes[0][:, 7], boxes[1][:, 8], atol=1e-4)
    wrapped = (boxes[0][:, 6] - boxes[1][:, 6] + np.pi / 2 + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(wrapped, 0, atol=1e-4)


def labelled_classes(data: NuScenesDataset) -> set[str]:
    """The classes of which an object with points is near enough to be evaluated in any frame."""
    farthest = {"pedestrian": 40, "bicycle": 40, "motorcycle": 40, "barrier": 30, "traffic_cone": 30}  # metres, or 50
    return {
        name
        for sample in data
        for name, box, points in zip(
            *(getattr(targets(sample), k) for k in ("names", "boxes", "num_points")), strict=True
        )
        if points > 0 and np.hypot(box[0], box[1]) < farthest.get(name, 50)
    }


def test_results_in_the_frame_of_the_vehicle_are_written_in_the_world(root: Path) -> None:
    values = []
    for frame in ("ego", "lidar"):
        data = dataset(root, scene=None, frame=frame, split="val")
        evaluator = data.evaluator()
        for sample in data:
            own = targets(sample)
            evaluator.add(sample, Detections(own.boxes, np.ones(len(own), np.float32), own.labels, own.class_names))
        result = evaluator.result()
        assert result is not None
        values.append(result.values)
    present = labelled_classes(dataset(root, scene=None, split="val"))
    assert "car" in present
    for found in values:  # classes that are there are found whole, and have no error; others count as 0 and 1
        assert found["mAP"] == pytest.approx(len(present) / 10, abs=0.01)
        assert found["mAP"] + found["mATE"] == pytest.approx(1, abs=0.01)
        assert found["mAP"] == values[0]["mAP"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"frame": "lidar"}, "frame: ego"),
        ({"scene": {"map_layers": ["road"]}}, "no layer 'road'"),
        ({"scene": {"occupancy": "gts", "occupancy_x": [-40, 40, 0.5]}}, "0.4 m"),
        ({"scene": {"plan": -1}}, "plan must lie"),
        ({"scene": {"maps": "all"}}, "no such key"),
    ],
)
def test_settings_that_cannot_be_are_refused(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        dataset(root, **settings)


def test_a_part_of_the_occupancy_is_cut_out(root: Path) -> None:
    whole = targets(dataset(root)[0]).occupancy
    scene = {"occupancy": "gts", "occupancy_x": [-8, 16, 0.4], "occupancy_y": [-4, 44, 0.4]}
    part = targets(dataset(root, scene=scene)[0]).occupancy
    np.testing.assert_array_equal(part[:, :110], whole[80:140, 90:200])
    assert (part[:, 110:] == 255).all()
    masked = targets(dataset(root, scene={"occupancy": "gts", "occupancy_mask": "lidar"})[0]).occupancy
    assert set(np.unique(masked[masked != whole])) == {255}


def test_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_labels(tmp_path / "labels.npz")
    np.savez(tmp_path / "labels.npz", semantics=np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match=r"labels.npz: semantics must be whole numbers \[200, 200, 16\]"):
        read_labels(tmp_path / "labels.npz")
    for text in ("[]", json.dumps({"node": []}), json.dumps({"node": [{"token": "a"}]})):
        (tmp_path / "map.json").write_text(text)
        with pytest.raises(DataError, match=r"map\.json"):
            CityMap.read(tmp_path / "map.json")


def test_labels_are_taken_as_they_are_where_grids_agree() -> None:
    labels = np.random.default_rng(0).integers(0, 18, (200, 200, 16)).astype(np.uint8)
    grid = (-40.0, 40.0, 0.4)
    np.testing.assert_array_equal(resampled(labels, np.eye(4), grid, grid), labels)
    shifted = np.eye(4)
    shifted[:3, 3] = 0.8, -1.2, 0.4
    slightly = shifted.copy()
    slightly[0, 1] = 1e-9  # the way of matrices that turn
    np.testing.assert_array_equal(resampled(labels, shifted, grid, grid), resampled(labels, slightly, grid, grid))
    assert resampled(labels, shifted, grid, grid).dtype == np.uint8
    turned = np.diag([-1.0, -1, 1, 1])
    np.testing.assert_array_equal(resampled(labels, turned, grid, grid), labels[::-1, ::-1])
