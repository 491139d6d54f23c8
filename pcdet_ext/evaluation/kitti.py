"""KITTI object detection metrics: 2-D boxes, orientation, bird's-eye view, 3-D, as the official devkit computes them.

Average precision over 11 (R11) and 40 recall points (R40), for the three difficulties and two sets of minimum overlaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.config import suggest
from pcdet_ext.data.kitti.files import Labels, read_labels
from pcdet_ext.evaluation.matching import IGNORED, OTHER, THRESHOLDS, VALID, Array, Curve, Pairs, match
from pcdet_ext.files import DataError
from pcdet_ext.ops import iou_3d_paired, iou_bev_paired

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck")
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}  # not counted, not punished
DIFFICULTIES = ("easy", "moderate", "hard")
MIN_HEIGHT = (40.0, 25.0, 25.0)  # pixels
MAX_OCCLUSION = (0, 1, 2)
MAX_TRUNCATION = (0.15, 0.30, 0.50)
METRICS = ("bbox", "bev", "3d", "aos")
_LARGE = ("car", "van", "truck")


def min_overlap(name: str, metric: str, overlap_set: str) -> float:
    """Overlap that a match must exceed, for a class, "bbox", "bev" or "3d", and "overlap_0_7" or "overlap_0_5"."""
    large = name.lower() in _LARGE
    if overlap_set == "overlap_0_7":
        return 0.7 if large else 0.5
    if metric == "bbox":
        return 0.5 if name.lower() == "truck" or not large else 0.7
    return 0.5 if large else 0.25


@dataclass(frozen=True)
class Precision:
    """One class and metric. precision: [3, 41] over recall, a row for each difficulty; r11, r40: [3] in percent."""

    precision: Array

    @property
    def r11(self) -> Array:
        """Mean of the recall points 0, 0.1, …, 1."""
        return self.precision[:, ::4].mean(1) * 100

    @property
    def r40(self) -> Array:
        """Mean of the recall points 1/40, …, 1."""
        return self.precision[:, 1:].mean(1) * 100


@dataclass(frozen=True)
class KittiResult:
    """overlap set → class → metric → precision. Orientation ("aos") is missing when any detection has alpha -10."""

    frames: int
    results: dict[str, dict[str, dict[str, Precision]]]

    def ap(self, name: str, metric: str, difficulty: str = "moderate", overlap_set: str = "overlap_0_7") -> float:
        """R40 average precision in percent."""
        return float(self.results[overlap_set][name][metric].r40[DIFFICULTIES.index(difficulty)])

    def to_json(self) -> dict[str, Any]:
        """Plain types: overlap set → class → metric → R11, R40 (three difficulties) and the precision curves."""
        return {
            "frames": self.frames,
            **{
                overlap_set: {
                    name: {
                        metric: {"R11": p.r11.tolist(), "R40": p.r40.tolist(), "precision": p.precision.tolist()}
                        for metric, p in metrics.items()
                    }
                    for name, metrics in classes.items()
                }
                for overlap_set, classes in self.results.items()
            },
        }

    def table(self) -> str:
        """The familiar table: AP in percent for easy, moderate, hard, over 40 and over 11 recall points."""
        head = f"{'class':<15} {'metric':<5} {'IoU':>4}   {'R40 easy':>8} {'moderate':>8} {'hard':>7}   "
        lines = [f"KITTI, {self.frames} frames", head + f"{'R11 easy':>8} {'moderate':>8} {'hard':>7}"]
        for overlap_set, classes in self.results.items():
            for name, metrics in classes.items():
                for metric, p in metrics.items():
                    least = min_overlap(name, "bbox" if metric == "aos" else metric, overlap_set)
                    if overlap_set == "overlap_0_5" and least == min_overlap(name, metric, "overlap_0_7"):
                        continue  # the same numbers as above
                    r40, r11 = p.r40, p.r11
                    lines.append(
                        f"{name:<15} {metric:<5} {least:>4.2f}   {r40[0]:>8.2f} {r40[1]:>8.2f} {r40[2]:>7.2f}   "
                        f"{r11[0]:>8.2f} {r11[1]:>8.2f} {r11[2]:>7.2f}"
                    )
        return "\n".join(lines)


def evaluate(
    ground_truth: Sequence[Labels], results: Sequence[Labels], classes: Sequence[str] = CLASSES[:3]
) -> KittiResult:
    """Metrics of detections (with scores) against labels, frame by frame in the same order.

    Class names compare without case. Raises ValueError for unknown classes, for detections without scores, and for
    lists of different length.
    """
    for name in classes:
        if name not in CLASSES:
            raise ValueError(f"KITTI has no metric for class {name!r}{suggest(name, CLASSES)}")
    if len(ground_truth) != len(results):
        raise ValueError(f"{len(ground_truth)} frames of ground truth, but {len(results)} of results")
    if any(r.scores is None and len(r) for r in results):
        raise ValueError("results need scores: sixteen columns a line")
    tables = _Tables.of(ground_truth, results)
    metrics = METRICS if tables.has_alpha else METRICS[:3]
    jobs = [(o, c, m) for o in ("overlap_0_7", "overlap_0_5") for c in classes for m in METRICS[:3]]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        curves = dict(zip(jobs, pool.map(lambda job: tables.curves(*job), jobs), strict=True))
    nested: dict[str, dict[str, dict[str, Precision]]] = {}
    for overlap_set, name, metric in jobs:
        found = nested.setdefault(overlap_set, {}).setdefault(name, {})
        found[metric] = _precision(curves[overlap_set, name, metric], orientation=False)
        if metric == "bbox" and "aos" in metrics:
            found["aos"] = _precision(curves[overlap_set, name, metric], orientation=True)
    return KittiResult(len(results), nested)


def evaluate_folders(
    ground_truth: str | Path, results: str | Path, classes: Sequence[str] = CLASSES[:3]
) -> KittiResult:
    """Metrics of a folder of result files against a folder of label files, both named <frame>.txt.

    The result files say which frames count (an empty file is a frame without detections), as in the devkit.
    Raises DataError naming the file, and the line, that is missing or damaged.
    """
    ground_truth, results = Path(ground_truth), Path(results)
    for folder in (ground_truth, results):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
    files = sorted(results.glob("*.txt"))
    if not files:
        raise DataError(f"{results}: no result files (*.txt) here")
    found = [read_labels(f, with_scores=True) for f in files]
    truth = [read_labels(ground_truth / f.name) for f in files]
    return evaluate(truth, found, classes)


def _precision(curves: Sequence[Curve], orientation: bool) -> Precision:
    """Precision over recall: the best at this recall or a higher one, 0 where no threshold reached it."""
    table = np.zeros((3, THRESHOLDS))
    for row, curve in zip(table, curves, strict=True):
        above = curve.similarity if orientation else curve.true_positives
        below = np.maximum(curve.true_positives + curve.false_positives, 1)
        row[: len(above)] = above / below
        row[:] = np.maximum.accumulate(row[::-1])[::-1]
    return Precision(table)


@dataclass(frozen=True)
class _Tables:
    """All frames joined: columns of truths and detections, and the overlaps of those in one frame."""

    truth: Labels
    found: Labels
    truth_names: Array  # in lower case
    found_names: Array
    pairs: dict[str, Pairs]

    @staticmethod
    def of(ground_truth: Sequence[Labels], results: Sequence[Labels]) -> _Tables:
        truth, found = _join(ground_truth), _join(results)
        truth_at, found_at = _offsets(ground_truth), _offsets(results)
        regions = [f.select(np.array([n.lower() == "dontcare" for n in f.names], bool)) for f in ground_truth]
        region_at = _offsets(regions)
        rows, columns = _indices(truth_at, found_at)
        region_rows, region_columns = _indices(region_at, found_at)
        inside = _region_share(_join(regions).bbox[region_rows], found.bbox[region_columns])
        a, b = _turned_boxes(truth)[rows], _turned_boxes(found)[columns]
        overlaps = {
            "bbox": _bbox_overlap(truth.bbox[rows], found.bbox[columns]),
            "bev": iou_bev_paired(a, b).numpy(),
            "3d": iou_3d_paired(a, b).numpy(),
        }
        pairs = {
            m: Pairs(truth_at, found_at, region_at, o, inside if m == "bbox" else None) for m, o in overlaps.items()
        }
        names = [np.array([n.lower() for n in t.names], dtype=str) for t in (truth, found)]
        return _Tables(truth, found, *names, pairs)

    @property
    def has_alpha(self) -> bool:
        """The devkit drops orientation for the whole run when a detection says that it does not know its own."""
        return not bool((self.found.alpha == -10).any())

    def curves(self, overlap_set: str, name: str, metric: str) -> list[Curve]:
        """Curves of the three difficulties."""
        scores = self.found.scores if self.found.scores is not None else np.zeros(0)
        least = min_overlap(name, metric, overlap_set)
        states = [(self._truth_state(name.lower(), d), self._found_state(name.lower(), d)) for d in range(3)]
        alphas = (self.truth.alpha, self.found.alpha)
        return [match(self.pairs[metric], t, f, scores, *alphas, least) for t, f in states]

    def _truth_state(self, name: str, difficulty: int) -> Array:
        labels = self.truth
        hard = (
            (labels.bbox[:, 3] - labels.bbox[:, 1] < MIN_HEIGHT[difficulty])
            | (labels.occlusion > MAX_OCCLUSION[difficulty])
            | (labels.truncation > MAX_TRUNCATION[difficulty])
        )
        state = np.where(self.truth_names == name, np.where(hard, IGNORED, VALID), OTHER)
        return np.where(self.truth_names == NEIGHBOURS.get(name, ""), IGNORED, state).astype(np.int8)

    def _found_state(self, name: str, difficulty: int) -> Array:
        """Too small detections of any class are ignored, tested before the class: so they may absorb a truth."""
        small = np.abs(self.found.bbox[:, 3] - self.found.bbox[:, 1]) < MIN_HEIGHT[difficulty]
        return np.where(small, IGNORED, np.where(self.found_names == name, VALID, OTHER)).astype(np.int8)


def _join(frames: Sequence[Labels]) -> Labels:
    columns = ("truncation", "occlusion", "alpha", "bbox", "dimensions", "location", "rotation_y")
    empty = {"bbox": (0, 4), "dimensions": (0, 3), "location": (0, 3)}
    joined = {c: np.concatenate([np.zeros(empty.get(c, 0)), *(getattr(f, c) for f in frames)]) for c in columns}
    scored = [f.scores for f in frames if f.scores is not None]
    scores = np.concatenate(scored) if scored else None
    return Labels(tuple(n for f in frames for n in f.names), **joined, scores=scores)


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


def _turned_boxes(labels: Labels) -> torch.Tensor:
    """Boxes float64 [N, 7] in axes (x, z, y) of the camera: length along the heading, which turns the other way."""
    height, width, length = labels.dimensions.T
    x, y, z = labels.location.T
    boxes = np.stack([x, z, y - height / 2, length, width, height, -labels.rotation_y], 1)
    return torch.from_numpy(boxes)


def _shared_area(a: Array, b: Array) -> Array:
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return size.clip(min=0).prod(1)


def _area(a: Array) -> Array:
    return (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])


def _bbox_overlap(a: Array, b: Array) -> Array:
    shared = _shared_area(a, b)
    union = _area(a) + _area(b) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _region_share(region: Array, box: Array) -> Array:
    """Share of a detection that lies in a region."""
    shared, area = _shared_area(region, box), _area(box)
    return np.divide(shared, area, out=np.zeros_like(shared), where=area > 0)
