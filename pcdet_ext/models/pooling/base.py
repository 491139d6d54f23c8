"""What a pooling is, and what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from pcdet_ext.ops.segment import segment_reduce
from pcdet_ext.structures import SparseVoxels

Reads = Literal["nodes", "cells", "tokens"]


@dataclass(frozen=True, eq=False)
class RowFeatures:
    """Features [N, C] of nodes, voxels or tokens, and the cloud int64 [N] that each belongs to, of `batch_size`.

    Voxels also have coords int32 [N, 4] (batch, z, y, x), and the grid (Z, Y, X) that these are cells of.
    """

    features: Tensor
    batch_index: Tensor
    batch_size: int
    coords: Tensor | None = None
    grid: tuple[int, int, int] | None = None

    @staticmethod
    def of_voxels(voxels: SparseVoxels) -> RowFeatures:
        """Those of voxels."""
        z, y, x = voxels.grid
        return RowFeatures(voxels.features, voxels.coords[:, 0].long(), voxels.batch_size, voxels.coords, (z, y, x))

    def mean(self) -> Tensor:
        """Mean [B, C] of each cloud's rows, zeros for a cloud without rows."""
        return segment_reduce(self.features, self.batch_index, self.batch_size, "mean")

    def padded(self) -> tuple[Tensor, Tensor]:
        """Each cloud's rows in their order, [B, L, C], zeros behind them; and which are rows, bool [B, L]."""
        counts = torch.bincount(self.batch_index, minlength=self.batch_size)
        order = torch.argsort(self.batch_index, stable=True)
        frame = self.batch_index[order]
        slot = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[frame]
        length = int(counts.max()) if len(counts) else 0
        rows = self.features.new_zeros(self.batch_size, length, self.features.shape[1])
        rows = rows.index_put((frame, slot), self.features[order])
        return rows, torch.arange(length, device=order.device) < counts[:, None]


class Pooling(Protocol):
    """Turns the features of each cloud into one descriptor.

    reads: features of the "nodes" (or voxels) of one or several depths, of voxels with their "cells" alone, or of relay
    "tokens"; out_channels: D.
    """

    reads: ClassVar[Reads]
    out_channels: int

    def __call__(self, levels: Sequence[RowFeatures]) -> Tensor:
        """Descriptors [B, D] from the features of each depth, the finest first."""
        ...
