"""What a head is, and what it reads of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from pcdet_ext.config import suggest
from pcdet_ext.models.layers.lookup import rows_of
from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.structures import Detections, PointBatch, SparseVoxels, Targets, tensor_of

Reads = Literal["map", "voxels", "points", "scene"]


class Head(Protocol):
    """Turns features into what a user asks for; a detector has one or several.

    reads: which of the `Features` it is called with: the bird's-eye-view "map" [B, C, Y, X], the sparse "voxels" of the
    backbone, the features of "points", `PointFeatures`, or all `Features` of the "scene" with the outputs of the heads
    before it. A head that is about what another one finds has the attribute `of`, that head's name; see
    `FollowingHead`. A head whose `decode` gives anything but `Detections` has a
    further class attribute `finds`, the type of its results. A head that can find objects in less time than
    `decode(head(features))` has a further method `predict(features)` that gives the same in evaluation mode.
    """

    reads: ClassVar[Reads]

    def __call__(self, features: Any) -> Any:
        """The head's raw output."""
        ...

    def loss(self, output: Any, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses by name, to be added up; targets: one for each frame. Raises ValueError where a label is missing."""
        ...

    def decode(self, output: Any) -> list[Any]:
        """The result in each frame, such as `Detections`."""
        ...


class FollowingHead(Protocol):
    """A head that tells more about what the head named `of`, which comes before it, finds."""

    reads: ClassVar[Reads]
    of: str

    def __call__(self, features: Features) -> Any:
        """The head's raw output."""
        ...

    def loss(
        self, output: Any, targets: Sequence[Targets], matches: Sequence[tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Losses by name, as those of a `Head`.

        Args:
            output: of `forward`.
            targets: of each frame.
            matches: of each frame, rows int64 [K] of the other head's queries, and the objects int64 [K] that they
                stand for.
        """
        ...

    def decode(self, output: Any, found: Sequence[Detections]) -> list[Any]:
        """As that of a `Head`; found: what the other head decoded."""
        ...


def followed_heads(heads: Mapping[str, Any]) -> set[str]:
    """Names of the heads whose results others tell more about.

    Raises ValueError for a head that follows one that is not there, comes later, or cannot be followed.
    """
    names = list(heads)
    for name, head in heads.items():
        other = getattr(head, "of", None)
        if other is None:
            continue
        if other not in names[: names.index(name)]:
            raise ValueError(f"head {name!r} follows {other!r}, which is no head before it{suggest(other, names)}")
        if not hasattr(heads[other], "matches"):
            raise ValueError(f"head {name!r} follows {other!r}, a {type(heads[other]).__name__}, which has no queries")
        if getattr(head, "classes", None) != getattr(heads[other], "classes", None):
            raise ValueError(f"head {name!r} must have the classes of {other!r}, which it follows")
    return {head.of for head in heads.values() if hasattr(head, "of")}


@dataclass(frozen=True, eq=False)
class PointFeatures:
    """Features of the points of a batch.

    features: [P, C], zeros for points that are in no voxel; batch_index: int64 [P], frame of each point; inside: bool
    [P], whether it is in a voxel; points: float32 [P, F], the points themselves, where they are known.
    """

    features: Tensor
    batch_index: Tensor
    batch_size: int
    inside: Tensor
    points: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Features:
    """What the part of a detector that its heads share makes of a batch.

    batch: the points; encoded: voxels of the encoder; voxels: those of the backbone (the same without one); bev: map
    [B, C, Y, X], or None where no head reads it; strides: encoder's cells per cell of the backbone (z, y, x); outputs:
    of the heads that came before, by name; memory: what a detector that remembers needs with the next batch.
    """

    batch: PointBatch
    encoded: SparseVoxels
    voxels: SparseVoxels
    bev: Tensor | None
    strides: tuple[int, int, int] = (1, 1, 1)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    memory: VoxelMemory | None = None

    def of(self, reads: Reads) -> Any:
        """What a head that reads the "map", "voxels", "points" or "scene" is called with."""
        if reads == "map":
            return self.bev
        if reads == "scene":
            return self
        return self.voxels if reads == "voxels" else self.points()

    def map(self) -> Tensor:
        """The map [B, C, Y, X]. Raises ValueError where there is none."""
        if self.bev is None:
            raise ValueError("these features have no bird's-eye-view map")
        return self.bev

    def points(self) -> PointFeatures:
        """For each point the features of its encoder's voxel and, behind them, those of its backbone's voxel."""
        index = self.encoded.point_index
        if index is None:
            raise ValueError("the encoder did not keep which voxel each point is in")
        inside = index >= 0
        parts = [rows_or_zeros(self.encoded.features, index)]
        if self.voxels is not self.encoded:
            cells = rows_or_zeros(coarse_cells(self.encoded, self.voxels.grid, self.strides), index)
            parts.append(rows_or_zeros(self.voxels.features, torch.where(inside, rows_of(self.voxels, cells), -1)))
        features = torch.cat([part.to(parts[0].dtype) for part in parts], 1)
        return PointFeatures(features, self.batch.batch_index, self.batch.batch_size, inside, self.batch.points)


def rows_or_zeros(values: Tensor, index: Tensor) -> Tensor:
    """Rows [P, C] of values [N, C] at index int64 [P], zeros where it is -1; differentiable."""
    if not len(values):
        return values.new_zeros(len(index), values.shape[1])
    return torch.where(index[:, None] >= 0, values[index.clamp(min=0)], 0)


def coarse_cells(voxels: SparseVoxels, grid: tuple[int, int, int], strides: tuple[int, int, int]) -> Tensor:
    """Cells of a coarser grid that voxels lie in.

    Args:
        voxels: on the fine grid.
        grid: (Z, Y, X) cells of the coarse one; its last cells also take what strides leave over.
        strides: cells of the voxels' grid per coarse cell (z, y, x).

    Returns:
        int64 [N, 4] as (batch, z, y, x).
    """
    step, last = torch.tensor([strides, [n - 1 for n in grid]], device=voxels.coords.device)
    coarse = torch.div(voxels.coords[:, 1:].long(), step, rounding_mode="floor")
    return torch.cat([voxels.coords[:, :1].long(), torch.minimum(coarse, last)], 1)


def boxes_and_labels(targets: Sequence[Targets]) -> tuple[list[Tensor], list[Tensor]]:
    """The boxes [M, 7 or 9] and labels int64 [M] of each frame. Raises ValueError for a frame without them."""
    boxes, labels = [], []
    for frame, target in enumerate(targets):
        if target.boxes is None or target.labels is None:
            raise ValueError(f"frame {frame} of the batch has no labelled boxes to learn from")
        boxes.append(tensor_of(target.boxes))
        labels.append(tensor_of(target.labels))
    return boxes, labels


def fill_bias(module: nn.Module, value: float) -> None:
    """Set the bias of a convolution, or of the last one inside a module, to one value."""
    *_, last = (layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Conv1d))
    if last.bias is None:
        raise ValueError("the last convolution has no bias")
    nn.init.constant_(last.bias, value)
