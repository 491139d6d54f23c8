"""Runners for the nuScenes cases of published data pipelines, whose recorded draws go through our functions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pcdet_ext.conformance.cases.data_common import (
    NOTED,
    PublishedSampler,
    RecordedDraws,
    active_steps,
    changed,
    draws_of,
)
from pcdet_ext.conformance.cases.openpcdet_data import DRAWN_FROM
from pcdet_ext.conformance.golden import Case, Value, Values, every_setting, runs
from pcdet_ext.conformance.nuscenes_release import INFO_SWEEPS, Release, release_of
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.data.geometry import boxes_in_range, points_in_range
from pcdet_ext.data.nuscenes import Frame, NuScenesEvaluator, Pose
from pcdet_ext.data.nuscenes.points import POINT_FEATURES
from pcdet_ext.data.nuscenes.prepare import targets_of
from pcdet_ext.data.nuscenes.submission import META, submission
from pcdet_ext.data.objects import Objects
from pcdet_ext.data.prepare import RawFrame, cut_objects
from pcdet_ext.evaluation.nuscenes_truth import detection_truth
from pcdet_ext.interop.settings import only_known, skip
from pcdet_ext.ops import voxelize
from pcdet_ext.structures import Array, Detections, Sample, Targets

PUBLISHED = POINT_FEATURES[:5]  # the ring is dropped
# nuscenes_dataset.yaml of OpenPCDet; the last one is LION's
DEFAULTS = {
    "MAX_SWEEPS": 10,
    "FILTER_MIN_POINTS_IN_GT": 1,
    "PRED_VELOCITY": True,
    "SET_NAN_VELOCITY_TO_ZEROS": True,
    "POINT_CLOUD_RANGE": [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0],
    "MASK_Z": False,
}


@runs("data", "nuscenes_infos")
@every_setting
def run_infos(case: Case, grads: bool) -> Values:
    """What the tables say of every key frame."""
    release = release_of(case, case.config["max_sweeps"])
    cameras = release.source.tables.cameras()
    values: dict[str, Value] = {}
    for split, frames in release.splits.items():
        for i, frame in enumerate(frames):
            for name, value in _info_arrays(frame, release.source.max_sweeps - 1).items():
                values[f"out.{split}.{i}.{name}"] = value
            values[f"out.{split}.{i}.cam_intrinsic"] = np.array(cameras[frame.token][1])
    texts = {
        split: [_info_texts(frame, release.source.max_sweeps - 1, cameras[frame.token][0]) for frame in frames]
        for split, frames in release.splits.items()
    }
    return {**values, "expected": texts}


def _info_arrays(frame: Frame, count: int) -> dict[str, Array]:
    objects = frame.objects
    sweeps = frame.padded(count)
    none = np.full((4, 4), np.nan)
    moves = [none if sweep.transform is None else sweep.transform for sweep in sweeps]
    arrays = {
        "ref_from_car": np.linalg.inv(frame.sensor.matrix),
        "car_from_global": np.linalg.inv(frame.ego.matrix),
        "sweep_transform_matrix": np.array(moves).reshape(-1, 4, 4),
    }
    if objects is None:
        return arrays
    return arrays | {
        "gt_boxes": objects.boxes,
        "gt_boxes_velocity": np.column_stack([objects.boxes[:, 7:], objects.rise]),
        "gt_names": np.array(objects.names),
        "gt_boxes_token": np.array(objects.tokens),
        "num_lidar_pts": objects.lidar_points,
        "num_radar_pts": objects.radar_points,
    }


def _info_texts(frame: Frame, count: int, camera: str) -> dict[str, Any]:
    sweeps = [
        {
            "lidar_path": sweep.file,
            "sample_data_token": sweep.token,
            "time_lag": sweep.lag,
            "has_transform": sweep.transform is not None,
        }
        for sweep in frame.padded(count)
    ]
    return {
        "token": frame.token,
        "lidar_path": frame.file,
        "cam_front_path": camera,
        "timestamp": frame.timestamp,
        "sweeps": sweeps,
    }


@runs("data", "nuscenes_sweeps")
@every_setting
def run_sweeps(case: Case, grads: bool) -> Values:
    """Key frames joined with the sweeps that were drawn."""
    release = release_of(case, case.config["info_max_sweeps"])
    values = {}
    for i, call in enumerate(case.config["calls"]):
        skip(call, *NOTED)
        rng = RecordedDraws([case.arrays[f"mid.{i}.sweep_choice"]])
        values[f"out.{i}.points"] = _joined(release, release.frame(call["token"]), call["max_sweeps"], rng)
    return values


def _joined(release: Release, frame: Frame, max_sweeps: int, rng: RecordedDraws) -> Array:
    return release.points(frame, rng.choice(release.source.max_sweeps - 1, max_sweeps - 1, replace=False))


@runs("data", "nuscenes_sample")
@every_setting
def run_sample(case: Case, grads: bool) -> Values:
    """What a network is given, in testing and in training, with the recorded draws."""
    release, training = release_of(case), case.config["mode"] == "train"
    only_known("nuscenes_sample", case.config, {"dataset_config": "nuscenes_dataset.yaml"})
    skip(case.config, "DATA_AUGMENTOR", "database")  # in testing
    steps = active_steps(case.config.get("DATA_AUGMENTOR")) if training else []
    sampling = [step for step in steps if step["NAME"] == "gt_sampling"]
    sampler = _sampler(case, sampling[0]) if sampling else None
    values: dict[str, Value] = {}
    for i, call in enumerate(case.config["samples"]):
        rng = RecordedDraws(draws_of(case, f"mid.{i}"))
        skip(call, *NOTED, "frame_id")
        only_known("samples", call, {"use_lead_xyz": True})
        options = changed(changed(DEFAULTS, _own(case.config)), call.get("overrides", {}))
        sample = _raw_sample(release, call["token"], options, rng)
        matrix = np.eye(4)
        for step in steps:
            if step["NAME"] == "gt_sampling" and sampler is not None:
                sample = sampler.paste(sample, rng)
            else:
                sample, own = _moved(sample, step, rng)
                matrix[:3, :3] = own[:3, :3] @ matrix[:3, :3]
                matrix[:3, 3] += own[:3, 3]  # never turned nor scaled, whatever comes after it
        if training:
            sample = augment.wrap_headings(sample)
            values[f"out.{i}.lidar_aug_matrix"] = matrix
        sample = augment.keep_classes(sample, case.config["CLASS_NAMES"])
        sample = _in_range(sample, options, training)
        sample = sample.select_points(rng.permutation(len(sample.points)))
        values[f"out.{i}.points"] = sample.points
        values[f"out.{i}.gt_boxes"] = _published_boxes(_targets(sample), options)
        if i == 0 and "VOXEL_SIZE" in case.config:
            values |= _voxels(sample.points, case.config, options["POINT_CLOUD_RANGE"])
    return values


def _own(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in DEFAULTS if name in config}


def _sampler(case: Case, step: Mapping[str, Any]) -> PublishedSampler:
    """The published sampler with the objects of the database case that a case names."""
    by_class: dict[str, list[_Entry]] = {}
    for entry in _database(Case.read(case.path.with_name(f"{case.config['database']}.json"))):
        by_class.setdefault(entry.name, []).append(entry)
    return PublishedSampler(step, case.config["CLASS_NAMES"], {name: _objects(own) for name, own in by_class.items()})


def _raw_sample(release: Release, token: str, options: Mapping[str, Any], rng: RecordedDraws) -> Sample:
    frame = release.frame(token)
    if frame.objects is None:
        raise ValueError(f"{token} has no annotations")
    targets = targets_of(frame.objects)
    if options["FILTER_MIN_POINTS_IN_GT"]:
        targets = targets.select(np.asarray(targets.num_points) >= options["FILTER_MIN_POINTS_IN_GT"])
    return Sample(_joined(release, frame, options["MAX_SWEEPS"], rng), PUBLISHED, token, targets)


def _moved(sample: Sample, step: Mapping[str, Any], rng: RecordedDraws) -> tuple[Sample, Array]:
    """The sample after one published step, and the motion of the scene as a matrix."""
    matrix = np.eye(4)
    skip(step, *DRAWN_FROM)
    match step["NAME"]:
        case "random_world_flip":
            for axis in step["ALONG_AXIS_LIST"]:
                if rng.value():
                    sample = augment.flip(sample, axis)
                    matrix = np.diag([1, -1, 1, 1] if axis == "x" else [-1, 1, 1, 1]) @ matrix
            if "y" not in step["ALONG_AXIS_LIST"]:
                matrix = np.eye(4)  # as published: flips are recorded where there are both
        case "random_world_rotation":
            angle = rng.value()
            sample = augment.rotate(sample, angle)
            matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        case "random_world_scaling":
            factor = rng.value()
            sample = augment.scale(sample, factor)
            matrix[:3, :3] *= factor
        case "random_world_translation":
            offset = np.array([rng.value() for _ in range(3)])
            sample = augment.translate(sample, offset)
            matrix[:3, 3] = offset
        case name:
            raise ValueError(f"no augmentation is named {name!r}")
    return sample, matrix


def _in_range(sample: Sample, options: Mapping[str, Any], training: bool) -> Sample:
    extent = options["POINT_CLOUD_RANGE"]
    sample = sample.select_points(points_in_range(sample.points, extent, options["MASK_Z"], closed=True))
    targets = _targets(sample)
    if training:
        inside = boxes_in_range(np.asarray(targets.boxes), extent, closed=True)
        sample = sample.replace(targets=targets.select(inside))
    return sample


def _published_boxes(targets: Targets, options: Mapping[str, Any]) -> Array:
    boxes = np.asarray(targets.boxes, np.float64)
    if options["SET_NAN_VELOCITY_TO_ZEROS"]:
        boxes = np.nan_to_num(boxes, nan=0.0)
    columns = 9 if options["PRED_VELOCITY"] else 7
    return np.column_stack([boxes[:, :columns], np.asarray(targets.labels) + 1])


def _voxels(points: Array, config: Mapping[str, Any], extent: Sequence[float]) -> dict[str, Value]:
    limits = config["MAX_POINTS_PER_VOXEL"], config["MAX_NUMBER_OF_VOXELS"]
    voxels, coords, counts = voxelize(torch.from_numpy(points), extent, config["VOXEL_SIZE"], *limits)
    return {
        "out.0.voxel_coords": coords,
        "out.0.voxel_num_points": counts,
        "out.0.voxel_first_rows": voxels[:200],
        "out.0.voxel_sums": voxels.double().sum(dim=(0, 1)),
    }


def _targets(sample: Sample) -> Targets:
    if sample.targets is None:
        raise ValueError("the sample has no targets")
    return sample.targets


@runs("data", "gt_database", dataset="nuscenes")
@every_setting
def run_database(case: Case, grads: bool) -> Values:
    """The objects of the training frames, grouped by class in the order of appearance."""
    skip(case.config, *NOTED)
    entries = _database(case)
    order = list(dict.fromkeys(entry.name for entry in entries))
    entries = sorted(entries, key=lambda entry: order.index(entry.name))
    folder = f"gt_database_{case.config['max_sweeps']}sweeps_withvelo"
    return {
        "out.name": np.array([entry.name for entry in entries]),
        "out.path": np.array([f"{folder}/{e.frame}_{e.name}_{e.box}.bin" for e in entries]),
        "out.image_idx": np.array([entry.frame for entry in entries]),
        "out.gt_idx": np.array([entry.box for entry in entries]),
        "out.box3d_lidar": np.array([entry.values for entry in entries]),
        "out.num_points_in_gt": np.array([len(entry.points) for entry in entries]),
        "out.points": np.concatenate([entry.points for entry in entries]),
        "out.offsets": np.cumsum([0, *(len(entry.points) for entry in entries)]),
    }


@dataclass(frozen=True, eq=False)
class _Entry:
    name: str
    frame: int
    box: int
    values: Array
    points: Array


def _database(case: Case) -> list[_Entry]:
    """Objects of the training frames, with the sweeps that the case drew, frame after frame."""
    release = release_of(case, max(INFO_SWEEPS, case.config["max_sweeps"]))
    used = case.config["used_classes"]
    entries = []
    for i, frame in enumerate(release.splits["train"]):
        if frame.objects is None:
            continue
        points = release.points(frame, case.arrays[f"mid.sweep_choice.{i}"])
        sample = Sample(points[:0], PUBLISHED, frame.token, targets_of(frame.objects))
        raw = RawFrame(sample, object_points=points, object_features=PUBLISHED, exclusive=True)
        for box, cloud in cut_objects(raw).items():
            name = frame.objects.names[box]
            if used is None or name in used:
                entries.append(_Entry(name, i, box, frame.objects.boxes[box], cloud))
    return entries


def _objects(entries: Sequence[_Entry]) -> Objects:
    return Objects(
        boxes=np.array([entry.values for entry in entries], np.float32),
        difficulty=np.zeros(len(entries), np.int64),
        offsets=np.cumsum([0, *(len(entry.points) for entry in entries)]),
        points=np.concatenate([entry.points for entry in entries]),
        point_features=PUBLISHED,
    )


@runs("data", "nuscenes_submission")
@every_setting
def run_submission(case: Case, grads: bool) -> Values:
    """Detections as a submission, and what it scores."""
    release, classes = release_of(case), tuple(case.config["CLASS_NAMES"])
    tokens = case.config["sample_tokens"]
    skip(case.config, "results_file")  # whose content the case holds

    def places(token: str) -> tuple[Pose, Pose]:
        frame = release.frame(token)
        return frame.sensor, frame.ego

    evaluator = NuScenesEvaluator(classes, places, lambda t: detection_truth(release.source.tables, t), tokens)
    for i, token in enumerate(tokens):
        boxes, scores, labels = (case.arrays[f"in.{i}.pred_{name}"] for name in ("boxes", "scores", "labels"))
        found = Detections(boxes, scores, labels - 1, classes, token)
        evaluator.add(Sample(np.zeros((0, 3), np.float32), ("x", "y", "z"), token), found)
    result = evaluator.result()
    if result is None:
        raise ValueError("the samples have no annotations")
    metrics = result.to_json()
    del metrics["curves"]
    errors = {
        name: {error: math.nan if value is None else value for error, value in of_class.items()}
        for name, of_class in metrics["label_tp_errors"].items()
    }
    content = submission({str(token): rows for token, (rows, _) in evaluator.state().items()}, tokens)
    return {"expected": {"metrics": {**metrics, "label_tp_errors": errors, "meta": META}, "results_file": content}}
