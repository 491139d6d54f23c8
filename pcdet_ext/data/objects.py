"""The object database for ground-truth sampling: labelled boxes with the points inside them, by class.

A folder with `database.json` (boxes and where their points are) and per class one .npy file of points. Nothing pickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.data.index import FORMAT, FrameInfo, read_prepared
from pcdet_ext.structures import Array, Targets


@dataclass(frozen=True)
class Objects:
    """All objects of one class.

    boxes: float32 [M, 7 or 9]; difficulty: int64 [M]; offsets: int64 [M + 1]; points: float32 [P, F], relative to the box
    centre but not turned: object m has points[offsets[m] : offsets[m + 1]]; frame_ids: frame of each object.
    """

    boxes: Array
    difficulty: Array
    offsets: Array
    points: Array
    frame_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def num_points(self) -> Array:
        """int64 [M]: points of each object."""
        return np.diff(self.offsets)

    def points_of(self, index: int) -> Array:
        """Points [K, F] of one object, relative to its box centre."""
        return np.asarray(self.points[self.offsets[index] : self.offsets[index + 1]])

    def select(self, name: str, index: Array) -> Targets:
        """Labelled boxes, of class `name`, at positions `index` (int64 [K])."""
        columns = {"difficulty": self.difficulty[index], "num_points": self.num_points[index]}
        return Targets.of_names(self.boxes[index], (name,) * len(index), **columns)


def database_path(folder: str | Path, split: str) -> Path:
    """Object database of a split in a preparation folder."""
    return Path(folder) / f"database_{split}"


def write_objects(folder: Path, frames: Iterable[tuple[FrameInfo, list[Array]]]) -> None:
    """Write the objects of frames, each given with a point cloud relative to the centre of every box.

    `database.json` goes first where there is one, and is written last: while it is missing, the rest is not looked at.
    """
    rows: dict[str, list[tuple[FrameInfo, int, Array]]] = {}
    for info, clouds in frames:
        for i, cloud in enumerate(clouds):
            rows.setdefault(info.names[i], []).append((info, i, cloud))
    for path in (folder / "database.json", *folder.glob("class_*.npy")):  # of an earlier preparation
        path.unlink(missing_ok=True)
    entries = {name: _write_class(folder, f"class_{i}.npy", rows[name]) for i, name in enumerate(sorted(rows))}
    with atomic_write(folder / "database.json") as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "classes": entries}), encoding="utf-8")


def read_objects(folder: Path) -> dict[str, Objects]:
    """Objects of each class; points stay on disk until they are used (memory-mapped, shared by all processes).

    Raises DataError when the database is missing or damaged.
    """
    entries = read_prepared(folder / "database.json", "classes")
    try:
        return {name: _read_class(folder, entry) for name, entry in entries.items()}
    except (TypeError, KeyError, ValueError, OSError) as error:
        raise DataError(f"{folder}: damaged object database ({error}); prepare the data again") from error


def _write_class(folder: Path, file: str, rows: list[tuple[FrameInfo, int, Array]]) -> dict[str, Any]:
    with atomic_write(folder / file) as temporary:
        np.save(temporary, np.concatenate([cloud for _, _, cloud in rows]), allow_pickle=False)
    return {
        "points": file,
        "boxes": [info.boxes[i] for info, i, _ in rows if info.boxes is not None],
        "difficulty": [info.difficulty[i] for info, i, _ in rows],
        "offsets": np.cumsum([0, *(len(cloud) for _, _, cloud in rows)]).tolist(),
        "frame_ids": [info.frame_id for info, _, _ in rows],
    }


def _read_class(folder: Path, entry: dict[str, Any]) -> Objects:
    file = Path(entry["points"]).name
    points = np.load(folder / file, mmap_mode="r", allow_pickle=False)
    boxes = np.array(entry["boxes"], np.float32)
    if boxes.ndim != 2 or boxes.shape[1] not in (7, 9):
        raise ValueError(f"boxes must be [M, 7] or [M, 9], got {list(boxes.shape)}")
    offsets = np.array(entry["offsets"], np.int64)
    if len(offsets) != len(boxes) + 1 or offsets[-1] != len(points):
        raise ValueError(f"{file} has {len(points)} points, database.json tells {offsets[-1]}")
    if not np.isfinite(boxes).all() or (boxes[:, 3:6] <= 0).any():
        raise ValueError(f"boxes of {file} must be finite, of positive size")
    if offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise ValueError(f"offsets of {file} must ascend from 0")
    return Objects(boxes, np.array(entry["difficulty"], np.int64), offsets, points, tuple(entry["frame_ids"]))
