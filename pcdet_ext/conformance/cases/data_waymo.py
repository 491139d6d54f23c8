"""Runners for the Waymo cases of published data pipelines: from files to samples, and to the metric's input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.conformance.cases.data_common import FEATURES, NOTED, Draws, active_steps, changed, draws_of
from pcdet_ext.conformance.cases.openpcdet_data import DRAWN_FROM
from pcdet_ext.conformance.cases.waymo_database import sampler
from pcdet_ext.conformance.cases.waymo_recording import BASE, Recording, options_of
from pcdet_ext.conformance.golden import Case, Value, Values, every_setting, runs
from pcdet_ext.conformance.waymo_published import PredictedFrame, label_columns, roi_table
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.data.geometry import boxes_in_range, points_in_range, wrap_angle
from pcdet_ext.data.waymo.frames import TYPES, Frame
from pcdet_ext.data.waymo.parquet import ParquetLayout, Segment, open_segment
from pcdet_ext.data.waymo.processed import read_infos
from pcdet_ext.data.waymo.sequences import SECONDS_PER_FRAME
from pcdet_ext.evaluation.waymo import openpcdet_objects
from pcdet_ext.evaluation.waymo_objects import Objects as Evaluated
from pcdet_ext.interop.settings import skip
from pcdet_ext.ops import voxelize
from pcdet_ext.structures import Array, Sample, Targets


@runs("data", "waymo_process")
@every_setting
def run_process(case: Case, grads: bool) -> Values:
    """What conversion says of each frame: from Parquet components where the case has them, else from its pickle."""
    recording = Recording(case)
    skip(case.config, "raw_files")  # what is beside the case was made from them
    interval, two_returns = case.config["sampled_interval"], case.config["use_two_returns"]
    root = case.path.parent / "waymo_v2"
    segments = ParquetLayout(root) if ParquetLayout.is_at(root) else None
    known = {} if segments is None else {(f.context, f.timestamp_micros): f for f in segments.find("train")}
    values: dict[str, Value] = {}
    infos = []
    for i, frame in enumerate(frame for frame in recording.frames if frame.number % interval == 0):
        info = _info(recording, frame)
        annotations = info["annos"]
        other = known.get((frame.context, frame.timestamp_micros))
        if other is not None:
            segment = open_segment(root / other.folder, other.sequence)
            annotations = _annotations(segment, other.timestamp_micros)
            counts = _counts(segment, other.timestamp_micros, two_returns)
            info = {**info, "pose": segment.pose(other.timestamp_micros), **counts}
        values |= {f"out.{i}.{name}": np.asarray(column) for name, column in annotations.items()}
        values[f"out.{i}.pose"] = np.asarray(info["pose"], np.float32)
        infos.append(
            {
                "frame_id": frame.frame_id,
                "lidar_sequence": frame.sequence,
                "sample_idx": frame.number,
                "metadata": {"context_name": frame.context, "timestamp_micros": frame.timestamp_micros},
                "image": {name: list(shape) for name, shape in info["image"].items()},
                "num_points_of_each_lidar": list(info["num_points_of_each_lidar"]),
            }
        )
    return {**values, "expected": {"infos": infos}}


def _info(recording: Recording, frame: Frame) -> dict[str, Any]:
    folder = recording.layout.root / frame.folder
    infos = read_infos(folder / f"{folder.name}.pkl")
    return dict(next(info for info in infos if info["frame_id"] == frame.frame_id))


def _counts(segment: Segment, time: int, two_returns: bool) -> dict[str, Any]:
    counts: Counter[int] = Counter()
    for laser, number, points in segment.returns(time):
        counts[laser] += len(points) if two_returns or number == 1 else 0
    return {"num_points_of_each_lidar": [counts[laser] for laser in sorted(counts)]}


def _annotations(segment: Segment, time: int) -> dict[str, Array]:
    """The labels of a frame as OpenPCDet names them."""
    labels = segment.labels(time)
    tracking, *motion = label_columns(
        segment, time, ("difficulty_level.tracking", "speed.x", "speed.y", "acceleration.x", "acceleration.y")
    )
    return {
        "name": np.array(labels.names),
        "difficulty": labels.difficulty,
        "dimensions": labels.boxes[:, 3:6],
        "location": labels.boxes[:, :3],
        "heading_angles": labels.boxes[:, 6],
        "obj_ids": np.array(labels.object_ids),
        "tracking_difficulty": tracking.astype(np.int64),
        "num_points_in_gt": labels.num_points,
        "speed_global": np.stack(motion[:2], axis=1),
        "accel_global": np.stack(motion[2:], axis=1),
        "gt_boxes_lidar": labels.boxes,
    }


@runs("data", "waymo_points")
@every_setting
def run_points(case: Case, grads: bool) -> Values:
    """Points of single frames."""
    skip(case.config, "dataset_config")  # a sentence about what the overrides start from
    recording = Recording(case)
    values = {}
    for i, call in enumerate(case.config["calls"]):
        skip(call, *NOTED)
        options = changed(BASE, call["overrides"])
        values[f"out.{i}.points"] = recording.points(recording.frame(call["frame"]), options)
    return values


@runs("data", "waymo_frames")
@every_setting
def run_frames(case: Case, grads: bool) -> Values:
    """The frames of each split and interval, whose names stand nowhere else than in the answer."""
    frames = {}
    for key in case.expected()["frames"]:
        mode, _, interval = key.partition("/")
        found = Recording(case, Path(case.config["splits"][mode]).stem).frames
        frames[key] = [frame.frame_id for frame in found[:: int(interval)]]
    return {"expected": {"frames": frames}}


@runs("data", "waymo_sequence")
@every_setting
def run_sequence(case: Case, grads: bool) -> Values:
    """Several frames joined."""
    recording = Recording(case)
    values: dict[str, Value] = {}
    for i, call in enumerate(case.config["calls"]):
        frame = recording.frame(call["frame"])
        points, counts, past = recording.joined(frame, options_of(case.config["dataset_config"], _own(call)))
        values[f"out.{i}.points"] = points
        values[f"out.{i}.num_points_all"] = counts.astype(np.int32)
        values[f"out.{i}.sample_idx_pre"] = np.array([f.number for f in past], np.int64)
        values[f"out.{i}.poses"] = recording.poses([frame, *past])
    return values


def _own(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "frame"}


@runs("data", "waymo_sample")
@every_setting
def run_sample(case: Case, grads: bool) -> Values:
    """Samples as they go into a network, with the recorded draws."""
    config = case.config
    recording = Recording(case)
    steps = active_steps(config.get("DATA_AUGMENTOR"))
    samplers = {s["NAME"]: sampler(case, s) for s in steps if s["NAME"] == "gt_sampling"}
    values: dict[str, Value] = {}
    for i, call in enumerate(config["samples"]):
        skip(call, *NOTED)
        overrides = {**config.get("overrides", {}), **call.get("overrides", {})}
        options = options_of(call.get("config", config.get("config")), overrides)
        training = call.get("mode", config.get("mode")) == "train"
        frame = recording.frame(call["frame_id"])
        draws = Draws(draws_of(case, f"mid.{i}"))
        sample = _raw_sample(recording, frame, options, training)
        if training:
            for step in steps:
                sample = _augmented(sample, step, draws, samplers)
            sample = augment.wrap_headings(sample)
        sample = augment.keep_classes(sample, config["CLASS_NAMES"])
        sample = _in_range(sample, options, training).select_points(draws.next())
        values |= _network_input(sample, options, f"out.{i}")
        if f"out.{i}.poses" in case.arrays:
            past = recording.past(frame, options["SEQUENCE_CONFIG"]["SAMPLE_OFFSET"])
            values[f"out.{i}.poses"] = recording.poses([frame, *past])
    return values


def _raw_sample(recording: Recording, frame: Frame, options: Mapping[str, Any], training: bool) -> Sample:
    labels = recording.labels(frame)
    boxes = labels.boxes if options["TRAIN_WITH_SPEED"] else labels.boxes[:, :7]
    targets = Targets.of_names(boxes, labels.names, num_points=labels.num_points, difficulty=labels.difficulty)
    if training and options["FILTER_EMPTY_BOXES_FOR_TRAIN"]:
        targets = targets.select(labels.num_points > 0)
    points = recording.cloud(frame, options)
    further = (f"feature {i}" for i in range(len(FEATURES), points.shape[1]))
    return Sample(points, (*FEATURES, *further)[: points.shape[1]], frame.frame_id, targets)


def _augmented(sample: Sample, step: Mapping[str, Any], draws: Draws, samplers: Mapping[str, Any]) -> Sample:
    skip(step, *DRAWN_FROM)
    match step["NAME"]:
        case "gt_sampling":
            return samplers["gt_sampling"](sample, draws)
        case "random_world_flip":
            for axis in step["ALONG_AXIS_LIST"]:
                sample = augment.flip(sample, axis) if draws.next() else sample
            return sample
        case "random_world_rotation":
            return augment.rotate(sample, float(draws.next()))
        case "random_world_scaling":
            return augment.scale(sample, float(draws.next()))
        case "random_world_translation":
            return augment.translate(sample, [float(draws.next().item()) for _ in range(3)])
        case name:
            raise ValueError(f"no augmentation is named {name!r}")


def _in_range(sample: Sample, options: Mapping[str, Any], training: bool) -> Sample:
    extent = options["POINT_CLOUD_RANGE"]
    sample = sample.select_points(points_in_range(sample.points, extent, options["MASK_Z"], closed=True))
    targets = sample.targets
    if not training or targets is None:
        return sample
    return sample.replace(targets=targets.select(boxes_in_range(np.asarray(targets.boxes), extent, closed=True)))


def _network_input(sample: Sample, options: Mapping[str, Any], key: str) -> dict[str, Value]:
    if sample.targets is None:
        raise ValueError("the sample has no targets")
    labels = np.asarray(sample.targets.labels) + 1
    limits = options["MAX_POINTS_PER_VOXEL"], options["MAX_NUMBER_OF_VOXELS"]
    points = torch.from_numpy(np.ascontiguousarray(sample.points))
    _, coords, counts = voxelize(points, options["POINT_CLOUD_RANGE"], options["VOXEL_SIZE"], *limits)
    return {
        f"{key}.points": sample.points,
        f"{key}.gt_boxes": np.column_stack([np.asarray(sample.targets.boxes), labels]),
        f"{key}.voxel_coords": coords,
        f"{key}.voxel_num_points": counts,
    }


@runs("data", "waymo_predictions")
@every_setting
def run_predictions(case: Case, grads: bool) -> Values:
    """Detections and labels as the metric takes them."""
    config = case.config
    recording = Recording(case, Path(config["split"]).stem)
    parts: dict[str, list[Array]] = {}
    for i, frame_id in enumerate(config["frames"]):
        boxes, labels, scores = (case.arrays[f"in.{i}.pred_{name}"] for name in ("boxes", "labels", "scores"))
        types = np.array([TYPES.index(config["CLASS_NAMES"][label - 1]) for label in labels], np.int64)
        own = recording.labels(recording.frame(frame_id))
        own_types = np.array([TYPES.index(name) for name in own.names], np.int64)
        found = Evaluated.predictions(np.full(len(boxes), i), types, boxes[:, :7].astype(np.float64), scores)
        truth = Evaluated.ground_truth(np.full(len(own_types), i), own_types, own.boxes[:, :7], own.difficulty)
        wanted = [TYPES.index(name) for name in config["CLASS_NAMES"]]
        for side, objects in zip(("gt", "pd"), openpcdet_objects(truth, found, own.num_points, wanted), strict=True):
            for name, column in _columns(objects).items():
                parts.setdefault(f"out.{side}_{name}", []).append(column)
    return {name: np.concatenate(columns) for name, columns in parts.items()}


def _columns(objects: Evaluated) -> dict[str, Array]:
    return {
        "frame": objects.frame,
        "box": np.column_stack([objects.boxes[:, :6], wrap_angle(objects.boxes[:, 6])]),
        "type": objects.type,
        "score": objects.score,
        "nlz": objects.in_no_label_zone,
        "difficulty": objects.difficulty,
    }


@runs("data", "waymo_pred_boxes")
@every_setting
def run_predicted_boxes(case: Case, grads: bool) -> Values:
    """Predicted boxes of frames and those before. OpenPCDet changes the velocities of a frame each time it is used."""
    config = case.config
    recording = Recording(case)
    place = {frame_id: i for i, frame_id in enumerate(config["frame_ids_of_predictions"])}
    uses: Counter[str] = Counter()
    values: dict[str, Value] = {}
    for i, frame_id in enumerate(config["calls_in_order"]):
        frame = recording.frame(frame_id)
        past = recording.past(frame, config["SAMPLE_OFFSET"])
        predicted = []
        for own in [frame, *past]:
            predicted.append(_predicted(case, recording, own, place[own.frame_id], uses[own.frame_id]))
            uses[own.frame_id] += 1
        boxes, scores, labels = roi_table(predicted)
        named = {"roi_boxes": boxes, "roi_scores": scores, "roi_labels": labels}
        values |= {f"out.{i}.{name}": value for name, value in named.items()}
        values[f"out.{i}.sample_idx_pre"] = np.array([f.number for f in past], np.int64)
    return values


def _predicted(case: Case, recording: Recording, frame: Frame, place: int, uses: int) -> PredictedFrame:
    names, boxes, scores = (case.arrays[f"in.{place}.{name}"] for name in ("name", "boxes_lidar", "score"))
    boxes = boxes.astype(np.float64)
    boxes[:, 7:] *= (-SECONDS_PER_FRAME) ** uses
    labels = np.array([case.config["CLASS_NAMES"].index(name) + 1 for name in names], np.int64)
    return PredictedFrame(boxes, scores, labels, recording.layout.pose(frame))
