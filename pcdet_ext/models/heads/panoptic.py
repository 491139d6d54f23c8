"""Classes of points, and which points are one object: they point at its centre, and what meets there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from pcdet_ext.config import suggest
from pcdet_ext.models.heads.base import PointFeatures
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.segmentation import PointOutput, PointSegmentationHead, per_point
from pcdet_ext.ranges import check_positive, check_range
from pcdet_ext.structures import Array, PointLabels, Targets, tensor_of

NEIGHBOURS = ((0, 1), (1, -1), (1, 0), (1, 1))  # half of the eight cells around one: each pair is looked at once
FARTHEST_CELL = 1 << 30  # so that the keys of cells, row times width plus column, fit in 64 bits


@dataclass(frozen=True, eq=False)
class PanopticOutput(PointOutput):
    """With `offsets` [P, 2] from each point to the centre of its object, x and y, metres."""

    offsets: Tensor


@HEADS.register
class PanopticHead(PointSegmentationHead):
    """Panoptic segmentation of points: their classes, and objects as clusters of points moved to predicted centres.

    The recipe of Panoptic-PolarNet and DS-Net (Zhou et al., Hong et al., CVPR 2021) with clusters on a grid: points of
    things, moved by their offsets, that lie in neighbouring cells are one object, whose class is that of most of them.

    Args:
        in_channels: see `PointSegmentationHead`.
        things: the classes whose objects are told apart.
        point_classes: as there.
        hidden_channels: as there.
        class_weights: as there.
        lovasz_weight: as there.
        own_channels: as there.
        offset_weight: weight of the loss of the offsets.
        cell: side of the cells that moved points are gathered in, metres.
        min_points: clusters with fewer points are no object.
        classes: of the data.
        num_point_features: columns of the points; x, y, z first.

    Raises:
        ValueError: for a thing that is no class, numbers that are not positive, and as `PointSegmentationHead`.
    """

    is_thing: Tensor

    def __init__(
        self,
        in_channels: int,
        things: Sequence[str],
        point_classes: Sequence[str] | None = None,
        hidden_channels: Sequence[int] = (64,),
        class_weights: Sequence[float] | None = None,
        lovasz_weight: float = 0.0,
        own_channels: Sequence[int] = (),
        offset_weight: float = 0.2,
        cell: float = 0.5,
        min_points: int = 5,
        classes: Sequence[str] = (),
        num_point_features: int = 0,
    ) -> None:
        given = (point_classes, hidden_channels, class_weights, lovasz_weight, own_channels)
        super().__init__(in_channels, *given, classes, num_point_features)
        for name in things:
            if name not in self.class_names:
                raise ValueError(f"things: {name!r} is no class of points{suggest(name, self.class_names)}")
        check_positive(cell=cell)
        check_range(0, offset_weight=offset_weight)
        check_range(1, min_points=min_points)
        self.things, self.offset_weight, self.cell, self.min_points = tuple(things), offset_weight, cell, min_points
        self.offsets = nn.Linear(self.out_channels, 2)
        thing = torch.tensor([name in self.things for name in self.class_names])
        self.register_buffer("is_thing", torch.cat([thing, thing.new_zeros(1)]), persistent=False)  # -1 takes the last

    def forward(self, points: PointFeatures) -> PanopticOutput:
        """Logits and offsets of each point."""
        shared = self.layers[:-1](self.joined(points))
        return PanopticOutput(self.layers[-1](shared).float(), points, self.offsets(shared).float())

    def loss(self, output: PointOutput, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """As in `PointSegmentationHead`, and "offsets": mean distance of predicted and true centres, x plus y, metres.

        Raises ValueError for a frame without instances of points too.
        """
        losses = super().loss(output, targets)
        if not isinstance(output, PanopticOutput):
            raise TypeError(f"the output of this head is needed, got {type(output).__name__}")
        labels = self._labels(output.points, targets)
        instances = per_point(output.points, targets, "point_instances", 0)
        counted = self.is_thing[labels] & (instances > 0) & output.points.inside
        wanted = self._to_centres(output.points, labels, instances, counted)
        error = (output.offsets[counted] - wanted).abs().sum(1)
        offsets = error.mean() if len(error) else output.offsets.sum() * 0
        return losses | {"offsets": self.offset_weight * offsets}

    @torch.no_grad()
    def decode(self, output: PointOutput) -> list[PointLabels]:
        """The class of each point and the number of its object, frame by frame; objects are numbered from 1.

        All points of an object have the class of most of them. Points of things that are in no object keep theirs.
        """
        if not isinstance(output, PanopticOutput):
            raise TypeError(f"the output of this head is needed, got {type(output).__name__}")
        found = []
        centres = _columns(output.points)[:, :2] + output.offsets
        for frame, found_labels in enumerate(super().decode(output)):
            mine, labels = output.points.batch_index == frame, tensor_of(found_labels.labels)
            instances = torch.zeros_like(labels)
            thing = self.is_thing[labels]
            groups = grid_clusters(centres[mine][thing].cpu().numpy().astype(np.float64), self.cell, self.min_points)
            instances[thing] = torch.from_numpy(groups).to(instances)
            found.append(replace(found_labels, labels=self._voted(labels, instances), instances=instances))
        return found

    def _to_centres(self, points: PointFeatures, labels: Tensor, instances: Tensor, counted: Tensor) -> Tensor:
        """Offsets [K, 2] from the points `counted` to the middle of their objects' points."""
        xy = _columns(points)[counted, :2].float()
        keys = torch.stack([points.batch_index[counted], labels[counted], instances[counted]], 1)
        unique, owner, sizes = keys.unique(dim=0, return_inverse=True, return_counts=True)
        centres = xy.new_zeros(len(unique), 2).index_add(0, owner, xy) / sizes[:, None]
        return centres[owner] - xy

    def _voted(self, labels: Tensor, instances: Tensor) -> Tensor:
        """Labels [N] with one class for each object, that of most of its points, the first of equally frequent ones."""
        inside = instances > 0
        count, classes = int(instances.max()) + 1 if len(instances) else 1, len(self.class_names)
        votes = torch.bincount(instances[inside] * classes + labels[inside], minlength=count * classes)
        winners = torch.from_numpy(votes.view(count, classes).cpu().numpy().argmax(1)).to(labels)
        return torch.where(inside, winners[instances], labels)


