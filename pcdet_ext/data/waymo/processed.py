"""The layout that OpenPCDet converts Waymo data to: points as .npy files, labels as pickles.

    <root>/ImageSets/<split>.txt
    <root>/waymo_processed_data*/<sequence>/{0000.npy, …, <sequence>.pkl}

The pickles are read without running anything that they name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.points import read_points
from pcdet_ext.data.text import read_lines
from pcdet_ext.data.waymo.frames import (
    STORED_FEATURES,
    TYPES,
    Frame,
    Labels,
    check_pose,
    checked_labels,
    numbered,
    whole_numbers,
)
from pcdet_ext.data.waymo.pickles import read_pickle
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

PATTERN = "waymo_processed_data*"
USUAL = "waymo_processed_data_v0_5_0"  # the one that is taken where there are several
# Arrays of a frame's annotations: what they must hold, in words, as NumPy's kinds of values, and in dimensions.
ANNOTATIONS = {
    "name": ("text [M]", "UO", 1),
    "difficulty": ("whole numbers [M]", "iuf", 1),
    "gt_boxes_lidar": ("numbers [M, 7] or [M, 9]", "iuf", 2),
    "num_points_in_gt": ("whole numbers [M]", "iuf", 1),
    "obj_ids": ("text or whole numbers [M]", "UOiu", 1),
}
KEPT_SEQUENCES = 4  # whose labels stay in memory

_log = logging.getLogger(__name__)


class ProcessedLayout:
    """A folder with processed data (see `Layout`)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        folders = sorted(path.name for path in self.root.glob(PATTERN) if path.is_dir())
        if not folders:
            raise MissingFileError(f"{self.root}: no folder {PATTERN}")
        if len(folders) > 1 and USUAL not in folders:
            raise DataError(f"{self.root}: which of {', '.join(folders)} is meant? One of them alone can be read")
        self.folder = USUAL if USUAL in folders else folders[0]

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether a folder has this layout."""
        return any(path.is_dir() for path in root.glob(PATTERN))

    def find(self, split: str, damaged: list[DataError] | None = None) -> list[Frame]:
        """The frames of a split, in the order of its list; sequences of it that are not there are left out, and logged.

        A sequence may also have the folder `training_<sequence>`, `validation_<sequence>` or `testing_<sequence>`, or
        lack the ending `_with_camera_labels`.
        """
        listed = self.root / "ImageSets" / f"{split}.txt"
        if not listed.is_file():
            splits = [path.stem for path in listed.parent.glob("*.txt")]
            raise MissingFileError(f"{listed}: no such split{suggest(split, splits)}")
        names = [Path(line.strip()).stem for line in read_lines(listed) if line.strip()]
        found = {name: self._info_file(name) for name in names}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            _log.warning("%s: %d of %d sequences are not there, as %s", listed, len(missing), len(names), missing[0])
        paths = [found[name] for name in names]
        errors: list[DataError] = [] if damaged is None else damaged
        frames = [frame for path in paths if path is not None for frame in self._frames(path, errors)]
        if damaged is None and errors:
            raise errors[0]
        if not frames and not errors:
            raise DataError(f"{self.root / self.folder}: no sequence of {listed} is there")
        return [Frame(f.sequence, f.number, f.context, f.timestamp_micros, f.folder, i) for i, f in enumerate(frames)]

    def file(self, frame: Frame) -> Path:
        """See `Layout`."""
        return self.root / frame.folder / f"{frame.number:04d}.npy"

    def points(self, frame: Frame) -> Array:
        """See `Layout`."""
        points = read_points(self.file(frame))
        if points.shape[1] != len(STORED_FEATURES):
            raise DataError(
                f"{self.file(frame)}: {points.shape[1]} columns, not the {len(STORED_FEATURES)} of "
                f"{', '.join(STORED_FEATURES)}"
            )
        return points

    def pose(self, frame: Frame) -> Array:
        """See `Layout`; the files have it in float32."""
        path, info = self._info(frame)
        pose, where = info.get("pose"), f"{path}: frame {frame.frame_id}: pose"
        if not isinstance(pose, np.ndarray) or pose.shape != (4, 4) or pose.dtype.kind != "f":
            raise DataError(f"{where} must be an array [4, 4] of floating-point numbers")
        return check_pose(pose.astype(np.float64), where)

    def labels(self, frame: Frame) -> Labels | None:
        """See `Layout`."""
        path, info = self._info(frame)
        where = f"{path}: frame {frame.frame_id}"
        if not _has_labels(info):
            if any(_has_labels(other) for other in read_infos(path)):
                raise DataError(f"{where}: has no annos, while other frames of the sequence do")
            return None
        return _labels(info["annos"], where)

    def track_numbers(self, frame: Frame) -> Mapping[str, int]:
        """See `Layout`."""
        return _track_numbers(self._info(frame)[0])

    def _info_file(self, name: str) -> Path | None:
        for folder in candidates(name):
            path = self.root / self.folder / folder / f"{folder}.pkl"
            if path.is_file():
                return path
        return None

    def _frames(self, path: Path, errors: list[DataError]) -> Iterator[Frame]:
        try:
            infos = read_infos(path)
        except DataError as error:
            errors.append(error)
            return
        for i, info in enumerate(infos):
            try:
                yield self._frame(path, info, f"{path}: frame {i}")
            except DataError as error:
                errors.append(error)

    def _frame(self, path: Path, info: Mapping[str, Any], where: str) -> Frame:
        cloud, meta = _item(info, "point_cloud", dict, where), _item(info, "metadata", dict, where)
        name = _item(cloud, "lidar_sequence", str, where)
        number = int(_item(cloud, "sample_idx", int, where))
        time = int(_item(meta, "timestamp_micros", int, where))
        sequence, _, ordinal = _item(info, "frame_id", str, where).rpartition("_")
        if Path(name).name != name or ordinal != f"{number:03d}":
            raise DataError(f"{where}: sequence {name!r} and frame_id {info['frame_id']!r} do not fit together")
        if abs(time) >= 2**63:
            raise DataError(f"{where}: timestamp_micros must have at most 64 bits, is {time}")
        folder = path.parent.parent / name
        folder = folder if folder.is_dir() else path.parent
        context = _item(meta, "context_name", str, where)
        return Frame(sequence, number, context, time, str(folder.relative_to(self.root)))

    def _info(self, frame: Frame) -> tuple[Path, Mapping[str, Any]]:
        """What the pickle of its sequence says of a frame."""
        path = self._info_file(frame.sequence)
        if path is None:
            folder = self.root / frame.folder
            path = folder / f"{folder.name}.pkl"
        for info in read_infos(path):
            if info.get("frame_id") == frame.frame_id:
                return path, info
        raise DataError(f"{path}: no frame {frame.frame_id}")


def candidates(name: str) -> list[str]:
    """The folder names under which a sequence may lie, in the order in which they are tried."""
    names = [name.replace("segment", f"{prefix}segment") for prefix in ("", "training_", "validation_", "testing_")]
    return list(dict.fromkeys([*names, name.replace("_with_camera_labels", "")]))


@lru_cache(maxsize=KEPT_SEQUENCES)
def read_infos(path: Path) -> Sequence[Mapping[str, Any]]:
    """What the pickle of a sequence says of its frames, in their order.

    Raises DataError where it is damaged, or would run something.
    """
    infos = read_pickle(path)
    if not isinstance(infos, list) or not infos or not all(isinstance(info, dict) for info in infos):
        raise DataError(f"{path}: must hold a list of dicts, one for each frame")
    return infos


def _has_labels(info: Mapping[str, Any]) -> bool:
    annotations = info.get("annos")
    return annotations is not None and not (isinstance(annotations, dict) and not annotations)


@lru_cache(maxsize=KEPT_SEQUENCES)
def _track_numbers(path: Path) -> Mapping[str, int]:
    """A number for each object id; frames with damaged ones are left to `labels` to refuse."""
    names: list[str] = []
    for info in read_infos(path):
        annotations = info.get("annos")
        ids = annotations.get("obj_ids") if isinstance(annotations, dict) else None
        if isinstance(ids, np.ndarray):
            names += [str(name) for name in ids.ravel()]
    return numbered(names)


def _item(mapping: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = mapping.get(key)
    if isinstance(value, np.integer | np.str_):
        value = value.item()
    if not isinstance(value, kind):
        raise DataError(f"{where}: {key!r} must be of type {kind.__name__}, is {type(value).__name__}")
    return value


def _labels(annotations: Any, where: str) -> Labels:
    names, difficulty, boxes, counts, ids = _arrays(annotations, where)
    if boxes.shape[1] not in (7, 9) or not set(names.tolist()) <= set(TYPES):
        raise DataError(f"{where}: gt_boxes_lidar must be [M, 7] or [M, 9], names among {', '.join(TYPES)}")
    boxes = np.pad(boxes, ((0, 0), (0, 9 - boxes.shape[1]))).astype(np.float64)  # no velocity in old conversions
    keep = names != "unknown"
    object_ids = tuple(str(name) for name in ids[keep])
    difficulty = whole_numbers(difficulty[keep], f"{where}: difficulty of an object")
    counts = whole_numbers(counts[keep], f"{where}: num_points_in_gt of an object")
    return checked_labels(
        Labels(tuple(str(n) for n in names[keep]), boxes[keep], difficulty, counts, object_ids), where
    )


def _arrays(annotations: Any, where: str) -> list[Array]:
    """The arrays `ANNOTATIONS`, of the kinds that they must have. Raises DataError for others."""
    if not isinstance(annotations, dict):
        raise DataError(f"{where}: annos must be a dict of arrays, is {type(annotations).__name__}")
    missing = [name for name in ANNOTATIONS if not isinstance(annotations.get(name), np.ndarray)]
    if missing:
        raise DataError(f"{where}: annos must have an array {missing[0]!r}")
    arrays = []
    for name, (wanted, kinds, dimensions) in ANNOTATIONS.items():
        array = annotations[name]
        if array.shape == (0,):  # as conversions write what there is none of
            array = array.reshape(0, *(9,) * (dimensions - 1)).astype("U" if kinds[0] == "U" else array.dtype)
        is_text = array.dtype.kind != "O" or all(isinstance(value, str) for value in array.flat)
        if array.ndim != dimensions or array.dtype.kind not in kinds or not is_text:
            raise DataError(f"{where}: {name} must be {wanted}, is {array.dtype} {list(array.shape)}")
        arrays.append(array)
    if len({len(array) for array in arrays}) > 1:
        raise DataError(f"{where}: arrays of annos must have one entry for each object")
    return arrays
