"""Metrics beyond boxes in single frames, for result files of any code base: tracks, maps, futures, plans, occupancy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcdet_ext.evaluation import kitti_tracking as kitti_mot
from pcdet_ext.evaluation import kitti_tracking_files
from pcdet_ext.evaluation.base import BENCHMARKS


@BENCHMARKS.register
def kitti_tracking(
    ground_truth: Path,
    results: Path,
    classes: Sequence[str] | None = None,
    sequence_map: Path | None = None,
) -> kitti_mot.KittiTrackingResult:
    """KITTI tracking of 2-D boxes: HOTA, CLEAR MOT, identity.

    Args:
        ground_truth: a folder with SEQUENCE.txt, or label_02/SEQUENCE.txt (.txt.gz too).
        results: a folder with SEQUENCE.txt, or data/SEQUENCE.txt.
        classes: car, pedestrian; by default both.
        sequence_map: which sequences, and how many frames each has; by default the only evaluate_tracking.seqmap* in
            the folder of the ground truth.
    """
    frames = kitti_tracking_files.read_sequence_map(
        sequence_map or kitti_tracking_files.find_sequence_map(ground_truth)
    )
    truth, found = (
        {
            name: kitti_tracking_files.read_rows(kitti_tracking_files.sequence_file(side, name), length)
            for name, length in frames.items()
        }
        for side in (ground_truth, results)
    )
    return kitti_mot.evaluate(truth, found, frames, classes or kitti_mot.CLASSES)
