"""Where tracks go: the motion predictor of TrajectoryFormer, its targets and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from pcdet_ext.tracking.trajectory_data import (
    DetectionBlocks,
    nearest_detection,
    rows_at,
    trajectories,
    with_hypotheses,
    with_time,
)
from pcdet_ext.tracking.trajectory_encoders import MotionEncoder
from pcdet_ext.tracking.trajectory_geometry import PERIOD, iou_3d, is_empty, to_local, velocity_to_local

FEATURES = 6  # of a box of the past: x, y, heading, vx, vy, time
MOVED = [0, 1, 6]  # columns of a box that are predicted: x, y, heading
MATCHED = 0.5  # 3-D IoU with an annotation above which a hypothesis is trained
BETA = 1 / 9  # of the smooth L1 loss


@dataclass(frozen=True, eq=False)
class Motion:
    """What is predicted: boxes [B, 10, N, H, 8] of the next ten frames, in the coordinates of each hypothesis' own box
    at the time 0; hypotheses [B, T, N, H, 8], trajectories in the axes of the vehicle."""

    future: Tensor
    hypotheses: Tensor


def predicted(encoder: MotionEncoder, hypotheses: Tensor, velocity: Tensor, initial: Tensor) -> Tensor:
    """Boxes of the next frames.

    Args:
        encoder: with 3 outputs for each frame.
        hypotheses: [B, T, N, H, 8], boxes at the times 0, 0.1 s ago and so on.
        velocity: [B, N, H, 2], of the box at the time 0 (m/s).
        initial: [B, N, H, 2], by which the box is moved on before what was learnt is added.

    Returns:
        [B, frames, N, H, 8] in the coordinates of the box at the time 0.
    """
    now = hypotheses[:, :1]
    local = to_local(hypotheses, now)
    speed = velocity_to_local(PERIOD * velocity[:, None].expand(*hypotheses.shape[:-1], 2), hypotheses, now)
    rows = torch.cat([local[..., MOVED], speed, local[..., 7:8]], -1)
    counts = ~is_empty(now).expand(rows.shape[:-1])
    found = encoder(rows.movedim(1, 3), counts.movedim(1, 3)).unflatten(-1, (-1, len(MOVED))).movedim(-2, 1)
    ahead = PERIOD * torch.arange(1, found.shape[1] + 1, device=found.device, dtype=found.dtype)
    future = now[..., :7].expand(-1, found.shape[1], -1, -1, -1).clone()
    future[..., :2] += ahead[None, :, None, None, None] * initial[:, None]
    local = to_local(future, now)
    change = torch.zeros_like(local).index_copy(-1, torch.tensor(MOVED, device=local.device), found)
    return with_time(local + change, 0.0)


class MotionPredictor(nn.Module):
    """Learns where boxes go (`velboxembed` has the published name).

    Args:
        hidden: width.
        frames: how many are predicted.
        distance: metres within which a detection is a hypothesis of a track.
        encoder: one with three outputs for each frame, which is trained in its place; then `hidden` counts for nothing.
        published: what the published code does where that is a mistake: a nearest detection gets the velocity of the
            detection that has the number of the track, which is another one; and overlaps are found with its kernel,
            see `trajectory_geometry.iou_3d`.
    """

    def __init__(
        self,
        hidden: int = 256,
        frames: int = 10,
        distance: float = 2.0,
        encoder: MotionEncoder | None = None,
        published: bool = False,
    ) -> None:
        super().__init__()
        self.distance, self.published = distance, published
        self.velboxembed = encoder or MotionEncoder(FEATURES, hidden, len(MOVED) * frames)

    def forward(self, blocks: DetectionBlocks) -> Motion:
        """Predict from the detections of the frames t, t - 1, …; two hypotheses for each box of the frame t - 1: where
        its velocity moved it, and the nearest detection."""
        boxes, velocity = trajectories(blocks, self.published)
        place = nearest_detection(boxes[:, 0], blocks.boxes[:, 0], self.distance)
        found = rows_at(blocks.boxes[:, 0], place)
        hypotheses = with_hypotheses(torch.stack([boxes[:, 0, :, :7], found], 2), boxes[:, 1:])
        own = blocks.velocity[:, 0] if self.published else rows_at(blocks.velocity[:, 0], place)
        speed = torch.stack([blocks.velocity[:, 1], own], 2)
        initial = velocity[:, 0, :, None].expand_as(speed)
        return Motion(predicted(self.velboxembed, hypotheses, speed, initial), hypotheses)


def motion_loss(
    motion: Motion, annotations: list[Tensor], futures: list[Tensor], published: bool = False
) -> Tensor | None:
    """Smooth L1 of places and headings, for hypotheses that are an annotated object.

    Args:
        motion: of the predictor.
        annotations: of each sample [G, 7], at the time 0.
        futures: of each sample [frames, G, 7], empty where the object is not annotated.
        published: see `trajectory_geometry.iou_3d`.

    Returns:
        Its mean over hypotheses and frames that have a target; None where none has.
    """
    pairs = zip(annotations, futures, strict=True)
    parts = [_targets(motion.hypotheses[b, 0], *pair, published) for b, pair in enumerate(pairs)]
    target, valid = (torch.stack(column) for column in zip(*parts, strict=True))
    if not bool(valid.any()):
        return None
    wrong = functional.smooth_l1_loss(motion.future[..., MOVED], target[..., MOVED], reduction="none", beta=BETA)
    return wrong.sum(-1)[valid].sum() / valid.sum()


def _targets(now: Tensor, annotations: Tensor, futures: Tensor, published: bool) -> tuple[Tensor, Tensor]:
    """Boxes [frames, N, H, 7] in the coordinates of the annotated box now, and where they count [frames, N, H]."""
    shape = (len(futures), *now.shape[:2])
    if not len(annotations):
        return now.new_zeros(*shape, 7), torch.zeros(shape, dtype=torch.bool, device=now.device)
    overlap, place = iou_3d(now.flatten(0, 1), annotations, published).max(1)
    own = place.view(now.shape[:2])[:, 0]
    local = to_local(futures[:, own], annotations[own])
    there = ~is_empty(futures[:, own])
    valid = there[..., None] & (overlap.view(now.shape[:2]) > MATCHED)
    return local[:, :, None].expand(*shape, 7), valid
