"""nuScenes: tables to frames, sweeps that lie upon one another, labels, splits, submissions, and damaged releases."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nuscenes_release import Release, ego_at, make_release

from pcdet_ext import config
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.index import index_path, read_index
from pcdet_ext.data.nuscenes import (
    Frame,
    NuScenesDataset,
    NuScenesFrames,
    Sweep,
    joined_scans,
    official_scenes,
    read_scan,
)
from pcdet_ext.data.nuscenes.frames import padded
from pcdet_ext.data.nuscenes.submission import attribute
from pcdet_ext.data.objects import database_path, read_objects
from pcdet_ext.data.prepare import prepare
from pcdet_ext.evaluation import nuscenes_files
from pcdet_ext.evaluation.nuscenes_files import MAX_BOXES, read_results
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections

RANGE = [-60, -60, -5, 60, 60, 5]
CLASSES = ["car", "barrier", "pedestrian"]


@pytest.fixture
def release() -> Release:
    """Two scenes of three key frames."""
    return make_release()


def dataset(root: Path, split: str = "train", **settings: object) -> NuScenesDataset:
    return NuScenesDataset(root=root, classes=CLASSES, point_cloud_range=RANGE, split=split, **settings)


def prepared(release: Release, root: Path, splits: tuple[str, ...] = ("train", "val"), **options: object) -> Path:
    release.write(root)
    prepare(NuScenesFrames(root), splits, progress=False, **options)
    return root


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


def test_a_scene_without_files_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = make_release(("scene-0061", "scene-0553"))
    made.scans = {file: scan for file, scan in made.scans.items() if "scene-0553" not in file}
    frames = NuScenesFrames(made.write(tmp_path)).find("train")
    assert {frame.scene for frame in frames} == {"scene-0061"}
    assert "1 scenes of train have no files here, as scene-0553" in caplog.text


def test_a_scene_that_lacks_some_files_is_damaged(tmp_path: Path) -> None:
    made = make_release(("scene-0061", "scene-0553"))
    del made.scans[made.row("sample_data", "scene-0553-data-0")["filename"]]
    root = made.write(tmp_path)
    with pytest.raises(DataError, match=r"no such file \(sample_data scene-0553-data-0\)"):
        prepare(NuScenesFrames(root), ["train"], progress=False)
    (summary,) = prepare(NuScenesFrames(root, max_sweeps=1), ["train"], on_error="skip", progress=False)
    assert (summary.frames, len(summary.skipped)) == (5, 1)


@pytest.mark.parametrize("count", [0, 60])
def test_a_sweep_of_which_points_are_lost_is_damaged(release: Release, tmp_path: Path, count: int) -> None:
    root = prepared(release, tmp_path)
    file = root / release.row("sample_data", "scene-0061-data-7")["filename"]
    file.write_bytes(file.read_bytes()[: count * 20])
    with pytest.raises(DataError, match=rf"{count} points where the index has 61; changed\? \(.* scene-0061-data-7\)"):
        dataset(root)[2]
    assert len(dataset(root, max_sweeps=3)[2].points)  # the ninth and tenth scan alone
    if not count:
        with pytest.raises(DataError, match=r"empty, it has 0 bytes \(sample_data scene-0061-data-7\)"):
            prepare(NuScenesFrames(root), ["train"], [], progress=False)


@pytest.mark.parametrize("count", [0, 401])
def test_there_are_no_more_sweeps_than_scans_of_a_scene(release: Release, tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=r"max_sweeps must lie in \[1, 400\]"):
        NuScenesFrames(release.write(tmp_path), max_sweeps=count)


def test_a_release_without_annotations_has_no_labels(tmp_path: Path) -> None:
    made = make_release(("scene-0077",), labelled=False)
    root = made.write(tmp_path, version="v1.0-test")
    prepare(NuScenesFrames(root), ["test"], [], progress=False)
    found = dataset(root, "test")
    assert found[0].targets is None
    evaluator = found.evaluator()
    evaluator.add(found[0], nothing(found[0].frame_id))
    assert evaluator.result() is None
    (path,) = evaluator.write(tmp_path / "results")
    assert json.loads(path.read_text())["results"] == {f"scene-0077-{i}": [] for i in range(3)}


def nothing(frame_id: str) -> Detections:
    return Detections(
        np.zeros((0, 9), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), tuple(CLASSES), frame_id
    )


def truth_as_found(found: NuScenesDataset, i: int) -> Detections:
    targets = found[i].targets
    scores = np.linspace(0.9, 0.5, len(targets), dtype=np.float32)
    return Detections(targets.boxes, scores, targets.labels, tuple(CLASSES), found.frames[i].frame_id)


def test_a_perfect_submission_scores_and_comes_back(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    evaluator, other = found.evaluator(), found.evaluator()
    for i in range(len(found)):
        (evaluator if i else other).add(found[i], truth_as_found(found, i))
    evaluator.merge(other.state())
    result = evaluator.result()
    assert [result.class_ap(name) for name in ("car", "barrier", "pedestrian")] == pytest.approx([1, 1, 0])
    for error in ("trans_err", "scale_err", "orient_err", "vel_err"):
        assert result.label_error("car", error) == pytest.approx(0, abs=1e-5)
    assert result.score == result.values["NDS"] > 0.1
    (path,) = evaluator.write(tmp_path / "results")
    boxes, tokens = read_results(path)
    assert tokens == tuple(found.all_frames.frame_ids)
    results = found.read_results(path)
    assert set(results) == set(tokens)
    for i in range(len(found)):
        own, back = truth_as_found(found, i), results[found.frames[i].frame_id]
        np.testing.assert_allclose(back.boxes, own.boxes, atol=1e-4)
        assert (back.names, back.frame_id) == (own.names, own.frame_id)
    assert boxes.attribute[0] == "vehicle.moving"


def test_tracks_of_a_submission_come_back(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    box = {"translation": [405, 905, 0.8], "size": [1.9, 4.5, 1.6], "rotation": [1, 0, 0, 0], "velocity": [4, 0]}
    rows = [box | {"tracking_id": name, "tracking_name": "car", "tracking_score": 0.5} for name in ("b", "a")]
    path = tmp_path / "tracks.json"
    path.write_text(json.dumps({"meta": {}, "results": {"scene-0103-0": rows, "other": []}}))
    (token,) = dataset(root, "val").read_results(path)
    found = dataset(root, "val").read_results(path)[token]
    assert found.track_ids.tolist() == [1, 0]
    np.testing.assert_allclose(found.boxes[:, :7], dataset(root, "val")[0].targets.boxes[[0, 0], :7], atol=1e-4)
    with mock.patch.object(nuscenes_files, "read_json", wraps=nuscenes_files.read_json) as parsed:
        assert len(dataset(root, "val").read_results(path)) == 1
    parsed.assert_called_once_with(path)  # a large file takes long
    path.write_text(json.dumps({"results": {"other": []}}))
    with pytest.raises(DataError, match="has none of the data's 3 samples"):
        dataset(root, "val").read_results(path)


def test_the_best_500_are_kept_and_it_is_said(
    release: Release, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    count = MAX_BOXES + 20
    boxes = np.tile(np.array([5, 5, 0, 4, 2, 1.5, 0, 0, 0], np.float32), (count, 1))
    boxes[7, 0], boxes[9, 7] = np.nan, np.nan  # a place that is not finite, and a velocity that is not known
    scores = np.random.default_rng(0).permutation(count).astype(np.float32) / count
    scores[9] = 1
    evaluator = found.evaluator()
    evaluator.add(found[0], Detections(boxes, scores, np.zeros(count, np.int64), tuple(CLASSES), ""))
    (path,) = evaluator.write(tmp_path / "results")
    assert "1 samples have more than 500 detections" in caplog.text
    kept, _ = read_results(path)
    expected = np.sort(np.delete(scores, 7).astype(np.float64))[-MAX_BOXES:]
    np.testing.assert_array_equal(np.sort(kept.score), expected)
    assert np.isnan(kept.velocity[kept.score == 1]).all()


def test_what_a_submission_may_not_have_is_not_written(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    boxes = np.tile(np.array([5, 5, 0, 4, 2, 1.5, 0, 0, 0], np.float32), (5, 1))
    boxes[1, 0], boxes[2, 4], boxes[3, 8] = 1e30, 1e12, -np.inf
    evaluator = found.evaluator()
    evaluator.add(found[0], Detections(boxes, np.full(5, 0.5, np.float32), np.zeros(5, np.int64), tuple(CLASSES), ""))
    (path,) = evaluator.write(tmp_path / "results")
    assert len(read_results(path)[0]) == 2


def test_no_detections_at_all_score_nothing(release: Release, tmp_path: Path) -> None:
    found = dataset(prepared(release, tmp_path), "val")
    evaluator = found.evaluator()
    for i in range(len(found)):
        evaluator.add(found[i], nothing(found.frames[i].frame_id))
    assert evaluator.result().score == 0


@pytest.mark.parametrize(
    ("name", "speed", "expected"),
    [
        ("car", 0.2, "vehicle.parked"),
        ("car", 0.21, "vehicle.moving"),
        ("bus", 0.0, "vehicle.stopped"),
        ("bicycle", 1.0, "cycle.with_rider"),
        ("motorcycle", float("nan"), "cycle.without_rider"),
        ("pedestrian", 3.0, "pedestrian.moving"),
        ("pedestrian", 0.0, "pedestrian.standing"),
        ("barrier", 0.0, "cycle.with_rider"),
    ],
)
def test_attributes_follow_the_speed(name: str, speed: float, expected: str) -> None:
    assert attribute(name, speed) == expected


def test_the_metric_has_ten_classes_and_no_options(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    with pytest.raises(ConfigError, match="no such key"):
        dataset(root).evaluator({"overlap": 1})
    other = NuScenesDataset(root=root, classes=["car", "ignore"], point_cloud_range=RANGE, split="val")
    with pytest.raises(ConfigError, match="no metric for class 'ignore'"):
        other.evaluator()


def broken_sweep(made: Release) -> None:
    del made.scans[made.row("sample_data", "scene-0061-data-3")["filename"]]


def short_scan(made: Release) -> None:
    file = made.row("sample_data", "scene-0061-data-5")["filename"]
    made.scans[file] = made.scans[file].ravel()[:-1]


def unknown_token(made: Release) -> None:
    made.row("sample_data", "scene-0061-data-3")["prev"] = "gone"


def nan_box(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["translation"][0] = float("nan")


def flat_box(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["size"][0] = 0


def zero_rotation(made: Release) -> None:
    made.row("ego_pose", "scene-0061-data-5-pose")["rotation"] = [0, 0, 0, 0]


def chain_in_a_circle(made: Release) -> None:
    made.row("sample_data", "scene-0061-data-3")["prev"] = "scene-0061-data-3"


def key_frame_of_no_time(made: Release) -> None:
    made.row("sample_data", "scene-0061-data-10")["timestamp"] = 0


def sample_of_no_time(made: Release) -> None:
    made.row("sample", "scene-0061-2")["timestamp"] = float("nan")


def annotation_without_size(made: Release) -> None:
    del made.row("sample_annotation", "scene-0061-instance-0-1")["size"]


def text_for_a_count(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["num_lidar_pts"] = "5"


def negative_count(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["num_lidar_pts"] = -5


def unknown_instance(made: Release) -> None:
    made.row("sample_annotation", "scene-0061-instance-0-1")["instance_token"] = "gone"


def pose_without_rotation(made: Release) -> None:
    del made.row("ego_pose", "scene-0061-data-5-pose")["rotation"]


DAMAGED = [
    (broken_sweep, r"data-3|\.pcd\.bin: no such file \(sample_data scene-0061-data-3\)"),
    (short_scan, r"\.pcd\.bin: .*cut short.* \(sample_data scene-0061-data-5\)"),
    (unknown_token, r"sample scene-0061-1: .*sample_data\.json: scene-0061-data-3: prev 'gone' is not there"),
    (nan_box, r"sample_annotation\.json: scene-0061-instance-0-1: translation is not finite"),
    (flat_box, r"sample_annotation\.json: scene-0061-instance-0-1: size must be positive"),
    (zero_rotation, r"ego_pose\.json: scene-0061-data-5-pose: a rotation of zeros"),
    (chain_in_a_circle, r"sample_data\.json: scene-0061-data-3: prev 'scene-0061-data-3' is not older"),
    (key_frame_of_no_time, r"sample scene-0061-2: .*sample\.json: its timestamp is .* its key frame 0\.000 s"),
    (sample_of_no_time, r"sample\.json: row 2 \(scene-0061-2\): timestamp is nan"),
    (annotation_without_size, r"sample_annotation\.json: row 1 \(scene-0061-instance-0-1\) lacks 'size'"),
    (text_for_a_count, r"sample_annotation\.json: row 1 \(scene-0061-instance-0-1\) is wrong"),
    (negative_count, r"row 1 \(scene-0061-instance-0-1\): num_lidar_pts is -5"),
    (unknown_instance, r"row 1 \(scene-0061-instance-0-1\): instance_token 'gone' is not in instance\.json"),
    (pose_without_rotation, r"ego_pose\.json: row 5 \(scene-0061-data-5-pose\) lacks 'rotation'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED)
def test_what_is_damaged_is_named_and_can_be_left_out(
    release: Release, tmp_path: Path, damage: object, message: str
) -> None:
    damage(release)
    root = release.write(tmp_path)
    with pytest.raises(DataError, match=message):
        prepare(NuScenesFrames(root), ["train"], progress=False)
    (summary,) = prepare(NuScenesFrames(root), ["train"], on_error="skip", progress=False)
    assert summary.frames + len(summary.skipped) == 3
    assert 1 <= len(summary.skipped) <= 2
    assert read_index(index_path(root / "pcdet_ext", "train"))[0].frame_id == "scene-0061-0"


def test_a_sweep_that_is_lost_later_is_skipped_when_asked(release: Release, tmp_path: Path) -> None:
    root = prepared(release, tmp_path)
    (root / release.row("sample_data", "scene-0061-data-7")["filename"]).unlink()
    with pytest.raises(DataError, match=r"no such file \(sample_data scene-0061-data-7\)"):
        dataset(root)[2]
    found = dataset(root, on_error="skip")
    assert len(found[2].points) == 0
    assert found.counts["skipped frames"] == 1


def test_categories_of_other_names_are_no_silent_absence(release: Release, tmp_path: Path) -> None:
    for row in release.tables["category"]:
        row["name"] = row["name"].replace(".", "/")
    with pytest.raises(
        DataError, match=r"category\.json: 24 of 24 objects are of categories that nuScenes does not have"
    ):
        NuScenesFrames(release.write(tmp_path)).find("train")


@pytest.mark.parametrize("table", ["scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance"])
def test_a_missing_table_is_named(release: Release, tmp_path: Path, table: str) -> None:
    root = release.write(tmp_path)
    (root / "v1.0-mini" / f"{table}.json").unlink()
    with pytest.raises(DataError, match=rf"{table}\.json|no tables"):
        NuScenesFrames(root).find("train")


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
