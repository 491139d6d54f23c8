"""Runners for the Waymo cases of published data pipelines: from files to samples, databases and the metric's input."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.conformance.cases.data_common import FEATURES, PublishedSampler, draws_of
from pcdet_ext.conformance.cases.openpcdet_data import CPU_MARGIN
from pcdet_ext.conformance.golden import Case, Report, Value, Values, runs
from pcdet_ext.conformance.waymo_published import PredictedFrame, label_columns, moved_as_published, roi_table
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.data.base import with_tanh
from pcdet_ext.data.geometry import boxes_in_range, inside_boxes, points_in_range, wrap_angle
from pcdet_ext.data.objects import Objects
from pcdet_ext.data.prepare import EXCLUSIVE_MARGIN
from pcdet_ext.data.waymo.dataset import OUTSIDE_ZONES
from pcdet_ext.data.waymo.frames import TYPES, Frame, Labels
from pcdet_ext.data.waymo.parquet import ParquetLayout, Segment, open_segment
from pcdet_ext.data.waymo.prepare import thinned
from pcdet_ext.data.waymo.processed import ProcessedLayout, read_infos
from pcdet_ext.data.waymo.sequences import SECONDS_PER_FRAME, EarlierFrame, join
from pcdet_ext.evaluation.waymo import Objects as Evaluated
from pcdet_ext.evaluation.waymo import openpcdet_objects
from pcdet_ext.ops import voxelize
from pcdet_ext.structures import Array, Sample, Targets

EXPECTED_POINTS = "expected_points.npz"  # makes a folder of Parquet components a case
POINT_TOLERANCE = 5e-3  # metres: the official arithmetic is in float32
# What the published configurations say that the cases start from.
BASE = {
    "POINT_CLOUD_RANGE": [-75.2, -75.2, -2, 75.2, 75.2, 4],
    "FILTER_EMPTY_BOXES_FOR_TRAIN": True,
    "DISABLE_NLZ_FLAG_ON_POINTS": True,
    "POINTS_TANH_DIM": [3],
    "SEQUENCE_CONFIG": None,
    "TRAIN_WITH_SPEED": False,
    "VOXEL_SIZE": [0.1, 0.1, 0.15],
    "MAX_POINTS_PER_VOXEL": 5,
    "MAX_NUMBER_OF_VOXELS": 150000,
}
PUBLISHED = {
    "waymo_dataset.yaml": BASE,
    "waymo_dataset_multiframe.yaml": {
        **BASE,
        "SEQUENCE_CONFIG": {"ENABLED": True, "SAMPLE_OFFSET": [-3, 0]},
        "TRAIN_WITH_SPEED": True,
    },
}


class Recording:
    """The processed frames beside a case, by id; with the published ways to read their points."""

    def __init__(self, case: Case, split: str = "train") -> None:
        self.layout = ProcessedLayout(case.path.parent / "waymo")
        self.frames = self.layout.find(split)
        self._by_id = {frame.frame_id: frame for frame in self.frames}
        self._by_place = {(frame.sequence, frame.number): frame for frame in self.frames}

    def frame(self, frame_id: str) -> Frame:
        """The frame of an id."""
        return self._by_id[frame_id]

    def points(self, frame: Frame, options: Mapping[str, Any]) -> Array:
        """Points [N, 5] of one frame."""
        points = self.layout.points(frame)
        if not options["DISABLE_NLZ_FLAG_ON_POINTS"]:
            points = points[points[:, 5] == OUTSIDE_ZONES]
        names = [FEATURES[column] for column in options["POINTS_TANH_DIM"] or [3]]
        return with_tanh(Sample(points[:, :5], FEATURES[:5], frame.frame_id), names).points

    def past(self, frame: Frame, offset: Sequence[int]) -> list[Frame]:
        """The frames of SAMPLE_OFFSET before a frame, nearest first; at the start the first one again."""
        first, last = offset
        numbers = np.clip(np.arange(frame.number + first, frame.number + last), 0, None)[::-1]
        return [self._by_place[frame.sequence, int(number)] for number in numbers]

    def joined(self, frame: Frame, options: Mapping[str, Any]) -> tuple[Array, Array, list[Frame]]:
        """Points [N, 6 or more] of a frame and those before, the number of each, and the frames before."""
        sequence = options["SEQUENCE_CONFIG"]
        past = self.past(frame, sequence["SAMPLE_OFFSET"])
        earlier = [EarlierFrame(self.points(f, options), self.layout.pose(f), frame.number - f.number) for f in past]
        pose = self.layout.pose(frame)
        points, age, counts = join(self.points(frame, options), pose, earlier, move=moved_as_published)
        columns = (age * SECONDS_PER_FRAME).astype(np.float32)[:, None]
        if sequence.get("ONEHOT_TIMESTAMP"):
            columns = np.repeat(np.eye(len(counts), dtype=np.float32), counts, axis=0)
        return np.concatenate([points, columns], axis=1), counts, past

    def cloud(self, frame: Frame, options: Mapping[str, Any]) -> Array:
        """The points that a sample starts from, of one frame or of several."""
        sequence = options["SEQUENCE_CONFIG"]
        several = sequence is not None and sequence.get("ENABLED", True)
        return self.joined(frame, options)[0] if several else self.points(frame, options)

    def poses(self, frames: Sequence[Frame]) -> Array:
        """float32 [4 n, 4]."""
        return np.concatenate([self.layout.pose(frame) for frame in frames]).astype(np.float32)

    def labels(self, frame: Frame) -> Labels:
        """The labelled objects."""
        labels = self.layout.labels(frame)
        if labels is None:
            raise ValueError(f"{frame.frame_id} has no labels")
        return labels


def options_of(name: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A published configuration with a case's changes."""
    return {**PUBLISHED[name], **overrides}


