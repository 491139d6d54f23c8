"""Numbers of JSON files as arrays: texts and truth values, which NumPy would turn into numbers, are none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pcdet_ext.structures import Array


def real_array(value: Any) -> Array:
    """Lists of numbers, however deep, as float64.

    Raises:
        ValueError: they are no array, or something in them is no number.
        OverflowError: a whole number is larger than any float.
    """
    found = np.array(value)
    if found.size and found.dtype.kind not in "iufO":  # whole numbers beyond 64 bits are objects
        raise ValueError("must be numbers")
    numbers = found.astype(np.float64)
    if found.dtype.kind == "O" or bool(((numbers == 0) | (numbers == 1)).any()):  # where truth values may hide
        for item in _items(value):
            if isinstance(item, bool) or not isinstance(item, int | float):
                raise ValueError("must be numbers")
    return numbers


def _items(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _items(inner)
    else:
        yield value
