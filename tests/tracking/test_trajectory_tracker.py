"""TrajectoryFormer's tracker on sequences: the life of tracks, and what may go wrong with a drive."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pcdet_ext.structures import Detections
from pcdet_ext.tracking import Tracker
from pcdet_ext.tracking.trajectory import TrajectoryOptions, TrajectoryTracker
from pcdet_ext.tracking.trajectory_network import TrajectoryNetwork

NAMES = ("Vehicle", "Pedestrian", "Cyclist")


def network(confidence: float = 0.9) -> TrajectoryNetwork:
    """Untrained, but sure of every hypothesis, and without corrections of boxes or of motion."""
    torch.manual_seed(0)
    net = TrajectoryNetwork(16, 2, 2, 24)
    for last in (net.point_cls.layers[-1], net.point_reg.layers[-1], net.velboxembed.out_mlps[-1]):
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.zeros_(last.bias)
    torch.nn.init.constant_(net.point_cls.layers[-1].bias, math.log(confidence / (1 - confidence)))
    return net


def cars(frame: int, labels: tuple[int, ...] = (0, 0), score: float = 0.95) -> Detections:
    """Objects 20 m apart that drive on at 10 m/s."""
    rows = [[10 + frame, 20.0 * i, 0.9, 4.5, 2.0, 1.6, 0.0, 10.0, 0.0] for i in range(len(labels))]
    boxes = np.array(rows, np.float32).reshape(-1, 9)
    return Detections(boxes, np.full(len(boxes), score, np.float32), np.array(labels, np.int64), NAMES)


def cloud(frame: int = 0) -> np.ndarray:
    return np.random.default_rng(frame).uniform(-30, 30, (400, 6)).astype(np.float32)


def run(tracker: TrajectoryTracker, frames: list[Detections]) -> list[Detections]:
    return [tracker.update(found, np.eye(4), 0.1 * i, cloud(i)) for i, found in enumerate(frames)]


def test_objects_keep_their_numbers_and_survive_a_gap() -> None:
    tracker = TrajectoryTracker(network())
    assert isinstance(tracker, Tracker)
    frames = [cars(i) for i in range(8)]
    frames[4] = cars(4).select(slice(0, 1))
    found = run(tracker, frames)
    assert [f.track_ids.tolist() for f in found] == [[0, 1]] * 8
    gap = found[4]
    assert gap.boxes[1, :2] == pytest.approx([14, 20], abs=1e-3)  # where its velocity carries it
    assert gap.scores == pytest.approx([0.9, 0.9])


@pytest.mark.parametrize("published", [False, True])
def test_a_track_that_the_network_does_not_believe_in_ends_when_it_is_not_detected(published: bool) -> None:
    tracker = TrajectoryTracker(network(confidence=0.3), TrajectoryOptions(published=published))
    found = run(tracker, [cars(0), cars(1).select(slice(0, 1)), cars(2)])
    assert [f.track_ids.tolist() for f in found] == [
        [0, 1],
        [0],
        [0, 2 + published],
    ]  # the published code leaves out a number


@pytest.mark.parametrize("published", [False, True])
def test_numbers_go_on_after_all_tracks_have_ended(published: bool) -> None:
    tracker = TrajectoryTracker(network(confidence=0.3), TrajectoryOptions(published=published))
    none = cars(1, ())
    found = run(tracker, [cars(0), none, none, cars(3), cars(4)])
    assert [len(f) for f in found[:3]] == [2, 0, 0]
    first = 0 if published else 2
    assert found[3].track_ids.tolist() == [first, first + 1]
    if published:  # the detections of the next frame are not matched, and start tracks anew
        assert set(found[4].track_ids.tolist()).isdisjoint(found[3].track_ids.tolist())
    else:
        assert found[4].track_ids.tolist() == found[3].track_ids.tolist()


def test_a_new_sequence_starts_anew() -> None:
    tracker = TrajectoryTracker(network())
    run(tracker, [cars(0), cars(1)])
    tracker.reset()
    assert run(tracker, [cars(5)])[0].track_ids.tolist() == [0, 1]


def test_classes_are_tracked_by_themselves_where_asked_for() -> None:
    options = TrajectoryOptions(separate=True)
    found = run(TrajectoryTracker(network(), options), [cars(i, (0, 1, 0, 2)) for i in range(3)])
    for frame in found:
        assert sorted(zip(frame.track_ids.tolist(), frame.names, strict=True)) == [
            (0, "Vehicle"),
            (1, "Pedestrian"),
            (2, "Cyclist"),
            (3, "Vehicle"),
        ]


def test_a_vehicle_that_drives_and_turns_sees_what_stands() -> None:
    """The same scene from poses 1000 m away: numbers stay, boxes come back in the axes of the vehicle."""
    tracker = TrajectoryTracker(network())
    still = cars(0)
    boxes = still.boxes.copy()
    boxes[:, 7:] = 0
    for i in range(5):
        turn = 0.2 * i
        pose = np.eye(4)
        pose[:2, :2] = [[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]
        pose[:3, 3] = 1000 + i, -500, 2
        own = boxes.copy()
        own[:, :2] = (boxes[:, :2] + [1000, -500] - pose[:2, 3]) @ pose[:2, :2]
        own[:, 2], own[:, 6] = boxes[:, 2], -turn
        found = tracker.update(replace(still, boxes=own), pose, 0.1 * i, cloud(i))
        assert found.track_ids.tolist() == [0, 1]
        assert found.boxes[:, :3] == pytest.approx(own[:, :3], abs=2e-3)


def test_nothing_breaks_when_a_drive_does() -> None:
    """Late frames, a jump of the pose, boxes that are none, unknown velocities, other classes, no points at all."""
    tracker = TrajectoryTracker(network())
    jump = np.eye(4)
    jump[:3, 3] = 1e4
    odd = np.array([[np.nan] * 9, [0.0] * 9, [1, 1, 1, 2, 2, 2, 0, np.nan, np.nan]], np.float32)
    for pose, time, found in (
        (np.eye(4), 5.0, cars(0)),
        (np.eye(4), 1.0, cars(1)),
        (jump, 6.0, cars(2)),
        (np.eye(4), 7.0, Detections(odd, np.full(3, 0.99, np.float32), np.zeros(3, np.int64), NAMES)),
        (None, 8.0, Detections(odd[2:], np.ones(1, np.float32), np.zeros(1, np.int64), ("Tree",))),
        (np.eye(4), 9.0, cars(3, ())),
    ):
        result = tracker.update(found, pose, time, np.zeros((0, 3), np.float32))
        assert np.isfinite(result.boxes).all()
        assert len(set(result.track_ids.tolist())) == len(result)


def test_what_cannot_be_is_refused() -> None:
    tracker = TrajectoryTracker(network())
    with pytest.raises(ValueError, match="needs the points of each frame"):
        tracker.update(cars(0), np.eye(4), 0.0)
    with pytest.raises(ValueError, match=r"points must be \[P, 3 to 6\]"):
        tracker.update(cars(0), np.eye(4), 0.0, np.zeros((4, 7)))
    with pytest.raises(ValueError, match="pose must be a rotation and a translation"):
        tracker.update(cars(0), np.full((4, 4), np.nan), 0.0, cloud())
    with pytest.raises(ValueError, match="predictions must be at most 10"):
        TrajectoryTracker(network(), TrajectoryOptions(predictions=11))
    for options, message in (
        ({"limits": {"Car": 2.0}}, "must name the same classes"),
        ({"nms": 1.5}, "nms must be from 0 to 1"),
        ({"history": 1}, "history must be at least 2"),
        ({"kept_score": {"Vehicle": math.nan, "Pedestrian": 0.1, "Cyclist": 0.1}}, "kept_score of Vehicle"),
        ({"first_class": "Car"}, "first_class must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            TrajectoryOptions(**options)
