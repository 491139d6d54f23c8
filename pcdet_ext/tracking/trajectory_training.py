"""One step of TrajectoryFormer's training: hypotheses of each track out of the detections of the last frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.tracking.trajectory_data import (
    DetectionBlocks,
    nearest_detection,
    organised,
    rows_at,
    trajectories,
    with_hypotheses,
)
from pcdet_ext.tracking.trajectory_geometry import PERIOD, from_local, iou_3d, is_empty
from pcdet_ext.tracking.trajectory_losses import losses, targets
from pcdet_ext.tracking.trajectory_motion import predicted
from pcdet_ext.tracking.trajectory_network import Judged, TrajectoryNetwork
from pcdet_ext.tracking.trajectory_points import sampled_points

AUGMENTED = 2  # hypotheses of each track that are drawn
DRAWS = 20
SHIFT = 0.5  # metres
SCALES_AND_TURNS = (  # shares by which sizes change, and radians, at most; one pair is drawn
    (0.1, math.pi / 12),
    (0.15, math.pi / 12),
    (0.15, math.pi / 9),
    (0.15, math.pi / 6),
    (0.15, math.pi / 3),
)
DIFFERENT = 0.5  # mean 3-D IoU below which drawn boxes are kept


@dataclass(frozen=True, eq=False)
class TrainingSample:
    """One frame t to learn from.

    blocks: detections, one batch element, see `DetectionBlocks`; points: float32 [P, 6], see
    `trajectory_points.sampled_points`; annotations: float32 [G, 7], boxes of objects at t.
    """

    blocks: DetectionBlocks
    points: Tensor
    annotations: Tensor


@dataclass(frozen=True, eq=False)
class TrainingOptions:
    """How hypotheses are made for training.

    nms, score_threshold: of the detections of each frame, see `trajectory_data.organised`; distance: metres within
    which a detection is a hypothesis of a track; points: of each hypothesis; published: what the published code does
    where that is a mistake, see `organised`, `trajectory_motion.MotionPredictor` and `predicted_tracks`.
    """

    nms: float = 0.1
    score_threshold: float = 0.0
    distance: float = 2.0
    points: int = 128
    published: bool = False


@dataclass(frozen=True, eq=False)
class TrainingStep:
    """What one step gives: judged, of the network; losses, by name, see `trajectory_losses.losses`."""

    judged: Judged
    losses: dict[str, Tensor]


def predicted_tracks(
    network: TrajectoryNetwork, blocks: DetectionBlocks, published: bool = False
) -> tuple[Tensor, Tensor]:
    """Where the motion predictor expects the boxes of the frame t - 1 to be at t, as when objects are tracked.

    Nothing is learnt from it, and the network is not changed by it.

    Args:
        network: whose motion predictor is asked.
        blocks: detections, three blocks at least.
        published: predict from the boxes of block 1, which have already been moved on to t, so that the prediction is
            for 0.1 s after the annotations; and see `trajectory_geometry.iou_3d`.

    Returns:
        Boxes [B, N, 7], one of each row of block 1, and their history [B, F - 2, N, 8].
    """
    boxes, velocity = trajectories(blocks, published)
    before = boxes[:, 1:]
    speed = velocity[:, 0, :, None]
    if not published:
        boxes = _at_frame_before(boxes, velocity[:, 0])
    encoder = network.velboxembed
    mode = encoder.training
    with torch.no_grad():
        future = predicted(encoder.eval(), boxes[:, :, :, None], speed, speed)[:, 0, :, 0]
    encoder.train(mode)
    now = boxes[:, 0]
    return from_local(future, now)[..., :7].masked_fill(is_empty(now)[..., None], 0.0), before


def _at_frame_before(boxes: Tensor, velocity: Tensor) -> Tensor:
    """Trajectories [B, F - 2, N, 8] that end at t - 1.

    Args:
        boxes: trajectories [B, F - 1, N, 8], of which the first boxes have been moved on to t.
        velocity: [B, N, 2], by which they were.
    """
    first = boxes[:, 0].clone()
    first[..., :2] -= PERIOD * velocity
    rows = torch.cat([first[:, None], boxes[:, 2:]], 1)
    return torch.cat([rows[..., :7], boxes[:, :-1, :, 7:]], -1)


def augmented(boxes: Tensor, random: np.random.Generator, published: bool = False) -> Tensor:
    """Hypotheses near boxes: all of a sample are shifted, scaled and turned alike.

    Draws that leave the boxes much where they were are not used; where too few others are found, the boxes themselves
    are the hypotheses.

    Args:
        boxes: [N, 7], empty ones included.
        random: what draws.
        published: see `trajectory_geometry.iou_3d`.

    Returns:
        [N, 2, 7].
    """
    found: list[Tensor] = []
    real = ~is_empty(boxes)
    for _ in range(DRAWS):
        if len(found) == AUGMENTED or not bool(real.any()):
            break
        drawn = _drawn(boxes, random)
        if float(iou_3d(drawn[real], boxes[real], published).amax(1).mean()) < DIFFERENT:
            found.append(drawn.masked_fill(~real[:, None], 0.0))
    return torch.stack((found if len(found) == AUGMENTED else [boxes] * AUGMENTED), 1)


def _drawn(boxes: Tensor, random: np.random.Generator) -> Tensor:
    scale, turn = SCALES_AND_TURNS[random.integers(len(SCALES_AND_TURNS))]
    shift = random.uniform(-SHIFT, SHIFT, 3)
    change = random.uniform(1 - scale, 1 + scale, 3)
    parts = boxes[:, :3] + boxes.new_tensor(shift), boxes[:, 3:6] * boxes.new_tensor(change)
    return torch.cat([*parts, boxes[:, 6:7] + float(random.uniform(-turn, turn))], 1)


def training_step(
    network: TrajectoryNetwork,
    samples: Sequence[TrainingSample],
    options: TrainingOptions,
    random: np.random.Generator | None = None,
    drawn: Tensor | None = None,
) -> TrainingStep:
    """Hypotheses of a batch, judged, and the losses.

    Each track has four: where it is predicted to be, two near that place, and the nearest detection.

    Args:
        network: to train.
        samples: of the batch.
        options: see there.
        random: of the hypotheses that are drawn.
        drawn: these hypotheses themselves, [B, N, 2, 7], instead of `random`.

    Raises:
        ValueError: neither `random` nor `drawn` is given.
    """
    blocks = organised([s.blocks for s in samples], options.nms, options.score_threshold, options.published)
    tracks, history = predicted_tracks(network, blocks, options.published)
    if drawn is None:
        if random is None:
            raise ValueError("hypotheses are drawn with a generator, or given")
        drawn = torch.stack([augmented(boxes, random, options.published) for boxes in tracks])
    detections = rows_at(blocks.boxes[:, 0], nearest_detection(tracks, blocks.boxes[:, 0], options.distance))
    hypotheses = with_hypotheses(torch.cat([tracks[:, :, None], drawn, detections[:, :, None]], 2), history)
    boxes = hypotheses[:, 0]
    points = [
        sampled_points(s.points, own.flatten(0, 1), options.points) for s, own in zip(samples, boxes, strict=True)
    ]
    judged = network(hypotheses, torch.cat(points))
    wanted = targets(boxes, [s.annotations for s in samples], options.published)
    return TrainingStep(judged, losses(judged, boxes.flatten(0, 2), wanted))
