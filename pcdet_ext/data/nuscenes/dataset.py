"""Frames of a prepared folder of nuScenes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.nuscenes.frames import Sweep, padded
from pcdet_ext.data.nuscenes.points import POINT_FEATURES, read_joined, read_scan
from pcdet_ext.data.nuscenes.poses import Pose
from pcdet_ext.data.nuscenes.results import NuScenesEvaluator, NuScenesResults
from pcdet_ext.evaluation.nuscenes import Boxes, Samples
from pcdet_ext.evaluation.nuscenes_tables import Tables
from pcdet_ext.evaluation.nuscenes_truth import detection_truth
from pcdet_ext.structures import Array, Detections, Sample


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class NuScenesDataset(FrameDataset):
    """Frames of a prepared folder of nuScenes; what every data set has is described at `FrameDataset`.

    Coordinates are those of the lidar, whose y points forward. A frame has the scan of its key frame and of the sweeps
    before it, moved to where the vehicle is now; at the start of a scene the oldest one is repeated, as published.

    max_sweeps: scans in all, at most as many as the folder was prepared for. min_points: counts the key frame's own
    points, as the labels do, in testing too; with 1, as published, boxes that only a radar saw are left out.

    Raises:
        ConfigError: max_sweeps is more than what was prepared, or below 1.
    """

    max_sweeps: int = 10
    min_points: int = 1

    LAYOUT: ClassVar[str] = "nuscenes"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = POINT_FEATURES

    def __post_init__(self) -> None:
        super().__post_init__()
        self._known_truth: tuple[list[str], tuple[Boxes, Samples] | None] | None = None  # of the last metric
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
        return Sample(
            points=read_joined(data, key, scan, older),
            point_features=POINT_FEATURES,
            frame_id=info.frame_id,
            targets=info.targets(),
            sequence_id=info.sequence_id,
            pose=info.pose,
            timestamp=info.timestamp,
        )

    def evaluator(self, options: Mapping[str, Any] | None = None) -> NuScenesEvaluator:
        """The nuScenes detection metric of the frames. It has no options.

        Raises ConfigError for options, and for classes that nuScenes does not measure.
        """

        def nuscenes_metric() -> NuScenesEvaluator:
            return NuScenesEvaluator(self.classes, self._places, self._truth, self.all_frames.frame_ids)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(nuscenes_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """A submission (.json or .json.gz) to the detection or the tracking benchmark; see `Dataset`."""
        return NuScenesResults(Path(path), self.classes, self._pose, self.all_frames.frame_ids)

    def _places(self, token: str) -> tuple[Pose, Pose]:
        extra = self.all_frames[self.all_frames.find(token)].extra
        return Pose.of(extra["sensor"]), Pose.of(extra["ego"])

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
