"""A tracker with Kalman filters and generalised IoU (Pang et al., "SimpleTrack", ECCV 2022 workshops)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from pcdet_ext.data.geometry import wrap_angle
from pcdet_ext.ranges import check_range, check_timestamp
from pcdet_ext.structures import Array
from pcdet_ext.tracking.base import TRACKERS, BoxTracker, StillBoxes, TrackedBoxes
from pcdet_ext.tracking.kalman_filter import HEADING, MEASURED, Filters

MEASURES = ("iou", "giou")
FARTHEST = {"giou": 1.5, "iou": 0.9}  # 1 - overlap beyond which an assigned pair is undone
REDUNDANT = {"giou": -0.5, "iou": 0.1}  # overlap with some detection from which a missed track is kept going
DECAY = 0.01  # of the score of a track in each frame in which it is not found
MISSED, FOUND, KEPT = 0, 1, 3


@dataclass(frozen=True, eq=False)
class ClassTracks:
    """Tracks of one class.

    filters: where they are; number: int64 [T], from 0; box: float64 [T, 10], filtered where found and predicted where
    not, then the velocity; score: float64 [T]; hits: int64 [T], frames in which each was found; missed: int64 [T],
    frames since then; alive: bool [T], False before a track has hits enough; mode: int64 [T], 0 missed, 1 found, 3 kept
    going by a detection of its surroundings; row: int64 [T], detection, -1 for none.
    """

    filters: Filters
    number: Array
    box: Array
    score: Array
    hits: Array
    missed: Array
    alive: Array
    mode: Array
    row: Array

    def __len__(self) -> int:
        return len(self.number)

    @staticmethod
    def new(boxes: Array, score: Array, rows: Array, first: int, time: float, alive: bool) -> ClassTracks:
        """Tracks of detections.

        Args:
            boxes: float64 [N, 7].
            score: float64 [N].
            rows: int64 [N], which detections of the frame they are.
            first: number of the first track; the others follow.
            time: of the frame, seconds.
            alive: whether the tracks have hits enough already.
        """
        count, filters = len(boxes), Filters.at(boxes, time)
        return ClassTracks(
            filters=filters,
            number=first + np.arange(count),
            box=filters.mean,
            score=score,
            hits=np.ones(count, np.int64),
            missed=np.zeros(count, np.int64),
            alive=np.full(count, alive),
            mode=np.full(count, FOUND),
            row=rows,
        )

    @staticmethod
    def none() -> ClassTracks:
        """No track."""
        return ClassTracks.new(np.zeros((0, MEASURED)), np.zeros(0), np.zeros(0, np.int64), 0, 0.0, False)

    def select(self, keep: Array) -> ClassTracks:
        """The tracks that `keep` (bool [T] or int64 [K]) picks."""
        columns = {name: getattr(self, name)[keep] for name in COLUMNS}
        return ClassTracks(filters=self.filters.select(keep), **columns)

    def joined(self, other: ClassTracks) -> ClassTracks:
        """These, and then others."""
        columns = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in COLUMNS}
        return ClassTracks(filters=self.filters.joined(other.filters), **columns)


COLUMNS = tuple(f.name for f in fields(ClassTracks) if f.name != "filters")


@TRACKERS.register
class KalmanTracker(BoxTracker):
    """Matches detections with predicted boxes of their class by the best total overlap; one filter for each track.

    The boxes of a frame are those of all tracks, also of tracks that are only predicted, whose scores are small then.

    Args:
        measure: "giou" or "iou", both in 3-D.
        farthest: 1 - overlap beyond which an assigned pair is undone; by default 1.5 for giou, 0.9 for iou.
        score_threshold: detections with a lower score are not matched and start no track.
        max_age: frames in a row in which a track is not found until it ends.
        min_hits: frames in which a track must be found until it is alive, except in as many first frames of a sequence.
        two_stage: whether a track that is not matched goes on with its own prediction where a detection of any score
            above `low_score` overlaps it by `redundant` or more.
        low_score, redundant: see there; the latter by default -0.5 for giou, 0.1 for iou.
        nms: overlap (3-D IoU) from which of two detections of a class the one with the lower score is left out before
            anything else; None for all. Boxes without a size are always left out.
        only_alive: whether boxes of tracks that have not hits enough, or that are not found in a frame, are left out of
            the result.
        published: the IoU of the published code, which is too large where one box spans the other in height.
    """

    def __init__(
        self,
        measure: str = "giou",
        farthest: float | None = None,
        score_threshold: float = 0.01,
        max_age: int = 2,
        min_hits: int = 0,
        two_stage: bool = False,
        low_score: float = 0.1,
        redundant: float | None = None,
        nms: float | None = 0.1,
        only_alive: bool = False,
        published: bool = False,
    ) -> None:
        if measure not in MEASURES:
            raise ValueError(f"measure must be one of {', '.join(MEASURES)}, got {measure!r}")
        check_range(1, max_age=max_age)
        check_range(0, min_hits=min_hits)
        check_range(0, 2, farthest=farthest)
        check_range(-1, 1, redundant=redundant)
        check_range(0, 1, nms=nms)
        check_range(-math.inf, score_threshold=score_threshold)
        check_range(-math.inf, low_score=low_score)
        self.measure, self.published = measure, published
        self.farthest = FARTHEST[measure] if farthest is None else farthest
        self.score_threshold, self.max_age, self.min_hits = score_threshold, max_age, min_hits
        self.two_stage, self.low_score = two_stage, low_score
        self.redundant = REDUNDANT[measure] if redundant is None else redundant
        self.nms, self.only_alive = nms, only_alive
        self.reset()

    def reset(self) -> None:
        """See `Tracker.reset`."""
        self.tracks: dict[int, ClassTracks] = {}
        self._counts: dict[int, int] = {}
        self._frame = 0

    def associate(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> TrackedBoxes:
        """Take a frame. Arguments as in `BoxTracker.associate`; boxes and velocities are those of the filters."""
        self.step(boxes, class_names, timestamp)
        found = {label: self._shown(tracks) for label, tracks in self.tracks.items()}
        box = np.concatenate([np.zeros((0, 10)), *(tracks.box for tracks in found.values())])
        label = np.repeat(np.array(list(found), np.int64), [len(tracks) for tracks in found.values()])
        columns = {
            name: np.concatenate([np.zeros(0, kind), *(getattr(tracks, name) for tracks in found.values())])
            for name, kind in (("number", np.int64), ("row", np.int64), ("score", np.float64))
        }
        box[:, HEADING] = wrap_angle(box[:, HEADING])
        still = StillBoxes(box[:, :MEASURED], box[:, MEASURED : MEASURED + 2], label, columns["score"])
        return TrackedBoxes(columns["number"] * len(class_names) + label, columns["row"], still)

    def _shown(self, tracks: ClassTracks) -> ClassTracks:
        return tracks.select(tracks.alive & (tracks.mode == FOUND)) if self.only_alive else tracks

    def step(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> None:
        """As `associate`; the tracks of each class are in `tracks` afterwards, numbered from 0.

        Arguments as in `BoxTracker.associate`.
        """
        time = check_timestamp(timestamp)
        self._frame += 1
        rows = np.flatnonzero((boxes.box[:, 3:6] > 0).all(axis=1))  # the overlap of a box without a size is 0 / 0
        if self.nms is not None:
            rows = self._suppressed(boxes, self.nms)
        for label in range(len(class_names)):
            own = rows[boxes.label[rows] == label]
            self._step_class(label, boxes.select(own), own, time)

    def _suppressed(self, boxes: StillBoxes, limit: float) -> Array:
        from pcdet_ext.tracking.compiled_boxes import without_overlapping

        order = np.argsort(-boxes.score, kind="stable")
        return np.asarray(without_overlapping(boxes.box, boxes.label, order, limit, self._kind("iou")))

    def _kind(self, measure: str) -> int:
        from pcdet_ext.tracking.compiled_boxes import GIOU, IOU, PUBLISHED_IOU

        if measure == "giou":
            return GIOU
        return PUBLISHED_IOU if self.published else IOU

    def _step_class(self, label: int, boxes: StillBoxes, rows: Array, time: float) -> None:
        tracks = self.tracks.get(label)
        if not len(boxes) and (tracks is None or not len(tracks)):
            return
        tracks = ClassTracks.none() if tracks is None else tracks
        predicted = tracks.filters.predicted(time)
        tracks = replace(  # columns of its own, which are filled in below
            tracks,
            score=tracks.score * DECAY,
            hits=tracks.hits.copy(),
            missed=tracks.missed + 1,
            mode=np.full(len(tracks), MISSED),
            box=predicted.copy(),
            row=np.full(len(tracks), -1),
        )
        strong = np.flatnonzero(boxes.score >= self.score_threshold)
        found, taken, new = self._matched(boxes.box[strong], predicted[:, :MEASURED])
        found, new = strong[found], strong[new]
        tracks = self._updated(tracks, taken, boxes.box[found], time, FOUND)
        tracks.score[taken], tracks.row[taken] = boxes.score[found], rows[found]
        if self.two_stage:
            alone = np.flatnonzero(tracks.mode == MISSED)
            kept = alone[self._surrounded(boxes, predicted[alone, :MEASURED])]
            tracks = self._updated(tracks, kept, predicted[kept, :MEASURED], time, KEPT)
        tracks = self._living(tracks)
        if not len(new):
            self.tracks[label] = tracks
            return
        first = self._counts.get(label, 0)
        self._counts[label] = first + len(new)
        alive = self._frame <= self.min_hits or self.min_hits == 0
        born = ClassTracks.new(boxes.box[new], boxes.score[new], rows[new], first, time, alive)
        self.tracks[label] = tracks.joined(born)

    def _matched(self, boxes: Array, predicted: Array) -> tuple[Array, Array, Array]:
        """Detections, the tracks that they are matched with, and detections that are left, undone pairs last."""
        from pcdet_ext.tracking.compiled_boxes import overlaps

        cost = 1 - overlaps(boxes, predicted, self._kind(self.measure))
        rows, columns = linear_sum_assignment(cost)
        near = cost[rows, columns] <= self.farthest
        never = np.ones(len(boxes), bool)
        never[rows] = False
        return rows[near], columns[near], np.concatenate([np.flatnonzero(never), rows[~near]])

    def _surrounded(self, boxes: StillBoxes, predicted: Array) -> Array:
        """bool [T]: tracks that a detection above the low score overlaps."""
        from pcdet_ext.tracking.compiled_boxes import overlaps

        others = boxes.box[boxes.score > self.low_score]
        if not len(others):
            return np.zeros(len(predicted), bool)
        return np.asarray(overlaps(predicted, others, self._kind(self.measure)).max(axis=1) >= self.redundant)

    def _updated(self, tracks: ClassTracks, rows: Array, boxes: Array, time: float, mode: int) -> ClassTracks:
        """The tracks, of which some were measured; writes into their columns."""
        filters = tracks.filters.updated(rows, boxes, time)
        tracks.box[rows] = filters.mean[rows]
        tracks.hits[rows] += 1
        tracks.missed[rows], tracks.mode[rows] = 0, mode
        return replace(tracks, filters=filters)

    def _living(self, tracks: ClassTracks) -> ClassTracks:
        """Tracks that go on, some of which have become alive."""
        born = ~tracks.alive & ((tracks.hits >= self.min_hits) | (self._frame <= self.min_hits))
        ended = ~born & (tracks.missed >= self.max_age)
        tracks = replace(tracks, alive=tracks.alive | born)
        return tracks.select(~ended) if ended.any() else tracks
