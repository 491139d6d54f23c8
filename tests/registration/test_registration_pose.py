"""Poses from correspondences, their errors, and pairs of frames whose pose is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_ext.data.places import Frame, PlaceFrames, PlacesDataset, write_frames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError
from pcdet_ext.registration import FPFH, pose_error, pose_of_matches, register
from pcdet_ext.registration.ground import above_ground
from pcdet_ext.registration.pairs import CloudPair, CloudPairs, turned_at_random
from pcdet_ext.structures import Array


def pose(degrees: float, *offset: float) -> Array:
    found, angle = np.eye(4), np.deg2rad(degrees)
    found[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    found[:3, 3] = offset or (0, 0, 0)
    return found


def moved(points: Array, by: Array) -> Array:
    return points @ by[:3, :3].T + by[:3, 3]


def test_errors_of_poses() -> None:
    error = pose_error(pose(10, 1, 2, 3), pose(-20, 1, 5, 7))
    assert error.rotation == pytest.approx(30)
    assert error.translation == pytest.approx(5)
    assert pose_error(pose(0), pose(4.9, 0, 1.9, 0)).within()
    assert not pose_error(pose(0), pose(5.1, 0, 0, 0)).within()
    assert not pose_error(pose(0), pose(0, 2.1, 0, 0)).within()


@pytest.mark.parametrize("wrong", [0.0, 0.7])
def test_ransac_finds_the_pose_among_wrong_pairs(wrong: float) -> None:
    pytest.importorskip("open3d")
    rng, right = np.random.default_rng(0), pose(140, 6, -4, 0.5)
    source = rng.uniform(-30, 30, (400, 3))
    target = moved(source, right)
    lost = rng.random(400) < wrong
    target[lost] = rng.uniform(-30, 30, (int(lost.sum()), 3))
    found = pose_of_matches(source, target, 0.3)
    error = found.error(right)
    assert error.rotation < 0.1
    assert error.translation < 0.1
    assert found.matches == 400
    assert found.inliers == pytest.approx(400 - lost.sum(), abs=5)


def test_where_nothing_is_found_there_is_no_pose() -> None:
    pytest.importorskip("open3d")
    two = pose_of_matches(np.zeros((2, 3)), np.ones((2, 3)), 1.0)
    assert (two.pose, two.inliers, two.matches) == (None, 0, 2)
    rng = np.random.default_rng(0)
    unlike = pose_of_matches(rng.uniform(-30, 30, (60, 3)), rng.uniform(-30, 30, (60, 3)), 0.5)
    assert unlike.pose is None
    assert unlike.inliers < 30
    assert not unlike.error(np.eye(4)).within()
    assert register(np.zeros((0, 3), np.float32), walls(rng), nothing_but_points, 1.0).pose is None


def nothing_but_points(points: Array) -> tuple[torch.Tensor, torch.Tensor]:
    """The points themselves as descriptors."""
    cloud = torch.from_numpy(points[:, :3])
    return cloud, cloud


def test_numbers_that_make_no_sense_are_refused() -> None:
    five = np.zeros((5, 3))
    for wrong, message in (
        ({"distance": 0.0}, "distance must be above 0 and finite, got 0.0"),
        ({"distance": float("nan")}, "distance must be above 0 and finite, got nan"),
        ({"distance": 1.0, "min_inliers": 2}, "min_inliers must be at least 3, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            pose_of_matches(five, five, **wrong)
    with pytest.raises(ValueError, match="source and target must have as many points, got 5 and 4"):
        pose_of_matches(five, five[:4], 1.0)


def test_the_ground_is_what_is_lowest_around() -> None:
    rng = np.random.default_rng(0)
    slope = np.column_stack([rng.uniform(-20, 20, (20000, 2)), np.zeros(20000)])
    slope[:, 2] = 0.05 * slope[:, 0] + rng.normal(0, 0.02, len(slope))
    wall = np.column_stack([rng.uniform(-20, 20, 500), np.full(500, 3.0), rng.uniform(1.5, 5, 500)])
    cloud = np.concatenate([slope, wall])
    standing = above_ground(cloud, cloud, 0.4)
    assert not standing[:20000].any()
    assert standing[20000:].all()
    assert above_ground(np.zeros((0, 3)), cloud, 0.4).shape == (0,)


def test_a_street_does_not_slide_along_itself() -> None:
    """Ground matches that fit any shift along the street outnumber those of the houses."""
    pytest.importorskip("open3d")
    rng, right = np.random.default_rng(2), pose(0, 8, 0, 0)
    ground = np.column_stack([rng.uniform(-30, 30, (900, 2)), np.full(900, -1.8)])
    houses = rng.uniform((-30, -15, 0), (30, 15, 6), (60, 3))
    source = np.concatenate([ground, houses]).astype(np.float32)
    target = source.copy()
    target[900:] = moved(houses, right)  # each piece of ground corresponds to the one at the same place: no shift

    def by_row(points: Array) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(points), torch.arange(len(points), dtype=torch.float32)[:, None]

    assert register(source, target, by_row, 0.5).error(right).within(1.0, 0.2)
    assert register(source, target, by_row, 0.5, ground=None).error(np.eye(4)).within(1.0, 0.2)


def walls(rng: np.random.Generator) -> Array:
    """Points on the ground and on boxes of different sizes."""
    parts = [np.column_stack([rng.uniform(-15, 15, (3000, 2)), rng.normal(0, 0.02, 3000)])]
    for _ in range(12):
        x, y, height = rng.uniform(-12, 12), rng.uniform(-12, 12), rng.uniform(1, 5)
        along, up = rng.uniform(0, rng.uniform(2, 6), 500), rng.uniform(0, height, 500)
        parts.append(
            np.column_stack(
                [x + along, np.full(500, y), up] if rng.random() < 0.5 else [np.full(500, x), y + along, up]
            )
        )
    return np.concatenate(parts).astype(np.float32)


def test_fpfh_lays_a_turned_cloud_over_itself() -> None:
    pytest.importorskip("open3d")
    rng, right = np.random.default_rng(1), pose(75, 3, -2, 0.2)
    source = walls(rng)
    target = moved(walls(np.random.default_rng(1)), right)[rng.permutation(len(source))].astype(np.float32)
    found = register(source, target, FPFH(0.5), 1.0)
    assert found.error(right).within(3.0, 0.5)
    assert found.matches >= found.inliers >= 30


def test_without_open3d_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open3d", None)
    with pytest.raises(ImportError, match=r"pip install 'pcdet_ext\[vis\]'"):
        pose_of_matches(np.zeros((5, 3)), np.zeros((5, 3)), 1.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two runs, of which one comes back on the other side of the street; a point at (5, 1, 0) of the world each."""
    frames = [
        Frame("a.bin", "there", "train", 0.0, 0.0, heading=0.0),
        Frame("b.bin", "back", "train", 8.0, 2.0, 0.5, heading=np.pi),
        Frame("c.bin", "there", "train", 8.0, 0.0, heading=0.1),
        Frame("d.bin", "above", "train", 8.0, 0.0, heading=0.0, view="aerial"),
        Frame("e.bin", "unknown heading", "train", 8.0, 0.0),
    ]
    for frame in frames:
        local = np.linalg.inv(frame.pose()) @ [5.0, 1.0, 0.0, 1.0]
        np.array([[*local[:3], 0.5]], np.float32).tofile(tmp_path / frame.cloud)
    write_frames(tmp_path, frames)
    (tmp_path / "dataset.yaml").write_text("point_features: [x, y, z, intensity]\n", encoding="utf-8")
    prepare(PlaceFrames(tmp_path), ["train"], progress=False)
    return tmp_path


