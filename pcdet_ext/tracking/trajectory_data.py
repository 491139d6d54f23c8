"""Detections of the last frames, and the trajectories and hypotheses that are made of them.

Everything of a sample is in the axes of the vehicle at its last frame t. Boxes have 7 columns, those of a trajectory an
eighth: seconds before t.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from pcdet_ext.ops.boxes import nms
from pcdet_ext.tracking.trajectory_geometry import PERIOD, iou_3d, is_empty

SAME_OBJECT = 0.5  # 3-D IoU from which a box of the frame before continues a trajectory backwards
MOST_COMPARED, MOST_KEPT = 4096, 500


@dataclass(frozen=True, eq=False)
class DetectionBlocks:
    """Detections of several frames of each sample, padded with empty boxes.

    boxes: float32 [B, F, N, 7]; velocity: [B, F, N, 2], metres per second; score: [B, F, N]; label: [B, F, N]. Block 0
    holds the frame t, block 1 the frame t - 1 moved on to t, block 2 the frame t - 1 as it was, then t - 2 and so on.
    """

    boxes: Tensor
    velocity: Tensor
    score: Tensor
    label: Tensor

    def to(self, device: torch.device) -> DetectionBlocks:
        """The same on a device."""
        return DetectionBlocks(*(column.to(device) for column in vars(self).values()))


def organised(
    samples: Sequence[DetectionBlocks], threshold: float, score_threshold: float, published: bool = False
) -> DetectionBlocks:
    """Detections of a batch, best first, without those that a better one overlaps.

    Args:
        samples: one batch element each ([1, F, N, …]), with the same number F of blocks.
        threshold: overlap from above that removes the box with the lower score.
        score_threshold: lowest score that is kept; padding, whose score is 0, is kept where this is 0.
        published: do what the published code does where that is a mistake: pad the samples behind their last block
            instead of within each block, so that the blocks of samples with fewer boxes than the largest begin in wrong
            places; and find overlaps with its kernel, see `trajectory_geometry.iou_3d`.
    """
    kept = [
        [_suppressed(sample, i, threshold, score_threshold, published) for i in range(sample.boxes.shape[1])]
        for sample in samples
    ]
    blocks = len(kept[0])
    own = [max(len(block) for block in sample) for sample in kept]
    most = max(own)
    rows = []
    for sample, count in zip(kept, own, strict=True):
        width = count if published else most
        flat = torch.cat([functional.pad(block, (0, 0, 0, width - len(block))) for block in sample])
        rows.append(functional.pad(flat, (0, 0, 0, blocks * most - len(flat))))
    table = torch.stack(rows).unflatten(1, (blocks, most))
    return DetectionBlocks(table[..., :7], table[..., 7:9], table[..., 9], table[..., 10])


def _suppressed(
    sample: DetectionBlocks, block: int, threshold: float, score_threshold: float, published: bool
) -> Tensor:
    """Rows [K, 11] of one block: box, velocity, score, label."""
    columns = (sample.boxes, sample.velocity, sample.score[..., None], sample.label[..., None])
    rows = torch.cat([column[0, block].float() for column in columns], 1)
    rows = rows[rows[:, 9] >= score_threshold]
    return rows[nms(rows[:, :7], rows[:, 9], threshold, pre_max=MOST_COMPARED, post_max=MOST_KEPT, published=published)]


def trajectories(blocks: DetectionBlocks, published: bool = False) -> tuple[Tensor, Tensor]:
    """The boxes that each box of block 1 was before.

    A box, moved back by its velocity, continues as the box of the next block that overlaps it most, if by half; where
    none does, the trajectory is empty from there on.

    Args:
        blocks: at least two of each sample.
        published: see `trajectory_geometry.iou_3d`.

    Returns:
        Boxes [B, F - 1, N, 8], the last column being the time; their velocities [B, F - 1, N, 2].
    """
    boxes, velocity = [blocks.boxes[:, 1]], [blocks.velocity[:, 1]]
    for i in range(2, blocks.boxes.shape[1]):
        back = boxes[-1].clone()
        back[..., :2] -= PERIOD * velocity[-1]
        pairs = [_continued(back[b], blocks.boxes[b, i], blocks.velocity[b, i], published) for b in range(len(back))]
        boxes.append(torch.stack([box for box, _ in pairs]))
        velocity.append(torch.stack([speed for _, speed in pairs]))
    rows = torch.stack(boxes, 1)
    time = PERIOD * torch.arange(rows.shape[1], device=rows.device, dtype=rows.dtype)
    return with_time(rows, time[None, :, None].expand(rows.shape[:3])), torch.stack(velocity, 1)


def _continued(back: Tensor, boxes: Tensor, velocity: Tensor, published: bool) -> tuple[Tensor, Tensor]:
    if not len(boxes):
        return torch.zeros_like(back), torch.zeros_like(back[:, :2])
    overlap, place = iou_3d(back, boxes, published).max(1)
    found = (overlap >= SAME_OBJECT)[:, None]
    return torch.where(found, boxes[place], 0.0), torch.where(found, velocity[place], 0.0)


def with_time(boxes: Tensor, time: Tensor | float) -> Tensor:
    """Boxes [..., 8] of boxes [..., 7 or more] whose last column is a time [...] or one time for all, seconds."""
    column = torch.as_tensor(time, dtype=boxes.dtype, device=boxes.device).expand(boxes.shape[:-1])
    return torch.cat([boxes[..., :7], column[..., None]], -1)


def nearest_detection(tracks: Tensor, detections: Tensor, distance: float) -> Tensor:
    """The detection that is nearest to each track from above, int64 [B, N], -1 where none is near.

    Args:
        tracks: [B, N, 7 or more].
        detections: [B, M, 7].
        distance: metres, which the nearest one must be closer than.
    """
    if not detections.shape[1]:
        return torch.full(tracks.shape[:2], -1, device=tracks.device)
    gaps, place = (tracks[:, :, None, :2] - detections[:, None, :, :2]).norm(dim=-1).min(2)
    return torch.where(gaps < distance, place, -1)


def rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Rows [B, N, C] of values [B, M, C] at places int64 [B, N], zeros where a place is -1."""
    padded = torch.cat([values.new_zeros(len(values), 1, values.shape[2]), values], 1)
    return padded.gather(1, (places + 1)[..., None].expand(-1, -1, values.shape[2]))


def with_hypotheses(hypotheses: Tensor, history: Tensor) -> Tensor:
    """Each hypothesis before the history of its track.

    Args:
        hypotheses: [B, N, H, 7 or more], boxes at the time 0.
        history: [B, T, N, 8].

    Returns:
        [B, T + 1, N, H, 8].
    """
    count = hypotheses.shape[2]
    before = history[:, :, :, None].expand(-1, -1, -1, count, -1)
    return torch.cat([with_time(hypotheses, 0.0)[:, None], before], 1)


def present(boxes: Tensor) -> Tensor:
    """Boxes with zeros instead of those that are empty."""
    return boxes.masked_fill(is_empty(boxes)[..., None], 0.0)
