"""Which locations of a sparse feature pyramid learn which object (FCAF3D, Rukhovich et al., ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_ext.models.targets.box_coding import usable_boxes


@dataclass(frozen=True, eq=False)
class LocationTargets:
    """What N locations should predict.

    box: int64 [N], the object of each, -1 for none; centerness: [N], how central it is in its object, from 0 at a face
    to 1 at the centre, 0 without an object.
    """

    box: Tensor
    centerness: Tensor


@dataclass(frozen=True)
class LocationAssigner:
    """Gives each object the most central locations inside of it, on one level of the pyramid.

    level_threshold: the level of an object is the coarsest up to which every level has at least so many locations
    inside of it; the finest where not even that has. center_threshold: so many locations learn an object at most.
    A location for which there are several objects learns the one of the least volume.
    """

    level_threshold: int = 27
    center_threshold: int = 18

    @torch.no_grad()
    def __call__(self, points: Tensor, level: Tensor, num_levels: int, boxes: Tensor) -> LocationTargets:
        """Targets of the locations of one frame.

        Args:
            points: locations [N, 3] in metres.
            level: int64 [N], 0 for the finest.
            num_levels: of the pyramid.
            boxes: objects [M, 7 or more]; those that are not finite, or have a size of zero, are nobody's.

        Returns:
            The object and the centre-ness of each location.
        """
        usable = usable_boxes(boxes).nonzero()[:, 0]
        if not len(usable) or not len(points):
            return LocationTargets(torch.full_like(level, -1), points.new_zeros(len(points)))
        chosen = boxes[usable, :7].to(points)
        distances = face_distances(points, chosen)
        inside = distances.flatten(2).amin(2) > 0
        counts = torch.stack([inside[level == number].sum(0) for number in range(num_levels)])
        enough = (counts >= self.level_threshold).long().cumprod(0).sum(0)  # levels, from the finest on
        allowed = inside & (level[:, None] == (enough - 1).clamp_min(0))
        centrality = torch.where(allowed, centerness(distances), -1)
        allowed = allowed & (centrality > self._least(centrality))
        return _smallest(allowed, centrality, chosen[:, 3:6].prod(1), usable)

    def _least(self, centrality: Tensor) -> Tensor:
        """The centre-ness [M] that locations must exceed, that of the first of each object which is one too many."""
        if len(centrality) <= self.center_threshold:
            return centrality.new_full((centrality.shape[1],), -1)
        return centrality.topk(self.center_threshold + 1, dim=0).values[-1]


def _smallest(allowed: Tensor, centrality: Tensor, volume: Tensor, numbers: Tensor) -> LocationTargets:
    """Each location with the smallest of the objects that it may learn; of equal ones the first.

    Args:
        allowed: bool [N, M].
        centrality: [N, M].
        volume: of the objects [M].
        numbers: int64 [M], what the objects are called.
    """
    order = volume.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    best = torch.where(allowed, rank, len(order)).amin(1)
    found = best < len(order)
    column = order[best.clamp(max=len(order) - 1)]
    own = centrality.gather(1, column[:, None])[:, 0]
    return LocationTargets(torch.where(found, numbers[column], -1), torch.where(found, own, 0))


def face_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """How far points lie on the inner side of the faces of boxes, negative outside.

    Args:
        points: [N, 3] in metres.
        boxes: [M, 7 or more].

    Returns:
        [N, M, 3, 2] in metres: along the length, width and height of a box, from its lower and to its upper face.
    """
    offset = points[:, None] - boxes[:, :3]
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    along = offset[..., 0] * cos + offset[..., 1] * sin
    across = offset[..., 1] * cos - offset[..., 0] * sin
    own = torch.stack([along, across, offset[..., 2]], 2)
    half = boxes[:, 3:6] / 2
    return torch.stack([half + own, half - own], 3)


def centerness(distances: Tensor) -> Tensor:
    """Root of the product over the axes of the distance of the nearer face per that of the farther one.

    After FCOS (Tian et al., ICCV 2019, equation 3), in three dimensions.

    Args:
        distances: [..., 3, 2] of `face_distances`.

    Returns:
        [...], 1 at the centre of a box; NaN or meaningless outside of it.
    """
    nearer, farther = distances.amin(-1), distances.amax(-1)
    return (nearer / farther).prod(-1).sqrt()
