"""From sparse voxels to a dense bird's-eye-view map."""

from __future__ import annotations

from torch import Tensor

from pcdet_ext.structures import SparseVoxels, is_tracing


def flatten_to_bev(voxels: SparseVoxels) -> Tensor:
    """The map [B, C * Z, Y, X] of sparse voxels, channel c at height z being c * Z + z; empty cells are 0.

    For pillars (Z = 1) it is the scatter of PointPillars, otherwise the height compression of SECOND.
    """
    if voxels.grid[0] == 1 or voxels.features.device.type != "cpu" or is_tracing():
        return voxels.dense().flatten(1, 2)
    depth, height, width = voxels.grid  # on the CPU at once in the channels-last layout, which convolutions want
    channels, (b, z, y, x) = voxels.features.shape[1], voxels.coords.long().unbind(1)
    cells = voxels.features.new_zeros(voxels.batch_size, height, width, channels, depth)
    cells[b, y, x, :, z] = voxels.features
    return cells.flatten(3).permute(0, 3, 1, 2)