def grid_clusters(places: Array, cell: float, min_points: int = 1) -> Array:
    """Clusters of points that fall into neighbouring cells of a square grid.

    Args:
        places: float [N, 2], metres; points that are not finite, or that lie 2^30 cells or more from the origin, are in
            no cluster.
        cell: side of the cells, metres.
        min_points: clusters with fewer points are none.

    Returns:
        int64 [N], the cluster of each point from 1, by the lowest cell (in x, then y) of each; 0 for none. The clusters
        do not depend on the order of the points.
    """
    clusters: Array = np.zeros(len(places), np.int64)
    cells = np.floor(places / cell)
    known = (np.abs(cells) < FARTHEST_CELL).all(axis=1)  # false for NaN
    if known.any():
        clusters[known] = _connected(cells[known].astype(np.int64), min_points)
    return clusters


def _connected(cells: Array, min_points: int) -> Array:
    """The cluster int64 [N] of each of the points in cells int64 [N, 2] (see `grid_clusters`), N not 0."""
    cells, owner = np.unique(cells, axis=0, return_inverse=True)
    cells = cells - cells.min(axis=0) + 1
    owner = owner.reshape(-1)
    width = int(cells[:, 1].max()) + 2
    keys = cells @ np.array([width, 1])  # ascending, as the cells are
    pairs = []
    for dx, dy in NEIGHBOURS:
        wanted = keys + dx * width + dy
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = np.flatnonzero(keys[at] == wanted)
        pairs.append(np.stack([there, at[there]]))
    a, b = np.concatenate(pairs, axis=1)
    graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(len(keys), len(keys)))
    _, component = connected_components(graph, directed=False)
    sizes = np.bincount(component[owner])
    _, first = np.unique(component, return_index=True)
    large = sizes >= min_points
    order = np.argsort(first[large], kind="stable")
    number = np.zeros(len(sizes), np.int64)
    number[np.flatnonzero(large)[order]] = np.arange(1, large.sum() + 1)
    clusters: Array = number[component[owner]]
    return clusters


def _columns(points: PointFeatures) -> Tensor:
    if points.points is None:
        raise ValueError("objects are told apart by where points are: these features lack the columns of the points")
    return points.points
