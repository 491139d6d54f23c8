"""nuScenes tracking metrics: rules by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.evaluation.nuscenes_files import read_track_ground_truth, read_tracks
from pcdet_ext.evaluation.nuscenes_tracking import METRICS, ClassTracking, Sequences, TrackingResult, Tracks, evaluate
from pcdet_ext.files import DataError


def tracks(rows: list[tuple[int, str, float, float]], points: int) -> Tracks:
    """Cars from (sample, track, x, score)."""
    count = len(rows)
    sample, track, x, score = zip(*rows, strict=True) if rows else ([], [], [], [])
    boxes = Boxes(
        sample=np.array(sample, np.int64),
        name=np.full(count, "car"),
        attribute=np.full(count, ""),
        translation=np.column_stack([np.array(x, np.float64), np.zeros(count), np.zeros(count)]),
        size=np.tile([2.0, 4.0, 1.5], (count, 1)),
        rotation=np.tile([1.0, 0, 0, 0], (count, 1)),
        velocity=np.zeros((count, 2)),
        score=np.array(score, np.float64),
        num_points=np.full(count, points),
    )
    return Tracks(boxes, np.array(track, np.str_))


def sequences(count: int) -> Sequences:
    samples = Samples(tuple(map(str, range(count))), np.zeros((count, 3)), tracks([], 0).boxes)
    return Sequences(samples, np.full(count, "scene"), np.arange(count) * 500_000)


def result(
    truth: list[tuple[int, str, float]], found: list[tuple[int, str, float, float]], count: int
) -> TrackingResult:
    return evaluate(tracks([(*row, -1.0) for row in truth], 5), tracks(found, -1), sequences(count))


OBJECT = [(i, "a", 0.0) for i in range(4)]


def test_a_perfect_track() -> None:
    best = result(OBJECT, [(i, "x", 0.0, 0.9) for i in range(4)], 4).classes["car"].best
    assert (best["amota"], best["amotp"], best["mt"], best["ids"], best["tid"], best["lgd"]) == (1, 0, 1, 0, 0, 0)


def test_columns_of_the_table_stay_apart() -> None:
    best = dict.fromkeys(METRICS, 123456.5)
    *_, row = TrackingResult({"car": ClassTracking(np.zeros(0), {}, best)}).table().splitlines()
    assert len(row.split()) == 1 + len(METRICS)


def test_a_new_track_on_an_object_is_a_switch_even_much_later() -> None:
    found = [(0, "x", 0.0, 0.9), (3, "y", 0.0, 0.9)]
    best = result(OBJECT, found, 4).classes["car"].best
    assert (best["tp"], best["ids"], best["fn"], best["frag"]) == (1, 1, 2, 1)
    assert best["lgd"] == 1.0  # two samples of half a second


def test_an_object_keeps_its_track_while_that_is_near() -> None:
    found = [(i, "x", 1.0, 0.9) for i in range(4)] + [(2, "y", 0.0, 0.9)]
    best = result(OBJECT, found, 4).classes["car"].best
    assert (best["tp"], best["fp"], best["ids"]) == (4, 1, 0)
    assert best["motp"] == pytest.approx(1.0)


def test_holes_are_filled_mirrored_in_time() -> None:
    """Between x = 0 and x = 3 the place after one of three steps is 2, as published."""
    truth = [(0, "a", 0.0), (1, "a", 2.0), (2, "a", 1.0), (3, "a", 3.0)]
    best = result(truth, [(0, "x", 0.0, 0.9), (3, "x", 3.0, 0.9)], 4).classes["car"].best
    assert (best["tp"], best["motp"]) == (4, pytest.approx(0.0, abs=1e-9))


def test_without_matches_the_numbers_are_the_worst() -> None:
    best = result(OBJECT, [(0, "x", 9.0, 0.5)], 4).classes["car"].best
    assert (best["amota"], best["amotp"], best["faf"], best["ml"], best["fn"]) == (0, 2, 500, 1, 4)
    assert np.isnan(best["fp"])
    assert np.isnan(result(OBJECT, [], 4).classes["bus"].best["amota"])
    assert "overall" in result(OBJECT, [], 4).table()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracking_id": None}, "a box without a tracking_id"),
        ({"tracking_id": True}, "a box without a tracking_id"),
        ({"sample_token": "b"}, "a box whose sample_token is 'b'"),
        ({"tracking_name": "barrier"}, "unknown class 'barrier'"),
        ({"tracking_score": float("nan")}, "tracking_score is not finite"),
    ],
)
def test_wrong_submissions_name_the_sample(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    box = {"translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0], "velocity": [0, 0]}
    box |= {"tracking_id": "1", "tracking_name": "car", "tracking_score": 0.5, **changes}
    (tmp_path / "t.json").write_text(json.dumps({"results": {"abc": [box]}}))
    with pytest.raises(DataError, match=rf"t\.json: sample abc: {message}"):
        read_tracks(tmp_path / "t.json", ["abc"])


def test_a_track_is_at_one_place_at_a_time(tmp_path: Path) -> None:
    box = {"translation": [0, 0, 0], "size": [1, 1, 1], "rotation": [1, 0, 0, 0], "velocity": [0, 0]}
    box |= {"tracking_id": 7, "tracking_name": "car", "tracking_score": 0.5}
    path = tmp_path / "t.json"
    for other in (box | {"tracking_id": "8"}, box | {"tracking_name": "bus"}):
        path.write_text(json.dumps({"results": {"a": [box], "b": [box, other]}}))
        assert len(read_tracks(path)[0]) == 3
    path.write_text(json.dumps({"results": {"a": [box], "b": [box, box | {"tracking_id": "7"}]}}))
    with pytest.raises(DataError, match=r"t\.json: sample b: 2 boxes of car with the tracking_id '7'"):
        read_tracks(path)


@pytest.mark.parametrize("wrong", [{"timestamp": 0.5}, {"timestamp": 10**400}, {"scene": 3}, {"timestamp": True}])
def test_a_sample_of_the_ground_truth_has_a_scene_and_a_time(tmp_path: Path, wrong: dict[str, Any]) -> None:
    sample = {"ego_translation": [0, 0, 0], "bicycle_racks": [], "scene": "s", "timestamp": 5}
    for changes in ({}, wrong):
        (tmp_path / "gt.json").write_text(json.dumps({"samples": {"a": sample | changes}, "gt_boxes": {}}))
        if not changes:
            assert read_track_ground_truth(tmp_path / "gt.json")[1].timestamp.tolist() == [5]
    with pytest.raises(DataError, match=r"gt\.json: sample a: needs a scene \(a text\) and a timestamp"):
        read_track_ground_truth(tmp_path / "gt.json")
