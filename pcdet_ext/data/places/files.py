"""A folder for place recognition as it is on disk.

    <root>/frames.csv      one line per cloud, the first line names the columns
    <root>/…               the clouds, in any format that the library reads, where `frames.csv` says
    <root>/dataset.yaml    optional: what the clouds do not say of themselves, as for a folder of one's own data

The columns of `frames.csv`, in any order:

    cloud       path of the point cloud, below the folder
    run         the traversal that it belongs to: recall is measured between pairs of runs
    split       the split of the cloud, such as train or val
    x, y        where the sensor was, in metres, in one frame for all runs (UTM easting and northing, for example)
    z           optional: its height in metres, 0 where it is not known
    heading     optional: radians, counter-clockwise from +x
    timestamp   optional: seconds
    view        optional: what kind of run it is, such as ground or aerial
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.rigid import rigid_motion, upright_rotation
from pcdet_ext.structures import Array

TABLE = "frames.csv"
REQUIRED = ("cloud", "run", "split", "x", "y")
OPTIONAL = ("z", "heading", "timestamp", "view")
GROUND = "ground"


@dataclass(frozen=True)
class Frame:
    """One cloud of a run. Positions are in metres, `heading` in radians, None where it is not known."""

    cloud: str
    run: str
    split: str
    x: float
    y: float
    z: float = 0.0
    heading: float | None = None
    timestamp: float | None = None
    view: str = GROUND

    @property
    def frame_id(self) -> str:
        """The path of the cloud without its suffix."""
        return str(PurePosixPath(self.cloud).with_suffix(""))

    def pose(self) -> Array:
        """float64 [4, 4], from the sensor to the world, of a sensor that stands upright."""
        return rigid_motion(upright_rotation(self.heading or 0.0), np.array([self.x, self.y, self.z]))


def read_frames(root: str | Path) -> list[Frame]:
    """All frames of a folder, in the order of its table.

    Raises DataError that names the table and the line: a missing or unknown column, a value that is no finite number,
    an empty name, a path that leaves the folder, or a cloud that is there twice.
    """
    path = Path(root) / TABLE
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; it lists the clouds, with the columns {', '.join(REQUIRED)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: is no table of comma-separated values in UTF-8 ({error})") from error
    if not rows:
        raise DataError(f"{path}: is empty; the first line must name the columns {', '.join(REQUIRED)}")
    columns = _columns(rows[0], path)
    frames: list[Frame] = []
    seen: dict[str, int] = {}
    for line, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        frame = _frame(row, columns, f"{path}:{line}")
        if frame.frame_id in seen:
            raise DataError(f"{path}:{line}: {frame.frame_id!r} is in line {seen[frame.frame_id]} already")
        seen[frame.frame_id] = line
        frames.append(frame)
    return frames


def write_frames(root: str | Path, frames: Iterable[Frame]) -> Path:
    """Write the table of a folder, with all columns; returns its path."""
    path = Path(root) / TABLE
    names = (*REQUIRED, *OPTIONAL)
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for frame in frames:
            values = [getattr(frame, name) for name in names]
            writer.writerow(["" if v is None else repr(v) if isinstance(v, float) else v for v in values])
    return path


def _columns(header: Sequence[str], path: Path) -> list[str]:
    names = [name.strip().lower() for name in header]
    for name in REQUIRED:
        if name not in names:
            raise DataError(f"{path}:1: has no column {name!r}, only {', '.join(names)}")
    for name in names:
        if name not in (*REQUIRED, *OPTIONAL):
            known = (*REQUIRED, *OPTIONAL)
            raise DataError(f"{path}:1: unknown column {name!r}{suggest(name, known)}")
        if names.count(name) > 1:
            raise DataError(f"{path}:1: two columns are named {name!r}")
    return names


def _frame(row: Sequence[str], columns: Sequence[str], where: str) -> Frame:
    if len(row) != len(columns):
        raise DataError(f"{where}: has {len(row)} values, where the table has {len(columns)} columns")
    values = {name: cell.strip() for name, cell in zip(columns, row, strict=True)}
    for name in ("cloud", "run", "split"):
        if not values[name]:
            raise DataError(f"{where}: {name} is empty")
    cloud = PurePosixPath(values["cloud"])
    if cloud.is_absolute() or ".." in cloud.parts:
        raise DataError(f"{where}: cloud {values['cloud']!r} must be a path below the folder")
    return Frame(
        cloud=str(cloud),
        run=values["run"],
        split=values["split"],
        x=_number(values["x"], "x", where),
        y=_number(values["y"], "y", where),
        z=_number(values.get("z") or "0", "z", where),
        heading=_optional(values, "heading", where),
        timestamp=_optional(values, "timestamp", where),
        view=values.get("view") or GROUND,
    )


def _optional(values: dict[str, str], name: str, where: str) -> float | None:
    return _number(values[name], name, where) if values.get(name) else None


def _number(text: str, name: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise DataError(f"{where}: {name} must be a number, got {text!r}") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: {name} must be finite, got {text!r}")
    return number
