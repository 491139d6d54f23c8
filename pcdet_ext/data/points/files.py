"""Point files of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.points.arrays import is_headless_bin, is_nuscenes_bin, is_one_scan, read_bin, read_npy
from pcdet_ext.data.points.columns import HEADLESS, NUSCENES, PointFile, find_column, headless
from pcdet_ext.data.points.feather import read_feather
from pcdet_ext.data.points.las import read_las
from pcdet_ext.data.points.pcd import read_pcd
from pcdet_ext.data.points.ply import read_ply
from pcdet_ext.files import ARCHIVE_ERRORS, DataError, MissingFileError
from pcdet_ext.structures import Array

SUFFIXES = (".bin", ".npy", ".pcd", ".ply", ".las", ".laz", ".feather")  # of the files that are read


def read_point_file(path: str | Path, columns: int | None = None) -> PointFile:
    """The points of a file and the names of their columns.

    Args:
        path: a .bin, .pcd.bin, .npy, .pcd, .ply, .las, .laz or .feather file; the case of the suffix does not matter.
        columns: columns of a headless .bin file; without it 5 for nuScenes' .pcd.bin (x, y, z, intensity, ring) and 4
            (x, y, z, intensity) for others.

    Raises:
        DataError: that names the file when it is missing, cut short, or no point cloud.
        ImportError: a .las or .laz file, and laspy (for .laz also lazrs) is not installed.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".bin":
        nuscenes = is_nuscenes_bin(path)
        points = read_bin(path, columns or (5 if nuscenes else 4))
        usual = NUSCENES if nuscenes else HEADLESS
        return PointFile(points, headless(points.shape[1], usual), path, named=nuscenes)
    readers = {
        ".npy": read_npy, ".pcd": read_pcd, ".ply": read_ply, ".las": read_las, ".laz": read_las,
        ".feather": read_feather,
    }  # fmt: skip
    if suffix not in readers:
        raise DataError(f"{path}: point clouds of this kind are not read{suggest(suffix, ['.bin', *readers])}")
    try:
        points, names = readers[suffix](path)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except (*ARCHIVE_ERRORS, IndexError, OverflowError) as error:
        raise DataError(f"{path}: damaged or not a {suffix} point cloud ({error})") from error
    named = suffix != ".npy" or names != headless(points.shape[1], HEADLESS)
    return PointFile(points, names, path, named)


def read_points(path: str | Path, columns: int | None = None) -> Array:
    """Points float32 [N, F] of a file; columns x, y, z, then intensity where there is one, then what else the file has.

    See `read_point_file`, which also gives the names of the columns.
    """
    return read_point_file(path, columns).points


def read_columns(path: str | Path, wanted: Sequence[str]) -> Array:
    """Points float32 [N, F] with the wanted columns first.

    They are taken by name where the file names its columns; else they are taken to be the file's columns in their
    order, of which it may have fewer or (except in a headless .bin file) more. A .pcd.bin file of nuScenes and a sweep
    of Argoverse 2 (.feather) are one scan: where the age of points is wanted ("timestamp"), all of them have the age 0.
    Raises DataError for a damaged file, and for one without a wanted column.
    """
    path = Path(path)
    one_scan = is_one_scan(path)
    content = read_point_file(path, len(wanted) if is_headless_bin(path) else None)
    if one_scan and "timestamp" in wanted and find_column("timestamp", content.columns) is None:
        points = np.insert(content.points, len(content.columns), 0, axis=1)
        content = replace(content, points=points, columns=(*content.columns, "timestamp"))
    return content.select(wanted) if content.named else content.points


def read_cloud(path: str | Path, features: Sequence[str] | None = None) -> tuple[Array, tuple[str, ...]]:
    """Points float32 [N, F] of a file and the names of their F columns.

    features: the columns to read, by name or in their order, see `read_columns`; None for all that the file has, of a
    headless .bin file x, y, z, intensity. Raises DataError for a damaged file, and for one without these columns.
    """
    if features is None:
        content = read_point_file(path)
        return content.points, content.columns
    points = read_columns(path, features)
    if points.shape[1] < len(features):
        raise DataError(f"{path}: has {points.shape[1]} columns, not the {len(features)} of {', '.join(features)}")
    return points[:, : len(features)], tuple(features)
