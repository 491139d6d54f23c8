"""Training data of the graph tracker: detections with the objects that they are, out of results and annotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from pcdet_ext.ops.boxes import iou_bev
from pcdet_ext.structures import Array
from pcdet_ext.tracking.base import StillBoxes
from pcdet_ext.tracking.graph_edges import CLASSES, PERIOD

NEAR = 2.0  # metres within which a detection is an annotated object, where overlaps do not say it
IMPOSSIBLE = 1e18
NONE = -1


@dataclass(frozen=True, eq=False)
class Annotations:
    """Annotated objects of one frame.

    boxes: which stand still, labels being numbers of `graph_edges.CLASSES`; object: int64 [G], the same for one object
    in all frames; next: float64 [G, 2], where the object is half a second later; has_next: bool [G], whether it is
    annotated again.
    """

    boxes: StillBoxes
    object: Array
    next: Array
    has_next: Array


def prepared(
    boxes: StillBoxes, class_names: tuple[str, ...], nms: float | None = None, threshold: float = 0.0
) -> StillBoxes:
    """Detections of the tracked classes, rounded to float32, labels being numbers of `graph_edges.CLASSES`.

    Args:
        boxes: detections of one frame.
        class_names: what their labels mean.
        nms: 3-D IoU above which the detection with the lower score goes, after which the best come first.
        threshold: lowest score, where it is above 0.
    """
    number = np.array([CLASSES.index(name) if name in CLASSES else NONE for name in class_names], np.int64)
    label = number[boxes.label] if len(boxes) else np.zeros(0, np.int64)
    columns = (boxes.box, boxes.velocity, boxes.score)
    box, velocity, score = (column.astype(np.float32).astype(np.float64) for column in columns)
    own = StillBoxes(box, velocity, label, score).select(label != NONE)
    return own.select(rows_kept(own, nms, threshold))


def rows_kept(boxes: StillBoxes, nms: float | None = None, threshold: float = 0.0) -> Array:
    """Rows int64 [K] of the boxes that stay, which are compared in float32. Arguments as in `prepared`."""
    from pcdet_ext.tracking.compiled_boxes import PUBLISHED_IOU, without_overlapping

    box, score = (column.astype(np.float32).astype(np.float64) for column in (boxes.box, boxes.score))
    rows = np.arange(len(boxes))
    if nms is not None and len(boxes):
        order = np.argsort(-score, kind="stable")
        rows = np.asarray(without_overlapping(box, boxes.label, order, nms, PUBLISHED_IOU))
    return rows[score[rows] >= np.float32(threshold)] if threshold > 0 else rows


def node_features(own: StillBoxes) -> Array:
    """Features float32 [N, 17] of prepared detections: box with width before length, velocity, class, score.

    A velocity that is not known is zero.
    """
    box = own.box[:, [0, 1, 2, 4, 3, 5, 6]]
    columns = (box, np.nan_to_num(own.velocity), np.eye(len(CLASSES))[own.label], own.score[:, None])
    return np.concatenate(columns, axis=1).astype(np.float32)


def objects_of(features: Array, truth: Annotations, by_overlap: bool = True) -> tuple[Array, Array, Array]:
    """Which annotated object each detection is.

    Detections and annotations of one class are assigned so that their overlaps from above, or their distances, are the
    best in total. The footprints compared have their width along the heading, as published, on both sides.

    Args:
        features: of the detections, see `node_features`.
        truth: of the same frame.
        by_overlap: assign by overlaps, where any will do; else by distances of 2 m at most.

    Returns:
        The object int64 [N] of each detection, -1 for none; its velocity float32 [N, 2], from the detection to where
        the object is annotated next, which has no meaning where that is not known; and whether it is, bool [N].
    """
    cost = _overlap_cost(features, truth) if by_overlap else _distance_cost(features, truth)
    label = features[:, 9:16].argmax(1)
    cost[label[:, None] != truth.boxes.label[None]] = IMPOSSIBLE
    rows, columns = linear_sum_assignment(cost)
    real = cost[rows, columns] < IMPOSSIBLE
    rows, columns = rows[real], columns[real]
    found, has_next = np.full(len(features), NONE), np.zeros(len(features), bool)
    following = np.zeros((len(features), 2), np.float32)
    found[rows], has_next[rows] = truth.object[columns], truth.has_next[columns]
    known = rows[truth.has_next[columns]]
    following[known] = truth.next[columns[truth.has_next[columns]]].astype(np.float32)
    return found, (following - features[:, :2]) / np.float32(PERIOD), has_next


def _overlap_cost(features: Array, truth: Annotations) -> Array:
    first, second = (torch.from_numpy(f[:, :7].astype(np.float64)) for f in (features, node_features(truth.boxes)))
    overlap = iou_bev(first, second).numpy()
    return np.where(overlap > 0, -overlap, IMPOSSIBLE)


def _distance_cost(features: Array, truth: Annotations) -> Array:
    places = truth.boxes.box[:, :2].astype(np.float32)
    gaps = np.linalg.norm(features[:, None, :2].astype(np.float64) - places[None], axis=2)
    return np.where(gaps <= NEAR, gaps, IMPOSSIBLE)


def windows(annotated: Array, length: int) -> Array:
    """First frames, int64 [K], of the runs of `length` frames that have annotations, from bool [F]."""
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    starts = range(len(annotated) - length + 1)
    return np.array([start for start in starts if annotated[start : start + length].all()], np.int64)
