"""Panoptic quality of occupancy along rays (RayPQ, Liu et al., "SparseOcc", 2024)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pcdet_ext.structures import Array

SMALLEST = 10  # rays of a segment that counts where nothing matches it
MATCH = 0.5


@dataclass
class RayPanoptic:
    """Adds up segments frame by frame.

    classes: how many classes have segments; things: those whose objects are told apart; thresholds: metres that the
    distances of a ray may differ.
    """

    classes: int
    things: frozenset[int]
    thresholds: tuple[float, ...]
    true: Array = field(init=False)
    false: Array = field(init=False)
    missed: Array = field(init=False)
    overlap: Array = field(init=False)

    def __post_init__(self) -> None:
        shape = (len(self.thresholds), self.classes)
        self.true, self.false, self.missed = (np.zeros(shape, np.int64) for _ in range(3))
        self.overlap = np.zeros(shape)

    def add(self, truth: Array, truth_id: Array, found: Array, found_id: Array, error: Array) -> None:
        """Take the rays of one frame.

        Args:
            truth, found: label of each ray, integers [N].
            truth_id, found_id: its instance, integers [N], 0 for none.
            error: float32 [N], how far apart the two distances are, metres.
        """
        own = self._segments(truth, self._instances(truth, truth_id) + 1)
        other = self._segments(found, found_id.astype(np.int64) + 1)
        for t, threshold in enumerate(self.thresholds):
            common = (truth == found) & (truth < self.classes) & (error < np.float32(threshold))
            pairs, inter = np.unique(np.stack([own[0][common], other[0][common]]), axis=1, return_counts=True)
            iou = inter / (own[2][pairs[0]] + other[2][pairs[1]] - inter)
            matched = iou > MATCH
            labels = own[1][pairs[0][matched]]
            self.true[t] += np.bincount(labels, minlength=self.classes)
            self.overlap[t] += np.bincount(labels, iou[matched], self.classes)
            self.missed[t] += self._alone(own, pairs[0][matched])
            self.false[t] += self._alone(other, pairs[1][matched])

    def _instances(self, labels: Array, given: Array) -> Array:
        """Numbers of the true instances, 0 for rays of none: things by their id, any other class as one."""
        numbers, count = np.zeros(len(labels), np.int64), 0
        pairs = np.unique(np.stack([given, labels]).astype(np.int64), axis=1)
        ids, kinds = np.unique(pairs[0], return_counts=True)
        pure = set(ids[(kinds == 1) & (ids >= 1)].tolist())  # ids with a single label
        for label in np.unique(labels[labels < self.classes]).tolist():
            if label not in self.things:
                count += 1
                numbers[labels == label] = count
                continue
            for instance in pairs[0][pairs[1] == label].tolist():
                if instance in pure:
                    count += 1
                    numbers[given == instance] = count
        return numbers

    def _segments(self, labels: Array, instance: Array) -> tuple[Array, Array, Array]:
        """Segment of each ray int64 [N], -1 for labels that have none, and label and size of each segment."""
        segment = np.full(len(labels), -1)
        inside = labels < self.classes
        keys = np.stack([labels[inside].astype(np.int64), instance[inside]])
        found, number, size = np.unique(keys, axis=1, return_inverse=True, return_counts=True)
        segment[inside] = number.reshape(-1)
        return segment, found[0], size

    def _alone(self, segments: tuple[Array, Array, Array], matched: Array) -> Array:
        _, label, size = segments
        alone = size >= SMALLEST
        alone[matched] = False
        return np.bincount(label[alone], minlength=self.classes)

    def quality(self) -> Array:
        """float64 [T, C]; NaN for a class without segments that count."""
        total = self.true + self.false / 2 + self.missed / 2
        value = self.overlap / np.maximum(self.true, 1e-5) * self.true / np.maximum(total, 1e-5)
        return np.where(total > 0, value, np.nan)
