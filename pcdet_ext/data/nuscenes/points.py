"""Points of nuScenes: a key frame joined with the sweeps before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pcdet_ext.data.geometry import transform
from pcdet_ext.data.nuscenes.frames import Sweep
from pcdet_ext.data.points import NUSCENES, read_bin
from pcdet_ext.files import DataError, MissingFileError
from pcdet_ext.structures import Array

FILE_FEATURES = NUSCENES  # columns of a .pcd.bin file
POINT_FEATURES = ("x", "y", "z", "intensity", "timestamp", "ring")  # of a frame; timestamp: seconds of age
NEAR = 1.0  # metres around a sweep's own sensor, where its points lie on the vehicle


def read_scan(data: Path, file: str, token: str) -> Array:
    """Points of a scan.

    Args:
        data: the data folder.
        file: path below it.
        token: of the row in sample_data, for messages.

    Returns:
        float32 [N, 5] (x, y, z, intensity, ring).

    Raises:
        DataError: the file is missing or cut short; the message names it and the row.
    """
    try:
        return read_bin(data / file, len(FILE_FEATURES))
    except MissingFileError as error:
        raise MissingFileError(f"{error} (sample_data {token})") from error
    except DataError as error:
        raise DataError(f"{error} (sample_data {token})") from error


def count_points(data: Path, file: str, token: str) -> int:
    """Number of points of a scan, from the size of its file.

    Args:
        data: the data folder.
        file: path below it.
        token: of the row in sample_data, for messages.

    Raises:
        DataError: the file is missing, cut short, or empty; the message names it and the row.
    """
    try:
        size = (data / file).stat().st_size
    except FileNotFoundError:
        raise MissingFileError(f"{data / file}: no such file (sample_data {token})") from None
    except OSError as error:
        raise DataError(f"{data / file}: cannot be read ({error.strerror or error}) (sample_data {token})") from error
    count, rest = divmod(size, 4 * len(FILE_FEATURES))
    if rest or not count:
        what = "cut short" if rest else "empty"
        raise DataError(f"{data / file}: {what}, it has {size} bytes (sample_data {token})")
    return count


def joined_scans(key: Array, sweeps: Sequence[tuple[Sweep, Array]]) -> Array:
    """A key frame's scan and those of sweeps as one cloud, float32 [N, 6] with the columns POINT_FEATURES.

    The key frame stays whole; of a sweep the points within 1 m of its own sensor, in x and in y, are left out, and the
    others moved to where they would be in the key frame. All the sweeps follow the key frame in their order.

    Args:
        key: points float32 [N, 5] with the columns FILE_FEATURES.
        sweeps: each with its points [N_i, 5].
    """
    clouds = [_aged(key, 0.0)]
    for sweep, points in sweeps:
        points = points[~((np.abs(points[:, 0]) < NEAR) & (np.abs(points[:, 1]) < NEAR))]
        cloud = _aged(points, sweep.lag)
        if sweep.transform is not None:
            cloud[:, :3] = transform(points, sweep.transform)
        clouds.append(cloud)
    return np.concatenate(clouds)


def read_joined(data: Path, key: Sweep, points: Array, sweeps: Sequence[Sweep]) -> Array:
    """The scans of files, joined by `joined_scans`; one that occurs several times, at the start of a scene, is read
    once.

    Args:
        data: the folder that the files are in.
        key: of the key frame.
        points: its points float32 [N, 5], as read.
        sweeps: whose files are read and joined.

    Returns:
        float32 [N, 6] with the columns POINT_FEATURES.

    Raises:
        DataError: a file is damaged, or has another number of points than its sweep.
    """
    read: dict[str, Array] = {key.file: points}

    def scan(sweep: Sweep) -> Array:
        if sweep.file not in read:
            found = read_scan(data, sweep.file, sweep.token)
            if sweep.points not in (None, len(found)):
                raise DataError(
                    f"{data / sweep.file}: {len(found)} points where the index has {sweep.points}; changed? "
                    f"(sample_data {sweep.token})"
                )
            read[sweep.file] = found
        return read[sweep.file]

    return joined_scans(points, [(sweep, scan(sweep)) for sweep in sweeps])


def _aged(points: Array, lag: float) -> Array:
    return np.column_stack([points[:, :4], np.full(len(points), lag, np.float32), points[:, 4]])
