"""Random boxes, and overlaps by shapely's polygons as an independent definition."""

from __future__ import annotations

import numpy as np
import shapely
import torch

CORNERS = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2


def random_boxes(seed: int, count: int, side: float = 8.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Boxes [count, 7] of the sizes of road users, centres in a square of 2·side metres."""
    rng = np.random.default_rng(seed)
    columns = [
        rng.uniform(-side, side, (count, 2)),
        rng.uniform(-1, 1, count),
        rng.uniform(0.5, 6, count),
        rng.uniform(0.3, 2.5, count),
        rng.uniform(0.5, 3, count),
        rng.uniform(-7, 7, count),
    ]
    return torch.from_numpy(np.column_stack(columns)).to(dtype)


def polygons(boxes: torch.Tensor) -> np.ndarray:
    """Footprints of boxes [N, 7] as shapely polygons."""
    b = boxes.double().numpy()
    local = CORNERS * b[:, None, 3:5]
    cos, sin = np.cos(b[:, 6:7]), np.sin(b[:, 6:7])
    x = b[:, 0:1] + local[..., 0] * cos - local[..., 1] * sin
    y = b[:, 1:2] + local[..., 0] * sin + local[..., 1] * cos
    return shapely.polygons(np.stack([x, y], -1))


def shapely_overlaps(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shared area, IoU of footprints and IoU of volumes [N, M] of boxes [N, 7] and [M, 7]."""
    shared = torch.from_numpy(shapely.area(shapely.intersection(polygons(a)[:, None], polygons(b)[None])))
    a, b = a.double()[:, None], b.double()[None]
    area_a, area_b = (x[..., 3] * x[..., 4] for x in (a, b))
    high = torch.minimum(a[..., 2] + a[..., 5] / 2, b[..., 2] + b[..., 5] / 2)
    low = torch.maximum(a[..., 2] - a[..., 5] / 2, b[..., 2] - b[..., 5] / 2)
    volume = shared * (high - low).clamp(min=0)
    return (
        shared,
        shared / (area_a + area_b - shared),
        volume / (area_a * a[..., 5] + area_b * b[..., 5] - volume),
    )
