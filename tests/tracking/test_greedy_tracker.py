"""The greedy tracker: rules by hand, frames as they come in practice, and a plain version of its matching."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext.structures import Detections
from pcdet_ext.tracking import GreedyTracker, KalmanTracker, Tracker
from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.greedy import NUSCENES_LIMITS

NAMES = ("car", "pedestrian", "barrier")


def detections(rows: list[tuple[float, float]], labels: list[int] | None = None, width: int = 9) -> Detections:
    """Boxes from (x, velocity along x)."""
    boxes = np.zeros((len(rows), width), np.float32)
    for box, (x, speed) in zip(boxes, rows, strict=True):
        box[0], box[3:6] = x, (4, 2, 1.5)
        if width == 9:
            box[7] = speed
    return Detections(boxes, np.full(len(rows), 0.5, np.float32), np.array(labels or [0] * len(rows)), NAMES)


def numbers(tracker: Tracker, frames: list[list[tuple[float, float]]], period: float = 0.5) -> list[list[int]]:
    found = [tracker.update(detections(rows), None, period * i).track_ids for i, rows in enumerate(frames)]
    return [np.asarray(ids).tolist() for ids in found]


def test_a_moving_object_keeps_its_number() -> None:
    assert isinstance(GreedyTracker(), Tracker)
    frames = [[(10.0 * i, 20.0), (-10.0 * i, -20.0)] for i in range(4)]
    assert numbers(GreedyTracker(), frames) == [[1, 2]] * 4
    assert numbers(GreedyTracker(), [[(0.0, 0.0)], [(10.0, 0.0)]]) == [[1], [2]]  # its velocity leads elsewhere


def test_a_track_survives_two_misses_and_moves_on_meanwhile() -> None:
    """It moves by the step of its last detection, which its first frame does not have."""
    aside = [(500.0, 0.0)]
    frames = [[(-5.0, 10.0)], [(0.0, 10.0)], aside, aside, [(15.0, 10.0)]]
    assert numbers(GreedyTracker(), frames)[-1] == [1]
    assert numbers(GreedyTracker(max_age=2), frames)[-1] != [1]


def test_an_empty_frame_ends_all_tracks_but_numbers_go_on() -> None:
    assert numbers(GreedyTracker(), [[(0.0, 0.0)], [], [(0.0, 0.0)]]) == [[1], [], [2]]


def test_a_frame_of_other_classes_alone_is_a_miss() -> None:
    tracker = GreedyTracker()
    tracker.update(detections([(0.0, 0.0)]), None, 0.0)
    assert len(tracker.update(detections([(0.0, 0.0)], [2]), None, 0.5)) == 0
    assert tracker.update(detections([(0.0, 0.0)]), None, 1.0).track_ids.tolist() == [1]


def test_classes_do_not_mix_and_come_back_in_the_order_of_the_matches() -> None:
    tracker = GreedyTracker()
    tracker.update(detections([(0.0, 0.0), (0.1, 0.0)], [0, 1]), None, 0.0)
    found = tracker.update(detections([(9.0, 0.0), (0.0, 0.0), (0.1, 0.0)], [0, 1, 0]), None, 0.5)
    assert found.labels.tolist() == [1, 0, 0]
    assert found.track_ids.tolist() == [2, 1, 3]


def test_greedy_goes_by_the_list_and_optimal_by_the_total() -> None:
    contested = [[(0.0, 0.0), (3.0, 0.0)], [(1.4, 0.0), (-2.0, 0.0)]]
    assert numbers(GreedyTracker(), contested)[-1] == [1, 3]
    assert numbers(GreedyTracker(assignment="optimal"), contested)[-1] == [2, 1]


def test_births_need_a_score() -> None:
    tracker = GreedyTracker(birth_score=0.5)
    assert len(tracker.update(detections([(0.0, 0.0)]), None, 0.0)) == 0


def test_a_velocity_that_is_not_known_counts_as_zero() -> None:
    tracker = GreedyTracker()
    frames = [[(0.0, float("nan")), (50.0, 0.0)], [(50.0, 0.0)], [(0.5, float("nan")), (50.0, 0.0)]]
    assert numbers(tracker, frames) == [[1, 2], [2], [1, 2]]
    # As published, a track without a place blocks all others once it was missed.
    assert numbers(GreedyTracker(published=True), [*frames, [(50.0, 0.0)]]) == [[1, 2], [2], [3, 4], [5]]
    slow = GreedyTracker()
    assert slow.update(detections([(0.0, 0.0)], width=7), None, 0.0).boxes.shape == (1, 7)


def test_the_pose_takes_the_motion_of_the_vehicle_out() -> None:
    tracker = GreedyTracker()
    for i in range(4):
        pose = np.eye(4)
        angle = 0.5 * i
        pose[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        pose[0, 3] = 20.0 * i
        local = np.linalg.inv(pose) @ np.array([30.0, 5.0, 0.0, 1.0])
        found = detections([(0.0, 0.0)])
        found.boxes[0, :2] = local[:2]
        assert tracker.update(found, pose, 0.5 * i).track_ids.tolist() == [1]
    with pytest.raises(ValueError, match=r"pose must be a matrix \[4, 4\] of numbers, got \[3, 3\]"):
        tracker.update(found, np.eye(3), 3.0)
    for wrong in (np.zeros((4, 4)), 2 * np.eye(4), np.diag([1.0, -1, 1, 1])):
        with pytest.raises(ValueError, match="pose must be a rotation and a translation"):
            tracker.update(found, wrong, 3.0)


@pytest.mark.parametrize("tracker", [GreedyTracker, KalmanTracker])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", [0, 5, 6, "score"])
def test_detections_that_are_not_finite_are_left_out(
    tracker: type[Tracker], value: float, column: int | Literal["score"]
) -> None:
    plain, odd = tracker(), tracker()
    for i in range(3):
        found = detections([(float(i), 10.0), (30.0, 0.0)])
        expected = plain.update(found.select(np.array([1])), np.eye(4), 0.1 * i)
        boxes, scores = found.boxes.copy(), found.scores.copy()
        if column == "score":
            scores[0] = value
        else:
            boxes[0, column] = value
        result = odd.update(replace(found, boxes=boxes, scores=scores), np.eye(4), 0.1 * i)
        np.testing.assert_array_equal(result.boxes, expected.boxes)
        np.testing.assert_array_equal(result.track_ids, expected.track_ids)


@pytest.mark.parametrize("tracker", [GreedyTracker, KalmanTracker])
@pytest.mark.parametrize("label", [0.5, True, "car"])
def test_labels_are_whole_numbers(tracker: type[Tracker], label: object) -> None:
    found = Detections(np.zeros((1, 7)), np.ones(1), np.array([label]), ("a", "b", "c"))
    with pytest.raises(ValueError, match="labels must be whole numbers"):
        tracker().update(found, np.eye(4), 0.0)


@pytest.mark.parametrize("tracker", [GreedyTracker, KalmanTracker])
@pytest.mark.parametrize("label", [3, -1])
def test_labels_of_no_class_are_named(tracker: type[Tracker], label: int) -> None:
    with pytest.raises(ValueError, match=f"labels must be positions in the 3 class_names, got {label}"):
        tracker().update(detections([(0.0, 0.0), (9.0, 0.0)], [0, label]), None, 0.0)


@pytest.mark.parametrize("time", [None, "soon", 10**400, float("inf")])
def test_times_that_are_none(time: object) -> None:
    with pytest.raises(ValueError, match="timestamp must be finite seconds"):
        GreedyTracker().update(detections([]), None, time)


def test_a_missing_frame_and_one_out_of_order_are_taken_by_their_time() -> None:
    tracker = GreedyTracker()
    times_and_places = [(0.0, 0.0), (0.5, 10.0), (2.0, 40.0), (1.5, 30.0)]
    found = [tracker.update(detections([(x, 20.0)]), None, time).track_ids.tolist() for time, x in times_and_places]
    assert found == [[1]] * 4
    with pytest.raises(ValueError, match="timestamp must be finite"):
        tracker.update(detections([]), None, float("nan"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"assignment": "best"}, "assignment must be"), ({"max_age": -1}, "max_age"), ({"limits": {}}, "limits")],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GreedyTracker(**options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_matches_are_those_of_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tracker = GreedyTracker(max_age=1)
    previous: list[tuple[int, int, np.ndarray]] = []  # number, label, place
    count = 0
    for frame in range(4):
        n = int(rng.integers(1, 9))
        box = np.zeros((n, 7))
        box[:, :2] = rng.uniform(0, 8, (n, 2))
        boxes = StillBoxes(box, rng.normal(0, 2, (n, 2)), rng.integers(0, 2, n), rng.random(n))
        found = tracker.associate(boxes, NAMES, 0.5 * frame)
        expected: dict[int, int] = {}
        for i in range(n):
            back = box[i, :2] - (0.5 if frame else 0.0) * boxes.velocity[i]
            limit = NUSCENES_LIMITS[NAMES[boxes.label[i]]]
            near = [
                (np.hypot(*(place - back)), number)
                for number, label, place in previous
                if label == boxes.label[i] and number not in expected.values()
            ]
            if near and min(near)[0] <= limit:
                expected[i] = min(near)[1]
        new = [i for i in range(n) if i not in expected]
        numbers_ = {**expected, **{i: count + 1 + k for k, i in enumerate(new)}}
        count += len(new)
        assert dict(zip(found.row.tolist(), found.number.tolist(), strict=True)) == numbers_
        previous = [(numbers_[i], int(boxes.label[i]), box[i, :2]) for i in range(n)]
