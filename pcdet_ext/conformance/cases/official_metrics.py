"""Evaluator cases of nuScenes, Argoverse 2 and Waymo: every number, curve and flag of the official tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pcdet_ext.evaluation import argoverse2, nuscenes, nuscenes_tracking, waymo
from pcdet_ext.evaluation import argoverse2_files as av2_files
from pcdet_ext.evaluation import nuscenes_files as nus_files
from pcdet_ext.evaluation.waymo_objects import Config, Objects
from pcdet_ext.evaluation.waymo_result import WaymoResult
from pcdet_ext.interop.settings import every_setting_counts, only_known

TOLERANCE = 1e-9
Numbers = Iterator[tuple[str, float, float]]  # key, ours, theirs

NUSCENES_CONFIG: dict[str, Any] = {  # detection_cvpr_2019
    "class_range": nuscenes.CLASS_RANGES,
    "dist_fcn": "center_distance",
    "dist_ths": list(nuscenes.DISTANCES),
    "dist_th_tp": nuscenes.TP_DISTANCE,
    "min_recall": nuscenes.MIN_RECALL,
    "min_precision": nuscenes.MIN_PRECISION,
    "max_boxes_per_sample": nus_files.MAX_BOXES,
    "mean_ap_weight": nuscenes.MAP_WEIGHT,
}
NUSCENES_TRACKING_CONFIG: dict[str, Any] = {  # tracking_nips_2019
    "tracking_names": list(nuscenes_tracking.CLASSES),
    "class_range": nuscenes_tracking.CLASS_RANGES,
    "dist_fcn": "center_distance",
    "dist_th_tp": nuscenes_tracking.LIMIT,
    "min_recall": nuscenes_tracking.RECALLS[0],
    "max_boxes_per_sample": nus_files.MAX_BOXES,
    "num_thresholds": len(nuscenes_tracking.RECALLS),
}
NUSCENES = ("label_aps", "mean_dist_aps", "mean_ap", "label_tp_errors", "tp_errors", "tp_scores", "nd_score")


def nuscenes_result(path: Path) -> nuscenes.NuScenesResult:
    """The metric on the files of a case."""
    only_known("cfg", _expected(path).get("summary", {}).get("cfg", {}), NUSCENES_CONFIG)
    truth, samples = nus_files.read_ground_truth(json_file(path, "gt"))
    found, _ = nus_files.read_results(json_file(path, "results"), samples.tokens)
    return nuscenes.evaluate(truth, found, samples)


def nuscenes_numbers(path: Path) -> Numbers:
    """The summary, and the precision, confidence and error curves of each class and distance."""
    ours = nuscenes_result(path).to_json()
    expected = nus_files.read_json(path / "expected.json")["summary"]
    yield from numbers_at_same_places({k: ours[k] for k in NUSCENES}, {k: expected[k] for k in NUSCENES}, "")
    for key, theirs in nus_files.read_json(json_file(path, "expected_details")).items():
        curve = {k: v for k, v in ours["curves"][key].items() if k in theirs}
        yield from numbers_at_same_places(curve, {k: theirs[k] for k in curve}, key)


def argoverse2_result(path: Path) -> argoverse2.Argoverse2Result:
    """The metric on the files of a case."""
    config, only_inside = _argoverse2_config(_expected(path)["config"])
    table = path / "annotations.feather"
    annotations = av2_files.read_annotations(table if table.exists() else path / "sensor" / "val")
    truth, found, sweeps = av2_files.numbered(annotations, av2_files.read_detections(path / "detections.feather"))
    regions = None
    if only_inside:
        regions = av2_files.Regions(path / "sensor" / "val", sweeps)
    return argoverse2.evaluate(truth, found, config, regions)


def _argoverse2_config(published: Mapping[str, Any]) -> tuple[argoverse2.Config, bool]:
    """Our configuration for the published one, and whether only boxes in the region of interest count."""
    with every_setting_counts({"config": published}) as read:
        settings = read["config"]
        only_known("config", settings, {"affinity_type": "CENTER", "filter_metric": "EUCLIDEAN"})
        config = argoverse2.Config(
            categories=tuple(settings["categories"]),
            max_range=settings["max_range_m"],
            thresholds=tuple(settings["affinity_thresholds_m"]),
            tp_threshold=settings["tp_threshold_m"],
            max_detections=settings["max_num_dts_per_category"],
            recall_samples=settings["num_recall_samples"],
        )
        return config, settings["eval_only_roi_instances"]


def argoverse2_numbers(path: Path) -> Numbers:
    """All metrics, the fate of every box, and the regions of interest."""
    expected = _expected(path)
    result = argoverse2_result(path)
    ours = result.to_json()
    yield from numbers_at_same_places(ours, {key: expected[key] for key in ours}, "")
    if (path / "expected_details.npz").exists():
        yield from _details(path / "expected_details.npz", result)
    if (path / "expected_roi.npz").exists():
        yield from _regions(path, path / "expected_roi.npz")


def nuscenes_tracking_result(path: Path) -> nuscenes_tracking.TrackingResult:
    """The metric on the files of a case."""
    only_known("cfg", _expected(path).get("summary", {}).get("cfg", {}), NUSCENES_TRACKING_CONFIG)
    truth, sequences = nus_files.read_track_ground_truth(json_file(path, "gt"))
    found, _ = nus_files.read_tracks(json_file(path, "results"), sequences.samples.tokens)
    return nuscenes_tracking.evaluate(truth, found, sequences)


def nuscenes_tracking_numbers(path: Path) -> Numbers:
    """The summary, and every metric of each class at each of the 40 thresholds.

    The distances of the official tool depend on the version of NumPy; they are compared at a coarser tolerance.
    """
    ours = nuscenes_tracking_result(path).to_json()
    expected = nus_files.read_json(path / "expected.json")["summary"]
    names = [*nuscenes_tracking.METRICS, "label_metrics"]
    pairs = [(ours, {name: expected[name] for name in names})]
    details = nus_files.read_json(json_file(path, "expected_details"))
    known = ours["details"]
    pairs.append((known, {c: {m: v for m, v in row.items() if m in known[c]} for c, row in details.items()}))
    for a, b in pairs:
        for key, x, y in numbers_at_same_places(a, b, ""):
            scale = TRACKING_DISTANCES if "motp" in key else 1.0
            yield key, y + (x - y) * scale if np.isfinite(x) and np.isfinite(y) else x, y


TRACKING_DISTANCES = 1e-4  # distances may be off by 1e-5 instead of 1e-9
WAYMO_TOLERANCE = 1e-5
MATCHERS: dict[str, Literal["hungarian", "score_first"]] = {
    "TYPE_HUNGARIAN": "hungarian",
    "TYPE_SCORE_FIRST": "score_first",
}
BENCHMARK_CUTOFFS = "i*0.01 for i in 0..99, then 1.0"
WAYMO_TYPES = {"Vehicle": 1, "Pedestrian": 2, "Sign": 3, "Cyclist": 4}


def waymo_result(path: Path) -> WaymoResult:
    """The metric on the arrays of a case."""
    return _waymo_result(*_waymo_objects(_waymo_arrays(path)), _expected(path)["config"])


def _waymo_result(truth: Objects, found: Objects, settings: Mapping[str, Any]) -> WaymoResult:
    """The metric, in one pass for all breakdowns of the same levels."""
    results = [waymo.evaluate(truth, found, config) for config in waymo_configs(settings)]
    return WaymoResult.of({name: curve for result in results for name, curve in result.curves.items()})


def _waymo_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path / "inputs.npz", allow_pickle=False) as archive:
        return dict(archive.items())


def _waymo_objects(data: Mapping[str, np.ndarray]) -> tuple[Objects, Objects]:
    """Ground truth and predictions."""
    zones = data.get("pd_nlz")
    found = Objects.predictions(data["pd_frame"], _types(data, "pd"), data["pd_box"], data["pd_score"], zones)
    difficulty = data["gt_difficulty"].astype(np.int64)
    truth = Objects.ground_truth(data["gt_frame"], _types(data, "gt"), data["gt_box"], difficulty, data.get("gt_speed"))
    return truth, found


def waymo_numbers(path: Path) -> Numbers:
    """AP and APH of each breakdown, and the counts at every score cutoff."""
    expected, data = _expected(path), _waymo_arrays(path)
    truth, found = _waymo_objects(data)
    if "evaluated_classes" in expected:
        types = [WAYMO_TYPES[name] for name in expected["evaluated_classes"]]
        sides = waymo.openpcdet_objects(truth, found, data["gt_num_points"], types, expected["distance_threshold"])
        values = waymo.evaluate(*sides, Config(breakdowns=("OBJECT_TYPE",))).values
        for key, value in expected["results"].items():
            # With an overlap in 3-D as the metric, the longitudinal AP is the plain one.
            yield key, values[key.replace("/APL", "/AP")], float(value)
        return
    result = _waymo_result(truth, found, expected["config"])
    for name, numbers in expected["results"].items():
        curve = result.curves[name]
        yield f"{name}.AP", curve.ap, numbers["AP"]
        yield f"{name}.APH", curve.aph, numbers["APH"]
    names = expected["breakdown_names"]
    if (path / "expected_curves.npz").exists():
        yield from _waymo_curves(path / "expected_curves.npz", names, result)


def waymo_configs(published: Mapping[str, Any]) -> list[Config]:
    """Our configurations for the published one, which gives each breakdown levels of its own; one for all of the same.

    Raises:
        ValueError: boxes are to be compared in another way than in 3-D, cutoffs are described in other words than
            those of the benchmark, or a setting is not known.
    """
    with every_setting_counts({"config": published}) as read:
        settings = read["config"]
        only_known("config", settings, {"box_type": "TYPE_3D"})
        breakdowns: dict[tuple[int, ...], list[Any]] = {}
        for name, levels in zip(settings["breakdowns"], settings["levels"], strict=True):
            breakdowns.setdefault(tuple(sorted(levels)), []).append(name)
        common = Config(
            matcher=MATCHERS[settings["matcher"]],
            iou_thresholds=tuple(settings["iou_thresholds"]),
            score_cutoffs=_cutoffs(settings["score_cutoffs"]),
            num_cutoffs=settings["num_desired_score_cutoffs"],
            recall_step=settings["desired_recall_delta"],
            min_precision=settings["min_precision"],
            min_heading_accuracy=settings["min_heading_accuracy"],
        )
    return [replace(common, breakdowns=tuple(names), levels=levels) for levels, names in breakdowns.items()]


def _cutoffs(given: str | list[float]) -> np.ndarray | None:
    """The scores listed, or None for the benchmark's in words."""
    if isinstance(given, str):
        only_known("config", {"score_cutoffs": given}, {"score_cutoffs": BENCHMARK_CUTOFFS})
        return None
    return np.array(given, np.float32)


