"""Frames of a prepared folder of Argoverse 2's sensor data set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.config import ConfigError, Node, construct
from pcdet_ext.data.argoverse2.logs import ANNOTATIONS, FILE_FEATURES, POINT_FEATURES, Frame, read_points
from pcdet_ext.data.argoverse2.results import Argoverse2Evaluator, results_by_frame
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.waymo.sequences import NEAR, EarlierFrame, join
from pcdet_ext.evaluation.argoverse2 import Cuboids, Region
from pcdet_ext.evaluation.argoverse2_files import Regions, Sweep, read_logs
from pcdet_ext.structures import Array, Detections, Sample

AGE = "timestamp"  # seconds before the frame at which a point's sweep was
FURTHER_FEATURES = (*FILE_FEATURES[len(POINT_FEATURES) :], AGE)


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class Argoverse2Dataset(FrameDataset):
    """Sweeps of a prepared folder of Argoverse 2; what every data set has is described at `FrameDataset`.

    Coordinates are those of the vehicle at the time of the sweep. Classes are the categories of the files in small
    letters with a capital first one, as Regular_vehicle. Intensities are as in the files, from 0 to 255. Further
    columns that `point_features` can name: laser_number, offset_ns (nanoseconds since the start of the point's sweep)
    and timestamp (seconds by which the point's sweep is older than the frame).

    Args:
        max_sweeps: a sample has the points of so many sweeps, its own among them, moved to where the vehicle is now; at
            the start of a log there are fewer.
        near: points of earlier sweeps with |x| and |y| below it, in metres, are left out.
        min_points: counts what the annotations say of an object, in testing too; with 1, as published, objects that no
            beam met are left out.
    """

    max_sweeps: int = 1
    near: float = NEAR
    min_points: int = 1

    LAYOUT: ClassVar[str] = "argoverse2"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = POINT_FEATURES
    FURTHER_FEATURES: ClassVar[tuple[str, ...]] = FURTHER_FEATURES

    def __post_init__(self) -> None:
        if self.max_sweeps < 1 or not self.near >= 0:
            raise ValueError(f"max_sweeps must be at least 1 and near at least 0, got {self.max_sweeps}, {self.near}")
        super().__post_init__()

    def read(self, info: FrameInfo) -> Sample:
        """A frame with the points of all its sweeps, and the annotated boxes of the index."""
        pose = self._pose(info)
        earlier = self.previous(info, self.max_sweeps - 1)
        points, ages, _ = join(
            self._points(info),
            pose,
            [EarlierFrame(self._points(other), self._pose(other), i) for i, other in enumerate(earlier, 1)],
            self.near,
        )
        seconds = np.array([self._seconds_between(other, info) for other in (info, *earlier)], np.float32)
        return Sample(
            points=np.column_stack([points, seconds[ages]]),
            point_features=(*FILE_FEATURES, AGE),
            frame_id=info.frame_id,
            targets=info.targets(),
            sequence_id=info.sequence_id,
            pose=pose,
            timestamp=info.timestamp,
        )

    def evaluator(self, options: Mapping[str, Any] | None = None) -> Argoverse2Evaluator:
        """The official detection metric of the frames, over the classes of the data set.

        options: `max_range` in metres (150; LION and OpenPCDet: 200), `region`, whether boxes count within 5 m of
        drivable areas alone (by default where the logs have maps, as officially), `only_present`, whether classes that
        are not annotated in the frames are left out of the averages (False; OpenPCDet and LION: True), and
        `recall_samples` of the precision-recall curve (101).
        Raises ConfigError for other options, and for classes that the benchmark does not have.
        """

        def argoverse2_metric(
            max_range: float = 150.0,
            region: bool | None = None,
            only_present: bool = False,
            recall_samples: int = 101,
        ) -> Argoverse2Evaluator:
            return Argoverse2Evaluator(
                self.classes,
                self._sweep,
                lambda log: self._annotations(log).is_file(),
                self._truth,
                lambda sweeps: self._region(sweeps, region),
                max_range,
                recall_samples,
                only_present,
            )

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(argoverse2_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """A submission to the detection benchmark, a Feather file; see `Dataset`."""
        frames = {self.frame(info).sweep: info.frame_id for info in self.all_frames}
        return results_by_frame(Path(path), self.classes, frames)

    def frame(self, info: FrameInfo) -> Frame:
        """The files of a frame."""
        return Frame(Path(self.root), info.extra["folder"], info.sequence_id, info.extra["timestamp_ns"])

    def _points(self, info: FrameInfo) -> Array:
        path = self.frame(info).points
        return self.check_points(read_points(path), info, path)

    def _pose(self, info: FrameInfo) -> Array:
        if info.pose is None:
            raise ConfigError(f"{self.root}: frame {info.frame_id} has no pose in the index; prepare the data again")
        return info.pose

    def _seconds_between(self, earlier: FrameInfo, info: FrameInfo) -> float:
        """From whole nanoseconds, of which float64 seconds since 1970 would keep a fraction of a microsecond."""
        difference: int = info.extra["timestamp_ns"] - earlier.extra["timestamp_ns"]
        return difference * 1e-9

    def _sweep(self, frame_id: str) -> Sweep:
        return self.frame(self.all_frames[self.all_frames.find(frame_id)]).sweep

    def _folder(self) -> Path:
        """Of the split's logs."""
        return Path(self.root) / self.all_frames[0].extra["folder"]

    def _annotations(self, log: str) -> Path:
        return self._folder() / log / ANNOTATIONS

    def _truth(self, sweeps: Collection[Sweep]) -> tuple[Cuboids, list[Sweep]]:
        """The annotations of some sweeps of labelled logs as the files have them."""
        boxes, times = read_logs([self._annotations(log) for log in sorted({log for log, _ in sweeps})])
        wanted = set(sweeps)
        kept = [i for i, sweep in enumerate(times) if sweep in wanted]
        return boxes.select(np.array(kept, np.int64)), [times[i] for i in kept]

    def _region(self, sweeps: list[Sweep], wanted: bool | None) -> Region | None:
        """Where boxes of numbered sweeps count; None everywhere."""
        with_maps = all((self._folder() / log / "map").is_dir() for log, _ in sweeps)
        return Regions(self._folder(), sweeps) if (with_maps if wanted is None else wanted) else None
