"""The anchor head of SECOND and PointPillars."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.config import construct, suggest
from pcdet_ext.models.heads.base import Reads, boxes_and_labels, fill_bias
from pcdet_ext.models.heads.losses import sigmoid_focal_loss, smooth_l1_loss, with_sine_difference
from pcdet_ext.models.heads.postprocess import NMSConfig, best_class, every_class, suppress
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.targets.anchors import BACKGROUND, IGNORED, AnchorSpec, assign, make_anchors, remembered
from pcdet_ext.models.targets.box_coding import ResidualCoder, apply_direction_bin, direction_bin, usable_boxes
from pcdet_ext.ranges import check_range
from pcdet_ext.structures import Detections, Targets

PRIOR = 0.01  # probability of an object that an untrained head starts with (RetinaNet)


@dataclass(frozen=True)
class AnchorOutput:
    """Predictions for N = Y * X * A anchors, flat in the order row, column, anchor.

    logits: [B, N, classes]; codes: [B, N, 7]; directions: logits [B, N, bins] or None; anchors: [N, 7];
    map_size: (Y, X).
    """

    logits: Tensor
    codes: Tensor
    directions: Tensor | None
    anchors: Tensor
    map_size: tuple[int, int]


@dataclass(frozen=True)
class AnchorTargets:
    """What the anchors of a batch should predict.

    labels: int64 [B, N], a class, BACKGROUND or IGNORED; positive: (frame, anchor) int64 [P] of those that
    stand for an object; codes: [P, 7]; directions: int64 [P].
    """

    labels: Tensor
    positive: tuple[Tensor, Tensor]
    codes: Tensor
    directions: Tensor


@HEADS.register
class AnchorHead(nn.Module):
    """One convolution each for classes, boxes and directions of the anchors (SECOND, Yan et al. 2018).

    State-dict keys are those of OpenPCDet's AnchorHeadSingle.

    Args:
        in_channels: of the map.
        classes: what is detected.
        point_cloud_range: x, y, z minimum, then maximum, in metres; the map covers it.
        anchors: one mapping per class with the fields of `AnchorSpec`, in channel order.
        match_3d: anchors match by 3-D overlap instead of that of axis-aligned footprints.
        direction_bins: sectors distinguished by the direction classifier, 0 for none.
        direction_offset: where the first sector starts, radians.
        direction_limit_offset: where in a sector decoded headings are put, see `apply_direction_bin`.
        box_loss: of the differences of codes.
        class_weight, box_weight, direction_weight: factors on the losses.
        code_weights: 7 factors on the differences of codes.
        score_threshold: detections of lower scores are left out.
        multi_label: a box may be reported once for each of its classes instead of for the best one.
        raw_scores: detections carry the logit of their class instead of its probability, which the threshold and the
            order still go by.
        nms: fields of `NMSConfig`.
        max_candidates: anchors of a frame that are looked at, those of the best score in any class, None for all.
        max_detections: boxes of a frame that are kept after the suppression, the best of all classes, None for all.

    Raises:
        ValueError: the anchors do not fit the classes, or there are not 7 code weights.
    """

    reads: ClassVar[Reads] = "map"

    code_weights: Tensor

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        anchors: Sequence[Mapping[str, Any]],
        match_3d: bool = False,
        direction_bins: int = 2,
        direction_offset: float = 0.78539,
        direction_limit_offset: float = 0.0,
        box_loss: Literal["smooth_l1", "l1"] = "smooth_l1",
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        direction_weight: float = 0.2,
        code_weights: Sequence[float] = (1.0,) * 7,
        score_threshold: float = 0.1,
        multi_label: bool = False,
        raw_scores: bool = False,
        nms: Mapping[str, Any] | None = None,
        max_candidates: int | None = None,
        max_detections: int | None = None,
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.point_cloud_range = tuple(point_cloud_range)
        self.specs = [construct(AnchorSpec, node) for node in anchors]
        check_specs(self.specs, self.classes)
        if len(code_weights) != 7:
            raise ValueError(f"code_weights must be 7 numbers (x, y, z, dx, dy, dz, heading), got {len(code_weights)}")
        check_range(0, direction_bins=direction_bins, class_weight=class_weight, box_weight=box_weight)
        check_range(0, direction_weight=direction_weight)
        check_range(-math.inf, score_threshold=score_threshold)
        check_range(1, max_candidates=max_candidates, max_detections=max_detections)
        self.max_candidates, self.max_detections = max_candidates, max_detections
        self.match_3d = match_3d
        self.direction_bins = direction_bins
        self.direction_offset = direction_offset
        self.direction_limit_offset = direction_limit_offset
        self.beta = 0.0 if box_loss == "l1" else 1 / 9
        self.class_weight, self.box_weight, self.direction_weight = class_weight, box_weight, direction_weight
        self.score_threshold = score_threshold
        self.multi_label, self.raw_scores = multi_label, raw_scores
        if raw_scores and multi_label:
            raise ValueError("raw_scores: with multi_label, scores are always probabilities")
        self.nms = construct(NMSConfig, nms or {})
        self.nms.check(len(self.classes))
        self.coder = ResidualCoder()
        self.register_buffer("code_weights", torch.tensor(code_weights, dtype=torch.float32), persistent=False)
        self._anchors: dict[tuple[int, int, torch.device], tuple[list[Tensor], Tensor]] = {}

        per_cell = sum(map(len, self.specs))
        self.conv_cls = nn.Conv2d(in_channels, per_cell * len(self.classes), 1)
        self.conv_box = nn.Conv2d(in_channels, per_cell * self.coder.code_size, 1)
        self.conv_dir_cls = nn.Conv2d(in_channels, per_cell * direction_bins, 1) if direction_bins else None
        fill_bias(self.conv_cls, -math.log((1 - PRIOR) / PRIOR))
        nn.init.normal_(self.conv_box.weight, std=0.001)

    def anchors(self, map_size: tuple[int, int], device: torch.device) -> tuple[list[Tensor], Tensor]:
        """Anchors [Y, X, A, 7] of each entry of `specs`, and all of them flat [N, 7]."""

        def make() -> tuple[list[Tensor], Tensor]:
            single = [make_anchors(s, self.point_cloud_range, map_size, device) for s in self.specs]
            return single, torch.cat(single, 2).view(-1, 7)

        return remembered(self._anchors, (*map_size, device), make)

    def forward(self, bev: Tensor) -> AnchorOutput:
        """Predictions from a map [B, in_channels, Y, X]."""
        return self._output([conv(bev) for conv in self._convolutions()])

    @torch.no_grad()
    def predict(self, bev: Tensor) -> list[Detections]:
        """Detections of each frame, best first, from a map: those of `decode` by one convolution instead of three."""
        convs = self._convolutions()
        weight = torch.cat([conv.weight for conv in convs])
        bias = torch.cat([cast(Tensor, conv.bias) for conv in convs])
        maps = F.conv2d(bev, weight, bias).split([conv.out_channels for conv in convs], 1)
        return self.decode(self._output(maps))

    def _convolutions(self) -> list[nn.Conv2d]:
        """Those of classes, boxes and, where there are any, directions."""
        return [self.conv_cls, self.conv_box, *([] if self.conv_dir_cls is None else [self.conv_dir_cls])]

    def _output(self, maps: Sequence[Tensor]) -> AnchorOutput:
        """What the maps [B, channels, Y, X] of `_convolutions` tell of each anchor."""
        columns = (len(self.classes), self.coder.code_size, self.direction_bins)
        flat = [x.permute(0, 2, 3, 1).reshape(len(x), -1, n).float() for x, n in zip(maps, columns, strict=False)]
        map_size = (maps[0].shape[2], maps[0].shape[3])
        anchors = self.anchors(map_size, maps[0].device)[1]
        return AnchorOutput(flat[0], flat[1], flat[2] if len(flat) > 2 else None, anchors, map_size)

    @torch.no_grad()
    def targets(self, output: AnchorOutput, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> AnchorTargets:
        """What the anchors should predict for the objects of each frame.

        Objects with a number that is not finite or a size that is not positive are left out.

        Args:
            output: of `forward`.
            boxes: [G, 7 or more] of each frame.
            labels: int64 [G] of each frame.
        """
        matched = [self._match(output, b, k) for b, k in zip(boxes, labels, strict=True)]
        label = torch.stack([m[0] for m in matched])
        anchor = torch.cat([m[1] for m in matched])
        objects = torch.cat([m[2] for m in matched])
        frame = torch.arange(len(matched), device=label.device)
        frame = frame.repeat_interleave(torch.tensor([len(m[1]) for m in matched], device=label.device))
        chosen = output.anchors[anchor]
        codes = self.coder.encode(objects, chosen)
        bins = max(self.direction_bins, 1)
        directions = direction_bin(codes[:, 6] + chosen[:, 6], bins, self.direction_offset)
        return AnchorTargets(label, (frame, anchor), codes, directions)

    def _match(self, output: AnchorOutput, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels int64 [N] of one frame's anchors; the positive ones int64 [P]; the object [P, 7] of each of them."""
        usable = usable_boxes(boxes)
        boxes, labels = boxes[usable, :7].to(output.anchors), labels[usable]
        per_cell, before = sum(map(len, self.specs)), 0
        target = torch.full((len(output.anchors),), BACKGROUND, device=output.anchors.device)
        positives, objects = [], []
        of_spec = self.anchors(output.map_size, output.anchors.device)[0]
        for spec, anchors in zip(self.specs, of_spec, strict=True):
            label = self.classes.index(spec.class_name)
            mine = boxes[labels == label]
            matches = assign(anchors, mine, spec.matched, spec.unmatched, self.match_3d)
            cell, kind = matches.close // len(spec), matches.close % len(spec)
            target[cell * per_cell + before + kind] = IGNORED
            cell, kind = matches.positive // len(spec), matches.positive % len(spec)
            positives.append(cell * per_cell + before + kind)
            target[positives[-1]] = label
            objects.append(mine[matches.objects])
            before += len(spec)
        return target, torch.cat(positives), torch.cat(objects)

    def loss(self, output: AnchorOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "classification", "box" and "direction" for the objects of each frame.

        Each is summed over a frame's anchors, divided by its positive ones (at least 1) and averaged over frames.
        """
        wanted = self.targets(output, *boxes_and_labels(targets))
        share = 1 / (wanted.labels >= 0).sum(1).clamp_min(1).to(wanted.codes.dtype) / len(wanted.labels)
        losses = {"classification": self._class_loss(output, wanted, share)}
        frame, anchor = wanted.positive
        predicted, target = with_sine_difference(output.codes[frame, anchor], wanted.codes)
        error = smooth_l1_loss(predicted, target, self.beta, self.code_weights)
        losses["box"] = self.box_weight * (error * share[frame, None]).sum()
        if output.directions is not None:
            error = F.cross_entropy(output.directions[frame, anchor], wanted.directions, reduction="none")
            losses["direction"] = self.direction_weight * (error * share[frame]).sum()
        return losses

    def _class_loss(self, output: AnchorOutput, targets: AnchorTargets, share: Tensor) -> Tensor:
        wanted = torch.zeros_like(output.logits)
        frame, anchor = targets.positive
        wanted[frame, anchor, targets.labels[frame, anchor]] = 1
        weight = (targets.labels >= BACKGROUND) * share[:, None]
        return self.class_weight * (sigmoid_focal_loss(output.logits, wanted) * weight[..., None]).sum()

    def boxes(self, output: AnchorOutput, frame: int, anchor: Tensor | slice = slice(None)) -> Tensor:
        """Predicted boxes of some anchors of one frame.

        Args:
            output: of `forward`.
            frame: its number in the batch.
            anchor: int64 [K], which anchors; all by default.

        Returns:
            [K, 7].
        """
        boxes = self.coder.decode(output.codes[frame, anchor], output.anchors[anchor])
        if output.directions is None:
            return boxes
        heading = apply_direction_bin(
            boxes[:, 6],
            output.directions[frame, anchor].argmax(1),
            self.direction_bins,
            self.direction_offset,
            self.direction_limit_offset,
        )
        return torch.cat([boxes[:, :6], heading[:, None]], 1)

    @torch.no_grad()
    def decode(self, output: AnchorOutput) -> list[Detections]:
        """Detections of each frame, best first."""
        return [self._decode_frame(output, frame) for frame in range(len(output.logits))]

    def _decode_frame(self, output: AnchorOutput, frame: int) -> Detections:
        choose = every_class if self.multi_label else best_class
        candidates = self._candidates(output.logits[frame], output.map_size)
        row, scores, labels = choose(output.logits[frame, candidates].sigmoid(), self.score_threshold)
        anchor = candidates[row]
        boxes = self.boxes(output, frame, anchor)
        kept = suppress(boxes, scores, labels, self.nms, len(self.classes))
        if self.max_detections is not None:
            best = kept[scores[kept].argsort(descending=True, stable=True)]
            too_many = torch.ones_like(kept).sum() > self.max_detections  # otherwise the order stays
            kept = torch.where(too_many, best, kept)[: self.max_detections]
        if self.raw_scores:
            scores = output.logits[frame, anchor, labels]
        return Detections(boxes[kept], scores[kept], labels[kept], self.classes)

    def _candidates(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """The anchors int64 [K] of a frame that are looked at, by their logits [N, classes]; size: of the map."""
        count = size[0] * size[1] * sum(map(len, self.specs))
        if self.max_candidates is None or count <= self.max_candidates:
            return torch.arange(count, device=logits.device)
        return logits.amax(1).topk(self.max_candidates).indices


def check_specs(specs: Sequence[AnchorSpec], classes: Sequence[str]) -> None:
    """Raise ValueError unless there is one entry for every class."""
    names = [spec.class_name for spec in specs]
    for name in names:
        if name not in classes:
            raise ValueError(f"anchors are given for the unknown class {name!r}{suggest(name, classes)}")
    for name in classes:
        if names.count(name) != 1:
            raise ValueError(f"class {name!r} must have one entry in anchors, got {names.count(name)}")
