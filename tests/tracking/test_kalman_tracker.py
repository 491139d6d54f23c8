"""The tracker with Kalman filters: overlaps against polygons, the filter against its equations, rules by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPoint, affinity
from shapely import box as rectangle
from shapely.geometry.base import BaseGeometry

from pcdet_ext.structures import Detections
from pcdet_ext.tracking import GreedyTracker, KalmanTracker, Tracker
from pcdet_ext.tracking.compiled_boxes import GIOU, IOU, overlaps, without_overlapping
from pcdet_ext.tracking.kalman_filter import Filters, wrapped

NAMES = ("car", "pedestrian")


def random_boxes(rng: np.random.Generator, count: int, spread: float) -> np.ndarray:
    places, sizes = rng.normal(0, spread, (count, 3)), rng.uniform(0.5, 5, (count, 3))
    return np.concatenate([places, sizes, rng.uniform(-7, 7, (count, 1))], axis=1)


def polygon(box: np.ndarray) -> BaseGeometry:
    flat = rectangle(-box[3] / 2, -box[4] / 2, box[3] / 2, box[4] / 2)
    return affinity.translate(affinity.rotate(flat, box[6], (0, 0), use_radians=True), box[0], box[1])


@pytest.mark.parametrize("measure", ["iou", "giou"])
@pytest.mark.parametrize("size", [1e-300, 1e-120, 1e-6])
def test_boxes_without_volume_in_floats_are_tracked(measure: str, size: float) -> None:
    boxes = np.array([[1, 2, 3, size, size, size, 0], [9, 2, 3, 4, 2, 1, 0]], np.float64)
    tracker = KalmanTracker(measure=measure)
    for time in range(3):
        found = tracker.update(Detections(boxes, np.ones(2), np.zeros(2, np.int64), NAMES), None, time)
        assert np.isfinite(found.boxes).all()
    assert found.boxes[np.isclose(found.boxes[:, 3], 4, atol=0.1)].shape[0] == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 3.0, 20.0]))
def test_overlaps_are_those_of_polygons(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_boxes(rng, 4, spread), random_boxes(rng, 5, spread)
    first[0, :2], first[0, 6] = second[0, :2], 0.0
    second[0, 6] = np.pi / 2  # sides that lie on lines
    iou, giou = overlaps(first, second, IOU), overlaps(first, second, GIOU)
    for i, a in enumerate(first):
        for j, b in enumerate(second):
            p, q = polygon(a), polygon(b)
            flat, volumes = p.intersection(q).area, a[3:6].prod() + b[3:6].prod()
            tops, bottoms = (a[2] + a[5] / 2, b[2] + b[5] / 2), (a[2] - a[5] / 2, b[2] - b[5] / 2)
            common = flat * max(0.0, min(tops) - max(bottoms))
            assert iou[i, j] == pytest.approx(common / (volumes - common + 1e-5), abs=1e-9)
            around = MultiPoint([*p.exterior.coords, *q.exterior.coords]).convex_hull.area
            around *= max(tops) - min(bottoms)
            union = volumes - common
            assert giou[i, j] == pytest.approx(common / union - (around - union) / around, abs=1e-9)


def test_suppression_keeps_the_best_of_each_class() -> None:
    boxes = np.tile(np.array([[0.0, 0, 0, 4, 2, 2, 0]]), (4, 1))
    boxes[3, 3] = 0
    kept = without_overlapping(boxes, np.array([0, 0, 1, 1]), np.array([3, 1, 0, 2]), 0.1, IOU)
    assert kept.tolist() == [1, 2]


def test_the_filter_is_the_textbook_one() -> None:
    """Against the equations in their plain, not the Joseph, form, one box at a time."""
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 3, 5.0)
    boxes[:, 6] = [0.1, 0.2, -0.3]
    filters = Filters.at(boxes, 1.0)
    mean = [np.r_[box, 0, 0, 0] for box in boxes]
    covariance = [np.diag([10.0] * 7 + [10_000.0] * 3)] * 3
    for time, last in ((1.5, 1.0), (2.7, 1.5)):
        measured = boxes + rng.normal(0, 0.1, boxes.shape)
        filters = filters.updated(np.arange(3), measured, time)
        for n in range(3):
            move = np.eye(10)
            move[:3, 7:] = (time - last) * np.eye(3)
            predicted, spread = move @ mean[n], move @ covariance[n] @ move.T + np.eye(10)
            gain = spread[:, :7] @ np.linalg.inv(spread[:7, :7] + np.eye(7))
            mean[n] = predicted + gain @ (measured[n] - predicted[:7])
            covariance[n] = spread - gain @ spread[:7]
    np.testing.assert_allclose(filters.mean, mean, atol=1e-9)
    for n in range(3):
        np.testing.assert_allclose(np.diag(covariance[n])[:7], filters.variance[n], rtol=1e-6)
        np.testing.assert_allclose(np.diag(covariance[n])[7:], filters.speed_variance[n], rtol=1e-6)
        np.testing.assert_allclose(np.diag(covariance[n][:3, 7:]), filters.coupling[n], rtol=1e-6)


@pytest.mark.parametrize(("own", "seen"), [(3.1, -3.1), (-3.1, 3.1), (0.0, 3.0), (0.0, -3.0), (1.5, -1.6), (3.0, 0.1)])
def test_headings_are_compared_the_short_way_round(own: float, seen: float) -> None:
    """Also where a detection looks backwards: the state turns, and stays near the measured heading."""
    box = np.array([[0.0, 0, 0, 4, 2, 1.5, own]])
    measured = box.copy()
    measured[0, 6] = seen
    heading = Filters.at(box, 0.0).updated(np.array([0]), measured, 1.0).mean[0, 6]
    gap = abs(wrapped(np.array([heading - seen]))[0])
    assert gap < 0.1
    assert -np.pi <= heading < np.pi


def detections(rows: list[tuple[float, float]], labels: list[int] | None = None) -> Detections:
    """Boxes from (x, score)."""
    boxes = np.zeros((len(rows), 9), np.float32)
    for box, (x, _) in zip(boxes, rows, strict=True):
        box[0], box[3:6] = x, (4, 2, 1.5)
    scores = np.array([score for _, score in rows], np.float32)
    return Detections(boxes, scores, np.array(labels or [0] * len(rows), np.int64), NAMES)


def test_a_moving_object_keeps_its_number_and_gets_a_velocity() -> None:
    tracker = KalmanTracker()
    assert isinstance(tracker, Tracker)
    for i in range(6):
        found = tracker.update(detections([(5.0 * i, 0.9), (100.0 - 5.0 * i, 0.8)]), None, 0.5 * i)
        assert found.track_ids.tolist() == [0, 2]
    assert found.boxes[:, 7] == pytest.approx([10, -10], rel=0.05)


def test_a_missed_track_is_predicted_with_a_small_score_until_it_ends() -> None:
    tracker = KalmanTracker(max_age=3)
    for i in range(5):
        tracker.update(detections([(5.0 * i, 0.9)]), None, 0.5 * i)
    found = tracker.update(detections([]), None, 2.5)
    assert found.boxes[0, 0] == pytest.approx(25, abs=0.3)
    assert found.scores == pytest.approx([0.9 * 0.01])
    assert len(tracker.update(detections([]), None, 3.0)) == 1
    assert len(tracker.update(detections([]), None, 3.5)) == 0
    assert tracker.update(detections([(5.0, 0.9)]), None, 4.0).track_ids.tolist() == [2]


def test_tracks_must_be_found_some_times_to_be_alive() -> None:
    tracker = KalmanTracker(min_hits=2, only_alive=True)
    frames = [[0.0], [0.0], [0.0, 50.0], [0.0, 50.0]]
    found = [tracker.update(detections([(x, 0.9) for x in row]), None, 0.1 * i) for i, row in enumerate(frames)]
    assert [len(boxes) for boxes in found] == [1, 1, 1, 2]


def test_weak_detections_keep_a_track_going_but_start_none() -> None:
    plain, two_stage = (KalmanTracker(score_threshold=0.5, two_stage=t, max_age=2) for t in (False, True))
    lengths = []
    for tracker in (plain, two_stage):
        tracker.update(detections([(0.0, 0.9)]), None, 0.0)
        found = [tracker.update(detections([(0.0, 0.2), (30.0, 0.2)]), None, 0.5 * (i + 1)) for i in range(3)]
        lengths.append([len(boxes) for boxes in found])
    assert lengths == [[1, 0, 0], [1, 1, 1]]


def test_the_result_is_in_the_frame_of_the_detections() -> None:
    tracker = KalmanTracker()
    for i in range(3):
        pose = np.eye(4)
        pose[:2, :2], pose[:2, 3] = [[0, -1], [1, 0]], (3.0 * i, 7)
        local = np.linalg.inv(pose) @ np.array([10.0, 0, 0, 1])
        given = detections([(0.0, 0.9)])
        given.boxes[0, :2], given.boxes[0, 6] = local[:2], -np.pi / 2
        found = tracker.update(given, pose, 0.5 * i)
        np.testing.assert_allclose(found.boxes[:, :7], given.boxes[:, :7], atol=1e-4)
        assert found.track_ids.tolist() == [0]


def test_a_jump_of_the_pose_and_a_frame_out_of_order_end_in_new_tracks_at_worst() -> None:
    tracker = KalmanTracker()
    far = np.eye(4)
    far[0, 3] = 1e4
    poses = [np.eye(4), np.eye(4), far, far]
    for time, pose in zip((0.0, 0.5, 0.4, 1.5), poses, strict=True):
        found = tracker.update(detections([(5.0, 0.9)]), pose, time)
        assert np.isfinite(found.boxes).all()
    assert len(found) == 1
    tracker.reset()
    assert tracker.update(detections([(5.0, 0.9)], [1]), None, 0.0).track_ids.tolist() == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"measure": "l2"}, "measure must be one of iou, giou"), ({"max_age": 0}, "max_age must be at least 1")],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KalmanTracker(**options)  # type: ignore[arg-type]


def test_boxes_without_a_size_are_left_out_with_and_without_suppression() -> None:
    boxes = np.array([[0, 0, 0, 0, 0, 0, 0], [5, 0, 0, 4, 2, 1.5, 0]], np.float32)
    for nms in (None, 0.1):
        tracker = KalmanTracker(nms=nms)
        for time in (0.0, 0.5):
            given = Detections(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64), ("car",))
            found = tracker.update(given, None, time)
        assert found.boxes[:, 0] == pytest.approx([5.0])


@pytest.mark.parametrize("tracker", [KalmanTracker(), GreedyTracker({"car": 4.0}, 3)])
def test_headings_stay_in_one_turn_while_the_vehicle_turns(tracker: Tracker) -> None:
    for i, yaw in enumerate(np.linspace(0, 4 * np.pi, 17)):
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        heading = (3.0 - yaw + np.pi) % (2 * np.pi) - np.pi  # of an object that stands still
        boxes = np.array([[0, 0, 0, 4, 2, 1.5, heading, 0, 0]], np.float32)
        given = Detections(boxes, np.array([0.9], np.float32), np.zeros(1, np.int64), ("car",))
        found = tracker.update(given, pose, 0.5 * i)
        assert len(found) == 1
        assert abs(found.boxes[0, 6]) <= np.float32(np.pi)
        assert np.cos(found.boxes[0, 6] - heading) == pytest.approx(1.0, abs=1e-5)
