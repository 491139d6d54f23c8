"""Data sets: frames as samples, augmented in training, and samples joined to batches."""

from __future__ import annotations

import difflib
import logging
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from pcdet_ext.config import ConfigError, Node, Registry
from pcdet_ext.data.augment.steps import AUGMENTATIONS, keep_classes, wrap_headings
from pcdet_ext.files import DataError
from pcdet_ext.data.kitti import files as kitti
from pcdet_ext.data.geometry import boxes_in_range, finite_points, points_in_range
from pcdet_ext.data.index import FOLDER, FrameInfo, index_path, read_index
from pcdet_ext.data.objects import database_path
from pcdet_ext.structures import PointBatch, Sample, Targets

DATASETS = Registry("dataset")
MAX_REPLACEMENTS = 200  # frames tried for one sample before giving up
POINT_FEATURES = ("x", "y", "z", "intensity")
# Named in configs/datasets/, for the classes, ranges and features of models; their files cannot be read yet.
NOT_READ_YET = ("WaymoDataset", "NuScenesDataset", "Argoverse2Dataset", "OnceDataset")

_log = logging.getLogger(__name__)


@DATASETS.register
class KittiDataset(Dataset[Sample]):
    """Frames of a prepared folder in the KITTI layout.

    root: the data folder; index: where its preparation lies, `<root>/pcdet_ext` when None. repeat: how often an epoch
    goes through the frames. fov_only: keep only the points that the camera sees, as KITTI labels nothing else.
    min_points: labelled boxes with fewer points inside are left out. min_box_corners: a box counts as in range with so
    many of its 8 corners in x-y instead of its centre. mask_z: points are cropped in z too. on_error "skip": a damaged
    frame is logged and counted, and replaced (in training by another frame, else by an empty cloud).

    In training every sample has a box. Each sample depends on (seed, epoch, index) alone, so that it is the same with
    any number of workers. `counts` (of this process) tells dropped points and skipped frames.
    Raises DataError for missing or damaged files, ConfigError for a class that the data does not know.
    """

    def __init__(
        self,
        root: str,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        split: str = "train",
        training: bool = False,
        augment: Sequence[Mapping] = (),
        point_features: Sequence[str] = POINT_FEATURES,
        fov_only: bool = True,
        min_points: int = 0,
        min_box_corners: int | None = None,
        mask_z: bool = False,
        index: str | None = None,
        repeat: int = 1,
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.root = Path(root)
        self.classes = tuple(classes)
        self.point_cloud_range = tuple(float(v) for v in point_cloud_range)
        self.split, self.training, self.fov_only = split, training, fov_only
        self.min_points, self.min_box_corners, self.mask_z = min_points, min_box_corners, mask_z
        self.repeat, self.seed, self.on_error = repeat, seed, on_error
        self.counts: Counter[str] = Counter()
        self._columns = _feature_columns(point_features)
        # Shared memory: workers that live on see the epoch that the main process sets.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        folder = Path(index) if index else self.root / FOLDER
        self.frames = read_index(index_path(folder, split))
        _check_geometry(self.point_cloud_range, repeat)
        check_classes(self.classes, self.frames, f"{self.root} ({split})", strict=training)
        context = {"classes": self.classes, "database": database_path(folder, split)}
        self.augment = [AUGMENTATIONS.build(node, **context) for node in augment] if training else []

    def __len__(self) -> int:
        return len(self.frames) * self.repeat

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of this epoch from now on."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        if not self.training:
            return self._finish(self._read_or_skip(index) or self._blank(index))
        return self._training_sample(index)

    def frame(self, index: int) -> kitti.Frame:
        """The files of a sample."""
        info = self.frames[index % len(self.frames)]
        return kitti.Frame(self.root, info.frame_id, info.folder)

    def labels(self, index: int) -> kitti.Labels:
        """A sample's label file as it is, DontCare included, as evaluation wants it."""
        return kitti.read_labels(self.frame(index).labels, with_scores=False)

    def _training_sample(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, int(self._epoch), index))
        for _ in range(MAX_REPLACEMENTS):
            sample = self._read_or_skip(index)
            if sample is not None:
                for step in self.augment:
                    sample = step(sample, rng)
                sample = self._finish(sample)
                if sample.boxes is not None and len(sample.boxes):
                    return sample
                self.counts["samples without boxes"] += 1
            index = int(rng.integers(len(self)))
        raise DataError(
            f"{self.root} ({self.split}): {MAX_REPLACEMENTS} frames in a row have no box of {', '.join(self.classes)} "
            f"inside point_cloud_range {list(self.point_cloud_range)}"
        )

    def _read_or_skip(self, index: int) -> Sample | None:
        try:
            return self._read(index)
        except (DataError, OSError) as error:
            if self.on_error == "raise":
                raise
            self.counts["skipped frames"] += 1
            _log.warning("frame skipped: %s", error)
            return None

    def _read(self, index: int) -> Sample:
        info, frame = self.frames[index % len(self.frames)], self.frame(index)
        points = kitti.read_points(frame.points)
        if len(points) != info.num_points:
            raise DataError(f"{frame.points}: {len(points)} points where the index has {info.num_points}; changed?")
        points, dropped = finite_points(points)
        self.counts["points not finite"] += dropped
        calibration = kitti.Calibration.read(frame.calibration)
        if self.fov_only:
            points = points[kitti.in_image(points, calibration, info.image_size)]
        boxes = info.to_boxes()
        if boxes is not None:
            boxes = boxes.select(boxes.num_points >= self.min_points)
        return Sample(points, info.frame_id, boxes, calibration, info.image_size)

    def _blank(self, index: int) -> Sample:
        info = self.frames[index % len(self.frames)]
        points = np.zeros((0, len(POINT_FEATURES)), np.float32)
        return Sample(points, info.frame_id, info.to_boxes(), None, info.image_size)

    def _finish(self, sample: Sample) -> Sample:
        """Crop to the range, keep the configured features and classes, and bring headings into [-π, π)."""
        inside = points_in_range(sample.points, self.point_cloud_range, self.mask_z)
        sample = sample.replace(points=sample.points[inside][:, self._columns])
        sample = keep_classes(sample, self.classes)
        if self.training and sample.boxes is not None:
            inside = boxes_in_range(sample.boxes.boxes, self.point_cloud_range, self.min_box_corners)
            sample = sample.replace(boxes=sample.boxes.select(inside))
        return wrap_headings(sample)


