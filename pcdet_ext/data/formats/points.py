"""Point clouds from files of several kinds, by suffix: .bin, .pcd.bin, .npy, .pcd and .ply."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.data.files import DataError
from pcdet_ext.structures import Array


def read_bin(path: str | Path, columns: int) -> Array:
    """Points float32 [N, columns] from a headless little-endian file. Raises DataError when the last point is cut."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    if len(data) % (4 * columns):
        raise DataError(f"{path}: {len(data)} bytes are no whole number of {columns}-column float32 points; cut short?")
    return np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, columns)
