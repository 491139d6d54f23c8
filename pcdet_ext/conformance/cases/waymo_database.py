"""Runners for the Waymo cases of object databases, and the sampling from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcdet_ext.conformance.cases.data_common import FEATURES, NOTED, Draws, PublishedSampler
from pcdet_ext.conformance.cases.openpcdet_data import CPU_MARGIN
from pcdet_ext.conformance.cases.waymo_recording import BASE, Recording
from pcdet_ext.conformance.golden import Case, Values, every_setting, runs
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.data.objects import Objects
from pcdet_ext.data.prepare import EXCLUSIVE_MARGIN
from pcdet_ext.data.waymo.frames import Frame
from pcdet_ext.data.waymo.prepare import thinned
from pcdet_ext.data.waymo.sequences import SECONDS_PER_FRAME
from pcdet_ext.interop.settings import skip
from pcdet_ext.structures import Array, Sample


@dataclass(frozen=True, eq=False)
class Entry:
    """An object of the database; cropped: the box that its points were in."""

    frame: Frame
    name: str
    index: int
    box: Array
    cropped: Array
    difficulty: int
    points: Array


@runs("data", "gt_database", dataset="waymo")
@every_setting
def run_database(case: Case, grads: bool) -> Values:
    """The objects of the training frames, grouped by class in the order of appearance."""
    config = case.config
    skip(config, *NOTED)
    if not config["multi_frame"]:
        skip(config, "SAMPLE_OFFSET_used")
    written = database(Recording(case), config)
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


def database(recording: Recording, config: Mapping[str, Any]) -> list[Entry]:
    """Objects of the classes in use, frame after frame."""
    options = dict(BASE)
    if config["multi_frame"]:
        options["SEQUENCE_CONFIG"] = {"ENABLED": True, "SAMPLE_OFFSET": config["SAMPLE_OFFSET_used"]}
    entries: list[Entry] = []
    for frame in recording.frames[:: config["sampled_interval"]]:
        entries += _objects_of(recording, frame, options, config)
    used = config["used_classes"]
    return [entry for entry in entries if used is None or entry.name in used]


def _objects_of(
    recording: Recording, frame: Frame, options: Mapping[str, Any], config: Mapping[str, Any]
) -> Iterator[Entry]:
    labels = recording.labels(frame)
    kept = np.flatnonzero(thinned(labels.names, frame.position))
    boxes, points = labels.boxes[kept], recording.cloud(frame, options)
    cropped = boxes
    if config["crop_gt_with_tail"] and config["multi_frame"]:  # a single frame has no tail
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
        yield Entry(frame, labels.names[row], i, boxes[i], cropped[i], difficulty, cloud)


def with_tail(boxes: Array, frames: int) -> Array:
    """Boxes [M, 9] grown backwards over the way that they took during so many frames."""
    oldest = boxes[:, :2] - boxes[:, 7:9] * frames * SECONDS_PER_FRAME
    grown = boxes.copy()
    grown[:, :2] = (oldest + boxes[:, :2]) / 2
    grown[:, 3] += np.linalg.norm(oldest - boxes[:, :2], axis=1)
    return grown


def sampler(case: Case, step: Mapping[str, Any]) -> Any:
    """OpenPCDet's sampling from the databases of the sampler's own info files, or the one that stands in for it."""
    skip(step, "BACKUP_DB_INFO")
    recording, by_class = Recording(case), dict[str, list[Entry]]()
    for name in step["DB_INFO_PATH"]:
        for entry in database(recording, _database_config(name, case.config["CLASS_NAMES"])):
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


def _database_config(name: str, classes: Sequence[str]) -> dict[str, Any]:
    """How a database was made, which the name of its info file tells."""
    several = "multiframe_" in name
    offset = [int(n) for n in name.partition("multiframe_")[2].partition(".")[0].split("_")[0::2]] if several else None
    return {
        "multi_frame": several,
        "SAMPLE_OFFSET_used": offset,
        "sampled_interval": int(name.partition("train_sampled_")[2].split("_")[0].removesuffix(".pkl")),
        "parallel_variant": False,
        "crop_gt_with_tail": False,
        "used_classes": classes,
    }


def _as_objects(entries: Sequence[Entry]) -> Objects:
    points = np.concatenate([entry.points for entry in entries])
    return Objects(
        np.array([entry.box for entry in entries]),
        np.array([entry.difficulty for entry in entries], np.int64),
        np.cumsum([0, *(len(entry.points) for entry in entries)]),
        points,
        point_features=FEATURES[: points.shape[1]],
    )
