"""Parquet files of the Waymo Open Dataset: their columns checked, and rows read a frame at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

Kind = Literal["whole numbers", "numbers", "text", "lists of numbers", "lists of whole numbers"]  # what a column holds
TIME, LASER, OBJECT = "key.frame_timestamp_micros", "key.laser_name", "key.laser_object_id"
KEYS: dict[str, Kind] = {TIME: "whole numbers", LASER: "whole numbers", OBJECT: "text"}
ROWS_AT_ONCE = 4  # rows of range images in memory: one of the top laser has 5 MB


class RowFile:
    """A Parquet file with large rows, read by the frame: forward from where the last frame was, where that is possible.

    path: of the file; keys: key columns (int64 [R] each), which are all in memory.
    """

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.path = path
        table = read_columns(path, {name: KEYS[name] for name in keys})
        self.keys = {name: table[name].to_numpy().astype(np.int64) for name in keys}
        self._rows: Iterator[dict[str, Any]] = iter(())
        self._columns: tuple[str, ...] = ()
        self._next = self._end = 0  # the rows that are still to come

    def times(self) -> Array:
        """int64 [T]: timestamps of the frames, ascending."""
        return np.unique(self.keys[TIME])

    def read(self, time: int, columns: Mapping[str, Kind]) -> list[dict[str, Any]]:
        """Key and other columns of the rows of a frame. Raises DataError where there is none, or one is damaged."""
        rows = np.flatnonzero(self.keys[TIME] == time)
        if not len(rows):
            raise DataError(f"{self.path}: no row of frame {time}")
        try:
            return [self._row(int(row), columns) for row in rows]
        except (OSError, ValueError) as error:
            self._end = 0
            raise DataError(f"{self.path}: frame {time} cannot be read ({one_line(error)})") from error

    def _row(self, row: int, columns: Mapping[str, Kind]) -> dict[str, Any]:
        if tuple(columns) != self._columns or not self._next <= row < self._end:
            self._start(row, columns)
        while True:
            self._next += 1
            found = next(self._rows)
            if self._next > row:
                return {**found, **{name: int(column[row]) for name, column in self.keys.items()}}

    def _start(self, row: int, columns: Mapping[str, Kind]) -> None:
        """Begin at the row group that holds a row."""
        with Naming(self.path):
            from pyarrow import parquet

            file = parquet.ParquetFile(self.path, memory_map=True)
            check_columns(self.path, file.schema_arrow, columns)
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            if row < end:
                break
            first = end
        batches = file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=list(columns), use_threads=False)
        self._rows = (_values(batch, i) for batch in batches for i in range(len(batch)))
        self._columns, self._next, self._end = tuple(columns), first, end


def _values(batch: Any, row: int) -> dict[str, Any]:
    """Arrays of one row of a batch; None where there is none."""
    found = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        scalar = column[row]
        found[name] = scalar.values.to_numpy(zero_copy_only=False) if scalar.is_valid else None
    return found


def read_columns(path: Path, columns: Mapping[str, Kind], may_be_empty: bool = False) -> Any:
    """Columns of a small component as a table of pyarrow.

    Args:
        path: the Parquet file.
        columns: kind by name.
        may_be_empty: whether it may have no rows.

    Raises:
        DataError: a column is missing or of another kind, a key lacks values, or there are no rows.
    """
    with Naming(path):
        from pyarrow import parquet

        file = parquet.ParquetFile(path, memory_map=True)
        check_columns(path, file.schema_arrow, columns)
        table = file.read(columns=list(columns), use_threads=False).select(list(columns))
    if not table.num_rows and not may_be_empty:
        raise DataError(f"{path}: the component is empty, without a row")
    for name in columns:
        if name in KEYS and table[name].null_count:
            raise DataError(f"{path}: column {name} lacks values")
    return table


def check_columns(path: Path, schema: Any, wanted: Mapping[str, Kind]) -> None:
    """Hold the columns of a file against those that are wanted.

    Args:
        path: the file, for messages.
        schema: of pyarrow.
        wanted: what each column must hold, by name.

    Raises:
        DataError: a column is missing or holds something else.
    """
    for name, kind in wanted.items():
        if name not in schema.names:
            raise DataError(f"{path}: no column {name!r}{suggest(name, schema.names)}")
        if not _holds(schema.field(name).type, kind):
            raise DataError(f"{path}: column {name!r} must hold {kind}, holds {schema.field(name).type}")


def _holds(column: Any, kind: Kind) -> bool:
    """Whether a type of pyarrow is of a kind."""
    from pyarrow import types

    match kind:
        case "whole numbers":
            return bool(types.is_integer(column))
        case "numbers":
            return bool(types.is_integer(column) or types.is_floating(column))
        case "text":
            return bool(types.is_string(column) or types.is_large_string(column))
    is_list = types.is_list(column) or types.is_fixed_size_list(column) or types.is_large_list(column)
    return is_list and _holds(column.value_type, "numbers" if kind == "lists of numbers" else "whole numbers")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


class Naming:
    """Errors of reading a Parquet file name it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        if not self.path.is_file():
            component = self.path.parent.name
            raise MissingFileError(f"{self.path}: no such file, the component {component} is missing")

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (OSError, ValueError, NotImplementedError)) and not isinstance(error, DataError):
            raise DataError(f"{self.path}: no Parquet file, or damaged ({one_line(error)})") from error
