"""Label and result files of one's own data: what is written comes back, and what is wrong is named with its line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pcdet_ext.data.custom import Settings, read_labels, write_labels
from pcdet_ext.data.custom.labels import write_objects
from pcdet_ext.data.custom.results import CustomResults, write_results
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections

GOOD = "1 2 3 4 5 6 0.5 Car"
NAMES = st.text(min_size=1, max_size=12).filter(lambda t: t == t.strip() and t.splitlines() == [t] and "\0" not in t)
SCORES = st.floats(0, 1, width=32)


@st.composite
def labelled_boxes(draw: st.DrawFn) -> tuple[np.ndarray, list[str], np.ndarray]:
    count = draw(st.integers(0, 5))
    centres = draw(arrays(np.float32, (count, 3), elements=st.floats(-1e6, 1e6, width=32)))
    sizes = draw(arrays(np.float32, (count, 3), elements=st.floats(2.0**-10, 1000.0, width=32)))
    headings = draw(arrays(np.float32, (count, 1), elements=st.floats(-6.25, 6.25, width=32)))
    names = draw(st.lists(NAMES, min_size=count, max_size=count))
    scores = draw(arrays(np.float32, count, elements=SCORES))
    return np.concatenate([centres, sizes, headings], axis=1), names, scores


@given(labelled_boxes())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_comes_back(tmp_path: Path, content: tuple[np.ndarray, list[str], np.ndarray]) -> None:
    boxes, names, scores = content
    write_labels(tmp_path / "labels.txt", boxes, names)
    labels = read_labels(tmp_path / "labels.txt", Settings(classes=sorted(set(names))))
    np.testing.assert_array_equal(labels.boxes, boxes)
    assert labels.names == tuple(names)
    assert labels.scores is None

    write_labels(tmp_path / "results.txt", boxes, names, scores)
    found = read_labels(tmp_path / "results.txt", with_scores=True)
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.names == tuple(names)

    moving = np.concatenate([boxes, boxes[:, :2]], axis=1)
    write_objects(tmp_path / "objects.json", moving, names, scores)
    found = read_labels(tmp_path / "objects.json", with_scores=True)
    np.testing.assert_array_equal(np.concatenate([found.boxes, found.velocities], axis=1), moving)
    np.testing.assert_array_equal(found.scores, scores)


@given(labelled_boxes())
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_degrees_are_headings_in_another_unit(
    tmp_path: Path, content: tuple[np.ndarray, list[str], np.ndarray]
) -> None:
    boxes, names, _ = content
    turned = boxes.copy()
    turned[:, 6] = np.rad2deg(boxes[:, 6])
    write_labels(tmp_path / "labels.txt", turned, names)
    labels = read_labels(tmp_path / "labels.txt", Settings(heading_unit="degrees", classes=sorted(set(names))))
    np.testing.assert_allclose(labels.boxes, boxes, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 2 3 4 5 6 0.5", "columns 'x y z dx dy dz heading class'"),
        ("1 2 3 4 5 6 0.5 Car 0.9", "is 'Car 0.9' a class"),
        ("1 2 3 4 5 6 0.5 7 Car", "is '7 Car' a class"),
        ("Car 1 2 3 4 5 6 0.5", "'Car' is not a number; the columns are"),
        ("x y z dx dy dz heading class", "'x' is not a number; the columns are .* without a header"),
        ("nan 2 3 4 5 6 0.5 Car", "numbers must be finite, got 'nan'"),
        ("1 2 3 4 5 inf 0.5 Car", "numbers must be finite"),
        ("1e300 2 3 4 5 6 0.5 Car", "numbers must be finite"),
        ("1 2 3 4 0 6 0.5 Car", "sizes dx, dy, dz must be positive, got 4 0 6"),
        ("1 2 3 4 -5 6 0.5 Car", "must be positive"),
        ("1 2 3 4 5 6 90 Car", "heading 90 is more than a full turn .*in degrees.*heading_unit: degrees"),
        ("1,2,3,4,5,6,0.5,Car", "must have the columns"),
        ("1_0 2 3 4 5 6 0.5 Car", "'1_0' is not a number"),
        ("1 2 3 4100 1700 1500 0.5 Car", "must be in metres, and at most 1000, got 4100 1700 1500"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "7.txt"
    path.write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(DataError, match=rf"7\.txt:3: .*{message}"):
        read_labels(path)


def test_unknown_classes_have_a_suggestion(tmp_path: Path) -> None:
    path = tmp_path / "7.txt"
    path.write_text(f"{GOOD}\n1 2 3 4 5 6 0 Fork lft\n")
    with pytest.raises(DataError, match=r"7\.txt:2: unknown class 'Fork lft'; did you mean 'Fork lift'"):
        read_labels(path, Settings(classes=["Car", "Fork lift"]))
    path.write_text("1 2 3 4 5 6 0 Level 2\n")
    assert read_labels(path, Settings(classes=["Level 2"])).names == ("Level 2",)


def test_results_need_a_class_and_a_score(tmp_path: Path) -> None:
    path = tmp_path / "7.txt"
    for line, message in ((GOOD, "'Car' is not a number"), ("1 2 3 4 5 6 0.5 0.9", "one is missing")):
        path.write_text(line)
        with pytest.raises(DataError, match=rf"7\.txt:1: .*{message}"):
            read_labels(path, with_scores=True)
    path.write_text("1 2 3 4 5 6 0.5 Fork lift 2 0.25\n")
    found = read_labels(path, with_scores=True)
    assert found.names == ("Fork lift 2",)
    assert found.scores is not None
    assert found.scores.tolist() == [0.25]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ('{"boxes": []}', "must be"),
        ('[{"class": "Car"}]', "object 0: box: must be 7 numbers"),
        ('[{"class": "Car", "box": [1, 2, 3, 4, 5, 6]}]', "object 0: box: must be 7 numbers"),
        ('[{"class": "Car", "box": [1, 2, 3, 4, 5, 6, NaN]}]', "object 0: box: numbers must be finite"),
        ('[{"class": "Car", "box": [1, 2, 3, 4, 5, 6, 45]}]', "object 0: heading 45"),
        ('[{"class": "Car", "box": [1, 2, 3, 4, 5, 6, true]}]', "object 0: box: must be 7 numbers"),
        (
            '[{"class": "Car", "box": [1, 2, 3, 4, 5, 6, 0], "track": 3}]',
            "no such key 'track'; did you mean 'track_id'",
        ),
        ('[{"class": "Car", "box": [1, 2, 3, 4, 5, 6, 0], "track_id": 1.5}]', "track_id must be a whole number"),
        ('[{"class": "Car", "box": [1, 2, 3, 4, 5, 6, 0], "velocity": 3}]', "velocity: must be 2 numbers"),
        ('[{"box": [1, 2, 3, 4, 5, 6, 0]}]', 'must be a mapping with "class"'),
        ("[" * 100_000, "no JSON"),
        (f'[{{"class": "Car", "box": [1{"0" * 400}, 2, 3, 4, 5, 6, 0]}}]', "numbers must be finite, got 10000"),
        (f'[{{"class": "Car", "box": [1{"0" * 5000}, 2, 3, 4, 5, 6, 0]}}]', "no JSON"),
    ],
)
def test_wrong_json_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "7.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"7\.json: .*{message}"):
        read_labels(path)


def test_json_says_more(tmp_path: Path) -> None:
    path = tmp_path / "7.json"
    box = [1, 2, 3, 4, 5, 6, 0.5]
    objects = [{"class": "Car", "box": box, "velocity": [1, -2], "track_id": 9}, {"class": "Fork lift", "box": box}]
    path.write_text(json.dumps({"objects": objects}))
    targets = read_labels(path).targets(velocity=True)
    np.testing.assert_array_equal(targets.boxes, [[*box, 1, -2], [*box, math.nan, math.nan]])
    assert targets.names == ("Car", "Fork lift")
    np.testing.assert_array_equal(targets.track_ids, [9, -1])
    assert read_labels(path).targets().boxes.shape == (2, 7)


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    boxes = np.array([[1, 2, 3, 4, 5, 6, 0.5], [3, 2, 1, 1, 1, 2, -3]], np.float32)
    scores, labels = np.array([0.9, 0.1], np.float32), np.array([1, 0])
    found = Detections(boxes, scores, labels, ("Person", "Fork lift"), "drive/7")
    moving = Detections(np.concatenate([boxes, boxes[:, :2]], 1), scores, labels, ("Person", "Fork lift"), "8")
    assert write_results(tmp_path, "drive/7", found) == tmp_path / "drive/7.txt"
    assert write_results(tmp_path, "8", moving) == tmp_path / "8.json"
    read = CustomResults(tmp_path, ["Person"])
    assert sorted(read) == ["8", "drive/7"]
    for name, expected in (("drive/7", found), ("8", moving)):
        np.testing.assert_array_equal(read[name].boxes, expected.boxes)
        np.testing.assert_array_equal(read[name].scores, scores)
        assert read[name].names == expected.names


@pytest.mark.parametrize("between", [" ", "\t", " \t "])
def test_results_may_be_separated_by_tabs(tmp_path: Path, between: str) -> None:
    path = tmp_path / "7.txt"
    path.write_text(between.join(["1", "2", "3", "4", "5", "6", "0.5", "Fork_lift", "0.25"]))
    found = read_labels(path, with_scores=True)
    assert (found.names, found.boxes.tolist()) == (("Fork_lift",), [[1, 2, 3, 4, 5, 6, 0.5]])
    np.testing.assert_array_equal(found.scores, np.float32([0.25]))


@given(st.floats(-25, 25))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_headings_of_results_may_go_beyond_a_full_turn(tmp_path: Path, heading: float) -> None:
    (tmp_path / "7.txt").write_text(f"1 2 3 4 5 6 {heading!r} Car 0.5\n")
    (tmp_path / "8.json").write_text(json.dumps([{"class": "Car", "box": [1, 2, 3, 4, 5, 6, heading], "score": 0.5}]))
    for name in ("7.txt", "8.json"):
        found = float(read_labels(tmp_path / name, with_scores=True).boxes[0, 6])
        assert abs(found) <= 2 * math.pi * (1 + 1e-5)
        np.testing.assert_allclose(
            [math.cos(found), math.sin(found)], [math.cos(heading), math.sin(heading)], atol=1e-5
        )


def test_results_in_degrees_are_refused(tmp_path: Path) -> None:
    (tmp_path / "7.txt").write_text("1 2 3 4 5 6 6 Car 0.5\n1 2 3 4 5 6 -90 Car 0.5\n")
    with pytest.raises(DataError, match=r"7\.txt:2: heading -90 is more than 4 full turns .*in degrees"):
        read_labels(tmp_path / "7.txt", with_scores=True)


def test_results_replace_those_of_the_other_format(tmp_path: Path) -> None:
    boxes, scores, labels = np.ones((1, 9), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64)
    still = Detections(boxes[:, :7], scores, labels, ("Car",), "7")
    moving = Detections(boxes, scores, labels, ("Car",), "7")
    for found, suffix in ((still, ".txt"), (moving, ".json"), (still, ".txt")):
        write_results(tmp_path, "7", found)
        assert [path.name for path in tmp_path.iterdir()] == [f"7{suffix}"]
        assert list(CustomResults(tmp_path, [])) == ["7"]


@pytest.mark.parametrize("velocities", [False, True])
def test_results_that_cannot_be_read_again_are_left_out(
    tmp_path: Path, velocities: bool, caplog: pytest.LogCaptureFixture
) -> None:
    boxes = np.tile(np.array([1, 2, 3, 4, 5, 6, 0.5, 7, 8], np.float32), (7, 1))
    boxes[1, 6], boxes[2, 0], boxes[3, 4] = np.nan, np.inf, 0
    boxes[5, 6], boxes[6, 7] = 100, np.nan
    scores = np.array([0.1, 0.2, 0.3, 0.4, np.nan, 0.6, 0.7], np.float32)
    found = Detections(boxes[:, : 9 if velocities else 7], scores, np.zeros(7, np.int64), ("Car",), "7")
    write_results(tmp_path, "7", found)
    assert "frame 7: 4 detections are left out" in caplog.text
    read = CustomResults(tmp_path, ["Car"])["7"]
    np.testing.assert_array_equal(read.scores, np.float32([0.1, 0.6, 0.7]))
    np.testing.assert_allclose(np.sin(read.boxes[:, 6]), np.sin([0.5, 100, 0.5]), atol=1e-5)
    if velocities:
        np.testing.assert_array_equal(read.boxes[:, 7:], [[7, 8], [7, 8], [0, 0]])


@pytest.mark.parametrize("name", ["", " Car", "Car\n", "a\u2028b"])
def test_names_that_would_not_come_back_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no class name"):
        write_labels(tmp_path / "7.txt", np.ones((1, 7), np.float32), [name])
    assert not list(tmp_path.iterdir())
