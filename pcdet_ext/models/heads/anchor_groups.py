"""Anchor heads for groups of classes on one map (CBGS, Zhu et al. 2019; "multi-head" in OpenPCDet)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.models.bev.registry import BEV_BACKBONES
from pcdet_ext.models.heads.anchor import PRIOR, AnchorTargets, check_specs
from pcdet_ext.models.heads.base import Reads, boxes_and_labels, fill_bias
from pcdet_ext.models.heads.branches import task_labels
from pcdet_ext.models.heads.losses import sigmoid_focal_loss, smooth_l1_loss, with_sine_difference
from pcdet_ext.models.heads.postprocess import NMSConfig, suppress
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.layers.norm import EPS, MOMENTUM
from pcdet_ext.models.targets.anchors import BACKGROUND, IGNORED, AnchorSpec, assign, make_anchors, remembered
from pcdet_ext.models.targets.box_coding import ResidualCoder, apply_direction_bin, direction_bin, usable_boxes
from pcdet_ext.ranges import check_range
from pcdet_ext.structures import Detections, Targets


@dataclass(frozen=True, eq=False)
class AnchorGroupsOutput:
    """Predictions for the anchors of every group, flat in the order group, class, kind, row, column.

    logits: [B, N_g, C_g] of each group; codes: [B, N, code size]; directions: logits [B, N, bins] or None; anchors:
    [N, 7 + extra columns]; map_size: (Y, X).
    """

    logits: tuple[Tensor, ...]
    codes: Tensor
    directions: Tensor | None
    anchors: Tensor
    map_size: tuple[int, int]


class AnchorGroup(nn.Module):
    """The convolutions of one group of anchors: of one cell, or 3x3 ones with one set per part of a code.

    State-dict keys are those of OpenPCDet, whose labels are 1-based.

    Args:
        in_channels: of the map.
        labels: positions of the group's classes among all classes of the head.
        kinds: anchors of the group in each cell.
        classes: logits of each anchor.
        code_size: numbers of a box code.
        bins: sectors of the direction classifier, 0 for none.
        parts: how many numbers of a code each convolution of its own predicts, by name; None for a single convolution.
        middle: 3x3 convolutions in front of each output, where there are parts.
        middle_channels: channels of these.
        own: 2-D backbone that the map goes through first, from a configuration (see `BEV_BACKBONES`); None for none.
    """

    head_label_indices: Tensor

    def __init__(
        self,
        in_channels: int,
        labels: Sequence[int],
        kinds: int,
        classes: int,
        code_size: int,
        bins: int,
        parts: Mapping[str, int] | None,
        middle: int,
        middle_channels: int,
        own: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.bev_backbone = None if own is None else BEV_BACKBONES.build(own, in_channels=in_channels)
        if self.bev_backbone is not None:
            if self.bev_backbone.stride != 1:
                raise ValueError(f"a group's own backbone must keep the size of the map: {own} divides it")
            in_channels = self.bev_backbone.out_channels
        self.kinds, self.classes, self.code_size, self.bins = kinds, classes, code_size, bins
        self.register_buffer("head_label_indices", torch.tensor(labels) + 1)
        if parts is None:
            self.conv_cls: nn.Module = nn.Conv2d(in_channels, kinds * classes, 1)
            self.conv_box: nn.Module = nn.Conv2d(in_channels, kinds * code_size, 1)
        else:
            shape = (in_channels, middle, middle_channels)
            self.conv_cls = _separate(*shape, kinds * classes)
            self.conv_box = nn.ModuleDict({f"conv_{n}": _separate(*shape, kinds * w) for n, w in parts.items()})
            for conv in (module for module in self.conv_box.modules() if isinstance(module, nn.Conv2d)):
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                if conv.bias is not None:
                    nn.init.zeros_(conv.bias)
        self.conv_dir_cls = nn.Conv2d(in_channels, kinds * bins, 1) if bins else None
        fill_bias(self.conv_cls, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, bev: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits [B, n, classes], codes [B, n, code size] and directions [B, n, bins] or None, n = kinds * Y * X.

        The maps of the parts of a code are joined before they are divided among the anchors, as published: with two
        kinds of anchors, the numbers of an anchor are not those of the convolutions that bear their names.
        """
        if self.bev_backbone is not None:
            bev = self.bev_backbone(bev)
        if isinstance(self.conv_box, nn.ModuleDict):
            codes = torch.cat([conv(bev) for conv in self.conv_box.values()], 1)
        else:
            codes = self.conv_box(bev)
        directions = None if self.conv_dir_cls is None else self._flat(self.conv_dir_cls(bev), self.bins)
        return self._flat(self.conv_cls(bev), self.classes), self._flat(codes, self.code_size), directions

    def _flat(self, maps: Tensor, columns: int) -> Tensor:
        """[B, kinds * columns, Y, X] to [B, kinds * Y * X, columns]."""
        batch, _, height, width = maps.shape
        cells = maps.view(batch, self.kinds, columns, height, width).permute(0, 1, 3, 4, 2)
        return cells.reshape(batch, -1, columns).float()


