"""Boxes in Waymo's files: Parquet in both kinds of columns, Objects messages, folders; and what is refused."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pcdet_ext.cli.command import main
from pcdet_ext.config import from_plain
from pcdet_ext.data.formats import BENCHMARKS
from pcdet_ext.evaluation import waymo_messages
from pcdet_ext.evaluation.waymo_boxes import Boxes, joined, read_boxes, sides, write_boxes
from pcdet_ext.evaluation.waymo_messages import read_objects, write_objects
from pcdet_ext.evaluation.waymo_truth import read_truth
from pcdet_ext.files import DataError, MissingFileError

SMALL = Path(__file__).resolve().parents[1] / "data" / "golden" / "waymo_v2"
SEGMENT = "10000000000000003000_000_000_020_000"


@pytest.fixture
def truth() -> Boxes:
    return read_truth(SMALL)[0]


@pytest.fixture
def found(truth: Boxes) -> Boxes:
    """The labels that count, some of them moved, with scores; and one that is nothing."""
    rng = np.random.default_rng(0)
    counted = truth.counted()
    boxes = counted.boxes + rng.normal(0, 0.05, counted.boxes.shape) * [1, 1, 1, 0, 0, 0, 1]
    wrong = Boxes.of([truth.frames[0]], np.array([1]), np.array([[60.0, 40, 1, 4, 2, 1.5, 0]]))
    own = replace(counted, boxes=boxes)
    both = joined([own, wrong])
    return replace(both, score=rng.uniform(0.1, 1, len(both)).astype(np.float32))


def evaluate(ground_truth: Path, results: Path, **options: object) -> object:
    given = {"name": "waymo", "ground_truth": str(ground_truth), "results": str(results), **options}
    return BENCHMARKS.build(from_plain(given, "test", []))


def plain(found: Boxes) -> pa.Table:
    """The same as a table with plain names, and types by name."""
    names = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
    kinds = ("UNKNOWN", "TYPE_VEHICLE", "pedestrian", "Sign", "Cyclist")
    return pa.table(
        {
            "context_name": [name for name, _ in found.frames],
            "frame_timestamp_micros": [time for _, time in found.frames],
            **{name: found.boxes[:, i] for i, name in enumerate(names)},
            "type": [kinds[i] for i in found.type],
            "score": found.score,
        }
    )


def test_every_kind_of_file_gives_the_same_numbers(found: Boxes, truth: Boxes, tmp_path: Path) -> None:
    write_boxes(tmp_path / "results.parquet", found)
    write_objects(tmp_path / "results.bin", found)
    pq.write_table(plain(found), tmp_path / "plain.parquet")
    write_objects(tmp_path / "truth.bin", truth.counted())
    lidar_box = SMALL / "training" / "lidar_box" / f"{SEGMENT}.parquet"
    results = [
        evaluate(ground_truth, tmp_path / name)
        for ground_truth in (SMALL, SMALL / "training", lidar_box)
        for name in ("results.parquet", "results.bin", "plain.parquet")
    ]
    values = [result.values for result in results]
    assert all(own == values[0] for own in values)
    assert 0 < results[0].score < 1
    # A message of the labels holds neither levels nor points here, so that level 1 counts all.
    from_message = evaluate(tmp_path / "truth.bin", tmp_path / "results.bin").values
    name = "OBJECT_TYPE_TYPE_PEDESTRIAN_LEVEL_2/AP"
    assert from_message[name] == values[0][name]


def test_files_keep_what_is_in_them(found: Boxes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waymo_messages, "AT_ONCE", 7)
    write_boxes(tmp_path / "a.parquet", found)
    write_objects(tmp_path / "a.bin", found)
    for other in (read_boxes(tmp_path / "a.parquet", True), read_objects(tmp_path / "a.bin", True)):
        assert list(other.frames) == list(found.frames)
        for name in ("type", "boxes", "score", "speed"):
            np.testing.assert_array_equal(getattr(other, name), getattr(found, name))


def test_messages_are_written_as_their_definition_says(tmp_path: Path) -> None:
    """The bytes of one object, by hand: field numbers and wire types of metrics.proto and label.proto."""
    box = np.array([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5]])
    one = Boxes.of([("seg", 300)], np.array([2]), box, score=np.array([0.25], np.float32), object_ids=["a"])
    write_objects(tmp_path / "a.bin", one)
    numbers = zip((1, 2, 3, 5, 4, 6, 7), box[0], strict=True)
    double = {i: bytes([i << 3 | 1]) + np.float64(value).tobytes() for i, value in numbers}
    inner = b"".join(double[i] for i in range(1, 8))
    speed = b"".join(bytes([i << 3 | 1]) + bytes(8) for i in (1, 2))
    label = b"\x0a" + bytes([len(inner)]) + inner + b"\x12" + bytes([len(speed)]) + speed + b"\x18\x02" + b"\x22\x01a"
    item = (
        b"\x0a" + bytes([len(label)]) + label + b"\x15" + np.float32(0.25).tobytes() + b"\x22\x03seg" + b"\x28\xac\x02"
    )
    assert (tmp_path / "a.bin").read_bytes() == b"\x0a" + bytes([len(item)]) + item


def test_levels_follow_from_points_where_labels_do_not_say() -> None:
    frames = [("a", 1)] * 6
    difficulty, points = np.array([0, 0, 0, 1, 2, 0]), np.array([0, 5, 6, 3, 100, -1])
    boxes = Boxes.of(frames, np.full(6, 1), np.ones((6, 7)), difficulty=difficulty, num_points=points)
    assert boxes.counted().difficulty.tolist() == [2, 1, 1, 2, 1]
    unknown = replace(boxes, type=np.array([0, 0, 1, 1, 1, 1]))
    assert len(unknown.counted()) == 4


def test_boxes_of_no_known_frame_are_refused(found: Boxes, tmp_path: Path) -> None:
    other = replace(found, frames=[*found.frames[:-1], (SEGMENT, 17)])
    write_boxes(tmp_path / "a.parquet", other)
    with pytest.raises(DataError, match=rf"a\.parquet: frame 17 of segment '{SEGMENT}' is not in the ground truth"):
        evaluate(SMALL, tmp_path / "a.parquet")


@pytest.mark.parametrize(("column", "value"), [(3, 0.0), (4, -1.0), (6, 1e20), (0, 1e30)])
def test_boxes_that_are_none_are_refused(found: Boxes, tmp_path: Path, column: int, value: float) -> None:
    boxes = found.boxes.copy()
    boxes[4, column] = value
    write_boxes(tmp_path / "a.parquet", replace(found, boxes=boxes))
    with pytest.raises(DataError, match=rf"a\.parquet: frame {found.frames[4][1]} of segment .* box 4 must be finite"):
        evaluate(SMALL, tmp_path / "a.parquet")


@pytest.mark.parametrize("column", ["heading", "score", "frame_timestamp_micros"])
def test_columns_of_text_are_refused_by_name(found: Boxes, tmp_path: Path, column: str) -> None:
    table = plain(found)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(["x"] * len(found))), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: column .* must hold numbers, holds 'x'"):
        evaluate(SMALL, tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("column", "value"), [("heading", [1.0]), ("context_name", ["a"]), ("overlap_with_nlz", "yes")]
)
def test_columns_of_lists_and_zones_of_text_are_refused(
    found: Boxes, tmp_path: Path, column: str, value: object
) -> None:
    table = plain(found)
    table = table.drop_columns([column]) if column in table.column_names else table
    pq.write_table(table.append_column(column, pa.array([value] * len(found))), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet: column '{column}' must hold one value for each box, holds"):
        evaluate(SMALL, tmp_path / "a.parquet")


def test_labels_that_cannot_be_are_refused(truth: Boxes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pq.read_table(SMALL / "training" / "lidar_box" / f"{SEGMENT}.parquet")
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(DataError, match=rf"a\.parquet: frame .* of segment '{SEGMENT}': object .* is there 2 times"):
        read_truth(path)
    for name, value in (("difficulty_level.detection", 7), ("num_lidar_points_in_box", -3)):
        column = f"[LiDARBoxComponent].{name}"
        place = table.column_names.index(column)
        values = [value, *table[column].to_pylist()[1:]]
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(values, table[column].type)), path)
        with pytest.raises(DataError, match=rf"a\.parquet: frame .*: object 0 must have .* has .*{value}"):
            read_truth(path)
    write_objects(tmp_path / "a.bin", joined([truth, truth.select(np.array([3]))]))
    with pytest.raises(DataError, match=r"a\.bin: frame .*is there 2 times"):
        read_truth(tmp_path / "a.bin")


@pytest.mark.parametrize("suffix", ["parquet", "bin"])
def test_results_without_any_box_are_measured(
    truth: Boxes, tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / f"a.{suffix}"
    (write_boxes if suffix == "parquet" else write_objects)(path, truth.select(np.zeros(0, np.int64)))
    assert evaluate(SMALL, path).score == 0
    assert f"{path}: holds no box" in caplog.text


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("suffix", ["parquet", "bin"])
def test_boxes_that_are_not_finite_are_refused(found: Boxes, tmp_path: Path, value: float, suffix: str) -> None:
    boxes = found.boxes.copy()
    boxes[4, 1] = value
    (write_boxes if suffix == "parquet" else write_objects)(tmp_path / f"a.{suffix}", replace(found, boxes=boxes))
    with pytest.raises(DataError, match=rf"a\.{suffix}: frame {found.frames[4][1]} of segment .* box 4 must be finite"):
        evaluate(SMALL, tmp_path / f"a.{suffix}")


def test_wrong_tables_are_refused_by_column(found: Boxes, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for column in ("score", "heading", "context_name"):
        pq.write_table(plain(found).drop_columns([column]), path)
        with pytest.raises(DataError, match=rf"a\.parquet: no column '{column}'"):
            evaluate(SMALL, path)
    for value, message in (("Car", "'Car' is no type of objects"), (None, "column 'type' lacks values")):
        table = plain(found)
        types = table["type"].to_pylist()
        types[2] = value
        pq.write_table(table.set_column(table.column_names.index("type"), "type", pa.array(types)), path)
        with pytest.raises(DataError, match=message):
            evaluate(SMALL, path)
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(DataError, match="no Parquet file, or damaged"):
        evaluate(SMALL, path)
    with pytest.raises(DataError, match="must be a Parquet file"):
        evaluate(SMALL, tmp_path / "a.json")
    for name in ("none.parquet", "none.bin"):
        with pytest.raises(MissingFileError, match=name):
            evaluate(SMALL, tmp_path / name)
    with pytest.raises(MissingFileError, match="no labels here"):
        evaluate(tmp_path, path)
    with pytest.raises(DataError, match="is a folder"):
        evaluate(SMALL, tmp_path)


def test_damaged_messages_are_refused(found: Boxes, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_objects(path, found)
    good = path.read_bytes()
    path.write_bytes(b"")
    with pytest.raises(DataError, match="empty file"):
        read_objects(path, scores=False)
    damages = {good[:-3]: "cut short", b"\x08\x01": "no Objects message", b"\x0a\xff\xff": "damaged"}
    for data, message in damages.items():
        path.write_bytes(data)
        with pytest.raises(DataError, match=message) as error:
            read_objects(path, scores=True)
        assert str(path) in str(error.value)
    rng = np.random.default_rng(0)
    for _ in range(200):
        data = bytearray(good)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(bytes(data))
        message = str(path)
        try:
            read_objects(path, scores=True)
        except DataError as caught:
            message = str(caught)
        assert str(path) in message


def test_objects_without_a_score_or_box_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"\x0a\x05\x22\x03seg")
    with pytest.raises(DataError, match="object 0 of segment 'seg' lacks its box"):
        read_objects(path, scores=True)
    path.write_bytes(b"\x0a\x09\x0a\x02\x0a\x00\x22\x03seg")
    with pytest.raises(DataError, match="object 0 of segment 'seg' has no score"):
        read_objects(path, scores=True)


def test_without_protobuf_messages_ask_for_it(monkeypatch: pytest.MonkeyPatch, found: Boxes, tmp_path: Path) -> None:
    waymo_messages._message_class.cache_clear()
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    assert not waymo_messages.has_protobuf()
    with pytest.raises(ImportError, match="pip install protobuf"):
        write_objects(tmp_path / "a.bin", found)
    waymo_messages._message_class.cache_clear()


def test_a_zone_takes_back_a_false_positive(found: Boxes, truth: Boxes, tmp_path: Path) -> None:
    pq.write_table(plain(found), tmp_path / "a.parquet")
    zones = np.arange(len(found)) == len(found) - 1
    pq.write_table(plain(found).append_column("overlap_with_nlz", pa.array(zones)), tmp_path / "b.parquet")
    with_zone = evaluate(SMALL, tmp_path / "b.parquet").curves["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"]
    without = evaluate(SMALL, tmp_path / "a.parquet").curves["OBJECT_TYPE_TYPE_VEHICLE_LEVEL_1"]
    assert with_zone.false_positives[0] == without.false_positives[0] - 1


def test_a_frame_without_objects_may_have_false_positives(truth: Boxes, tmp_path: Path) -> None:
    empty = ("elsewhere", 5)
    box = Boxes.of([empty], np.array([1]), np.array([[5.0, 0, 1, 4, 2, 1.5, 0]]))
    ours, theirs = sides(truth, box)
    assert not set(theirs.frame) & set(ours.frame)


def test_the_command_prints_the_official_table(
    found: Boxes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_objects(tmp_path / "results.bin", found)
    arguments = ["evaluate", "waymo", "--ground-truth", str(SMALL), "--results", str(tmp_path / "results.bin")]
    assert main([*arguments, "--json", str(tmp_path / "out.json"), "--classes", "Vehicle", "sign"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[1:4]] == ["Vehicle", "Sign", "Vehicle"]
    assert "TYPE_PEDESTRIAN" not in (tmp_path / "out.json").read_text()
    with pytest.raises(DataError, match="'Car' is no type"):
        evaluate(SMALL, tmp_path / "results.bin", classes=["Car"])
