"""The Waymo layout holds what was simulated: official columns, points on the street, boxes that hold their points."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.spatial.transform import Rotation

from pcdet_ext.data.simulation import Drive, WaymoLasers, drive, simulate_waymo
from pcdet_ext.data.simulation.waymo import WORLD, inside_any

open3d = pytest.importorskip("open3d", exc_type=ImportError)

FRAMES = 3
COMPONENTS = [
    "lidar",
    "lidar_box",
    "lidar_calibration",
    "lidar_camera_synced_box",
    "lidar_pose",
    "stats",
    "vehicle_pose",
]
SMALL = WaymoLasers(rows=16, columns=120, side_rows=8, side_columns=40)
EXACT = WaymoLasers(rows=32, columns=400, side_rows=16, side_columns=60, range_noise=0.0)
Row = dict[str, Any]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("waymo")
    return simulate_waymo(out, scenes=2, frames=FRAMES, seed=3, val_fraction=0.5, workers=1, sensor=EXACT)


def rows(root: Path, split: str, component: str) -> list[Row]:
    (path,) = (root / split / component).glob("*.parquet")
    table = pq.read_table(path).to_pylist()
    return [{key.split("].")[-1].removeprefix("key."): value for key, value in row.items()} for row in table]


def scene_of(root: Path, split: str) -> Drive:
    """The drive that was written to a split, simulated again."""
    (mine,) = (root / split / "stats").glob("*.parquet")
    number = int(mine.stem.split("_")[1]) // 20
    return drive(np.random.default_rng([3, number]), (FRAMES - 1) * 0.1)


def points_of(calibration: Row, lidar: Row, image: int, poses: np.ndarray | None, frame: np.ndarray) -> np.ndarray:
    """Points of an image in the world's frame and the other channels, float64 [N, 6]: by the published equations."""
    values = np.array(lidar[f"range_image_return{image}.values"]).reshape(lidar[f"range_image_return{image}.shape"])
    height, width = values.shape[:2]
    extrinsic = np.reshape(calibration["extrinsic.transform"], (4, 4))
    low, high = calibration["beam_inclination.min"], calibration["beam_inclination.max"]
    tilt = calibration["beam_inclination.values"] or (np.arange(height) + 0.5) / height * (high - low) + low
    tilt = np.array(tilt)[::-1, None]
    turn = ((width - np.arange(width) - 0.5) / width * 2 - 1) * np.pi - np.arctan2(extrinsic[1, 0], extrinsic[0, 0])
    vectors = [np.cos(turn) * np.cos(tilt), np.sin(turn) * np.cos(tilt), np.sin(tilt) * np.ones_like(turn)]
    local = np.stack(vectors, -1) * values[..., :1] @ extrinsic[:3, :3].T + extrinsic[:3, 3]
    if poses is None:
        world = local @ frame[:3, :3].T + frame[:3, 3]
    else:
        turns = Rotation.from_euler("xyz", poses[..., :3].reshape(-1, 3))
        world = (turns.apply(local.reshape(-1, 3)) + poses[..., 3:].reshape(-1, 3)).reshape(local.shape)
    return np.concatenate([world, values[..., 1:]], -1)[values[..., 0] > 0]


def frames_of(root: Path, split: str) -> list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]:
    """Of each frame: its pose, points of the top laser, and points of each laser (both returns), in the world."""
    calibrations = {row["laser_name"]: row for row in rows(root, split, "lidar_calibration")}
    lidar, pixel_poses = rows(root, split, "lidar"), rows(root, split, "lidar_pose")
    frames = []
    for row, pixel in zip(rows(root, split, "vehicle_pose"), pixel_poses, strict=True):
        pose = np.reshape(row["world_from_vehicle.transform"], (4, 4))
        poses = np.reshape(pixel["range_image_return1.values"], pixel["range_image_return1.shape"])
        mine = [r for r in lidar if r["frame_timestamp_micros"] == row["frame_timestamp_micros"]]
        points = [
            np.vstack([points_of(calibrations[n], r, i, poses if n == 1 else None, pose) for i in (1, 2)])
            for r in mine
            for n in [r["laser_name"]]
        ]
        assert [r["laser_name"] for r in mine] == [1, 2, 3, 4, 5]
        frames.append((pose, points[0], points))
    return frames