@runs("data", "waymo_process")
def run_process(case: Case, grads: bool) -> Values:
    """What conversion says of each frame: from Parquet components where the case has them, else from its pickle."""
    recording = Recording(case)
    root = case.path.parent / "waymo_v2"
    segments = ParquetLayout(root) if ParquetLayout.is_at(root) else None
    known = {} if segments is None else {(f.context, f.timestamp_micros): f for f in segments.find("train")}
    values: dict[str, Value] = {}
    infos = []
    for i, frame in enumerate(recording.frames):
        info = _info(recording, frame)
        annotations = info["annos"]
        other = known.get((frame.context, frame.timestamp_micros))
        if other is not None:
            segment = open_segment(root / other.folder, other.sequence)
            annotations = _annotations(segment, other.timestamp_micros)
            info = {**info, "pose": segment.pose(other.timestamp_micros), **_counts(segment, other.timestamp_micros)}
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


def _counts(segment: Segment, time: int) -> dict[str, Any]:
    counts: Counter[int] = Counter()
    for laser, _, points in segment.returns(time):
        counts[laser] += len(points)
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
def run_points(case: Case, grads: bool) -> Values:
    """Points of single frames."""
    recording = Recording(case)
    values = {}
    for i, call in enumerate(case.config["calls"]):
        options = {**BASE, **call["overrides"]}
        values[f"out.{i}.points"] = recording.points(recording.frame(call["frame"]), options)
    return values


@runs("data", "waymo_frames")
def run_frames(case: Case, grads: bool) -> Values:
    """The frames of each split and interval, whose names stand nowhere else than in the answer."""
    frames = {}
    for key in case.expected()["frames"]:
        mode, _, interval = key.partition("/")
        found = Recording(case, Path(case.config["splits"][mode]).stem).frames
        frames[key] = [frame.frame_id for frame in found[:: int(interval)]]
    return {"expected": {"frames": frames}}


@runs("data", "waymo_sequence")
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
def run_sample(case: Case, grads: bool) -> Values:
    """Samples as they go into a network, with the recorded draws."""
    config = case.config
    recording = Recording(case)
    augmentation = config.get("DATA_AUGMENTOR") or {"AUG_CONFIG_LIST": [], "DISABLE_AUG_LIST": []}
    steps = [s for s in augmentation["AUG_CONFIG_LIST"] if s["NAME"] not in augmentation["DISABLE_AUG_LIST"]]
    samplers = {s["NAME"]: _sampler(case, s) for s in steps if s["NAME"] == "gt_sampling"}
    values: dict[str, Value] = {}
    for i, call in enumerate(config["samples"]):
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
        sample = _in_range(sample, options["POINT_CLOUD_RANGE"], training).select_points(draws.next())
        values |= _network_input(sample, options, f"out.{i}")
        if f"out.{i}.poses" in case.arrays:
            past = recording.past(frame, options["SEQUENCE_CONFIG"]["SAMPLE_OFFSET"])
            values[f"out.{i}.poses"] = recording.poses([frame, *past])
    return values


