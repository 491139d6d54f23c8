"""Tracking with a graph transformer (3DMOTFormer): frame by frame, with tracks that remember what they looked like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pcdet_ext.ranges import check_range, check_timestamp
from pcdet_ext.structures import Array
from pcdet_ext.tracking.base import BoxTracker, StillBoxes, TrackedBoxes
from pcdet_ext.tracking.graph_data import node_features, rows_kept
from pcdet_ext.tracking.graph_edges import CLASSES
from pcdet_ext.tracking.graph_network import GraphTrackerNetwork
from pcdet_ext.tracking.graph_states import FrameNodes, GraphOptions, TrackNodes, step

UNSEEN = 0.1  # factor of the score of a track that is not found


@dataclass(frozen=True, eq=False)
class Records:
    """What is written of the tracks, in their order.

    boxes: where the detections were, moved on for tracks that are not found; number: int64 [T]; active: int64 [T],
    frames in a row, 0 for tracks not found; row: int64 [T], detection, -1 for none.
    """

    boxes: StillBoxes
    number: Array
    active: Array
    row: Array


class GraphTracker(BoxTracker):
    """Matches detections with tracks by the affinities of a network. Tracks are numbered from 0 in each sequence.

    A frame without any detection of a tracked class changes nothing and gives nothing. The boxes of a frame are those
    of all tracks, by falling score; the scores of tracks that are not found are a tenth of what they were.

    Args:
        network: is used as it is, in evaluation mode; it was trained on key frames half a second apart.
        options: how affinities become tracks.
        nms: 3-D IoU above which, of two detections of a class, the one with the lower score is left out first, as in
            the training data; None keeps all.
        score_threshold: detections with a lower score are left out; 0 keeps all.
        period: seconds from one frame to the next by which tracks are moved, whatever the timestamps say; published is
            `graph_edges.PERIOD`. None takes the differences of the timestamps.
        max_outputs: boxes of a frame at most, those with the highest scores.

    Raises:
        ValueError: period or max_outputs is not positive, nms is not from 0 to 1, or score_threshold is not finite.
    """

    def __init__(
        self,
        network: GraphTrackerNetwork,
        options: GraphOptions | None = None,
        nms: float | None = None,
        score_threshold: float = 0.0,
        period: float | None = None,
        max_outputs: int = 500,
    ) -> None:
        check_range(0, 1, nms=nms)
        check_range(-math.inf, score_threshold=score_threshold)
        if max_outputs < 1 or (period is not None and not 0 < period < math.inf):
            raise ValueError(f"period and max_outputs must be positive, got {period} and {max_outputs}")
        self.network, self.options = network.eval(), options or GraphOptions()
        self.nms, self.score_threshold = nms, score_threshold
        self.period, self.max_outputs = period, max_outputs
        self.reset()

    def reset(self) -> None:
        """See `Tracker.reset`."""
        self._tracks: TrackNodes | None = None
        self._records: Records | None = None
        self._count = 0
        self._time = 0.0

    def associate(self, boxes: StillBoxes, class_names: Sequence[str], timestamp: float) -> TrackedBoxes:
        """Take a frame. Arguments as in `BoxTracker.associate`; boxes, velocities and scores are those of the
        detections.
        """
        time = check_timestamp(timestamp)
        number = np.array([CLASSES.index(name) if name in CLASSES else -1 for name in class_names], np.int64)
        rows = self._kept(boxes, number)
        own = boxes.select(rows)
        if not len(own):
            return TrackedBoxes(rows, rows, own)
        elapsed = time - self._time if self.period is None else self.period
        self._time = time
        self._records = self._advanced(own, rows, _nodes(own, number[own.label], self.network), elapsed)
        return self._written(self._records)

    def _kept(self, boxes: StillBoxes, number: Array) -> Array:
        """Rows of the detections that are tracked; after a suppression those with the highest scores come first."""
        rows = np.flatnonzero(number[boxes.label] >= 0) if len(boxes) else np.zeros(0, np.int64)
        return rows[rows_kept(boxes.select(rows), self.nms, self.score_threshold)]

    def _advanced(self, own: StillBoxes, rows: Array, frame: FrameNodes, elapsed: float) -> Records:
        if self._tracks is None or self._records is None:
            self._tracks, self._count = TrackNodes.first(frame), len(own)
            return Records(own, np.arange(len(own)), np.ones(len(own), np.int64), rows)
        with torch.no_grad():
            done = step(self.network, self._tracks, frame, self.options, elapsed)
        self._tracks = done.tracks
        pairs, new, kept = (index.cpu().numpy() for index in (done.pairs, done.new, done.kept))
        numbers = self._count + np.arange(len(new))
        self._count += len(new)
        before, seen = self._records, np.concatenate([pairs[:, 1], new])
        old = before.boxes.select(kept)
        box = old.box.copy()
        box[:, :2] += elapsed * np.nan_to_num(old.velocity)  # one that is not known moves nothing
        parts = own.select(seen), StillBoxes(box, old.velocity, old.label, old.score)
        none = np.zeros(len(kept), np.int64)
        active = np.concatenate([before.active[pairs[:, 0]] + 1, np.ones(len(new), np.int64), none])
        return Records(
            boxes=StillBoxes(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in vars(own)}),
            number=np.concatenate([before.number[pairs[:, 0]], numbers, before.number[kept]]),
            active=active,
            row=np.concatenate([rows[seen], none - 1]),
        )

    def _written(self, records: Records) -> TrackedBoxes:
        order = np.argsort(-records.boxes.score, kind="stable")[: self.max_outputs]
        boxes = records.boxes.select(order)
        score = np.where(records.active[order] > 0, boxes.score, boxes.score * UNSEEN)
        boxes = StillBoxes(boxes.box, boxes.velocity, boxes.label, score)
        return TrackedBoxes(records.number[order], records.row[order], boxes)


def _nodes(own: StillBoxes, number: Array, network: GraphTrackerNetwork) -> FrameNodes:
    weight = network.embedding.weight
    features = node_features(StillBoxes(own.box, own.velocity, number, own.score))
    batch = torch.zeros(len(own), dtype=torch.int64, device=weight.device)
    return FrameNodes(torch.from_numpy(features).to(weight.device, weight.dtype), batch)
