"""Average precision of rotated boxes, in bird's-eye view and in 3-D, for classes of any name.

A detection is true when its intersection over union with a labelled box of its class reaches the class's overlap;
detections are walked by falling score, and each takes the free box that it overlaps most. AP40 is the mean, over the
recalls 1/40, 2/40, …, 1, of the highest precision at this recall or above (Simonelli et al. 2019), from the whole
curve: a detector that finds everything has 100, however few objects there are. (KITTI's own tool samples the curve at
41 scores first, which bounds the AP of fewer than 41 objects.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.files import DataError
from pcdet_ext.ops import iou_3d_paired, iou_bev_paired
from pcdet_ext.structures import Array, Detections, Sample, Targets

RECALLS = 40
METRICS = ("bev", "3d")
LARGE = 3.0  # metres: mean length from which on a class is large
LARGE_OVERLAP, SMALL_OVERLAP = 0.7, 0.5  # what KITTI asks of cars, and of pedestrians and cyclists
RULE = (
    f"by default {LARGE_OVERLAP:g} for classes whose labelled boxes are {LARGE:g} m long or more in the mean, "
    f"{SMALL_OVERLAP:g} for others"
)


@dataclass(frozen=True, eq=False)
class Precision:
    """Precision over recall of one class and metric.

    recall, precision: float64 [D], after each detection by falling score; truths: labelled boxes.
    """

    recall: Array
    precision: Array
    truths: int

    @property
    def sampled(self) -> Array:
        """float64 [40]: the highest precision at the recalls 1/40, …, 1 or above, 0 where none reaches it."""
        best = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        points = np.arange(1, RECALLS + 1) / RECALLS
        return np.asarray(best[np.searchsorted(self.recall, points - 1e-9, side="left")])

    @property
    def ap(self) -> float:
        """AP40 in percent, NaN where there is nothing to find."""
        return float(self.sampled.mean() * 100) if self.truths else float("nan")


@dataclass(frozen=True, eq=False)
class RotatedResult(Result):
    """AP40 per class; the score is the mean 3-D AP of the classes that are labelled, 0 where none is.

    frames: measured; curves: class → metric → precision; overlap: least overlap of a match per class; detections:
    found boxes of each class; unmeasured: found boxes of other classes.
    """

    frames: int = 0
    curves: Mapping[str, Mapping[str, Precision]] = field(default_factory=dict)
    overlap: Mapping[str, float] = field(default_factory=dict)
    detections: Mapping[str, int] = field(default_factory=dict)
    unmeasured: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> str:
        """AP40 of each class in bird's-eye view and in 3-D, with what it was measured by."""
        width = max([len("class"), *map(len, self.curves)])
        lines = [f"AP40 in percent, {self.frames} frames"]
        lines += [f"{'class':<{width}}  {'IoU':>4}  {'BEV':>6}  {'3-D':>6}  {'labelled':>8}  {'detected':>8}"]
        for name, found in self.curves.items():
            ap = [f"{found[m].ap:>6.2f}" if found[m].truths else f"{'-':>6}" for m in METRICS]
            counts = f"{found['3d'].truths:>8}  {self.detections[name]:>8}"
            lines.append(f"{name:<{width}}  {self.overlap[name]:>4.2f}  {ap[0]}  {ap[1]}  {counts}")
        if not any(found["3d"].truths for found in self.curves.values()):
            lines.append("no box of these classes is labelled: there is nothing to measure")
        elif len(self.curves) > 1:
            means = [self.values[f"mean {m} AP40"] for m in METRICS]
            lines.append(f"{'mean':<{width}}  {'':>4}  {means[0]:>6.2f}  {means[1]:>6.2f}")
        if self.unmeasured:
            counts = ", ".join(f"{count} {name}" for name, count in self.unmeasured.items())
            lines.append(f"detections of classes that are not measured: {counts}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain types: class → metric → AP40 and the 40 points of the curve."""
        classes = {
            name: {
                "overlap": self.overlap[name],
                "labelled": found["3d"].truths,
                "detected": self.detections[name],
            }
            | {
                m: {"AP40": p.ap if p.truths else None, "precision": p.sampled.tolist() if p.truths else None}
                for m, p in found.items()
            }
            for name, found in self.curves.items()
        }
        return super().to_json() | {"frames": self.frames, "classes": classes, "unmeasured": dict(self.unmeasured)}

    def plots(self) -> list[Plot]:
        """Precision at the 40 recalls, one diagram per class with a curve for each metric."""
        recall = np.arange(1, RECALLS + 1) / RECALLS
        measured = {name: found for name, found in self.curves.items() if found["3d"].truths}
        return [
            Plot(name, "recall", "precision", {m: (recall, p.sampled) for m, p in found.items()})
            for name, found in measured.items()
        ]


def usual_overlap(boxes: Array) -> float:
    """The default overlap of a match for a class with these labelled boxes [M, 7+]; see `RULE`."""
    return LARGE_OVERLAP if len(boxes) and float(boxes[:, 3:5].max(axis=1).mean()) >= LARGE else SMALL_OVERLAP


def evaluate(
    ground_truth: Sequence[Targets],
    results: Sequence[Detections],
    classes: Sequence[str],
    overlap: Mapping[str, float] | None = None,
) -> RotatedResult:
    """Average precision of detections against labels, frame by frame in the same order; arrays throughout.

    Args:
        ground_truth: labelled boxes of each frame.
        results: detections of each frame.
        classes: what is measured.
        overlap: least intersection over union of a match, above 0 and at most 1, for classes that shall have their
            own; the others have that of `usual_overlap`.

    Raises:
        ValueError: for an overlap that does not fit, and lists of different length.
    """
    check_overlap(classes, overlap or {})
    if len(ground_truth) != len(results):
        raise ValueError(f"{len(ground_truth)} frames of ground truth, but {len(results)} of results")
    curves: dict[str, dict[str, Precision]] = {}
    least, detected = {}, {}
    for name in classes:
        truth = [_boxes_of(t.boxes, t.names, name) for t in ground_truth]
        found = [_boxes_of(d.boxes, d.names, name) for d in results]
        scores = [np.asarray(d.scores, np.float64)[_is_class(d.names, name)] for d in results]
        least[name] = float((overlap or {}).get(name, usual_overlap(np.concatenate([np.zeros((0, 7)), *truth]))))
        curves[name] = {metric: _curve(truth, found, scores, metric, least[name]) for metric in METRICS}
        detected[name] = sum(map(len, found))
    values = {f"{name} {m} AP40": p.ap for name, found in curves.items() for m, p in found.items() if p.truths}
    for metric in METRICS:
        measured = [found[metric].ap for found in curves.values() if found[metric].truths]
        if measured:
            values[f"mean {metric} AP40"] = float(np.mean(measured))
    score = values.get("mean 3d AP40", 0.0)
    others = Counter(name for found in results for name in found.names if name not in curves)
    return RotatedResult(score, values, "", len(results), curves, least, detected, dict(others.most_common()))


def _is_class(names: Sequence[str], name: str) -> Array:
    return np.array([other == name for other in names], bool)


def _boxes_of(boxes: Any, names: Sequence[str], name: str) -> Array:
    if boxes is None:
        return np.zeros((0, 7))
    return np.asarray(boxes, np.float64)[_is_class(names, name), :7]


def _curve(
    truth: Sequence[Array], found: Sequence[Array], scores: Sequence[Array], metric: str, least: float
) -> Precision:
    overlaps = _overlaps(truth, found, metric)
    hits = [_true(o, s, least) for o, s in zip(overlaps, scores, strict=True)]
    score, hit = np.concatenate([np.zeros(0), *scores]), np.concatenate([np.zeros(0, bool), *hits])
    total = sum(map(len, truth))
    true = np.cumsum(hit[np.argsort(-score, kind="stable")])
    return Precision(true / max(total, 1), true / np.arange(1, len(true) + 1), total)


def _overlaps(truth: Sequence[Array], found: Sequence[Array], metric: str) -> list[Array]:
    """[detections, truths] of each frame, all computed in one call."""
    rows = [np.repeat(f, len(t), axis=0) for t, f in zip(truth, found, strict=True)]
    columns = [np.tile(t, (len(f), 1)) for t, f in zip(truth, found, strict=True)]
    a, b = (torch.from_numpy(np.concatenate([np.zeros((0, 7)), *pairs])) for pairs in (rows, columns))
    values = (iou_bev_paired if metric == "bev" else iou_3d_paired)(a, b).numpy()
    ends = np.cumsum([len(pairs) for pairs in rows])[:-1]
    parts = np.split(values, ends) if rows else []
    return [part.reshape(len(f), len(t)) for part, t, f in zip(parts, truth, found, strict=True)]


def _true(overlap: Array, score: Array, least: float) -> Array:
    """bool [D]: which detections take a truth, by falling score, given overlaps [D, T] of one frame and class."""
    hit = np.zeros(len(score), bool)
    free = np.where(overlap >= least, overlap, -1.0)
    if not free.shape[1]:
        return hit
    for d in np.argsort(-score, kind="stable"):
        best = int(free[d].argmax())
        if free[d, best] >= 0:
            hit[d] = True
            free[:, best] = -1.0
    return hit


def check_overlap(classes: Sequence[str], overlap: Mapping[str, float]) -> None:
    """Raises ValueError for an overlap that is no share, or of no class."""
    if not classes:
        raise ValueError("classes must hold at least one name")
    for name, value in overlap.items():
        if name not in classes:
            raise ValueError(f"overlap: {name!r} is not one of the classes{suggest(name, classes)}")
        if not 0 < value <= 1:
            raise ValueError(f"overlap: must be above 0 and at most 1, got {value} for {name!r}")


class RotatedEvaluator:
    """Rotated average precision of a data set's frames (see `Evaluator`).

    Args:
        classes: what is measured.
        truth_of: the labels of the frame of a sample, or None where it has none.
        write_frame: writes the detections of a frame, given its id, into a folder; the file written.
        frame_ids: frames of the data set.
        overlap: least overlap of a match for classes that shall have their own.

    Raises:
        ValueError: for an overlap that does not fit.
    """

    def __init__(
        self,
        classes: Sequence[str],
        truth_of: Callable[[Sample], Targets | None],
        write_frame: Callable[[Path, str, Detections], Path],
        frame_ids: Collection[str],
        overlap: Mapping[str, float] | None = None,
    ) -> None:
        self.classes, self.overlap = tuple(classes), dict(overlap or {})
        check_overlap(self.classes, self.overlap)
        self._truth_of, self._write_frame, self._frame_ids = truth_of, write_frame, set(frame_ids)
        self._frames: dict[Hashable, tuple[Targets | None, Detections]] = {}

    def add(self, sample: Sample, predictions: Detections) -> None:
        """Take the detections in one frame."""
        self._frames[sample.frame_id] = self._truth_of(sample), predictions.numpy()

    def state(self) -> Mapping[Hashable, Any]:
        """Labels and detections of each frame."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> RotatedResult | None:
        """The metric over the labelled frames, or None where there are none."""
        frames = [self._frames[key] for key in sorted(self._frames, key=str)]
        truth = [labels for labels, _ in frames if labels is not None]
        if not truth:
            return None
        return evaluate(truth, [found for labels, found in frames if labels is not None], self.classes, self.overlap)

    def check_folder(self, folder: str | Path) -> None:
        """Raises DataError when a folder has result files of other frames."""
        folder = Path(folder)
        for path in sorted([*folder.rglob("*.txt"), *folder.rglob("*.json")]):
            if path.relative_to(folder).with_suffix("").as_posix() not in self._frame_ids:
                raise DataError(f"{path}: a result of another data set or split; name an empty folder for the results")

    def write(self, folder: str | Path) -> list[Path]:
        """One result file per frame, in the format of labels with a score."""
        return [self._write_frame(Path(folder), str(key), found) for key, (_, found) in self._frames.items()]


def occurring(frames: Sequence[Targets]) -> tuple[str, ...]:
    """All classes of labelled boxes, the most frequent first."""
    return tuple(name for name, _ in Counter(name for frame in frames for name in frame.names).most_common())
