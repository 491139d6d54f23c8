"""Features on the occupied cells of voxel grids."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pcdet_ext.structures.arrays import is_tracing, untraced


@dataclass(frozen=True, eq=False)
class SparseVoxels:
    """Features on the occupied cells of a batch of voxel grids.

    features: [N, C]; coords: int32 [N, 4] as (batch, z, y, x), each at most once, but for what `models.temporal` makes;
    grid: (Z, Y, X) cells. point_index: int64 [P], row of the voxel that each point of the batch is in, -1 for none;
    None where nobody asked for it. `plans` caches what depends on the coordinates alone (orders, partitions, neighbour
    tables), so that blocks of one stage share it; `with_features` keeps the cache, because the coordinates stay.
    """

    features: Tensor
    coords: Tensor
    grid: tuple[int, int, int]
    batch_size: int
    plans: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    point_index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 4:
            raise ValueError(f"coords must be [N, 4], got {tuple(self.coords.shape)}")
        if self.features.ndim != 2 or len(self.features) != len(self.coords):
            raise ValueError(f"features must be [{len(self.coords)}, C], got {tuple(self.features.shape)}")

    def __len__(self) -> int:
        return len(self.coords)

    def with_features(self, features: Tensor) -> SparseVoxels:
        """The same cells with other features [N, C']; cached plans are shared."""
        return replace(self, features=features)

    @untraced
    def plan(self, key: Hashable, make: Callable[[SparseVoxels], Any]) -> Any:
        """The cached plan under `key`, made by `make(self)` the first time; torch.compile does not look inside."""
        if key not in self.plans:
            self.plans[key] = make(self)
        return self.plans[key]

    def dense(self) -> Tensor:
        """All cells [B, C, Z, Y, X], empty ones 0; differentiable."""
        depth, height, width = self.grid
        b, z, y, x = self.coords.long().unbind(1)
        flat = ((b * depth + z) * height + y) * width + x
        cells = self.features.new_zeros(self.batch_size * depth * height * width, self.features.shape[1])
        put = cells.index_copy if is_tracing() else cells.index_copy_  # exports take no writes in place
        cells = put(0, flat, self.features)
        return cells.view(self.batch_size, depth, height, width, -1).permute(0, 4, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class VoxelPyramid(SparseVoxels):
    """The finest level of features at several scales, with the coarser ones.

    coarser: the other levels, each on a grid of half as many cells along each axis as the one before it.
    """

    coarser: tuple[SparseVoxels, ...] = ()

    @property
    def levels(self) -> tuple[SparseVoxels, ...]:
        """All levels, the finest first."""
        return (self, *self.coarser)
