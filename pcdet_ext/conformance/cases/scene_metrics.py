"""Evaluator cases of tracks, maps, futures, plans and occupancy: every number of the published tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcdet_ext.conformance.cases.official_metrics import json_file, numbers_at_same_places
from pcdet_ext.evaluation import bev_map, motion, motion_files, planning, planning_files, scene_benchmarks
from pcdet_ext.evaluation.kitti_tracking import KittiTrackingResult
from pcdet_ext.evaluation.multi_object import ALPHAS
from pcdet_ext.evaluation.nuscenes_files import read_json
from pcdet_ext.evaluation.nuscenes_tables import read_tables
from pcdet_ext.evaluation.occupancy import CLASSES, Occupancy, OccupancyCounts, OccupancyResult
from pcdet_ext.evaluation.occupancy_files import FOUND, TRUTH, read_poses
from pcdet_ext.evaluation.occupancy_rays import cast, directions, origins
from pcdet_ext.files import read_arrays
from pcdet_ext.interop.settings import only_known

TOLERANCE = 1e-9
MAP_TOLERANCE = 1e-6  # the published sums are float32
PLANNING_TOLERANCE = 2e-6  # so are the published means
OCCUPANCY_TOLERANCE = 1e-6  # so are the published flow errors
RAYS_APART = 97  # directions that the cases list
Numbers = Iterator[tuple[str, float, float]]  # key, ours, theirs


def kitti_tracking_result(path: Path) -> KittiTrackingResult:
    """The metric on the files of a case."""
    return scene_benchmarks.kitti_tracking(path / "gt", path / "trackers" / "tracker")


def kitti_tracking_numbers(path: Path) -> Numbers:
    """Every count, ratio and list, of every sequence and of all."""
    expected = read_json(path / "expected.json")
    only_known(path.name, expected, {"alphas": ALPHAS.tolist()})
    yield from numbers_at_same_places(kitti_tracking_result(path).to_json(), expected["results"], "")


def bev_map_result(path: Path) -> bev_map.BevMapResult:
    """The metric on the samples of a case, in the order that it names, with its classes and thresholds."""
    expected = read_json(path / "expected.json")
    found, truth = read_arrays(path / "inputs.npz", "pred", "gt")
    with np.load(path / "inputs.npz", allow_pickle=False) as archive:
        order = archive["order"] if "order" in archive else np.arange(len(found))
    pairs = ((found[i], truth[i]) for i in order.tolist())
    return bev_map.evaluate(pairs, expected["classes"], expected["thresholds"])


def bev_map_numbers(path: Path) -> Numbers:
    """Every IoU, and every count, which must be equal."""
    expected, result = read_json(path / "expected.json"), bev_map_result(path)
    yield from numbers_at_same_places(result.values, expected["metrics"], "")
    yield from numbers_at_same_places(result.counts.tolist(), expected["exact_counts_tp_fp_fn"], "counts")


def planning_result(path: Path) -> planning.PlanningResult:
    """The metric on the arrays of a case; the boxes come from its frames where it has some."""
    inputs, frames = path / "inputs.npz", path / "frames.json"
    return planning.evaluate(planning_files.read_plans(inputs, inputs, frames if frames.exists() else None))


def planning_numbers(path: Path) -> Numbers:
    """Means in both conventions, each sample's numbers, and the boxes where frames are given."""
    expected, ours = read_json(path / "expected.json"), planning_result(path).to_json()
    names = ("n_evaluated", "metrics", "per_step", "mean_up_to_step", "at_1s_2s_3s", "per_sample")
    yield from numbers_at_same_places(ours, {name: expected[name] for name in names if name in expected}, "")
    if (path / "frames.json").exists():
        known, boxes, counts = read_arrays(path / "inputs.npz", *planning_files.FROM_FRAMES)
        found, own = planning_files.future_boxes(path / "frames.json", known.astype(bool))
        yield from numbers_at_same_places(own.tolist(), np.maximum(counts, 0).tolist(), "fut_counts")
        yield from numbers_at_same_places(found.tolist(), boxes.tolist(), "fut_boxes")


