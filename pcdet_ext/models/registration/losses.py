"""What makes descriptors of one place alike and those of different places different."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.models.registration.matching import mutual_nearest
from pcdet_ext.models.registration.network import DescribedPoints


def correspondence_loss(
    source: DescribedPoints,
    target: DescribedPoints,
    pose: Tensor,
    near: float,
    far: float,
    most: int = 512,
    temperature: float = 0.07,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cross-entropy of finding the partner of a point among those of others (InfoNCE; PointContrast, Xie et al. 2020).

    Points of two clouds that are nearest to each other, and at most `near` metres apart, are partners. Each of at most
    `most` points has to find its partner among the partners of all, by the cosine of their descriptors, and the other
    way round. Partners of others that lie less than `far` metres from the right one do not count against it.

    Args:
        source: points of one cloud.
        target: points of the other.
        pose: float [4, 4], from the frame of the source to that of the target.
        near: metres.
        far: metres.
        most: partners that are drawn at random.
        temperature: the cosines are divided by it.
        generator: of the random numbers, by default torch's.

    Returns:
        A scalar, 0 where no points are partners.
    """
    moved = source.points @ pose[:3, :3].T.to(source.points) + pose[:3, 3].to(source.points)
    rows, partners = mutual_nearest(moved, target.points, near)
    chosen = torch.randperm(len(rows), generator=generator)[:most].to(rows.device)
    rows, partners = rows[chosen], partners[chosen]
    if not len(rows):
        return source.descriptors.sum() * 0.0
    logits = source.descriptors[rows] @ target.descriptors[partners].T / temperature
    apart = torch.cdist(moved[rows], target.points[partners])
    own = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    logits = logits.masked_fill((apart < far) & ~own, -torch.inf)
    right = torch.arange(len(rows), device=rows.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