def test_columns_are_the_official_ones(released: Path, shared: Path) -> None:
    for split in ("training", "validation"):
        assert sorted(p.name for p in (released / split).iterdir()) == COMPONENTS
    for name in COMPONENTS:
        (official,) = (shared / "golden/data/waymo_v2/training" / name).glob("*.parquet")
        (own,) = (released / "training" / name).glob("*.parquet")
        assert pq.read_schema(own).remove_metadata().equals(pq.read_schema(official).remove_metadata()), name


@pytest.mark.parametrize("split", ["training", "validation"])
def test_points_of_all_lasers_and_frames_lie_on_one_street(released: Path, split: str) -> None:
    street = scene_of(released, split)
    for number, (pose, _, lasers) in enumerate(frames_of(released, split)):
        np.testing.assert_allclose(pose[:3, 3] - WORLD, street.ego_pose(number * 0.1)[:3, 3], atol=1e-9)
        world = open3d.t.geometry.RaycastingScene()
        placed = zip(street.tracks, street.places(number * 0.1), strict=True)
        meshes = [track.mesh.moved(*place) for track, place in placed if np.isfinite(place).all()]
        for mesh in [street.static, *meshes]:
            world.add_triangles(open3d.core.Tensor(mesh.vertices), open3d.core.Tensor(mesh.triangles.astype(np.uint32)))
        for points in lasers:
            local = (points[:, :3] - WORLD).astype(np.float32)
            distance = world.compute_distance(open3d.core.Tensor(local)).numpy()
            assert len(points) > 50
            assert np.quantile(distance, 0.99) < 2e-3
            assert distance.max() < 0.05
            assert np.array_equal(points[:, 5] > 0, inside_any(local[:, :2].astype(np.float64), street.unlabelled))


def test_the_top_laser_moves_during_its_turn(released: Path) -> None:
    for split in ("training", "validation"):
        street = scene_of(released, split)
        speed = np.linalg.norm(street.ego_pose(0.15)[:3, 3] - street.ego_pose(0.05)[:3, 3]) / 0.1
        pixel = rows(released, split, "lidar_pose")[1]
        poses = np.reshape(pixel["range_image_return1.values"], pixel["range_image_return1.shape"])
        assert poses.shape == (32, 400, 6)
        moved = np.linalg.norm(poses[0, -1, 3:] - poses[0, 0, 3:])
        assert moved == pytest.approx(speed * 0.1, rel=0.02, abs=2e-3)
        assert (poses == poses[:1]).all()


def test_boxes_hold_the_points_that_they_say(released: Path) -> None:
    counted = 0
    for split in ("training", "validation"):
        labels = rows(released, split, "lidar_box")
        keys = sorted({row["frame_timestamp_micros"] for row in labels})
        for key, (pose, top, lasers) in zip(keys, frames_of(released, split), strict=True):
            for row in [r for r in labels if r["frame_timestamp_micros"] == key]:
                for points, name in (
                    (top, "num_top_lidar_points_in_box"),
                    (np.vstack(lasers), "num_lidar_points_in_box"),
                ):
                    local = (points[:, :3] - pose[:3, 3]) @ pose[:3, :3] - [row[f"box.center.{c}"] for c in "xyz"]
                    local = Rotation.from_euler("z", -row["box.heading"]).apply(local)
                    inside = (np.abs(local) <= np.array([row[f"box.size.{c}"] for c in "xyz"]) / 2).all(1).sum()
                    assert abs(int(inside) - row[name]) <= 1 + 0.01 * row[name]  # ranges are float32
                    counted += int(inside)
                assert row["difficulty_level.detection"] in (1, 2)
                if row["num_lidar_points_in_box"] <= 5:
                    assert row["difficulty_level.detection"] == 2
    assert counted > 1000


