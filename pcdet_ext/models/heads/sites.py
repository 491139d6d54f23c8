"""What heads that predict at occupied cells ("sites") share: their layers, losses and candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.models.heads.base import Reads, boxes_and_labels
from pcdet_ext.models.heads.branches import CHANNELS, CODE, PRIOR_LOGIT, REQUIRED, check_branches, task_labels
from pcdet_ext.models.heads.losses import center_focal_loss, iou_prediction_loss, masked_l1_loss
from pcdet_ext.models.heads.postprocess import NMSConfig, per_class, rectify_scores, suppress
from pcdet_ext.models.layers.sparse_blocks import SparseSequential, conv_block
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d
from pcdet_ext.models.targets.sites import SiteAssigner, Sites, SiteTargets
from pcdet_ext.ranges import check_positive, check_range
from pcdet_ext.structures import Detections, SparseVoxels, Targets

LARGEST_LOG = 5.0  # logarithms of sizes are held within ± this where an overlap is learnt


Candidates = tuple[Tensor, Tensor, Tensor, Tensor | None]  # boxes, scores, labels, and the branch "iou"


def _joined(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of several tasks in a row."""
    boxes, scores, labels, iou = zip(*parts, strict=True)
    ious = [each for each in iou if each is not None]
    return torch.cat(boxes), torch.cat(scores), torch.cat(labels), torch.cat(ious) if ious else None


@dataclass(frozen=True, eq=False)
class SiteRows:
    """Predictions of one task (a group of classes) at every site, each [N, channels].

    heatmap: logits, one channel per class; the others as in `TaskMaps`, vel and iou being None where there is no such
    branch.
    """

    heatmap: Tensor
    center: Tensor
    center_z: Tensor
    dim: Tensor
    rot: Tensor
    vel: Tensor | None = None
    iou: Tensor | None = None

    def codes(self) -> Tensor:
        """The box code [N, 8 or 10] of each site."""
        return torch.cat([getattr(self, name) for name in CODE if getattr(self, name) is not None], 1)


@dataclass(frozen=True, eq=False)
class SiteOutput:
    """Predictions of all tasks, in their order, and the sites that they stand at."""

    tasks: tuple[SiteRows, ...]
    sites: Sites


@dataclass(frozen=True, eq=False)
class Scored:
    """One frame's sites of one task, ready to be read: cells int64 [n, 2] as (x, y); scores [n, C]; center [n, 2],
    center_z [n, 1], size [n, 3] in metres, rot [n, 2] as (cos, sin), vel [n, 2] or None, iou [n, 1] or None."""

    cells: Tensor
    scores: Tensor
    center: Tensor
    center_z: Tensor
    size: Tensor
    rot: Tensor
    vel: Tensor | None
    iou: Tensor | None


