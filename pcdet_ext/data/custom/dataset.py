"""Frames of a prepared folder of one's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.custom.clouds import Columns
from pcdet_ext.data.custom.motion import TIME, joined
from pcdet_ext.data.custom.results import CustomResults, write_results
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.evaluation.rotated import RotatedEvaluator
from pcdet_ext.structures import Array, Detections, Sample, Targets


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class CustomDataset(FrameDataset):
    """Frames of a prepared folder of one's own data; what every data set has is described at `FrameDataset`.

    point_features: x, y, z alone where they are not stated; intensity_scale: what the folder was prepared with, stated
    here so that a detector knows what it has to divide the intensity by; max_sweeps: scans joined to a frame, its own
    among them; with several, points have their age in a column `timestamp`, in seconds.
    Raises ConfigError where the folder was prepared with another scale or fewer scans.
    """

    intensity_scale: float = 1.0
    max_sweeps: int = 1

    LAYOUT: ClassVar[str] = "custom"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.columns = Columns.of_json(self.all_frames[0].extra["columns"])
        prepared = int(self.all_frames[0].extra["max_sweeps"])
        if not np.isclose(self.intensity_scale, self.columns.scale):
            raise ConfigError(
                f"data.intensity_scale: is {self.intensity_scale:g}, but the folder was prepared with "
                f"{self.columns.scale:g}; change dataset.yaml and prepare it again"
            )
        if not 1 <= self.max_sweeps <= prepared:
            raise ConfigError(
                f"data.max_sweeps: must lie in [1, {prepared}], as the folder was prepared, got {self.max_sweeps}; "
                "for more, change `max_sweeps` in dataset.yaml and prepare it again"
            )

    def available_features(self) -> tuple[str, ...]:
        """The columns of the folder's clouds, and with several sweeps the age of each point."""
        features = Columns.of_json(self.all_frames[0].extra["columns"]).features
        return (*features, TIME) if self.max_sweeps > 1 else features

    def read(self, info: FrameInfo) -> Sample:
        """A frame with all its points, those of earlier frames included, and the labelled boxes of the index."""
        path = Path(self.root) / info.extra["cloud"]
        points = self.check_points(self.columns.read(path), info, path)
        if self.max_sweeps > 1:
            earlier = info.extra["earlier"][: self.max_sweeps - 1]
            points = read_joined(Path(self.root), self.columns, points, earlier)
        return Sample(
            points,
            self.available_features(),
            info.frame_id,
            info.targets(),
            info.sequence_id,
            pose=info.pose,
            timestamp=info.timestamp,
        )

    def evaluator(self, options: Mapping[str, Any] | None = None) -> RotatedEvaluator:
        """Rotated AP40 per class, in bird's-eye view and 3-D; all labelled boxes of the classes count.

        options: `overlap`, the least intersection over union of a match for classes that shall have their own.
        Raises ConfigError for other options.
        """

        def rotated_metric(overlap: Mapping[str, float] | None = None) -> RotatedEvaluator:
            return RotatedEvaluator(self.classes, self._truth, write_results, self.frames.frame_ids, overlap)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(rotated_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """Result files `<frame id>.txt` or `.json` of a folder, or one of them; see `Dataset`."""
        return CustomResults(Path(path), self.classes)

    def _truth(self, sample: Sample) -> Targets | None:
        return self.all_frames[self.all_frames.find(sample.frame_id)].targets()


def read_joined(root: Path, columns: Columns, points: Array, earlier: Sequence[Mapping[str, Any]]) -> Array:
    """Points of a frame joined with those of earlier ones; see `motion.joined`.

    Args:
        root: the data folder.
        columns: of the clouds.
        points: float32 [P, F] of the frame.
        earlier: for each earlier frame its `cloud` (path below root), `matrix` (12 numbers, from its frame to this one)
            and `age` (seconds).

    Returns:
        float32 [N, F].
    """
    sweeps = []
    for sweep in earlier:
        matrix = np.vstack([np.reshape(sweep["matrix"], (3, 4)), (0, 0, 0, 1)])
        sweeps.append((columns.read(root / sweep["cloud"]), matrix, float(sweep["age"])))
    return joined(points, sweeps)
