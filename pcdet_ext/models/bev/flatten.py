"""From sparse voxels to a dense bird's-eye-view map."""

from __future__ import annotations

from torch import Tensor

from pcdet_ext.structures import SparseVoxels


def flatten_to_bev(voxels: SparseVoxels) -> Tensor:
    """The map [B, C * Z, Y, X] of sparse voxels, channel c at height z being c * Z + z; empty cells are 0.

    For pillars (Z = 1) it is the scatter of PointPillars, otherwise the height compression of SECOND.
    """
    return voxels.dense().flatten(1, 2)
