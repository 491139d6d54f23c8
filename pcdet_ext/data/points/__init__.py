"""Point clouds from files of several kinds, distinguished by suffix: .bin, .pcd.bin, .npy, .pcd, .ply, .las, .laz and
.feather.

Columns are taken by name wherever a file names them.
"""

from pcdet_ext.data.points.arrays import ONE_SCAN, is_headless_bin, is_nuscenes_bin, is_one_scan, read_bin
from pcdet_ext.data.points.columns import HEADLESS, NUSCENES, XYZ, PointFile, find_column
from pcdet_ext.data.points.files import SUFFIXES, read_cloud, read_columns, read_point_file, read_points

__all__ = [
    "HEADLESS",
    "NUSCENES",
    "ONE_SCAN",
    "SUFFIXES",
    "XYZ",
    "PointFile",
    "find_column",
    "is_headless_bin",
    "is_nuscenes_bin",
    "is_one_scan",
    "read_bin",
    "read_cloud",
    "read_columns",
    "read_point_file",
    "read_points",
]