def _types(data: Mapping[str, np.ndarray], side: str) -> np.ndarray:
    return data[f"{side}_type"].astype(np.int64)


def _waymo_curves(path: Path, names: list[str], result: WaymoResult) -> Numbers:
    """Counts must be exact: a difference of one is far beyond the tolerance."""
    with np.load(path, allow_pickle=False) as archive:
        for i, name in enumerate(names):
            curve = result.curves[name]
            counts = (curve.true_positives, curve.false_positives, curve.false_negatives)
            ours = np.stack([curve.precision, curve.recall, *counts], 1)
            yield from numbers_at_same_places(ours.tolist(), archive["precision_recall_tp_fp_fn"][i].tolist(), name)
            heading = np.stack([curve.heading_precision, curve.recall], 1)
            yield from numbers_at_same_places(
                heading.tolist(), archive["precision_recall_ha"][i].tolist(), f"{name}.heading"
            )


def _details(path: Path, result: argoverse2.Argoverse2Result) -> Numbers:
    with np.load(path, allow_pickle=False) as archive:
        for name, fate in (("dts", result.detections), ("gts", result.annotations)):
            ours = np.concatenate([fate.hits, fate.errors, fate.counts[:, None]], 1)
            yield from numbers_at_same_places(ours.tolist(), archive[name].tolist(), name)


def _regions(path: Path, expected: Path) -> Numbers:
    with np.load(expected, allow_pickle=False) as archive:
        for log, packed in archive.items():
            mask = av2_files.read_region(path / "sensor" / "val" / log).mask
            yield f"roi.{log}", float((np.packbits(mask, axis=1) != packed).sum()), 0.0


def _expected(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((path / "expected.json").read_text(encoding="utf-8"))
    return content


def json_file(path: Path, name: str) -> Path:
    """The file NAME.json or NAME.json.gz of a case."""
    return next(path.glob(f"{name}.json*"))


def numbers_at_same_places(ours: Any, theirs: Any, key: str) -> Numbers:
    """Pairs of the numbers at the same place of two nested structures; null is NaN.

    Args:
        ours: mappings and lists of numbers.
        theirs: the same, which says what is compared.
        key: name of the place.
    """
    if isinstance(theirs, Mapping):
        for name, value in theirs.items():
            yield from numbers_at_same_places(ours[name], value, f"{key}.{name}")
    elif isinstance(theirs, list):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from numbers_at_same_places(a, b, f"{key}.{i}")
    else:
        a, b = (float("nan") if value is None else float(value) for value in (ours, theirs))
        yield key, a, b
