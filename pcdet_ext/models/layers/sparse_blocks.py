"""Blocks of sparse convolutions, whose state-dict keys are those of OpenPCDet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pcdet_ext.models.layers.norm import EPS, MOMENTUM, SparseBatchNorm
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d
from pcdet_ext.structures import SparseVoxels


class SparseSequential(nn.Sequential):
    """Sparse convolutions and blocks in a row; modules for plain tensors work on the features."""

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """SparseVoxels through every module."""
        for module in self:
            if isinstance(module, (SparseConv3d, SparseSequential, SparseResidualBlock)):
                voxels = module(voxels)
            else:
                voxels = voxels.with_features(module(voxels.features))
        return voxels


class SparseResidualBlock(nn.Module):
    """Two submanifold convolutions beside an identity.

    Args:
        channels: of the input and the output.
        bias: whether the convolutions have one.
        engine: see `SparseConv3d`.
        kernel_size: cells, a number or (z, y, x), odd.
    """

    normed = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self, channels: int, bias: bool = True, engine: Engine = "auto", kernel_size: int | Sequence[int] = 3
    ) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, kernel_size, bias=bias, engine=engine)
        self.bn1 = SparseBatchNorm(channels)
        self.conv2 = SubMConv3d(channels, channels, kernel_size, bias=bias, engine=engine)
        self.bn2 = SparseBatchNorm(channels)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, channels] to the same shape."""
        if isinstance(self.bn1, nn.Identity) and isinstance(self.bn2, nn.Identity):  # as inference folds them
            return self.conv2(self.conv1(voxels, relu=True), voxels.features, relu=True)
        inner = self.conv1(voxels)
        inner = self.conv2(inner.with_features(torch.relu(self.bn1(inner.features))))
        return voxels.with_features(torch.relu(self.bn2(inner.features) + voxels.features))


def conv_block(conv: SparseConv3d, eps: float = EPS, momentum: float = MOMENTUM) -> SparseSequential:
    """A convolution with batch norm and ReLU.

    Args:
        conv: the convolution.
        eps: added to the variance by the batch norm.
        momentum: of the batch norm, the weight of a new batch in the running statistics.
    """
    return SparseSequential(conv, SparseBatchNorm(conv.out_channels, eps, momentum), nn.ReLU())
