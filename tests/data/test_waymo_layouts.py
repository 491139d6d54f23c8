"""Waymo's Parquet components and the processed layout: frames, points, labels, and what is said of damaged ones."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waymo_folders import PROCESSED, SEGMENT, SMALL, change, component, copy_release, set_value, write_processed

from pcdet_ext.data.waymo import Frame, Layout, ParquetLayout, ProcessedLayout, open_layout, row_files
from pcdet_ext.data.waymo.parquet import open_segment
from pcdet_ext.data.waymo.processed import candidates, read_infos
from pcdet_ext.evaluation.waymo_truth import read_truth
from pcdet_ext.files import DataError, MissingFileError


@pytest.fixture(autouse=True)
def nothing_is_open() -> None:
    open_segment.cache_clear()
    read_infos.cache_clear()


def frames_of(root: Path) -> list[Frame]:
    return ParquetLayout(root).find("train")


def read_first(layout: Layout) -> None:
    """Everything of the first frame."""
    frame = layout.find("train")[0]
    layout.points(frame)
    layout.pose(frame)
    layout.labels(frame)


def test_frames_are_in_the_order_of_time_whatever_that_of_the_rows(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    change(component(root, "lidar"), lambda table: table.take(list(reversed(range(table.num_rows)))), row_group_size=2)
    found, expected = frames_of(root), frames_of(SMALL)
    assert found == expected
    assert [frame.frame_id for frame in found] == [f"{SEGMENT}_{i:03d}" for i in range(3)]
    for frame in (found[2], found[0], found[1], found[0]):
        np.testing.assert_array_equal(ParquetLayout(root).points(frame), ParquetLayout(SMALL).points(frame))


@pytest.mark.parametrize("rows", [1, 2, 7, None])
def test_a_frame_is_read_alone(tmp_path: Path, rows: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    root = copy_release(tmp_path)
    for name in ("lidar", "lidar_pose"):
        change(component(root, name), lambda table: table, row_group_size=rows)
    layout = ParquetLayout(root)
    frames = layout.find("train")
    read: list[int] = []
    values = row_files._values
    monkeypatch.setattr(row_files, "_values", lambda b, i: read.append(i) or values(b, i))
    for frame in frames:
        layout.points(frame)
    assert len(read) == 18  # every row of lidar and lidar_pose once, since they are read forward


def test_labels_have_the_velocity_in_the_vehicle_frame(tmp_path: Path) -> None:
    layout = ParquetLayout(SMALL)
    frame = layout.find("train")[1]
    labels = layout.labels(frame)
    assert labels is not None
    assert set(labels.names) == {"Vehicle", "Pedestrian", "Cyclist", "Sign"}
    boxes = labels.boxes
    pose = layout.pose(frame)
    rows = [
        row
        for row in pq.read_table(component(SMALL, "lidar_box")).to_pylist()
        if row["key.frame_timestamp_micros"] == frame.timestamp_micros and row["[LiDARBoxComponent].type"]
    ]
    assert labels.object_ids == tuple(row["key.laser_object_id"] for row in rows)
    world = np.array([[*(row[f"[LiDARBoxComponent].speed.{axis}"] for axis in "xy"), 0.0] for row in rows])
    np.testing.assert_allclose(boxes[:, 7:], (np.linalg.inv(pose[:3, :3]) @ world.T).T[:, :2], atol=1e-12)
    numbers = layout.track_numbers(frame)
    assert len(set(numbers.values())) == len(numbers)


def test_splits_are_folders_or_lists(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    with pytest.raises(MissingFileError, match="no split 'val'"):
        ParquetLayout(root).find("val")
    with pytest.raises(DataError, match=r"no split 'vall'.*did you mean 'val'"):
        ParquetLayout(root).find("vall")
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "val.txt").write_text(f"segment-{SEGMENT}_with_camera_labels.tfrecord\n\n")
    assert ParquetLayout(root).find("val") == frames_of(root)
    (root / "ImageSets" / "val.txt").write_text("../../etc\n")
    with pytest.raises(MissingFileError, match=r"val\.txt: segment"):
        ParquetLayout(root).find("val")


def no_rows(table: pa.Table) -> pa.Table:
    return table.slice(0, 0)


def recast(name: str, kind: pa.DataType, value: object) -> Callable[[pa.Table], pa.Table]:
    """An edit that gives all rows of a column one value of another type."""

    def edit(table: pa.Table) -> pa.Table:
        place = next(i for i, column in enumerate(table.column_names) if column.endswith(name))
        return table.set_column(place, table.column_names[place], pa.array([value] * table.num_rows, kind))

    return edit


def image_of(value: float) -> Callable[[pa.Table], pa.Table]:
    """An edit that fills one range image with a value."""
    return lambda table: set_value(
        "return1.values", 1, [value] * len(table["[LiDARComponent].range_image_return1.values"][1])
    )(table)


DAMAGE = {
    "empty lidar": ("lidar", no_rows, "empty"),
    "empty calibration": ("lidar_calibration", no_rows, "empty"),
    "empty pose": ("vehicle_pose", no_rows, "empty"),
    "truncated image": (
        "lidar",
        set_value("return1.values", 1, [1.0] * 8),
        "frame {time}, laser 2, return 1: range image",
    ),
    "no image": ("lidar", set_value("return1.values", 1, None), "frame {time}, laser 2, return 1: no range image"),
    "wrong shape": ("lidar", set_value("return1.shape", 1, [-1, -1, 4]), "range image of shape"),
    "pixel poses of another shape": ("lidar_pose", set_value("return1.shape", 0, [1, 2, 6]), "range image of shape"),
    "no calibration": ("lidar_calibration", lambda t: t.slice(0, 3), "no calibration of laser 2"),
    "no pose": ("vehicle_pose", lambda t: t.slice(1), "no pose of frame {time}"),
    "no pixel pose": ("lidar_pose", lambda t: t.slice(1), "no row of frame {time}"),
    "NaN box": ("lidar_box", set_value("center.x", 2, float("nan")), "frame {time}: box of object"),
    "flat box": ("lidar_box", set_value("size.y", 2, 0.0), "frame {time}: box of object"),
    "unknown type": ("lidar_box", set_value(".type", 2, 9), "frame {time}: types of objects"),
    "unknown frame": ("lidar_box", set_value("timestamp_micros", 2, 17), "frame 17 is not in"),
    "NaN pose": ("vehicle_pose", set_value("transform", 0, [float("nan")] * 16), "16 finite numbers"),
    "lost column": ("lidar", lambda t: t.drop_columns([t.column_names[3]]), "no column"),
    "lidar_box twice": ("lidar_box", lambda t: pa.concat_tables([t, t]), "is there 2 times"),
    "one object for all": ("lidar_box", recast("object_id", pa.string(), "a"), "frame {time}: object a is there"),
    "no points in box": ("lidar_box", set_value("num_lidar_points_in_box", 2, None), "must be a whole number, is nan"),
    "negative points": ("lidar_box", set_value("num_lidar_points_in_box", 2, -3), "must be at least 0, is -3"),
    "difficulty": ("lidar_box", set_value("difficulty_level.detection", 2, 7), "must be 0, 1 or 2, is 7"),
    "turned": ("lidar_box", set_value("heading", 2, 1e20), "frame {time}: box of object"),
    "no id": ("lidar_box", set_value("object_id", 2, None), "laser_object_id lacks values"),
    "NaN image": ("lidar", image_of(float("nan")), "frame {time}, laser 2, return 1: ranges must be"),
    "far image": ("lidar", image_of(1e30), "frame {time}, laser 2, return 1: ranges must be"),
    "no pose at all": ("vehicle_pose", set_value("transform", 0, [0.0] * 16), "pose of frame {time} must be"),
    "mirrored pose": (
        "vehicle_pose",
        set_value("transform", 0, np.diag([1.0, 1, -1, 1]).ravel()),
        "must be finite, a rot",
    ),
    "poses twice": ("vehicle_pose", lambda t: pa.concat_tables([t, t]), "2 poses of frame {time}"),
    "NaN pixel pose": ("lidar_pose", set_value("return1.values", 0, [float("nan")] * 8), "range image"),
    "pixel poses twice": ("lidar_pose", lambda t: pa.concat_tables([t, t]), "laser 1: is there several times"),
    "no extrinsic": ("lidar_calibration", set_value("transform", 1, [0.0] * 16), "extrinsic of laser 1 must be"),
    "lasers twice": ("lidar_calibration", lambda t: pa.concat_tables([t, t]), "several calibrations"),
    "NaN inclinations": ("lidar_calibration", set_value("inclination.min", 0, float("nan")), "beam inclinations"),
    "whole-number image": ("lidar", recast("return1.values", pa.int64(), 1), "must hold lists of numbers, holds int64"),
    "text time": ("lidar", recast("timestamp_micros", pa.string(), "x"), "must hold whole numbers, holds string"),
    "shape of fractions": ("lidar", recast("return1.shape", pa.list_(pa.float32()), [1.5]), "lists of whole numbers"),
    "text extrinsic": ("lidar_calibration", recast("transform", pa.list_(pa.string()), ["x"] * 16), "must hold lists"),
    "text inclination": ("lidar_calibration", recast("inclination.min", pa.string(), "x"), "must hold numbers"),
    "text size": ("lidar_box", recast("size.x", pa.string(), "x"), "must hold numbers, holds string"),
    "text type": ("lidar_box", recast(".type", pa.string(), "TYPE_SIGN"), "must hold numbers, holds string"),
    "null type": ("lidar_box", recast(".type", pa.int8(), None), "types of objects must be"),
    "text pose": ("vehicle_pose", recast("transform", pa.list_(pa.string()), ["x"] * 16), "must hold lists of numbers"),
    "twice the same laser": ("lidar", set_value("laser_name", 1, 1), "lasers must be different"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_names_file_and_frame(tmp_path: Path, what: str) -> None:
    root = copy_release(tmp_path)
    name, edit, message = DAMAGE[what]
    change(component(root, name), edit)
    time = frames_of(SMALL)[0].timestamp_micros
    with pytest.raises(DataError) as error:
        read_first(ParquetLayout(root))
    assert str(component(root, name)) in str(error.value)
    assert message.format(time=time) in str(error.value)


def test_a_segment_may_have_no_object(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    change(component(root, "lidar_box"), no_rows)
    layout = ParquetLayout(root)
    labels = layout.labels(layout.find("train")[0])
    assert labels is not None
    assert labels.boxes.shape == (0, 9)
    assert len(read_truth(root)[0]) == 0


def test_a_segment_without_lidar_is_not_passed_over(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    for name in ("lidar", "lidar_box"):
        (component(root, name).with_name("another.parquet")).write_bytes(component(root, name).read_bytes())
    component(root, "lidar").unlink()
    with pytest.raises(MissingFileError, match=rf"lidar/{SEGMENT}\.parquet: .*the component lidar is missing"):
        ParquetLayout(root).find("train")
    damaged: list[DataError] = []
    assert {frame.sequence for frame in ParquetLayout(root).find("train", damaged)} == {"another"}
    assert len(damaged) == 1


def test_lists_that_are_no_text_are_named(tmp_path: Path) -> None:
    for root in (copy_release(tmp_path / "a"), write_processed(tmp_path / "b")):
        (root / "ImageSets").mkdir(exist_ok=True)
        (root / "ImageSets" / "train.txt").write_bytes(b"\xff\xfe\n")
        with pytest.raises(DataError, match=r"train\.txt: not a text file"):
            open_layout(root).find("train")


@pytest.mark.parametrize("name", ["lidar_pose", "lidar_calibration", "vehicle_pose", "lidar_box"])
def test_a_missing_component_is_named(tmp_path: Path, name: str) -> None:
    root = copy_release(tmp_path)
    component(root, name).unlink()
    with pytest.raises(MissingFileError, match=f"the component {name} is missing"):
        read_first(ParquetLayout(root))


@pytest.mark.parametrize("name", ["lidar", "lidar_box"])
@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_a_file_that_is_cut_short_is_named(tmp_path: Path, name: str, keep: int) -> None:
    root = copy_release(tmp_path)
    path = component(root, name)
    data = path.read_bytes()[:keep]
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(DataError, match="no Parquet file, or damaged") as error:
        ParquetLayout(root).labels(frames_of(root)[0])
    assert str(path) in str(error.value)


def test_bytes_changed_inside_a_file_are_an_error_or_other_numbers(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    path = component(root, "lidar")
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(30):
        open_segment.cache_clear()
        data = bytearray(good)
        for at in rng.integers(4, len(data) - 8, 20):
            data[at] = rng.integers(256)
        path.unlink()
        path.write_bytes(bytes(data))
        message = str(path)
        try:
            frames = frames_of(root)
            ParquetLayout(root).points(frames[0])
        except DataError as error:
            message = str(error)
        assert str(root) in message


def test_frames_of_testing_have_no_labels(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    (root / "training").rename(root / "testing")
    component(root, "lidar_box", "testing").unlink()
    layout = ParquetLayout(root)
    assert layout.labels(layout.find("test")[0]) is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_processed_frames_are_those_of_the_release(tmp_path: Path, protocol: int) -> None:
    layout, release = ProcessedLayout(write_processed(tmp_path, protocol)), ParquetLayout(SMALL)
    for own, other in zip(layout.find("val"), release.find("train"), strict=True):
        assert own.frame_id == f"segment-{SEGMENT}_with_camera_labels_{other.number:03d}"
        assert (own.context, own.timestamp_micros) == (other.context, other.timestamp_micros)
        np.testing.assert_array_equal(layout.points(own), release.points(other))
        np.testing.assert_allclose(layout.pose(own), release.pose(other), rtol=1e-6)
        ours, theirs = layout.labels(own), release.labels(other)
        assert ours is not None
        assert theirs is not None
        assert (ours.names, ours.object_ids) == (theirs.names, theirs.object_ids)
        for name in ("boxes", "difficulty", "num_points"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_a_sequence_is_found_under_its_other_names(tmp_path: Path) -> None:
    name = f"segment-{SEGMENT}_with_camera_labels"
    assert candidates(name) == [
        name,
        *(f"{p}_{name}" for p in ("training", "validation", "testing")),
        f"segment-{SEGMENT}",
    ]
    for other in candidates(name)[1:]:
        root = write_processed(tmp_path / other)
        folder = root / PROCESSED / name
        (folder / f"{name}.pkl").rename(folder / f"{other}.pkl")
        folder.rename(folder.with_name(other))
        layout = ProcessedLayout(root)
        frame = layout.find("train")[2]
        assert len(layout.points(frame)) > 1000
        assert layout.labels(frame) is not None
    (root / PROCESSED / other).rename(root / PROCESSED / "elsewhere")
    with pytest.raises(DataError, match=r"no sequence of .*train\.txt is there"):
        ProcessedLayout(root).find("train")


def test_a_missing_sequence_is_left_out_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_processed(tmp_path)
    listed = root / "ImageSets" / "train.txt"
    listed.write_text(listed.read_text() + "segment-1_with_camera_labels.tfrecord\n")
    assert len(ProcessedLayout(root).find("train")) == 3
    assert "1 of 2 sequences are not there, as segment-1_with_camera_labels" in caplog.text


WRONG = {
    "frame_id": ("frame_id", "other", "do not fit together"),
    "frame_id type": ("frame_id", 3, "'frame_id' must be of type str"),
    "no cloud": ("point_cloud", None, "'point_cloud' must be of type dict"),
    "outside": ("point_cloud", {"lidar_sequence": "../..", "sample_idx": 0}, "do not fit together"),
    "pose": ("pose", np.zeros((3, 4)), "pose must be an array"),
    "annos": ("annos", {"name": np.zeros(3)}, "annos must have an array"),
    "annos list": ("annos", [1, 2], "annos must be a dict of arrays, is list"),
    "annos array": ("annos", np.zeros(2), "annos must be a dict of arrays, is ndarray"),
    "annos text": ("annos", "x", "annos must be a dict of arrays, is str"),
    "one frame without annos": ("annos", None, "has no annos, while other frames of the sequence do"),
    "ragged pose": ("pose", [[1], [1, 2]], "pose must be an array"),
    "zero pose": ("pose", np.zeros((4, 4), np.float32), "pose must be finite, a rotation and a translation"),
    "timestamp": ("metadata", {"context_name": "a", "timestamp_micros": 10**30}, "at most 64 bits"),
}
WRONG_ARRAYS = {
    "names of lists": ("name", np.array([["Vehicle"]] * 14, object), "name must be text"),
    "names in two dimensions": ("name", np.array([["Vehicle"]] * 14), "name must be text"),
    "one name": ("name", np.array("Vehicle"), "name must be text"),
    "no name": ("name", np.array([None, *["Vehicle"] * 13], object), "name must be text"),
    "another name": ("name", np.array(["Car"] * 14), "names among unknown, Vehicle"),
    "text difficulty": ("difficulty", np.array(["x"] * 14), "difficulty must be whole numbers"),
    "NaN difficulty": ("difficulty", np.array([np.nan, *[0] * 13]), "difficulty of an object must be a whole number"),
    "difficulty 7": ("difficulty", np.full(14, 7), "must be 0, 1 or 2, is 7"),
    "difficulty in two dimensions": ("difficulty", np.zeros((14, 1), int), "difficulty must be whole numbers"),
    "NaN points": ("num_points_in_gt", np.full(14, np.nan), "num_points_in_gt of an object must be a whole number"),
    "no points": ("num_points_in_gt", np.array([None] * 14, object), "num_points_in_gt must be whole numbers"),
    "negative points": ("num_points_in_gt", np.full(14, -1), "number of points of object .* at least 0"),
    "boxes": ("gt_boxes_lidar", np.array([1.0, 9.0, 2.0]), r"gt_boxes_lidar must be numbers \[M, 7\]"),
    "text boxes": ("gt_boxes_lidar", np.full((14, 7), "x"), "gt_boxes_lidar must be numbers"),
    "boxes in three dimensions": ("gt_boxes_lidar", np.ones((14, 7, 1)), "gt_boxes_lidar must be numbers"),
    "huge boxes": ("gt_boxes_lidar", np.full((14, 9), 1e38), "box of object .* must be finite"),
    "no ids": ("obj_ids", None, "annos must have an array 'obj_ids'"),
    "one id": ("obj_ids", np.array(3), "obj_ids must be text"),
    "the same id": ("obj_ids", np.array(["a"] * 14), "object a is there 14 times"),
}


@pytest.mark.parametrize("what", WRONG_ARRAYS)
def test_wrong_annotations_cost_their_own_frame(tmp_path: Path, what: str) -> None:
    root = write_processed(tmp_path)
    path = next((root / PROCESSED).glob("*/*.pkl"))
    infos = pickle.loads(path.read_bytes())
    key, value, message = WRONG_ARRAYS[what]
    infos[0]["annos"][key] = value
    path.write_bytes(pickle.dumps(infos))
    layout = open_layout(root)
    first, *others = layout.find("train")
    for frame in others:
        assert layout.labels(frame) is not None
        assert layout.track_numbers(frame)
    with pytest.raises(DataError, match=message) as error:
        layout.labels(first)
    assert f"{path}: frame {first.frame_id}" in str(error.value)


def test_frames_without_objects_have_empty_arrays(tmp_path: Path) -> None:
    root = write_processed(tmp_path)
    path = next((root / PROCESSED).glob("*/*.pkl"))
    infos = pickle.loads(path.read_bytes())
    infos[0]["annos"] = {name: np.array([]) for name in infos[0]["annos"]}
    path.write_bytes(pickle.dumps(infos))
    layout = open_layout(root)
    labels = layout.labels(layout.find("train")[0])
    assert labels is not None
    assert labels.boxes.shape == (0, 9)


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_entry_names_file_and_frame(tmp_path: Path, what: str) -> None:
    root = write_processed(tmp_path)
    path = next((root / PROCESSED).glob("*/*.pkl"))
    infos = pickle.loads(path.read_bytes())
    key, value, message = WRONG[what]
    infos[0][key] = value
    path.write_bytes(pickle.dumps(infos))
    with pytest.raises(DataError, match=message) as error:
        read_first(ProcessedLayout(root))
    assert f"{path}: frame" in str(error.value)


def test_boxes_that_are_no_boxes_are_refused(tmp_path: Path) -> None:
    root = write_processed(tmp_path)
    path = next((root / PROCESSED).glob("*/*.pkl"))
    infos = pickle.loads(path.read_bytes())
    infos[1]["annos"]["gt_boxes_lidar"][3, 4] = np.nan
    path.write_bytes(pickle.dumps(infos))
    layout = ProcessedLayout(root)
    frames = layout.find("train")
    assert layout.labels(frames[0]) is not None
    with pytest.raises(DataError, match=r"_001: box of object .* must be finite"):
        layout.labels(frames[1])


def test_a_truncated_cloud_is_named(tmp_path: Path) -> None:
    root = write_processed(tmp_path)
    layout = ProcessedLayout(root)
    frame = layout.find("train")[1]
    path = layout.file(frame)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"0001\.npy"):
        layout.points(frame)


@pytest.mark.parametrize("columns", [3, 5, 7])
def test_clouds_of_other_columns_are_refused(tmp_path: Path, columns: int) -> None:
    root = write_processed(tmp_path)
    layout = ProcessedLayout(root)
    frame = layout.find("train")[1]
    np.save(layout.file(frame), np.ones((9, columns), np.float32))
    with pytest.raises(DataError, match=rf"0001\.npy: {columns} columns, not the 6 of x, y, z, intensity, elong"):
        layout.points(frame)


def test_an_error_of_a_file_takes_one_line(tmp_path: Path) -> None:
    root = copy_release(tmp_path)
    path = component(root, "vehicle_pose")
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    messages = []
    for _ in range(40):
        changed = data.copy()
        for at in rng.integers(4, len(data) - 8, 64):
            changed[at] = 255
        path.unlink()
        path.write_bytes(changed)
        open_segment.cache_clear()
        try:
            read_first(ParquetLayout(root))
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


def test_the_layout_of_a_folder_is_found(tmp_path: Path) -> None:
    assert isinstance(open_layout(SMALL), ParquetLayout)
    assert isinstance(open_layout(write_processed(tmp_path / "a")), ProcessedLayout)
    with pytest.raises(MissingFileError, match="no Waymo data here"):
        open_layout(tmp_path)
    with pytest.raises(MissingFileError, match="no such folder"):
        open_layout(tmp_path / "none")
    copy_release(tmp_path / "a")
    with pytest.raises(DataError, match="give each its own folder"):
        open_layout(tmp_path / "a")
    (tmp_path / "b" / "waymo_processed_data_v1").mkdir(parents=True)
    (tmp_path / "b" / "waymo_processed_data_v2").mkdir()
    with pytest.raises(DataError, match="which of waymo_processed_data_v1, waymo_processed_data_v2"):
        open_layout(tmp_path / "b")
