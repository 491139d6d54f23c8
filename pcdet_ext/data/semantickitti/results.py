"""Labels of points that were found, measured and written as the benchmark's server takes them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.semantickitti.labels import IDS, LabelMap, read_labels, write_labels
from pcdet_ext.data.semantickitti.sequences import PREDICTIONS, SEQUENCES, Frame
from pcdet_ext.evaluation.panoptic import MIN_POINTS, PanopticCounts, match_segments
from pcdet_ext.evaluation.segmentation import SegmentationResult, confusion_matrix
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array, PointLabels, Sample


@dataclass(frozen=True, eq=False)
class FrameCounts:
    """What the labels of one frame gave: see `confusion_matrix`, and `match_segments` where objects were found."""

    confusion: Array
    panoptic: PanopticCounts | None


def measure_frame(
    label_map: LabelMap,
    classes: Sequence[str],
    truth: tuple[Array, Array],
    found: tuple[Array, Array],
    paths: tuple[Path, Path],
    panoptic: bool,
    min_points: int = MIN_POINTS,
    published: bool = False,
) -> FrameCounts:
    """Compare the labels of one frame.

    Args:
        label_map: which ids make which class.
        classes: what is measured.
        truth: the labelled ids and instances of all points, int64 [N] each.
        found: the predicted ones; id 0 for points without one.
        paths: the files of both, for errors.
        panoptic: whether segments are matched.
        min_points: see `match_segments`.
        published: segments of stuff are told apart by id and instance too, as in semantic-kitti-api.

    Raises:
        DataError: an id is not known.
    """
    labels = [label_map.class_numbers(ids, classes, path) for (ids, _), path in zip((truth, found), paths, strict=True)]
    confusion = confusion_matrix(labels[0], labels[1], len(classes))
    if not panoptic:
        return FrameCounts(confusion, None)
    whole = np.array([published or name in label_map.things for name in classes] + [False])
    numbers = [
        np.where(whole[numbers], ids + IDS * instances, 0)  # without an object, the points of a class are one segment
        for (ids, instances), numbers in zip((truth, found), labels, strict=True)
    ]
    counts = match_segments((labels[0], numbers[0]), (labels[1], numbers[1]), len(classes), min_points)
    return FrameCounts(confusion, counts)


def total(
    label_map: LabelMap, classes: Sequence[str], frames: Sequence[FrameCounts], published: bool
) -> SegmentationResult:
    """The result over frames.

    Args:
        label_map: says which classes have instances.
        classes: names, in the order of the counts.
        frames: counts of each.
        published: see `SegmentationResult`.
    """
    confusion = sum((frame.confusion for frame in frames), np.zeros((len(classes), len(classes) + 1), np.int64))
    matched = [frame.panoptic for frame in frames if frame.panoptic is not None]
    panoptic = sum(matched, PanopticCounts.none(len(classes))) if matched else None
    things = [name for name in classes if name in label_map.things]
    return SegmentationResult.of(classes, things, confusion, panoptic, published)


class PointResults(Mapping[str, PointLabels]):
    """Labels of points by frame id, read from their files when they are asked for.

    Args:
        files: the result file of each frame.
        label_map: which ids in files make which class.
        classes: those that the labels are positions in.
        points_of: how many points a frame's file has, by its id.

    Raises:
        DataError: a file is damaged, when its frame is asked for.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        label_map: LabelMap,
        classes: Sequence[str],
        points_of: Callable[[str], int],
    ) -> None:
        self._files, self._label_map, self._classes, self._points_of = files, label_map, tuple(classes), points_of

    def __getitem__(self, frame_id: str) -> PointLabels:
        path = self._files[frame_id]
        ids, instances = read_labels(path, self._points_of(frame_id))
        labels = self._label_map.class_numbers(ids, self._classes, path)
        return PointLabels(labels, np.ones(len(labels), np.float32), self._classes, instances)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


