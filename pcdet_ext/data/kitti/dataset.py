"""Frames of a prepared folder in the KITTI layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pcdet_ext.config import Node, construct
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.kitti.calibration import Calibration, check_image_size, in_image
from pcdet_ext.data.kitti.files import POINT_FEATURES, Frame, read_points
from pcdet_ext.data.kitti.labels import read_labels, result_rows
from pcdet_ext.data.kitti.results import KittiResults
from pcdet_ext.evaluation.kitti import KittiEvaluator
from pcdet_ext.evaluation.kitti_labels import Labels
from pcdet_ext.files import DataError
from pcdet_ext.structures import Detections, Sample


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class KittiDataset(FrameDataset):
    """Frames of a prepared folder in the KITTI layout; what every data set has is described at `FrameDataset`.

    fov_only: keep only the points that the camera sees, as KITTI labels nothing else. image_size: (height, width) in
    pixels of all images, where their files are not there or are not what the calibration is for; it counts before
    what preparation found.
    Raises DataError where the image size is needed but not known.
    """

    fov_only: bool = True
    image_size: Sequence[int] | None = None

    LAYOUT: ClassVar[str] = "kitti"
    POINT_FEATURES: ClassVar[tuple[str, ...]] = POINT_FEATURES

    def __post_init__(self) -> None:
        super().__post_init__()
        self.image_size = None if self.image_size is None else check_image_size(self.image_size)
        if self.fov_only:
            self._check_image_sizes("or data.fov_only: false keeps all points")

    def frame(self, info: FrameInfo) -> Frame:
        """The files of a frame."""
        return Frame(Path(self.root), info.frame_id, info.extra["folder"])

    def read(self, info: FrameInfo) -> Sample:
        """A frame with all its points, and the labelled boxes of the index."""
        frame = self.frame(info)
        points = self.check_points(read_points(frame.points), info, frame.points)
        calibration = self._sized(Calibration.read(frame.calibration), info)
        return Sample(points, POINT_FEATURES, info.frame_id, info.targets(), calibration=calibration)

    def crop(self, sample: Sample) -> Sample:
        """The points that the camera sees, where that is wanted."""
        return sample.select_points(in_image(sample.points, sample.calibration)) if self.fov_only else sample

    def evaluator(self, options: Mapping[str, Any] | None = None) -> KittiEvaluator:
        """KITTI's metric of the frames, for all classes of the data set.

        options: `overlap`, the least overlap of a match for each class that KITTI does not measure (default 0.5).
        Raises ConfigError for other options, DataError where an image size is not known.
        """

        def kitti_metric(overlap: Mapping[str, float] | None = None) -> KittiEvaluator:
            return KittiEvaluator(self.classes, self._labels, self._rows, self.all_frames.frame_ids, overlap)

        self._check_image_sizes("result files hold 2-D boxes")
        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(kitti_metric, options)

    def read_results(self, path: str | Path) -> Mapping[str, Detections]:
        """Result files `<frame id>.txt` of a folder, or one of them; see `Dataset`."""

        def calibration(frame_id: str) -> Calibration:
            return Calibration.read(self.frame(self._entry(frame_id)).calibration)

        return KittiResults(Path(path), self.classes, calibration)

    def _entry(self, frame_id: str) -> FrameInfo:
        return self.all_frames[self.all_frames.find(frame_id)]

    def _labels(self, sample: Sample) -> Labels | None:
        """A frame's label file as it is, DontCare included; None where the split has no labels."""
        info = self._entry(sample.frame_id)
        return read_labels(self.frame(info).labels, with_scores=False) if info.labelled else None

    def _rows(self, sample: Sample, detections: Detections) -> Labels:
        if sample.calibration is None:  # a damaged frame that the data set was to leave out
            return Labels.empty(scores=True)
        return result_rows(detections, sample.calibration)

    def _sized(self, calibration: Calibration, info: FrameInfo) -> Calibration:
        """The calibration with the size of the frame's image, if it is known."""
        size = self._image_size(info)
        if size is not None and not calibration.sees_its_axis(size):
            raise DataError(
                f"{self.frame(info).calibration}: P2 is not for images of {size[1]} × {size[0]} pixels, its principal "
                f"point is ({calibration.p2[0, 2]:g}, {calibration.p2[1, 2]:g}); state the size that it is for as "
                "data.image_size: [height, width]"
            )
        return calibration.with_image_size(size)

    def _image_size(self, info: FrameInfo) -> tuple[int, int] | None:
        known = self.image_size or info.extra["image_size"]
        return None if known is None else check_image_size(known)

    def _check_image_sizes(self, hint: str) -> None:
        for info in () if self.image_size is not None else self.all_frames:
            if self._image_size(info) is None:
                frame = self.frame(info)
                folder = frame.points.parent.parent / "image_2"
                raise DataError(
                    f"{frame.points}: the size of its image is not known, because {folder} holds none that can be read "
                    f"and {frame.calibration} has no line S_rect_02; state data.image_size: [height, width] ({hint})"
                )
