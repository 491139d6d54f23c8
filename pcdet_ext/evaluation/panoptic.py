"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), for points.

A segment is a set of points of one class: an instance of a thing, or all points of a class of stuff. A predicted and a
labelled segment of one class match when their intersection over union exceeds one half; such a pair is unique.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from pcdet_ext.structures import Array

MATCH = 0.5  # intersection over union above which two segments match; nothing lower makes pairs unique
MIN_POINTS = 50  # of a segment whose miss counts (SemanticKITTI)


@dataclass(frozen=True, eq=False)
class PanopticCounts:
    """What matching the segments of frames gave, per class.

    overlap: float64 [C], sum of the intersections over union of the matched pairs; matched: int64 [C], their number;
    wrong: int64 [C], predicted segments without a match; missed: int64 [C], labelled ones.
    """

    overlap: Array
    matched: Array
    wrong: Array
    missed: Array

    @staticmethod
    def none(classes: int) -> PanopticCounts:
        """The counts of no frame."""
        zeros = np.zeros(classes, np.int64)
        return PanopticCounts(np.zeros(classes), zeros, zeros, zeros)

    def __add__(self, other: PanopticCounts) -> PanopticCounts:
        names = [field.name for field in fields(self)]
        return PanopticCounts(*(getattr(self, name) + getattr(other, name) for name in names))

    def segmentation_quality(self) -> Array:
        """SQ of each class, float64 [C]: the mean intersection over union of matched pairs, 0 where there is none."""
        return self._where_present(self.overlap / np.maximum(self.matched, 1))

    def recognition_quality(self) -> Array:
        """RQ of each class, float64 [C]: the F1 score of its segments; NaN for a class without any."""
        return self._where_present(self.matched / np.maximum(self._segments(), 0.5))

    def quality(self) -> Array:
        """PQ of each class, float64 [C], the product of the two."""
        return self.segmentation_quality() * self.recognition_quality()

    def _segments(self) -> Array:
        segments: Array = self.matched + (self.wrong + self.missed) / 2
        return segments

    def _where_present(self, values: Array) -> Array:
        return np.where(self._segments() > 0, values, np.nan)


def match_segments(
    truth: tuple[Array, Array], found: tuple[Array, Array], classes: int, min_points: int = MIN_POINTS
) -> PanopticCounts:
    """Match the segments of one frame.

    Args:
        truth: int64 [N] each, the labelled class of each point (-1: the point does not count, on either side) and the
            number of its segment, which tells segments of one class apart.
        found: the same of the prediction; points with -1 are in no segment.
        classes: how many classes there are.
        min_points: segments with fewer points are no error when they have no match.

    Raises:
        ValueError: the arrays differ in length.
    """
    if len({len(column) for column in (*truth, *found)}) > 1:
        raise ValueError("classes and segments of both sides must have one entry per point")
    counted = truth[0] >= 0
    own, own_class, own_size = _segments(truth[0][counted], truth[1][counted])
    other, other_class, other_size = _segments(found[0][counted], found[1][counted])
    both = (own >= 0) & (other >= 0)
    pairs, shared = np.unique(own[both] * len(other_size) + other[both], return_counts=True)
    a, b = np.divmod(pairs, max(len(other_size), 1))
    overlap = shared / (own_size[a] + other_size[b] - shared)
    match = (overlap > MATCH) & (own_class[a] == other_class[b])
    a, b = a[match], b[match]

    def of_classes(labels: Array, weights: Array | None = None) -> Array:
        return np.bincount(labels, weights, minlength=classes)

    missed, wrong = own_size >= min_points, other_size >= min_points
    missed[a], wrong[b] = False, False
    return PanopticCounts(
        of_classes(own_class[a], overlap[match]),
        of_classes(own_class[a]),
        of_classes(other_class[wrong]),
        of_classes(own_class[missed]),
    )


def _segments(labels: Array, numbers: Array) -> tuple[Array, Array, Array]:
    """The segment of each point int64 [N] (-1: none), and the class and the size of each segment, int64 [S]."""
    inside = labels >= 0
    known, compact = np.unique(numbers[inside], return_inverse=True)
    keys = labels[inside].astype(np.int64) * len(known) + compact
    keys, index, sizes = np.unique(keys, return_inverse=True, return_counts=True)
    segment = np.full(len(labels), -1, np.int64)
    segment[inside] = index
    return segment, keys // max(len(known), 1), sizes
