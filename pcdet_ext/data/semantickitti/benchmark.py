"""The metrics of SemanticKITTI for result files of any code base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdet_ext.config import suggest
from pcdet_ext.data.semantickitti.labels import LabelMap, read_labels
from pcdet_ext.data.semantickitti.results import measure_frame, total
from pcdet_ext.data.semantickitti.sequences import PREDICTIONS, SEQUENCES, Frame
from pcdet_ext.evaluation.base import BENCHMARKS
from pcdet_ext.evaluation.panoptic import MIN_POINTS
from pcdet_ext.evaluation.segmentation import SegmentationResult
from pcdet_ext.files import DataError, MissingFileError


@BENCHMARKS.register
def semantickitti(
    ground_truth: str | Path,
    results: str | Path,
    classes: Sequence[str] = (),
    sequences: Sequence[str] = (),
    panoptic: bool = False,
    min_points: int = MIN_POINTS,
    published: bool = False,
    label_ids: Mapping[str, Sequence[int]] | None = None,
    ignored_ids: Sequence[int] | None = None,
    things: Sequence[str] | None = None,
) -> SegmentationResult:
    """SemanticKITTI: mean intersection over union, and with `panoptic` PQ, SQ, RQ and PQ†.

    Args:
        ground_truth: a folder with sequences/NN/labels/*.label.
        results: a folder with sequences/NN/predictions/*.label, a file for each labelled frame of its sequences.
        classes: what is measured, the published 19 by default; points of other classes do not count.
        sequences: which ones, by default those that results are there for.
        panoptic: whether the instances of the results are measured too.
        min_points: of segments whose miss counts.
        published: count as semantic-kitti-api does, see `PointLabelEvaluator`.
        label_ids: the label ids of each class; the published ones by default.
        ignored_ids: ids of points that do not count; the published ones by default.
        things: classes whose objects are told apart; the published ones by default.

    Raises:
        DataError: naming the file that is missing or damaged.
        ValueError: for a class that does not exist.
    """
    ground_truth, results = Path(ground_truth), Path(results)
    label_map = LabelMap.of(label_ids, ignored_ids, things)
    names = tuple(classes) or label_map.classes
    for name in names:
        if name not in label_map.classes:
            raise ValueError(f"classes: no label id is of {name!r}{suggest(name, label_map.classes)}")
    counts = []
    for frame in _frames(ground_truth, results, sequences):
        paths = frame.labels, frame.result(results)
        truth = read_labels(paths[0])
        found = read_labels(paths[1], len(truth[0]))
        counts.append(measure_frame(label_map, names, truth, found, paths, panoptic, min_points, published))
    return total(label_map, names, counts, published)


def _frames(ground_truth: Path, results: Path, sequences: Sequence[str]) -> list[Frame]:
    """The labelled frames of the sequences that results are for."""
    for path in (ground_truth, results):
        if not (path / SEQUENCES).is_dir():
            raise MissingFileError(f"{path}: the folder {SEQUENCES} is missing")
    there = sorted(path.name for path in (results / SEQUENCES).iterdir() if (path / PREDICTIONS).is_dir())
    if not there and not sequences:
        raise MissingFileError(f"{results}: no results (sequences/NN/{PREDICTIONS}/*.label) here")
    frames = []
    for sequence in sequences or there:
        labels = ground_truth / SEQUENCES / sequence / "labels"
        found = [Frame(ground_truth, sequence, path.stem, True) for path in sorted(labels.glob("*.label"))]
        if not found:
            raise DataError(f"{labels}: no labels (*.label) here to measure results with")
        frames += found
    return frames