class ConcatDataset(Dataset[Sample]):
    """Several data sets one after the other, with a common epoch."""

    def __init__(self, parts: Sequence[Any]) -> None:
        if not parts:
            raise ValueError("parts must hold at least one data set")
        self.parts = list(parts)
        self._ends = list(accumulate(len(part) for part in self.parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]

    def set_epoch(self, epoch: int) -> None:
        """Tell every part the epoch."""
        for part in self.parts:
            part.set_epoch(epoch)


def build_dataset(node: Mapping[str, Any], split: str, training: bool, seed: int = 0) -> Any:
    """The data set that a configuration's data section describes; in training its own `split` precedes the argument.

    In training, `sources` (a list of mappings) joins several: each has the section's own keys with those of the source
    put over them, so `{root: …, split: …, repeat: 5}` is enough (an `index` belongs to its root and is not taken over
    with another one). Without training, the section's root and the split asked for count alone.
    Raises ConfigError for wrong keys, DataError for missing data.
    """
    node = node if isinstance(node, Node) else Node(node)
    if node.get("name") in NOT_READ_YET:
        raise ConfigError(f"{node.where('name')}: files of a {node['name']} cannot be read yet, only KITTI's layout can")
    own = ("sources",) if training else ("sources", "split", "repeat")
    section = Node({k: v for k, v in node.items() if k not in own}, node.key_path, node.sources)
    sources = node.get("sources") if training else None
    if sources is None:
        return DATASETS.build(section, split=split, training=training, seed=seed)
    if not isinstance(sources, list) or not sources or not all(isinstance(s, Mapping) for s in sources):
        raise ConfigError(f"{node.where('sources')}: must be a list of mappings such as {{root: DIR, repeat: 2}}")
    parts = []
    for i, source in enumerate(sources):
        lines = {**section.sources, **getattr(source, "sources", {})}
        inherited = {k: v for k, v in section.items() if k != "index" or "root" not in source}
        merged = Node({**inherited, **source}, f"{node.key_path}.sources.{i}".lstrip("."), lines)
        # Each source draws its own numbers, also where two of them are the same folder.
        parts.append(DATASETS.build(merged, split=split, training=training, seed=seed + i))
    return ConcatDataset(parts)


def collate(samples: Sequence[Sample], classes: Sequence[str]) -> PointBatch:
    """Join samples to a batch; labels are positions in `classes`. Ground truth only where every sample has some."""
    number = {name: i for i, name in enumerate(classes)}
    batch = PointBatch.from_points([torch.from_numpy(np.ascontiguousarray(s.points)) for s in samples])
    batch = replace(batch, frame_ids=tuple(s.frame_id for s in samples))
    if any(s.boxes is None for s in samples):
        return batch
    names = tuple(classes)
    targets = []
    for sample in samples:
        labels = torch.tensor([number[n] for n in sample.boxes.names], dtype=torch.int64)
        targets.append(Targets(torch.from_numpy(sample.boxes.boxes), labels, names))
    return replace(batch, targets=tuple(targets))


def check_classes(classes: Sequence[str], frames: Sequence[FrameInfo], where: str, strict: bool) -> None:
    """Hold the configured classes against the labels of an index.

    A class that never occurs gives a warning; with `strict`, ConfigError when it looks like a misspelling of one that
    does, or when no class occurs at all.
    """
    known = {name for frame in frames for name in frame.names}
    absent = [name for name in classes if name not in known]
    if not absent or (not known and not strict):
        return
    spare = {name.lower(): name for name in known if name not in classes}
    for name in absent:
        close = difflib.get_close_matches(name.lower(), spare, n=1, cutoff=0.6)
        if close and strict:
            raise ConfigError(f"classes: {name!r} never occurs in {where}; did you mean {spare[close[0]]!r}?")
        _log.warning("class %r never occurs in %s; it has: %s", name, where, ", ".join(sorted(known)) or "no labels")
    if strict and len(absent) == len(classes):
        raise ConfigError(
            f"classes: none of {', '.join(classes)} occurs in {where}; it has: {', '.join(sorted(known))}"
        )


def _feature_columns(point_features: Sequence[str]) -> list[int]:
    features = list(point_features)
    if (
        features[:3] != ["x", "y", "z"]
        or not set(features) <= set(POINT_FEATURES)
        or len(set(features)) < len(features)
    ):
        raise ValueError(f"point_features must be x, y, z and optionally intensity, got {features}")
    return [POINT_FEATURES.index(name) for name in features]


def _check_geometry(point_cloud_range: Sequence[float], repeat: int) -> None:
    low, high = point_cloud_range[:3], point_cloud_range[3:]
    if len(point_cloud_range) != 6 or any(a >= b for a, b in zip(low, high, strict=True)):
        raise ValueError(f"point_cloud_range must be x, y, z minimum then maximum, got {list(point_cloud_range)}")
    if repeat < 1:
        raise ValueError(f"repeat must be at least 1, got {repeat}")
