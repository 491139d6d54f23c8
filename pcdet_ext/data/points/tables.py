"""What PCD and PLY have in common: a header of lines, and points as rows of a table."""

from __future__ import annotations

import numpy as np

from pcdet_ext.structures import Array


def count_of(text: str, what: str) -> int:
    """A number of a header, called `what` in messages. Raises ValueError for one below 0."""
    number = int(text)
    if number < 0:
        raise ValueError(f"{what} is {number}")
    return number


def next_line(data: bytes, start: int) -> tuple[str, int]:
    """The next line of a header, without a byte-order mark; comments may be in any encoding."""
    end = data.find(b"\n", start)
    if end < 0:
        raise ValueError("the header has no end")
    return data[start:end].decode("utf-8", errors="replace").lstrip("\ufeff").strip(), end + 1


def ascii_table(text: bytes, dtype: np.dtype, number: int) -> Array:
    """Lines of numbers as a table.

    Args:
        text: the lines; blank ones and comments (#) do not count.
        dtype: the fields of a row, each with a shape [K].
        number: how many lines there must be at least; the others are left out.

    Raises:
        ValueError: they do not hold one number for each entry of a row.
    """
    width = sum(dtype[name].shape[0] for name in dtype.names or ())
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    values = np.array(b" ".join(lines[:number]).split(), np.float64)
    if len(values) != number * width:
        raise ValueError(f"{number} points of {width} numbers are announced, {len(values)} numbers are there")
    return _fill(dtype, values.reshape(number, width))


def _fill(dtype: np.dtype, values: Array) -> Array:
    """Numbers as a table; float64 throughout, so that "nan" in an integer column stays what it is."""
    names = dtype.names or ()
    table = np.empty(len(values), np.dtype([(name, np.float64, dtype[name].shape) for name in names]))
    start = 0
    for name in names:
        width = dtype[name].shape[0]
        table[name] = values[:, start : start + width]
        start += width
    return table


def single_numbers(table: Array) -> dict[str, Array]:
    """Fields of a table that hold one number for each point, by name ("_" is what PCD calls padding)."""
    fields = {key.partition("\0")[0]: key for key in table.dtype.names or () if table.dtype[key].shape == (1,)}
    return {name: table[key][:, 0] for name, key in fields.items() if name != "_"}
