"""Poolings of the voxels of each cloud to one descriptor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcdet_ext.config import Registry
from pcdet_ext.ops import segment_reduce
from pcdet_ext.structures import SparseVoxels

POOLINGS = Registry("pooling")


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


@POOLINGS.register
class GeMPooling(nn.Module):
    """Generalised mean (Radenović et al., TPAMI 2019) of the voxels' features, then a linear layer.

    Features are cut at `smallest`, taken to the power of a learned exponent, averaged, and taken back.

    Args:
        in_channels: of the voxels.
        out_channels: D of the descriptor.
        exponent: at the beginning.
        smallest: least value of a feature.

    Raises:
        ValueError: for sizes below 1 and values that are not positive.
    """

    def __init__(
        self, in_channels: int, out_channels: int = 256, exponent: float = 3.0, smallest: float = 1e-6
    ) -> None:
        super().__init__()
        _check_sizes(in_channels=in_channels, out_channels=out_channels)
        if exponent <= 0 or smallest <= 0:
            raise ValueError(f"exponent and smallest must be above 0, got {exponent} and {smallest}")
        self.out_channels, self.smallest = out_channels, smallest
        self.exponent = nn.Parameter(torch.tensor(float(exponent)))
        self.project = nn.Linear(in_channels, out_channels)

    def forward(self, voxels: SparseVoxels) -> Tensor:
        """Descriptors [B, out_channels]."""
        powers = voxels.features.float().clamp(min=self.smallest).pow(self.exponent)
        mean = segment_reduce(powers, voxels.coords[:, 0].long(), voxels.batch_size, "mean")
        least = self.smallest ** self.exponent.detach()  # of a cloud without voxels, where the root has no gradient
        projected: Tensor = self.project(mean.clamp(min=least).pow(1 / self.exponent))
        return projected


@POOLINGS.register
class AttentionPooling(nn.Module):
    """Learned queries that attend to the voxels of a cloud, then a linear layer on what all of them found.

    Each query q gives softmax(q xᵀ / √C) x over the voxels x of a cloud, without projections (the pooling of a level in
    HOTFormerLoc, Griffiths et al., CVPR 2025).

    Args:
        in_channels: C of the voxels.
        out_channels: D of the descriptor.
        queries: how many.

    Raises:
        ValueError: for sizes below 1.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, queries: int = 16) -> None:
        super().__init__()
        _check_sizes(in_channels=in_channels, out_channels=out_channels, queries=queries)
        self.out_channels = out_channels
        self.query = nn.Parameter(torch.randn(queries, in_channels))
        self.norm = nn.LayerNorm(in_channels)
        self.project = nn.Linear(queries * in_channels, out_channels)

    def forward(self, voxels: SparseVoxels) -> Tensor:
        """Descriptors [B, out_channels]."""
        x, frame = voxels.features.float(), voxels.coords[:, 0].long()
        logits = x @ self.query.T * x.shape[1] ** -0.5
        top = segment_reduce(logits.detach(), frame, voxels.batch_size, "max")
        weight = (logits - top[frame]).exp()  # [N, queries]
        total = segment_reduce(weight, frame, voxels.batch_size, "sum").clamp(min=1e-12)
        share = weight / total[frame]
        found = [
            segment_reduce(share[:, i : i + 1] * x, frame, voxels.batch_size, "sum") for i in range(share.shape[1])
        ]
        projected: Tensor = self.project(self.norm(torch.stack(found, 1)).flatten(1))
        return projected
