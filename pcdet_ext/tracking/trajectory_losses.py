"""Targets and losses of TrajectoryFormer: which hypotheses are right, and what corrects them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pcdet_ext.models.heads.losses import corner_loss
from pcdet_ext.models.targets.box_coding import ResidualCoder
from pcdet_ext.tracking.trajectory_geometry import from_local, iou_3d, rotated
from pcdet_ext.tracking.trajectory_network import Judged

WRONG, RIGHT = 0.25, 0.75  # 3-D IoU below which a hypothesis is wrong, and above which it is right
REAL = 0.5  # 3-D IoU with an annotation from which a track is trained, and a hypothesis corrected
BETA = 1 / 9  # of the smooth L1 loss


@dataclass(frozen=True, eq=False)
class HypothesisTargets:
    """Targets of M = B * N * H hypotheses.

    quality: [M], from 0 (wrong) to 1 (right); real: bool [B * N], tracks whose predicted box is an annotated object;
    corrected: bool [M], hypotheses that are; boxes: [M, 7], the annotated box of each; codes: [M, 7], what corrects it.
    """

    quality: Tensor
    real: Tensor
    corrected: Tensor
    boxes: Tensor
    codes: Tensor


def targets(hypotheses: Tensor, annotations: Sequence[Tensor], published: bool = False) -> HypothesisTargets:
    """What the network should say.

    A hypothesis is as good as it overlaps the object that the first hypothesis of its track overlaps most.

    Args:
        hypotheses: [B, N, H, 7 or more], boxes, the predicted one first.
        annotations: of each sample, [G, 7].
        published: see `trajectory_geometry.iou_3d`.
    """
    parts = [_matched(own, true, published) for own, true in zip(hypotheses, annotations, strict=True)]
    quality, real, best, boxes = (torch.cat(column) for column in zip(*parts, strict=True))
    codes = _codes(hypotheses.flatten(0, 2)[:, :7], boxes)
    return HypothesisTargets(quality.clamp(0, 1), real, best > REAL, boxes, codes)


def _matched(own: Tensor, annotations: Tensor, published: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tracks, count = own.shape[:2]
    if not len(annotations):
        none = own.new_zeros(tracks * count)
        return none, none.new_zeros(tracks, dtype=torch.bool), none, own.new_zeros(tracks * count, 7)
    overlap = iou_3d(own.flatten(0, 1), annotations, published).view(tracks, count, -1)
    first, place = overlap[:, 0].max(1)
    quality = overlap.gather(2, place[:, None, None].expand(-1, count, 1))[..., 0]
    best, nearest = overlap.flatten(0, 1).max(1)
    return ((quality - WRONG) / (RIGHT - WRONG)).flatten(), first > REAL, best, annotations[nearest]


def _codes(own: Tensor, boxes: Tensor) -> Tensor:
    """Codes [M, 7] of boxes in the coordinates of hypotheses [M, 7], headings up to half a turn, within ±π/2."""
    turn = own[:, 6] % (2 * math.pi)
    place = rotated(boxes[:, :3] - own[:, :3], -turn)
    heading = (boxes[:, 6] % (2 * math.pi) - turn) % (2 * math.pi)
    opposite = (heading > math.pi / 2) & (heading < 1.5 * math.pi)
    heading = torch.where(opposite, (heading + math.pi) % (2 * math.pi), heading)
    heading = torch.where(heading > math.pi, heading - 2 * math.pi, heading).clamp(-math.pi / 2, math.pi / 2)
    return ResidualCoder().encode(torch.cat([place, boxes[:, 3:6], heading[:, None]], 1), _at_origin(own))


def _at_origin(boxes: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(boxes[:, :3]), boxes[:, 3:6], torch.zeros_like(boxes[:, 6:7])], 1)


def corrected(hypotheses: Tensor, codes: Tensor) -> Tensor:
    """Boxes [M, 7] of hypotheses [M, 7 or more] and codes [M, 7] that correct them."""
    own = hypotheses[:, :7]
    decoded = ResidualCoder().decode(codes, _at_origin(own))
    moved = from_local(decoded, own)
    return torch.cat([moved[:, :2], moved[:, 2:3] + own[:, 2:3], moved[:, 3:]], 1)


def losses(judged: Judged, hypotheses: Tensor, wanted: HypothesisTargets) -> dict[str, Tensor]:
    """Losses by name, in which all layers count alike.

    "points" is of every hypothesis; "boxes" and "joint" are of tracks that are real objects; "codes" and "corners" are
    of hypotheses that are corrected. A loss of which there is nothing in the batch is left out.

    Args:
        judged: of the network.
        hypotheses: [M, 7 or more], boxes.
        wanted: see `targets`.
    """
    layers, count = len(judged.point_logits), judged.box_logits.shape[1]
    quality = wanted.quality.view(-1, count)[wanted.real]
    entropy = functional.binary_cross_entropy_with_logits
    found = {}
    if len(wanted.quality):
        found["points"] = entropy(judged.point_logits, wanted.quality.expand(layers, -1))
    if len(quality):
        found["boxes"] = entropy(judged.box_logits[wanted.real], quality)
        found["joint"] = entropy(judged.joint_logits[:, wanted.real], quality.expand(layers, -1, -1))
    if bool(wanted.corrected.any()):
        found |= _correction_losses(judged, hypotheses, wanted)
    return found


def _correction_losses(judged: Judged, hypotheses: Tensor, wanted: HypothesisTargets) -> dict[str, Tensor]:
    layers, chosen = len(judged.point_logits), wanted.corrected
    codes = judged.corrections[:, chosen]
    wrong = functional.smooth_l1_loss(codes, wanted.codes[chosen].expand(layers, -1, -1), reduction="sum", beta=BETA)
    boxes = corrected(hypotheses[chosen].repeat(layers, 1), codes.flatten(0, 1))
    corners = corner_loss(boxes, wanted.boxes[chosen].repeat(layers, 1)).mean()
    return {"codes": wrong / (layers * int(chosen.sum())), "corners": corners}