def dataset(folder: Path) -> PlacesDataset:
    everything = (-1e4,) * 3 + (1e4,) * 3
    return PlacesDataset(root=folder, point_cloud_range=everything, positive_radius=15, negative_radius=30)


def test_pairs_are_of_different_runs_on_the_ground_and_know_their_pose(folder: Path) -> None:
    pairs = CloudPairs(dataset(folder), 5, 15)
    assert len(pairs) == 1
    pair = pairs[0]
    assert pair.opposite
    for _ in range(2):
        np.testing.assert_allclose(moved(pair.source[:, :3], pair.pose), pair.target[:, :3], atol=1e-4)
        pair = turned_at_random(pair, np.random.default_rng(0))
    assert len(CloudPairs(dataset(folder), 0, 15)) == 2


def test_a_folder_without_pairs_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="are 50 to 60 m apart in split 'train'"):
        CloudPairs(dataset(folder), 50, 60)


def test_random_turns_keep_the_other_columns() -> None:
    rng = np.random.default_rng(3)
    cloud = rng.normal(size=(20, 4)).astype(np.float32)
    pair = turned_at_random(CloudPair(cloud, cloud, np.eye(4), False), rng)
    assert np.array_equal(pair.source[:, 3], cloud[:, 3])
    assert not torch.allclose(torch.from_numpy(pair.source), torch.from_numpy(pair.target))
