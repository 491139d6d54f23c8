"""ONCE's metric for result files of any code base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcdet_ext.data.once.results import results_by_frame
from pcdet_ext.data.once.sequences import Frame, read_sequence, sequences_of
from pcdet_ext.evaluation.base import BENCHMARKS, check_class_names
from pcdet_ext.evaluation.once import CLASSES, Config, OnceResult, evaluate
from pcdet_ext.files import DataError
from pcdet_ext.structures import Targets


@BENCHMARKS.register
def once(
    ground_truth: str | Path,
    results: str | Path,
    classes: Sequence[str] = CLASSES,
    split: str = "val",
    superclass: bool = True,
    heading: bool = True,
    published: bool = False,
) -> OnceResult:
    """ONCE detection: average precision by distance, aware of orientation.

    Args:
        ground_truth: the data folder, with `data` and `ImageSets`.
        results: a JSON file, or a pickle (.pkl) of OpenPCDet's or ONCE's own tools; see `results_by_frame`. All
            labelled frames of the split must be there.
        classes: what is measured, all five by default.
        split: whose labelled frames are measured.
        superclass: whether cars, buses and trucks are measured together, as vehicles.
        heading: whether headings must agree for a match.
        published: whether boxes of other classes may be matched beyond a range of distances, as in ONCE's own tool.

    Raises:
        DataError: naming the file that is missing or damaged, a frame without results, and classes where no detection
            has one that ONCE has; some of other names are a warning.
        ValueError: for classes that cannot be measured.
    """
    config = Config(tuple(classes), superclass, heading, published)
    root = Path(ground_truth)
    frames = [frame for name in sequences_of(root, split) for frame in read_sequence(root, name)]
    labelled = [frame for frame in frames if _is_labelled(frame)]
    if not labelled:
        raise DataError(f"{root}: no frame of split {split!r} has labels: there is nothing to measure")
    found = results_by_frame(Path(results), config.classes, frames)
    check_class_names(Path(results), (name for frame in found.values() for name in frame.names), CLASSES)
    for frame in labelled:
        if frame.frame_id not in found:
            raise DataError(
                f"{results}: no entry for frame {frame.name!r} of sequence {frame.sequence!r}, which has labels; one "
                "without detections has empty lists"
            )
    truth = [Targets.of_names(frame.boxes, frame.names) for frame in labelled if frame.boxes is not None]
    return evaluate(truth, [found[frame.frame_id] for frame in labelled], config)


def _is_labelled(frame: Frame) -> bool:
    """Whether a frame has labels. Raises DataError for one that is damaged."""
    if frame.problem:
        raise DataError(frame.problem)
    return frame.boxes is not None
