"""The KITTI metric of result files of any code base."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdet_ext.data.kitti.labels import read_labels
from pcdet_ext.evaluation.base import BENCHMARKS, check_class_names
from pcdet_ext.evaluation.kitti import DEFAULT_OVERLAP, evaluate
from pcdet_ext.evaluation.kitti_labels import Labels
from pcdet_ext.evaluation.kitti_result import CLASSES, KittiResult, is_measured
from pcdet_ext.files import MissingFileError

TYPES = (*CLASSES, "Tram", "Misc", "DontCare")  # that KITTI labels

_log = logging.getLogger(__name__)


@BENCHMARKS.register
def kitti(
    ground_truth: str | Path,
    results: str | Path,
    classes: Sequence[str] = CLASSES[:3],
    overlap: Mapping[str, float] | None = None,
) -> KittiResult:
    """KITTI object detection: bbox, aos, bev, 3d. Arguments as in `evaluate_folders`."""
    return evaluate_folders(ground_truth, results, classes, overlap)


def evaluate_folders(
    ground_truth: str | Path,
    results: str | Path,
    classes: Sequence[str] = CLASSES[:3],
    overlap: Mapping[str, float] | None = None,
) -> KittiResult:
    """Metrics of a folder of result files against a folder of label files, both named <frame>.txt.

    The result files say which frames count (an empty file is a frame without detections), as in the devkit.

    Args:
        ground_truth: folder of label files.
        results: folder of result files.
        classes: what is measured.
        overlap: least overlap of a match for classes that KITTI does not measure; 0.5 for those among the labels that
            are not named here.

    Raises:
        DataError: naming the file, and the line, that is missing or damaged.
        ValueError: for classes and overlaps that cannot be measured.
    """
    ground_truth, results = Path(ground_truth), Path(results)
    for folder in (ground_truth, results):
        if not folder.is_dir():
            raise MissingFileError(f"{folder}: no such folder")
    files = sorted(results.glob("*.txt"))
    if not files:
        raise MissingFileError(f"{results}: no result files (*.txt) here")
    found = [read_labels(f, with_scores=True) for f in files]
    truth = [read_labels(ground_truth / f.name, with_scores=False) for f in files]
    for folder, frames in ((ground_truth, truth), (results, found)):
        _log_notes(folder, frames)
    labelled = {name for frame in truth for name in frame.names}
    known = sorted({*TYPES, *labelled, *classes}, key=str.lower)
    check_class_names(results, (name for frame in found for name in frame.names), known, ignore_case=True)
    others = {name: DEFAULT_OVERLAP for name in classes if name in labelled and not is_measured(name)}
    return evaluate(truth, found, classes, others | dict(overlap or {}))


def _log_notes(folder: Path, frames: Sequence[Labels]) -> None:
    for note, count in Counter(note for frame in frames for note in frame.notes).items():
        _log.warning("%s: %s (files: %d)", folder, note, count)
