"""What heads of object centres learn from: heatmaps of Gaussians around the centres, and codes of the boxes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.models.targets.box_coding import usable_boxes


def gaussian_radius(length: Tensor, width: Tensor, min_overlap: float) -> Tensor:
    """Radius within which a box may be moved and still overlap itself by some share.

    As CenterPoint has it (after CornerNet, Law & Deng 2018), which takes (b + √(b² - 4ac)) / 2 without dividing by the
    leading coefficient a.

    Args:
        length: floating-point, of any shape, of the box in cells.
        width: likewise.
        min_overlap: the share, intersection over union.

    Returns:
        Floating-point of the same shape, in cells.
    """
    total, area = length + width, length * width
    r1 = (total + (total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap)).clamp_min(0).sqrt()) / 2
    r2 = (2 * total + (4 * total**2 - 16 * (1 - min_overlap) * area).clamp_min(0).sqrt()) / 2
    b3 = -2 * min_overlap * total
    r3 = (b3 + (b3**2 - 16 * min_overlap * (min_overlap - 1) * area).clamp_min(0).sqrt()) / 2
    return torch.minimum(torch.minimum(r1, r2), r3)


def gaussian(radius: int, device: torch.device | None = None) -> Tensor:
    """A bump [2r + 1, 2r + 1] of standard deviation (2r + 1) / 6 and peak exactly 1, float32."""
    sigma = (2 * radius + 1) / 6
    steps = torch.arange(-radius, radius + 1, dtype=torch.float64, device=device)
    bump = torch.exp(-(steps[:, None] ** 2 + steps**2) / (2 * sigma**2))
    return torch.where(bump < torch.finfo(bump.dtype).eps, 0.0, bump).float()


def draw_gaussians(heatmap: Tensor, channels: Tensor, cells: Tensor, radii: Tensor) -> None:
    """Raise a heatmap in place to the Gaussians around cells, clipped at its borders.

    Args:
        heatmap: floating-point [C, Y, X], which is changed.
        channels: int64 [G], the channel of each.
        cells: int64 [G, 2] as (x, y), which may lie outside.
        radii: int64 [G], in cells.
    """
    height, width = heatmap.shape[1:]
    bumps: dict[int, Tensor] = {}
    for channel, (x, y), r in zip(channels.tolist(), cells.tolist(), radii.tolist(), strict=True):
        bump = bumps.setdefault(r, gaussian(r, heatmap.device))
        left, right, top, bottom = max(x - r, 0), min(x + r + 1, width), max(y - r, 0), min(y + r + 1, height)
        if left >= right or top >= bottom:
            continue
        area = heatmap[channel, top:bottom, left:right]
        torch.maximum(area, bump[top - y + r : bottom - y + r, left - x + r : right - x + r].to(area), out=area)


@dataclass(frozen=True)
class CenterTargets:
    """What a heatmap head should predict for K object slots per frame, unused ones zero.

    heatmap: [B, C, Y, X]; cells: flat cell int64 [B, K]; mask: bool [B, K], whether the slot counts; codes: [B, K, 8 or
    10] as (offset from the cell's corner in cells, z, logarithms of the sizes, cos and sin of the heading, velocity);
    boxes: [B, K, 7 or 9], the objects; labels: int64 [B, K] within the task, -1 where there is no object.
    """

    heatmap: Tensor
    cells: Tensor
    mask: Tensor
    codes: Tensor
    boxes: Tensor
    labels: Tensor


def center_targets(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    task: Sequence[int],
    heatmap: Tensor,
    origin: Sequence[float],
    cell: Sequence[float],
    min_overlap: float,
    min_radius: int,
    outside: Literal["border", "skip"] = "border",
    width_along_x: bool = False,
) -> CenterTargets:
    """Targets for the objects of some classes (CenterPoint, Yin et al., CVPR 2021).

    Objects with a non-finite number or a size that is not positive keep their slot, unused.

    Args:
        boxes: for each frame [G, 7 or 9].
        labels: for each frame int64 [G], 0-based.
        task: the labels of the classes, in the order of the channels.
        heatmap: [B, C, Y, X], for its shape.
        origin: x and y of the map's corner, in metres.
        cell: size of a cell along x and y, in metres.
        min_overlap: see `gaussian_radius`.
        min_radius: the smallest radius of a Gaussian, in cells.
        outside: what is done with objects beyond the border: "border" draws them at the border; with "skip" their slot
            stays unused, if they are more than a cell below the lower edges or at all beyond the upper ones
            (CenterPoint).
        width_along_x: the radius of a Gaussian is that of the width in cells along x and of the length in cells along y
            instead of the other way round (mmdetection3d before 1.0, whose headings start from -y).
    """
    channels, objects = _slots(boxes, labels, task)
    mask = usable_boxes(objects.flatten(0, 1)).view(channels.shape) & (channels >= 0)
    safe = torch.where(mask[..., None], objects, 1.0)
    height, width = heatmap.shape[2:]
    x, y = ((safe[..., i] - origin[i]) / cell[i] for i in range(2))
    if outside == "border":
        x, y = x.clamp(0, width - 0.5), y.clamp(0, height - 0.5)
    mask = mask & (x > -1) & (x < width) & (y > -1) & (y < height)
    ix, iy = x.long(), y.long()  # towards zero
    heading = safe[..., 6]
    codes = torch.stack(
        [x - ix, y - iy, safe[..., 2], *safe[..., 3:6].log().unbind(-1), heading.cos(), heading.sin()], -1
    )
    codes = torch.cat([codes, safe[..., 7:]], -1)
    of_length, of_width = reversed(cell[:2]) if width_along_x else cell[:2]
    radii = gaussian_radius(safe[..., 3] / of_length, safe[..., 4] / of_width, min_overlap).long()
    radii = radii.clamp_min(min_radius)
    drawn = torch.zeros_like(heatmap, dtype=torch.float32)
    for frame, used in enumerate(mask):
        at = torch.stack([ix[frame, used], iy[frame, used]], 1)
        draw_gaussians(drawn[frame], channels[frame, used], at, radii[frame, used])
    return CenterTargets(
        heatmap=drawn,
        cells=torch.where(mask, iy * width + ix, 0),
        mask=mask,
        codes=torch.where(mask[..., None], codes, 0.0),
        boxes=objects,
        labels=channels,
    )


def _slots(boxes: Sequence[Tensor], labels: Sequence[Tensor], task: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The objects of a task, padded: channels int64 [B, K] (-1 where there is none) and boxes [B, K, columns]."""
    channels, objects = [], []
    for frame, label in zip(boxes, labels, strict=True):
        index, channel = (label[:, None] == torch.tensor(task, device=label.device)).nonzero().unbind(1)
        objects.append(frame[index])
        channels.append(channel)
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(channels, batch_first=True, padding_value=-1), pad(objects, batch_first=True)
