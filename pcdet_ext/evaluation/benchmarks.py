"""Official metrics for result files of any code base, by the names under which `pcdet evaluate` knows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from pcdet_ext.config import suggest
from pcdet_ext.evaluation import argoverse2 as av2
from pcdet_ext.evaluation import (
    argoverse2_files,
    nuscenes_files,
    nuscenes_tables,
    nuscenes_truth,
    waymo_boxes,
    waymo_truth,
)
from pcdet_ext.evaluation import nuscenes as nus
from pcdet_ext.evaluation import nuscenes_tracking as nus_tracking
from pcdet_ext.evaluation import waymo as wod
from pcdet_ext.evaluation.base import BENCHMARKS
from pcdet_ext.evaluation.waymo_objects import Breakdown, Config
from pcdet_ext.evaluation.waymo_result import WaymoResult
from pcdet_ext.files import DataError

R = TypeVar("R")


@BENCHMARKS.register
def nuscenes(ground_truth: Path, results: Path, scenes: Sequence[str] | None = None) -> nus.NuScenesResult:
    """nuScenes detection: mAP, true-positive errors, NDS.

    Args:
        ground_truth: a folder with the released tables (v1.0-*), or a JSON file with `samples` and `gt_boxes`.
        results: a submission (.json or .json.gz).
        scenes: names of the scenes to measure; by default those that the results are about. All their samples must be
            in the submission.
    """
    if not nuscenes_tables.is_tables(ground_truth):
        no_scenes(scenes)
        truth, samples = nuscenes_files.read_ground_truth(ground_truth)
        found, _ = nuscenes_files.read_results(results, samples.tokens)
        return measured(results, lambda: nus.evaluate(truth, found, samples))
    tables = nuscenes_tables.read_tables(ground_truth)
    submission = nuscenes_files.Submission.read(results)
    tokens = nuscenes_truth.tokens_of_scenes(tables, scenes, submission.samples)
    truth, samples = nuscenes_truth.detection_truth(tables, tokens)
    found, _ = submission.detections(samples.tokens)
    return measured(results, lambda: nus.evaluate(truth, found, samples))


@BENCHMARKS.register
def nuscenes_tracking(
    ground_truth: Path, results: Path, scenes: Sequence[str] | None = None
) -> nus_tracking.TrackingResult:
    """nuScenes tracking: AMOTA, AMOTP and the rest. Arguments as for `nuscenes`."""
    submission = nuscenes_files.Submission.read(results)
    if not nuscenes_tables.is_tables(ground_truth):
        no_scenes(scenes)
        truth, sequences = nuscenes_files.read_track_ground_truth(ground_truth)
    else:
        tables = nuscenes_tables.read_tables(ground_truth)
        tokens = nuscenes_truth.tokens_of_scenes(tables, scenes, submission.samples)
        truth, sequences = nuscenes_truth.tracking_truth(tables, tokens)
    found, _ = submission.tracks(sequences.samples.tokens)
    result = measured(results, lambda: nus_tracking.evaluate(truth, found, sequences))
    if math.isnan(result.score):  # officially every number is then undefined
        raise DataError(f"{ground_truth}: no box of the ground truth counts: there is nothing to measure")
    return result


@BENCHMARKS.register
def argoverse2(
    ground_truth: Path,
    results: Path,
    classes: Sequence[str] | None = None,
    max_range: float = 150.0,
    region: bool | None = None,
    recall_samples: int = 101,
) -> av2.Argoverse2Result:
    """Argoverse 2 detection: AP, ATE, ASE, AOE, CDS.

    Args:
        ground_truth: a split folder as released (LOG/annotations.feather, with poses and maps), or one Feather file
            with a column log_id.
        results: detections, a Feather file.
        classes: categories to measure, all 26 by default.
        max_range: metres from the vehicle (LION and OpenPCDet: 200).
        region: count only boxes within 5 m of drivable areas; by default where there are maps, as officially.
        recall_samples: points of the precision-recall curve (100 in av2 0.2.1).
    """
    annotations = argoverse2_files.read_annotations(ground_truth)
    detections = argoverse2_files.read_detections(results)
    labelled = set(annotations[0].category.tolist())
    for name in classes or ():
        if name not in av2.CATEGORIES and name not in labelled:
            raise ValueError(f"classes: Argoverse 2 has no category {name!r}{suggest(name, av2.CATEGORIES)}")
    argoverse2_files.note_unmatched(results, annotations, detections, (*av2.CATEGORIES, *(classes or ())))
    truth, found, sweeps = argoverse2_files.numbered(annotations, detections)
    has_maps = ground_truth.is_dir() and any(ground_truth.glob("*/map"))
    if region and not has_maps:
        raise DataError(f"{ground_truth}: the region of interest needs the maps (LOG/map); region=false leaves it out")
    regions = argoverse2_files.Regions(ground_truth, sweeps) if (has_maps if region is None else region) else None
    config = av2.Config(tuple(classes or av2.CATEGORIES), max_range=max_range, recall_samples=recall_samples)
    return av2.evaluate(truth, found, config, regions)


@BENCHMARKS.register
def waymo(
    ground_truth: Path,
    results: Path,
    classes: Sequence[str] | None = None,
    breakdowns: Sequence[Breakdown] = ("OBJECT_TYPE", "RANGE"),
) -> WaymoResult:
    """Waymo Open Dataset, 3-D detection: AP and APH at levels 1 and 2.

    Args:
        ground_truth: a folder of Parquet components (validation, or the folder that holds it), a Parquet file with
            their columns, or an `Objects` message (.bin). Boxes without points do not count.
        results: a Parquet file, or an `Objects` message (.bin).
        classes: types to measure; by default vehicles, pedestrians and cyclists, and signs where there are results.
        breakdowns: what the numbers are divided by: OBJECT_TYPE, RANGE, VELOCITY, SIZE, ONE_SHARD, ALL_BUT_SIGN.
    """
    truth, frames = waymo_truth.read_truth(ground_truth)
    found = waymo_truth.read_side(results, scores=True)
    if frames is not None:
        waymo_boxes.check_frames(found, frames, results)
    usual = {1, 2, 4, *(found.type.tolist() if len(found) else ())} - {0}
    types = [waymo_boxes.type_number(name, "classes") for name in classes] if classes else sorted(usual)
    sides = waymo_boxes.sides(truth, found)
    return measured(results, lambda: wod.evaluate(*sides, Config(tuple(breakdowns)))).of_types(types)


def no_scenes(scenes: Sequence[str] | None) -> None:
    """Raises ValueError where scenes are chosen though the ground truth does not say which there are."""
    if scenes is not None:
        raise ValueError("scenes can be chosen where the ground truth is a folder of tables")


def measured(results: Path, measure: Callable[[], R]) -> R:
    """What `measure` gives; what is wrong with the results names their file."""
    try:
        return measure()
    except ValueError as error:
        raise DataError(f"{results}: {error}") from error