class Draws(np.random.Generator):
    """What a published program has drawn, in its order, whoever asks next."""

    def __init__(self, draws: Sequence[Array]) -> None:
        super().__init__(np.random.PCG64(0))
        self._draws = deque(draws)

    def next(self) -> Array:
        """The next draw."""
        return self._draws.popleft()

    def permutation(self, x: Any, axis: int = 0) -> Any:
        """The next draw, which must be a permutation of range(x)."""
        drawn = self.next()
        if not np.array_equal(np.sort(drawn), np.arange(x)):
            raise ValueError(f"the next draw is no permutation of {x} numbers")
        return drawn


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


def _in_range(sample: Sample, extent: Sequence[float], training: bool) -> Sample:
    sample = sample.select_points(points_in_range(sample.points, extent, closed=True))
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


@dataclass(frozen=True, eq=False)
class _Entry:
    """An object of the database; cropped: the box that its points were in."""

    frame: Frame
    name: str
    index: int
    box: Array
    cropped: Array
    difficulty: int
    points: Array


@runs("data", "gt_database", dataset="waymo")
def run_database(case: Case, grads: bool) -> Values:
    """The objects of the training frames, grouped by class in the order of appearance."""
    config = case.config
    written = _database(Recording(case), config)
    ends = np.cumsum([0, *(len(entry.points) for entry in written)])
    offsets = {id(entry): (ends[i], ends[i + 1]) for i, entry in enumerate(written)}
    order = list(dict.fromkeys(entry.name for entry in written))
    entries = sorted(written, key=lambda entry: order.index(entry.name))
    folder = config["info_file"].removesuffix(".pkl").replace("waymo_dbinfos", "gt_database")
    counts = [len(entry.points) for entry in entries]
    return {
        "out.name": np.array([entry.name for entry in entries]),
        "out.path": np.array(
            [f"{folder}/{e.frame.sequence}_{e.frame.number:04d}_{e.name}_{e.index}.bin" for e in entries]
        ),
        "out.sequence_name": np.array([entry.frame.sequence for entry in entries]),
        "out.sample_idx": np.array([entry.frame.number for entry in entries]),
        "out.gt_idx": np.array([entry.index for entry in entries]),
        "out.num_points_in_gt": np.array(counts),
        "out.difficulty": np.array([entry.difficulty for entry in entries]),
        "out.box3d_lidar": np.array([entry.box for entry in entries]),
        "out.box3d_crop": np.array([entry.cropped for entry in entries]),
        "out.global_data_offset": np.array([offsets[id(entry)] for entry in entries]),
        "out.points": np.concatenate([entry.points for entry in entries]),
        "out.offsets": np.cumsum([0, *counts]),
    }


def _database(recording: Recording, config: Mapping[str, Any]) -> list[_Entry]:
    """Objects of the classes in use, frame after frame."""
    options = dict(BASE)
    if config["multi_frame"]:
        options["SEQUENCE_CONFIG"] = {"ENABLED": True, "SAMPLE_OFFSET": config["SAMPLE_OFFSET_used"]}
    entries: list[_Entry] = []
    for frame in recording.frames[:: config["sampled_interval"]]:
        entries += _objects_of(recording, frame, options, config)
    used = config["used_classes"]
    return [entry for entry in entries if used is None or entry.name in used]


