"""The center head of CenterPoint (Yin et al. 2021), with the IoU branch that DSVT and LION add."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.models.heads.base import Reads, boxes_and_labels
from pcdet_ext.models.heads.branches import CODE, REQUIRED, check_branches, task_labels
from pcdet_ext.models.heads.center_branches import Convolution, SeparateHead, SparseMaps, TaskMaps, gather_cells
from pcdet_ext.models.heads.losses import axis_aligned_diou, center_focal_loss, iou_prediction_loss, masked_l1_loss
from pcdet_ext.models.heads.postprocess import NMSConfig, per_class, rectify_scores, suppress
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.targets.box_coding import lifted
from pcdet_ext.models.targets.heatmaps import CenterTargets, center_targets
from pcdet_ext.ranges import check_positive, check_range
from pcdet_ext.structures import Detections, Targets


@dataclass(frozen=True)
class CenterOutput:
    """Predictions of all tasks, in their order."""

    tasks: tuple[TaskMaps, ...]


@dataclass(frozen=True)
class Candidates:
    """The best cells of one frame and task.

    boxes: [M, 7 or 9]; scores: [M]; labels: int64 [M], over all classes; iou: [M], as `TaskMaps.iou`, or None; cells:
    flat cell int64 [M] that each was read at.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    iou: Tensor | None
    cells: Tensor


