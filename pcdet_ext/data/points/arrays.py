"""Points in headless files of float32, and in arrays of NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.data.points.columns import HEADLESS, headless, ordered
from pcdet_ext.files import DataError, MissingFileError, read_array
from pcdet_ext.structures import Array

ONE_SCAN = ".pcd.bin"  # how files end that hold one scan of nuScenes


def is_one_scan(path: str | Path) -> bool:
    """Whether a file is, by its name, one of several scans that make a frame together.

    These are nuScenes' .pcd.bin and Argoverse 2's .feather.
    """
    return str(path).lower().endswith((ONE_SCAN, ".feather"))


def is_nuscenes_bin(path: str | Path) -> bool:
    """Whether a file is, by its name, a scan of nuScenes (.pcd.bin)."""
    return str(path).lower().endswith(ONE_SCAN)


def is_headless_bin(path: str | Path) -> bool:
    """Whether a file is a .bin file of which nobody says how many columns it has."""
    return Path(path).suffix.lower() == ".bin" and not is_nuscenes_bin(path)


def read_bin(path: str | Path, columns: int) -> Array:
    """Points float32 [N, columns] from a headless little-endian file. Raises DataError when the last point is cut."""
    path = Path(path)
    try:
        size = path.stat().st_size
        values = np.fromfile(path, "<f4")  # one copy in memory, which is ours to write to
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if size % (4 * columns) or values.nbytes != size:
        raise DataError(
            f"{path}: {size} bytes are no whole number of {columns}-column float32 points; cut short, or are "
            "there other columns?"
        )
    return values.astype(np.float32, copy=False).reshape(-1, columns)


def read_npy(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Points of an array [N, 3 or more], or of one with named fields, and the names of their columns."""
    with path.open("rb") as file:
        points = read_array(file, path.stat().st_size, path.name)
    if points.dtype.names and points.ndim == 1:
        return ordered({name: points[name] for name in points.dtype.names if points.dtype[name].kind in "fiu"})
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise ValueError(f"an array of numbers [N, 3 or more] is wanted, got {points.dtype} {list(points.shape)}")
    return points.astype(np.float32), headless(points.shape[1], HEADLESS)