def _objects_of(
    recording: Recording, frame: Frame, options: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[_Entry]:
    labels = recording.labels(frame)
    kept = np.flatnonzero(thinned(labels.names, frame.position))
    boxes, points = labels.boxes[kept], recording.cloud(frame, options)
    cropped = boxes
    if config["crop_gt_with_tail"]:
        first, last = config["SAMPLE_OFFSET_used"]
        cropped = with_tail(boxes, last - first)
    margin = CPU_MARGIN if config["parallel_variant"] else EXCLUSIVE_MARGIN
    inside = inside_boxes(points, cropped.astype(np.float32), margin)
    if not config["parallel_variant"]:
        inside &= np.cumsum(inside, axis=0) == 1
    for i, row in enumerate(kept):
        cloud = points[inside[i]]
        cloud[:, :3] -= boxes[i, :3]
        difficulty = int(labels.difficulty[row])
        yield _Entry(frame, labels.names[row], i, boxes[i], cropped[i], difficulty, cloud)


def with_tail(boxes: Array, frames: int) -> Array:
    """Boxes [M, 9] grown backwards over the way that they took during so many frames."""
    oldest = boxes[:, :2] - boxes[:, 7:9] * frames * SECONDS_PER_FRAME
    grown = boxes.copy()
    grown[:, :2] = (oldest + boxes[:, :2]) / 2
    grown[:, 3] += np.linalg.norm(oldest - boxes[:, :2], axis=1)
    return grown


def _sampler(case: Case, step: Mapping[str, Any]) -> Any:
    """OpenPCDet's sampling from the database of the sampler's own info file, or the one that stands in for it."""
    config = _database_config(case, step)
    by_class: dict[str, list[_Entry]] = {}
    for entry in _database(Recording(case), config):
        by_class.setdefault(entry.name, []).append(entry)
    objects = {name: _as_objects(entries) for name, entries in by_class.items()}
    samplers: dict[int, PublishedSampler] = {}

    def sample_objects(sample: Sample, draws: Draws) -> Sample:
        columns = 7 if sample.targets is None else np.asarray(sample.targets.boxes).shape[1]
        if columns not in samplers:
            cut = {name: Objects(**{**vars(o), "boxes": o.boxes[:, :columns]}) for name, o in objects.items()}
            samplers[columns] = PublishedSampler(step, case.config["CLASS_NAMES"], cut)
        return samplers[columns].paste(sample, draws)

    return sample_objects


def _database_config(case: Case, step: Mapping[str, Any]) -> dict[str, Any]:
    """How the database was made that a sampler names, which its file name tells."""
    name = step["DB_INFO_PATH"][0]
    several = "multiframe_" in name
    offset = [int(n) for n in name.partition("multiframe_")[2].partition(".")[0].split("_")[0::2]] if several else None
    return {
        "multi_frame": several,
        "SAMPLE_OFFSET_used": offset,
        "sampled_interval": int(name.partition("train_sampled_")[2].split("_")[0].removesuffix(".pkl")),
        "parallel_variant": False,
        "crop_gt_with_tail": False,
        "used_classes": case.config["CLASS_NAMES"],
    }


def _as_objects(entries: Sequence[_Entry]) -> Objects:
    points = np.concatenate([entry.points for entry in entries])
    return Objects(
        np.array([entry.box for entry in entries]),
        np.array([entry.difficulty for entry in entries], np.int64),
        np.cumsum([0, *(len(entry.points) for entry in entries)]),
        points,
        point_features=FEATURES[: points.shape[1]],
    )


@runs("data", "waymo_predictions")
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


def run_point_case(folder: Path) -> Report:
    """Every point of a folder of Parquet components, by frame, laser and return."""
    layout = ParquetLayout(folder)
    name, kind = f"{folder.parent.name}/{folder.name}", "waymo_v2"
    found: dict[str, Array] = {}
    for frame in layout.find("train"):
        segment = open_segment(folder / frame.folder, frame.sequence)
        for laser, number, points in segment.returns(frame.timestamp_micros):
            found[f"{frame.context}/{frame.timestamp_micros}/laser{laser}/return{number}"] = points
    worst, worst_key, compared = -1.0, "", 0
    with np.load(folder / EXPECTED_POINTS, allow_pickle=False) as archive:
        for key, expected in archive.items():
            place, _, what = key.rpartition("/")
            if place not in found:
                return Report(name, kind, "fail", message=f"{place} was not computed")
            error = _point_error(found.pop(place) if what == "no_label_zone" else found[place], what, expected)
            compared += 1
            if error > worst:
                worst, worst_key = error, key
    left = [place for place, points in found.items() if len(points)]
    if left:
        return Report(name, kind, "fail", message=f"{left[0]} is not expected")
    return Report(name, kind, "pass" if 0 <= worst <= 1 else "fail", worst, worst_key, compared)


def _point_error(points: Array, what: str, expected: Array) -> float:
    """Worst error in units of the tolerance; other columns than positions must be equal."""
    if len(points) != len(expected):
        return np.inf
    if what == "no_label_zone":
        return 0.0 if np.array_equal(points[:, 5], expected) else np.inf
    if not np.array_equal(points[:, 3:5], expected[:, 1:3]):
        return np.inf
    return float(np.abs(points[:, :3].astype(np.float64) - expected[:, 3:]).max(initial=0.0) / POINT_TOLERANCE)
