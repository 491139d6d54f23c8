"""One table of a nuScenes release, read as columns.

The released files are arrays of objects, the largest with millions of rows. They are read in pieces, and of each row
only what is wanted is kept: the camera's share of `sample_data.json`, nine rows in ten, never comes to rest in memory.
"""

from __future__ import annotations

import json
import math
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

NONE, UNKNOWN = -1, -2  # rows of an empty token, and of one that is in no row
LARGEST = 1e9  # metres, and metres per second, beyond which a number is no place, size or speed
LARGEST_WHOLE = 2**53  # up to which float64 holds every whole number
LARGEST_COUNT = 2**31 - 1

_PIECE = 1 << 22  # characters read at a time; no row is longer
_BETWEEN = re.compile(r"[\s,]*")
Row = Mapping[str, Any]
Kind = int | type[str] | type[tuple[str, ...]]


@dataclass(frozen=True, eq=False)
class Table:
    """Columns of one table.

    path: its file; tokens: of the rows in their order; row: row by token; texts: list of str by column; numbers:
    float64 [N] or [N, K] by column; lists: list of tuples of str by column; problems: what is wrong, by row, of rows
    that could not be read. These have "", NaN and () in their columns, and what is asked of them raises DataError.
    """

    path: Path
    tokens: Sequence[str]
    row: Mapping[str, int]
    texts: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Array]
    lists: Mapping[str, Sequence[tuple[str, ...]]]
    problems: Mapping[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    def check(self, rows: Array | None = None) -> Array:
        """The rows, int64 [K], all of them by default. Raises DataError for one that could not be read."""
        rows = np.arange(len(self)) if rows is None else rows
        if self.problems:
            for i in rows.tolist():
                if i in self.problems:
                    raise DataError(self.problems[i])
        return rows

    def whole(self, column: str, rows: Array | None = None, least: int = -LARGEST_WHOLE) -> Array:
        """A column of whole numbers.

        Args:
            column: its name.
            rows: int64 [K]; None for all.
            least: the smallest number that may be.

        Returns:
            int64 [K].

        Raises:
            DataError: a number is not whole, too small, or too large to be held exactly; the message names its row.
        """
        rows = self.check(rows)
        values = self.numbers[column][rows]
        good = (values >= least) & (values <= LARGEST_WHOLE) & (values == np.floor(values))
        for i in np.flatnonzero(~good).tolist():
            expected = "a whole number" if least == -LARGEST_WHOLE else f"a whole number of at least {least}"
            raise DataError(f"{self._named(rows[i])}: {column} is {values[i]:g}, expected {expected}")
        return values.astype(np.int64)

    def counts(self, column: str, rows: Array) -> Array:
        """A column of numbers of points in some rows, as int64. Raises DataError for one that can be none."""
        values = self.whole(column, rows, least=0)
        for i in np.flatnonzero(values > LARGEST_COUNT).tolist():
            raise DataError(f"{self._named(rows[i])}: {column} is {values[i]}, more points than a scan can have")
        return values

    def rows(self, other: Table, column: str, rows: Array | None = None) -> Array:
        """The rows here that a column of another table names.

        Args:
            other: the table with the column.
            column: its name.
            rows: int64 [K], of the other table; None for all.

        Returns:
            int64 [K].

        Raises:
            DataError: a token is empty, or is not here.
        """
        found = self.optional_rows(other, column, rows)
        for i in np.flatnonzero(found == NONE).tolist():
            row = i if rows is None else rows[i]
            raise DataError(f"{other._named(row)}: {column} is empty, expected a token of {self.path.name}")
        return found

    def optional_rows(self, other: Table, column: str, rows: Array | None = None) -> Array:
        """The rows here that a column of another table names, which may be empty as `prev` and `next` are.

        Args:
            other: the table with the column.
            column: its name.
            rows: int64 [K], of the other table; None for all.

        Returns:
            int64 [K], NONE where the column is empty.

        Raises:
            DataError: a token is not here.
        """
        rows = other.check(rows)
        tokens = other.texts[column]
        found = self.find(tokens[i] for i in rows.tolist())
        for i in np.flatnonzero(found == UNKNOWN).tolist():
            raise DataError(f"{other._named(rows[i])}: {column} {tokens[rows[i]]!r} is not in {self.path.name}")
        return found

    def find(self, tokens: Iterable[str]) -> Array:
        """int64: the row of each token, NONE for an empty one, UNKNOWN for one that is not here."""
        row = self.row
        return np.array([row.get(token, UNKNOWN) if token else NONE for token in tokens], np.int64)

    def check_finite(self, column: str, rows: Array, largest: float = LARGEST) -> Array:
        """A column of several numbers, checked.

        Args:
            column: its name.
            rows: int64 [K].
            largest: beyond which a number is wrong.

        Returns:
            float64 [K, width].

        Raises:
            DataError: a number is not finite, or too large; the message names the first such row.
        """
        values = self.numbers[column][self.check(rows)]
        for i in np.flatnonzero(~(np.abs(values) <= largest).all(axis=1)).tolist():
            what = f"is beyond {largest:g}" if np.isfinite(values[i]).all() else "is not finite"
            raise DataError(f"{self.path}: {self.tokens[rows[i]]}: {column} {what}: {values[i].tolist()}")
        return values

    def _named(self, row: int) -> str:
        return f"{self.path}: row {row} ({self.tokens[row]})"


def stream(path: Path) -> Iterator[Row]:
    """The rows of a table, one after the other. Raises DataError where the file is missing or no array of objects."""
    decode = json.JSONDecoder().raw_decode
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_PIECE).lstrip()
            if not text.startswith("["):
                raise DataError(f"{path}: no table, which is an array of rows")
            at = 1
            while True:
                at = _end_of_gap(text, at)
                try:
                    row, at = decode(text, at)
                except json.JSONDecodeError as error:
                    text, at = text[at:], 0
                    more = file.read(_PIECE) if len(text) < _PIECE else ""
                    if more:
                        text += more
                        continue
                    if text.strip() == "]":
                        return
                    raise DataError(f"{path}: damaged or cut short ({error.msg} at {text[:40]!r})") from error
                except (ValueError, RecursionError) as error:  # a number of too many digits, or lists in lists in lists
                    raise DataError(f"{path}: damaged ({error})") from error
                if not isinstance(row, dict):
                    raise DataError(f"{path}: a row that is no object: {row!r}")
                yield row
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _end_of_gap(text: str, at: int) -> int:
    gap = _BETWEEN.match(text, at)
    return at if gap is None else gap.end()


