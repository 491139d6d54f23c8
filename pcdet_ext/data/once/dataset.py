"""Frames of a prepared folder of ONCE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pcdet_ext.config import Node, construct
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.once.results import OnceEvaluator, results_by_frame
from pcdet_ext.data.once.sequences import POINT_FEATURES, Frame, read_points
from pcdet_ext.evaluation.once import Config
from pcdet_ext.structures import Detections, Sample, Targets


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class OnceDataset(FrameDataset):
    """Frames of a prepared folder of ONCE; what every data set has is described at `FrameDataset`.

    Coordinates are those of the sensor, whose x points to the left and y to the back.
    """

    LAYOUT: ClassVar[str] = "once"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = POINT_FEATURES

    def read(self, info: FrameInfo) -> Sample:
        """A frame with all its points, and the labelled boxes of the index."""
        path = self.frame(info).points
        return Sample(
            points=self.check_points(read_points(path), info, path),
            point_features=POINT_FEATURES,
            frame_id=info.frame_id,
            targets=info.targets(),
            sequence_id=info.sequence_id,
            pose=info.pose,
            timestamp=info.timestamp,
        )

    def evaluator(self, options: Mapping[str, Any] | None = None) -> OnceEvaluator:
        """ONCE's metric of the frames: average precision by distance, for the classes of the data set.

        options: `superclass`, whether cars, buses and trucks are measured together as vehicles (True), `heading`,
        whether headings must agree (True), and `published`, see `evaluation.once.Config`.
        Raises ConfigError for other options, and for classes that ONCE does not have.
        """

        def once_metric(superclass: bool = True, heading: bool = True, published: bool = False) -> OnceEvaluator:
            return OnceEvaluator(Config(tuple(self.classes), superclass, heading, published), self._truth, self._frame)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(once_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """Results in JSON or in a pickle of ONCE's own tools; see `Dataset`."""
        return results_by_frame(Path(path), self.classes, map(self.frame, self.all_frames))

    def frame(self, info: FrameInfo) -> Frame:
        """The files of a frame."""
        return Frame(Path(self.root), info.sequence_id, info.extra["name"])

    def _frame(self, frame_id: str) -> Frame:
        return self.frame(self.all_frames[self.all_frames.find(frame_id)])

    def _truth(self, frame_id: str) -> Targets | None:
        """All labelled boxes of a frame, whatever the range and the classes of the data set."""
        return self.all_frames[self.all_frames.find(frame_id)].targets()