class PointLabelEvaluator:
    """Measures the labels of points in all points of the files of frames (see `Evaluator`).

    Points of a file that a sample does not have, because they lie outside the range of a detector or were not drawn,
    have no label; they count as missed.

    Args:
        label_map: which ids in files make which class.
        classes: the classes; a detector may find those alone.
        frame_of: the files of a frame, by its id.
        points_of: how many points a frame's file has, by its id.
        min_points: of segments whose miss counts in panoptic quality.
        published: count as semantic-kitti-api does: classes that occur on neither side are 0 in means, points without
            a predicted class are left out of the accuracy, and points of stuff are different segments where their ids
            differ.
    """

    def __init__(
        self,
        label_map: LabelMap,
        classes: Sequence[str],
        frame_of: Callable[[str], Frame],
        points_of: Callable[[str], int],
        min_points: int = MIN_POINTS,
        published: bool = False,
    ) -> None:
        self.label_map, self.classes = label_map, tuple(classes)
        self._frame_of, self._points_of = frame_of, points_of
        self.min_points, self.published = min_points, published
        self._frames: dict[Hashable, tuple[FrameCounts | None, bytes]] = {}

    def add(self, sample: Sample, predictions: PointLabels) -> None:
        """Take the labels found in one frame; a sample that could not be read is not measured.

        Raises ValueError for labels of other points or classes, for a sample without the rows of its points, and for
        instances outside of [0, 65536), which label files cannot hold.
        """
        ids, instances = self._of_file(sample, predictions.numpy())
        frame = self._frame_of(sample.frame_id)
        counts = None
        if frame.labelled and sample.point_rows is not None:
            truth = read_labels(frame.labels, len(ids))
            given = (truth, (ids, instances), (frame.labels, frame.labels), predictions.instances is not None)
            counts = measure_frame(self.label_map, self.classes, *given, self.min_points, self.published)
        packed = zlib.compress((ids.astype(np.uint32) | (instances.astype(np.uint32) << 16)).tobytes(), 1)
        self._frames[sample.frame_id] = counts, packed

    def state(self) -> Mapping[Hashable, Any]:
        """Counts and labels of each frame."""
        return dict(self._frames)

    def merge(self, state: Mapping[Hashable, Any]) -> None:
        """Take the frames of another process."""
        self._frames.update(state)

    def result(self) -> SegmentationResult | None:
        """The metric over the labelled frames, or None where there are none."""
        counts = [counts for counts, _ in self._frames.values() if counts is not None]
        return total(self.label_map, self.classes, counts, self.published) if counts else None

    def check_folder(self, folder: str | Path) -> None:
        """Raises DataError when a folder has result files of other frames."""
        folder = Path(folder)
        for path in sorted(folder.rglob("*.label")):
            parts = path.relative_to(folder).with_suffix("").parts
            if not (len(parts) == 4 and (parts[0], parts[2]) == (SEQUENCES, PREDICTIONS) and self._knows(*parts[1::2])):
                raise DataError(f"{path}: a result of another data set or split; name an empty folder for the results")

    def write(self, folder: str | Path) -> list[Path]:
        """One file sequences/NN/predictions/NAME.label per frame, a label for each point of the frame's file."""
        written = []
        for key, (_, packed) in self._frames.items():
            labels = np.frombuffer(zlib.decompress(packed), np.uint32)
            path = self._frame_of(str(key)).result(Path(folder))
            write_labels(path, (labels & 0xFFFF).astype(np.int64), (labels >> 16).astype(np.int64))
            written.append(path)
        return written

    def _knows(self, sequence: str, name: str) -> bool:
        try:
            return self._frame_of(f"{sequence}_{name}").name == name
        except KeyError:
            return False

    def _of_file(self, sample: Sample, found: PointLabels) -> tuple[Array, Array]:
        """Ids and instances int64 [N] for all points of the frame's file; 0 where nothing was found."""
        count = self._points_of(sample.frame_id)
        ids, instances = np.zeros(count, np.int64), np.zeros(count, np.int64)
        if len(found) != len(sample.points):
            raise ValueError(f"frame {sample.frame_id}: {len(sample.points)} points, but labels for {len(found)}")
        if sample.point_rows is None:
            if len(found):
                raise ValueError(f"frame {sample.frame_id}: it is not known which points of its file the points are")
            return ids, instances
        known = {name: i for i, name in enumerate(found.class_names)}
        unknown = [name for name in known if name not in self.label_map.ids]
        if unknown:
            raise ValueError(f"the detector labels points as {unknown[0]!r}, which is no class of the data")
        own = self.label_map.result_ids(found.class_names)
        ids[sample.point_rows] = own[np.asarray(found.labels)]  # the label -1 takes the last, 0
        if found.instances is not None:
            own_instances = np.asarray(found.instances)
            if len(own_instances) and not 0 <= own_instances.min() <= own_instances.max() < IDS:
                raise ValueError(
                    f"frame {sample.frame_id}: instances must lie in [0, {IDS}) as label files have 16 bits for them, "
                    f"they go from {own_instances.min()} to {own_instances.max()}"
                )
            instances[sample.point_rows] = own_instances
        return ids, instances
