"""Tables of boxes as the Waymo Open Dataset names them: by segment, timestamp and object; and their Parquet files.

Results are written with the columns of the data set's own component of boxes, and the score beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.waymo import LARGEST_SIDE
from pcdet_ext.evaluation.waymo_objects import TYPES, Objects
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array

Name = tuple[str, int]  # of a frame: its segment, and its timestamp in microseconds

MANY_POINTS = 5  # objects of more points are of level 1 where the labels do not say
MOST_TURNED = 1e4  # radians: in float32, larger headings say nothing any more
_COMPONENT = "[LiDARBoxComponent]."
_COMPONENT_BOX = ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")
BOX = ("center_x", "center_y", "center_z", "length", "width", "height", "heading")
# Columns by what they hold: in the data set's own component, and in a table of plain names.
COLUMNS: dict[str, tuple[str, str]] = {
    "context": ("key.segment_context_name", "context_name"),
    "time": ("key.frame_timestamp_micros", "frame_timestamp_micros"),
    **{plain: (f"{_COMPONENT}box.{own}", plain) for own, plain in zip(_COMPONENT_BOX, BOX, strict=True)},
    "type": (f"{_COMPONENT}type", "type"),
}
OPTIONAL: dict[str, tuple[str, str]] = {
    "score": ("score", "score"),
    "zone": ("overlap_with_nlz", "overlap_with_nlz"),
    "object_id": ("key.laser_object_id", "object_id"),
    "difficulty": (f"{_COMPONENT}difficulty_level.detection", "difficulty"),
    "num_points": (f"{_COMPONENT}num_lidar_points_in_box", "num_points"),
    "speed_x": (f"{_COMPONENT}speed.x", "speed_x"),
    "speed_y": (f"{_COMPONENT}speed.y", "speed_y"),
}


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of many frames, in the vehicle's frame.

    frames: name of each box's frame; type: int64 [N], position in `TYPES`; boxes: float64 [N, 7]; score: float32 [N];
    zone: bool [N], whether it touches a no-label zone; difficulty: int64 [N], 0 where the labels do not say;
    num_points: int64 [N], -1 where not known; speed: float64 [N, 2], in the world; object_ids: text.
    """

    frames: Sequence[Name]
    type: Array
    boxes: Array
    score: Array
    zone: Array
    difficulty: Array
    num_points: Array
    speed: Array
    object_ids: Sequence[str]

    def __len__(self) -> int:
        return len(self.type)

    def counted(self) -> Boxes:
        """The labelled boxes that count: those with points, of known type; with the difficulty that they have."""
        few = (self.num_points >= 0) & (self.num_points <= MANY_POINTS)
        difficulty = np.where(self.difficulty == 0, np.where(few, 2, 1), self.difficulty)
        return replace(self, difficulty=difficulty).select(np.flatnonzero((self.num_points != 0) & (self.type != 0)))

    def select(self, rows: Array) -> Boxes:
        """The boxes of some rows, int64 [K]."""
        return Boxes(**{f.name: _taken(getattr(self, f.name), rows) for f in fields(self)})

    @staticmethod
    def of(frames: Sequence[Name], type: Array, boxes: Array, **columns: Any) -> Boxes:  # noqa: A002
        """Boxes with what is known of them; the rest has its default.

        Args:
            frames: name of each box's frame.
            type: int64 [N], position in `TYPES`.
            boxes: float64 [N, 7].
            columns: further fields; by default the score is 1, no box is in a zone or has a difficulty, speed or object
                id, and the numbers of points are not known.
        """
        count = len(frames)
        defaults = {
            "score": np.ones(count, np.float32),
            "zone": np.zeros(count, bool),
            "difficulty": np.zeros(count, np.int64),
            "num_points": np.full(count, -1, np.int64),
            "speed": np.zeros((count, 2)),
            "object_ids": [""] * count,
        }
        return Boxes(frames, type, boxes, **{**defaults, **columns})


def joined(tables: Sequence[Boxes]) -> Boxes:
    """Several tables as one."""
    columns: dict[str, Any] = {}
    for f in fields(Boxes):
        parts = [getattr(table, f.name) for table in tables]
        lists = f.name in ("frames", "object_ids")
        columns[f.name] = [item for part in parts for item in part] if lists else np.concatenate(parts)
    return Boxes(**columns)