def _separate(in_channels: int, middle: int, channels: int, out_channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(middle):
        layers += [
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        in_channels = channels
    return nn.Sequential(*layers, nn.Conv2d(in_channels, out_channels, 3, padding=1))


@HEADS.register
class AnchorHeadMulti(nn.Module):
    """Anchors of several groups of classes, each with convolutions of its own on a shared map.

    Args:
        in_channels: of the map.
        classes: names.
        point_cloud_range: (x, y, z minimum, then maximum) in metres.
        anchors: one mapping per class with the fields of `AnchorSpec`.
        groups: names of the classes of each group; every class in one.
        shared_channels: width of a 3x3 convolution that all groups share, or None for none.
        separate: a group scores its own classes alone, and every anchor of a group may be reported once for each of
            them; otherwise every group scores all classes, and an anchor is reported for its best one.
        parts: numbers of a code that a set of convolutions gives, by the name of the set, in the order of a code; None
            for one plain convolution.
        middle_convs: 3x3 convolutions in front of the last, with `parts`.
        middle_channels: their width; None for that of the map that all groups share.
        group_backbones: configuration of a 2-D backbone of each group's own, which keeps the size of the map, or None
            for those that have none; None where no group has one.
        velocity: boxes have (vx, vy), which are learnt and predicted.
        sincos: headings are learnt by cosine and sine, which tell the direction, too.
        match_3d: anchors match by 3-D overlap instead of that of axis-aligned footprints.
        direction_bins: sectors distinguished by the direction classifier, 0 for none.
        idle_directions: the groups have the classifier, but nothing reads it, as published where its switch is off;
            only where there are `direction_bins`.
        direction_offset: where the first of them starts, in radians.
        direction_limit_offset: see `apply_direction_bin`.
        box_loss: "smooth_l1" or "l1".
        positive_weight: of anchors that stand for an object, in the loss of classes.
        negative_weight: of background anchors there.
        class_weight: of the loss of classes.
        box_weight: of the loss of boxes.
        direction_weight: of the loss of directions.
        code_weights: factors on the differences of codes; None for ones.
        score_threshold: detections score at least so much.
        raw_scores: see `AnchorHead`; not with `separate`.
        nms: fields of `NMSConfig`; with `separate` every class of every group is suppressed on its own.

    Raises:
        ValueError: for anchors, groups and parts that do not fit the classes, the code, or each other, and for
            `idle_directions` without a direction classifier.
    """

    reads: ClassVar[Reads] = "map"

    code_weights: Tensor

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        point_cloud_range: Sequence[float],
        anchors: Sequence[Mapping[str, Any]],
        groups: Sequence[Sequence[str]],
        shared_channels: int | None = 64,
        separate: bool = True,
        parts: Mapping[str, int] | None = None,
        middle_convs: int = 1,
        middle_channels: int | None = None,
        group_backbones: Sequence[Mapping[str, Any] | None] | None = None,
        velocity: bool = False,
        sincos: bool = False,
        match_3d: bool = False,
        direction_bins: int = 0,
        idle_directions: bool = False,
        direction_offset: float = 0.78539,
        direction_limit_offset: float = 0.0,
        box_loss: Literal["smooth_l1", "l1"] = "smooth_l1",
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        class_weight: float = 1.0,
        box_weight: float = 2.0,
        direction_weight: float = 0.2,
        code_weights: Sequence[float] | None = None,
        score_threshold: float = 0.1,
        raw_scores: bool = False,
        nms: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.point_cloud_range = tuple(classes), tuple(point_cloud_range)
        specs = [construct(AnchorSpec, node) for node in anchors]
        check_specs(specs, self.classes)
        self.groups = task_labels(self.classes, groups)
        self.specs = {self.classes.index(spec.class_name): spec for spec in specs}
        self.separate, self.match_3d, self.direction_bins = separate, match_3d, direction_bins
        self.has_directions = direction_bins > 0 and not idle_directions
        self.direction_offset, self.direction_limit_offset = direction_offset, direction_limit_offset
        check_range(0, direction_bins=direction_bins, middle_convs=middle_convs, class_weight=class_weight)
        check_range(0, box_weight=box_weight, direction_weight=direction_weight)
        check_range(0, positive_weight=positive_weight, negative_weight=negative_weight)
        check_range(1, shared_channels=shared_channels, middle_channels=middle_channels)
        check_range(-math.inf, score_threshold=score_threshold)
        if idle_directions and not direction_bins:
            raise ValueError("idle_directions: there is no direction classifier with direction_bins 0")
        if raw_scores and separate:
            raise ValueError("raw_scores: with separate, scores are always probabilities")
        self.raw_scores = raw_scores
        own = [None] * len(self.groups) if group_backbones is None else list(group_backbones)
        if len(own) != len(self.groups):
            raise ValueError(
                f"group_backbones must have an entry for each of {len(self.groups)} groups, got {len(own)}"
            )
        self.coder = ResidualCoder(sincos, 2 if velocity else 0)
        if parts is not None and sum(parts.values()) != self.coder.code_size:
            raise ValueError(f"parts must make up a code of {self.coder.code_size} numbers, got {dict(parts)}")
        weights = [1.0] * self.coder.code_size if code_weights is None else list(code_weights)
        if len(weights) != self.coder.code_size:
            raise ValueError(f"code_weights must be {self.coder.code_size} numbers, got {len(weights)}")
        self.beta = 0.0 if box_loss == "l1" else 1 / 9
        self.positive_weight, self.negative_weight = positive_weight, negative_weight
        self.class_weight, self.box_weight, self.direction_weight = class_weight, box_weight, direction_weight
        self.score_threshold = score_threshold
        self.nms = construct(NMSConfig, nms or {})
        self.nms.check(len(self.classes))
        self.register_buffer("code_weights", torch.tensor(weights, dtype=torch.float32), persistent=False)
        self._anchors: dict[tuple[int, int, torch.device], dict[int, Tensor]] = {}

        self.shared_conv = None
        if shared_channels is not None:
            conv = nn.Conv2d(in_channels, shared_channels, 3, padding=1, bias=False)
            norm = nn.BatchNorm2d(shared_channels, eps=EPS, momentum=MOMENTUM)
            self.shared_conv = nn.Sequential(conv, norm, nn.ReLU())
            in_channels = shared_channels
        self.rpn_heads = nn.ModuleList(
            AnchorGroup(
                in_channels,
                group,
                sum(len(self.specs[label]) for label in group),
                len(group) if separate else len(self.classes),
                self.coder.code_size,
                direction_bins,
                parts,
                middle_convs,
                in_channels if middle_channels is None else middle_channels,
                backbone,
            )
            for group, backbone in zip(self.groups, own, strict=True)
        )

    def anchors(self, map_size: tuple[int, int], device: torch.device) -> dict[int, Tensor]:
        """Anchors [Y, X, A, 7] of each class by its label, in the order of the groups."""

        def make() -> dict[int, Tensor]:
            order = [label for group in self.groups for label in group]
            return {k: make_anchors(self.specs[k], self.point_cloud_range, map_size, device) for k in order}

        return remembered(self._anchors, (*map_size, device), make)

    def forward(self, bev: Tensor) -> AnchorGroupsOutput:
        """Predictions from a map [B, in_channels, Y, X]."""
        shared = bev if self.shared_conv is None else self.shared_conv(bev)
        map_size = (bev.shape[2], bev.shape[3])
        logits, codes, directions = zip(*(head(shared) for head in self.rpn_heads), strict=True)
        kinds_first = [a.permute(2, 0, 1, 3).reshape(-1, 7) for a in self.anchors(map_size, bev.device).values()]
        return AnchorGroupsOutput(
            logits=logits,
            codes=torch.cat(codes, 1),
            directions=torch.cat(directions, 1) if self.has_directions else None,
            anchors=F.pad(torch.cat(kinds_first), (0, self.coder.extra)),
            map_size=map_size,
        )

    @torch.no_grad()
    def targets(self, output: AnchorGroupsOutput, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> AnchorTargets:
        """What the anchors should predict.

        Objects with a non-finite number or a size that is not positive are left out.

        Args:
            output: of `forward`.
            boxes: of the objects in each frame, [G, 7 or 9].
            labels: int64 [G] in each frame, positions in the head's classes.

        Raises:
            ValueError: velocities are learnt and the boxes have none.
        """
        columns = 7 + self.coder.extra
        if any(box.shape[1] < columns for box in boxes):
            raise ValueError(f"boxes need {columns} columns, with velocity")
        matched = [self._match(output, b[:, :columns], k) for b, k in zip(boxes, labels, strict=True)]
        label = torch.stack([m[0] for m in matched])
        anchor, objects = torch.cat([m[1] for m in matched]), torch.cat([m[2] for m in matched])
        counts = torch.tensor([len(m[1]) for m in matched], device=label.device)
        frame = torch.arange(len(matched), device=label.device).repeat_interleave(counts)
        chosen = output.anchors[anchor]
        codes = self.coder.encode(objects, chosen)
        directions = direction_bin(codes[:, 6] + chosen[:, 6], max(self.direction_bins, 1), self.direction_offset)
        return AnchorTargets(label, (frame, anchor), codes, directions)

    def _match(self, output: AnchorGroupsOutput, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Labels int64 [N] of one frame's anchors; the positive ones int64 [P]; the object of each of them."""
        usable = usable_boxes(boxes)
        boxes, labels = boxes[usable].to(output.anchors), labels[usable]
        target = torch.full((len(output.anchors),), BACKGROUND, device=output.anchors.device)
        cells, before = math.prod(output.map_size), 0
        positives, objects = [], []
        for label, anchors in self.anchors(output.map_size, output.anchors.device).items():
            spec, mine = self.specs[label], boxes[labels == label]
            matches = assign(anchors, mine[:, :7], spec.matched, spec.unmatched, self.match_3d)
            place = [before + i % len(spec) * cells + i // len(spec) for i in (matches.close, matches.positive)]
            target[place[0]] = IGNORED
            target[place[1]] = label
            positives.append(place[1])
            objects.append(mine[matches.objects])
            before += len(spec) * cells
        return target, torch.cat(positives), torch.cat(objects)

    def loss(self, output: AnchorGroupsOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Losses "classification", "box" and "direction" for the objects of each frame.

        Each is summed over a frame's anchors, divided by its positive ones (at least 1) and averaged over frames.
        """
        wanted = self.targets(output, *boxes_and_labels(targets))
        share = 1 / (wanted.labels >= 0).sum(1).clamp_min(1).to(wanted.codes.dtype) / len(wanted.labels)
        losses = {"classification": self._class_loss(output, wanted.labels, share)}
        frame, anchor = wanted.positive
        predicted, target = output.codes[frame, anchor], wanted.codes
        if output.directions is not None:
            predicted, target = with_sine_difference(predicted, target)
        error = smooth_l1_loss(predicted, target, self.beta, self.code_weights)
        losses["box"] = self.box_weight * (error * share[frame, None]).sum()
        if output.directions is not None:
            error = F.cross_entropy(output.directions[frame, anchor], wanted.directions, reduction="none")
            losses["direction"] = self.direction_weight * (error * share[frame]).sum()
        return losses

    def _class_loss(self, output: AnchorGroupsOutput, labels: Tensor, share: Tensor) -> Tensor:
        weight = (labels >= 0) * self.positive_weight + (labels == BACKGROUND) * self.negative_weight
        weights = (weight * share[:, None]).split([part.shape[1] for part in output.logits], 1)
        wanted = labels.split([part.shape[1] for part in output.logits], 1)
        total = share.new_zeros(())
        for logits, label, each, scored in zip(output.logits, wanted, weights, self._scored(), strict=True):
            onehot = (label[..., None] == torch.tensor(scored, device=label.device)).to(logits.dtype)
            total = total + (sigmoid_focal_loss(logits, onehot) * each[..., None]).sum()
        return self.class_weight * total

    def _scored(self) -> Sequence[Sequence[int]]:
        """The labels that each group scores, in the order of its columns."""
        return self.groups if self.separate else [range(len(self.classes))] * len(self.groups)

    @torch.no_grad()
    def decode(self, output: AnchorGroupsOutput) -> list[Detections]:
        """Detections of each frame: with `separate` class by class, each best first; otherwise as an `AnchorHead`."""
        return [self._decode_frame(output, frame) for frame in range(len(output.codes))]

    def _decode_frame(self, output: AnchorGroupsOutput, frame: int) -> Detections:
        found: list[Candidates] = []
        before = 0
        for part, scored in zip(output.logits, self._scored(), strict=True):
            for logits, label in self._columns(part[frame], scored):
                scores = logits.sigmoid()
                row = (scores >= self.score_threshold).nonzero()[:, 0]
                found.append((self.boxes(output, frame, before + row), scores[row], label[row], logits[row]))
            before += part.shape[1]
        if not self.separate:
            found = [_joined(found)]
        boxes, scores, labels, logits = _joined([self._suppressed(*candidates) for candidates in found])
        return Detections(boxes, logits if self.raw_scores else scores, labels, self.classes)

    def _columns(self, logits: Tensor, scored: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Logits [N] and labels int64 [N] of a group's anchors: those of each class, or of every anchor's best one."""
        if not self.separate:
            best = logits.max(1)
            return [(best.values, best.indices)]
        return [
            (logits[:, k], torch.full((len(logits),), label, device=logits.device)) for k, label in enumerate(scored)
        ]

    def _suppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor, logits: Tensor) -> Candidates:
        kept = suppress(boxes, scores, labels, self.nms, len(self.classes))
        return boxes[kept], scores[kept], labels[kept], logits[kept]

    def boxes(self, output: AnchorGroupsOutput, frame: int, anchor: Tensor) -> Tensor:
        """Predicted boxes of chosen anchors.

        Args:
            output: of `forward`.
            frame: which frame of the batch.
            anchor: int64 [K], rows of the anchors.

        Returns:
            [K, 7 or 9], headings in the sector that the direction classifier says.
        """
        boxes = self.coder.decode(output.codes[frame, anchor], output.anchors[anchor])
        if output.directions is None:
            return boxes
        sector = output.directions[frame, anchor].argmax(1)
        limits = (self.direction_bins, self.direction_offset, self.direction_limit_offset)
        heading = apply_direction_bin(boxes[:, 6], sector, *limits)
        return torch.cat([boxes[:, :6], heading[:, None], boxes[:, 7:]], 1)


Candidates = tuple[Tensor, Tensor, Tensor, Tensor]  # boxes, scores, labels, and the logits that the scores are of


def _joined(parts: Sequence[Candidates]) -> Candidates:
    boxes, scores, labels, logits = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return boxes, scores, labels, logits