def read_table(
    path: Path,
    columns: Mapping[str, Kind],
    keep: Callable[[Row], bool] | None = None,
    needed: Sequence[str] | None = None,
) -> Table:
    """The columns of a table that are wanted, beside its tokens.

    Args:
        path: the file.
        columns: kind by name: str, the tuple type for lists of texts, or for numbers how many, 0 for a single one.
        keep: which rows are wanted, all by default.
        needed: columns of texts without which a row is of no use; of a row that has these and its token the rest may
            be wrong, which is then among the table's `problems`. None: everything must be right.

    Raises:
        DataError: naming the file and the row that lacks a column, or has something else in it.
    """
    tokens: list[str] = []
    taken = _Columns(columns)
    problems: dict[int, str] = {}
    for i, row in enumerate(stream(path)):
        try:
            if keep is not None and not keep(row):
                continue
            token = taken.text(row["token"])
            taken.add(row)
        except _WRONG as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else f"is wrong ({error})"
            wrong = f"{path}: row {i} ({row.get('token', 'without token')}) {what}"
            if needed is None or not all(isinstance(row.get(name), str) for name in ("token", *needed)):
                raise DataError(wrong) from error
            problems[len(tokens)] = wrong
            taken.add_blank(len(tokens), {name: row[name] for name in needed})
        tokens.append(token)
    return Table(path, tokens, _by_token(path, tokens), taken.texts, taken.arrays(), taken.lists, problems)


_WRONG = (KeyError, TypeError, ValueError, OverflowError)


class _Columns:
    """Columns of a table that grow row by row."""

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self.texts: dict[str, list[str]] = {name: [] for name, kind in kinds.items() if kind is str}
        self._numbers = {name: (array("d"), kind) for name, kind in kinds.items() if isinstance(kind, int)}
        self.lists: dict[str, list[tuple[str, ...]]] = {
            name: [] for name, kind in kinds.items() if kind is not str and name not in self._numbers
        }
        self._same: dict[Any, Any] = {}  # one object for equal texts: most are tokens that stand in many rows

    def text(self, value: Any) -> str:
        return _text(self._same, value)

    def add(self, row: Row) -> None:
        """Take a row; where it is wrong, some columns have it and others do not."""
        same = self._same
        for name, column in self.texts.items():
            column.append(_text(same, row[name]))
        for name, (values, width) in self._numbers.items():
            _append(values, row[name], width)
        for name, rows in self.lists.items():
            entry = tuple(_text(same, value) for value in row[name])
            rows.append(same.setdefault(entry, entry))

    def add_blank(self, count: int, texts: Mapping[str, str]) -> None:
        """After a wrong row: go back to `count` rows, and take one in its place that has nothing but some texts."""
        for name, column in self.texts.items():
            column[count:] = [self.text(texts.get(name, ""))]
        for values, width in self._numbers.values():
            del values[count * max(width, 1) :]
            values.extend([math.nan] * max(width, 1))
        for rows in self.lists.values():
            rows[count:] = [()]

    def arrays(self) -> dict[str, Array]:
        return {
            name: np.array(values, np.float64).reshape((-1, width) if width else (-1,))
            for name, (values, width) in self._numbers.items()
        }


def _text(same: dict[Any, Any], value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, got {value!r}")
    return str(same.setdefault(value, value))


def _append(values: array[float], value: Any, width: int) -> None:
    if width == 0:
        values.append(value)
    elif isinstance(value, list) and len(value) == width:
        values.extend(value)
    else:
        raise ValueError(f"{width} numbers were expected, got {value!r}")


def _by_token(path: Path, tokens: Sequence[str]) -> dict[str, int]:
    row = {token: i for i, token in enumerate(tokens)}
    if len(row) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if row[token] != i)
        raise DataError(f"{path}: several rows have the token {twice!r}")
    return row
