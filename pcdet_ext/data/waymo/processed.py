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
from pcdet_ext.data.waymo.frames import STORED_FEATURES, TYPES, Frame, Labels, check_boxes, numbered
from pcdet_ext.data.waymo.pickles import read_pickle
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

PATTERN = "waymo_processed_data*"
USUAL = "waymo_processed_data_v0_5_0"  # the one that is taken where there are several
ANNOTATIONS = ("name", "difficulty", "gt_boxes_lidar", "num_points_in_gt", "obj_ids")
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

    def find(self, split: str) -> list[Frame]:
        """The frames of a split, in the order of its list; sequences of it that are not there are left out, and logged.

        A sequence may also have the folder `training_<sequence>`, `validation_<sequence>` or `testing_<sequence>`, or
        lack the ending `_with_camera_labels`.
        """
        listed = self.root / "ImageSets" / f"{split}.txt"
        if not listed.is_file():
            splits = [path.stem for path in listed.parent.glob("*.txt")]
            raise MissingFileError(f"{listed}: no such split{suggest(split, splits)}")
        names = [Path(line.strip()).stem for line in _lines(listed) if line.strip()]
        found = {name: self._info_file(name) for name in names}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            _log.warning("%s: %d of %d sequences are not there, as %s", listed, len(missing), len(names), missing[0])
        paths = [found[name] for name in names]
        frames = [frame for path in paths if path is not None for frame in self._frames(path)]
        if not frames:
            raise DataError(f"{self.root / self.folder}: no sequence of {listed} is there")
        return [Frame(f.sequence, f.number, f.context, f.timestamp_micros, f.folder, i) for i, f in enumerate(frames)]

    def file(self, frame: Frame) -> Path:
        """See `Layout`."""
        return self.root / frame.folder / f"{frame.number:04d}.npy"

    def points(self, frame: Frame) -> Array:
        """See `Layout`."""
        return read_points(self.file(frame), columns=len(STORED_FEATURES))

    def pose(self, frame: Frame) -> Array:
        """See `Layout`; the files have it in float32."""
        path, info = self._info(frame)
        return _pose(info, f"{path}: frame {frame.frame_id}")

    def labels(self, frame: Frame) -> Labels | None:
        """See `Layout`."""
        path, info = self._info(frame)
        if not info.get("annos"):
            return None
        return _labels(info["annos"], f"{path}: frame {frame.frame_id}")

    def track_numbers(self, frame: Frame) -> Mapping[str, int]:
        """See `Layout`."""
        return _track_numbers(self._info(frame)[0])

    def _info_file(self, name: str) -> Path | None:
        for folder in candidates(name):
            path = self.root / self.folder / folder / f"{folder}.pkl"
            if path.is_file():
                return path
        return None

    def _frames(self, path: Path) -> Iterator[Frame]:
        for i, info in enumerate(read_infos(path)):
            where = f"{path}: frame {i}"
            cloud, meta = _item(info, "point_cloud", dict, where), _item(info, "metadata", dict, where)
            name = _item(cloud, "lidar_sequence", str, where)
            number = int(_item(cloud, "sample_idx", int, where))
            sequence, _, ordinal = _item(info, "frame_id", str, where).rpartition("_")
            if Path(name).name != name or ordinal != f"{number:03d}":
                raise DataError(f"{where}: sequence {name!r} and frame_id {info['frame_id']!r} do not fit together")
            folder = path.parent.parent / name
            folder = folder if folder.is_dir() else path.parent
            yield Frame(
                sequence,
                number,
                _item(meta, "context_name", str, where),
                int(_item(meta, "timestamp_micros", int, where)),
                str(folder.relative_to(self.root)),
            )

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


@lru_cache(maxsize=KEPT_SEQUENCES)
def _track_numbers(path: Path) -> Mapping[str, int]:
    annotations = [info.get("annos") or {} for info in read_infos(path)]
    return numbered([str(name) for found in annotations for name in found.get("obj_ids", ())])


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _item(mapping: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = mapping.get(key)
    if isinstance(value, np.integer | np.str_):
        value = value.item()
    if not isinstance(value, kind):
        raise DataError(f"{where}: {key!r} must be of type {kind.__name__}, is {type(value).__name__}")
    return value


def _pose(info: Mapping[str, Any], where: str) -> Array:
    pose = np.asarray(info.get("pose"))
    if pose.shape != (4, 4) or pose.dtype.kind != "f" or not np.isfinite(pose).all():
        raise DataError(f"{where}: pose must be a finite array [4, 4]")
    return pose.astype(np.float64)


def _labels(annotations: Mapping[str, Any], where: str) -> Labels:
    missing = [name for name in ANNOTATIONS if not isinstance(annotations.get(name), np.ndarray)]
    if missing:
        raise DataError(f"{where}: annos must have an array {missing[0]!r}")
    names, difficulty, boxes, counts, ids = (annotations[name] for name in ANNOTATIONS)
    if len({len(names), len(difficulty), len(boxes), len(counts), len(ids)}) > 1:
        raise DataError(f"{where}: arrays of annos must have one entry for each object")
    boxes = boxes.reshape(-1, boxes.shape[1] if boxes.ndim == 2 else 9).astype(np.float64)
    if boxes.shape[1] not in (7, 9) or not set(names.tolist()) <= set(TYPES):
        raise DataError(f"{where}: gt_boxes_lidar must be [M, 7] or [M, 9], names among {', '.join(TYPES)}")
    keep = names != "unknown"
    object_ids = tuple(str(name) for name in ids[keep])
    check_boxes(boxes[keep], where, object_ids)
    boxes = np.pad(boxes, ((0, 0), (0, 9 - boxes.shape[1])))  # without velocity in old conversions
    columns = (difficulty.astype(np.int64)[keep], counts.astype(np.int64)[keep])
    return Labels(tuple(str(n) for n in names[keep]), boxes[keep], *columns, object_ids=object_ids)
