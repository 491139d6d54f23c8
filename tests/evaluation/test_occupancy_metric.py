"""Occupancy: voxels and rays against brute force, panoptic quality by hand, and what is said about wrong files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.evaluation.occupancy import CLASSES, Occupancy, OccupancyCounts
from pcdet_ext.evaluation.occupancy_files import read_poses
from pcdet_ext.evaluation.occupancy_panoptic import RayPanoptic
from pcdet_ext.evaluation.occupancy_rays import FREE, LOWER, SHAPE, VOXEL_SIZE, Pose, cast, directions, origins
from pcdet_ext.files import DataError


def empty() -> np.ndarray:
    return np.full(SHAPE, FREE, np.uint8)


def scattered(seed: int) -> np.ndarray:
    rng, grid = np.random.default_rng(seed), empty()
    places = tuple(rng.integers(0, size, 3000) for size in SHAPE)
    grid[places] = rng.integers(0, FREE, 3000)
    grid[:, :, 1] = 11
    return grid


def test_rays_hit_the_first_voxel_whose_slabs_they_cross() -> None:
    """Against every occupied voxel: the interval of the ray inside a box is where it is inside all three slabs."""
    grid, start = scattered(0), np.array([1.234, -2.345, 1.8])
    rays = directions()[7::307]
    rays = rays[(rays != 0).all(axis=1)]
    hits = cast(grid, start[None], rays=rays)
    voxels = np.argwhere(grid != FREE)
    low = np.array(LOWER) + VOXEL_SIZE * voxels
    unit = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    for i, ray in enumerate(unit.astype(np.float64)):
        sides = np.stack([low - start, low + VOXEL_SIZE - start]) / ray
        enter, leave = sides.min(axis=0).max(axis=1), sides.max(axis=0).min(axis=1)
        crossed = np.flatnonzero((enter < leave) & (leave > 0))
        label = grid.reshape(-1)[hits.voxel[0, i]]
        if not len(crossed):
            assert label == FREE
            continue
        first = crossed[np.argmin(enter[crossed])]
        if leave[first] - enter[first] < 2e-3:
            continue  # it grazes an edge
        assert hits.voxel[0, i] == np.ravel_multi_index(tuple(voxels[first]), SHAPE)
        assert hits.distance[0, i] == pytest.approx(leave[first], abs=2e-3)


def test_a_ray_that_never_enters_the_grid_ends_in_its_corner() -> None:
    hits = cast(empty(), np.array([[0.0, 0.0, 9.0]]), rays=np.array([[0, 0, 1], [0.6, 0, -0.8]], np.float32))
    assert hits.voxel[0, 0] == 0
    assert hits.distance[0] == pytest.approx([-0.4, hits.distance[0, 1]])
    assert hits.voxel[0, 1] % SHAPE[2] == 0  # the lowest layer
    assert hits.distance[0, 1] == pytest.approx(10 / 0.8)


def test_voxels_are_counted_inside_the_masks_and_where_the_truth_is_known() -> None:
    rng = np.random.default_rng(1)
    truth, found = (rng.integers(0, 18, SHAPE, np.uint8) for _ in range(2))
    truth[:50] = 255
    masks = [rng.integers(0, 2, SHAPE, np.uint8) for _ in range(2)]
    counts = OccupancyCounts()
    counts.add(Occupancy(truth, mask_lidar=masks[0], mask_camera=masks[1]), Occupancy(found))
    result = counts.result()
    for name, mask in zip(("all", "lidar_mask", "camera_mask"), (np.ones(SHAPE), *masks), strict=True):
        for c in range(18):
            inside = (mask != 0) & (truth != 255)
            both = ((truth == c) & (found == c) & inside).sum()
            either = (((truth == c) | (found == c)) & inside).sum()
            assert result.iou(name)[c] == both / either
    counts.add(Occupancy(truth), Occupancy(found))
    assert list(counts.result().confusion) == ["all"]


def test_a_perfect_prediction_and_one_that_is_a_voxel_off() -> None:
    truth = scattered(2)
    start = np.array([[0.0, 0.0, 1.8]])
    counts = OccupancyCounts()
    counts.add(Occupancy(truth), Occupancy(truth), start)
    assert counts.result().score == 1
    wall, moved = empty(), empty()
    wall[150], moved[154] = 15, 15  # 1.6 m further away
    counts = OccupancyCounts()
    counts.add(Occupancy(wall), Occupancy(moved), start)
    values = counts.result().values
    assert values["RayIoU@1"] == 0
    assert 0 < values["RayIoU@2"] < values["RayIoU@4"]


def test_flow_errors_are_of_moving_classes_that_were_found() -> None:
    grid = empty()
    grid[150], grid[50] = CLASSES.index("car"), CLASSES.index("manmade")
    flow = np.zeros((*SHAPE, 2), np.float32)
    counts = OccupancyCounts()
    counts.add(Occupancy(grid, flow), Occupancy(grid, flow + np.array([0.3, 0.4], np.float32)), np.zeros((1, 3)))
    values = counts.result().values
    assert values["mAVE"] == pytest.approx(0.5)
    assert values["OccScore"] == pytest.approx(0.95)
    counts.add(Occupancy(grid), Occupancy(grid), np.zeros((1, 3)))
    assert counts.result().values["mAVE"] == pytest.approx(0.5)  # frames without flow have no flow errors


def test_panoptic_quality_of_a_split_object() -> None:
    panoptic = RayPanoptic(17, frozenset({4}), (1,))
    truth, ids = np.r_[np.full(30, 4), np.full(20, 11)], np.r_[np.full(30, 7), np.zeros(20, int)]
    found_ids = np.r_[np.full(18, 1), np.full(12, 2), np.zeros(20, int)]
    panoptic.add(truth, ids, truth, found_ids, np.zeros(50, np.float32))
    assert (panoptic.true[0, 4], panoptic.false[0, 4], panoptic.missed[0, 4]) == (1, 1, 0)
    assert panoptic.overlap[0, 4] == pytest.approx(0.6)
    assert panoptic.quality()[0, 4] == pytest.approx(0.6 / 1.5)
    assert panoptic.quality()[0, 11] == 1
    assert np.isnan(panoptic.quality()[0, 3])


def pose(x: float, scene: str = "a", token: str = "") -> Pose:
    lidar, ego = np.eye(4), np.eye(4)
    lidar[:3, 3], ego[0, 3] = (1, 0, 2), x
    return Pose(scene, token, lidar, ego)


def test_origins_are_near_places_of_the_same_scene_evenly_spread() -> None:
    poses = [pose(4.0 * i) for i in range(30)] + [pose(0, "b")]
    found = origins(poses, 0)
    np.testing.assert_allclose(found[:, 0], 1 + 4 * np.array([0, 1, 3, 4, 5, 6, 8, 9]))
    np.testing.assert_allclose(found[:, 1:], np.tile([0, 2], (8, 1)))
    np.testing.assert_allclose(origins(poses, 30), [[1, 0, 2]])


def test_wrong_grids_are_refused() -> None:
    good = Occupancy(empty())
    with pytest.raises(ValueError, match=r"labels must be \[200, 200, 16\], got \[2, 2, 2\]"):
        Occupancy(np.zeros((2, 2, 2), np.uint8))
    with pytest.raises(ValueError, match="go from 0 to 17, got 255"):
        OccupancyCounts().add(good, Occupancy(np.full(SHAPE, 255, np.uint8)))
    with pytest.raises(ValueError, match="flow is given for one side only"):
        OccupancyCounts().add(good, Occupancy(empty(), np.zeros((*SHAPE, 2), np.float32)))


ENTRY = {
    "scene_name": "a", "token": "t", "lidar2ego_translation": [1, 0, 2], "lidar2ego_rotation": [1, 0, 0, 0],
    "ego2global_translation": [0, 0, 0], "ego2global_rotation": [1, 0, 0, 0],
}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list of frames, got dict"),
        ([{**ENTRY, "token": 3}], "frame 0: needs scene_name and token"),
        ([{**ENTRY, "ego2global_translation": [1, 2]}], "frame 0: ego2global_translation must be 3 finite numbers"),
        ([{**ENTRY, "ego2global_translation": [10**400, 0, 0]}], "frame 0: ego2global_translation must be 3 finite"),
        ([{**ENTRY, "lidar2ego_rotation": [0, 0, 0, 0]}], "frame 0: lidar2ego_rotation: a rotation of zeros"),
        ([ENTRY, ENTRY], "several frames have the same token"),
    ],
)
def test_damaged_poses_are_named(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "poses.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"poses\.json: {message}"):
        read_poses(tmp_path / "poses.json")


def test_the_command_line_takes_folders_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, found = scattered(3), scattered(4)
    (tmp_path / "gts" / "a" / "t").mkdir(parents=True)
    (tmp_path / "found").mkdir()
    np.savez_compressed(tmp_path / "gts" / "a" / "t" / "labels.npz", semantics=truth, mask_camera=np.ones_like(truth))
    np.savez_compressed(tmp_path / "found" / "t.npz", pred=found)
    np.savez_compressed(tmp_path / "gt.npz", semantics=truth[None])
    np.savez_compressed(tmp_path / "found.npz", pred=found[None])
    (tmp_path / "poses.json").write_text(json.dumps([ENTRY]))
    scores = []
    for sides in (("gts", "found"), ("gt.npz", "found.npz")):
        arguments = ["evaluate", "occupancy", "--ground-truth", str(tmp_path / sides[0])]
        arguments += ["--results", str(tmp_path / sides[1]), "--json", str(tmp_path / "out.json")]
        assert main([*arguments, f"poses={tmp_path / 'poses.json'}"]) == 0
        content = json.loads((tmp_path / "out.json").read_text())
        scores.append((content["ray"]["RayIoU"], content["voxel"]["all"]["mIoU"]))
    counts = OccupancyCounts()
    counts.add(Occupancy(truth), Occupancy(found), np.array([[1.0, 0, 2]]))
    values = counts.result().values
    assert scores == [(values["RayIoU"], values["mIoU/all"])] * 2
    capsys.readouterr()
    np.savez(tmp_path / "found.npz", pred=found)
    assert main(arguments) != 0
    assert "found.npz" in capsys.readouterr().err
    np.savez(tmp_path / "none.npz", semantics=truth[None][:0], pred=found[None][:0])
    none = [part.replace("gt.npz", "none.npz").replace("found.npz", "none.npz") for part in arguments]
    assert main(none) != 0
    assert "none.npz: has no frame: there is nothing to measure" in capsys.readouterr().err
    np.savez(tmp_path / "found.npz", other=found)
    assert main(arguments) != 0
    assert "found.npz: no readable .npz with pred" in capsys.readouterr().err
