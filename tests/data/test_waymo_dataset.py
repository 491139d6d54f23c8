"""Waymo frames as samples: prepared from both layouts, alone and with those before, thinned, pasted into, measured."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from waymo_folders import CLASSES, RANGE, SEGMENT, SMALL, change, component, copy_release, set_value, write_processed

from pcdet_ext.config import ConfigError, Node
from pcdet_ext.data.base import DATASETS
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.index import index_path, read_index
from pcdet_ext.data.objects import database_path, read_objects
from pcdet_ext.data.waymo import ParquetLayout, WaymoDataset, WaymoFrames, open_layout, prepare_waymo
from pcdet_ext.data.waymo.parquet import open_segment
from pcdet_ext.data.waymo.processed import read_infos
from pcdet_ext.data.waymo.sequences import moved
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections, Sample

FEATURES = ("x", "y", "z", "intensity", "elongation")


@pytest.fixture(autouse=True)
def nothing_is_open() -> None:
    open_segment.cache_clear()
    read_infos.cache_clear()


@pytest.fixture(params=["parquet", "processed"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return copy_release(tmp_path) if request.param == "parquet" else write_processed(tmp_path)


@pytest.fixture
def prepared(root: Path) -> Path:
    prepare_waymo(root, ("train",), progress=False, max_sweeps=3)
    return root


def dataset(root: Path, **settings: Any) -> WaymoDataset:
    node = {"name": "WaymoDataset", "root": str(root), "classes": CLASSES, "point_cloud_range": RANGE, **settings}
    built = DATASETS.build(Node(node))
    assert isinstance(built, WaymoDataset)
    return built


def raw(root: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Points with their zones, and the pose."""
    layout = open_layout(root)
    frame = layout.find("train")[number]
    return layout.points(frame), layout.pose(frame)


def test_the_index_has_what_the_labels_say(prepared: Path) -> None:
    layout = open_layout(prepared)
    table = read_index(index_path(prepared / "pcdet_ext", "train"))
    assert len(table) == 3
    for info, frame in zip(table, layout.find("train"), strict=True):
        labels = layout.labels(frame)
        assert labels is not None
        assert info.frame_id == frame.frame_id
        assert info.sequence_id == frame.sequence
        assert info.boxes is not None
        assert info.boxes.shape == (14, 9)
        np.testing.assert_array_equal(info.points_in_box, labels.num_points)  # not what lies in the boxes here
        np.testing.assert_array_equal(info.difficulty, labels.difficulty)
        np.testing.assert_array_equal(info.pose, layout.pose(frame))
        assert info.timestamp == pytest.approx(frame.timestamp_micros * 1e-6, abs=1e-6)
    labels = [layout.labels(frame) for frame in layout.find("train")]
    names = [name for own in labels if own is not None for name in own.object_ids]
    tracks = np.concatenate([info.track_ids for info in table if info.track_ids is not None])
    pairs = set(zip(names, tracks.tolist(), strict=True))
    assert len(pairs) == len({name for name, _ in pairs}) == len({track for _, track in pairs}) > 14


def test_a_sample_is_the_frame(prepared: Path) -> None:
    data = dataset(prepared)
    sample = data[1]
    points, pose = raw(prepared, 1)
    inside = (np.abs(points[:, :2]) < 75.2).all(axis=1)
    np.testing.assert_array_equal(sample.points, points[inside, :5])
    assert sample.point_features == FEATURES
    np.testing.assert_array_equal(sample.pose, pose)
    assert sample.targets is not None
    assert set(sample.targets.names) == set(CLASSES)
    squashed = dataset(
        prepared, tanh=["intensity", "elongation"], point_features=[*FEATURES[:3], "elongation", "intensity"]
    )
    np.testing.assert_allclose(squashed[1].points[:, 3:], np.tanh(points[inside][:, [4, 3]]), rtol=1e-6)


def test_points_in_zones_without_labels_can_be_left_out(prepared: Path) -> None:
    points, _ = raw(prepared, 0)
    kept = points[points[:, 5] == -1]
    assert 0 < len(kept) < len(points)
    sample = dataset(prepared, no_label_zones=False, point_cloud_range=[-1000, -1000, -50, 1000, 1000, 50])[0]
    np.testing.assert_array_equal(sample.points, kept[:, :5])


