"""The head of VoxelNeXt (Chen et al., CVPR 2023), which predicts at occupied cells alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.models.heads.losses import axis_aligned_diou
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.sites import Layers, Scored, SiteHead, SiteOutput
from pcdet_ext.models.layers.sparse_conv import Engine
from pcdet_ext.models.targets.sites import Around, SiteAssigner
from pcdet_ext.ops import iou_3d_paired, segment_reduce
from pcdet_ext.ranges import check_positive, check_range
from pcdet_ext.structures import Detections, PointBatch

COPIES = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # signs of x and y in the copies of a frame that are merged
AROUND = ("center", "nearest_site")


@HEADS.register
class VoxelNeXtHead(SiteHead):
    """Objects as peaks of a heatmap over the occupied cells of a plane, their boxes read off at the peaks.

    An object's box is learnt at the occupied cell nearest to its centre. Arguments that are not listed are those of
    `SparseCenterHead`.

    Args:
        in_channels: of the sites, and width of the branches.
        classes: names.
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        voxel_size: (x, y, z) in metres.
        stride: voxels per cell.
        tasks: see `SparseCenterHead`.
        branches: convolutions of each branch by name: "center", "center_z", "dim", "rot", and optionally "vel", "iou".
        heatmap_convs: see `SparseCenterHead`.
        conv_bias: see `SparseCenterHead`.
        norm_eps: see `SparseCenterHead`.
        norm_momentum: see `SparseCenterHead`.
        kernel_size: cells in x and y of the convolutions but the last of each branch; odd.
        gaussian_overlap: see `SparseCenterHead`.
        min_radius: see `SparseCenterHead`.
        gaussian_ratio: factor on the radius in the width of the Gaussians.
        gaussian_around: what Gaussians are drawn around: the "center", the "nearest_site", or both.
        max_objects: see `SparseCenterHead`; objects without extent count.
        heatmaps_by_frame: see `SparseCenterHead`.
        class_weight: see `SparseCenterHead`.
        box_weight: see `SparseCenterHead`.
        iou_weight: see `SparseCenterHead`.
        box_iou_weight: of the axis-aligned distance IoU of boxes, which is learnt with a branch "iou"; None for
            `box_weight`.
        code_weights: factors on the losses of the 8 numbers of a box code, 10 with velocity.
        score_threshold: see `SparseCenterHead`.
        max_candidates: see `SparseCenterHead`.
        center_range: see `SparseCenterHead`.
        iou_rectifier: see `SparseCenterHead`.
        nms: see `SparseCenterHead`.
        double_flip: a batch in testing holds each frame four times in a row, as it is, with y, with x, and with both
            negated (`copies`); their predictions are merged, a flipped cell i becoming n - i as published.
        engine: see `sparse_conv`.

    Raises:
        ValueError: settings that contradict each other.
    """

    heatmap_name = "hm"

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        stride: float,
        tasks: Sequence[Sequence[str]] | None = None,
        branches: Mapping[str, int] | None = None,
        heatmap_convs: int = 2,
        conv_bias: bool = True,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        kernel_size: int = 3,
        gaussian_overlap: float = 0.1,
        min_radius: int = 2,
        gaussian_ratio: float = 1.0,
        gaussian_around: Sequence[Around] = ("nearest_site", "center"),
        max_objects: int | None = None,
        heatmaps_by_frame: bool = False,
        class_weight: float = 1.0,
        box_weight: float = 0.25,
        iou_weight: float = 1.0,
        box_iou_weight: float | None = None,
        code_weights: Sequence[float] | None = None,
        score_threshold: float = 0.1,
        max_candidates: int = 500,
        center_range: Sequence[float] | None = None,
        iou_rectifier: float | Sequence[float] | None = None,
        nms: Mapping[str, Any] | None = None,
        double_flip: bool = False,
        engine: Engine = "auto",
    ) -> None:
        check_positive(1, gaussian_overlap=gaussian_overlap)
        check_positive(gaussian_ratio=gaussian_ratio)
        check_range(1, max_objects=max_objects)
        check_range(0, box_iou_weight=box_iou_weight)
        if not gaussian_around or not set(gaussian_around) <= set(AROUND):
            raise ValueError(f"gaussian_around must name one or both of {AROUND}, got {list(gaussian_around)}")
        super().__init__(
            Layers(in_channels, conv_bias, norm_eps, norm_momentum, kernel_size, False, engine),
            classes,
            point_cloud_range,
            voxel_size,
            stride,
            tasks,
            branches,
            heatmap_convs,
            class_weight,
            box_weight,
            iou_weight,
            code_weights,
            score_threshold,
            max_candidates,
            center_range,
            iou_rectifier,
            nms,
        )
        if double_flip and ("vel" not in self.branches or "iou" in self.branches):
            raise ValueError("double_flip needs the branch 'vel', and cannot merge a branch 'iou'")
        self.double_flip = double_flip
        self.box_iou_weight = box_weight if box_iou_weight is None else box_iou_weight
        self.assigner = SiteAssigner(
            self.origin,
            self.cell,
            gaussian_overlap,
            min_radius,
            max_objects,
            tuple(gaussian_around),
            gaussian_ratio,
            by_frame=heatmaps_by_frame,
        )

    def _overlap_losses(self, expected: Tensor, boxes: Tensor, objects: Tensor) -> dict[str, Tensor]:
        share = 1 / (len(objects) + 1e-4)  # as published; 0 objects have no loss
        iou = iou_3d_paired(boxes.detach()[:, :7], objects[:, :7])
        return {
            "iou": self.iou_weight * share * (expected - (2 * iou - 1)).abs().sum(),
            "box_iou": self.box_iou_weight * share * (1 - axis_aligned_diou(boxes, objects)).sum(),
        }

    def copies(self, batch: PointBatch) -> PointBatch:
        """The batch in the form that `decode` takes in testing: with `double_flip` each frame four times."""
        if not self.double_flip or self.training:
            return batch
        signs = batch.points.new_tensor(COPIES)
        points = batch.points.repeat(len(COPIES), 1, 1)
        points[..., :2] *= signs[:, None]
        copy = torch.arange(len(COPIES), device=points.device)[:, None]
        frame = batch.batch_index * len(COPIES) + copy
        return PointBatch(points.flatten(0, 1), frame.flatten(), batch.batch_size * len(COPIES))

    @torch.no_grad()
    def decode(self, output: SiteOutput) -> list[Detections]:
        """Detections of each frame; with `double_flip` in evaluation mode one for each four copies."""
        if not self.double_flip or self.training:
            return super().decode(output)
        if output.sites.batch_size % len(COPIES):
            raise ValueError(f"double_flip takes four copies of each frame, got {output.sites.batch_size} frames")
        tasks = []
        for rows in output.tasks:
            scored, count = self.scored(rows, output.sites), len(COPIES)
            frames = [scored[start : start + count] for start in range(0, len(scored), count)]
            tasks.append([merged(frame, output.sites.map_size) for frame in frames])
        return [self._detections(frame) for frame in zip(*tasks, strict=True)]


def merged(copies: Sequence[Scored], map_size: tuple[int, int]) -> Scored:
    """The mean of the copies of one frame over those that have a site in a cell; cells ascend by (y, x).

    map_size: cells (Y, X). A flipped cell i of n becomes n - i, as published, and so may lie one beyond the map.
    """
    height, width = map_size
    turned = [_turned_back(copy, signs, (width, height)) for copy, signs in zip(copies, COPIES, strict=True)]
    cells = torch.cat([copy.cells for copy in turned])
    keys, place = torch.unique(cells[:, 1] * (width + 1) + cells[:, 0], return_inverse=True)

    def mean(name: str) -> Tensor:
        values = torch.cat([getattr(copy, name) for copy in turned])
        return segment_reduce(values.contiguous(), place, len(keys), reduce="mean")

    found = torch.stack([keys % (width + 1), torch.div(keys, width + 1, rounding_mode="floor")], 1)
    names = ("scores", "center", "center_z", "size", "rot", "vel")
    return Scored(cells=found, iou=None, **{name: mean(name) for name in names})


def _turned_back(sites: Scored, signs: tuple[int, int], size: tuple[int, int]) -> Scored:
    """Sites of a flipped copy in the frame as it is; signs: of x and y; size: cells (X, Y)."""
    sign = sites.center.new_tensor(signs)
    flipped = torch.tensor(size, device=sites.cells.device) - sites.cells
    return replace(
        sites,
        cells=torch.where(sign < 0, flipped, sites.cells),
        center=sites.center * sign,
        rot=sites.rot * sign,
        vel=None if sites.vel is None else sites.vel * sign,
    )
