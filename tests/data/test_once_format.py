"""ONCE: sequences to frames, labels, the metric, files of results of several tools, and damaged releases."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from once_release import BOXES, SEQUENCES, entry, make_release, points, write_sequence

from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.once import Frame, OnceDataset, OnceFrames, read_points, read_sequence, results_by_frame
from pcdet_ext.data.once.benchmark import once
from pcdet_ext.data.prepare import prepare
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Detections

CLASSES = ["Car", "Bus", "Truck", "Pedestrian", "Cyclist"]
RANGE = [-50, -50, -5, 50, 50, 5]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_release(tmp_path / "data")


def prepared(root: Path, *splits: str, **options: object) -> Path:
    prepare(OnceFrames(root), splits or ("train", "val"), progress=False, **options)
    return root


def dataset(root: Path, split: str = "val", **options: object) -> OnceDataset:
    return OnceDataset(root=root, classes=CLASSES, point_cloud_range=RANGE, split=split, **options)


def test_frames_with_labels_come_sequence_by_sequence(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ids = dataset(prepared(root), "train").frames.frame_ids
    assert ids == [
        f"{name}_{1_616_000_000_000 + 100_000 * i + t}" for i, name in enumerate(list(SEQUENCES)[:2]) for t in (0, 1000)
    ]
    assert "2 frames of train have no labels and are left out, beside 4 others; unlabelled=true" in caplog.text
    assert main(["prepare", "once", "--root", str(root), "--splits", "train", "--quiet", "unlabelled=true"]) == 0
    assert len(dataset(root, "train").frames) == 6


def test_a_frame_is_read_as_released(root: Path) -> None:
    found = dataset(prepared(root))
    sample, info = found[1], found.frames[1]
    np.testing.assert_array_equal(sample.points, points(2, 1)[np.abs(points(2, 1)[:, 2]) < 10])
    assert sample.timestamp == pytest.approx(1_616_000_200.5)
    assert list(info.names) == ["Car", "Pedestrian", "Bus"]
    np.testing.assert_allclose(info.boxes, list(BOXES.values()), rtol=1e-6)
    assert info.points_in_box.tolist() == [6, 6, 6]
    np.testing.assert_array_equal(inside_boxes(sample.points, sample.targets.boxes).sum(axis=1), [6, 6, 6])
    cos, sin = np.cos(0.4), np.sin(0.4)
    np.testing.assert_allclose(
        sample.pose, [[cos, -sin, 0, 5], [sin, cos, 0, 2], [0, 0, 1, 0.1], [0, 0, 0, 1]], atol=1e-12
    )


def test_sequences_without_labels_have_all_their_frames(root: Path) -> None:
    (summary,) = prepare(OnceFrames(root), ["raw_small"], [], progress=False)
    assert summary.frames == 2
    assert summary.notes == {"annos: the frame has none": 2}
    found = dataset(root, "raw_small")
    assert not found.labelled
    metric = found.evaluator()
    metric.add(found[0], detections(found)[0][1])
    assert metric.result() is None


def detections(found: OnceDataset, shift: float = 0.0) -> list[tuple[object, Detections]]:
    """The labelled boxes, the last of them turned around, and two that are no boxes."""
    pairs = []
    for i in range(len(found)):
        boxes = np.array([*BOXES.values(), [1, 2, 0, 4, np.nan, 1, 0], [1, 2, 0, 4, 0, 1, 0]])
        boxes[:, 0] += shift
        boxes[2, 6] -= np.pi
        labels = np.array([CLASSES.index(name) for name in BOXES] + [0, 0])
        pairs.append((found[i], Detections(boxes, np.linspace(0.9, 0.5, 5), labels, tuple(CLASSES))))
    return pairs


@pytest.mark.parametrize("options", [{}, {"heading": False}, {"superclass": False}, {"published": True}])
def test_the_metric_is_that_of_the_written_results(
    root: Path, tmp_path: Path, options: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    found = dataset(prepared(root))
    metric = found.evaluator(options)
    for sample, predictions in detections(found, shift=0.1):
        metric.add(sample, predictions)
    (path,) = metric.write(tmp_path / "out")
    assert "4 detections whose numbers are not finite, or that have no size, are left out" in caplog.text
    assert metric.result().to_json() == once(root, path, **options).to_json()
    out = tmp_path / "out.json"
    more = [f"{name}={str(value).lower()}" for name, value in options.items()]
    command = ["evaluate", "once", "--ground-truth", str(root), "--results", str(path), "--json", str(out), *more]
    assert main(command) == 0
    assert json.loads(out.read_text()) == json.loads(json.dumps(metric.result().to_json()))
    if not options:
        values = metric.result().values
        assert values["AP Pedestrian/0-30m"] == values["AP Vehicle/0-30m"] == pytest.approx(100)
        assert values["AP Vehicle/30-50m"] == 0  # the bus, turned around
    other = found.evaluator(options)
    other.merge(metric.state())
    assert other.result().values == metric.result().values


def test_results_of_several_tools_are_read(root: Path, tmp_path: Path) -> None:
    found = dataset(prepared(root))
    name = found.frames[1].extra["name"]
    row = {"name": np.array(["Car"]), "score": np.array([0.5], np.float32), "boxes_3d": np.array([BOXES["Car"]])}
    none = {"name": np.zeros(0), "score": np.zeros(0), "boxes_3d": np.zeros((0, 7))}  # as OpenPCDet has it
    (tmp_path / "result.pkl").write_bytes(
        pickle.dumps([{**none, "frame_id": found.frames[0].extra["name"]}, {**row, "frame_id": name}])
    )
    results = found.read_results(tmp_path / "result.pkl")
    assert [len(results[frame_id]) for frame_id in found.frames.frame_ids] == [0, 1]
    np.testing.assert_allclose(results[found.frames[1].frame_id].boxes, [BOXES["Car"]], rtol=1e-6)
    assert results[found.frames[1].frame_id].names == ["Car"]
    (tmp_path / "list.json").write_text(
        json.dumps([{"frame_id": name, "name": ["Van"], "score": [0.1], "boxes_3d": [BOXES["Car"]]}])
    )
    assert found.read_results(tmp_path / "list.json")[found.frames[1].frame_id].class_names == (*CLASSES, "Van")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("1/0",)


def row(frame: str = "1", **columns: object) -> dict[str, object]:
    return {"frame_id": frame, "name": ["Car"], "score": [1], "boxes_3d": [[1] * 7]} | columns


NOTHING = {"name": [], "score": [], "boxes_3d": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([Evil()], r"r\.pkl: not read, .*only lists, dicts, numbers, text and arrays are"),
        ({"a": 1}, r"r\.json: must be a list with an entry for each frame"),
        ([{"frame_id": "1"}], r"r\.json: entry 0: must have frame_id, name, score and boxes_3d; 'name' is not there"),
        ([row(boxes_3d=[[1] * 6])], r"entry 0: boxes_3d must be 7 numbers for each of 1"),
        ([row(boxes_3d=5)], r"entry 0: boxes_3d must be 7 numbers for each of 1"),
        ([row(score=[1, 2])], r"score must be a finite number for each of 1"),
        ([row(boxes_3d=[[1, 1, 1, 0, 1, 1, 1]])], r"must have positive sizes"),
        ([row(score=["x"])], r"entry 0: could not convert"),
        ([row(score=[10**400])], r"entry 0: int too large to convert to float"),
        ([row(**NOTHING)], r"has none of the data's frames"),
        ([row("7", **NOTHING)] * 2, r"entry 1: frame '7' is there twice"),
        ([row("8")], r"several sequences have a frame '8'; it needs a sequence_id"),
    ],
)
def test_results_that_make_no_sense_are_refused(tmp_path: Path, content: object, message: str) -> None:
    harmful = isinstance(content, list) and isinstance(content[0], Evil)
    path = tmp_path / ("r.pkl" if harmful else "r.json")
    path.write_bytes(pickle.dumps(content) if harmful else json.dumps(content).encode())
    frames = [Frame(tmp_path, "a", "7"), Frame(tmp_path, "a", "8"), Frame(tmp_path, "b", "8")]
    with pytest.raises(DataError, match=message):
        results_by_frame(path, CLASSES, frames)


def test_all_labelled_frames_need_results(root: Path, tmp_path: Path) -> None:
    name = entry("000027", 2, 0)["frame_id"]
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"frame_id": name, "name": [], "score": [], "boxes_3d": []}]))
    with pytest.raises(DataError, match=r"r\.json: no entry for frame '1616000200500' of sequence '000027'"):
        once(root, path)
    with pytest.raises(DataError, match=r"no frame of split 'raw_small' has labels"):
        once(root, path, split="raw_small")
    with pytest.raises(MissingFileError, match=r"ImageSets/vall\.txt: no such file, .*did you mean 'val'"):
        once(root, path, split="vall")


def test_class_names_of_another_spelling_are_named(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = dataset(prepared(root))
    metric = found.evaluator({})
    for sample, predictions in detections(found, shift=0.1):
        metric.add(sample, predictions)
    (path,) = metric.write(tmp_path / "out")
    entries = json.loads(path.read_text())
    for item in entries:
        item["name"] = ["pedestrian" if name == "Pedestrian" else name for name in item["name"]]
    path.write_text(json.dumps(entries))
    caplog.clear()
    once(root, path)
    total = sum(len(item["name"]) for item in entries)
    assert f"{path}: 2 of {total} detections have a class that is not known and do not count" in caplog.text
    assert "2 of 'pedestrian'; known: Car, Bus, Truck, Pedestrian, Cyclist" in caplog.text
    for item in entries:
        item["name"] = [f"CLASS_{name.upper()}" for name in item["name"]]
    path.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=rf"{total} of {total} detections have a class that is not known"):
        once(root, path)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 30), st.integers(0, 1000))
def test_points_are_read_as_written(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int) -> None:
    path = tmp_path_factory.mktemp("points") / "1.bin"
    expected = np.random.default_rng(seed).normal(0, 50, (count, 4)).astype("<f4")
    expected.tofile(path)
    np.testing.assert_array_equal(read_points(path), expected)
    with path.open("ab") as stream:
        stream.write(b"cut")
    with pytest.raises(DataError, match=r"1\.bin: .* bytes are no whole number of 4-column float32 points"):
        read_points(path)


def changed(frames: list[dict[str, object]], **values: object) -> None:
    frames[1].update(values)


def annotated(names: object, boxes: object) -> dict[str, object]:
    return {"annos": {"names": names, "boxes_3d": boxes}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": [1.0, 2.0]}, r"000027\.json: frame 1616000200500: pose must be 7 numbers"),
        ({"pose": [0.0] * 7}, r"frame 1616000200500: pose: a rotation of zeros is none"),
        ({"pose": ["a"] * 7}, r"frame 1616000200500: pose must be numbers"),
        ({"annos": []}, r"frame 1616000200500: annos must have 'names' and 'boxes_3d'"),
        (annotated(["Car"], []), r"frame 1616000200500: boxes_3d must be 7 numbers for each of 1 names, is \[0, 7\]"),
        (annotated([], 5), r"frame 1616000200500: boxes_3d must be 7 numbers for each of 0 names, is \[\]"),
        (annotated([1], [[1] * 7]), r"frame 1616000200500: names must be a list of texts"),
        (annotated(["Car"], [[10**400] * 7]), r"frame 1616000200500: boxes_3d must be numbers"),
        (annotated(["Car"], [[float("nan")] * 7]), r"frame 1616000200500: boxes_3d must be finite numbers"),
        (annotated(["Car"], [[1, 1, 1, 1, 0, 1, 1]]), r"1616000200500: box 0 must be finite and of positive size"),
    ],
)
def test_damaged_frames_are_named_and_can_be_skipped(root: Path, change: dict[str, object], message: str) -> None:
    frames = [entry("000027", 2, i) for i in range(2)]
    changed(frames, **change)
    write_sequence(root, "000027", frames)
    with pytest.raises(DataError, match=message):
        prepared(root, "val")
    (summary,) = prepare(OnceFrames(root), ["val"], on_error="skip", progress=False)
    assert (summary.frames, len(summary.skipped)) == (1, 1)


def test_damaged_files_are_named_and_can_be_skipped(root: Path) -> None:
    lost = root / "data/000000/lidar_roof/1616000001000.bin"
    lost.unlink()
    with pytest.raises(MissingFileError, match=r"1616000001000\.bin: no such file"):
        prepared(root, "train")
    path = root / "data/000001/000001.json"
    path.write_text(path.read_text()[:-9])
    (summary,) = prepare(OnceFrames(root), ["train"], on_error="skip", progress=False)
    assert summary.frames == 1
    assert "1616000001000.bin" in summary.skipped[0]
    assert "000001.json: damaged or no JSON" in summary.skipped[1]
    path.write_text("[]")
    with pytest.raises(DataError, match=r"000001\.json: must have a list 'frames'"):
        read_sequence(root, "000001")
    write_sequence(root, "000001", [{"frame_id": "../x"}])
    with pytest.raises(DataError, match=r"000001\.json: frames\[0\]: frame_id must be the name of its files"):
        read_sequence(root, "000001")
    (root / "ImageSets/val.txt").write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt: lists no sequence"):
        OnceFrames(root).find("val")


def test_files_that_change_after_preparation_are_noticed_and_can_be_skipped(root: Path) -> None:
    prepared(root)
    path = root / "data/000027/lidar_roof/1616000200000.bin"
    points(2, 0)[1:].tofile(path)
    with pytest.raises(DataError, match=r"1616000200000\.bin: 67 points where the index has 68; changed\?"):
        dataset(root)[0]
    found = dataset(root, on_error="skip")
    assert len(found[0].points) == 0
    assert found.skipped == ["000027_1616000200000"]


def test_options_that_do_not_fit_are_refused(root: Path) -> None:
    prepared(root)
    with pytest.raises(ConfigError, match="heading"):
        dataset(root).evaluator({"headings": True})
    found = OnceDataset(root=root, classes=["Car", "Pedestrian"], point_cloud_range=RANGE, split="val")
    with pytest.raises(ConfigError, match="Bus is not one of the classes; superclass=false measures each alone"):
        found.evaluator()
    assert found.evaluator({"superclass": False}).result() is None


def test_deeply_nested_json_is_refused(root: Path, tmp_path: Path) -> None:
    (root / "data/000001/000001.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"000001\.json: damaged or no JSON"):
        prepared(root, "train")
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match=r"r\.json: damaged or no JSON"):
        results_by_frame(tmp_path / "r.json", CLASSES, [])