@pytest.mark.parametrize("near", [1.0, 5.0])
def test_frames_before_are_moved_to_where_the_vehicle_is(prepared: Path, near: float) -> None:
    wide = [-1000, -1000, -500, 1000, 1000, 500]
    features = [*FEATURES, "timestamp", "frame"]
    sample = dataset(prepared, max_sweeps=3, near=near, point_features=features, point_cloud_range=wide)[2]
    own, pose = raw(prepared, 2)
    expected = [np.column_stack([own[:, :5], np.zeros((len(own), 2))])]
    for age in (1, 2):
        cloud, earlier = raw(prepared, 2 - age)
        cloud = moved(cloud[:, :5], earlier, pose)
        cloud = cloud[~(np.abs(cloud[:, :2]) < near).all(axis=1)]
        expected.append(np.column_stack([cloud, np.full(len(cloud), 0.1 * age), np.full(len(cloud), -age)]))
    np.testing.assert_allclose(sample.points, np.concatenate(expected), atol=1e-5)


def test_the_first_frame_stands_in_where_there_are_none_before(prepared: Path) -> None:
    points = dataset(prepared, max_sweeps=3, point_features=[*FEATURES, "frame"])
    first, second = points[0].points, points[1].points
    own, _ = raw(prepared, 0)
    assert len(first) > 2 * (np.abs(own[:, :2]) < 75.2).all(axis=1).sum()
    assert (first[:, 5] == 0).all()
    assert set(second[:, 5].tolist()) == {0.0, -1.0}


def test_the_database_has_every_second_pedestrian_and_fourth_vehicle(prepared: Path) -> None:
    objects = read_objects(database_path(prepared / "pcdet_ext", "train"))
    frames = {name: [frame_id[-3:] for frame_id in found.frame_ids] for name, found in objects.items()}
    assert set(frames["Vehicle"]) == {"000"}
    assert set(frames["Pedestrian"]) == {"000", "002"}
    assert set(frames["Cyclist"]) == {"000", "001", "002"}
    assert objects["Cyclist"].point_features == (*FEATURES, "timestamp", "frame")
    ages = objects["Cyclist"].points[:, 6]
    assert set(ages.tolist()) == {0.0, -1.0, -2.0}
    np.testing.assert_allclose(objects["Cyclist"].points[:, 5], -0.1 * ages, rtol=1e-6)


@pytest.mark.parametrize("frames", [1, 2])
def test_objects_are_pasted_with_the_points_of_the_wanted_time(prepared: Path, frames: int) -> None:
    step = {"name": "GroundTruthSampling", "groups": {"Vehicle": 8, "Cyclist": 8}}
    features = FEATURES if frames == 1 else (*FEATURES, "timestamp")
    step |= {} if frames == 1 else {"time_range": [0.1, 0.0]}
    data = dataset(prepared, training=True, augment=[step], max_sweeps=frames, point_features=features, velocity=False)
    sample = data[1]
    assert sample.point_features == features
    assert sample.targets is not None
    assert np.asarray(sample.targets.boxes).shape[1] == 7
    if frames > 1:
        assert set(np.round(sample.points[:, 5], 3).tolist()) == {0.0, np.float32(0.1).round(3).item()}


def test_empty_boxes_are_left_out_in_training_alone(prepared: Path) -> None:
    counts = {}
    for training in (False, True):
        targets = dataset(prepared, training=training, min_points=1)[2].targets
        assert targets is not None
        counts[training] = np.asarray(targets.num_points)
    assert (counts[False] == 0).any()
    assert not (counts[True] == 0).any()


def test_interval_thins_the_split_but_not_what_came_before(prepared: Path) -> None:
    data = dataset(prepared, interval=2, max_sweeps=2, point_features=[*FEATURES, "frame"])
    assert [info.frame_id[-3:] for info in data.frames] == ["000", "002"]
    whole = dataset(prepared, max_sweeps=2, point_features=[*FEATURES, "frame"])
    np.testing.assert_array_equal(data[1].points, whole[2].points)


def test_interval_thins_what_is_trained_on_alone(prepared: Path) -> None:
    node = {
        "name": "WaymoDataset",
        "root": str(prepared),
        "classes": CLASSES,
        "point_cloud_range": RANGE,
        "interval": 2,
    }
    assert [len(build_dataset(node, "train", training=training)) for training in (True, False)] == [2, 3]


