"""Voxels of earlier frames beside those of the present one (UniLION, Liu et al. 2025).

The published form has properties that one would not choose; they are named options, all off:
  truncate_cells    a position up to one cell below the grid falls into its first cell
  cell_corners      voxels are remembered at the lower corners of their cells instead of the centres
  drop_all          everything is forgotten once the sequence is older than `max_age`, instead of each voxel when it
                    is; a sequence that goes back in time keeps all that it has
  zero_voxel        where all frames of a batch begin a sequence, the first gets a voxel without features at cell 0
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.temporal.memory import SequenceMemory, VoxelMemory
from pcdet_ext.models.temporal.registry import TEMPORAL
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import SparseVoxels


@TEMPORAL.register
class VoxelFusion(nn.Module):
    """Remembered voxels, moved to where they are seen from now and passed through a linear layer, join those of now.

    What comes out is remembered. A cell may then hold several voxels: the backbone must take that.

    Args:
        channels: of the voxels.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.
        grid: cells (Z, Y, X).
        max_age: seconds that a voxel is remembered. Where a sequence goes back in time, voxels that are further ahead
            than this are forgotten as well, unless `drop_all` is set.
        truncate_cells, cell_corners, drop_all, zero_voxel: see the module.

    Raises:
        ValueError: the age is not positive.
    """

    def __init__(
        self,
        channels: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        grid: Sequence[int],
        max_age: float = 2.0,
        truncate_cells: bool = False,
        cell_corners: bool = False,
        drop_all: bool = False,
        zero_voxel: bool = False,
    ) -> None:
        super().__init__()
        if not max_age > 0:
            raise ValueError(f"max_age must be above 0 s, got {max_age}")
        self.low, self.size = tuple(point_cloud_range[:3]), tuple(voxel_size)
        self.grid = tuple(grid)
        self.max_age, self.truncate_cells, self.cell_corners = max_age, truncate_cells, cell_corners
        self.drop_all, self.zero_voxel = drop_all, zero_voxel
        self.fuser = nn.Linear(channels, channels, bias=False)

    def forward(
        self, voxels: SparseVoxels, frames: FrameContext, memory: VoxelMemory | None = None
    ) -> tuple[SparseVoxels, VoxelMemory]:
        """Fuse, and remember.

        Args:
            voxels: of the present frames, features [N, C].
            frames: where and when each was taken.
            memory: what the batch before left, None at the beginning.

        Returns:
            Voxels [M + N, C], the remembered ones first, and what the next batch needs. A cell may have several.

        Raises:
            ValueError: there are not as many places and times as frames.
        """
        if len(frames) != voxels.batch_size:
            raise ValueError(f"{voxels.batch_size} frames, but places and times of {len(frames)}")
        slots = [self._going_on(memory, number, frames) for number in range(voxels.batch_size)]
        recalled = [self._recall(slot, number, frames) for number, slot in enumerate(slots) if slot is not None]
        features, coords, times = self._joined(recalled, voxels, begins=not recalled)
        now = frames.timestamps.to(voxels.coords.device)[voxels.coords[:, 0].long()]
        fused = SparseVoxels(
            torch.cat([features, voxels.features]), torch.cat([coords, voxels.coords]), voxels.grid, voxels.batch_size
        )
        return fused, self._remember(fused, torch.cat([times, now]), slots, frames)

    def _going_on(self, memory: VoxelMemory | None, number: int, frames: FrameContext) -> SequenceMemory | None:
        """What is remembered for a frame, None where it begins a sequence."""
        slot = None if memory is None else memory.slot(number)
        name = frames.sequence_ids[number]
        if slot is None or not name or slot.sequence_id != name:
            return None
        now = float(frames.timestamps[number])
        if self.drop_all:
            return None if now - slot.began > self.max_age else slot
        return slot.select((now - slot.times).abs() <= self.max_age)

    def _recall(self, slot: SequenceMemory, number: int, frames: FrameContext) -> tuple[Tensor, Tensor, Tensor]:
        """Features [M, C], coords int32 [M, 4] and times [M] of what is remembered and lies in the grid now."""
        to_sensor = torch.linalg.inv(frames.poses[number].to(slot.positions))
        here = slot.positions @ to_sensor[:3, :3].T + to_sensor[:3, 3]
        cells = (here - here.new_tensor(self.low)) / here.new_tensor(self.size)
        cells = cells.trunc() if self.truncate_cells else cells.floor()
        inside = ((cells >= 0) & (cells < cells.new_tensor(self.grid[::-1]))).all(1)
        coords = cells[inside].flip(1).int()
        return slot.features[inside], torch.nn.functional.pad(coords, (1, 0), value=number), slot.times[inside]

    def _joined(
        self, recalled: Sequence[tuple[Tensor, Tensor, Tensor]], voxels: SparseVoxels, begins: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The remembered voxels of all frames, fused."""
        rows = int(begins and self.zero_voxel)
        features, coords = voxels.features.new_zeros(rows, voxels.features.shape[1]), voxels.coords.new_zeros(rows, 4)
        times = torch.full((rows,), -torch.inf, dtype=torch.float64, device=coords.device)
        if recalled:
            features, coords, times = (torch.cat(part) for part in zip(*recalled, strict=True))
        return self.fuser(features.to(voxels.features.dtype)), coords, times

    def _remember(
        self, fused: SparseVoxels, times: Tensor, slots: Sequence[SequenceMemory | None], frames: FrameContext
    ) -> VoxelMemory:
        low, size = (torch.tensor(v, dtype=torch.float64, device=times.device) for v in (self.low, self.size))
        offset = 0.0 if self.cell_corners else 0.5
        here = (fused.coords[:, 1:].flip(1).double() + offset) * size + low
        features, found = fused.features.detach(), []
        for number, slot in enumerate(slots):
            mine = (fused.coords[:, 0] == number).nonzero()[:, 0]
            pose = frames.poses[number].to(here)
            began = float(frames.timestamps[number]) if slot is None else slot.began
            there = here[mine] @ pose[:3, :3].T + pose[:3, 3]
            found.append(SequenceMemory(frames.sequence_ids[number], began, features[mine], there, times[mine]))
        return VoxelMemory(tuple(found))
