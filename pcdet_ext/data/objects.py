"""The object database for ground-truth sampling: labelled boxes with the points inside them, by class.

A folder with `database.json` (the classes, and what the columns of the points are), and per class a Parquet file of
its objects and an .npy file of their points. Nothing pickled.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pcdet_ext.data.index import FORMAT, FrameInfo, read_prepared
from pcdet_ext.files import ARCHIVE_ERRORS, DataError, atomic_write, check_output_folder
from pcdet_ext.structures import Array, Targets


@dataclass(frozen=True)
class Objects:
    """All objects of one class.

    boxes: float32 [M, 7 or 9]; difficulty: int64 [M]; offsets: int64 [M + 1]; points: float32 [P, F], relative to the
    box centre but not rotated: object m has points[offsets[m] : offsets[m + 1]]; frame_ids: frame of each object;
    point_features: names of the columns of the points.
    """

    boxes: Array
    difficulty: Array
    offsets: Array
    points: Array
    frame_ids: Sequence[str] = ()
    point_features: tuple[str, ...] = ("x", "y", "z", "intensity")

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


class ObjectWriter:
    """Writes the objects of frame after frame. Arguments as in `object_writer`."""

    def __init__(self, folder: Path, point_features: Sequence[str], layout: str = "") -> None:
        self._folder, self._features, self._layout = folder, tuple(point_features), layout
        self._classes: dict[str, _ClassWriter] = {}

    def add(self, info: FrameInfo, clouds: Mapping[int, Array]) -> None:
        """Take the objects of a frame: by the position of a box, the points float32 [P, F] relative to its centre."""
        for i, cloud in clouds.items():
            name = info.names[i]
            if name not in self._classes:
                self._classes[name] = _ClassWriter(self._folder / f".points_{len(self._classes)}")
            self._classes[name].add(info, i, cloud)

    def finish(self) -> None:
        """Write what is in memory; `database.json` last: while it is missing, the rest is not looked at."""
        entries = {name: self._write_class(f"class_{i}", name) for i, name in enumerate(sorted(self._classes))}
        content = {
            "format": FORMAT,
            "layout": self._layout,
            "point_features": self._features,
            "classes": entries,
        }
        with atomic_write(self._folder / "database.json") as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")

    def close(self) -> None:
        """Remove what is not needed any more."""
        for writer in self._classes.values():
            writer.points.close()
            Path(writer.points.name).unlink(missing_ok=True)

    def _write_class(self, file: str, name: str) -> dict[str, str]:
        objects = self._classes[name]
        with atomic_write(self._folder / f"{file}.npy") as temporary, temporary.open("wb") as out:
            shape = {"descr": "<f4", "fortran_order": False, "shape": (sum(objects.lengths), len(self._features))}
            np.lib.format.write_array_header_1_0(out, shape)
            objects.points.seek(0)
            shutil.copyfileobj(objects.points, out)
        with atomic_write(self._folder / f"{file}.parquet") as temporary:
            pq.write_table(objects.table(), temporary, compression="none")
        return {"objects": f"{file}.parquet", "points": f"{file}.npy"}


class _ClassWriter:
    """The objects of one class: their points in a file, everything else as numbers in memory."""

    def __init__(self, path: Path) -> None:
        self.points: IO[bytes] = path.open("w+b")
        self.lengths, self._difficulty, self._boxes = array("q"), array("q"), array("f")
        self._frame_ids: list[str] = []

    def add(self, info: FrameInfo, i: int, cloud: Array) -> None:
        """Take box `i` of a frame with its points."""
        if info.boxes is None:
            raise ValueError(f"frame {info.frame_id} has no boxes")
        self.points.write(np.ascontiguousarray(cloud, np.float32).tobytes())
        self.lengths.append(len(cloud))
        self._difficulty.append(int(info.difficulty[i]))
        self._boxes.frombytes(np.ascontiguousarray(info.boxes[i], np.float32).tobytes())
        self._frame_ids.append(info.frame_id)

    def table(self) -> pa.Table:
        """All but the points."""
        columns = len(self._boxes) // len(self.lengths)
        return pa.table(
            {
                "frame_id": pa.array(self._frame_ids, pa.string()),
                "box": pa.FixedSizeListArray.from_arrays(pa.array(np.array(self._boxes, np.float32)), columns),
                "difficulty": pa.array(np.array(self._difficulty, np.int64)),
                "num_points": pa.array(np.array(self.lengths, np.int64)),
            }
        )


@contextmanager
def object_writer(folder: Path, point_features: Sequence[str], layout: str = "") -> Iterator[ObjectWriter]:
    """A writer of a database; when the block ends without an error, the database takes the place of an earlier one.

    Args:
        folder: of the database.
        point_features: names of the columns of the points.
        layout: how the files are laid out from which the objects come, as "kitti".
    """
    check_output_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writer = ObjectWriter(folder, point_features, layout)
    try:
        yield writer
        for path in (folder / "database.json", *folder.glob("class_*")):  # of an earlier preparation
            path.unlink(missing_ok=True)
        writer.finish()
    finally:
        writer.close()


def read_objects(folder: Path, layout: str = "") -> dict[str, Objects]:
    """Objects of each class; points stay on disk until they are used (memory-mapped, shared by all processes).

    layout: of the data that the objects must come from, as "kitti"; any where it is empty. Raises DataError when the
    database is missing, damaged, or of another layout.
    """
    content = read_prepared(folder / "database.json")
    if layout and content.get("layout") != layout:
        made_as = content.get("layout") or "unknown"
        raise DataError(f"{folder}: prepared as {made_as} data, used for {layout} data; prepare the data again")
    try:
        features = tuple(content["point_features"])
        return {name: _read_class(folder, entry, features) for name, entry in content["classes"].items()}
    except (*ARCHIVE_ERRORS, AttributeError, pa.ArrowException) as error:
        raise DataError(f"{folder}: damaged object database ({error}); prepare the data again") from error


def _read_class(folder: Path, entry: Mapping[str, Any], features: tuple[str, ...]) -> Objects:
    file = Path(entry["points"]).name
    points = np.load(folder / file, mmap_mode="r", allow_pickle=False)
    table = pq.read_table(folder / Path(entry["objects"]).name, memory_map=True)
    boxes = table["box"].combine_chunks()
    boxes = boxes.flatten().to_numpy().reshape(len(table), -1).astype(np.float32)
    if boxes.shape[1] not in (7, 9):
        raise ValueError(f"boxes must be [M, 7] or [M, 9], got {list(boxes.shape)}")
    lengths = table["num_points"].to_numpy().astype(np.int64)
    if (lengths < 0).any() or lengths.sum() != len(points):
        raise ValueError(f"{file} has {len(points)} points, {entry['objects']} tells {lengths.sum()}")
    if points.ndim != 2 or points.shape[1] != len(features):
        raise ValueError(f"points of {file} must have the columns {', '.join(features)}, got {list(points.shape)}")
    if not np.isfinite(boxes[:, :7]).all() or (boxes[:, 3:6] <= 0).any():
        raise ValueError(f"boxes of {file} must be finite, of positive size")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    difficulty = table["difficulty"].to_numpy().astype(np.int64)
    return Objects(boxes, difficulty, offsets, points, table["frame_id"].to_pylist(), features)
