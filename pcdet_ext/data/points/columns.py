"""The columns of points, found under the names that files give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.files import DataError
from pcdet_ext.structures import Array

XYZ = ("x", "y", "z")
# What a column may be called in files, the likeliest first; spelling is compared without case, "_" and "scalar_".
SYNONYMS = {
    "intensity": ("intensity", "intensities", "i", "reflectance", "reflectivity", "remission"),
    "timestamp": ("timestamp", "time", "timelag"),
    "elongation": ("elongation",),
    "ring": ("ring", "channel", "laserid", "lasernumber", "beam"),
}
# Columns of files that do not name theirs, by their number, as the data sets that use them have it.
HEADLESS = (*XYZ, "intensity", "timestamp")
NUSCENES = (*XYZ, "intensity", "ring")


@dataclass(frozen=True, eq=False)
class PointFile:
    """The content of a point file.

    points: float32 [N, F]; columns: name of each column as the file has it, or for a file that names none, as is usual
    for its kind; path: where it was read; named: whether the columns are what the file (or its kind) says, not a guess.
    """

    points: Array
    columns: tuple[str, ...]
    path: Path
    named: bool = True

    def select(self, wanted: Sequence[str]) -> Array:
        """Points float32 [N, len(wanted)] of the wanted columns, found under any of their usual names.

        Raises DataError that names the columns which the file lacks, and those that it has.
        """
        found = [find_column(name, self.columns) for name in wanted]
        missing = [name for name, place in zip(wanted, found, strict=True) if place is None]
        if missing:
            raise DataError(
                f"{self.path}: has no column for {', '.join(map(repr, missing))}; it has {', '.join(self.columns)}"
            )
        return self.points[:, [place for place in found if place is not None]]


def find_column(name: str, columns: Sequence[str]) -> int | None:
    """Place of a column, by its name or else one of its usual other names; None where there is none."""
    spelled = [_plain(column) for column in columns]
    for candidate in (_plain(name), *SYNONYMS.get(name, ())):
        if candidate in spelled:
            return spelled.index(candidate)
    return None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("scalar_"))


def headless(count: int, usual: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns of a file that has none."""
    return (*usual[:count], *(f"column {i}" for i in range(len(usual), count)))


def ordered(fields: dict[str, Array]) -> tuple[Array, tuple[str, ...]]:
    """Points and the names of their columns: x, y, z, intensity, then the others."""
    names = list(fields)
    first = [find_column(axis, names) for axis in XYZ]
    for axis, place in zip(XYZ, first, strict=True):
        if place is None:
            raise ValueError(f"no field {axis!r}; there are {', '.join(names)}")
    first.append(find_column("intensity", names))
    places = [place for place in first if place is not None]
    order = [names[place] for place in places] + [name for i, name in enumerate(names) if i not in places]
    return np.column_stack([fields[name].astype(np.float32) for name in order]), tuple(order)
