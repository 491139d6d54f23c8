"""What flows through the library: typed objects with named fields.

Conventions: LiDAR frame x forward, y left, z up, metres. A box is
``(x, y, z, dx, dy, dz, heading[, vx, vy])`` with z at the box centre and heading counter-clockwise
from +x in radians. Ranges are half-open ``[min, max)``. Voxel coordinates are ``(z, y, x)``. Labels are 0-based.
"""

from pcdet_ext.structures.arrays import Array, is_tracing, rows_of, tensor_of, untraced
from pcdet_ext.structures.groups import Groups, Segments
from pcdet_ext.structures.results import Descriptor, Detections, Found, PointLabels, Predictions
from pcdet_ext.structures.samples import PointBatch, Sample
from pcdet_ext.structures.targets import Targets
from pcdet_ext.structures.voxels import SparseVoxels, VoxelPyramid

__all__ = [
    "Array",
    "Descriptor",
    "Detections",
    "Found",
    "Groups",
    "PointBatch",
    "PointLabels",
    "Predictions",
    "Sample",
    "Segments",
    "SparseVoxels",
    "Targets",
    "VoxelPyramid",
    "is_tracing",
    "rows_of",
    "tensor_of",
    "untraced",
]
