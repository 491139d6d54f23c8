"""The index of a prepared split: what a data set must know of its frames before it reads them.

A Parquet file that is mapped into memory: nothing of a frame is in a process before somebody asks for it, so that an
index of any size opens at once and worker processes share it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array, Sample, Targets

FORMAT = 5  # of the prepared files; a reader takes no other
FOLDER = "pcdet_ext"  # under the data folder, where preparation writes unless another folder is named
GROUP = 128  # frames that are decoded at once
PIECE = 4096  # frames whose names are looked through at once
_KEY = b"pcdet_ext"  # of what the file says of itself

_SCHEMA = pa.schema(
    [
        ("frame_id", pa.string()),
        ("sequence_id", pa.string()),
        ("num_points", pa.int64()),
        ("dropped", pa.int64()),
        ("timestamp", pa.float64()),
        ("pose", pa.list_(pa.float64())),
        ("box_columns", pa.int8()),
        ("boxes", pa.list_(pa.float32())),
        ("names", pa.list_(pa.string())),
        ("difficulty", pa.list_(pa.int32())),
        ("points_in_box", pa.list_(pa.int32())),
        ("track_ids", pa.list_(pa.int64())),
        ("extra", pa.string()),
    ]
)


def _no_integers() -> Array:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class FrameInfo:
    """What the index says of one frame.

    num_points: points in the frame's own file(s); dropped: how many of them are not finite; boxes: float32 [M, 7 or 9]
    in the LiDAR frame, or None for a frame without labels; names: the class of each box; difficulty, points_in_box,
    track_ids (or None): int64 [M]; timestamp: seconds; pose: float64 [4, 4] sensor to world; extra: what the format
    itself needs to find and read the frame, in JSON types. Raises ValueError where these do not fit together.
    """

    frame_id: str
    num_points: int
    dropped: int
    sequence_id: str = ""
    boxes: Array | None = None
    names: Sequence[str] = ()
    difficulty: Array = field(default_factory=_no_integers)
    points_in_box: Array = field(default_factory=_no_integers)
    track_ids: Array | None = None
    timestamp: float | None = None
    pose: Array | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.boxes is None:
            return
        if self.boxes.ndim != 2 or self.boxes.shape[1] not in (7, 9):
            raise ValueError(f"frame {self.frame_id}: boxes must have 7 or 9 numbers")
        columns = (self.names, self.difficulty, self.points_in_box, self.track_ids)
        if any(column is not None and len(column) != len(self.boxes) for column in columns):
            raise ValueError(f"frame {self.frame_id}: not one value per box")

    @staticmethod
    def of(sample: Sample, dropped: int, points_in_box: Array, extra: Mapping[str, Any]) -> FrameInfo:
        """The entry of a frame that was read whole.

        Objects without a difficulty get the difficulty 0, so that all count.

        Args:
            sample: the frame.
            dropped: number of its NaN and infinite points, which were left out.
            points_in_box: int64 [M], points found inside each box, where the labels do not say themselves how many.
            extra: what else the format keeps about a frame.
        """
        targets = sample.targets
        info = FrameInfo(
            frame_id=sample.frame_id,
            num_points=len(sample.points),
            dropped=dropped,
            sequence_id=sample.sequence_id,
            timestamp=sample.timestamp,
            pose=None if sample.pose is None else np.asarray(sample.pose, np.float64),
            extra=extra,
        )
        if targets is None or targets.boxes is None:
            return info
        counts = points_in_box if targets.num_points is None else targets.num_points
        difficulty = np.zeros(len(targets), np.int64) if targets.difficulty is None else targets.difficulty
        return replace(
            info,
            boxes=np.asarray(targets.boxes, np.float32),
            names=targets.names,
            difficulty=np.asarray(difficulty, np.int64),
            points_in_box=np.asarray(counts, np.int64),
            track_ids=None if targets.track_ids is None else np.asarray(targets.track_ids, np.int64),
        )

    @property
    def labelled(self) -> bool:
        """Whether the frame has labels, be they of no object: boxes, or by `extra["point_labels"]` those of points."""
        return self.boxes is not None or bool(self.extra.get("point_labels"))

    def targets(self) -> Targets | None:
        """The labelled boxes, None where the frame has no labels."""
        if self.boxes is None:
            return None
        columns = {"difficulty": self.difficulty, "num_points": self.points_in_box, "track_ids": self.track_ids}
        own = {name: column.copy() for name, column in columns.items() if column is not None}
        return Targets.of_names(self.boxes.copy(), self.names, **own)


class FrameTable(Sequence[FrameInfo]):
    """The frames of an index, or some of them; an entry is made when it is asked for.

    Args:
        path: the index file.
        positions: int64 [N], frames of the file that the table has, in their order and possibly repeated; None for all.

    Raises:
        DataError: the file is missing, damaged, or of another format.
    """

    def __init__(self, path: str | Path, positions: Array | None = None) -> None:
        self.path = Path(path)
        self.positions = positions
        self._open()

    def _open(self) -> None:
        self._file, self.about = _opened(self.path)
        self._group: tuple[int, pa.Table | None] = (-1, None)  # the frames that were decoded last
        columns = self._read(lambda: self._file.read(["frame_id", "sequence_id"], use_threads=False))
        self._frame_ids = columns["frame_id"].combine_chunks()
        self._sequences = columns["sequence_id"].combine_chunks()

    def __getstate__(self) -> tuple[Path, Array | None]:
        return self.path, self.positions

    def __setstate__(self, state: tuple[Path, Array | None]) -> None:
        self.path, self.positions = state
        self._open()

    def __len__(self) -> int:
        return len(self._frame_ids) if self.positions is None else len(self.positions)

    @overload
    def __getitem__(self, index: int) -> FrameInfo: ...
    @overload
    def __getitem__(self, index: slice) -> FrameTable: ...
    def __getitem__(self, index: int | slice) -> FrameInfo | FrameTable:
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        index %= len(self)
        return self._entry(index if self.positions is None else int(self.positions[index]))

    def __iter__(self) -> Iterator[FrameInfo]:
        return (self[i] for i in range(len(self)))

    def select(self, positions: Array) -> FrameTable:
        """The table with the frames at some positions of this one, int64 [N], alone."""
        own = positions if self.positions is None else self.positions[positions]
        return FrameTable(self.path, np.asarray(own, np.int64))

    def find(self, frame_id: str) -> int:
        """Position of a frame in this table. Raises KeyError where there is none of this id."""
        position = pc.index(self._frame_ids, pa.scalar(frame_id, pa.string())).as_py()
        if position >= 0 and self.positions is not None:
            among = np.flatnonzero(self.positions == position)
            position = int(among[0]) if len(among) else -1
        if position < 0:
            raise KeyError(frame_id)
        return int(position)

    @property
    def frame_ids(self) -> list[str]:
        """The id of every frame."""
        ids: list[str] = self._own(self._frame_ids).to_pylist()
        return ids

    @property
    def sequence_ids(self) -> list[str]:
        """The sequence of every frame, empty for a frame that stands alone."""
        ids: list[str] = self._own(self._sequences).to_pylist()
        return ids

    @property
    def labelled(self) -> bool:
        """Whether a frame of the file has labels."""
        return bool(self.about["labelled"])

    @property
    def layout(self) -> str:
        """Which layout of files the index was made from, as "kitti"; empty where it is not known."""
        return str(self.about.get("layout", ""))

    @property
    def root(self) -> Path | None:
        """The data folder that the index was made from, where it is known."""
        root = self.about.get("root")
        return None if root is None else Path(root)

    def class_counts(self) -> Counter[str]:
        """Number of objects of every class in the whole file, most frequent first."""
        return Counter(self.about["classes"])

    def extras(self) -> Iterator[Mapping[str, Any]]:
        """What the format itself has of each frame, in their order, without anything else of them."""
        column = self._own(self._read(lambda: self._file.read(["extra"], use_threads=False))["extra"])
        return map(json.loads, column.to_pylist())

    def frames_by_class(self) -> dict[str, Array]:
        """int64 [K] for each class: positions in this table of the frames that have an object of it, ascending."""
        found = self._read(lambda: _frames_by_class(self.path))
        if self.positions is None:
            return found
        return {name: np.flatnonzero(np.isin(self.positions, holding)) for name, holding in found.items()}

    def frames_with(self, name: str) -> Array:
        """int64 [K]: positions in this table of the frames that have an object of a class, ascending."""
        return self.frames_by_class().get(name, np.zeros(0, np.int64))

    def previous(self, frame_id: str, count: int) -> list[FrameInfo]:
        """Up to `count` frames of the same sequence that precede a frame in this table, the nearest first."""
        position = self.find(frame_id)
        first = max(0, position - count)
        positions = np.arange(first, position + 1) if self.positions is None else self.positions[first : position + 1]
        *earlier, own = self._sequences.take(pa.array(positions)).to_pylist()
        found = []
        for i, sequence in enumerate(reversed(earlier), 1):
            if not own or sequence != own:
                break
            found.append(self[position - i])
        return found

    def following(self, frame_id: str, count: int) -> list[FrameInfo]:
        """Up to `count` frames of the same sequence that come after a frame in this table, in their order."""
        position = self.find(frame_id)
        last = min(len(self) - 1, position + count)
        positions = np.arange(position, last + 1)
        rows = positions if self.positions is None else self.positions[positions]
        own, *later = self._sequences.take(pa.array(rows)).to_pylist()
        same = takewhile(lambda sequence: bool(own) and sequence == own, later)
        return [self[position + i] for i, _ in enumerate(same, 1)]

    def _own(self, column: Any) -> Any:
        return column if self.positions is None else column.take(pa.array(self.positions))

    def _entry(self, position: int) -> FrameInfo:
        group, row = divmod(position, GROUP)
        if group != self._group[0]:
            self._group = (group, self._read(lambda: self._file.read_row_group(group, use_threads=False)))
        try:
            return _info(self._group[1], row)
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(f"{self.path}: damaged index ({error}); prepare the data again") from error

    def _read(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged index ({_first_line(error)}); prepare the data again") from error


def index_path(folder: str | Path, split: str) -> Path:
    """Index file of a split in a preparation folder."""
    return Path(folder) / f"index_{split}.parquet"


class IndexWriter:
    """Writes the entries of an index one after the other; see `index_writer`."""

    def __init__(self, path: Path, root: Path | None = None, layout: str = "") -> None:
        self._path, self._root, self._layout = path, root, layout
        self._writer: pq.ParquetWriter | None = None
        self._rows: list[FrameInfo] = []
        self.classes: Counter[str] = Counter()
        self.labelled = 0

    def add(self, info: FrameInfo) -> None:
        """Take the entry of the next frame."""
        self.classes.update(info.names)
        self.labelled += info.labelled
        self._rows.append(info)
        if len(self._rows) == GROUP:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, _SCHEMA, compression="none", use_dictionary=["names"], write_statistics=False
            )
        self._writer.write_table(_table(self._rows), row_group_size=GROUP)
        self._rows = []

    def close(self, complete: bool) -> None:
        """Finish the file, where it is complete with what it says of itself."""
        if complete and (self._rows or self._writer is None):
            self._flush()
        if self._writer is not None:
            about = {
                "format": FORMAT,
                "classes": dict(self.classes.most_common()),
                "labelled": self.labelled,
                "layout": self._layout,
                "root": None if self._root is None else str(self._root.resolve()),
            }
            self._writer.add_key_value_metadata({_KEY.decode(): json.dumps(about)})
            self._writer.close()


@contextmanager
def index_writer(path: Path, root: Path | None = None, layout: str = "") -> Iterator[IndexWriter]:
    """A context manager whose writer's index takes the place of `path` when the block ends without an error.

    Args:
        path: the Parquet file.
        root: the folder of the data.
        layout: how the files there are laid out, for example "kitti".
    """
    with atomic_write(path) as temporary:
        writer = IndexWriter(temporary, root, layout)
        complete = False
        try:
            yield writer
            complete = True
        finally:
            writer.close(complete)


def write_index(path: Path, infos: Iterable[FrameInfo], layout: str = "") -> None:
    """Write an index; an existing file is replaced as a whole.

    Args:
        path: the Parquet file.
        infos: the entries, in their order.
        layout: how the files of the data are laid out, for example "kitti".
    """
    with index_writer(path, layout=layout) as writer:
        for info in infos:
            writer.add(info)


def read_index(path: Path) -> FrameTable:
    """Open an index. Raises DataError when it is missing, damaged, or of another format."""
    return FrameTable(path)


def _table(infos: Sequence[FrameInfo]) -> pa.Table:
    def per_box(column: Array | None, info: FrameInfo) -> Any:
        return None if info.boxes is None or column is None else np.asarray(column)

    columns = {
        "frame_id": [info.frame_id for info in infos],
        "sequence_id": [info.sequence_id for info in infos],
        "num_points": [info.num_points for info in infos],
        "dropped": [info.dropped for info in infos],
        "timestamp": [info.timestamp for info in infos],
        "pose": [None if info.pose is None else np.asarray(info.pose, np.float64).ravel() for info in infos],
        "box_columns": [7 if info.boxes is None else info.boxes.shape[1] for info in infos],
        "boxes": [None if info.boxes is None else info.boxes.ravel() for info in infos],
        "names": [None if info.boxes is None else list(info.names) for info in infos],
        "difficulty": [per_box(info.difficulty, info) for info in infos],
        "points_in_box": [per_box(info.points_in_box, info) for info in infos],
        "track_ids": [per_box(info.track_ids, info) for info in infos],
        "extra": [json.dumps(dict(info.extra)) for info in infos],
    }
    return pa.table({name: pa.array(columns[name], _SCHEMA.field(name).type) for name in _SCHEMA.names}, _SCHEMA)


def _info(table: pa.Table, row: int) -> FrameInfo:
    def value(name: str) -> Any:
        return table[name][row].as_py()

    def numbers(name: str, dtype: type) -> Array | None:
        scalar = table[name][row]
        return None if not scalar.is_valid else scalar.values.to_numpy(zero_copy_only=False).astype(dtype)

    boxes, pose = numbers("boxes", np.float32), numbers("pose", np.float64)
    info = FrameInfo(
        frame_id=value("frame_id"),
        num_points=int(value("num_points")),
        dropped=int(value("dropped")),
        sequence_id=value("sequence_id"),
        timestamp=value("timestamp"),
        pose=None if pose is None else pose.reshape(4, 4),
        extra=json.loads(value("extra")),
    )
    if boxes is None:
        return info
    difficulty, counts = numbers("difficulty", np.int64), numbers("points_in_box", np.int64)
    return replace(
        info,
        boxes=boxes.reshape(-1, value("box_columns")),
        names=tuple(value("names")),
        difficulty=_no_integers() if difficulty is None else difficulty,
        points_in_box=_no_integers() if counts is None else counts,
        track_ids=numbers("track_ids", np.int64),
    )


def _opened(path: Path) -> tuple[pq.ParquetFile, Mapping[str, Any]]:
    """An index file, mapped into memory, and what it says of itself."""
    _require_file(path)
    try:
        file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no text
        raise DataError(f"{path}: damaged ({_first_line(error)}); prepare the data again") from error
    try:
        about = json.loads((file.metadata.metadata or {}).get(_KEY, b"null"))
    except ValueError:
        about = None
    known = isinstance(about, dict) and about.get("format") == FORMAT and schema.equals(_SCHEMA)
    if not known or file.num_row_groups != max(1, -(-file.metadata.num_rows // GROUP)):
        raise DataError(f"{path}: not of this version's format {FORMAT}; prepare the data again")
    return file, about


def _frames_by_class(path: Path) -> dict[str, Array]:
    """int64 [K] for each class: the frames of a file that have an object of it, read in pieces."""
    file = pq.ParquetFile(path, memory_map=True, pre_buffer=False, read_dictionary=["names.list.element"])
    found: dict[str, list[Array]] = {}
    start = 0
    for batch in file.iter_batches(PIECE, columns=["names"], use_threads=False):
        names = batch["names"]
        frames, values = pc.list_parent_indices(names).to_numpy(), names.flatten()
        for code, name in enumerate(values.dictionary.to_pylist()):
            own = frames[values.indices.to_numpy() == code]
            found.setdefault(name, []).append(start + np.unique(own).astype(np.int64))
        start += len(batch)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _require_file(path: Path) -> None:
    """Raise MissingFileError where a prepared file is not there."""
    if path.exists():
        return
    _require_data_folder(path)
    older = path.with_suffix(".json")
    if older != path and older.exists():
        raise DataError(f"{older}: of an earlier version; prepare the data again")
    raise MissingFileError(
        f"{path}: no such file; make it with `pcdet prepare` (--splits and --database name the splits; where "
        "the data folder is read-only, --out and data.index name another one)"
    )


def _require_data_folder(path: Path) -> None:
    """Raise MissingFileError where not even the data is there, in whose folder `pcdet prepare` makes its own."""
    for prepared in path.parents:
        if prepared.name == FOLDER and not prepared.parent.is_dir():
            inside = path.relative_to(prepared.parent)
            raise MissingFileError(f"{prepared.parent}: no such folder, so there is no {inside} in it")


def read_prepared(path: Path) -> Mapping[str, Any]:
    """The content of a prepared JSON file. Raises DataError when missing, damaged, or of another format."""
    _require_file(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error}); prepare the data again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: not of this version's format {FORMAT}; prepare the data again")
    return content
