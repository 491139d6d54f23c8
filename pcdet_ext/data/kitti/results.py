"""Result files in KITTI's layout as detections in the LiDAR frame, to be shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.data.kitti.calibration import Calibration
from pcdet_ext.data.kitti.labels import boxed, labels_to_boxes, read_labels
from pcdet_ext.files import MissingFileError
from pcdet_ext.structures import Detections


class KittiResults(Mapping[str, Detections]):
    """Detections by frame id, read from `<frame id>.txt` when they are asked for.

    Args:
        path: a folder of result files, or one of them.
        classes: come first in the detections' class names; further classes follow them.
        calibration: gives the calibration of a frame by its id.

    Raises:
        MissingFileError: there is no such file or folder, or the folder holds no result file.
    """

    def __init__(self, path: Path, classes: Sequence[str], calibration: Callable[[str], Calibration]) -> None:
        if not path.exists():
            raise MissingFileError(f"{path}: no such file or folder")
        files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
        if not files:
            raise MissingFileError(f"{path}: no result files (*.txt) here")
        self._files = {file.stem: file for file in files}
        self._classes, self._calibration = tuple(classes), calibration

    def __getitem__(self, frame_id: str) -> Detections:
        return read_detections(self._files[frame_id], self._calibration(frame_id), self._classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def read_detections(path: Path, calibration: Calibration, classes: Sequence[str] = ()) -> Detections:
    """The detections of a result file in the LiDAR's frame, as NumPy arrays.

    Args:
        path: the file.
        calibration: between sensor and camera.
        classes: come first among the class names; further ones in the file follow, sorted.

    Raises:
        DataError: the file is missing or damaged; the message names it and the line.
    """
    labels = read_labels(path, with_scores=True)
    scores = np.asarray(boxed(labels).scores, np.float32)
    found = labels_to_boxes(labels, calibration)
    names = (*classes, *sorted(set(found.class_names) - set(classes)))
    found = found.of_classes(names)
    return Detections(np.asarray(found.boxes), scores, np.asarray(found.labels), names, path.stem, found.track_ids)
