"""What a detector remembers of the frames before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SequenceMemory:
    """What is remembered of one sequence.

    sequence_id: of the sequence; began: seconds, time of the frame after which it was empty; features: [N, C], without
    gradient; positions: float64 [N, 3], x, y, z of the voxels in the world, metres; times: float64 [N], seconds, when
    each was seen.
    """

    sequence_id: str
    began: float
    features: Tensor
    positions: Tensor
    times: Tensor

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.positions) == len(self.times):
            counts = f"{len(self.features)} features, {len(self.positions)} positions and {len(self.times)} times"
            raise ValueError(f"a memory must have one position and time per voxel, got {counts}")

    def __len__(self) -> int:
        """Number of voxels."""
        return len(self.features)

    def select(self, keep: Tensor) -> SequenceMemory:
        """The same with the voxels that `keep` (bool [N]) picks."""
        return self._map(lambda column: column[keep])

    def to(self, device: torch.device | str) -> SequenceMemory:
        """The same on another device."""
        return self._map(lambda column: column.to(device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> SequenceMemory:
        columns = (change(self.features), change(self.positions), change(self.times))
        return SequenceMemory(self.sequence_id, self.began, *columns)


@dataclass(frozen=True, eq=False)
class VoxelMemory:
    """What is remembered for each frame of a batch: the next batch goes on with the same sequences in the same order.

    slots: of each frame, None where nothing is remembered.
    """

    slots: tuple[SequenceMemory | None, ...] = ()

    def slot(self, number: int) -> SequenceMemory | None:
        """The memory for a frame of the batch, None where there is none; a batch may be larger than the one before."""
        return self.slots[number] if number < len(self.slots) else None

    def to(self, device: torch.device | str) -> VoxelMemory:
        """The same on another device."""
        return VoxelMemory(tuple(slot if slot is None else slot.to(device) for slot in self.slots))

    def plain(self) -> list[dict[str, Any] | None]:
        """The same as plain types and tensors on the CPU, for a checkpoint."""
        slots = [slot if slot is None else slot.to("cpu") for slot in self.slots]
        return [None if slot is None else {f.name: getattr(slot, f.name) for f in fields(slot)} for slot in slots]

    @staticmethod
    def of_plain(slots: Sequence[Mapping[str, Any] | None]) -> VoxelMemory:
        """The memory that `plain` gave. Raises TypeError or ValueError for anything else."""
        return VoxelMemory(tuple(None if slot is None else SequenceMemory(**slot) for slot in slots))
