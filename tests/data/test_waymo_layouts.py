"""Waymo's Parquet components: frames, points, labels, what is said of damaged ones, and how a layout is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waymo_folders import SEGMENT, SMALL, change, component, copy_release, read_first, set_value, write_processed

from pcdet_ext.data.waymo import Frame, ParquetLayout, ProcessedLayout, open_layout, row_files
from pcdet_ext.data.waymo.parquet import open_segment
from pcdet_ext.evaluation.waymo_truth import read_truth
from pcdet_ext.files import DataError, MissingFileError


@pytest.fixture(autouse=True)
def nothing_is_open() -> None:
    open_segment.cache_clear()


def frames_of(root: Path) -> list[Frame]:
    return ParquetLayout(root).find("train")


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
