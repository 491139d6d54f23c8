"""nuScenes: tables to frames, sweeps that lie upon one another, labels and splits."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes_release import Release, dataset, ego_at, make_release, prepared

from pcdet_ext import config
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.index import index_path, read_index
from pcdet_ext.data.nuscenes import (
    Frame,
    NuScenesFrames,
    Sweep,
    joined_scans,
    official_scenes,
    read_scan,
)
from pcdet_ext.data.nuscenes.frames import padded
from pcdet_ext.data.objects import database_path, read_objects
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError


def test_official_splits_have_their_published_sizes() -> None:
    sizes = {split: len(official_scenes(split)) for split in ("train", "val", "test", "mini_train", "mini_val")}
    assert sizes == {"train": 700, "val": 150, "test": 150, "mini_train": 8, "mini_val": 2}
    assert not official_scenes("train") & official_scenes("val")
    assert official_scenes("mini_val") <= official_scenes("val")
    assert official_scenes("mini_train") <= official_scenes("train") | official_scenes("val")


def test_frames_of_a_split_come_in_the_order_of_the_table(release: Release, tmp_path: Path) -> None:
    release.tables["sample"].reverse()
    root = release.write(tmp_path)
    frames = NuScenesFrames(root).find("train")
    assert [frame.token for frame in frames] == ["scene-0061-2", "scene-0061-1", "scene-0061-0"]
    assert NuScenesFrames(root).find("mini_val")[0].token == "scene-0103-2"
    assert frames[-1].scene == "scene-0061"
    assert frames[-1].timestamp == pytest.approx(1000.0)


def test_joined_sweeps_lie_upon_one_another(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path))
    info = found.frames[2]
    sample = found.read(info)
    assert sample.point_features == ("x", "y", "z", "intensity", "timestamp", "ring")
    assert info.num_points == 61
    ages = np.unique(sample.points[:, 4])
    np.testing.assert_allclose(ages, np.arange(10) * 0.1, atol=1e-6)
    key = sample.points[sample.points[:, 4] == 0]
    assert len(key) == 61  # with the point on the vehicle, which the sweeps leave out
    for age in ages[1:]:
        older = sample.points[sample.points[:, 4] == age]
        np.testing.assert_allclose(older[:, :3], key[:60, :3], atol=1e-4)
    world = key[:, :3] @ sample.pose[:3, :3].T + sample.pose[:3, 3]
    assert np.linalg.norm(world[:, :2] - ego_at(1.0)[0][:2], axis=1).max() < 70


def test_a_scene_start_repeats_its_oldest_scan(release: Release, tmp_path: Path) -> None:
    frames = NuScenesFrames(release.write(tmp_path)).find("train")
    assert frames[0].sweeps == ()
    copies = frames[0].padded(9)
    assert [(c.file, c.lag, c.transform) for c in copies] == [(frames[0].file, 0.0, None)] * 9
    assert len(frames[1].sweeps) == 5
    assert [sweep.token for sweep in frames[1].padded(9)[5:]] == ["scene-0061-data-0"] * 4
    assert len(frames[2].sweeps) == 9
    found = dataset(prepared(release, tmp_path / "other"))
    assert len(found.read(found.frames[0]).points) == 61 + 9 * 60


@settings(max_examples=25, deadline=None)
@given(keys=st.integers(1, 3), between=st.integers(0, 4), cut=st.integers(0, 10), lost=st.sets(st.integers(1, 9)))
def test_chains_with_holes_give_the_scans_that_are_there(
    tmp_path_factory: pytest.TempPathFactory, keys: int, between: int, cut: int, lost: set[int]
) -> None:
    made = make_release(("scene-0061",), keys, between)
    rows = made.tables["sample_data"]
    kept = [row for i, row in enumerate(rows) if row["is_key_frame"] or i not in lost]
    for i, row in enumerate(kept):
        row["prev"] = kept[i - 1]["token"] if i and i != cut else ""
    made.tables["sample_data"] = list(reversed(kept))
    times = [row["timestamp"] for row in kept]
    for frame in NuScenesFrames(made.write(tmp_path_factory.mktemp("chain"))).find("train"):
        place = next(i for i, row in enumerate(kept) if row["filename"] == frame.file)
        start = cut if 0 < cut <= place else 0
        before = list(range(place - 1, start - 1, -1))[:9]
        assert [sweep.file for sweep in frame.sweeps] == [kept[i]["filename"] for i in before]
        lags = [(times[place] - times[i]) * 1e-6 for i in before]
        np.testing.assert_allclose([sweep.lag for sweep in frame.sweeps], lags, atol=1e-6)
        for i, sweep in zip(before, frame.sweeps, strict=True):
            origin = sweep.transform @ [0, 0, 0, 1]
            np.testing.assert_allclose(frame.pose @ origin, lidar_at(times[i] - times[0]), atol=1e-6)


def lidar_at(microseconds: float) -> np.ndarray:
    """Where the made-up lidar is, in homogeneous coordinates."""
    place, yaw = ego_at(microseconds * 1e-6)
    return np.array([place[0] + np.cos(yaw) * 0.94, place[1] + np.sin(yaw) * 0.94, place[2] + 1.84, 1.0])


def test_labels_are_in_the_frame_of_the_lidar(release: Release, tmp_path: Path) -> None:
    frame: Frame = NuScenesFrames(release.write(tmp_path)).find("train")[1]
    objects = frame.objects
    assert objects.names == ("car", "pedestrian", "ignore", "barrier")
    assert objects.tokens[0] == "scene-0061-instance-0-1"
    place, yaw = ego_at(0.5)
    ahead = np.array([407.0, 905.0]) - place[:2]
    along = ahead @ [np.cos(yaw), np.sin(yaw)] - 0.94
    left = ahead @ [-np.sin(yaw), np.cos(yaw)]
    np.testing.assert_allclose(objects.boxes[0, :2], [-left, along], atol=1e-9)  # y forward, x to the right
    np.testing.assert_allclose(objects.boxes[0, 3:6], [4.5, 1.9, 1.6])
    heading = np.pi / 2 - yaw  # the car heads along the world's x
    np.testing.assert_allclose(objects.boxes[0, 6], heading, atol=1e-9)
    np.testing.assert_allclose(objects.boxes[0, 7:], 4 * np.array([np.cos(heading), np.sin(heading)]), atol=1e-9)
    assert objects.lidar_points.tolist() == [5, 0, 5, 5]
    assert len(set(objects.instances.tolist())) == 4


def test_a_box_that_only_a_radar_saw_is_no_label(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    for training in (False, True):
        assert dataset(root, training=training)[0].targets.names == ("car", "barrier")
    assert dataset(root, min_points=0)[0].targets.names == ("car", "pedestrian", "barrier")
    assert dataset(root, velocity=False)[0].targets.boxes.shape == (2, 7)


def test_unknown_velocities_are_zero_in_samples(tmp_path: Path) -> None:
    root = prepared(make_release(keys=1), tmp_path)
    assert np.isnan(read_index(index_path(root / "pcdet_ext", "train"))[0].boxes[:, 7:]).all()
    np.testing.assert_array_equal(dataset(root)[0].targets.boxes[:, 7:], 0)


def test_the_database_is_cut_from_all_sweeps(release: Release, tmp_path: Path) -> None:
    for row in release.tables["sample_annotation"]:
        row["size"] = [60.0, 60.0, 10.0]  # every point is in every box: the first one owns it
    root = prepared(release, tmp_path)
    objects = read_objects(database_path(root / "pcdet_ext", "train"))
    assert objects["car"].point_features == ("x", "y", "z", "intensity", "timestamp", "ring")
    found = dataset(root)
    for i, info in enumerate(found.frames):
        points = found.read(info).points
        inside = inside_boxes(points, info.boxes, margin=1e-5)
        assert objects["car"].frame_ids[i] == info.frame_id
        assert len(objects["car"].points_of(i)) == inside[0].sum()
        own = objects["barrier"].points_of(i) if len(objects["barrier"]) else np.zeros((0, 6))
        assert len(own) == (inside[3] & ~inside[:3].any(axis=0)).sum()


def test_sweeps_can_be_fewer_than_prepared_but_not_more(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    sample = dataset(root, max_sweeps=3).read(dataset(root).frames[2])
    np.testing.assert_allclose(np.unique(sample.points[:, 4]), [0, 0.1, 0.2], atol=1e-6)
    assert len(dataset(root, max_sweeps=1).read(dataset(root).frames[2]).points) == 61
    for wrong in (0, 11):
        with pytest.raises(ConfigError, match=r"max_sweeps must lie in \[1, 10\]"):
            dataset(root, max_sweeps=wrong)


def test_frames_can_be_read_in_another_process(release: Release, tmp_path: Path) -> None:
    source = NuScenesFrames(release.write(tmp_path))
    frame = source.find("train")[2]
    (tmp_path / "v1.0-mini" / "sample.json").write_text("[]")  # what a process needs of the tables is in the frame
    other, copy = pickle.loads(pickle.dumps((source, frame)))
    here, there = source.read(frame), other.read(copy)
    np.testing.assert_array_equal(here.object_points(), there.object_points())
    np.testing.assert_array_equal(here.sample.targets.boxes, there.sample.targets.boxes)
    assert here.extra == there.extra


def test_training_samples_of_the_published_configuration(release: Release, root: Path, tmp_path: Path) -> None:
    for row in release.tables["sample_annotation"]:
        row["size"] = [9.0, 9.0, 8.0]
    prepared(release, tmp_path)
    data = config.load(root / "configs" / "datasets" / "nuscenes.yaml", [f"data.root={tmp_path}"])["data"]
    found = build_dataset(data, "train", training=True)
    speeds = []
    for sample in (found[i] for i in range(len(found))):
        assert sample.point_features == ("x", "y", "z", "intensity", "timestamp")
        assert sample.points.dtype == np.float32
        assert np.isfinite(sample.targets.boxes).all()
        moving = np.array(sample.targets.names) == "car"
        speeds += np.linalg.norm(sample.targets.boxes[moving, 7:], axis=1).tolist()
    assert len(speeds) >= 3
    assert all(3.6 <= speed <= 4.4 for speed in speeds)  # 4 m/s, scaled by 0.9 to 1.1


def test_both_layouts_of_folders_are_read(release: Release, tmp_path: Path) -> None:
    release.write(tmp_path / "released")
    release.write(tmp_path / "doubled", doubled=True)
    tables = []
    for name in ("released", "doubled"):
        root = tmp_path / name
        assert main(["prepare", "nuscenes", "--root", str(root), "version=v1.0-mini", "--quiet"]) == 0
        tables.append(dataset(root).read(dataset(root).frames[2]).points)
    np.testing.assert_array_equal(*tables)
    with pytest.raises(DataError, match="name the one above it"):
        NuScenesFrames(tmp_path / "released" / "v1.0-mini")


def test_own_splits_are_lists_of_scenes(tmp_path: Path) -> None:
    root = make_release(("yard-1", "yard-2", "yard-3")).write(tmp_path, version="v1.0-trainval")
    with pytest.raises(DataError, match=r"no scene of split 'train', but 3 others; .*splits/train\.txt"):
        NuScenesFrames(root).find("train")
    (root / "splits").mkdir()
    (root / "splits" / "train.txt").write_text("yard-3\nyard-1\n")
    assert {frame.scene for frame in NuScenesFrames(root).find("train")} == {"yard-1", "yard-3"}
    (root / "splits" / "night.txt").write_text("yard-4\n")
    with pytest.raises(DataError, match=r"night\.txt: the release has no scene 'yard-4'; did you mean 'yard-"):
        NuScenesFrames(root).find("night")
    with pytest.raises(DataError, match="'vall' is no official split; did you mean 'val'"):
        NuScenesFrames(root).find("vall")


def test_splits_with_the_same_scenes_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = make_release(("a", "b"), keys=1).write(tmp_path, version="v1.0-own")
    (root / "splits").mkdir()
    for split, scenes in (("train", "a"), ("val", "b"), ("trainval", "a\nb"), ("night", "b")):
        (root / "splits" / f"{split}.txt").write_text(scenes)
    prepare(NuScenesFrames(root), ["train", "val", "trainval"], progress=False)
    assert "in common" not in caplog.text
    prepare(NuScenesFrames(root), ["train", "val", "night"], progress=False)
    assert "splits 'val' and 'night' have 1 frames in common, as b-0; who trains" in caplog.text
    assert caplog.text.count("in common") == 1


@pytest.mark.parametrize("count", [0, 401])
def test_there_are_no_more_sweeps_than_scans_of_a_scene(release: Release, tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=r"max_sweeps must lie in \[1, 400\]"):
        NuScenesFrames(release.write(tmp_path), max_sweeps=count)


@given(count=st.integers(0, 4), lags=st.lists(st.floats(0, 1), max_size=3), seed=st.integers(0, 99))
def test_joined_scans_are_the_published_sum(count: int, lags: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    key = rng.normal(0, 2, (count, 5)).astype(np.float32)
    sweeps = []
    expected = [[*p[:4], 0.0, p[4]] for p in key.tolist()]
    for lag in lags:
        move = np.eye(4) if lag == 0 else np.vstack([rng.normal(size=(3, 4)), [0, 0, 0, 1]])
        points = rng.normal(0, 2, (5, 5)).astype(np.float32)
        sweeps.append((Sweep("", "", lag, move), points))
        for p in points.astype(np.float64):
            if not (abs(p[0]) < 1 and abs(p[1]) < 1):
                expected.append([*(move[:3, :3] @ p[:3] + move[:3, 3]), p[3], lag, p[4]])
    found = joined_scans(key, sweeps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.array(expected).reshape(-1, 6), atol=1e-5)


def test_a_sweep_survives_the_index() -> None:
    move = np.vstack([np.random.default_rng(0).normal(size=(3, 4)), [0, 0, 0, 1]])
    back = Sweep.from_json(json.loads(json.dumps(Sweep("a", "b", 0.05, move, 7).to_json())))
    np.testing.assert_array_equal(back.transform, move)
    assert (back.file, back.token, back.lag, back.points) == ("a", "b", 0.05, 7)
    assert (back.file, back.token, back.lag) == ("a", "b", 0.05)
    assert Sweep.from_json(Sweep("a", "b").to_json()).transform is None
    assert padded(Sweep("a", "b"), [], 0) == []


def test_the_real_sweep_reads_right(shared: Path) -> None:
    (path,) = (shared / "data" / "nuscenes_frame").glob("*.pcd.bin")
    points = read_scan(path.parent, path.name, "")
    assert points.shape == (34688, 5)
    assert set(np.unique(points[:, 4])) == set(range(32))
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255
    assert np.linalg.norm(points[:, :3], axis=1).max() < 110
