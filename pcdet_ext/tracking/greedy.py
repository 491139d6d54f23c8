"""The greedy tracker of CenterPoint: each detection, moved back by its velocity, takes the nearest track.

Yin et al., "Center-based 3D Object Detection and Tracking", CVPR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pcdet_ext.ranges import check_range, check_timestamp
from pcdet_ext.structures import Array
from pcdet_ext.tracking.base import TRACKERS, BoxTracker, StillBoxes, TrackedBoxes

# Metres between a detection, moved back, and a track.
NUSCENES_LIMITS = {
    "car": 4.0, "truck": 4.0, "bus": 5.5, "trailer": 3.0, "pedestrian": 1.0, "motorcycle": 13.0, "bicycle": 3.0,
}  # fmt: skip
WAYMO_LIMITS = {"Vehicle": 0.8, "Pedestrian": 0.4, "Cyclist": 0.6}
IMPOSSIBLE = 1e18
MATCHED_BELOW = 1e16


@dataclass(frozen=True, eq=False)
class Tracks:
    """Tracks after a frame, those found in it first.

    number: int64 [T]; label: int64 [T]; xy: float64 [T, 2], where each is, moved on while it is not found; step:
    float64 [T, 2], metres that its last detection is moved back by; age: int64 [T], 1 for tracks of this frame;
    active: int64 [T], frames in a row, 0 for tracks not found; row: int64 [T], detection of this frame, -1 for none.
    """

    number: Array
    label: Array
    xy: Array
    step: Array
    age: Array
    active: Array
    row: Array

    def __len__(self) -> int:
        return len(self.number)

    def select(self, keep: Array) -> Tracks:
        """The tracks that `keep` (bool [T] or int64 [K]) picks."""
        return Tracks(**{name: column[keep] for name, column in vars(self).items()})

    @staticmethod
    def none() -> Tracks:
        """No track."""
        whole, places = np.zeros(0, np.int64), np.zeros((0, 2))
        return Tracks(whole, whole, places, places, whole, whole, whole)

    @staticmethod
    def joined(parts: Sequence[Tracks]) -> Tracks:
        """Tracks one after the other."""
        return Tracks(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


@TRACKERS.register
class GreedyTracker(BoxTracker):
    """Matches detections with the nearest track of their class, in the order of the list.

    A frame without any detection ends all tracks. Tracks are numbered from 1 in each sequence.

    Args:
        limits: metres by class name from which no pair is made; detections of other classes are not tracked.
        max_age: frames that a track may be missed before it ends, less one: 3 survives two misses.
        assignment: "greedy", or "optimal" for the assignment with the smallest total distance (the Hungarian option).
        birth_score: a new track starts only with a score above; by default with any.
        published: the behaviour of the published code where that is a quirk: a velocity that is NaN starts a track that
            nothing matches, and that blocks all other matches once it is missed (here it counts as zero); and of the
            optimal assignment, a track that is assigned to a detection beyond its limit ends at once (here it ages).
    """

    def __init__(
        self,
        limits: Mapping[str, float] = NUSCENES_LIMITS,
        max_age: int = 3,
        assignment: str = "greedy",
        birth_score: float | None = None,
        published: bool = False,
    ) -> None:
        if assignment not in ("greedy", "optimal"):
            raise ValueError(f"assignment must be 'greedy' or 'optimal', got {assignment!r}")
        if not limits:
            raise ValueError("limits must name a class at least")
        check_range(0, max_age=max_age)
        check_range(-math.inf, birth_score=birth_score)
        for name, limit in limits.items():
            check_range(0, **{f"limits: that of {name}": limit})
        self.limits = dict(limits)
        self.max_age, self.assignment = max_age, assignment
        self.birth_score, self.published = birth_score, published
        self.reset()

    def reset(self) -> None:
        """See `Tracker.reset`."""
        self.tracks = Tracks.none()
        self._count = 0
        self._time: float | None = None

    def associate(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> TrackedBoxes:
        """Take a frame. Arguments as in `BoxTracker.associate`; boxes, velocities and scores are those of the
        detections.
        """
        tracks = self.step(boxes, class_names, timestamp)
        return TrackedBoxes(tracks.number, tracks.row, boxes.select(tracks.row))

    def step(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> Tracks:
        """The tracks that are there in a frame. Arguments as in `BoxTracker.associate`.

        Those that are kept without being found are in `tracks` too.
        """
        time = check_timestamp(timestamp)
        elapsed = 0.0 if self._time is None else time - self._time
        self._time = time
        if not len(boxes):
            self.tracks = Tracks.none()
            return self.tracks
        limits = np.array([self.limits.get(name, np.nan) for name in class_names])[boxes.label]
        rows = np.flatnonzero(~np.isnan(limits))
        boxes, limits = boxes.select(rows), limits[rows]
        step = -elapsed * (boxes.velocity if self.published else np.nan_to_num(boxes.velocity))
        distance = self._distances(boxes, step, limits)
        found, taken, rejected, ended = self._matched(distance)
        seen = self._seen(boxes, step, rows, found, taken, rejected)
        alone = np.ones(len(self.tracks), bool)
        alone[taken] = alone[ended] = False
        self.tracks = Tracks.joined([seen, self._aged(alone)])
        return seen

    def _distances(self, boxes: StillBoxes, step: Array, limits: Array) -> Array:
        """float64 [N, T]: metres, 1e18 and more where no pair can be. Computed in float32, as published."""
        search = (boxes.box[:, :2] + step.astype(np.float32)).astype(np.float32)
        places = self.tracks.xy.astype(np.float32)
        gaps = np.sqrt(((places[None] - search[:, None]) ** 2).sum(axis=2))
        other = boxes.label[:, None] != self.tracks.label[None]
        return np.asarray(gaps + (other | (gaps > limits.astype(np.float32)[:, None])) * IMPOSSIBLE)

    def _matched(self, distance: Array) -> tuple[Array, Array, Array, Array]:
        """Detections and the tracks they are matched with, int64 [K] each; detections whose assignment was undone, and
        tracks that end with it."""
        if self.assignment == "optimal":
            distance = np.minimum(distance, IMPOSSIBLE)
            rows, columns = linear_sum_assignment(np.nan_to_num(distance, nan=IMPOSSIBLE))
            near = distance[rows, columns] <= MATCHED_BELOW
            return rows[near], columns[near], rows[~near], columns[~near] if self.published else columns[:0]
        pairs = []
        for i in range(len(distance) if distance.shape[1] else 0):
            j = int(distance[i].argmin())
            if distance[i, j] < MATCHED_BELOW:
                distance[:, j] = IMPOSSIBLE
                pairs.append((i, j))
        found = np.array(pairs, np.int64).reshape(-1, 2)
        return found[:, 0], found[:, 1], found[:0, 0], found[:0, 1]

    def _seen(self, boxes: StillBoxes, step: Array, rows: Array, found: Array, taken: Array, rejected: Array) -> Tracks:
        """Matched tracks in the order of the matches, then new ones, the undone assignments last."""
        never = np.setdiff1d(np.arange(len(boxes)), np.concatenate([found, rejected]))
        new = np.concatenate([never, rejected])
        if self.birth_score is not None:
            new = new[boxes.score[new] > self.birth_score]
        numbers = self._count + 1 + np.arange(len(new))
        self._count += len(new)
        order = np.concatenate([found, new])
        return Tracks(
            number=np.concatenate([self.tracks.number[taken], numbers]),
            label=boxes.label[order],
            xy=boxes.box[order, :2],
            step=step[order],
            age=np.ones(len(order), np.int64),
            active=np.concatenate([self.tracks.active[taken] + 1, np.ones(len(new), np.int64)]),
            row=rows[order],
        )

    def _aged(self, alone: Array) -> Tracks:
        """Tracks that were not found, moved on by the step of their last detection; without those that are too old."""
        tracks = self.tracks.select(alone & (self.tracks.age < self.max_age))
        return Tracks(
            number=tracks.number,
            label=tracks.label,
            xy=tracks.xy - tracks.step,
            step=tracks.step,
            age=tracks.age + 1,
            active=np.zeros(len(tracks), np.int64),
            row=np.full(len(tracks), -1),
        )
