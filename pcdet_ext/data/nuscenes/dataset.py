"""Frames of a prepared folder of nuScenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.data.augment.steps import GroundTruthSampling
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.nuscenes.frames import Sweep, padded
from pcdet_ext.data.nuscenes.points import POINT_FEATURES, read_joined, read_scan
from pcdet_ext.data.nuscenes.poses import Pose
from pcdet_ext.data.nuscenes.results import NuScenesEvaluator, NuScenesResults
from pcdet_ext.data.nuscenes.scene_results import SceneEvaluator
from pcdet_ext.data.nuscenes.scene_targets import SceneOptions, SceneTargets, to_ego
from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.evaluation.nuscenes_tables import Tables
from pcdet_ext.evaluation.nuscenes_truth import detection_truth
from pcdet_ext.structures import Array, Detections, Predictions, Sample, Targets

NOWHERE = (0, 0, 0, 1, 0, 0, 0)  # a place that is the origin itself


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class NuScenesDataset(FrameDataset):
    """Frames of a prepared folder of nuScenes; what every data set has is described at `FrameDataset`.

    Coordinates are those of the lidar, whose y points forward. A frame has the scan of its key frame and of the sweeps
    before it, moved to where the vehicle is now; at the start of a scene the oldest one is repeated, as published.

    max_sweeps: scans in all, at most as many as the folder was prepared for. min_points: counts the key frame's own
    points, as the labels do, in testing too; with 1, as published, boxes that only a radar saw are left out. frame:
    with "ego" coordinates are those of the vehicle, whose x points forward, at the time of the scan. scene: what is
    wanted beside boxes, see `SceneOptions`.

    Raises:
        ConfigError: max_sweeps is more than what was prepared, or below 1; objects shall be pasted in another frame
            than they were cut out in; or something is wanted that is labelled in the frame of the vehicle alone.
    """

    max_sweeps: int = 10
    min_points: int = 1
    frame: Literal["lidar", "ego"] = "lidar"
    scene: Mapping[str, Any] | None = None

    LAYOUT: ClassVar[str] = "nuscenes"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = POINT_FEATURES

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frame != "lidar" and any(isinstance(step, GroundTruthSampling) for step in self.augmentations):
            raise ConfigError("data.frame: GroundTruthSampling pastes objects as the lidar saw them; use frame: lidar")
        self._known_truth: tuple[list[str], tuple[Boxes, Samples] | None] | None = None  # of the last metric
        self._scene = None if self.scene is None else self._scene_targets(self.scene)
        prepared = self.all_frames[0].extra["max_sweeps"]
        if not 1 <= self.max_sweeps <= prepared:
            raise ConfigError(
                f"max_sweeps must lie in [1, {prepared}], as {self.root} was prepared, got {self.max_sweeps}; "
                f"for more: pcdet prepare nuscenes --root {self.root} max_sweeps={self.max_sweeps}"
            )

    def read(self, info: FrameInfo) -> Sample:
        """A frame with the points of all its sweeps, and the labelled boxes of the index."""
        extra = info.extra
        key = Sweep(extra["file"], extra["lidar_token"])
        data = self._data(info)
        scan = self.check_points(read_scan(data, key.file, key.token), info, data / key.file)
        older = padded(key, [Sweep.from_json(sweep) for sweep in extra["sweeps"]], self.max_sweeps - 1)
        sample = Sample(
            points=read_joined(data, key, scan, older),
            point_features=POINT_FEATURES,
            frame_id=info.frame_id,
            targets=info.targets(),
            sequence_id=info.sequence_id,
            pose=info.pose,
            timestamp=info.timestamp,
        )
        labels = None if self._scene is None else self._scene.read(info)
        if labels is not None:
            sample = sample.replace(targets=(sample.targets or Targets()).replace(occupancy=labels))
        return sample if self.frame == "lidar" else to_ego(sample, Pose.of(extra["sensor"]))

    def _finish(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = super()._finish(sample, rng)
        if self._scene is None:
            return sample
        return self._scene.complete(sample, self.all_frames[self.all_frames.find(sample.frame_id)])

    def _scene_targets(self, section: Mapping[str, Any]) -> SceneTargets:
        options = construct(SceneOptions, section if isinstance(section, Node) else Node(section, "data.scene"))
        if options.needs_ego_frame and self.frame != "ego":
            raise ConfigError("data.scene: occupancy and plan are labelled in the frame of the vehicle: set frame: ego")
        first = self.all_frames[0]
        return SceneTargets(options, self.all_frames, self._data(first), self._tables(first), self._frame_pose)

    def _frame_pose(self, info: FrameInfo) -> Array:
        """From the frame of samples to the world, float64 [4, 4]."""
        sensor, ego = self._frame_places(info)
        return ego.matrix @ sensor.matrix

    @staticmethod
    def measured(data: Mapping[str, Any]) -> type:
        """What the metric of a data section takes of a detector: with `scene` everything that its heads find."""
        return Predictions if data.get("scene") is not None else Detections

    def evaluator(self, options: Mapping[str, Any] | None = None) -> NuScenesEvaluator | SceneEvaluator:
        """The nuScenes detection metric of the frames, with `scene` beside those of what is labelled. No options.

        Raises ConfigError for options, and for classes that nuScenes does not measure.
        """

        def nuscenes_metric() -> NuScenesEvaluator:
            return NuScenesEvaluator(self.classes, self._places, self._truth, self.all_frames.frame_ids)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        boxes = construct(nuscenes_metric, options)
        scene = self._scene
        if scene is None:
            return boxes
        table = self.all_frames

        def frame(token: str) -> FrameInfo:
            return table[table.find(token)]

        return SceneEvaluator(
            boxes,
            scene.options.layers,
            self._places,
            lambda token: scene.future_boxes(frame(token)),
            lambda token: frame(token).sequence_id,
        )

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """A submission (.json or .json.gz) to the detection or the tracking benchmark; see `Dataset`."""
        return NuScenesResults(Path(path), self.classes, self._pose, self.all_frames.frame_ids)

    def _places(self, token: str) -> tuple[Pose, Pose]:
        return self._frame_places(self.all_frames[self.all_frames.find(token)])

    def _frame_places(self, info: FrameInfo) -> tuple[Pose, Pose]:
        """Place of the frame of samples on the vehicle, and of the vehicle in the world."""
        ego = Pose.of(info.extra["ego"])
        return (Pose.of(info.extra["sensor"]) if self.frame == "lidar" else Pose.of(NOWHERE)), ego

    def _pose(self, token: str) -> Array:
        sensor, ego = self._places(token)
        return ego.matrix @ sensor.matrix

    def _truth(self, tokens: Sequence[str]) -> tuple[Boxes, Samples] | None:
        """What the tables say, as the official evaluation reads them; they are read when the metric is asked for."""
        if self._known_truth is None or self._known_truth[0] != list(tokens):
            tables = Tables(self._tables(self.all_frames[0]))
            truth = detection_truth(tables, tokens) if len(tables.annotation) else None
            self._known_truth = list(tokens), truth
        return self._known_truth[1]

    def _tables(self, info: FrameInfo) -> Path:
        return Path(self.root) / info.extra["tables"]

    def _data(self, info: FrameInfo) -> Path:
        return self._tables(info).parent
