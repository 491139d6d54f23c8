"""Labels and detections of many frames as the tables that KITTI's matching works on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pcdet_ext.evaluation.kitti_labels import (
    MIN_HEIGHT,
    Labels,
    is_dont_care,
    reasons_not_to_count,
    too_hard,
)
from pcdet_ext.evaluation.kitti_result import ClassCount, min_overlap
from pcdet_ext.evaluation.matching import (
    IGNORED,
    OTHER,
    VALID,
    Array,
    Curve,
    Pairs,
    match,
)
from pcdet_ext.ops import iou_3d_paired, iou_bev_paired

NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}  # not counted, not punished


@dataclass(frozen=True)
class Tables:
    """All frames joined: columns of truths and detections, and the overlaps of those in one frame."""

    truth: Labels
    found: Labels
    truth_names: Array  # in lower case
    found_names: Array
    pairs: dict[str, Pairs]

    @staticmethod
    def of(ground_truth: Sequence[Labels], results: Sequence[Labels]) -> Tables:
        truth, found = _join(ground_truth), _join(results)
        truth_at, found_at = _offsets(ground_truth), _offsets(results)
        regions = [f.select(np.array([is_dont_care(n) for n in f.names], bool)) for f in ground_truth]
        region_at = _offsets(regions)
        rows, columns = _indices(truth_at, found_at)
        region_rows, region_columns = _indices(region_at, found_at)
        inside = _region_share(_join(regions).bbox[region_rows], found.bbox[region_columns])
        a, b = _camera_boxes(truth)[rows], _camera_boxes(found)[columns]
        overlaps = {
            "bbox": _bbox_overlap(truth.bbox[rows], found.bbox[columns]),
            "bev": iou_bev_paired(a, b).numpy(),
            "3d": iou_3d_paired(a, b).numpy(),
        }
        pairs = {
            m: Pairs(truth_at, found_at, region_at, o, inside if m == "bbox" else None) for m, o in overlaps.items()
        }
        truth_names, found_names = (np.array([n.lower() for n in t.names], dtype=str) for t in (truth, found))
        return Tables(truth, found, truth_names, found_names, pairs)

    @property
    def has_alpha(self) -> bool:
        """The devkit drops orientation for the whole run when a detection says that it does not know its own."""
        return not bool((self.found.alpha == -10).any())

    def curves(self, overlap_set: str, name: str, metric: str, chosen: Mapping[str, float]) -> list[Curve]:
        """Curves of the three difficulties.

        Args:
            overlap_set: which of the two sets of least overlaps.
            name: of the class.
            metric: "bbox", "bev" or "3d".
            chosen: least overlaps of classes that KITTI does not measure, see `min_overlap`.
        """
        scores = self.found.scores if self.found.scores is not None else np.zeros(0)
        least = min_overlap(name, metric, overlap_set, chosen)
        states = [(self._truth_state(name.lower(), d), self._found_state(name.lower(), d)) for d in range(3)]
        alphas = (self.truth.alpha, self.found.alpha)
        return [match(self.pairs[metric], t, f, scores, *alphas, least) for t, f in states]

    def _truth_state(self, name: str, difficulty: int) -> Array:
        hard = too_hard(self.truth, difficulty)
        state = np.where(self.truth_names == name, np.where(hard, IGNORED, VALID), OTHER)
        return np.where(self.truth_names == NEIGHBOURS.get(name, ""), IGNORED, state).astype(np.int8)

    def _found_state(self, name: str, difficulty: int) -> Array:
        """Too small detections of any class are ignored, tested before the class: so they may absorb a truth."""
        small = self._found_height() < MIN_HEIGHT[difficulty]
        return np.where(small, IGNORED, np.where(self.found_names == name, VALID, OTHER)).astype(np.int8)

    def _found_height(self) -> Array:
        return np.asarray(np.abs(self.found.bbox[:, 3] - self.found.bbox[:, 1]))

    def count(self, name: str) -> ClassCount:
        """How many objects of a class count."""
        own = self.truth.select(self.truth_names == name.lower())
        easy, moderate, hard = (int((~too_hard(own, d)).sum()) for d in range(3))
        reasons = Counter(reason for reason in reasons_not_to_count(own) if reason)
        heights = self._found_height()[self.found_names == name.lower()]
        low = int((heights < min(MIN_HEIGHT)).sum())
        return ClassCount(len(own), (easy, moderate, hard), dict(reasons.most_common()), len(heights), low)


def _join(frames: Sequence[Labels]) -> Labels:
    def joined(name: str) -> Array:
        return np.concatenate([getattr(Labels.empty(), name), *(getattr(frame, name) for frame in frames)])

    scored = [f.scores for f in frames if f.scores is not None]
    return Labels(
        names=tuple(name for frame in frames for name in frame.names),
        truncation=joined("truncation"),
        occlusion=joined("occlusion"),
        alpha=joined("alpha"),
        bbox=joined("bbox"),
        dimensions=joined("dimensions"),
        location=joined("location"),
        rotation_y=joined("rotation_y"),
        scores=np.concatenate(scored) if scored else None,
    )


def _offsets(frames: Sequence[Labels]) -> Array:
    return np.cumsum([0, *map(len, frames)]).astype(np.int64)


def _indices(rows_at: Array, columns_at: Array) -> tuple[Array, Array]:
    """Row and column of every pair of one frame, frame after frame, row by row."""
    rows, columns = np.diff(rows_at), np.diff(columns_at)
    row = np.repeat(np.arange(rows_at[-1]), np.repeat(columns, rows))
    widths = np.repeat(columns, rows)
    starts = np.repeat(columns_at[:-1], rows)
    column = np.arange(len(row)) - np.repeat(np.cumsum(widths) - widths, widths) + np.repeat(starts, widths)
    return row, column


def _camera_boxes(labels: Labels) -> torch.Tensor:
    """Boxes float64 [N, 7] in axes (x, z, y) of the camera: length along the heading, which turns the other way."""
    height, width, length = labels.dimensions.T
    x, y, z = labels.location.T
    boxes = np.stack([x, z, y - height / 2, length, width, height, -labels.rotation_y], 1)
    return torch.from_numpy(boxes)


def _shared_area(a: Array, b: Array) -> Array:
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return np.asarray(size.clip(min=0).prod(1))


def _area(a: Array) -> Array:
    return np.asarray((a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]))


def _bbox_overlap(a: Array, b: Array) -> Array:
    shared = _shared_area(a, b)
    union = _area(a) + _area(b) - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _region_share(region: Array, box: Array) -> Array:
    """Share of a detection that lies in a region."""
    shared, area = _shared_area(region, box), _area(box)
    return np.asarray(np.divide(shared, area, out=np.zeros_like(shared), where=area > 0))
