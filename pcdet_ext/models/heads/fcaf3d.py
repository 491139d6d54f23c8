"""FCAF3D, the fully convolutional anchor-free head of sparse voxels (Rukhovich et al., ECCV 2022, arXiv 2112.00322)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.models.heads.base import Reads, boxes_and_labels
from pcdet_ext.models.heads.losses import sigmoid_focal_loss
from pcdet_ext.models.heads.postprocess import NMSConfig, suppress
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.rotated_iou import rotated_iou_3d
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.sparse_conv import Engine, SubMConv3d
from pcdet_ext.models.layers.sparse_up import GenerativeTransposedConv3d, PruneBy, prune, scores_below, union
from pcdet_ext.models.targets.locations import LocationAssigner
from pcdet_ext.ranges import check_range
from pcdet_ext.structures import Detections, SparseVoxels, Targets, VoxelPyramid

NMS = {"iou_threshold": 0.5, "max_before": None, "max_after": None, "per_class": True}
PRIOR = 0.01  # the score that untrained locations give to every class
FACES = 6  # numbers of a box code that are distances


@dataclass(frozen=True, eq=False)
class LocationRows:
    """Predictions at N locations, level after level from the finest.

    classes: logits [N, C]; center: logits of the centre-ness [N]; code: boxes [N, 6 or 8], see `boxes_at`; points:
    [N, 3] in metres; frame, level: int64 [N].
    """

    classes: Tensor
    center: Tensor
    code: Tensor
    points: Tensor
    frame: Tensor
    level: Tensor

    def select(self, keep: Tensor) -> LocationRows:
        """Those that `keep`, bool [N] or int64 [K], picks."""
        return LocationRows(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})


@dataclass(frozen=True, eq=False)
class LocationOutput:
    """Predictions of a batch."""

    rows: LocationRows
    batch_size: int

    def frames(self) -> list[LocationRows]:
        """The rows of each frame."""
        return [self.rows.select(self.rows.frame == number) for number in range(self.batch_size)]


def boxes_at(points: Tensor, code: Tensor) -> Tensor:
    """Boxes [N, 7] from codes, at locations [N, 3] in metres.

    A code has the distances in metres from the location to the lower and the upper face along x, y and z. With 8
    numbers, (a, b) behind them describe how the box is turned, as the paper's points on a Möbius strip do: width per
    length is exp(√(a² + b²)), where length and width add up to the four horizontal distances, and the heading is
    atan2(a, b) / 2. A box that is turned by 90°, with length and width exchanged, has the same code. With 6 numbers the
    heading is 0.
    """
    lower, upper = code[:, 0:FACES:2], code[:, 1:FACES:2]
    center, size = points + (upper - lower) / 2, upper + lower
    if code.shape[1] == FACES:
        return torch.cat([center, size, torch.zeros_like(size[:, :1])], 1)
    a, b = code[:, FACES], code[:, FACES + 1]
    ratio = (a.square() + b.square()).clamp_min(1e-24).sqrt().exp()  # the root has no slope at 0
    length = (size[:, 0] + size[:, 1]) / (1 + ratio)
    turned = torch.stack([length, length * ratio, size[:, 2], torch.atan2(a, b) / 2], 1)
    return torch.cat([center, turned], 1)


@HEADS.register
class FCAF3DHead(nn.Module):
    """Every cell of a sparse feature pyramid predicts classes, a box, and how central it is in it.

    From the coarsest level down, each cell makes its eight children, which join the cells of the next finer level; so
    there are locations inside of objects, where no sensor sees a point. The lower corner of a cell is its location.

    Args:
        in_channels: of the finest level.
        classes: names.
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        voxel_size: (x, y, z) in metres.
        stride: voxels per cell of the finest level; each level has cells twice as wide as the one before.
        channels: of each level of the backbone, the finest first.
        out_channels: of the features from which locations predict.
        headings: whether boxes are turned (8 numbers, SUN RGB-D) or lie along the axes (6 numbers, ScanNet).
        prune_threshold: cells per level and frame that are kept, those with the best scores one level above.
        prune_by: how scores of the level above are read, see `scores_below`; "interpolated" as published.
        assign_threshold: locations that a level must have inside of an object, see `LocationAssigner`.
        center_threshold: locations that learn an object at most.
        class_weight: of the loss of classes.
        box_weight: of the loss of boxes.
        center_weight: of the loss of centre-ness.
        score_threshold: detections score more.
        max_candidates: locations per level that are looked at, those with the best scores.
        nms: fields of `NMSConfig`; by default class by class, at an overlap from above of 0.5.
        engine: see `SparseConv3d`.

    Raises:
        ValueError: settings that contradict each other.
    """

    reads: ClassVar[Reads] = "voxels"

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        stride: int,
        channels: Sequence[int],
        out_channels: int = 128,
        headings: bool = True,
        prune_threshold: int = 100_000,
        prune_by: PruneBy = "parent",
        assign_threshold: int = 27,
        center_threshold: int = 18,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        center_weight: float = 1.0,
        score_threshold: float = 0.01,
        max_candidates: int = 1000,
        nms: Mapping[str, Any] | None = None,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        if not channels or channels[0] != in_channels:
            raise ValueError(
                f"channels must begin with the {in_channels} of the backbone's finest level, got {list(channels)}"
            )
        if prune_by not in ("parent", "interpolated"):
            raise ValueError(f"prune_by must be parent or interpolated, got {prune_by!r}")
        check_range(1, prune_threshold=prune_threshold, assign_threshold=assign_threshold, out_channels=out_channels)
        check_range(1, center_threshold=center_threshold, max_candidates=max_candidates)
        check_range(0, class_weight=class_weight, box_weight=box_weight, center_weight=center_weight)
        check_range(-math.inf, score_threshold=score_threshold)
        self.classes, self.channels = tuple(classes), tuple(channels)
        self.origin = tuple(point_cloud_range[:3])
        self.cell = tuple(size * stride for size in voxel_size)
        self.prune_threshold, self.prune_by = prune_threshold, prune_by
        self.assigner = LocationAssigner(assign_threshold, center_threshold)
        self.class_weight, self.box_weight, self.center_weight = class_weight, box_weight, center_weight
        self.score_threshold, self.max_candidates = score_threshold, max_candidates
        self.nms = construct(NMSConfig, NMS if nms is None else nms)
        self.nms.check(len(self.classes))
        self.up_blocks = ModuleListOf(UpBlock(coarse, fine, engine) for fine, coarse in itertools.pairwise(channels))
        self.out_blocks = ModuleListOf(ConvBlock(width, out_channels, engine) for width in channels)
        self.to_center = nn.Linear(out_channels, 1, bias=False)
        self.to_box = nn.Linear(out_channels, FACES + 2 * headings, bias=False)
        self.to_classes = nn.Linear(out_channels, len(self.classes))
        self.scales = nn.ParameterList(nn.Parameter(torch.tensor(1.0)) for _ in channels)
        for layer in (self.to_center, self.to_box, self.to_classes):
            nn.init.normal_(layer.weight, std=0.01)
        nn.init.constant_(self.to_classes.bias, -math.log(1 / PRIOR - 1))

    def forward(self, voxels: SparseVoxels) -> LocationOutput:
        """Predictions from the levels of a pyramid. Raises ValueError for voxels of another number of levels."""
        levels = voxels.levels if isinstance(voxels, VoxelPyramid) else (voxels,)
        if len(levels) != len(self.channels):
            raise ValueError(
                f"the head reads {len(self.channels)} levels, the backbone gives {len(levels)} (an OctFormer gives its "
                "stages with out_channels: null)"
            )
        x, scores = levels[-1], None
        rows: list[LocationRows] = []
        for level in reversed(range(len(levels))):
            if scores is not None:
                x = self._joined(levels[level], self.up_blocks[level](x), scores)
            features = self.out_blocks[level](x)
            rows.insert(0, self._predicted(features, level))
            scores = x.with_features(rows[0].classes.detach().amax(1, keepdim=True))
        parts = {field.name: torch.cat([getattr(part, field.name) for part in rows]) for field in fields(LocationRows)}
        return LocationOutput(LocationRows(**parts), voxels.batch_size)

    def _joined(self, fine: SparseVoxels, grown: SparseVoxels, scores: SparseVoxels) -> SparseVoxels:
        """A level and what grew out of the coarser one, pruned by the scores [N, 1] of that."""
        joined = union(fine, grown)
        return prune(joined, scores_below(scores, joined, self.prune_by), self.prune_threshold)

    def _predicted(self, voxels: SparseVoxels, level: int) -> LocationRows:
        features, coords = voxels.features, voxels.coords.long()
        dtype = torch.promote_types(features.dtype, torch.float32)  # half precision is too coarse for boxes
        code = self.to_box(features).to(dtype)
        distances = (code[:, :FACES] * self.scales[level]).exp()
        origin, cell = (torch.tensor(values, device=coords.device) for values in (self.origin, self.cell))
        return LocationRows(
            classes=self.to_classes(features).to(dtype),
            center=self.to_center(features).to(dtype)[:, 0],
            code=torch.cat([distances, code[:, FACES:]], 1),
            points=origin + coords[:, [3, 2, 1]] * (cell * 2**level),
            frame=coords[:, 0],
            level=torch.full_like(coords[:, 0], level),
        )

    def loss(self, output: LocationOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "class" (focal), "box" (overlap) and "center" (cross-entropy), means over the frames.

        In each frame that of classes and of centre-ness is divided by the locations that learn an object, that of boxes
        is a mean weighted by their centre-ness (as published).
        """
        pairs = zip(output.frames(), *boxes_and_labels(targets), strict=True)
        losses = torch.stack([self._frame_loss(rows, boxes, labels) for rows, boxes, labels in pairs]).mean(0)
        weights = (self.class_weight, self.box_weight, self.center_weight)
        return {name: w * v for name, w, v in zip(("class", "box", "center"), weights, losses, strict=True)}

    def _frame_loss(self, rows: LocationRows, boxes: Tensor, labels: Tensor) -> Tensor:
        """The three losses [3] of one frame, without their weights."""
        target = self.assigner(rows.points, rows.level, len(self.channels), boxes)
        learns = (target.box >= 0).nonzero()[:, 0]
        objects, centerness = target.box[learns], target.centerness[learns]
        expected = torch.zeros_like(rows.classes)
        expected[learns, labels[objects]] = 1
        found = boxes_at(rows.points[learns], rows.code[learns])
        missed = 1 - rotated_iou_3d(found, boxes[objects, :7].to(found))
        center = F.binary_cross_entropy_with_logits(rows.center[learns], centerness, reduction="sum")
        count = max(len(learns), 1)
        return torch.stack([
            sigmoid_focal_loss(rows.classes, expected).sum() / count,
            (missed * centerness).sum() / centerness.sum().clamp_min(1e-6),
            center / count,
        ])  # fmt: skip

    @torch.no_grad()
    def decode(self, output: LocationOutput) -> list[Detections]:
        """Detections of each frame, class by class and best first."""
        return [self._detections(rows) for rows in output.frames()]

    def _detections(self, rows: LocationRows) -> Detections:
        scores = rows.classes.sigmoid() * rows.center.sigmoid()[:, None]
        best = self._candidates(scores.amax(1), rows.level)
        boxes, scores = boxes_at(rows.points[best], rows.code[best]), scores[best]
        labels, index = (scores.t() > self.score_threshold).nonzero().unbind(1)
        boxes, scores = boxes[index], scores[index, labels]
        kept = suppress(boxes, scores, labels, self.nms, len(self.classes))
        return Detections(boxes[kept], scores[kept], labels[kept], self.classes)

    def _candidates(self, scores: Tensor, level: Tensor) -> Tensor:
        """The rows int64 [K] with the best scores [N] of each level."""
        order = scores.argsort(descending=True, stable=True)
        return torch.cat([order[level[order] == i][: self.max_candidates] for i in range(len(self.channels))])


class ConvBlock(nn.Module):
    """A submanifold convolution of 3³ cells, batch norm and ELU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        engine: see `SparseConv3d`.
    """

    def __init__(self, in_channels: int, out_channels: int, engine: Engine) -> None:
        super().__init__()
        self.conv = SubMConv3d(in_channels, out_channels, 3, engine=engine)
        self.norm = SparseBatchNorm(out_channels, eps=1e-5, momentum=0.1)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to [N, out_channels]."""
        out = self.conv(voxels)
        return out.with_features(F.elu(self.norm(out.features)))


class UpBlock(nn.Module):
    """The children of each voxel, with batch norm and ELU, then a `ConvBlock`.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        engine: see `SparseConv3d`.
    """

    def __init__(self, in_channels: int, out_channels: int, engine: Engine) -> None:
        super().__init__()
        self.grow = GenerativeTransposedConv3d(in_channels, out_channels)
        self.norm = SparseBatchNorm(out_channels, eps=1e-5, momentum=0.1)
        self.block = ConvBlock(out_channels, out_channels, engine)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, in_channels] to [8 N, out_channels] on a grid of twice as many cells along each axis."""
        out = self.grow(voxels)
        return self.block(out.with_features(F.elu(self.norm(out.features))))
