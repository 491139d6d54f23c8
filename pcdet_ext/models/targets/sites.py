"""What heads that predict at occupied cells ("sites") learn: heatmaps over the sites, and codes of boxes.

SAFDNet's and LION's sparse head measures from the cell that an object's centre is in, VoxelNeXt's (Chen et al., CVPR
2023) from the centre itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.models.targets.box_coding import usable_boxes
from pcdet_ext.models.targets.heatmaps import gaussian_radius
from pcdet_ext.structures import SparseVoxels

Around = Literal["center", "nearest_site"]


@dataclass(frozen=True, eq=False)
class Sites:
    """The occupied cells of a batch of maps.

    frame: int64 [N]; cells: int64 [N, 2] as (x, y); map_size: cells (Y, X); batch_size: number of frames.
    """

    frame: Tensor
    cells: Tensor
    map_size: tuple[int, int]
    batch_size: int

    @staticmethod
    def of(voxels: SparseVoxels) -> Sites:
        """The cells of voxels in a plane. Raises ValueError for a grid of several layers."""
        if voxels.grid[0] != 1:
            raise ValueError(f"sites lie in a plane: the backbone's grid must have one layer in z, it is {voxels.grid}")
        coords = voxels.coords.long()
        return Sites(coords[:, 0], coords[:, [3, 2]], voxels.grid[1:], voxels.batch_size)

    @cached_property
    def rows(self) -> list[Tensor]:
        """The rows int64 [n] of each frame, ascending."""
        return [(self.frame == number).nonzero()[:, 0] for number in range(self.batch_size)]


@dataclass(frozen=True)
class SiteTargets:
    """What the sites should predict for K object slots per frame, unused ones zero.

    heatmap: [N, C]; index: int64 [B, K], the nearest site among those of its frame, and site: the same among all;
    mask: bool [B, K], whether the slot counts; codes: [B, K, 8 or 10] as (offset from the site's corner in cells, z,
    logarithms of the sizes, cos and sin of the heading, velocity); boxes: [B, K, 7 or 9].
    """

    heatmap: Tensor
    index: Tensor
    site: Tensor
    mask: Tensor
    codes: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class SiteAssigner:
    """How objects become targets of sites.

    Args:
        origin: (x, y) of the map's corner in metres.
        cell: (x, y) of a cell in metres.
        min_overlap: see `gaussian_radius`.
        min_radius: of the Gaussians, in cells.
        max_objects: of a frame and task, the first that count; None for all.
        around: what a Gaussian is drawn around, each gives one: the object's centre, its nearest site. None for one
            around the cell that the centre is in, cut off at √2 radii, and scaled so that the nearest sites reach 1.
        ratio: factor on the radius in the width of the Gaussians; with `around` alone.
        swapped_limits: centres are held inside of the map by its number of rows in x, and of columns in y.
        by_frame: the heatmap's rows are those of the first frame, then of the second, and so on, and not those of the
            sites: where sites are not sorted by frame, each learns another one's values, as published.
    """

    origin: Sequence[float]
    cell: Sequence[float]
    min_overlap: float = 0.1
    min_radius: int = 2
    max_objects: int | None = None
    around: Sequence[Around] | None = None
    ratio: float = 1.0
    swapped_limits: bool = False
    by_frame: bool = False

    def __call__(
        self, sites: Sites, boxes: Sequence[Tensor], labels: Sequence[Tensor], task: Sequence[int]
    ) -> SiteTargets:
        """Targets for the objects of the classes `task` (labels in channel order) in each frame.

        boxes: [G, 7 or 9] and labels: int64 [G] of each frame. Objects with a non-finite number or a size that is not
        positive are left out; with `around` they keep their slot, unused.
        """
        columns = boxes[0].shape[1] if boxes else 7
        heatmap = torch.zeros(len(sites.frame), len(task), device=sites.frame.device)
        frames = []
        for rows, box, label in zip(sites.rows, boxes, labels, strict=True):
            channel, objects = self._objects(box, label, task)
            frames.append(self._frame(sites, rows, channel, objects, heatmap))
        if self.by_frame:
            heatmap = torch.cat([heatmap[rows] for rows in sites.rows])
        pad = torch.nn.utils.rnn.pad_sequence
        index, site, mask, codes, found = (pad(list(parts), batch_first=True) for parts in zip(*frames, strict=True))
        return SiteTargets(heatmap, index, site, mask, codes, found.view(len(boxes), -1, columns))

    def _objects(self, boxes: Tensor, labels: Tensor, task: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Channels int64 [K] and boxes [K, columns] of a frame's objects of the task."""
        index, channel = (labels[:, None] == torch.tensor(task, device=labels.device)).nonzero().unbind(1)
        if self.around is None:
            usable = usable_boxes(boxes[index])
            index, channel = index[usable], channel[usable]
        return channel[: self.max_objects], boxes[index[: self.max_objects]]

    def _frame(
        self, sites: Sites, rows: Tensor, channel: Tensor, boxes: Tensor, heatmap: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Index, site, mask, code and box of each slot of one frame, whose sites in `heatmap` are filled in."""
        mask = usable_boxes(boxes) & (len(rows) > 0)
        safe = torch.where(mask[:, None], boxes, 1.0)
        center, cells = self._centers(safe, sites.map_size), sites.cells[rows].to(boxes.dtype)
        start = center.trunc() if self.around is None else center
        distance = _squared_distances(start, cells)
        index = distance.argmin(1) if len(rows) else channel.new_zeros(len(channel))
        nearest = cells[index] if len(rows) else torch.zeros_like(center)
        radius = gaussian_radius(safe[:, 3] / self.cell[0], safe[:, 4] / self.cell[1], self.min_overlap)
        radius = radius.trunc().clamp_min(self.min_radius)[:, None]
        drawn = self._drawn(distance, nearest, cells, radius)
        for k in mask.nonzero()[:, 0].tolist():
            column = heatmap[rows, channel[k]]
            heatmap[rows, channel[k]] = torch.maximum(column, drawn[k].to(heatmap.dtype))
        heading = safe[:, 6]
        codes = torch.cat(
            [
                center - nearest,
                safe[:, 2:3],
                safe[:, 3:6].log(),
                torch.stack([heading.cos(), heading.sin()], 1),
                safe[:, 7:],
            ],
            1,
        )
        site = rows[index] if len(rows) else index
        used = mask.long()
        return index * used, site * used, mask, torch.where(mask[:, None], codes, 0.0), boxes

    def _centers(self, boxes: Tensor, map_size: tuple[int, int]) -> Tensor:
        """Centres [K, 2] (x, y) in cells, held inside of the map."""
        height, width = map_size
        limits = (height, width) if self.swapped_limits else (width, height)
        found = [(boxes[:, i] - self.origin[i]) / self.cell[i] for i in range(2)]
        return torch.stack([c.clamp(0, limit - 0.5) for c, limit in zip(found, limits, strict=True)], 1)

    def _drawn(self, distance: Tensor, nearest: Tensor, cells: Tensor, radius: Tensor) -> Tensor:
        """Gaussians [K, n] over the sites, from squared distances [K, n], nearest sites [K, 2] and radii [K, 1]."""
        if not distance.shape[1]:
            return distance
        if self.around is None:
            variance = ((2 * radius + 1) / 6) ** 2
            bump = torch.exp(-(distance - distance.amin(1, keepdim=True)) / (2 * variance))
            bump = torch.where(bump < torch.finfo(torch.float32).eps, 0.0, bump)
            return torch.where(distance > 2 * radius**2, 0.0, bump)
        variance = ((2 * radius * self.ratio + 1) / 6) ** 2
        bumps = []
        for place in self.around:
            squared = distance if place == "center" else _squared_distances(nearest, cells)
            bumps.append(torch.exp(-squared / (2 * variance)))
        return torch.stack(bumps).amax(0)


def _squared_distances(points: Tensor, cells: Tensor) -> Tensor:
    """[K, n] from points [K, 2] to cells [n, 2]."""
    return sum(((points[:, None, i] - cells[:, i]) ** 2 for i in range(2)), points.new_zeros(()))