def best_sites(scores: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best so many sites of each class, and of these the best of all classes.

    Args:
        scores: [N, C], of each site for each class.
        most: the number of sites to keep, of each class and of all.

    Returns:
        Scores [M], best first, the row int64 [M] of each site, and the class int64 [M], a column of `scores`.
    """
    count = min(most, len(scores))
    values, rows = scores.t().topk(count, dim=1)
    values, chosen = values.flatten().topk(min(most, values.numel()))
    return values, rows.flatten()[chosen], torch.div(chosen, max(count, 1), rounding_mode="floor")


@dataclass(frozen=True)
class Layers:
    """How the branches of a head are made.

    channels: width; bias: of convolutions in front of a norm; eps, momentum: of the norms; kernel_size: (y, x) of
    convolutions but the last; dilate: these also make sites of the neighbours of sites.
    """

    channels: int
    bias: bool
    eps: float
    momentum: float
    kernel_size: int
    dilate: bool
    engine: Engine

    def branch(self, out_channels: int, convs: int) -> SparseSequential:
        """So many convolutions, the last of a kernel of one cell."""
        last = SubMConv3d(self.channels, out_channels, 1, bias=True, engine=self.engine)
        return SparseSequential(*(self._block() for _ in range(convs - 1)), last)

    def _block(self) -> SparseSequential:
        kernel, sides = (1, self.kernel_size, self.kernel_size), (self.channels, self.channels)
        if not self.dilate:
            conv: SparseConv3d = SubMConv3d(*sides, kernel, bias=self.bias, engine=self.engine)
        else:  # the native engine alone gives all branches their sites in one order
            padding = (0, self.kernel_size // 2, self.kernel_size // 2)
            conv = SparseConv3d(*sides, kernel, 1, padding, bias=self.bias, engine="native", first_seen=True)
        return conv_block(conv, self.eps, self.momentum)


class SiteBranches(nn.Module):
    """The branches of one task.

    Args:
        layers: makes the convolutions on sites.
        branches: convolutions of each branch by name; a branch has the channels that `CHANNELS` says.
        num_classes: channels of the heatmap.
        heatmap_convs: convolutions of the heatmap.
        heatmap_name: its name in the state dict.
    """

    def __init__(
        self, layers: Layers, branches: Mapping[str, int], num_classes: int, heatmap_convs: int, heatmap_name: str
    ) -> None:
        super().__init__()
        self.names, self.heatmap_name = tuple(branches), heatmap_name
        for name, convs in branches.items():
            self.add_module(name, layers.branch(CHANNELS[name], convs))
        heatmap = layers.branch(num_classes, heatmap_convs)
        self.add_module(heatmap_name, heatmap)
        for conv in (module for module in self.modules() if isinstance(module, SparseConv3d)):
            nn.init.kaiming_normal_(conv.weight)
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
        *_, last = (module for module in heatmap.modules() if isinstance(module, SparseConv3d))
        if last.bias is not None:
            nn.init.constant_(last.bias, PRIOR_LOGIT)

    def forward(self, voxels: SparseVoxels) -> tuple[SiteRows, Sites]:
        """Predictions in float32, and the sites that they stand at, from features [N, C]."""
        heatmap = getattr(self, self.heatmap_name)(voxels)
        rows = {name: getattr(self, name)(voxels).features.float() for name in self.names}
        return SiteRows(heatmap.features.float(), **rows), Sites.of(heatmap)


class SiteHead(nn.Module):
    """Objects as peaks of a heatmap over sites, their boxes read off there. Arguments as in `SparseCenterHead`.

    Subclasses say what sites learn (`assigner`), and may add losses and change how candidates become detections.
    """

    reads: ClassVar[Reads] = "voxels"
    heatmap_name: ClassVar[str]  # of the heatmap's convolutions in state dicts

    code_weights: Tensor
    iou_rectifier: Tensor | None

    def __init__(
        self,
        layers: Layers,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        stride: float,
        tasks: Sequence[Sequence[str]] | None,
        branches: Mapping[str, int] | None,
        heatmap_convs: int,
        class_weight: float,
        box_weight: float,
        iou_weight: float,
        code_weights: Sequence[float] | None,
        score_threshold: float,
        max_candidates: int,
        center_range: Sequence[float] | None,
        iou_rectifier: float | Sequence[float] | None,
        nms: Mapping[str, Any] | None,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.tasks = task_labels(self.classes, tasks or [self.classes])
        self.branches = dict.fromkeys(REQUIRED, 2) if branches is None else dict(branches)
        check_branches(self.branches)
        check_range(1, heatmap_convs=heatmap_convs, max_candidates=max_candidates)
        check_range(0, class_weight=class_weight, box_weight=box_weight, iou_weight=iou_weight)
        check_range(0, 1, norm_momentum=layers.momentum)
        check_positive(norm_eps=layers.eps)
        check_range(-math.inf, score_threshold=score_threshold)
        if layers.dilate and len({heatmap_convs, *self.branches.values()}) > 1:
            raise ValueError("with dilate, all branches and the heatmap must have equally many convolutions")
        if center_range is not None and len(center_range) != 6:
            raise ValueError(f"center_range must be 6 numbers (x, y, z, then x, y, z), got {center_range}")
        if iou_rectifier is not None and "iou" not in self.branches:
            raise ValueError("iou_rectifier needs the branch 'iou'")
        self.origin = tuple(point_cloud_range[:2])
        self.cell = tuple(size * stride for size in voxel_size[:2])
        self.class_weight, self.box_weight, self.iou_weight = class_weight, box_weight, iou_weight
        self.score_threshold, self.max_candidates = score_threshold, max_candidates
        self.center_range = None if center_range is None else tuple(center_range)
        self.nms = construct(NMSConfig, nms or {})
        self.nms.check(len(self.classes))
        numbers = 10 if "vel" in self.branches else 8
        weights = per_class("code_weights", 1.0 if code_weights is None else code_weights, numbers)
        self.register_buffer("code_weights", weights, persistent=False)
        rectifier = per_class("iou_rectifier", iou_rectifier, len(self.classes))
        self.register_buffer("iou_rectifier", rectifier, persistent=False)
        self.heads_list = nn.ModuleList(
            SiteBranches(layers, self.branches, len(task), heatmap_convs, self.heatmap_name) for task in self.tasks
        )

    assigner: SiteAssigner

    def forward(self, voxels: SparseVoxels) -> SiteOutput:
        """Predictions from voxels in a plane: features [N, in_channels], grid (1, Y, X)."""
        found = [head(voxels) for head in self.heads_list]
        return SiteOutput(tuple(rows for rows, _ in found), found[0][1])

    @torch.no_grad()
    def targets(self, output: SiteOutput, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> tuple[SiteTargets, ...]:
        """What each task should predict.

        Args:
            output: of `forward`.
            boxes: of the objects in each frame, [G, 7 or 9].
            labels: int64 [G] in each frame, positions in the head's classes.

        Raises:
            ValueError: velocities are learnt and the boxes have none.
        """
        columns = 9 if "vel" in self.branches else 7
        if any(box.shape[1] < columns for box in boxes):
            if self.code_weights[8:].any():
                raise ValueError("boxes need 9 columns, with velocity, to train the branch 'vel'")
            boxes = [F.pad(box, (0, max(columns - box.shape[1], 0))) for box in boxes]
        boxes = [box[:, :columns].to(output.tasks[0].heatmap) for box in boxes]
        return tuple(self.assigner(output.sites, boxes, labels, task) for task in self.tasks)

    def loss(self, output: SiteOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses of each task t: "heatmap_t", "box_t", and where there is such a branch "iou_t" and what goes with it.

        Each is summed over the batch and divided by its peaks, or by its objects.
        """
        losses: dict[str, Tensor] = {}
        wanted = self.targets(output, *boxes_and_labels(targets))
        for t, (rows, target) in enumerate(zip(output.tasks, wanted, strict=True)):
            losses |= {f"{name}_{t}": value for name, value in self._task_loss(rows, target, output.sites).items()}
        return losses

    def _task_loss(self, rows: SiteRows, target: SiteTargets, sites: Sites) -> dict[str, Tensor]:
        probability = rows.heatmap.sigmoid().clamp(1e-4, 1 - 1e-4)
        at = target.site[target.mask]
        codes = rows.codes()[at]
        errors = masked_l1_loss(codes, target.codes[target.mask], torch.ones_like(at))
        losses = {
            "heatmap": self.class_weight * center_focal_loss(probability, target.heatmap.to(probability)),
            "box": self.box_weight * (errors * self.code_weights).sum(),
        }
        if rows.iou is not None:
            sizes = codes[:, 3:6].clamp(-LARGEST_LOG, LARGEST_LOG).exp()
            boxes = self._boxes(sites.cells[at], torch.cat([codes[:, :3], sizes, codes[:, 6:]], 1))
            losses |= self._overlap_losses(rows.iou[at, 0], boxes, target.boxes[target.mask])
        return losses

    def _overlap_losses(self, expected: Tensor, boxes: Tensor, objects: Tensor) -> dict[str, Tensor]:
        """Losses of the branch "iou" [P] for the decoded boxes and their objects, both [P, 7 or 9]."""
        return {"iou": self.iou_weight * iou_prediction_loss(expected, boxes.detach()[:, :7], objects[:, :7])}

    def _boxes(self, cells: Tensor, values: Tensor) -> Tensor:
        """Boxes [M, 7 or 9] from cells int64 [M, 2] and codes [M, 8 or 10] whose sizes are in metres already."""
        x, y = ((cells[:, i] + values[:, i]) * self.cell[i] + self.origin[i] for i in range(2))
        heading = torch.atan2(values[:, 7], values[:, 6])
        return torch.cat([torch.stack([x, y], 1), values[:, 2:6], heading[:, None], values[:, 8:]], 1)

    def scored(self, rows: SiteRows, sites: Sites) -> list[Scored]:
        """Each frame's sites of a task."""
        scores, size = rows.heatmap.sigmoid(), rows.dim.exp()
        return [
            Scored(
                cells=sites.cells[at],
                scores=scores[at],
                center=rows.center[at],
                center_z=rows.center_z[at],
                size=size[at],
                rot=rows.rot[at],
                vel=None if rows.vel is None else rows.vel[at],
                iou=None if rows.iou is None else rows.iou[at],
            )
            for at in sites.rows
        ]

    @torch.no_grad()
    def decode(self, output: SiteOutput) -> list[Detections]:
        """Detections of each frame: task by task, best first (by class where the suppression is)."""
        frames = zip(*(self.scored(rows, output.sites) for rows in output.tasks), strict=True)
        return [self._detections(tasks) for tasks in frames]

    def _detections(self, tasks: Sequence[Scored]) -> Detections:
        """Detections of one frame, of each of whose tasks the sites are given; suppression by class sees all tasks."""
        found = [self._candidates(sites, labels) for sites, labels in zip(tasks, self.tasks, strict=True)]
        if self.nms.per_class:
            found = [_joined(found)]
        boxes, scores, labels, _ = _joined([self._suppressed(*candidates) for candidates in found])
        return Detections(boxes, scores, labels, self.classes)

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor, iou: Tensor | None) -> Candidates:
        if self.iou_rectifier is not None and iou is not None:
            scores = rectify_scores(scores, iou, self.iou_rectifier[labels])
        kept = suppress(boxes, scores, labels, self.nms, len(self.classes))
        return boxes[kept], scores[kept], labels[kept], None

    def _candidates(self, sites: Scored, task: tuple[int, ...]) -> Candidates:
        """Boxes [M, 7 or 9], scores, labels and iou [M] of the best sites: of each class, and of these of all."""
        scores, at, column = best_sites(sites.scores, self.max_candidates)
        label = torch.tensor(task, device=at.device)[column]
        parts = [sites.center, sites.center_z, sites.size, sites.rot, *([] if sites.vel is None else [sites.vel])]
        boxes = self._boxes(sites.cells[at], torch.cat(parts, 1)[at])
        keep = (scores > self.score_threshold) & self._in_range(boxes)
        iou = None if sites.iou is None else sites.iou[at, 0][keep]
        return boxes[keep], scores[keep], label[keep], iou

    def _in_range(self, boxes: Tensor) -> Tensor:
        if self.center_range is None:
            return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        low, high = boxes.new_tensor(self.center_range).view(2, 3)
        return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)
