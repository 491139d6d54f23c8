"""The Kalman tracker against SimpleTrack's frame loop, written down step by step (Pang et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.compiled_boxes import GIOU, PUBLISHED_IOU, overlap_of_rows
from pcdet_ext.tracking.kalman import KalmanTracker

KINDS = {"iou": PUBLISHED_IOU, "giou": GIOU}
HEADING_FOURTH = [0, 1, 2, 6, 3, 4, 5]


@dataclass(frozen=True)
class Options:
    """Arguments of a `KalmanTracker` that vary."""

    measure: str = "giou"
    farthest: float = 1.5
    score_threshold: float = 0.05
    max_age: int = 2
    min_hits: int = 0
    two_stage: bool = False
    low_score: float = 0.1
    redundant: float = -0.5
    nms: float = 0.1


def wrapped(angle: float) -> float:
    """An angle brought into [-π, π) by one turn at most."""
    if angle >= math.pi:
        return angle - 2 * math.pi
    return angle + 2 * math.pi if angle < -math.pi else angle


def overlap(first: np.ndarray, second: np.ndarray, kind: str) -> float:
    order = [0, 1, 2, 4, 5, 6, 3]
    return float(overlap_of_rows(first[None, order], second[None, order], KINDS[kind])[0])


@dataclass
class Track:
    """One object: state (x, y, z, yaw, l, w, h, velocity), its covariance, and its life cycle."""

    number: int
    state: np.ndarray
    score: float
    seen: float
    alive: bool
    covariance: np.ndarray = field(default_factory=lambda: np.diag([10.0] * 7 + [1e4] * 3))
    hits: int = 1
    missed: int = 0
    motion: np.ndarray = field(default_factory=lambda: np.eye(10))
    box: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.box = self.state[:7].copy()

    def predict(self, time: float) -> None:
        self.motion = np.eye(10)
        self.motion[[0, 1, 2], [7, 8, 9]] = time - self.seen
        self.box = (self.motion @ self.state)[:7]
        self.box[3] = wrapped(self.box[3])
        self.score *= 0.01
        self.missed += 1

    def update(self, measured: np.ndarray, time: float) -> None:
        state, seen = self.motion @ self.state, measured.copy()
        covariance = self.motion @ self.covariance @ self.motion.T + np.eye(10)
        state[3], seen[3] = wrapped(state[3]), wrapped(seen[3])
        if math.pi / 2 < abs(seen[3] - state[3]) < 3 * math.pi / 2:
            state[3] = wrapped(state[3] + math.pi)
        if abs(seen[3] - state[3]) >= 3 * math.pi / 2:
            state[3] += 2 * math.pi if seen[3] > 0 else -2 * math.pi
        look = np.eye(7, 10)
        gain = covariance @ look.T @ np.linalg.inv(look @ covariance @ look.T + np.eye(7))
        kept = np.eye(10) - gain @ look
        self.state = state + gain @ (seen - look @ state)
        self.state[3] = wrapped(self.state[3])
        self.covariance = kept @ covariance @ kept.T + gain @ gain.T
        self.box, self.seen, self.missed = self.state[:7].copy(), time, 0
        self.hits += 1


class ByHand:
    """The tracker of one class."""

    def __init__(self, options: Options) -> None:
        self.options, self.tracks, self.frame, self.next = options, list[Track](), 0, 0

    def step(self, boxes: np.ndarray, scores: np.ndarray, time: float) -> list[Track]:
        own, self.frame = self.options, self.frame + 1
        kept = self._suppressed(boxes, scores)
        strong = [i for i in kept if scores[i] >= own.score_threshold]
        for track in self.tracks:
            track.predict(time)
        pairs, free = self._assigned(boxes, strong)
        for place, track in enumerate(self.tracks):
            if place in pairs:
                track.update(boxes[pairs[place]], time)
                track.score = scores[pairs[place]]
            elif own.two_stage and self._is_there(track, boxes, [i for i in kept if scores[i] > own.low_score]):
                track.update(track.box.copy(), time)
            track.alive |= track.hits >= own.min_hits or self.frame <= own.min_hits
        for i in free:
            alive = self.frame <= own.min_hits or own.min_hits == 0
            self.tracks.append(Track(self.next, np.append(boxes[i], [0.0] * 3), scores[i], time, alive))
            self.next += 1
        self.tracks = [track for track in self.tracks if track.missed < own.max_age]
        return self.tracks

    def _suppressed(self, boxes: np.ndarray, scores: np.ndarray) -> list[int]:
        left, kept = sorted(range(len(boxes)), key=lambda i: -scores[i]), list[int]()
        while left:
            first, *left = left
            kept.append(first)
            left = [i for i in left if overlap(boxes[first], boxes[i], "iou") <= self.options.nms]
        return kept

    def _assigned(self, boxes: np.ndarray, strong: list[int]) -> tuple[dict[int, int], list[int]]:
        """The detection of each track that has one, and the detections that are left, undone pairs last."""
        own = self.options
        cost = np.array([[1 - overlap(boxes[i], t.box, own.measure) for t in self.tracks] for i in strong])
        rows, columns = linear_sum_assignment(cost.reshape(len(strong), len(self.tracks)))
        close = [(int(i), int(t)) for i, t in zip(rows, columns, strict=True) if cost[i, t] <= own.farthest]
        undone = [strong[i] for i, t in zip(rows, columns, strict=True) if cost[i, t] > own.farthest]
        never = [i for place, i in enumerate(strong) if place not in set(rows.tolist())]
        return {t: strong[i] for i, t in close}, never + undone

    def _is_there(self, track: Track, boxes: np.ndarray, candidates: Iterable[int]) -> bool:
        found = [overlap(boxes[i], track.box, self.options.measure) for i in candidates]
        return bool(found) and max(found) >= self.options.redundant


def drive(seed: int) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Boxes (x, y, z, yaw, l, w, h), scores and time of the frames of a drive, with gaps, turns, doubles and noise."""
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(-12, 12, (7, 2)), rng.normal(0, 3, (7, 2))
    yaw, size, frames, time = rng.uniform(-3.1, 3.1, 7), rng.uniform([3, 1.5, 1.4], [5, 2.2, 2], (7, 3)), [], 0.0
    for _ in range(12):
        time += float(rng.choice([0.1, 0.5, 0.9]))
        there = np.flatnonzero(rng.random(7) < 0.75)
        there = np.concatenate([there, rng.choice(there, 2)]) if len(there) else there
        center = place[there] + speed[there] * time + rng.normal(0, 0.2, (len(there), 2))
        turned = yaw[there] + rng.normal(0, 0.1, len(there)) + math.pi * (rng.random(len(there)) < 0.3)
        heading = (turned + math.pi) % (2 * math.pi) - math.pi
        z = rng.normal(0, 0.1, len(there))
        boxes = np.column_stack([center, z, heading, size[there] * rng.uniform(0.9, 1.1, (len(there), 3))])
        frames.append((boxes, rng.permutation(len(there)) / (len(there) + 1) + 0.02, time))
    return frames


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"measure": "iou", "farthest": 0.9, "redundant": 0.1},
        {"two_stage": True, "score_threshold": 0.5, "min_hits": 3, "nms": 0.25},
        {"two_stage": True, "measure": "iou", "farthest": 0.6, "redundant": 0.1, "score_threshold": 0.4},
        {"farthest": 0.8, "max_age": 4, "min_hits": 1},
        {"max_age": 1, "min_hits": 2},
    ],
)
def test_whole_drives_are_those_of_the_loop_by_hand(changed: dict[str, Any]) -> None:
    options = Options(**changed)
    for seed in range(3):
        tracker, by_hand = KalmanTracker(**vars(options), published=True), ByHand(options)
        for boxes, scores, time in drive(seed):
            expected = by_hand.step(boxes, scores, time)
            ours = boxes[:, [0, 1, 2, 4, 5, 6, 3]]
            still = StillBoxes(ours, np.zeros((len(boxes), 2)), np.zeros(len(boxes), np.int64), scores)
            tracker.step(still, ["car"], time)
            found = tracker.tracks[0]
            assert found.number.tolist() == [track.number for track in expected]
            assert found.alive.tolist() == [track.alive for track in expected]
            np.testing.assert_allclose(
                found.box[:, HEADING_FOURTH], np.reshape([track.box for track in expected], (-1, 7)), atol=1e-9
            )
            np.testing.assert_allclose(found.score, [track.score for track in expected], rtol=1e-12)
