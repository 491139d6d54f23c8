"""LAS 1.0 to 1.4 (ASPRS), which the optional package laspy reads, with lazrs the compressed .laz too."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from pcdet_ext.data.points.columns import XYZ, ordered
from pcdet_ext.structures import Array

LAZ_EXPANSION = 10_000  # of a file whose points are all alike; what announces more is damaged


def read_las(path: Path) -> tuple[Array, tuple[str, ...]]:
    """Points of a LAS or LAZ file: x, y, z in the file's units (scaled and moved as its header says), then the rest."""
    size = path.stat().st_size
    try:
        import laspy
    except ImportError as error:
        raise ImportError(f"{path}: files of this kind need the package laspy: pip install 'pcdet_ext[las]'") from error
    _check_las_header(path, size)
    try:
        with laspy.open(path) as reader:
            header = reader.header
            announced = header.point_count * header.point_format.size
            packed = header.are_points_compressed
            if announced > (LAZ_EXPANSION * size if packed else size - header.offset_to_point_data):
                raise ValueError(f"{header.point_count} points are announced, more than the file can hold")
            if packed and not laspy.LazBackend.detect_available():
                raise ImportError(f"{path}: compressed files need the package lazrs: pip install 'pcdet_ext[las]'")
            las = reader.read()
    except (laspy.errors.LaspyException, RuntimeError) as error:  # RuntimeError: lazrs
        raise ValueError(str(error) or type(error).__name__) from error
    names = [name for name in las.point_format.dimension_names if name not in ("X", "Y", "Z")]
    others = {name: np.asarray(las[name]) for name in names if np.ndim(las[name]) == 1}
    return ordered({axis: np.asarray(las[axis], np.float64) for axis in XYZ} | others)


def _check_las_header(path: Path, size: int) -> None:
    """Raise ValueError where a header announces records or points where the file has none, as laspy would believe."""
    with path.open("rb") as file:
        start = file.read(255)  # longer than the header of any version before 1.4
    if start[:4] != b"LASF" or len(start) < 104:
        raise ValueError("no LAS header")
    header, points, records = struct.unpack("<HII", start[94:104])
    fits = 104 <= header <= points <= size and records * 54 <= points - header
    if start[25] >= 4 and fits:
        fits = len(start) >= 247
        first, extended = struct.unpack("<QI", start[235:247]) if fits else (0, 0)
        fits = fits and (extended == 0 or (first <= size and extended * 60 <= size - first))
    if not fits:
        raise ValueError("its header announces records or points that the file does not have")
