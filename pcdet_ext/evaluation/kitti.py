"""KITTI object detection metrics: 2-D boxes, orientation, bird's-eye view, 3-D, as the official devkit computes them.

Average precision over 11 (R11) and 40 recall points (R40), for the three difficulties and two sets of minimum overlaps.
Classes that the benchmark does not have are measured by the same rules with an overlap of one's choice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.kitti_labels import (
    Labels,
    is_dont_care,
    write_labels,
)
from pcdet_ext.evaluation.kitti_result import (
    CLASSES,
    LOOSE,
    STRICT,
    KittiResult,
    Precision,
    average_precision,
    is_measured,
    min_overlap,
)
from pcdet_ext.evaluation.kitti_tables import Tables
from pcdet_ext.evaluation.matching import (
    THRESHOLDS,
    Curve,
)
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections, Sample

METRICS = ("bbox", "bev", "3d", "aos")
DEFAULT_OVERLAP = 0.5  # for classes that KITTI does not measure; what it asks of pedestrians and cyclists


def evaluate(
    ground_truth: Sequence[Labels],
    results: Sequence[Labels],
    classes: Sequence[str] = CLASSES[:3],
    overlap: Mapping[str, float] | None = None,
) -> KittiResult:
    """Metrics of detections against labels, frame by frame in the same order. Class names compare without case.

    Args:
        ground_truth: labels of each frame.
        results: detections of each frame, with scores.
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
    tables = Tables.of(ground_truth, results)
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
        f"{name} {metric} moderate R40": average_precision(nested, name, metric, "moderate", STRICT)
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


def _precision(curves: Sequence[Curve], orientation: bool) -> Precision:
    """Precision over recall: the best at this recall or a higher one, 0 where no threshold reached it."""
    table = np.zeros((3, THRESHOLDS))
    for row, curve in zip(table, curves, strict=True):
        above = curve.similarity if orientation else curve.true_positives
        below = np.maximum(curve.true_positives + curve.false_positives, 1)
        row[: len(above)] = above / below
        row[:] = np.maximum.accumulate(row[::-1])[::-1]
    return Precision(table)