def test_several_processes_prepare_the_same(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    for workers in (0, 2):
        prepare_waymo(root, ("train",), out=tmp_path / str(workers), workers=workers, progress=False, max_sweeps=2)
    one, two = (read_objects(database_path(tmp_path / name, "train")) for name in ("0", "2"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name].points, two[name].points)


def test_damaged_frames_are_skipped_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = copy_release(tmp_path)
    change(component(root, "lidar"), set_value("return1.values", 6, [1.0] * 8))  # of the second frame
    with pytest.raises(DataError, match="laser 2, return 1"):
        prepare_waymo(root, ("train",), progress=False)
    caplog.clear()
    (summary,) = prepare_waymo(root, ("train",), on_error="skip", progress=False)
    assert summary.frames == 2
    assert "laser 2, return 1: range image of shape" in caplog.text
    change(component(root, "lidar"), set_value("return2.values", 11, [1.0] * 8))
    open_segment.cache_clear()
    data = dataset(root, on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert len(data[1].points) == 0
    assert data.counts["skipped frames"] == 1
    with pytest.raises(DataError, match="laser 2, return 2"):
        dataset(root)[1]


@pytest.mark.parametrize(("content", "workers"), [(None, 1), (b"", 0), (b"PAR1 cut", 0)])
def test_segments_that_cannot_be_opened_are_left_out_and_counted(
    tmp_path: Path, content: bytes | None, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    root = copy_release(tmp_path)
    for path in (root / "training").glob("*/*.parquet"):
        path.with_name("another.parquet").write_bytes(path.read_bytes())
    lost = component(root, "lidar")
    lost.unlink()
    if content is not None:
        lost.write_bytes(content)
    with pytest.raises(DataError, match=rf"{lost}: "):
        prepare_waymo(root, ("train",), progress=False)
    (summary,) = prepare_waymo(root, ("train",), on_error="skip", progress=False, workers=workers)
    assert summary.frames == 3
    assert len(summary.skipped) == 1
    assert str(lost) in summary.skipped[0]
    assert str(lost) in caplog.text
    (root / "training" / "lidar" / "another.parquet").unlink()
    open_segment.cache_clear()
    with pytest.raises(DataError, match=r"no frame of split 'train' could be read: .*lidar"):
        prepare_waymo(root, ("train",), on_error="skip", progress=False)


@pytest.mark.parametrize("damage", ["empty", "cut", "one entry", "one list"])
def test_processed_sequences_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path, damage: str) -> None:
    root = write_processed(tmp_path)
    path = next(root.glob("waymo_processed_data*/*/*.pkl"))
    data = path.read_bytes()
    infos = pickle.loads(data)
    infos[1] |= {"one entry": {"frame_id": 3}, "one list": {"annos": [1]}}.get(damage, {})
    whole = {"empty": b"", "cut": data[: len(data) // 2]}
    path.write_bytes(whole.get(damage) if damage in whole else pickle.dumps(infos))
    with pytest.raises(DataError, match=rf"{path}: "):
        prepare_waymo(root, ("train",), progress=False)
    if damage in whole:
        with pytest.raises(DataError, match="no frame of split 'train' could be read"):
            prepare_waymo(root, ("train",), on_error="skip", progress=False)
    else:
        (summary,) = prepare_waymo(root, ("train",), on_error="skip", progress=False)
        assert (summary.frames, len(summary.skipped)) == (2, 1)


def test_each_file_is_read_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset(prepared, max_sweeps=8)
    read: list[int] = []
    points = data._layout.points
    monkeypatch.setattr(data._layout, "points", lambda frame: read.append(frame.number) or points(frame))
    for i, expected in enumerate(([0], [0, 1], [0, 1, 2])):
        read.clear()
        assert len(data[i].points)
        assert read == expected


def test_changed_points_are_noticed(prepared: Path) -> None:
    if (prepared / "training").is_dir():
        change(component(prepared, "lidar"), set_value("return2.values", 1, None))
    else:
        path = next(prepared.glob("waymo_processed_data*/*/0000.npy"))
        np.save(path, np.load(path)[1:])
    open_segment.cache_clear()
    with pytest.raises(DataError, match=r"points where the index has .*; changed\?"):
        dataset(prepared)[0]


def as_found(sample: Sample, velocity: bool = False) -> Detections:
    assert sample.targets is not None
    boxes = np.asarray(sample.targets.boxes)
    targets = sample.targets.of_classes(CLASSES)
    labels = np.asarray(targets.labels)
    return Detections(boxes if velocity else boxes[:, :7], np.full(len(boxes), 0.7, np.float32), labels, CLASSES)


def test_labels_as_detections_are_perfect_where_they_count(prepared: Path) -> None:
    data = dataset(prepared)
    evaluator = data.evaluator()
    for i in range(len(data)):
        sample = data[i]
        assert sample.targets is not None
        counting = sample.replace(targets=sample.targets.select(np.asarray(sample.targets.num_points) > 0))
        evaluator.add(sample, as_found(counting))
    result = evaluator.result()
    assert result is not None
    assert result.score == 1
    assert {name for name in result.curves if "SIGN" in name} == set()
    lines = result.table().splitlines()
    assert lines[0].split() == ["%", "L1", "AP", "L1", "APH", "L2", "AP", "L2", "APH"]
    assert lines[1].split() == ["Vehicle", *["100.00"] * 4]
    assert "  Vehicle [30, 50) m" in result.table()


def test_results_are_written_for_the_server_and_read_back(prepared: Path, tmp_path: Path) -> None:
    data = dataset(prepared)
    evaluator = data.evaluator({"breakdowns": ["OBJECT_TYPE"]})
    for i in range(len(data)):
        evaluator.add(data[i], as_found(data[i], velocity=True))
    written = evaluator.write(tmp_path / "out")
    assert [path.name for path in written] == ["results.parquet", "results.bin"]
    names = {"Vehicle", "Pedestrian", "Sign", "Cyclist", "unknown"}
    for path in (*written, tmp_path / "out"):
        found = data.read_results(path)
        assert set(found) == {info.frame_id for info in data.frames}
        for i, info in enumerate(data.frames):
            detections = found[info.frame_id]
            assert set(detections.class_names) == names
            expected = as_found(data[i])
            np.testing.assert_allclose(detections.boxes, expected.boxes, atol=1e-5)
            assert detections.names == expected.names
    table = pq.read_table(written[0])
    assert table["key.segment_context_name"].unique().to_pylist() == [SEGMENT]
    assert pq.read_schema(component(SMALL, "lidar_box")).field(
        "[LiDARBoxComponent].box.center.x"
    ) == table.schema.field("[LiDARBoxComponent].box.center.x")
    labels = pq.read_table(component(SMALL, "lidar_box"))
    speeds = {  # of the labels, by where each is
        round(x, 3): (vx, vy)
        for x, vx, vy in zip(
            *(labels[f"[LiDARBoxComponent].{n}"].to_pylist() for n in ("box.center.x", "speed.x", "speed.y")),
            strict=True,
        )
    }
    for row in table.to_pylist():
        expected_speed = speeds[min(speeds, key=lambda x: abs(x - row["[LiDARBoxComponent].box.center.x"]))]
        found_speed = (row["[LiDARBoxComponent].speed.x"], row["[LiDARBoxComponent].speed.y"])
        assert found_speed == pytest.approx(expected_speed, abs=0.02)  # the vehicle is tilted by less than a degree


def test_classes_are_known_in_any_case(prepared: Path) -> None:
    values = []
    for names in (CLASSES, ("VEHICLE", "pedestrian", "Cyclist")):
        data = dataset(prepared, classes=names)
        evaluator = data.evaluator()
        found = as_found(dataset(prepared)[0])
        evaluator.add(data[0], Detections(found.boxes, found.scores, found.labels, names))
        result = evaluator.result()
        assert result is not None
        values.append(result.values)
    assert values[0] == values[1]
    with pytest.raises(DataError, match="'Car' is no type"):
        dataset(prepared, classes=["Car"]).evaluator()


def test_detections_that_are_no_boxes_are_not_written(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset(prepared)
    evaluator = data.evaluator()
    found = as_found(data[0])
    boxes = np.asarray(found.boxes).copy()
    boxes[0, 3], boxes[1, 0] = 0.0, np.nan
    evaluator.add(data[0], Detections(boxes, found.scores, found.labels, CLASSES))
    for path in evaluator.write(tmp_path / "out"):
        (read,) = data.read_results(path).values()
        assert len(read.boxes) == len(boxes) - 2
    assert f"2 of {len(boxes)} boxes are not written" in caplog.text


def test_options_and_classes_that_do_not_fit_are_refused(prepared: Path) -> None:
    with pytest.raises(ConfigError, match="breakdown"):
        dataset(prepared).evaluator({"breakdown": ["RANGE"]})
    with pytest.raises(ValueError, match="max_sweeps must be at least 1"):
        dataset(prepared, max_sweeps=0)
    with pytest.raises(ValueError, match="'time' is not"):
        dataset(prepared, point_features=["x", "y", "z", "time"])
    with pytest.raises(ValueError, match="max_sweeps must be at least 1"):
        WaymoFrames(prepared, 0)


def test_frames_without_labels_are_not_measured(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    (root / "training").rename(root / "testing")
    prepare_waymo(root, ("test",), (), progress=False)
    data = dataset(root, split="test")
    assert data[0].targets is None
    evaluator = data.evaluator()
    none = Detections(np.zeros((0, 7), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), CLASSES)
    evaluator.add(data[0], none)
    assert evaluator.result() is None
    assert len(ParquetLayout(root).find("test")) == 3
