"""Frames of a prepared folder in SemanticKITTI's layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.config import ConfigError, Node, construct, suggest
from pcdet_ext.data.base import DATASETS, FrameDataset, check_classes
from pcdet_ext.data.index import FrameInfo, FrameTable
from pcdet_ext.data.semantickitti.labels import LabelMap, read_labels
from pcdet_ext.data.semantickitti.results import PointLabelEvaluator, PointResults
from pcdet_ext.data.semantickitti.sequences import POINT_FEATURES, Frame, read_points
from pcdet_ext.evaluation.panoptic import MIN_POINTS
from pcdet_ext.files import MissingFileError
from pcdet_ext.structures import PointLabels, Sample, Targets


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class SemanticKittiDataset(FrameDataset):
    """Frames of a prepared folder in SemanticKITTI's layout, with a class and an object for each point.

    What every data set has is described at `FrameDataset`; there are no boxes, and `classes` are those of points.
    Points of ids that make none of them are not labelled (-1).

    label_ids: the ids in label files of each class, that of result files first; those of the published 19 classes
    without it. ignored_ids: ids of points that do not count (0, 1, 52 and 99 without it). things: the classes whose
    objects are told apart.
    Raises ConfigError for ids and classes that do not fit together, DataError for a label id that is not known.
    """

    label_ids: Mapping[str, Sequence[int]] | None = None
    ignored_ids: Sequence[int] | None = None
    things: Sequence[str] | None = None

    measures: ClassVar[type] = PointLabels
    LAYOUT: ClassVar[str] = "semantickitti"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = POINT_FEATURES

    def __post_init__(self) -> None:
        self.label_map = LabelMap.of(self.label_ids, self.ignored_ids, self.things)
        for name in self.classes:
            if name not in self.label_map.classes:
                raise ConfigError(f"classes: no label id is of {name!r}{suggest(name, self.label_map.classes)}")
        if self.balanced:
            raise ConfigError("balanced: frames are balanced by their labelled boxes, which this layout does not have")
        super().__post_init__()

    def check_classes(self) -> None:
        """Hold the classes against the labels of the index, by their numbers of points."""
        ids = ids_of(self.all_frames)
        numbers = self.label_map.class_numbers(np.array(list(ids), np.int64), self.classes, self.all_frames.path)
        counts: Counter[str] = Counter()
        for number, points in zip(numbers.tolist(), ids.values(), strict=True):
            if number >= 0:
                counts[self.classes[number]] += points
        check_classes(self.classes, counts, f"{self.root} ({self.split})", strict=self.training)

    def frame(self, info: FrameInfo) -> Frame:
        """The files of a frame."""
        return Frame(Path(self.root), info.sequence_id, info.extra["name"], info.labelled)

    def read(self, info: FrameInfo) -> Sample:
        """A frame with all its points, their labels and the rows that they have in the file."""
        frame = self.frame(info)
        points = self.check_points(read_points(frame.points), info, frame.points)
        return Sample(
            points,
            POINT_FEATURES,
            info.frame_id,
            self._targets(frame, len(points)),
            info.sequence_id,
            pose=info.pose,
            timestamp=info.timestamp,
            point_rows=np.arange(len(points)),
        )

    def evaluator(self, options: Mapping[str, Any] | None = None) -> PointLabelEvaluator:
        """Mean intersection over union, and where objects are told apart panoptic quality, over all points of files.

        options: `min_points`, of objects whose miss counts (50); `published`, whether to count as semantic-kitti-api
        does, see `PointLabelEvaluator`. Raises ConfigError for other options.
        """

        def point_metric(min_points: int = MIN_POINTS, published: bool = False) -> PointLabelEvaluator:
            return PointLabelEvaluator(self.label_map, self.classes, self._frame_of, self._sizes, min_points, published)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(point_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, PointLabels]:
        """Files sequences/NN/predictions/NAME.label below a folder; see `Dataset`."""
        frames = (self.frame(info) for info in self.frames)
        files = {f.frame_id: found for f in frames if (found := f.result(Path(path))).exists()}
        if not files:
            raise MissingFileError(
                f"{path}: no results (sequences/NN/predictions/*.label) for frames of {self.split!r}"
            )
        return PointResults(files, self.label_map, self.classes, self._sizes)

    def _targets(self, frame: Frame, points: int) -> Targets | None:
        if not frame.labelled:
            return None
        ids, instances = read_labels(frame.labels, points)
        labels = self.label_map.class_numbers(ids, self.classes, frame.labels)
        things = np.array([name in self.label_map.things for name in self.classes] + [False])
        return Targets(
            class_names=tuple(self.classes),
            point_labels=labels,
            point_instances=np.where(things[labels], instances, 0),  # the label -1 takes the last
        )

    def _frame_of(self, frame_id: str) -> Frame:
        return self.frame(self.all_frames[self.all_frames.find(frame_id)])

    def _sizes(self, frame_id: str) -> int:
        return self.all_frames[self.all_frames.find(frame_id)].num_points


def ids_of(frames: FrameTable) -> dict[int, int]:
    """How many points of an index have each label id."""
    counts: Counter[int] = Counter()
    for extra in frames.extras():
        counts.update({int(number): int(points) for number, points in extra["ids"].items()})
    return dict(sorted(counts.items()))
