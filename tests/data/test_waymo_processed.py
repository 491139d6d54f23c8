"""Waymo's processed layout: frames, labels, and what is said of wrong entries and damaged clouds."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from waymo_folders import PROCESSED, SEGMENT, SMALL, read_first, write_processed

from pcdet_ext.data.waymo import ParquetLayout, ProcessedLayout, open_layout
from pcdet_ext.data.waymo.processed import candidates, read_infos
from pcdet_ext.files import DataError


@pytest.fixture(autouse=True)
def nothing_is_open() -> None:
    read_infos.cache_clear()


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
