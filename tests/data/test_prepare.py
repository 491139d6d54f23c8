"""Preparation: index and object database, by function and by command line."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pcdet_ext.data import kitti
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.index import GROUP, FrameInfo, index_path, read_index, write_index
from pcdet_ext.data.kitti import prepare_kitti
from pcdet_ext.data.objects import database_path, read_objects
from pcdet_ext.data.prepare import RawFrame, prepare
from pcdet_ext.data.workers import in_order
from pcdet_ext.files import DataError
from pcdet_ext.structures import Sample, Targets


def test_the_index_holds_what_the_files_say(kitti_root: Path) -> None:
    prepare_kitti(kitti_root, progress=False)
    infos = read_index(index_path(kitti_root / "pcdet_ext", "train"))
    assert [i.frame_id for i in infos] == ["000000", "000001", "000002", "000003"]
    for info in infos:
        frame = kitti.Frame(kitti_root, info.frame_id)
        expected = kitti.labels_to_boxes(kitti.read_labels(frame.labels), kitti.Calibration.read(frame.calibration))
        boxes = info.targets()
        np.testing.assert_array_equal(boxes.boxes, expected.boxes)
        assert boxes.names == expected.names
        np.testing.assert_array_equal(boxes.difficulty, expected.difficulty)
        points = kitti.read_points(frame.points)
        np.testing.assert_array_equal(boxes.num_points, inside_boxes(points, expected.boxes).sum(axis=1))
        assert (info.num_points, info.extra["image_size"]) == (len(points), [375, 1242])


def test_the_database_holds_every_object_of_its_split(kitti_root: Path, tmp_path: Path) -> None:
    prepare_kitti(kitti_root, out=tmp_path / "out", progress=False)
    assert not (kitti_root / "pcdet_ext").exists()
    assert not database_path(tmp_path / "out", "val").exists()
    objects = read_objects(database_path(tmp_path / "out", "train"))
    assert {name: len(found) for name, found in objects.items()} == {"Car": 5, "Pedestrian": 4, "Van": 2}
    for found in objects.values():
        for i, frame_id in enumerate(found.frame_ids):
            scan = kitti.read_points(kitti.Frame(kitti_root, frame_id).points)
            own = scan[inside_boxes(scan, found.boxes[i : i + 1])[0]]
            assert len(own) >= 30
            np.testing.assert_allclose(found.points_of(i)[:, :3] + found.boxes[i, :3], own[:, :3], atol=1e-5)
            np.testing.assert_array_equal(found.points_of(i)[:, 3], own[:, 3])


def test_processes_change_nothing(kitti_root: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        prepare_kitti(kitti_root, out=tmp_path / str(workers), workers=workers, progress=False)
    files = sorted(p.relative_to(tmp_path / "0") for p in (tmp_path / "0").rglob("*") if p.is_file())
    assert len(files) == 2 + 1 + 2 * 3
    for file in files:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_real_frames(shared: Path, tmp_path: Path) -> None:
    train, val = prepare_kitti(shared / "data" / "kitti_mini", out=tmp_path, progress=False)
    assert (train.frames, val.frames) == (17, 5)
    assert train.objects["Car"] == 52
    assert "17 frames, 52 Car" in str(train)
    objects = read_objects(database_path(tmp_path, "train"))
    assert np.median(objects["Car"].num_points) > 50


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_frame_is_named_or_left_out(kitti_root: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    label = kitti_root / "training" / "label_2" / "000002.txt"
    label.write_text(label.read_text() + "Car 0 0 0 0 0 0 0 0 0 0 0 0 0\n")
    with pytest.raises(DataError, match=r"label_2.000002\.txt:6: a line must have 15 .*, got 14"):
        prepare_kitti(kitti_root, workers=workers, progress=False)
    assert not (kitti_root / "pcdet_ext").exists()
    train, _ = prepare_kitti(kitti_root, workers=workers, on_error="skip", progress=False)
    assert (train.frames, len(train.skipped)) == (3, 1)
    assert "000002.txt:6" in caplog.text
    assert [i.frame_id for i in read_index(index_path(kitti_root / "pcdet_ext", "train"))][2] == "000003"


def test_frames_without_labels_have_no_boxes(kitti_root: Path) -> None:
    (kitti_root / "training").rename(kitti_root / "testing")
    (kitti_root / "ImageSets" / "test.txt").write_text("000001\n")
    prepare_kitti(kitti_root, splits=["test"], database=[], progress=False)
    (info,) = read_index(index_path(kitti_root / "pcdet_ext", "test"))
    assert (info.extra["folder"], info.targets()) == ("testing", None)


def an_index(path: Path, **changes: object) -> Path:
    """An index of 300 frames with 0 to 4 boxes each; changes: of the columns, for a file that is damaged."""
    rng = np.random.default_rng(3)
    infos = []
    for number in range(300):
        count = number % 5
        columns = {
            "boxes": rng.normal(size=(count, 9)).astype(np.float32),
            "names": [("Car", "Bus", "Bike")[i % 3] for i in range(count)],
            "difficulty": np.full(count, number),
            "points_in_box": np.arange(count),
        }
        infos.append(FrameInfo(f"{number:03d}", number, 0, f"drive {number // 100}", **columns, extra={"n": number}))
    write_index(path, infos)
    if changes:
        table = pq.read_table(path)
        for name, value in changes.items():
            column = pa.array([value] * len(table), table.schema.field(name).type)
            table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
        about = {key: value for key, value in pq.read_metadata(path).metadata.items() if key == b"pcdet_ext"}
        pq.write_table(table.replace_schema_metadata(about), path, row_group_size=GROUP)
    return path


def test_an_index_gives_its_frames_by_position_and_by_id(tmp_path: Path) -> None:
    table = read_index(an_index(tmp_path / "index_train.parquet"))
    assert len(table) == 300
    assert table.labelled
    assert table.class_counts() == {"Car": 300, "Bus": 180, "Bike": 120}
    for copy in (table, pickle.loads(pickle.dumps(table))):
        for number in (0, 299, 127, 128, -1):
            info = copy[number]
            assert (info.frame_id, info.extra["n"]) == (f"{number % 300:03d}", number % 300)
            assert info.boxes.shape == (number % 300 % 5, 9)
    assert table.find("128") == 128
    with pytest.raises(KeyError):
        table.find("300")
    with pytest.raises(IndexError):
        table[300]
    assert table.frames_with("Bike").tolist() == [n for n in range(300) if n % 5 >= 3]
    assert table.frames_with("Tram").tolist() == []
    assert [info.frame_id for info in table.previous("102", 5)] == ["101", "100"]


def test_a_part_of_an_index_is_an_index(tmp_path: Path) -> None:
    table = read_index(an_index(tmp_path / "index_train.parquet"))
    part = pickle.loads(pickle.dumps(table[::7].select(np.array([3, 1, 1]))))
    assert [info.frame_id for info in part] == part.frame_ids == ["021", "007", "007"]
    assert part.find("007") == 1
    assert part.frames_with("Car").tolist() == [0, 1, 2]
    with pytest.raises(KeyError):
        part.find("000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": [1.0, 2.0]}, "damaged index .*reshape"),
        ({"boxes": [1.0] * 9}, "damaged index .*not one value per box"),
        ({"box_columns": 8}, "damaged index .*(7 or 9|reshape)"),
        ({"extra": "{"}, "damaged index"),
        ({"pose": [1.0]}, "damaged index .*reshape"),
        ({"num_points": None}, "damaged index .*NoneType"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=rf"index_train\.parquet: {message}"):
        list(read_index(an_index(tmp_path / "index_train.parquet", **changes)))


def test_what_is_no_index_is_named(tmp_path: Path) -> None:
    path = an_index(tmp_path / "index_train.parquet")
    whole = path.read_bytes()
    for content in (b"", b"{}", whole[: len(whole) // 2], whole[:-9] + b"\0" * 9):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"index_train\.parquet: damaged .*; prepare the data again"):
            read_index(path)
    pq.write_table(pa.table({"frame_id": ["1"]}), path)
    with pytest.raises(DataError, match=r"index_train\.parquet: not of this version's format"):
        read_index(path)
    path.unlink()
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(DataError, match=r"index_train\.json: of an earlier version; prepare the data again"):
        read_index(path)


def test_a_damaged_database_is_named(kitti_root: Path) -> None:
    prepare_kitti(kitti_root, progress=False)
    folder = database_path(kitti_root / "pcdet_ext", "train")
    entry = json.loads((folder / "database.json").read_text())["classes"]["Car"]
    points, objects = folder / entry["points"], folder / entry["objects"]
    table = pq.read_table(objects)
    boxes = np.array(table["box"].to_pylist(), np.float32)
    for value in (np.nan, -1.0):
        boxes[0, 3] = value
        column = pa.FixedSizeListArray.from_arrays(pa.array(boxes.ravel()), 7)
        pq.write_table(table.set_column(1, "box", column), objects)
        with pytest.raises(DataError, match=r"database_train: damaged .*boxes of class_0\.npy"):
            read_objects(folder)
    pq.write_table(table.set_column(3, "num_points", pa.array([10**6] * len(table))), objects)
    with pytest.raises(DataError, match=r"database_train: damaged .*class_0\.npy has"):
        read_objects(folder)
    pq.write_table(table, objects)
    np.save(points, np.load(points)[:-1])
    with pytest.raises(DataError, match=r"database_train: damaged .*class_0\.npy has"):
        read_objects(folder)
    for junk in (b"junk", b""):
        points.write_bytes(junk)
        with pytest.raises(DataError, match="database_train: damaged"):
            read_objects(folder)
    with pytest.raises(DataError, match=r"database\.json: no such file; make it with"):
        read_objects(folder.with_name("database_val"))


def run_tool(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "tools" / "prepare_data.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


class Clouds:
    """Frames by their ids and numbers of points, all on a line; below zero: points that are not finite."""

    LAYOUT = ""

    def __init__(self, root: Path, frames: dict[str, list[tuple[str, int]]]) -> None:
        self.root, self.frames = root, frames

    def find(self, split: str) -> list[tuple[str, int]]:
        return self.frames[split]

    def read(self, frame: tuple[str, int]) -> RawFrame:
        frame_id, count = frame
        points = np.full((abs(count), 3), 1.0 if count > 0 else np.nan, np.float32)
        box = np.array([[1, 1, 1, 2, 2, 2, 0]], np.float32)
        return RawFrame(Sample(points, ("x", "y", "z"), frame_id, Targets.of_names(box, ("Car",))))


def test_frames_without_points_and_frames_met_twice_are_told(tmp_path: Path) -> None:
    frames = {"train": [("a", 5), ("b", -4), ("c", 0)], "val": [("a", 5), ("b", 3), ("a", 5)], "dark": [("a", 0)]}
    source = Clouds(tmp_path, frames)
    (summary,) = prepare(source, ["train"], progress=False)
    assert (summary.empty, summary.dropped_points) == (2, 4)
    assert "2 frames have no finite point" in str(summary)
    with pytest.raises(DataError, match="frame 'a' is in split 'val' twice"):
        prepare(source, ["val"], progress=False)
    assert not index_path(tmp_path / "pcdet_ext", "val").exists()
    (summary,) = prepare(source, ["val"], on_error="skip", progress=False)
    assert read_index(index_path(tmp_path / "pcdet_ext", "val")).frame_ids == ["a", "b"]
    assert len(summary.skipped) == 1
    with pytest.raises(DataError, match="none of the 1 frames of split 'dark' has a finite point"):
        prepare(source, ["dark"], progress=False)


def test_frames_are_read_in_order_and_not_far_ahead() -> None:
    """Threads stand for processes; each notes what it has begun when a result is taken."""
    begun: list[int] = []

    def read(frame: int) -> int:
        begun.append(frame)
        return frame

    with ThreadPoolExecutor(2) as pool:
        taken = 0
        for frame in in_order(pool, read, range(50), ahead=6):
            assert frame == taken
            taken += 1
            assert max(begun) < taken + 6
    assert taken == 50
    assert sorted(begun) == list(range(50))


def test_the_database_of_an_empty_box_is_of_its_columns(tmp_path: Path) -> None:
    prepare(Clouds(tmp_path, {"train": [("a", 5), ("b", -4)]}), ["train"], progress=False)
    found = read_objects(database_path(tmp_path / "pcdet_ext", "train"))["Car"]
    assert (found.num_points.tolist(), list(found.frame_ids)) == ([5, 0], ["a", "b"])
    np.testing.assert_array_equal(found.points_of(0), np.zeros((5, 3), np.float32))


def test_the_tool_prepares_and_tells_what_it_found(root: Path, kitti_root: Path, tmp_path: Path) -> None:
    done = run_tool(root, "kitti", "--root", str(kitti_root), "--out", str(tmp_path / "o"), "--splits", "train")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("train: 4 frames, 5 Car, 4 Pedestrian, 2 Van")
    assert "4/4" in done.stderr  # the progress bar
    assert [p.name for p in sorted((tmp_path / "o").iterdir())] == ["database_train", "index_train.parquet"]


def test_the_tool_names_what_is_wrong(root: Path, kitti_root: Path) -> None:
    (kitti_root / "training" / "calib" / "000001.txt").write_text("P2: 1\n")
    done = run_tool(root, "kitti", "--root", str(kitti_root), "--quiet")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().endswith("calib/000001.txt:1: P2 must have 12 numbers, got 1")


def test_a_database_holds_nothing_of_an_earlier_one(kitti_root: Path) -> None:
    folder = database_path(kitti_root / "pcdet_ext", "train")
    prepare_kitti(kitti_root, progress=False)
    (folder / "class_99.npy").write_bytes(b"of a class that is gone")
    before = sorted(path.name for path in folder.iterdir())
    prepare_kitti(kitti_root, progress=False)
    assert sorted(path.name for path in folder.iterdir()) == [name for name in before if name != "class_99.npy"]


class Source:
    """One good frame and one whose box is as given."""

    LAYOUT = ""

    def __init__(self, root: Path, box: list[float]) -> None:
        self.root, self.boxes = root, {"good": [1.0, 2, 0, 4, 2, 1, 0], "bad": box}

    def find(self, split: str) -> list[str]:
        return list(self.boxes)

    def read(self, frame: str) -> RawFrame:
        targets = Targets.of_names(np.array([self.boxes[frame]], np.float32), ("Car",))
        return RawFrame(
            Sample(np.ones((4, 4), np.float32), ("x", "y", "z", "intensity"), frame_id=frame, targets=targets)
        )


@pytest.mark.parametrize(("place", "wrong"), [(0, np.nan), (6, np.inf), (3, 0.0), (5, -1.0)])
def test_boxes_that_cannot_be_are_named_or_left_out(tmp_path: Path, place: int, wrong: float) -> None:
    box = [1.0, 2, 0, 4, 2, 1, 0]
    box[place] = wrong
    source = Source(tmp_path, box)
    with pytest.raises(DataError, match="frame bad: box 0 must be finite and of positive size"):
        prepare(source, ["train"], progress=False)
    (summary,) = prepare(source, ["train"], on_error="skip", progress=False)
    assert (summary.frames, len(summary.skipped)) == (1, 1)
