"""KITTI object detection metrics: 2-D boxes, orientation, bird's-eye view, 3-D, as the official devkit computes them.

Average precision over 11 (R11) and 40 recall points (R40), for the three difficulties and two sets of minimum overlaps.
Classes that the benchmark does not have are measured by the same rules with an overlap of one's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.evaluation.kitti_labels import (
    DIFFICULTIES,
    MIN_HEIGHT,
    Labels,
    is_dont_care,
    reasons_not_to_count,
    too_hard,
    write_labels,
)
from pcdet_ext.evaluation.matching import (
    IGNORED,
    OTHER,
    THRESHOLDS,
    VALID,
    Array,
    Curve,
    Pairs,
    match,
    pick_thresholds,
)
from pcdet_ext.files import DataError
from pcdet_ext.ops import iou_3d_paired, iou_bev_paired
from pcdet_ext.structures import Detections, Sample

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Person_sitting", "Truck")
NEIGHBOURS = {"car": "van", "pedestrian": "person_sitting"}  # not counted, not punished
METRICS = ("bbox", "bev", "3d", "aos")
STRICT, LOOSE = "overlap_0_7", "overlap_0_5"
DEFAULT_OVERLAP = 0.5  # for classes that KITTI does not measure; what it asks of pedestrians and cyclists
_KNOWN = tuple(name.lower() for name in CLASSES)
_LARGE = ("car", "van", "truck")


def is_measured(name: str) -> bool:
    """Whether the benchmark has this class; it compares names without case."""
    return name.lower() in _KNOWN


def min_overlap(name: str, metric: str, overlap_set: str, chosen: Mapping[str, float] | None = None) -> float:
    """Overlap that a match must exceed.

    Args:
        name: a class; metric: "bbox", "bev" or "3d"; overlap_set: "overlap_0_7" or "overlap_0_5".
        chosen: the overlap, in all metrics and both sets, of classes that KITTI does not measure.
    """
    if chosen and name in chosen:
        return chosen[name]
    large = name.lower() in _LARGE
    if overlap_set == STRICT:
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
        return np.asarray(self.precision[:, ::4].mean(1) * 100)

    @property
    def r40(self) -> Array:
        """Mean of the recall points 1/40, …, 1."""
        return np.asarray(self.precision[:, 1:].mean(1) * 100)


@dataclass(frozen=True)
class ClassCount:
    """How many objects of a class there are, and how many of them count.

    labels: labelled objects; counting: those that count as easy, moderate and hard; reasons: why the others do not
    count even as hard ones, with their number; detections: found objects; low: those too low in the image to count.
    """

    labels: int
    counting: tuple[int, int, int]
    reasons: Mapping[str, int]
    detections: int
    low: int

    def highest_r40(self) -> float:
        """R40 at moderate difficulty, in percent, of a detector that finds all: below 41 objects it is not 100.

        The curve has one entry for each threshold, and there are no more thresholds than objects.
        """
        count = min(self.counting[1], THRESHOLDS)
        entries = len(pick_thresholds([float(i) for i in range(count)], max(count, 1)))
        return max(entries - 1, 0) / (THRESHOLDS - 1) * 100

    def line(self, name: str) -> str:
        """What to print."""
        levels = ", ".join(f"{count} {level}" for count, level in zip(self.counting, DIFFICULTIES, strict=True))
        text = f"{name}: {self.labels} labelled, of which count {levels}"
        if self.reasons:
            text += f"; never count: {', '.join(f'{n} ({reason})' for reason, n in self.reasons.items())}"
        text += f"; {self.detections} detected"
        if (best := self.highest_r40()) < 100:
            text += f"; with so few objects the benchmark's R40 (moderate) reaches {best:.1f} at most"
        if self.low:
            text += f", {self.low} of them never count (2-D box lower than {min(MIN_HEIGHT):g} pixels)"
        return text


@dataclass(frozen=True, eq=False)
class KittiResult(Result):
    """The devkit's numbers; the score is the classes' mean 3-D average precision (moderate, R40, strict overlaps).

    results: overlap set → class → metric → precision, without orientation ("aos") when any detection has alpha -10;
    counts: of each class; chosen: overlap of the classes that KITTI does not measure; others: number of detections
    of each class that was not measured; flat: of those whose size is not positive, which match nothing in bev and 3d.
    """

    frames: int = 0
    results: Mapping[str, Mapping[str, Mapping[str, Precision]]] = field(default_factory=dict)
    counts: Mapping[str, ClassCount] = field(default_factory=dict)
    chosen: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)
    flat: int = 0

    def ap(self, name: str, metric: str, difficulty: str = "moderate", overlap_set: str = STRICT) -> float:
        """R40 average precision in percent.

        Args:
            name: of the class.
            metric: "bbox", "bev", "3d" or "aos".
            difficulty: "easy", "moderate" or "hard".
            overlap_set: which of the two sets of least overlaps.
        """
        return _ap(self.results, name, metric, difficulty, overlap_set)

    def to_json(self) -> dict[str, Any]:
        """Plain types: overlap set → class → metric → R11, R40 (three difficulties) and the precision curves."""
        sets = {
            overlap_set: {
                name: {
                    metric: {"R11": p.r11.tolist(), "R40": p.r40.tolist(), "precision": p.precision.tolist()}
                    for metric, p in metrics.items()
                }
                for name, metrics in classes.items()
            }
            for overlap_set, classes in self.results.items()
        }
        counts = {name: asdict(count) for name, count in self.counts.items()}
        more = {"overlap": dict(self.chosen), "not_measured": dict(self.others), "without_size": self.flat}
        return super().to_json() | {"frames": self.frames, "counts": counts} | more | sets

    def table(self) -> str:
        """The familiar table: AP in percent for easy, moderate, hard, over 40 and over 11 recall points.

        Below it stand how many objects of each class count, and which overlaps are not the benchmark's own.
        """
        head = f"{'class':<15} {'metric':<5} {'IoU':>4}   {'R40 easy':>8} {'moderate':>8} {'hard':>7}   "
        lines = [f"KITTI, {self.frames} frames", head + f"{'R11 easy':>8} {'moderate':>8} {'hard':>7}"]
        for overlap_set, classes in self.results.items():
            for name, metrics in classes.items():
                lines += [line for metric, p in metrics.items() if (line := self._row(overlap_set, name, metric, p))]
        lines += [count.line(name) for name, count in self.counts.items()]
        lines += [
            f"{name}: not a class of the benchmark, measured by its rules with an overlap of {overlap:g}"
            for name, overlap in self.chosen.items()
        ]
        if self.others:
            named = ", ".join(f"{count} of {name}" for name, count in self.others.items())
            lines.append(f"detections of classes that are not measured: {named}")
        if self.flat:
            lines.append(f"detections whose size is not positive: {self.flat}; in bev and 3d they match nothing")
        return "\n".join(lines)

    def plots(self) -> list[Plot]:
        """Precision over recall of each class and metric with the strict overlaps, one curve for each difficulty."""
        recall = np.linspace(0, 1, THRESHOLDS)
        plots = []
        for name, metrics in self.results[STRICT].items():
            for metric, found in metrics.items():
                curves = {level: (recall, row) for level, row in zip(DIFFICULTIES, found.precision, strict=True)}
                plots.append(Plot(f"{name}_{metric}", "recall", "precision", curves))
        return plots

    def _row(self, overlap_set: str, name: str, metric: str, precision: Precision) -> str:
        """One line of the table; none where the loose set asks for no less than the strict one."""
        strict, least = (
            min_overlap(name, "bbox" if metric == "aos" else metric, s, self.chosen) for s in (STRICT, overlap_set)
        )
        if overlap_set == LOOSE and least == strict:
            return ""
        r40, r11 = precision.r40, precision.r11
        return (
            f"{name:<15} {metric:<5} {least:>4.2f}   {r40[0]:>8.2f} {r40[1]:>8.2f} {r40[2]:>7.2f}   "
            f"{r11[0]:>8.2f} {r11[1]:>8.2f} {r11[2]:>7.2f}"
        )


def evaluate(
    ground_truth: Sequence[Labels],
    results: Sequence[Labels],
    classes: Sequence[str] = CLASSES[:3],
    overlap: Mapping[str, float] | None = None,
) -> KittiResult:
    """Metrics of detections against labels, frame by frame in the same order. Class names compare without case.

    Args:
        ground_truth: labels of each frame; results: detections of each frame, with scores.
        classes: what is measured.
        overlap: the least overlap of a match, above 0 and at most 1, for each class that KITTI does not measure.

    Raises:
        ValueError: for a class without an overlap, an overlap that is none or is not needed, detections without
            scores, and lists of different length.
    """
    chosen = _check_overlap(classes, overlap or {})
    if len(ground_truth) != len(results):
        raise ValueError(f"{len(ground_truth)} frames of ground truth, but {len(results)} of results")
    if any(r.scores is None and len(r) for r in results):
        raise ValueError("results need scores: sixteen columns a line")
    tables = _Tables.of(ground_truth, results)
    jobs = [(o, c, m) for o in (STRICT, LOOSE) for c in classes for m in METRICS[:3]]
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        curves = dict(zip(jobs, pool.map(lambda job: tables.curves(job[0], job[1], job[2], chosen), jobs), strict=True))
    nested: dict[str, dict[str, dict[str, Precision]]] = {}
    for overlap_set, name, metric in jobs:
        found = nested.setdefault(overlap_set, {}).setdefault(name, {})
        found[metric] = _precision(curves[overlap_set, name, metric], orientation=False)
        if metric == "bbox" and tables.has_alpha:
            found["aos"] = _precision(curves[overlap_set, name, metric], orientation=True)
    values = {
        f"{name} {metric} moderate R40": _ap(nested, name, metric, "moderate", STRICT)
        for name in classes
        for metric in ("bev", "3d")
    }
    score = float(np.mean([values[f"{name} 3d moderate R40"] for name in classes]))
    counts = {name: tables.count(name) for name in classes}
    measured = {name.lower() for name in classes}
    others = Counter(n for n in tables.found.names if n.lower() not in measured and not is_dont_care(n))
    flat = int((tables.found.dimensions <= 0).any(axis=1).sum())
    return KittiResult(
        score,
        values,
        frames=len(results),
        results=nested,
        counts=counts,
        chosen=chosen,
        others=dict(others.most_common()),
        flat=flat,
    )


class KittiEvaluator:
    """The KITTI metric of a data set's frames (see `Evaluator`).

    Args:
        classes: what is measured.
        truth_of: the labels of a sample, or None where it has none.
        rows_of: the detections in a sample (NumPy) as rows of a result file.
        frame_ids: frames of the data set.
        overlap: least overlap of a match for classes that KITTI does not measure, 0.5 for those not named.

    Raises:
        ValueError: for an overlap of a class that is not in `classes` or that KITTI measures.
    """

    def __init__(
        self,
        classes: Sequence[str],
        truth_of: Callable[[Sample], Labels | None],
        rows_of: Callable[[Sample, Detections], Labels],
        frame_ids: Collection[str],
        overlap: Mapping[str, float] | None = None,
    ) -> None:
        others = {name: DEFAULT_OVERLAP for name in classes if not is_measured(name)}
        self.classes = tuple(classes)
        self.overlap = _check_overlap(classes, others | dict(overlap or {}))
        self._truth_of, self._rows_of, self._frame_ids = truth_of, rows_of, set(frame_ids)
        self._frames: dict[Hashable, tuple[Labels | None, Labels]] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        """Take the detections in one frame, those of which the camera sees a part."""
        rows = self._rows_of(sample, predictions.numpy())
        self._frames[sample.frame_id] = self._truth_of(sample), rows

    def state(self) -> Mapping[Hashable, Any]:
        """Labels and result rows of each frame."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> KittiResult | None:
        """The metric, or None when no frame is labelled. Raises ValueError when only some are."""
        frames = [self._frames[key] for key in sorted(self._frames, key=str)]
        truth = [labels for labels, _ in frames if labels is not None]
        if not truth:
            return None
        if len(truth) < len(frames):
            raise ValueError(f"{len(frames) - len(truth)} of {len(frames)} frames have no labels to compare with")
        return evaluate(truth, [rows for _, rows in frames], self.classes, self.overlap)

    def check_folder(self, folder: str | Path) -> None:
        """Raises DataError when a folder has result files of other frames."""
        for path in sorted(Path(folder).glob("*.txt")):
            if path.stem not in self._frame_ids:
                raise DataError(f"{path}: a result of another data set or split; name an empty folder for the results")

    def write(self, folder: str | Path) -> list[Path]:
        """One result file per frame, `<frame id>.txt`, as the KITTI server and devkit take them."""
        paths = []
        for key, (_, rows) in self._frames.items():
            paths.append(Path(folder) / f"{key}.txt")
            write_labels(paths[-1], rows)
        return paths


