"""Files of the Argoverse 2 detection benchmark: tables of boxes in Feather, poses, and maps with drivable areas."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.evaluation.argoverse2 import CATEGORIES, Cuboids
from pcdet_ext.evaluation.quaternions import no_rotations, rotation_matrices, why_no_rotation
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

POSITION = ("tx_m", "ty_m", "tz_m")
ROTATION = ("qw", "qx", "qy", "qz")
SIZE = ("length_m", "width_m", "height_m")
TEXTS = ("log_id", "category", "track_uuid")  # columns; those of WHOLE are whole numbers, and others numbers
WHOLE = ("timestamp_ns", "num_interior_pts", "laser_number", "offset_ns")
OF_ANNOTATIONS = ("timestamp_ns", "category", *POSITION, *SIZE, *ROTATION, "num_interior_pts")
POSES = "city_SE3_egovehicle.feather"  # of a log
PIXELS_PER_METRE = 10
LARGEST_MAP = 4000.0  # metres along x and y; a log lasts 15 seconds
DILATION = 5.0  # metres around drivable areas that belong to the region of interest

Sweep = tuple[str, int]  # log and timestamp in nanoseconds

_log = logging.getLogger(__name__)


def read_detections(path: str | Path) -> tuple[Cuboids, list[Sweep]]:
    """Detections of a Feather file, and the log and timestamp of each. Raises DataError that names file and column."""
    table = read_table(Path(path), ("log_id", "timestamp_ns", "category", *POSITION, *SIZE, *ROTATION, "score"))
    return cuboids_of(Path(path), table), _sweeps(table["log_id"], table["timestamp_ns"])


def read_annotations(path: str | Path) -> tuple[Cuboids, list[Sweep]]:
    """Annotations of a Feather file with a column log_id, or of a split folder with one file for each log."""
    path = Path(path)
    if path.is_file():
        table = read_table(path, ("log_id", *OF_ANNOTATIONS))
        return cuboids_of(path, table), _sweeps(table["log_id"], table["timestamp_ns"])
    files = sorted(path.glob("*/annotations.feather"))
    if not files:
        raise DataError(f"{path}: no annotations (a .feather file, or a folder with LOG/annotations.feather)")
    return read_logs(files)


def read_logs(files: Sequence[Path]) -> tuple[Cuboids, list[Sweep]]:
    """Annotations of files `LOG/annotations.feather`, at least one. Raises DataError that names file and column."""
    tables = [read_table(file, OF_ANNOTATIONS) for file in files]
    sweeps = [
        sweep
        for file, table in zip(files, tables, strict=True)
        for sweep in _sweeps([file.parent.name] * len(table["timestamp_ns"]), table["timestamp_ns"])
    ]
    parts = [vars(cuboids_of(file, table)) for file, table in zip(files, tables, strict=True)]
    return Cuboids(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}), sweeps


def read_poses(path: Path) -> dict[int, tuple[Array, Array]]:
    """By timestamp in nanoseconds the rotation [3, 3] and translation [3] from the vehicle to the city.

    path: a file city_SE3_egovehicle.feather. Raises DataError for a missing or damaged file, and for a row that is no
    pose.
    """
    table = read_table(path, ("timestamp_ns", *POSITION, *ROTATION))
    rotations = np.stack([table[name] for name in ROTATION], 1).astype(np.float64)
    translations = np.stack([table[name] for name in POSITION], 1).astype(np.float64)
    for row in no_rotations(rotations):
        raise DataError(f"{path}: row {row}: {why_no_rotation(rotations[row])}")
    for row in np.flatnonzero(~np.isfinite(translations).all(1)):
        raise DataError(f"{path}: row {row}: {', '.join(POSITION)} not finite: {translations[row].tolist()}")
    poses = zip(rotation_matrices(rotations), translations, strict=True)
    return dict(zip(table["timestamp_ns"].tolist(), poses, strict=True))


def numbered(
    annotations: tuple[Cuboids, Sequence[Sweep]], detections: tuple[Cuboids, Sequence[Sweep]]
) -> tuple[Cuboids, Cuboids, list[Sweep]]:
    """Annotations and detections with common numbers of their sweeps, and the sweeps in that order."""
    sweeps = sorted({*annotations[1], *detections[1]})
    number = {sweep: i for i, sweep in enumerate(sweeps)}

    def renumber(boxes: Cuboids, own: Sequence[Sweep]) -> Cuboids:
        return Cuboids(**{**vars(boxes), "sweep": np.array([number[s] for s in own], np.int64)})

    return renumber(*annotations), renumber(*detections), sweeps


def note_unmatched(
    path: Path,
    annotations: tuple[Cuboids, Sequence[Sweep]],
    detections: tuple[Cuboids, Sequence[Sweep]],
    categories: Sequence[str] = CATEGORIES,
) -> None:
    """Warn of detections that can match nothing: of other categories, which officially do not count, and of sweeps
    without annotations, which officially are false.

    Args:
        path: file of the detections.
        annotations: cuboids, and the sweep (log, time) of each.
        detections: cuboids, and the sweep of each.
        categories: all that there are, measured or not.

    Raises:
        DataError: all detections are such, though there are annotations.
    """
    if not len(annotations[0]) or not len(detections[0]):
        return
    names, sweeps = detections[0].category.tolist(), detections[1]
    known_sweeps = set(annotations[1])
    known_logs = {log for log, _ in known_sweeps}
    others = [name for name in names if name not in categories]
    logs = [log for log, _ in sweeps if log not in known_logs]
    times = [f"{log} at {time}" for log, time in sweeps if log in known_logs and (log, time) not in known_sweeps]
    hint = suggest(others[0], categories) if others else ""
    for found, what, effect in (
        (others, "categories that the benchmark does not have", f"do not count{hint}"),
        (logs, "logs without annotations", "are false"),
        (times, "timestamps without annotations", "are false"),
    ):
        if found:
            count = f"{len(found)} of {len(names)} detections"
            _log.warning("%s: %s are of %s, as %r; they %s", path, count, what, found[0], effect)
    if len(others) == len(names) or not known_sweeps.intersection(sweeps):
        what = (
            f"category that the benchmark has{hint}"
            if len(others) == len(names)
            else "log and timestamp with annotations"
        )
        raise DataError(
            f"{path}: no detection is of a {what}; the first is of {names[0]!r}, {' at '.join(map(str, sweeps[0]))}"
        )


def read_table(path: Path, columns: Sequence[str]) -> dict[str, Array]:
    """Columns of a Feather file.

    Raises DataError for a missing or damaged file, columns that are not there, and those that have something else than
    texts, whole numbers or numbers in them, whichever they should have, or empty cells.
    """
    try:
        from pyarrow import ArrowException, feather
    except ImportError as error:
        raise ImportError("Feather files need pyarrow: pip install pyarrow") from error
    try:
        table = feather.read_table(path)
        table.validate(full=True)
        there = table.column_names
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged or no Feather file ({error})") from error
    missing = [name for name in columns if name not in there]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r}; there are {', '.join(there)}")
    try:
        found = {name: table[name].to_numpy(zero_copy_only=False) for name in columns}
    except (ArrowException, ValueError) as error:  # as text that is no UTF-8
        raise DataError(f"{path}: damaged ({error})") from error
    for name, values in found.items():
        if len(values) and not _is_of_kind(name, values):
            expected = "texts" if name in TEXTS else "whole numbers" if name in WHOLE else "numbers"
            empty = f", {table[name].null_count} cells of it empty" if table[name].null_count else ""
            raise DataError(
                f"{path}: column {name!r} must have {expected}, is of {table.schema.field(name).type}{empty}"
            )
    return found


def _is_of_kind(name: str, values: Array) -> bool:
    if name in TEXTS:
        return all(isinstance(value, str) for value in values.tolist())
    return values.dtype.kind in ("iu" if name in WHOLE else "iuf")


def _sweeps(logs: Sequence[str] | Array, timestamps: Array) -> list[Sweep]:
    return [(str(log), int(time)) for log, time in zip(logs, timestamps, strict=True)]


def cuboids_of(path: Path, table: dict[str, Array]) -> Cuboids:
    """Boxes of a table, all with the sweep 0. Raises DataError naming the file and the row that is no box."""
    count = len(table["category"])

    def stacked(names: Sequence[str]) -> Array:
        values = np.stack([table[name].astype(np.float64) for name in names], 1).reshape(count, len(names))
        for row in np.flatnonzero(~np.isfinite(values).all(1)):
            raise DataError(f"{path}: row {row}: {', '.join(names)} not finite: {values[row].tolist()}")
        return values

    rotation, size = stacked(ROTATION), stacked(SIZE)
    for row in no_rotations(rotation):
        raise DataError(f"{path}: row {row}: {why_no_rotation(rotation[row])}")
    for row in np.flatnonzero((size <= 0).any(1)):
        raise DataError(f"{path}: row {row}: {', '.join(SIZE)} must be positive, are {size[row].tolist()}")
    return Cuboids(
        sweep=np.zeros(count, np.int64),
        category=table["category"].astype(np.str_),
        center=stacked(POSITION),
        size=size,
        rotation=rotation,
        score=stacked(("score",))[:, 0] if "score" in table else np.zeros(count),
        num_points=table["num_interior_pts"].astype(np.int64) if "num_interior_pts" in table else np.full(count, -1),
    )


@dataclass(frozen=True, eq=False)
class RegionOfInterest:
    """Where boxes count in one log: within 5 m of drivable areas.

    mask: bool [rows, columns], 0.1 m a pixel; origin: (x, y) of its first pixel in city coordinates; poses: by
    timestamp, rotation [3, 3] and translation [3] from the vehicle to the city.
    """

    mask: Array
    origin: Array
    poses: dict[int, tuple[Array, Array]]

    def touches(self, corners: Array, timestamp: int) -> Array:
        """bool [N]: at least one of the corners [N, 8, 3] (vehicle frame) lies in the region."""
        rotation, translation = self.poses[timestamp]
        places = ((corners @ rotation.T + translation)[..., :2] - self.origin) * PIXELS_PER_METRE
        column, row = np.moveaxis(np.trunc(places).astype(np.int64), -1, 0)
        rows, columns = self.mask.shape
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        return (inside & self.mask[np.where(inside, row, 0), np.where(inside, column, 0)]).any(1)


def read_region(folder: Path) -> RegionOfInterest:
    """The region of interest of a log, from its map and poses. Raises DataError for a missing or damaged file."""
    maps = sorted((folder / "map").glob("log_map_archive_*.json"))
    if not maps:
        raise DataError(f"{folder / 'map'}: no log_map_archive_*.json")
    try:
        content = json.loads(maps[0].read_text(encoding="utf-8"))
        areas = [
            np.array([[vertex["x"], vertex["y"]] for vertex in area["area_boundary"]], np.float64)
            for area in content["drivable_areas"].values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise DataError(f"{maps[0]}: damaged map ({error!r})") from error
    _check_areas(maps[0], areas)
    mask, origin = region_mask(areas)
    return RegionOfInterest(mask, origin, read_poses(folder / POSES))


def _check_areas(path: Path, areas: Sequence[Array]) -> None:
    """Raises DataError for drivable areas that make no map."""
    if not areas:
        raise DataError(f"{path}: a map without drivable areas")
    for number, area in enumerate(areas):
        if not len(area) or not np.isfinite(area).all():
            raise DataError(f"{path}: drivable area {number} must have corners at finite places")
    extent = np.ptp(np.concatenate(list(areas)), axis=0)
    if (extent > LARGEST_MAP).any():
        raise DataError(
            f"{path}: the drivable areas of one log extend over {extent[0]:.4g} m × {extent[1]:.4g} m, more than "
            f"{LARGEST_MAP:.0f} m"
        )


def region_mask(areas: Sequence[Array]) -> tuple[Array, Array]:
    """Mask bool [rows, columns] of what lies within 5 m of polygons [V, 2] in metres, and (x, y) of its first pixel."""
    from PIL import Image, ImageDraw
    from scipy.ndimage import distance_transform_edt

    vertices = np.concatenate(list(areas))
    low, high = np.floor(vertices.min(0)), np.ceil(vertices.max(0))
    columns, rows = ((high - low + 1) * PIXELS_PER_METRE).astype(int)
    filled = np.zeros((rows, columns), bool)
    for area in areas:
        closed = np.concatenate([area, area[:1]])
        places = np.rint((closed - low) * PIXELS_PER_METRE).astype(int)
        image = Image.new("L", (int(columns), int(rows)), 0)
        ImageDraw.Draw(image).polygon([(int(x), int(y)) for x, y in places], outline=1, fill=1)
        filled |= np.asarray(image, bool)
    return distance_transform_edt(~filled) <= DILATION * PIXELS_PER_METRE, low


class Regions:
    """The regions of interest of the logs below a folder, read when a box of the log is asked for."""

    def __init__(self, folder: str | Path, sweeps: Sequence[Sweep]) -> None:
        self.folder, self.sweeps = Path(folder), sweeps
        self._regions: dict[str, RegionOfInterest] = {}

    def __call__(self, boxes: Cuboids) -> Array:
        """bool [N]: boxes that touch the region of their log. Raises DataError for a sweep without a pose."""
        touching = np.zeros(len(boxes), bool)
        corners = boxes.corners()
        for number in np.unique(boxes.sweep):
            log, timestamp = self.sweeps[number]
            region = self._region(log)
            if timestamp not in region.poses:
                raise DataError(f"{self.folder / log / POSES}: no pose at {timestamp}")
            mine = boxes.sweep == number
            touching[mine] = region.touches(corners[mine], timestamp)
        return touching

    def _region(self, log: str) -> RegionOfInterest:
        if log not in self._regions:
            self._regions[log] = read_region(self.folder / log)
        return self._regions[log]
