"""Result files of one's own data: labels with a score, by frame."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.data.custom.labels import NUMBERS, read_labels, wrapped, write_labels, write_objects
from pcdet_ext.data.custom.layout import LABEL_SUFFIXES, frame_id_of
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Detections

_log = logging.getLogger(__name__)


def write_results(folder: Path, frame_id: str, found: Detections) -> Path:
    """Write the detections of a frame: as text, or with velocities, which text has no place for, as JSON.

    Detections that are not finite or have no size are left out, with a warning. A file that an earlier run wrote for
    the frame in the other format is removed: a folder holds one file per frame.

    Args:
        folder: where to write.
        frame_id: of the frame, which names the file.
        found: NumPy arrays.

    Returns:
        The file.
    """
    boxes = np.asarray(found.boxes)
    real = np.isfinite(boxes[:, :NUMBERS]).all(axis=1) & (boxes[:, 3:6] > 0).all(axis=1) & np.isfinite(found.scores)
    if not real.all():
        left = int((~real).sum())
        _log.warning("frame %s: %d detections are left out, which are not finite or have no size", frame_id, left)
    found = found.select(real)
    moving = boxes.shape[1] > NUMBERS
    path, other = (folder / f"{frame_id}{suffix}" for suffix in ((".json", ".txt") if moving else (".txt", ".json")))
    boxes, scores = wrapped(np.asarray(found.boxes)), np.asarray(found.scores)
    (write_objects if moving else write_labels)(path, boxes, found.names, scores)
    other.unlink(missing_ok=True)
    return path


def result_files(path: Path) -> dict[str, Path]:
    """The result files of a folder by frame id, or the one that is named.

    Raises DataError where there is none, or two are for one frame.
    """
    if not path.exists():
        raise MissingFileError(f"{path}: no such file or folder")
    if not path.is_dir():
        return {path.stem: path}
    found: dict[str, Path] = {}
    for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in LABEL_SUFFIXES and p.is_file()):
        name = frame_id_of(file, path)
        if name in found:
            raise DataError(f"{file}: frame {name!r} has another file, {found[name].name}; one of them must go")
        found[name] = file
    if not found:
        raise MissingFileError(f"{path}: no result files (*.txt, *.json) here")
    return found


class CustomResults(Mapping[str, Detections]):
    """Detections by frame id, read from their files when they are asked for.

    Args:
        path: a folder of result files, or one of them.
        classes: come first in the detections' class names; further classes follow them.

    Raises:
        DataError: there is no result file, or there are two for one frame.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        self._files, self._classes = result_files(path), tuple(classes)

    def __getitem__(self, frame_id: str) -> Detections:
        return read_labels(self._files[frame_id], with_scores=True).detections(frame_id, self._classes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