def _check_overlap(classes: Sequence[str], overlap: Mapping[str, float]) -> dict[str, float]:
    if not classes:
        raise ValueError("classes must hold at least one name")
    for name, value in overlap.items():
        if name not in classes:
            raise ValueError(f"overlap: {name!r} is not one of the classes{suggest(name, classes)}")
        if is_measured(name):
            raise ValueError(f"overlap: KITTI itself says what {name!r} needs ({min_overlap(name, '3d', STRICT):g})")
        if not 0 < value <= 1:
            raise ValueError(f"overlap: must be above 0 and at most 1, got {value} for {name!r}")
    for name in classes:
        if not is_measured(name) and name not in overlap:
            raise ValueError(
                f"KITTI has no metric for class {name!r}{suggest(name, CLASSES)}; or give the overlap of a match for it"
            )
    return {name: float(value) for name, value in overlap.items()}


def _ap(results: Mapping[str, Any], name: str, metric: str, difficulty: str, overlap_set: str) -> float:
    return float(results[overlap_set][name][metric].r40[DIFFICULTIES.index(difficulty)])


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
        return _Tables(truth, found, truth_names, found_names, pairs)

    @property
    def has_alpha(self) -> bool:
        """The devkit drops orientation for the whole run when a detection says that it does not know its own."""
        return not bool((self.found.alpha == -10).any())

    def curves(self, overlap_set: str, name: str, metric: str, chosen: Mapping[str, float]) -> list[Curve]:
        """Curves of the three difficulties; chosen: see `min_overlap`."""
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
