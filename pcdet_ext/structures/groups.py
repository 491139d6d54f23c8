"""What a sequence of voxels is cut into: groups of equal size, or segments of any length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Groups:
    """Equal-size groups of voxels.

    index: int64 [G, L], voxel in each slot; inverse: int64 [N], flat slot g * L + l that each voxel reads back;
    valid: bool [G, L], False where a slot is padding or a duplicate, or None when all count; owner: int64 [G, L], slots
    of different owners do not see each other, or None when all of a group do; cells: int [N, 3], cell (z, y, x) of each
    voxel for mixers that look at relative positions, negative for rows without a place; None where nobody told.
    """

    index: Tensor
    inverse: Tensor
    valid: Tensor | None = None
    owner: Tensor | None = None
    cells: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """Voxel features [N, C] to slots [G, L, C]."""
        return x[self.index]

    def scatter(self, y: Tensor) -> Tensor:
        """Slots [G, L, C] back to voxels [N, C]."""
        return y.reshape(-1, y.shape[-1])[self.inverse]

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.index)

    def group_of_voxel(self) -> Tensor:
        """int64 [N]: the group that each voxel reads back from."""
        return torch.div(self.inverse, self.index.shape[1], rounding_mode="floor")

    def owner_of_voxel(self) -> Tensor:
        """int64 [N]: the owner of the slot that each voxel reads back from, or its group where there are no owners."""
        return self.group_of_voxel() if self.owner is None else self.owner.flatten()[self.inverse]

    def of_slots(self) -> Groups:
        """The same groups for features that are gathered already, slots [G * L, C] in their order."""
        slots = torch.arange(self.index.numel(), device=self.index.device)
        cells = None if self.cells is None else self.cells[self.index.flatten()]
        return _SlotGroups(slots.view(self.index.shape), slots, self.valid, self.owner, cells)


@dataclass(frozen=True, eq=False)
class _SlotGroups(Groups):
    """Groups of slots that lie one behind the other: nothing has to be moved."""

    def gather(self, x: Tensor) -> Tensor:
        return x.view(*self.index.shape, x.shape[-1])

    def scatter(self, y: Tensor) -> Tensor:
        return y.reshape(-1, y.shape[-1])


@dataclass(frozen=True, eq=False)
class Segments:
    """Variable-length runs of voxels.

    order: int64 [N], voxel at each place of the sequence; inverse: int64 [N], place of each voxel;
    offsets: int64 [W + 1], segment w is places offsets[w] to offsets[w + 1].
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """Voxel features [N, C] in sequence order [N, C]."""
        return x.index_select(0, self.order)

    def scatter(self, y: Tensor) -> Tensor:
        """Sequence [N, C] back to voxel order [N, C]."""
        return y.index_select(0, self.inverse)

    @property
    def num_groups(self) -> int:
        """W, the number of segments."""
        return len(self.offsets) - 1

    def group_of_voxel(self) -> Tensor:
        """int64 [N]: the segment of each voxel."""
        return torch.bucketize(self.inverse, self.offsets[1:], right=True)

    def of_places(self) -> Segments:
        """The same segments for features that are gathered already, rows [N, C] in the order of the sequence."""
        places = torch.arange(len(self.order), device=self.order.device)
        return _PlacedSegments(places, places, self.offsets)


@dataclass(frozen=True, eq=False)
class _PlacedSegments(Segments):
    """Segments of features that stand in their places: nothing to gather."""

    def gather(self, x: Tensor) -> Tensor:
        return x

    def scatter(self, y: Tensor) -> Tensor:
        return y