@HEADS.register
class CenterHead(nn.Module):
    """Objects as peaks of a heatmap, their boxes read off at the peaks.

    State-dict keys are those of OpenPCDet's CenterHead.

    Args:
        in_channels: of the map.
        classes: what is detected.
        point_cloud_range: x, y, z minimum, then maximum, in metres.
        voxel_size: x, y, z in metres.
        stride: input cells per output cell, before `upsample`.
        tasks: groups of class names with a branch set each; None for one group of all classes.
        branches: convolutions of each branch by name ("center", "center_z", "dim", "rot", and optionally "vel" and
            "iou"); None for two each of the first four.
        heatmap_convs: convolutions of the heatmap.
        shared_channels: of the map that all branches read.
        upsample: factor by which the map is enlarged first.
        conv_bias: whether convolutions in front of a norm have a bias.
        norm_eps, norm_momentum: of the batch norms.
        gaussian_overlap, min_radius: size of the Gaussians drawn around objects, see `gaussian_radius`.
        class_weight, box_weight, iou_weight: factors on the losses.
        code_weights: factors on the losses of the 8 numbers of a box code (10 with velocity). Velocities without weight
            need not be known.
        box_iou_loss: adds the axis-aligned distance-IoU loss.
        score_threshold: detections score more than this.
        max_candidates: cells looked at in each task.
        center_range: limits of box centres (x, y, z minimum, then maximum; closed).
        iou_rectifier: share of the predicted IoU in the score (one number, or one per class).
        nms: fields of `NMSConfig`, one suppression per task.
        branch_channels, branch_norm_eps, branch_norm_momentum: width and norm of the branches where they differ from
            the shared convolution's (FlatFormer).
        outside: objects whose centre is outside of the map are drawn at its border, or skipped (FlatFormer).
        iou_power: instead of `iou_rectifier`, the predicted IoU changes the score of every cell before the best cells
            are chosen: one number p gives score * IoU^p, one number per class gives score^(1 - p) * IoU^p with the p of
            the class (FlatFormer).
        iou_of_tops: the IoU branch learns the overlap of boxes around their tops (FlatFormer).
        width_along_x: see `center_targets`; matters only where cells are not square (FlatFormer).

    Raises:
        ValueError: settings contradict each other.
    """

    reads: ClassVar[Reads] = "map"

    code_weights: Tensor
    iou_rectifier: Tensor | None
    iou_power: Tensor | None

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
        shared_channels: int = 64,
        upsample: int = 1,
        conv_bias: bool = False,
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
        gaussian_overlap: float = 0.1,
        min_radius: int = 2,
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        iou_weight: float = 1.0,
        code_weights: Sequence[float] | None = None,
        box_iou_loss: bool = False,
        score_threshold: float = 0.1,
        max_candidates: int = 500,
        center_range: Sequence[float] | None = None,
        iou_rectifier: float | Sequence[float] | None = None,
        nms: Mapping[str, Any] | None = None,
        branch_channels: int | None = None,
        branch_norm_eps: float | None = None,
        branch_norm_momentum: float | None = None,
        outside: Literal["border", "skip"] = "border",
        iou_power: float | Sequence[float] | None = None,
        iou_of_tops: bool = False,
        width_along_x: bool = False,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.tasks = task_labels(self.classes, tasks or [self.classes])
        self.branches = dict.fromkeys(REQUIRED, 2) if branches is None else dict(branches)
        check_branches(self.branches)
        check_range(1, shared_channels=shared_channels, max_candidates=max_candidates, branch_channels=branch_channels)
        check_range(0, class_weight=class_weight, box_weight=box_weight, iou_weight=iou_weight)
        check_range(0, 1, norm_momentum=norm_momentum, branch_norm_momentum=branch_norm_momentum)
        check_positive(norm_eps=norm_eps, branch_norm_eps=branch_norm_eps)
        check_positive(1, gaussian_overlap=gaussian_overlap)
        check_range(-math.inf, score_threshold=score_threshold)
        if center_range is not None and len(center_range) != 6:
            raise ValueError(f"center_range must be 6 numbers (x, y, z, then x, y, z), got {center_range}")
        for name, value in (("iou_rectifier", iou_rectifier), ("iou_power", iou_power)):
            if value is not None and "iou" not in self.branches:
                raise ValueError(f"{name} needs the branch 'iou'")
        if iou_rectifier is not None and iou_power is not None:
            raise ValueError(f"iou_rectifier ({iou_rectifier}) and iou_power ({iou_power}) exclude each other")
        self.outside, self.iou_of_tops, self.width_along_x = outside, iou_of_tops, width_along_x
        self.origin = tuple(point_cloud_range[:2])
        self.cell = tuple(size * stride / upsample for size in voxel_size[:2])
        self.gaussian_overlap, self.min_radius = gaussian_overlap, min_radius
        self.class_weight, self.box_weight, self.iou_weight = class_weight, box_weight, iou_weight
        self.box_iou_loss = box_iou_loss
        self.score_threshold, self.max_candidates = score_threshold, max_candidates
        self.center_range = None if center_range is None else tuple(center_range)
        self.nms = construct(NMSConfig, nms or {})
        self.nms.check(len(self.classes))
        weights = per_class(
            "code_weights", 1.0 if code_weights is None else code_weights, 10 if "vel" in self.branches else 8
        )
        self.register_buffer("code_weights", weights, persistent=False)
        for name, value in (("iou_rectifier", iou_rectifier), ("iou_power", iou_power)):
            self.register_buffer(name, per_class(name, value, len(self.classes)), persistent=False)
        self.shared_power = isinstance(iou_power, Sequence)

        convolution = Convolution(shared_channels, conv_bias, norm_eps, norm_momentum)
        self.shared_conv = convolution.shared(in_channels, upsample)
        branch = Convolution(
            shared_channels if branch_channels is None else branch_channels,
            conv_bias,
            norm_eps if branch_norm_eps is None else branch_norm_eps,
            norm_momentum if branch_norm_momentum is None else branch_norm_momentum,
        )
        self.heads_list = nn.ModuleList(
            SeparateHead(shared_channels, branch, self.branches, len(task), heatmap_convs) for task in self.tasks
        )

    def forward(self, bev: Tensor) -> CenterOutput:
        """Predictions from a map [B, in_channels, Y, X]."""
        shared = self.shared_conv(bev)
        return CenterOutput(tuple(head(shared) for head in self.heads_list))

    @torch.no_grad()
    def targets(
        self, output: CenterOutput, boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[CenterTargets, ...]:
        """What each task should predict for the objects of each frame.

        Args:
            output: of `forward`.
            boxes: [G, 7 or 9] of each frame.
            labels: int64 [G] of each frame.

        Raises:
            ValueError: velocities are wanted and the boxes have none.
        """
        columns = 9 if "vel" in self.branches else 7
        if any(b.shape[1] < columns for b in boxes):
            if self.code_weights[8:].any():
                raise ValueError("boxes need 9 columns, with velocity, to train the branch 'vel'")
            boxes = [F.pad(b, (0, columns - b.shape[1])) if b.shape[1] < columns else b for b in boxes]
        boxes = [b[:, :columns].to(output.tasks[0].heatmap) for b in boxes]
        geometry = (self.origin, self.cell, self.gaussian_overlap, self.min_radius, self.outside, self.width_along_x)
        return tuple(
            center_targets(boxes, labels, task, maps.heatmap, *geometry)
            for task, maps in zip(self.tasks, output.tasks, strict=True)
        )

    def loss(self, output: CenterOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses of each task t: "heatmap_t", "box_t", "iou_t", "box_iou_t"."""
        losses: dict[str, Tensor] = {}
        wanted = self.targets(output, *boxes_and_labels(targets))
        for t, (maps, target) in enumerate(zip(output.tasks, wanted, strict=True)):
            losses |= {f"{name}_{t}": value for name, value in self._task_loss(maps, target).items()}
        return losses

    def _task_loss(self, maps: TaskMaps, target: CenterTargets) -> dict[str, Tensor]:
        probability = maps.heatmap.sigmoid().clamp(1e-4, 1 - 1e-4)
        codes = gather_cells(maps.codes(), target.cells)
        errors = masked_l1_loss(codes, target.codes, target.mask)
        losses = {
            "heatmap": self.class_weight * center_focal_loss(probability, target.heatmap),
            "box": self.box_weight * (errors * self.code_weights).sum(),
        }
        if maps.iou is None and not self.box_iou_loss:
            return losses
        predicted = self._boxes(codes[target.mask], target.cells[target.mask], maps.heatmap.shape[3])
        objects = target.boxes[target.mask]
        if maps.iou is not None:
            expected = gather_cells(maps.iou, target.cells)[target.mask][:, 0]
            pairs = (lifted(b) if self.iou_of_tops else b for b in (predicted.detach(), objects))
            losses["iou"] = self.iou_weight * iou_prediction_loss(expected, *pairs)
        if self.box_iou_loss:
            diou = axis_aligned_diou(predicted, objects)
            losses["box_iou"] = self.box_weight * (1 - diou).sum() / max(len(diou), 1)
        return losses

    def _boxes(self, codes: Tensor, cells: Tensor, width: int) -> Tensor:
        """Boxes [M, 7 or 9] from codes [M, 8 or 10] at flat cells int64 [M] of a map `width` cells wide."""
        x = (cells % width + codes[:, 0]) * self.cell[0] + self.origin[0]
        y = (cells // width + codes[:, 1]) * self.cell[1] + self.origin[1]
        heading = torch.atan2(codes[:, 7], codes[:, 6])
        columns = torch.stack([x, y, codes[:, 2], *codes[:, 3:6].exp().unbind(1), heading], 1)
        return torch.cat([columns, codes[:, 8:]], 1)

    @torch.no_grad()
    def candidates(self, output: CenterOutput) -> list[list[Candidates]]:
        """The best cells of each task and frame, best first, before scores are rectified and boxes suppressed."""
        return [self._candidates(maps, labels) for maps, labels in zip(output.tasks, self.tasks, strict=True)]

    def _candidates(self, maps: TaskMaps | SparseMaps, labels: tuple[int, ...]) -> list[Candidates]:
        """Of each frame: the best `max_candidates` cells of each class, and of these the best of all."""
        heatmap = self._scores(maps, labels).flatten(2)
        scores, cells = heatmap.topk(min(self.max_candidates, heatmap.shape[2]), dim=2)
        count = scores.shape[2]
        scores = scores.flatten(1)
        scores, place = scores.topk(min(self.max_candidates, scores.shape[1]), dim=1)
        cells = cells.flatten(1).gather(1, place)
        values = maps.at(maps.names(), cells, scores > self.score_threshold)
        codes = torch.cat([values[name] for name in CODE if name in values], 2)
        iou = values["iou"][..., 0] if "iou" in values else None
        task = torch.tensor(labels, device=place.device)[place // count]
        found = []
        for frame in range(len(scores)):
            boxes = self._boxes(codes[frame], cells[frame], maps.heatmap.shape[3])
            keep = (scores[frame] > self.score_threshold) & self._in_range(boxes)
            kept_iou = None if iou is None else iou[frame, keep]
            at = cells[frame, keep]
            found.append(Candidates(boxes[keep], scores[frame, keep], task[frame, keep], kept_iou, at))
        return found

    def _scores(self, maps: TaskMaps | SparseMaps, labels: tuple[int, ...]) -> Tensor:
        """Scores [B, C, Y, X] of a task's classes `labels`, changed by the predicted IoU where `iou_power` says so."""
        scores = maps.heatmap.float().sigmoid()
        if self.iou_power is None:
            return scores
        power = self.iou_power[list(labels)].view(-1, 1, 1)
        scores = scores.pow(1 - power) if self.shared_power else scores
        lowered = (power >= 0).all()  # by the IoU: where the score is not above the threshold, it will not be
        overlap = maps.overlap(((scores > self.score_threshold) | ~lowered).any(1))
        return scores * ((overlap + 1) / 2).clamp(0, 1).pow(power)

    def _in_range(self, boxes: Tensor) -> Tensor:
        if self.center_range is None:
            return torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
        low, high = boxes.new_tensor(self.center_range).view(2, 3)
        return ((boxes[:, :3] >= low) & (boxes[:, :3] <= high)).all(1)

    @torch.no_grad()
    def decode(self, output: CenterOutput) -> list[Detections]:
        """Detections of each frame: task by task, best first (by class where the suppression is)."""
        return self._detections(self.candidates(output))

    @torch.no_grad()
    def predict(self, bev: Tensor) -> list[Detections]:
        """Detections of each frame from a map [B, in_channels, Y, X]: those of `decode(self(bev))`, but all branches
        beside the heatmap are computed only in the receptive fields of the cells whose values are read.

        Raises ValueError in training mode, where batch norm sees the whole map.
        """
        if self.training:
            raise ValueError("predict works in evaluation mode alone: call eval() first")
        shared = self.shared_conv(bev)
        heads = cast("Sequence[SeparateHead]", self.heads_list)
        tasks = [SparseMaps(head.hm(shared).float(), shared, head) for head in heads]
        return self._detections([self._candidates(*task) for task in zip(tasks, self.tasks, strict=True)])

    def _detections(self, candidates: Sequence[Sequence[Candidates]]) -> list[Detections]:
        """Detections of each frame from the candidates of each task and frame."""
        tasks = [[self._suppress(found) for found in frames] for frames in candidates]
        found = []
        for frame in zip(*tasks, strict=True):
            boxes, scores, labels = (torch.cat(parts) for parts in zip(*frame, strict=True))
            found.append(Detections(boxes, scores, labels, self.classes))
        return found

    def _suppress(self, found: Candidates) -> tuple[Tensor, Tensor, Tensor]:
        scores = found.scores
        if self.iou_rectifier is not None:
            if found.iou is None:
                raise ValueError("iou_rectifier needs the branch 'iou'")
            scores = rectify_scores(scores, found.iou, self.iou_rectifier[found.labels])
        kept = suppress(found.boxes, scores, found.labels, self.nms, len(self.classes))
        return found.boxes[kept], scores[kept], found.labels[kept]
