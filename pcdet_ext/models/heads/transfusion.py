"""The LiDAR head of TransFusion (Bai et al., CVPR 2022): object queries from heatmap peaks, refined by attention.

The published heads have properties that one would not choose; they are named options, all off:
  border_peaks=False   cells at the border are never peaks (OpenPCDet, DSVT, LION, ScatterFormer, UniLION)
  bottom_cost          matching takes z as the bottom of boxes when it measures overlap (those but UniLION)
  iou_of_tops          the IoU branch learns the overlap of boxes around their tops (DSVT, LION; see `height`; UniLION)
  iou_of_joined_rows   an IoU branch of several learning layers learns from the rows that the joined predictions of all
                       layers, frame by frame, have at a query's place among those of its own layer (UniLION)
  isolated_queries     queries do not attend to each other (DSVT, LION, ScatterFormer, UniLION)
  window_wraps         windows run over the left and right border into the neighbouring row (DSVT, LION, UniLION)
  window_repeats       windows hold the nearest cells of the map again for places outside it (ScatterFormer)
  range_of_bottoms     `center_range` looks at the bottoms of boxes (UniLION)
  later_of_equals      of equal scores, suppression keeps the later query instead of the earlier one (UniLION)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from pcdet_ext.models.heads.base import Reads, boxes_and_labels, fill_bias
from pcdet_ext.models.heads.losses import axis_aligned_diou, gaussian_focal_loss, sigmoid_focal_loss, smooth_l1_loss
from pcdet_ext.models.heads.postprocess import per_class, rectify_scores
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.transfusion_decoder import DecoderLayer, PredictionHead, repeated_window, window_mask
from pcdet_ext.models.heads.transfusion_queries import (
    CHANNELS,
    REQUIRED,
    QueryOutput,
    QueryTargets,
    check_branches,
    label_of,
    learnt_overlaps,
    overlap_loss,
    take,
)
from pcdet_ext.models.targets.box_coding import lifted, usable_boxes
from pcdet_ext.models.targets.heatmaps import draw_gaussians, gaussian_radius
from pcdet_ext.ops import iou_3d, nms
from pcdet_ext.ops.boxes import NMSKind
from pcdet_ext.ranges import check_positive, check_range
from pcdet_ext.structures import Detections, Targets, tensor_of

PRIOR_LOGIT = -2.19  # an untrained heatmap's: a probability of 0.1


@HEADS.register
class TransFusionHead(nn.Module):
    """Detection as a set of queries, matched one to one with objects, without suppression.

    State-dict keys of the first layer are those of OpenPCDet.

    Args:
        in_channels: of the map.
        classes: what is detected.
        point_cloud_range: x, y, z minimum, then maximum, in metres.
        voxel_size: x, y, z in metres.
        stride: input cells per output cell.
        branches: convolutions of each branch by name ("center", "height", "dim", "rot", and optionally "vel" and
            "iou"); None for two each of the first four.
        heatmap_convs: convolutions of the heatmap.
        num_proposals: queries per frame.
        hidden_channels, num_heads, ffn_channels, dropout: of the decoder layers.
        norm_momentum: of the batch norms.
        conv_bias: whether convolutions in front of a batch norm have a bias.
        peak_size: a peak is the largest value among so many cells along each axis.
        small_classes: classes so small that each of their cells counts as a peak.
        window: queries see only so many cells to each side, None for the whole map.
        x_rows: rows of the map stand for x.
        height: what the height branch says, the z of the "center" or of the "top".
        class_cost, box_cost, iou_cost: weights of the matching.
        gaussian_overlap, min_radius: size of the Gaussians drawn around objects, see `gaussian_radius`.
        class_weight, box_weight, heatmap_weight, iou_weight: factors on the losses.
        box_iou_weight: of the axis-aligned distance-IoU loss, which is left out at 0.
        code_weights: factors on the losses of the 8 numbers of a box code (10 with velocity).
        score_threshold: lower scores and equal ones are left out, None for none.
        center_range: limits of box centres (closed).
        iou_rectifier: share of the predicted IoU in the score (one number, or one per class).
        nms: IoU threshold (squared distance in m² with nms_kind "circle") of the classes that are suppressed, by name.
        border_peaks, bottom_cost, isolated_queries, window_wraps, window_repeats: see the module.
        iou_of_tops, iou_of_joined_rows, range_of_bottoms, later_of_equals: see the module.
        num_layers: decoder layers, each with branches of its own, which look around the centres that the one before
            found.
        auxiliary_losses: whether all of them learn, and not the last one alone.
        heatmap_conv_bias: `conv_bias` of the heatmap alone, None for the same.
        nms_kind: how boxes are compared, see `nms`.
        nms_max: how many detections of a suppressed class are kept.

    Raises:
        ValueError: settings contradict each other.
    """

    reads: ClassVar[Reads] = "map"

    code_weights: Tensor
    iou_rectifier: Tensor | None

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        stride: float,
        branches: Mapping[str, int] | None = None,
        heatmap_convs: int = 2,
        num_proposals: int = 200,
        hidden_channels: int = 128,
        num_heads: int = 8,
        ffn_channels: int = 256,
        dropout: float = 0.1,
        norm_momentum: float = 0.1,
        conv_bias: bool = False,
        peak_size: int = 3,
        small_classes: Sequence[str] = (),
        window: int | None = None,
        x_rows: bool = False,
        height: Literal["center", "top"] = "center",
        class_cost: float = 0.15,
        box_cost: float = 0.25,
        iou_cost: float = 0.25,
        gaussian_overlap: float = 0.1,
        min_radius: int = 2,
        class_weight: float = 1.0,
        box_weight: float = 0.25,
        heatmap_weight: float = 1.0,
        iou_weight: float = 0.5,
        box_iou_weight: float = 0.0,
        code_weights: Sequence[float] | None = None,
        score_threshold: float | None = 0.0,
        center_range: Sequence[float] | None = None,
        iou_rectifier: float | Sequence[float] | None = None,
        nms: Mapping[str, float] | None = None,
        border_peaks: bool = True,
        bottom_cost: bool = False,
        isolated_queries: bool = False,
        window_wraps: bool = False,
        window_repeats: bool = False,
        iou_of_tops: bool = False,
        iou_of_joined_rows: bool = False,
        range_of_bottoms: bool = False,
        num_layers: int = 1,
        auxiliary_losses: bool = True,
        heatmap_conv_bias: bool | None = None,
        nms_kind: NMSKind = "rotated",
        nms_max: int = 100,
        later_of_equals: bool = False,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.branches = dict.fromkeys(REQUIRED, 2) if branches is None else dict(branches)
        check_branches(self.branches)
        check_range(0, class_weight=class_weight, box_weight=box_weight, heatmap_weight=heatmap_weight)
        check_range(0, iou_weight=iou_weight, box_iou_weight=box_iou_weight)
        check_range(0, class_cost=class_cost, box_cost=box_cost, iou_cost=iou_cost, min_radius=min_radius)
        check_range(0, window=window)
        check_range(1, num_proposals=num_proposals, hidden_channels=hidden_channels, num_heads=num_heads)
        check_range(1, ffn_channels=ffn_channels, heatmap_convs=heatmap_convs, num_layers=num_layers, nms_max=nms_max)
        check_range(0, 1, norm_momentum=norm_momentum, dropout=dropout)
        check_positive(stride=stride)
        if hidden_channels % num_heads:
            raise ValueError(f"num_heads must divide hidden_channels, got {num_heads} and {hidden_channels}")
        if peak_size < 1 or peak_size % 2 == 0:
            raise ValueError(f"peak_size must be odd and at least 1, got {peak_size}")
        check_positive(1, gaussian_overlap=gaussian_overlap)
        check_range(-math.inf, score_threshold=score_threshold)
        if nms_kind not in get_args(NMSKind):
            raise ValueError(f"nms_kind must be one of {', '.join(get_args(NMSKind))}, got {nms_kind!r}")
        if center_range is not None and len(center_range) != 6:
            raise ValueError(f"center_range must be 6 numbers (x, y, z, then x, y, z), got {center_range}")
        if iou_rectifier is not None and "iou" not in self.branches:
            raise ValueError("iou_rectifier needs the branch 'iou'")
        self.origin, self.limit = tuple(point_cloud_range[:2]), tuple(point_cloud_range[3:5])
        self.cell = tuple(size * stride for size in voxel_size[:2])
        self.num_proposals, self.peak_size, self.border_peaks = num_proposals, peak_size, border_peaks
        self.small_classes = [label_of(name, self.classes, "small_classes") for name in small_classes]
        self.nms = {label_of(name, self.classes, "nms"): threshold for name, threshold in (nms or {}).items()}
        self.nms_kind, self.nms_max, self.later_of_equals = nms_kind, nms_max, later_of_equals
        if window_wraps and window_repeats:
            raise ValueError("window_wraps and window_repeats exclude each other")
        self.window, self.window_wraps, self.window_repeats = window, window_wraps, window_repeats
        self.isolated_queries = isolated_queries
        self.x_rows, self.height = x_rows, height
        self.bottom_cost, self.iou_of_tops = bottom_cost, iou_of_tops
        self.iou_of_joined_rows = iou_of_joined_rows
        self.costs = (class_cost, box_cost, iou_cost)
        self.gaussian_overlap, self.min_radius = gaussian_overlap, min_radius
        self.class_weight, self.box_weight = class_weight, box_weight
        self.heatmap_weight, self.iou_weight = heatmap_weight, iou_weight
        self.box_iou_weight = box_iou_weight
        self.score_threshold = score_threshold
        self.center_range = None if center_range is None else tuple(center_range)
        self.range_of_bottoms, self.auxiliary_losses = range_of_bottoms, auxiliary_losses
        size = 10 if "vel" in self.branches else 8
        if code_weights is not None and len(code_weights) != size:
            raise ValueError(f"code_weights must have {size} numbers, got {len(code_weights)}")
        self.register_buffer(
            "code_weights", torch.tensor(code_weights or [1.0] * size, dtype=torch.float32), persistent=False
        )

        count = len(self.classes)
        self.register_buffer("iou_rectifier", per_class("iou_rectifier", iou_rectifier, count), persistent=False)
        self.shared_conv = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        first = nn.Sequential()
        bias = conv_bias if heatmap_conv_bias is None else heatmap_conv_bias
        first.conv = nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1, bias=bias)
        first.bn = nn.BatchNorm2d(hidden_channels, momentum=norm_momentum)
        first.relu = nn.ReLU()
        self.heatmap_head = nn.Sequential(first, nn.Conv2d(hidden_channels, count, 3, padding=1))
        fill_bias(self.heatmap_head[1], PRIOR_LOGIT)
        self.class_encoding = nn.Conv1d(count, hidden_channels, 1)
        outputs = {name: (CHANNELS[name], convs) for name, convs in self.branches.items()}
        outputs["heatmap"] = (count, heatmap_convs)

        def layer() -> tuple[DecoderLayer, PredictionHead]:
            decoder = DecoderLayer(hidden_channels, num_heads, ffn_channels, dropout, norm_momentum)
            branches = PredictionHead(hidden_channels, outputs, conv_bias, norm_momentum)
            fill_bias(branches.get_submodule("heatmap"), PRIOR_LOGIT)
            return decoder, branches

        self.decoder, self.prediction_head = layer()
        self.later_layers = nn.ModuleList(nn.ModuleList(layer()) for _ in range(num_layers - 1))

    def forward(self, bev: Tensor) -> QueryOutput:
        """Predictions from a map [B, in_channels, Y, X]."""
        features = self.shared_conv(bev.transpose(2, 3) if self.x_rows else bev)
        heatmap = self.heatmap_head(features).float()
        peaks = self._peaks(heatmap.detach().sigmoid()).flatten(2)
        cells = peaks.shape[2]
        order = peaks.flatten(1).topk(min(self.num_proposals, peaks.shape[1] * cells), dim=1).indices
        labels, cell = order // cells, order % cells
        flat = features.flatten(2)
        one_hot = F.one_hot(labels, len(self.classes)).transpose(1, 2).to(flat)
        queries = take(flat, cell) + self.class_encoding(one_hot)
        positions = self._positions(heatmap.shape[2:], flat)
        at = positions[cell]
        masks, found = self._masks(cell, heatmap.shape[2:]), []
        for decoder, branches in [(self.decoder, self.prediction_head), *self.later_layers]:
            queries = decoder(queries, flat, at, positions, *masks)
            codes, logits, iou = self._predictions(branches(queries), at)
            found.append(QueryOutput(heatmap, labels, take(peaks, cell), logits, codes, iou, queries))
            at = codes[:, :2].detach().transpose(1, 2).to(at)
        return replace(found[-1], earlier=tuple(found[:-1]) if self.auxiliary_losses else ())

    @staticmethod
    def _predictions(branches: Mapping[str, Tensor], at: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes, logits and IoU, see `QueryOutput`, of queries at positions [B, P, 2] in cells."""
        found = {name: value.float() for name, value in branches.items()}
        center = found["center"] + at.transpose(1, 2)
        parts = [center, *(found[name] for name in ("height", "dim", "rot", "vel") if name in found)]
        return torch.cat(parts, 1), found["heatmap"], found["iou"][:, 0] if "iou" in found else None

    def _peaks(self, scores: Tensor) -> Tensor:
        """Scores [B, C, rows, columns], 0 where a neighbour is higher."""
        pad = self.peak_size // 2
        highest = F.max_pool2d(scores, self.peak_size, stride=1, padding=pad)
        peak = scores == highest
        if not self.border_peaks and pad:
            inner = torch.zeros_like(peak)
            inner[:, :, pad:-pad, pad:-pad] = True
            peak = peak & inner
        small = [number in self.small_classes for number in range(len(self.classes))]
        return scores * (peak | torch.tensor(small, device=peak.device)[:, None, None])

    def _positions(self, size: Sequence[int], like: Tensor) -> Tensor:
        """Centres (x, y) [cells, 2] of the map's cells, in cells; at least float32, as half precision is too coarse."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        rows, columns = (torch.arange(n, device=like.device, dtype=dtype) + 0.5 for n in size)
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        pair = (row, column) if self.x_rows else (column, row)
        return torch.stack([axis.flatten() for axis in pair], 1)

    def _masks(self, cell: Tensor, size: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
        """Attention masks: of queries [P, P], and of cells [B, P, cells]; None where all is seen."""
        others = None
        if self.isolated_queries:
            others = ~torch.eye(cell.shape[1], dtype=torch.bool, device=cell.device)
        if self.window is None:
            return others, None
        if self.window_repeats:
            return others, repeated_window(cell, size, self.window)
        return others, window_mask(cell, size, self.window, self.window_wraps)

    def boxes(self, codes: Tensor) -> Tensor:
        """Boxes [B, P, 7 or 9] from codes [B, 8 or 10, P]."""
        code = codes.transpose(1, 2)
        size = code[..., 3:6].exp()
        z = code[..., 2] - size[..., 2] / 2 if self.height == "top" else code[..., 2]
        x, y = (code[..., i] * self.cell[i] + self.origin[i] for i in range(2))
        heading = torch.atan2(code[..., 6], code[..., 7])
        return torch.cat([torch.stack([x, y, z, *size.unbind(-1), heading], -1), code[..., 8:]], -1)

    def _encode(self, boxes: Tensor) -> Tensor:
        """Codes [K, 8 or 10] of boxes [K, 7 or 9]."""
        x, y = ((boxes[:, i] - self.origin[i]) / self.cell[i] for i in range(2))
        z = boxes[:, 2] + boxes[:, 5] / 2 if self.height == "top" else boxes[:, 2]
        angles = boxes[:, 6].sin(), boxes[:, 6].cos()
        return torch.cat([torch.stack([x, y, z, *boxes[:, 3:6].log().unbind(1), *angles], 1), boxes[:, 7:]], 1)

    @torch.no_grad()
    def targets(self, output: QueryOutput, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> QueryTargets:
        """What the queries should predict.

        Objects with a non-finite number or a size that is not positive are left out.

        Args:
            output: of `forward`.
            boxes: of the objects in each frame, [G, 7 or 9].
            labels: int64 [G] in each frame, positions in the head's classes.

        Raises:
            ValueError: velocities are learnt and the boxes have none.
        """
        columns = 9 if "vel" in self.branches else 7
        if any(b.shape[1] < columns for b in boxes):
            raise ValueError("boxes need 9 columns, with velocity, to train the branch 'vel'")
        predicted = self.boxes(output.codes)
        wanted = torch.full_like(output.labels, len(self.classes))
        heatmap = torch.zeros_like(output.heatmap)
        matches, objects = [], []
        for frame, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            usable = usable_boxes(box)
            box, label = box[usable, :columns].to(predicted), label[usable]
            self._draw(heatmap[frame], box, label)
            query, found, overlap = self._match(predicted[frame], output.logits[frame], box, label)
            wanted[frame, query] = label[found]
            matches.append((torch.full_like(query, frame), query, overlap, usable.nonzero()[found, 0]))
            objects.append(box[found])
        frames, queries, overlaps, rows = (torch.cat(part) for part in zip(*matches, strict=True))
        matched = torch.cat(objects)
        return QueryTargets(heatmap, wanted, (frames, queries), self._encode(matched), matched[:, :7], overlaps, rows)

    def matches(self, output: QueryOutput, targets: Sequence[Targets]) -> list[tuple[Tensor, Tensor]]:
        """For each frame, the queries int64 [K] that stand for objects, and the rows int64 [K] of these objects."""
        wanted = self.targets(output, *boxes_and_labels(targets))
        frame, query = wanted.positive
        return [(query[frame == i], wanted.objects[frame == i]) for i in range(len(targets))]

    def _draw(self, heatmap: Tensor, boxes: Tensor, labels: Tensor) -> None:
        x, y = (((boxes[:, i] - self.origin[i]) / self.cell[i]).long() for i in range(2))
        size = (boxes[:, 3] / self.cell[0], boxes[:, 4] / self.cell[1])
        radii = gaussian_radius(*size, self.gaussian_overlap).long().clamp_min(self.min_radius)
        draw_gaussians(heatmap, labels, torch.stack([y, x] if self.x_rows else [x, y], 1), radii)

    def _match(self, predicted: Tensor, logits: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cheapest one-to-one match: query int64 [K], object int64 [K], overlap [K] (Hungarian method)."""
        p = logits.sigmoid()[labels].T  # [P, G]
        positive = -(p + 1e-12).log() * 0.25 * (1 - p) ** 2
        negative = -(1 - p + 1e-12).log() * 0.75 * p**2
        extent = boxes.new_tensor(self.limit) - boxes.new_tensor(self.origin)
        distance = torch.cdist(predicted[:, :2] / extent, boxes[:, :2] / extent, p=1)
        overlap = iou_3d(*(lifted(b) if self.bottom_cost else b for b in (predicted, boxes)))
        class_cost, box_cost, iou_cost = self.costs
        cost = class_cost * (positive - negative) + box_cost * distance - iou_cost * overlap
        pairs = linear_sum_assignment(cost.nan_to_num(1e4).cpu().numpy())
        query, found = (torch.from_numpy(index).to(labels) for index in pairs)
        return query, found, overlap[query, found]

    def loss(self, output: QueryOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "heatmap", "classification", "box", "iou", "box_iou" of the frames' objects.

        Those of earlier layers are called "layer_0_classification" and so on.
        """
        objects, layers = boxes_and_labels(targets), [*output.earlier, output]
        wanted = [self.targets(layer, *objects) for layer in layers]
        count = max(sum(len(each.codes) for each in wanted), 1)
        dense = output.heatmap.sigmoid().clamp(1e-4, 1 - 1e-4)
        peaks = (wanted[0].heatmap == 1).sum().clamp_min(1)
        losses = {
            "heatmap": self.heatmap_weight * gaussian_focal_loss(dense, wanted[0].heatmap, eps=1e-12).sum() / peaks
        }
        overlaps = learnt_overlaps(layers, self.iou_of_joined_rows)
        for number, (layer, each) in enumerate(zip(layers, wanted, strict=True)):
            prefix = "" if layer is output else f"layer_{number}_"
            found = self._layer_losses(layer, each, count, overlaps[number])
            losses |= {prefix + name: loss for name, loss in found.items()}
        return losses

    def _layer_losses(
        self, output: QueryOutput, wanted: QueryTargets, count: int, overlaps: Tensor | None
    ) -> dict[str, Tensor]:
        """Losses of one layer; count: matched queries of all layers; overlaps: see `learnt_overlaps`."""
        frame, query = wanted.positive
        one_hot = F.one_hot(wanted.labels, len(self.classes) + 1)[..., :-1].transpose(1, 2).to(output.logits)
        error = smooth_l1_loss(output.codes.transpose(1, 2)[frame, query], wanted.codes, beta=0.0)
        losses = {
            "classification": self.class_weight * sigmoid_focal_loss(output.logits, one_hot).sum() / count,
            "box": self.box_weight * (error * self.code_weights).sum() / count,
        }
        if overlaps is not None:
            found = self.boxes(output.codes.detach())[frame, query, :7]
            pairs = (lifted(b) if self.iou_of_tops else b for b in (found, wanted.boxes))
            losses["iou"] = self.iou_weight * overlap_loss(overlaps[frame, query], *pairs)
        if self.box_iou_weight:
            found = self.boxes(output.codes)[frame, query, :7]
            losses["box_iou"] = self.box_iou_weight * (1 - axis_aligned_diou(found, wanted.boxes)).sum() / count
        return losses

    @torch.no_grad()
    def decode(self, output: QueryOutput) -> list[Detections]:
        """Detections of each frame, in the order of their queries."""
        own = F.one_hot(output.labels, len(self.classes)).transpose(1, 2)
        scores, labels = (output.logits.sigmoid() * output.peak_scores * own).max(1)
        boxes = self.boxes(output.codes)
        keep = torch.ones_like(scores, dtype=torch.bool)
        if self.score_threshold is not None:
            keep = scores > self.score_threshold
        if self.center_range is not None:
            keep = keep & self._in_range(boxes)
        found = []
        for frame, chosen in enumerate(keep):
            score = scores[frame, chosen]
            if self.iou_rectifier is not None:
                if output.iou is None:
                    raise ValueError("iou_rectifier needs the branch 'iou'")
                score = rectify_scores(score, output.iou[frame, chosen], self.iou_rectifier[labels[frame, chosen]])
            queries = chosen.nonzero()[:, 0]
            detections = Detections(boxes[frame, chosen], score, labels[frame, chosen], self.classes, queries=queries)
            found.append(detections.select(self._suppressed(detections)))
        return found

    def _in_range(self, boxes: Tensor) -> Tensor:
        """bool [B, P]: whether the centres of boxes [B, P, >= 7] are in `center_range`."""
        low, high = boxes.new_tensor(self.center_range).view(2, 3)
        where = boxes[..., :3]
        if self.range_of_bottoms:
            where = torch.cat([where[..., :2], where[..., 2:] - boxes[..., 5:6] / 2], -1)
        return ((where >= low) & (where <= high)).all(-1)

    def _suppressed(self, found: Detections) -> Tensor:
        """bool [M]: which detections stay after the suppression of some classes, each alone."""
        boxes, scores, labels = (tensor_of(t) for t in (found.boxes, found.scores, found.labels))
        keep = torch.ones_like(labels, dtype=torch.bool)
        for label, threshold in self.nms.items():
            mine = (labels == label).nonzero()[:, 0]
            keep[mine] = False
            mine = mine.flip(0) if self.later_of_equals else mine
            kept = nms(boxes[mine], scores[mine], threshold, self.nms_kind, pre_max=1000, post_max=self.nms_max)
            keep[mine[kept]] = True
        return keep
