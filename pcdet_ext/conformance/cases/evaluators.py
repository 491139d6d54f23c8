"""Evaluator cases: folders with the inputs of a benchmark and `expected.json`, what its official tool prints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.conformance.cases import official_metrics, scene_metrics
from pcdet_ext.conformance.golden import Report
from pcdet_ext.data.kitti import Labels, read_labels
from pcdet_ext.evaluation.kitti import evaluate
from pcdet_ext.evaluation.kitti_result import CLASSES, KittiResult

KITTI_TOLERANCE = 1e-6  # percent
DEVKIT_CLASSES = ("car", "pedestrian", "cyclist")


def find_evaluator_cases(path: Path) -> list[Path]:
    """The case folders that a path means: itself, or those right below it."""
    if (path / "expected.json").is_file():
        return [path]
    return sorted(p.parent for p in path.glob("*/expected.json")) if path.is_dir() else []


def run_evaluator_case(path: Path) -> Report:
    """Compute the metrics of one case and compare every number that the official tool gave."""
    kind, name = path.parent.name, f"{path.parent.name}/{path.name}"
    if kind not in EVALUATORS:
        return Report(name, kind, "not covered", message="this library has no such evaluator")
    numbers, tolerance = EVALUATORS[kind]
    worst, worst_key, compared = -1.0, "", 0
    for key, ours, theirs in numbers(path):
        same = ours == theirs or (math.isnan(ours) and math.isnan(theirs))
        error = 0.0 if same else abs(ours - theirs) / tolerance
        compared += 1
        if not error <= worst:
            worst, worst_key = (math.inf if math.isnan(error) else error), key
    return Report(name, kind, "pass" if 0 <= worst <= 1 else "fail", worst, worst_key, compared)


def kitti_result(path: Path) -> KittiResult:
    """The metric on the files of a case."""
    truth, found = kitti_frames(path)
    return evaluate(truth, found, CLASSES)


def kitti_frames(path: Path) -> tuple[list[Labels], list[Labels]]:
    """Ground truth and detections of each frame of a case: of text files, or packed in inputs.npz."""
    packed = path / "inputs.npz"
    return _packed(packed) if packed.exists() else _folders(path)


def _kitti_numbers(path: Path) -> Iterator[tuple[str, float, float]]:
    """Every class of the C++ devkit; those that only OpenPCDet measures, where the case says that both tools agree."""
    expected = json.loads((path / "expected.json").read_text(encoding="utf-8"))
    result = kitti_result(path)
    yield from _numbers(result, expected["cpp_devkit"], DEVKIT_CLASSES)
    if str(expected.get("agreement", {}).get("cpp_vs_openpcdet", "")).startswith("all"):
        others = [name.lower() for name in CLASSES if name.lower() not in DEVKIT_CLASSES]
        yield from _numbers(result, _overlap_sets(expected["openpcdet_python"]), others)


def _overlap_sets(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in content if name.startswith("overlap_")}


def _numbers(
    result: KittiResult, expected: Mapping[str, Any], classes: Collection[str]
) -> Iterator[tuple[str, float, float]]:
    """Averages, and the curves they are of, in percent; a metric that was never detected is in neither."""
    names = {c.lower(): c for c in CLASSES}
    for overlap_set, content in expected.items():
        for lower, metrics in content["classes"].items():
            if lower not in classes:
                continue
            ours = result.results[overlap_set][names[lower]]
            for metric, values in metrics.items():
                key = f"{overlap_set}.{lower}.{metric}"
                if metric not in ours:
                    yield key, math.nan, 0.0
                    continue
                rows = (("R11", ours[metric].r11), ("R40", ours[metric].r40))
                for kind, numbers in rows:
                    for i, theirs in enumerate(values[kind]):
                        yield f"{key}.{kind}.{i}", float(numbers[i]), theirs
                for i, curve in enumerate(values.get("precision", ())):
                    for k, theirs in enumerate(curve):
                        yield f"{key}.precision.{i}.{k}", 100 * float(ours[metric].precision[i, k]), 100 * theirs


def _folders(path: Path) -> tuple[list[Labels], list[Labels]]:
    results = next(p for p in (path / "results/data", path / "results") if any(p.glob("*.txt")))
    files = sorted(results.glob("*.txt"))
    return [read_labels(path / "label_2" / f.name, with_scores=False) for f in files], [
        read_labels(f, with_scores=True) for f in files
    ]


def _packed(path: Path) -> tuple[list[Labels], list[Labels]]:
    with np.load(path, allow_pickle=False) as archive:
        data = dict(archive.items())
    names = [str(n) for n in data["class_names"]]

    def frames(kind: str) -> list[Labels]:
        frame, values = data[f"{kind}_frame"], data[f"{kind}_values"]
        name = data[f"{kind}_name"]
        return [_rows(values[frame == f], [names[i] for i in name[frame == f]]) for f in range(int(data["n_frames"]))]

    return frames("gt"), frames("dt")


def _rows(values: np.ndarray, names: list[str]) -> Labels:
    """Fields after the type, in the order of a label line."""
    return Labels(
        names=tuple(names),
        truncation=values[:, 0],
        occlusion=values[:, 1].astype(np.int64),
        alpha=values[:, 2],
        bbox=values[:, 3:7],
        dimensions=values[:, 7:10],
        location=values[:, 10:13],
        rotation_y=values[:, 13],
        scores=values[:, 14] if values.shape[1] == 15 else None,
    )


# For each kind: the pairs (key, ours, theirs) of a case, and how far they may be apart.
EVALUATORS: dict[str, tuple[Callable[[Path], Iterator[tuple[str, float, float]]], float]] = {
    "eval_kitti": (_kitti_numbers, KITTI_TOLERANCE),
    "eval_nuscenes": (official_metrics.nuscenes_numbers, official_metrics.TOLERANCE),
    "eval_argoverse2": (official_metrics.argoverse2_numbers, official_metrics.TOLERANCE),
    "eval_nuscenes_tracking": (official_metrics.nuscenes_tracking_numbers, official_metrics.TOLERANCE),
    "eval_waymo": (official_metrics.waymo_numbers, official_metrics.WAYMO_TOLERANCE),
    "eval_kitti_tracking": (scene_metrics.kitti_tracking_numbers, scene_metrics.TOLERANCE),
    "eval_bev_map": (scene_metrics.bev_map_numbers, scene_metrics.MAP_TOLERANCE),
    "eval_motion": (scene_metrics.motion_numbers, scene_metrics.TOLERANCE),
    "eval_occupancy": (scene_metrics.occupancy_numbers, scene_metrics.OCCUPANCY_TOLERANCE),
    "eval_planning": (scene_metrics.planning_numbers, scene_metrics.PLANNING_TOLERANCE),
}