def motion_result(path: Path) -> motion.MotionResult:
    """The metric on the files of a case."""
    truth, samples = motion_files.read_ground_truth(json_file(path, "gt"))
    found = motion_files.read_results(json_file(path, "results"), samples.tokens)
    return motion.evaluate(truth, found, samples)


def motion_numbers(path: Path) -> Numbers:
    """The metrics and curves of each class; where there are tables, also the true paths out of these."""
    expected, ours = read_json(path / "expected.json"), motion_result(path).to_json()
    counts = {name: expected["after_filter"][name] for name in motion.CLASSES}
    yield from numbers_at_same_places(ours, {"metrics": expected["metrics"], "after_filter": counts}, "")
    for name, curves in read_json(json_file(path, "expected_details")).items():
        if curves is None:
            yield f"{name}.curve", float(ours["details"][name] is not None), 0.0
        else:
            yield from numbers_at_same_places(ours["details"][name], curves, name)
    if (path / "tables").exists():
        truth, samples = motion_files.read_ground_truth(json_file(path, "gt"))
        own, _ = motion_files.tables_truth(read_tables(path / "tables"), samples.tokens)
        yield from numbers_at_same_places(own.lengths.tolist(), truth.lengths.tolist(), "lengths")
        yield from numbers_at_same_places(own.paths.tolist(), truth.paths.tolist(), "paths")


def occupancy_result(path: Path) -> OccupancyResult:
    """The metric on the grids of a case, in the order that it names; origins come from the poses where it has some."""
    expected = read_json(path / "expected.json")
    only_known(path.name, expected, {"classes": list(CLASSES)})
    with np.load(path / "inputs.npz", allow_pickle=False) as archive:
        data = dict(archive.items())
    poses = read_poses(path / "poses.json") if (path / "poses.json").exists() else None
    counts = OccupancyCounts()
    for i, rows in enumerate(zip(expected["gt_index"], expected["pred_index"], strict=True)):
        truth, found = (
            Occupancy(**{field: data[name][row] for field, name in names.items() if name in data})
            for names, row in zip((TRUTH, FOUND), rows, strict=True)
        )
        counts.add(truth, found, data[f"origins.{i}"] if poses is None else origins(poses, i))
    return counts.result()


def occupancy_numbers(path: Path) -> Numbers:
    """Every IoU and count of voxels, rays and segments; origins and single rays where the case has them."""
    expected = read_json(path / "expected.json")
    names = ("voxel", "ray", "ray_pq")
    wanted = {name: expected[name] for name in names if name in expected}
    yield from numbers_at_same_places(occupancy_result(path).to_json(), wanted, "")
    with np.load(path / "inputs.npz", allow_pickle=False) as archive:
        data = dict(archive.items())
    if (path / "poses.json").exists():
        poses = read_poses(path / "poses.json")
        for i in range(len(poses)):
            theirs = data[f"origins.{i}"].tolist()
            yield from numbers_at_same_places(origins(poses, i).tolist(), theirs, f"origins.{i}")
    if (path / "expected_rays.npz").exists():
        rays, *sides = read_arrays(path / "expected_rays.npz", "rays", "gt", "pred")
        yield from numbers_at_same_places(directions()[::RAYS_APART].tolist(), rays.tolist(), "rays")
        for name, theirs in zip(("semantics", "pred"), sides, strict=True):
            hits = cast(data[name][0], data["origins.0"][:1])
            labels = data[name][0].reshape(-1)[hits.voxel[0]]
            yield from numbers_at_same_places(labels.tolist(), theirs[:, 0].tolist(), f"{name}.label")
            yield from numbers_at_same_places(hits.distance[0].tolist(), theirs[:, 1].tolist(), f"{name}.distance")
