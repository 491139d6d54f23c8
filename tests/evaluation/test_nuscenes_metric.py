"""nuScenes detection metrics: rules by hand, and submissions that are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.evaluation.nuscenes import CLASSES, Boxes, Samples, evaluate, running_mean
from pcdet_ext.evaluation.nuscenes_files import read_results
from pcdet_ext.files import DataError


def box(x: float = 1.0, name: str = "car", score: float = 0.5, **changes: Any) -> dict[str, Any]:
    plain = {"translation": [x, 2.0, 0.5], "size": [1.9, 4.5, 1.6], "rotation": [1.0, 0.0, 0.0, 0.0]}
    plain |= {"velocity": [0.0, 0.0], "detection_name": name, "detection_score": score, "attribute_name": ""}
    return {**plain, **changes}


def write(path: Path, results: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"meta": {"use_lidar": True}, "results": results}))
    return path


def columns(x: list[float], score: list[float], points: int, sample: list[int] | None = None) -> Boxes:
    count = len(x)
    return Boxes(
        sample=np.zeros(count, np.int64) if sample is None else np.array(sample),
        name=np.full(count, "car"),
        attribute=np.full(count, "vehicle.moving"),
        translation=np.column_stack([x, np.zeros(count), np.zeros(count)]),
        size=np.tile([2.0, 4.0, 1.5], (count, 1)),
        rotation=np.tile([1.0, 0, 0, 0], (count, 1)),
        velocity=np.zeros((count, 2)),
        score=np.array(score, np.float64),
        num_points=np.full(count, points),
    )


def one_sample() -> Samples:
    return Samples(("a",), np.zeros((1, 3)), columns([], [], 0))


def test_the_nearest_free_object_is_taken_and_no_other_is_tried() -> None:
    truth = columns([0, 1], [0, 0], 5)
    found = columns([0.4, 0.3], [0.9, 0.8], -1)
    result = evaluate(truth, found, one_sample())
    # the second one's nearest object is gone, the other one is 0.7 m away: a miss at 0.5 m, a hit from 1 m on
    assert result.label_ap("car", 1.0) == pytest.approx(1.0)
    assert result.label_ap("car", 0.5) == pytest.approx((np.clip(_precision(), 0.1, 1) - 0.1).mean() / 0.9)
    assert result.class_ap("bus") == 0


def _precision() -> np.ndarray:
    """Of a hit and a miss with two objects, over recalls 0.11 to 1: precision 1, 1/2 at recall 0.5, then nothing."""
    recall = np.linspace(0, 1, 101)[11:]
    return np.where(recall < 0.5, 1.0, np.where(recall == 0.5, 0.5, 0.0))


@given(st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_detections_of_different_scores_come_in_any_order(order: list[int]) -> None:
    truth = columns([0, 5, 10, 15], [0] * 4, 3)
    x, score = np.array([0.1, 5.4, 11.0, 14.0, 30.0, 0.2]), np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    found = columns(list(x[order]), list(score[order]), -1)
    assert (
        evaluate(truth, found, one_sample()).nds == evaluate(truth, columns(list(x), list(score), -1), one_sample()).nds
    )


def test_a_side_without_boxes_is_an_error() -> None:
    with pytest.raises(ValueError, match="no box of the detections counts"):
        evaluate(columns([0], [0], 3), columns([80], [0.5], -1), one_sample())
    with pytest.raises(ValueError, match="no box of the ground truth counts"):
        evaluate(columns([0], [0], 0), columns([1], [0.5], -1), one_sample())


def test_a_running_mean_leaves_nan_out() -> None:
    np.testing.assert_allclose(running_mean(np.array([np.nan, 2, np.nan, 4])), [0, 2, 2, 3])
    np.testing.assert_allclose(running_mean(np.array([np.nan, np.nan])), [1, 1])


def test_submissions_are_read_in_the_order_of_the_split(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", {"b": [box(5.0)], "a": [box(1.0), box(2.0, velocity=[float("nan")] * 2)]})
    boxes, tokens = read_results(path, ["a", "b"])
    assert tokens == ("a", "b")
    assert boxes.sample.tolist() == [1, 0, 0]
    assert boxes.translation[:, 0].tolist() == [5, 1, 2]
    (tmp_path / "r.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert len(read_results(tmp_path / "r.json.gz")[0]) == 3
    assert len(read_results(write(tmp_path / "e.json", {"a": []}))[0]) == 0


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"a": []}, "misses samples of the split, 1 in all, for example b"),
        ({"a": [], "b": [], "c": []}, "has results for unknown samples of the split, 1 in all, for example c"),
        ({"a": [box()] * 501, "b": []}, "sample a: 501 boxes, at most 500"),
        ({"a": [], "b": [box(name="lorry")]}, "sample b: unknown class 'lorry'"),
        ({"a": [], "b": [box(name="carr")]}, "did you mean 'car'"),
        ({"a": [box(attribute_name="flying")], "b": []}, "unknown attribute 'flying'"),
        ({"a": [box(float("nan"))], "b": []}, "sample a: translation is not finite"),
        ({"a": [box(velocity=[float("inf"), 0.0])], "b": []}, "velocity is not finite"),
        ({"a": [box(score=float("nan"))], "b": []}, "detection_score is not finite"),
        ({"a": [box(size=[1.0, 2.0])], "b": []}, r"size must be 3 numbers, got \[1.0, 2.0\]"),
        ({"a": [box(), box(size=[1.0, 2.0], rotation=[1.0, 0, 0, 0, 0])], "b": []}, "size must be 3 numbers"),
        ({"a": [box(rotation="none")], "b": []}, "rotation must be 4 numbers, got 'none'"),
        ({"a": [box(), {**box(), "detection_name": None}], "b": []}, "a box without a text 'detection_name'"),
        ({"a": [box(size=[1.0, 2.0, 0.0])], "b": []}, "sizes must be positive"),
        ({"a": [box(rotation=[0, 0, 0, 0])], "b": []}, "a rotation of zeros"),
        ({"a": [box(score="high")], "b": []}, "detection_score must be a number"),
        ({"a": [{"detection_name": "car"}], "b": []}, "sample a: a box without a text 'attribute_name'"),
        ({"a": [box(score=True)], "b": []}, "detection_score must be a number, got True"),
        ({"a": [box(score="0.5")], "b": []}, "detection_score must be a number, got '0.5'"),
        ({"a": [box(score=10**400)], "b": []}, r"detection_score is beyond 1e\+09"),
        ({"a": [box(size=["1.0", "2.0", "3.0"])], "b": []}, "size must be 3 numbers"),
        ({"a": [box(size=[True, 2.0, 3.0])], "b": []}, "size must be 3 numbers"),
        ({"a": [box(size=[1.0, 2.0, None])], "b": []}, "size must be 3 numbers"),
        ({"a": [box(translation=[1e200, 0, 0])], "b": []}, r"translation is beyond 1e\+09"),
        ({"a": [box(translation=[10**400, 0, 0])], "b": []}, r"translation is beyond 1e\+09"),
        ({"a": [box(velocity=[1e200, 0])], "b": []}, r"velocity is beyond 1e\+09"),
        ({"a": [box(rotation=[1e5, 0, 0, 0])], "b": []}, "rotation must be a quaternion of length 1"),
        ({"a": [box(sample_token="b")], "b": []}, "sample a: a box whose sample_token is 'b'"),
        ({"a": {}, "b": []}, "sample a: expected a list of boxes"),
        ({"a": [3], "b": []}, "sample a: a box without"),
    ],
)
def test_wrong_submissions_name_the_sample(tmp_path: Path, results: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "r.json", results)
    with pytest.raises(DataError, match=rf"r\.json: .*{message}"):
        read_results(path, ["a", "b"])


def test_scores_beyond_the_format_are_told_and_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found, _ = read_results(write(tmp_path / "r.json", {"a": [box(score=s, sample_token="a") for s in (0, 1, 5, -3)]}))
    assert found.score.tolist() == [0, 1, 5, -3]
    assert "r.json: 2 of 4 scores are not in [0, 1]; they go from -3 to 5" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"results": []}', b"\xff\xfe"])
def test_files_that_are_no_submission(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(DataError, match=r"r\.json: "):
        read_results(tmp_path / "r.json", ["a"])
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_results(tmp_path / "none.json")
    whole = gzip.compress(json.dumps({"results": {"a": []}}).encode())
    (tmp_path / "r.json.gz").write_bytes(whole[:12] + bytes(8) + whole[20:])
    with pytest.raises(DataError, match=r"r\.json\.gz: damaged"):
        read_results(tmp_path / "r.json.gz")


def test_there_are_ten_classes() -> None:
    assert len(CLASSES) == 10