def test_tracks_keep_their_size_and_move_with_their_speed(released: Path) -> None:
    moved = 0
    for split in ("training", "validation"):
        poses = {
            row["frame_timestamp_micros"]: np.reshape(row["world_from_vehicle.transform"], (4, 4))
            for row in rows(released, split, "vehicle_pose")
        }
        tracks: dict[str, list[Row]] = {}
        for row in rows(released, split, "lidar_box"):
            tracks.setdefault(row["laser_object_id"], []).append(row)
        for chain in tracks.values():
            assert len({tuple(row[f"box.size.{c}"] for c in "xyz") for row in chain}) == 1
            assert len({row["type"] for row in chain}) == 1
            for a, b in itertools.pairwise(chain):
                places = []
                for row in (a, b):
                    pose = poses[row["frame_timestamp_micros"]]
                    places.append(pose[:3, :3] @ [row[f"box.center.{c}"] for c in "xyz"] + pose[:3, 3])
                speed = np.array([[row[f"speed.{c}"] for c in "xyz"] for row in (a, b)]).mean(0)
                np.testing.assert_allclose((places[1] - places[0]) / 0.1, speed, atol=0.25)
                moved += np.linalg.norm(speed) > 2
    assert moved > 5


def test_second_returns_lie_behind_first_ones(released: Path) -> None:
    seconds = 0
    for row in rows(released, "training", "lidar"):
        first, second = (
            np.reshape(row[f"range_image_return{i}.values"], row[f"range_image_return{i}.shape"]) for i in (1, 2)
        )
        there = second[..., 0] > 0
        assert (second[there][:, 0] > first[there][:, 0]).all()
        assert (second[~there] == -1).all()
        seconds += int(there.sum())
        assert there.sum() < 0.1 * (first[..., 0] > 0).sum() + 5
    assert seconds > 20


def test_nothing_is_labelled_where_nothing_should_be(released: Path) -> None:
    for split in ("training", "validation"):
        street = scene_of(released, split)
        poses = {
            r["frame_timestamp_micros"]: r["world_from_vehicle.transform"]
            for r in rows(released, split, "vehicle_pose")
        }
        for row in rows(released, split, "lidar_box"):
            pose = np.reshape(poses[row["frame_timestamp_micros"]], (4, 4))
            centre = pose[:3, :3] @ [row[f"box.center.{c}"] for c in "xyz"] + pose[:3, 3] - WORLD
            assert not inside_any(centre[None, :2], street.unlabelled)[0]
            assert row["type"] in (1, 2, 3, 4)


def test_statistics_count_the_labels(released: Path) -> None:
    labels = rows(released, "training", "lidar_box")
    for row in rows(released, "training", "stats"):
        types = [r["type"] for r in labels if r["frame_timestamp_micros"] == row["frame_timestamp_micros"]]
        assert row["lidar_object_counts.types"] == sorted(set(types))
        assert row["lidar_object_counts.counts"] == [types.count(t) for t in sorted(set(types))]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_drives_are_the_same_for_any_number_of_workers_and_after_an_interruption(tmp_path: Path) -> None:
    request = {"scenes": 2, "frames": 2, "seed": 5, "sensor": SMALL}
    simulate_waymo(tmp_path / "a", workers=1, **request)
    simulate_waymo(tmp_path / "b", workers=2, **request)
    whole = files(tmp_path / "a")
    assert files(tmp_path / "b") == whole
    (tmp_path / "a/simulation.json").rename(tmp_path / "a/simulation.started.json")
    for component in ("stats", "lidar"):
        next((tmp_path / "a/training" / component).iterdir()).unlink()
    simulate_waymo(tmp_path / "a", workers=1, **request)
    assert files(tmp_path / "a") == whole
    lost = next((tmp_path / "a/training/lidar_box").iterdir())
    lost.unlink()  # in a finished folder
    simulate_waymo(tmp_path / "a", workers=1, **request)
    assert files(tmp_path / "a") == whole
    with pytest.raises(FileExistsError, match="holds another simulation"):
        simulate_waymo(tmp_path / "a", workers=1, **(request | {"frames": 3}))
