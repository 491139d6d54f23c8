"""The frames of an index, read from the file when they are asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pcdet_ext.data.index.entries import SCHEMA, FrameInfo, entry_of
from pcdet_ext.data.index.prepared import FORMAT, require_file
from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

GROUP = 128  # frames that are decoded at once
PIECE = 4096  # frames whose names are looked through at once
KEY = b"pcdet_ext"  # of what the file says of itself


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
            return entry_of(self._group[1], row)
        except (TypeError, ValueError, IndexError) as error:
            raise DataError(f"{self.path}: damaged index ({error}); prepare the data again") from error

    def _read(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged index ({_first_line(error)}); prepare the data again") from error


def read_index(path: Path) -> FrameTable:
    """Open an index. Raises DataError when it is missing, damaged, or of another format."""
    return FrameTable(path)


def _opened(path: Path) -> tuple[pq.ParquetFile, Mapping[str, Any]]:
    """An index file, mapped into memory, and what it says of itself."""
    require_file(path)
    try:
        file = pq.ParquetFile(path, memory_map=True, pre_buffer=False)
        schema = file.schema_arrow
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no text
        raise DataError(f"{path}: damaged ({_first_line(error)}); prepare the data again") from error
    try:
        about = json.loads((file.metadata.metadata or {}).get(KEY, b"null"))
    except ValueError:
        about = None
    known = isinstance(about, dict) and about.get("format") == FORMAT and schema.equals(SCHEMA)
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
