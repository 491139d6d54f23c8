"""Files of Argoverse 2's sensor data set (Wilson et al., NeurIPS Datasets and Benchmarks 2021) as they are released.

    <root>/[sensor/]<split>/<log>/
        sensors/lidar/<nanoseconds>.feather         x, y, z (metres), intensity (0 to 255), laser_number, offset_ns
        annotations.feather                         boxes at the times of the sweeps; the test split has none
        city_SE3_egovehicle.feather                 where the vehicle is, at the times of all sensors
        calibration/egovehicle_SE3_sensor.feather   where the sensors are on the vehicle
        map/log_map_archive_*.json                  drivable areas, for the metric

Points and boxes are both in the frame of the vehicle at the time of the sweep (x forward, y left, z up, the origin at
the rear axle), so that calibration is not needed to join them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from pcdet_ext.evaluation.argoverse2 import Cuboids
from pcdet_ext.evaluation.argoverse2_files import OF_ANNOTATIONS, POSES, Sweep, cuboids_of, read_poses, read_table
from pcdet_ext.evaluation.quaternions import yaws
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.rigid import rigid_motion
from pcdet_ext.structures import Array

POINT_FEATURES = ("x", "y", "z", "intensity")  # those that published models take, not scaled
FILE_FEATURES = (*POINT_FEATURES, "laser_number", "offset_ns")  # all columns of a sweep
LIDAR, ANNOTATIONS, SUFFIX = "sensors/lidar", "annotations.feather", ".feather"
SENSOR = "sensor"  # the folder of the splits, where all data sets of Argoverse 2 lie side by side
LOGS_IN_MEMORY = 2  # whose poses and annotations stay, as frames are read log by log


@dataclass(frozen=True)
class Frame:
    """One sweep of the lidars.

    root: the data folder; folder: of the split, below it; log: its name; timestamp: in nanoseconds.
    """

    root: Path
    folder: str
    log: str
    timestamp: int

    @property
    def frame_id(self) -> str:
        """The log and the timestamp, as "0a1e…_315966070559696000"."""
        return f"{self.log}_{self.timestamp}"

    @property
    def sweep(self) -> Sweep:
        """The log and the timestamp, as result files have them."""
        return self.log, self.timestamp

    @property
    def log_folder(self) -> Path:
        """The folder of the log."""
        return self.root / self.folder / self.log

    @property
    def points(self) -> Path:
        """The file of the points."""
        return self.log_folder / LIDAR / f"{self.timestamp}{SUFFIX}"


@dataclass(frozen=True, eq=False)
class Objects:
    """The labelled objects of a frame.

    boxes: float64 [M, 7]; names: classes, as "Regular_vehicle"; num_points: int64 [M], points inside; tracks: int64
    [M], the same for one object in all frames of its log.
    """

    boxes: Array
    names: tuple[str, ...]
    num_points: Array
    tracks: Array


@dataclass(frozen=True, eq=False)
class Log:
    """What a log has beside its points.

    poses: by timestamp, rotation [3, 3] and translation [3] from the vehicle to the city; cuboids, times, tracks: its
    annotations, when each is of (int64 [N]) and of which object (int64 [N]), None where they are kept back.
    """

    folder: Path
    poses: Mapping[int, tuple[Array, Array]]
    cuboids: Cuboids | None
    times: Array
    tracks: Array

    def pose(self, timestamp: int) -> Array:
        """float64 [4, 4] from the vehicle to the city. Raises DataError where the file has none of this time."""
        if timestamp not in self.poses:
            raise DataError(f"{self.folder / POSES}: no pose at {timestamp}, when there is a sweep")
        return rigid_motion(*self.poses[timestamp])

    def objects(self, timestamp: int) -> Objects | None:
        """The objects of a frame, which may be none at all; None where the log has no annotations."""
        if self.cuboids is None:
            return None
        rows = np.flatnonzero(self.times == timestamp)
        own = self.cuboids.select(rows)
        return Objects(
            boxes=np.column_stack([own.center, own.size, yaws(own.rotation)]),
            names=tuple(map(class_name, own.category.tolist())),
            num_points=own.num_points,
            tracks=self.tracks[rows],
        )


def class_name(category: str) -> str:
    """A category of the files, as REGULAR_VEHICLE, as published models name it: Regular_vehicle."""
    return category.capitalize()


def category_name(name: str) -> str:
    """A class of published models as files name its category."""
    return name.upper()


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split. Raises MissingFileError where there is none."""
    tried = [root / split, root / SENSOR / split]
    found = next((folder for folder in tried if folder.is_dir()), None)
    if found is None:
        raise MissingFileError(f"{root}: no split {split!r} of Argoverse 2 here, neither {tried[0]} nor {tried[1]}")
    return found


def timestamps(log_folder: Path) -> list[int]:
    """When a log has sweeps, in nanoseconds, ascending. Raises DataError for a file that is named otherwise."""
    folder = log_folder / LIDAR
    files = folder.glob(f"*{SUFFIX}") if folder.is_dir() else ()
    found = []
    for path in files:
        if not (path.stem.isascii() and path.stem.isdigit()):
            raise DataError(
                f"{path}: the name of a sweep must be its time in nanoseconds, as 315966070559696000.feather"
            )
        found.append(int(path.stem))
    return sorted(found)


def read_points(path: Path) -> Array:
    """Points float32 [N, 6] of a sweep, with the columns FILE_FEATURES. Raises DataError for a damaged file."""
    table = read_table(path, FILE_FEATURES)
    return np.stack([table[name].astype(np.float32) for name in FILE_FEATURES], axis=1)


def read_log(folder: Path) -> Log:
    """Poses and annotations of a log; those read last stay in memory. Raises DataError naming what is damaged."""
    return _read_log(folder, _stamp(folder / POSES), _stamp(folder / ANNOTATIONS))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with the content of a file; the same for all that are not there."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=LOGS_IN_MEMORY)
def _read_log(folder: Path, poses: tuple[int, int], annotations: tuple[int, int]) -> Log:
    path = folder / ANNOTATIONS
    if annotations == (0, 0):
        none = np.zeros(0, np.int64)
        return Log(folder, read_poses(folder / POSES), None, none, none)
    table = read_table(path, (*OF_ANNOTATIONS, "track_uuid"))
    tracks = np.unique(table["track_uuid"].astype(np.str_), return_inverse=True)[1]
    return Log(folder, read_poses(folder / POSES), cuboids_of(path, table), table["timestamp_ns"], tracks)
