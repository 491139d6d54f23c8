"""Metrics beyond boxes in single frames, for result files of any code base: tracks, maps, futures, plans, occupancy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcdet_ext.evaluation import bev_map as maps
from pcdet_ext.evaluation import kitti_tracking as kitti_mot
from pcdet_ext.evaluation import (
    kitti_tracking_files,
    motion_files,
    nuscenes_tables,
    nuscenes_truth,
    occupancy_files,
    planning_files,
)
from pcdet_ext.evaluation import motion as futures
from pcdet_ext.evaluation import planning as plans
from pcdet_ext.evaluation.base import BENCHMARKS
from pcdet_ext.evaluation.benchmarks import measured, no_scenes
from pcdet_ext.evaluation.nuscenes_files import Submission
from pcdet_ext.evaluation.occupancy import OccupancyResult
from pcdet_ext.files import DataError


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


@BENCHMARKS.register
def bev_map(
    ground_truth: Path,
    results: Path,
    classes: Sequence[str] = maps.CLASSES,
    thresholds: Sequence[float] = maps.THRESHOLDS,
) -> maps.BevMapResult:
    """Map segmentation in the bird's-eye view: IoU of each layer, at each threshold and at the best.

    Args:
        ground_truth: a file .npz with `gt` [N, C, H, W], 0 or 1, or a folder of SAMPLE.npz with `gt` [C, H, W].
        results: a file with `pred`, probabilities, or a folder of files with the same names.
        classes: names of the layers, in their order.
        thresholds: probabilities, ascending.
    """
    return maps.evaluate_files(ground_truth, results, classes, thresholds)


@BENCHMARKS.register
def planning(ground_truth: Path, results: Path, frames: Path | None = None) -> plans.PlanningResult:
    """Open-loop planning on nuScenes: L2 and collisions. Arguments as in `planning_files.read_plans`."""
    return measured(results, lambda: plans.evaluate(planning_files.read_plans(ground_truth, results, frames)))


@BENCHMARKS.register
def motion(ground_truth: Path, results: Path, scenes: Sequence[str] | None = None) -> futures.MotionResult:
    """Motion forecasts of detections: minADE, minFDE, miss rate and EPA of cars and pedestrians over six seconds.

    Args:
        ground_truth: a folder with the released tables of nuScenes, or a JSON file with `samples` and `gt_boxes`.
        results: a nuScenes detection submission whose boxes have `trajs` too (.json or .json.gz).
        scenes: names of the scenes to measure; by default those that the results are about.
    """
    submission = Submission.read(results)
    if nuscenes_tables.is_tables(ground_truth):
        tables = nuscenes_tables.read_tables(ground_truth)
        tokens = nuscenes_truth.tokens_of_scenes(tables, scenes, submission.samples)
        truth, samples = motion_files.tables_truth(tables, tokens)
    else:
        no_scenes(scenes)
        truth, samples = motion_files.read_ground_truth(ground_truth)
    if not samples.tokens:
        raise DataError(f"{ground_truth}: has no sample: there is nothing to measure")
    return futures.evaluate(truth, motion_files.read_results(submission, samples.tokens), samples)


@BENCHMARKS.register
def occupancy(ground_truth: Path, results: Path, poses: Path | None = None) -> OccupancyResult:
    """Occupancy of Occ3D on nuScenes: mIoU, RayIoU, with flow OccScore, with instances RayPQ.

    Arguments as in `occupancy_files.evaluate`.
    """
    return occupancy_files.evaluate(ground_truth, results, poses)
