"""Generalized-mean pooling (Radenović et al., TPAMI 2018) of one or several depths, as HOTFormerLoc compares with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.pooling.base import Reads, RowFeatures
from pcdet_ext.models.pooling.registry import POOLINGS

POWER, EPS = 3.0, 1e-6


def generalized_mean(rows: RowFeatures, power: Tensor) -> Tensor:
    """(mean of max(x, 1e-6)^power)^(1 / power) of each cloud, [B, C]; 0 for a cloud without rows."""
    mean = RowFeatures(rows.features.clamp(min=EPS).pow(power), rows.batch_index, rows.batch_size).mean()
    filled = mean > 0
    return torch.where(filled, torch.where(filled, mean, 1.0).pow(1 / power), 0.0)


@POOLINGS.register
class GeM(nn.Module):
    """The generalized mean of the finest depth; its power is learnt, 3 at first.

    channels: of each depth, the finest first.
    """

    reads: ClassVar[Reads] = "nodes"

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.out_channels = channels[0]
        self.power = nn.Parameter(torch.full((1,), POWER))

    def forward(self, levels: Sequence[RowFeatures]) -> Tensor:
        """Descriptors [B, channels[0]]."""
        return generalized_mean(levels[0], self.power)


@POOLINGS.register
class PyramidGeM(nn.Module):
    """Generalized means of all depths, joined by a linear layer and, as published, a batch norm.

    Args:
        channels: of each depth, the finest first.
        out_channels: D.
        gated: multiply each channel by a gate that all channels decide (context gating, Miech et al., 2017).
        batch_norm: False for a linear layer with a bias alone, which does not depend on what else is in a batch.
    """

    reads: ClassVar[Reads] = "nodes"

    def __init__(
        self, channels: Sequence[int], out_channels: int = 256, gated: bool = False, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.power = nn.Parameter(torch.full((len(channels),), POWER))
        self.linear = nn.Linear(sum(channels), out_channels, bias=not batch_norm)
        self.norm = SparseBatchNorm(out_channels, eps=1e-5, momentum=0.1) if batch_norm else nn.Identity()
        self.gate = ContextGate(out_channels) if gated else None

    def forward(self, levels: Sequence[RowFeatures]) -> Tensor:
        """Descriptors [B, out_channels]."""
        means = [generalized_mean(rows, power) for rows, power in zip(levels, self.power, strict=True)]
        pooled = self.norm(self.linear(torch.cat(means, 1)))
        return pooled if self.gate is None else self.gate(pooled)


class ContextGate(nn.Module):
    """x · σ(norm(x W))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels) / channels**0.5)
        self.norm = SparseBatchNorm(channels, eps=1e-5, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Descriptors [B, channels] to the same shape."""
        return x * torch.sigmoid(self.norm(x @ self.weight))