def sides(truth: Boxes, found: Boxes) -> tuple[Objects, Objects]:
    """Ground truth and predictions as the metric takes them, with common numbers of their frames."""
    number = {name: i for i, name in enumerate(sorted({*truth.frames, *found.frames}))}
    truth = truth.counted()
    frames = [np.array([number[name] for name in side.frames], np.int64) for side in (truth, found)]
    return (
        Objects.ground_truth(frames[0], truth.type, truth.boxes.astype(np.float32), truth.difficulty, truth.speed),
        Objects.predictions(frames[1], found.type, found.boxes.astype(np.float32), found.score, found.zone),
    )


def check_frames(found: Boxes, known: Collection[Name], path: Path) -> None:
    """Check that boxes are of known frames.

    Args:
        found: the boxes.
        known: segment and timestamp of each known frame.
        path: the file of the boxes, for the message.

    Raises:
        DataError: a box is of another frame.
    """
    for name in dict.fromkeys(found.frames):
        if name not in known:
            raise DataError(f"{path}: frame {name[1]} of segment {name[0]!r} is not in the ground truth")


def read_boxes(path: str | Path, scores: bool) -> Boxes:
    """Boxes of a Parquet file, with the columns of the component lidar_box or plain names; see `COLUMNS`.

    scores: whether it must have some, as results do. Raises DataError naming the file, and the column or row.
    """
    path = Path(path)
    columns = _read_table(path, scores)
    count = len(columns["time"])
    boxes = np.stack([_numbers(path, columns, name) for name in BOX], axis=1).reshape(count, 7)
    frames = list(zip(columns["context"].tolist(), _numbers(path, columns, "time", np.int64).tolist(), strict=True))
    further: dict[str, Any] = {}
    if "score" in columns:
        further["score"] = _numbers(path, columns, "score", np.float32)
    if "zone" in columns:
        further["zone"] = columns["zone"].astype(bool)
    if "object_id" in columns:
        further["object_ids"] = columns["object_id"].tolist()
    for name, unknown in (("difficulty", 0), ("num_points", -1)):
        if name in columns:
            further[name] = np.nan_to_num(_numbers(path, columns, name), nan=unknown).astype(np.int64)
    if "speed_x" in columns and "speed_y" in columns:
        speed = [_numbers(path, columns, name) for name in ("speed_x", "speed_y")]
        further["speed"] = np.nan_to_num(np.stack(speed, 1))
    found = Boxes.of(frames, _types(path, columns["type"]), boxes, **further)
    check_boxes(found, path)
    if not scores:
        check_truth(found, path)
    return found


def _numbers(path: Path, columns: Mapping[str, Array], name: str, dtype: type = np.float64) -> Array:
    """A column of numbers, in which None is NaN. Raises DataError naming it where it has others."""
    values = columns[name]
    column = np.array([np.nan if value is None else value for value in values]) if values.dtype == object else values
    if column.dtype.kind not in "iuf":
        other = next(value for value in values.tolist() if value is not None)
        raise DataError(f"{path}: column {name!r} must hold numbers, holds {other!r}")
    if dtype is np.int64 and column.dtype.kind == "f" and not (column == np.floor(column)).all():
        raise DataError(f"{path}: column {name!r} must hold whole numbers")
    return column.astype(dtype)


def check_truth(truth: Boxes, path: Path) -> None:
    """Raises DataError naming the frame of labels that cannot be: an object twice, a difficulty other than 0, 1 and 2.

    Objects without a name are not compared.
    """
    wrong = ~np.isin(truth.difficulty, (0, 1, 2)) | (truth.num_points < -1)
    if wrong.any():
        row = int(np.argmax(wrong))
        context, time = truth.frames[row]
        values = f"{truth.difficulty[row]} and {truth.num_points[row]}"
        raise DataError(
            f"{path}: frame {time} of segment {context!r}: object {row} must have a difficulty of 0, 1 or 2 and at "
            f"least 0 points, has {values}"
        )
    names = Counter((*frame, own) for frame, own in zip(truth.frames, truth.object_ids, strict=True) if own)
    twice = next((name for name, count in names.items() if count > 1), None)
    if twice:
        context, time, own = twice
        raise DataError(f"{path}: frame {time} of segment {context!r}: object {own} is there {names[twice]} times")


