"""Lines and numbers of text files, with errors that say where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.files import DataError, MissingFileError


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file. Raises DataError when it is missing or no text, or has a character 0."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error})") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{path}:{line}: has a character 0, which no text has")
    return text.splitlines()


def number(text: str) -> float:
    """A number as data files write it. Raises ValueError for anything else, and for the `1_0` of Python's own."""
    if "_" in text:
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def floats(fields: Sequence[str], where: str) -> list[float]:
    """Finite numbers from text; `where` is "file:line". Raises DataError for anything else."""
    values = []
    for field in fields:
        try:
            values.append(number(field))
        except ValueError:
            raise DataError(f"{where}: {field!r} is not a number") from None
    if not np.isfinite(values).all():
        raise DataError(f"{where}: numbers must be finite, got {' '.join(fields)}")
    return values
