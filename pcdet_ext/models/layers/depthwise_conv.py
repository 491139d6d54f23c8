"""Depth-wise submanifold convolutions with small or very long kernels (ScatterFormer, He et al., ECCV 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.sparse_conv import submanifold_table
from pcdet_ext.ops.octree_conv import octree_depthwise_conv
from pcdet_ext.structures import SparseVoxels


class DepthwiseSubMConv3d(nn.Module):
    """Each channel of a voxel sums its neighbours' inside a kernel, weighted by their place; cross-correlation.

    channels: C; kernel_size: odd sizes (z, y, x). weight: [kz, ky, kx, C], no bias, at first zero, as in the published
    models. Needs no library: neighbour tables and a native operation. Raises ValueError for sizes that are not odd.
    """

    def __init__(self, channels: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        sizes = tuple(kernel_size)
        if len(sizes) != 3 or any(k < 1 or k % 2 == 0 for k in sizes):
            raise ValueError(f"kernel_size must be three odd sizes (z, y, x), got {sizes}")
        self.kernel_size = sizes
        self.weight = nn.Parameter(torch.zeros(*self.kernel_size, channels))

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return f"{self.weight.shape[-1]}, kernel_size={self.kernel_size}"

    def forward(self, voxels: SparseVoxels, features: Tensor) -> Tensor:
        """features: [N, C] on the cells of `voxels`; the result has the weight's type."""
        kernel = self.kernel_size
        table = voxels.plan(("submanifold_table", kernel), lambda v: submanifold_table(v, kernel))
        return octree_depthwise_conv(features.to(self.weight.dtype), self.weight.flatten(0, 2), table)