def usable(found: Boxes) -> Array:
    """bool [N]: which boxes and scores are finite, of positive size, and of numbers that boxes can have."""
    boxes = found.boxes
    within = (np.abs(boxes[:, :6]) <= LARGEST_SIDE).all(axis=1) & (np.abs(boxes[:, 6]) <= MOST_TURNED)
    return np.asarray(within & (boxes[:, 3:6] > 0).all(axis=1) & np.isfinite(found.score))


def check_boxes(found: Boxes, path: Path) -> None:
    """Raises DataError for boxes and scores that are not `usable`, naming the frame of the first one."""
    wrong = np.flatnonzero(~usable(found))
    if len(wrong):
        row = int(wrong[0])
        context, time = found.frames[row]
        values = [*found.boxes[row].tolist(), float(found.score[row])]
        raise DataError(
            f"{path}: frame {time} of segment {context!r}: box {row} must be finite, of positive size, in metres and "
            f"radians, with a finite score; is {values}"
        )


def write_boxes(path: str | Path, found: Boxes) -> None:
    """Write results as a Parquet file with the columns of the component lidar_box, and `score`."""
    import pyarrow as pa
    from pyarrow import parquet

    ids = [own or f"{i}" for i, own in enumerate(found.object_ids)]
    columns: dict[str, Any] = {
        COLUMNS["context"][0]: pa.array([name for name, _ in found.frames], pa.string()),
        COLUMNS["time"][0]: pa.array([time for _, time in found.frames], pa.int64()),
        OPTIONAL["object_id"][0]: pa.array(ids, pa.string()),
        **{COLUMNS[name][0]: pa.array(found.boxes[:, i], pa.float64()) for i, name in enumerate(BOX)},
        COLUMNS["type"][0]: pa.array(found.type, pa.int8()),
        OPTIONAL["speed_x"][0]: pa.array(found.speed[:, 0].astype(np.float64), pa.float64()),
        OPTIONAL["speed_y"][0]: pa.array(found.speed[:, 1].astype(np.float64), pa.float64()),
        "score": pa.array(found.score, pa.float32()),
    }
    with atomic_write(path) as temporary:
        parquet.write_table(pa.table(columns), temporary)


def _read_table(path: Path, scores: bool) -> dict[str, Array]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path, memory_map=True)
        present = set(file.schema_arrow.names)
        chosen = _chosen(path, present, scores)
        table = file.read(columns=list(chosen.values()), use_threads=False)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no Parquet file, or damaged ({error})") from error
    for name, column in chosen.items():
        kind = table[column].type
        if pa.types.is_nested(kind) or (
            name == "zone" and not (pa.types.is_boolean(kind) or pa.types.is_integer(kind))
        ):
            raise DataError(f"{path}: column {column!r} must hold one value for each box, holds {kind}")
        if name in COLUMNS and table[column].null_count:
            raise DataError(f"{path}: column {column!r} lacks values")
    return {name: table[column].to_numpy(zero_copy_only=False) for name, column in chosen.items()}


def _chosen(path: Path, present: Collection[str], scores: bool) -> dict[str, str]:
    """Column of the file for each thing that it holds."""
    kind = 0 if COLUMNS["time"][0] in present else 1
    required = {name: columns[kind] for name, columns in COLUMNS.items()} | ({"score": "score"} if scores else {})
    missing = [column for column in required.values() if column not in present]
    if missing:
        raise DataError(
            f"{path}: no column {missing[0]!r}{suggest(missing[0], present)}; it needs {[*required.values()]}"
        )
    optional = {name: columns[kind] for name, columns in OPTIONAL.items() if columns[kind] in present}
    return required | optional


def _types(path: Path, column: Array) -> Array:
    """Positions in `TYPES` of a column of numbers or names."""
    if column.dtype.kind in "iu":
        numbers = column.astype(np.int64)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(TYPES)):
            raise DataError(f"{path}: types must be from 0 to {len(TYPES) - 1}, got {numbers.min()} to {numbers.max()}")
        return numbers
    return np.array([type_number(str(name), path) for name in column], np.int64).reshape(-1)


def type_number(name: str, where: Any) -> int:
    """Position in `TYPES` of the name of a class, in any case. Raises DataError for others."""
    plain = name.upper().removeprefix("TYPE_")
    if plain not in TYPES:
        raise DataError(f"{where}: {name!r} is no type of objects{suggest(plain, TYPES)}; there are {', '.join(TYPES)}")
    return TYPES.index(plain)


def _taken(column: Any, keep: Array) -> Any:
    return column[keep] if isinstance(column, np.ndarray) else [column[i] for i in keep]
