"""Frames as they are read from a data set, and batches of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_ext import sketch
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures.arrays import Array, rows_of
from pcdet_ext.structures.targets import Targets


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame as read from a data set.

    points: float32 [N, F]; point_features: name of each of their columns, x, y, z first; targets: what is labelled,
    with arrays, or None; sequence_id: the recording that the frame belongs to, empty where frames stand alone;
    calibration: the format's own object, with the size of its images where there are some; pose: float64 [4, 4],
    sensor to world; timestamp: seconds; point_rows: int64 [N], the row in the frame's file of each point, for results
    that have a line per point of the file, or None where nobody needs it; augmented: float64 [4, 4], what augmentation
    did to the places in the frame, None for nothing; command: what the driver is told, a position in `scenes.COMMANDS`.
    Raises ValueError where columns and their names, or points and their labels, differ in number.
    """

    points: Array
    point_features: tuple[str, ...]
    frame_id: str
    targets: Targets | None = None
    sequence_id: str = ""
    calibration: Any = None
    pose: Array | None = None
    timestamp: float | None = None
    point_rows: Array | None = None
    augmented: Array | None = None
    command: int | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != len(self.point_features):
            raise ValueError(f"points must be [N, {len(self.point_features)}], got {list(self.points.shape)}")
        names = () if self.targets is None else self.targets.POINT_COLUMNS
        columns = {name.replace("_", " "): getattr(self.targets, name) for name in names}
        for name, column in (columns | {"point rows": self.point_rows}).items():
            if column is not None and len(column) != len(self.points):
                raise ValueError(f"{len(self.points)} points but {len(column)} {name}")

    def replace(self, **changes: Any) -> Sample:
        """A copy with some fields exchanged."""
        return replace(self, **changes)

    def select_points(self, keep: Array) -> Sample:
        """The same with the points, and their labels, that `keep` (bool [N] or int64 [K]) picks, in its order."""
        targets = None if self.targets is None else self.targets.select_points(keep)
        rows = None if self.point_rows is None else self.point_rows[keep]
        return replace(self, points=rows_of(self.points, keep), targets=targets, point_rows=rows)

    def _repr_html_(self) -> str:
        """What a notebook shows: the points from above with the labelled boxes, and a table of these."""
        targets = self.targets or Targets()
        boxes = None if targets.boxes is None else np.asarray(targets.boxes)
        title = (
            f"frame {self.frame_id}: {len(self.points)} points ({', '.join(self.point_features)}), {len(targets)} boxes"
        )
        return sketch.frame_html(title, self.points, boxes, targets.names)


@dataclass(frozen=True, eq=False)
class PointBatch:
    """Points of several frames, and optionally their ground truth.

    points: float32 [P, F]; batch_index: int64 [P], frame of each point, in any order; targets: one of tensors for each
    frame, their labels being positions in the detector's classes; commands: int64 [B], what drivers are told, positions
    in `scenes.COMMANDS`, for heads that plan; context: where and when the frames were taken, on the CPU, for detectors
    that remember.
    """

    points: Tensor
    batch_index: Tensor
    batch_size: int
    targets: tuple[Targets, ...] | None = None
    frame_ids: tuple[str, ...] = ()
    commands: Tensor | None = None
    context: FrameContext | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PointBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PointBatch:
        """The same batch in page-locked memory (called by torch's data loader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> PointBatch:
        targets = None if self.targets is None else tuple(t.map(change) for t in self.targets)
        points, batch_index = change(self.points), change(self.batch_index)
        commands = None if self.commands is None else change(self.commands)
        return replace(self, points=points, batch_index=batch_index, targets=targets, commands=commands)

    @staticmethod
    def from_points(clouds: Sequence[Tensor]) -> PointBatch:
        """Join clouds [N_i, F] of equal width into one batch without ground truth."""
        if not clouds:
            raise ValueError("clouds must hold at least one point cloud")
        counts = torch.tensor([len(c) for c in clouds], device=clouds[0].device)
        index = torch.arange(len(clouds), device=clouds[0].device).repeat_interleave(counts)
        return PointBatch(torch.cat(list(clouds)), index, len(clouds))
