"""Benchmarks of overlaps, suppression and points in boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.benchmark.registry import Contest, Workload, benchmark
from pcdet_ext.ops import iou_3d, iou_bev, nms, points_in_boxes
from pcdet_ext.ops.boxes import NMS_KINDS
from pcdet_ext.ops.boxes_reference import (
    BEV,
    VOLUME,
    iou_matrix_reference,
    nms_reference,
    points_in_boxes_reference,
)
from pcdet_ext.structures import Array

SIDES = {"crowded": 5.0, "street": 50.0}  # half sides in metres of the square that 500 boxes stand in
CANDIDATES = 4096  # boxes before suppression, as published detectors have them


def street_boxes(load: Workload, count: int, side: float, seed: int = 0) -> Tensor:
    """Draw boxes of the sizes of road users in a square around the origin.

    Args:
        load: whose device and random numbers are used.
        count: number of boxes.
        side: half side of the square, metres.
        seed: of the random numbers.

    Returns:
        Boxes float32 [count, 7], on the load's device.
    """
    low = torch.tensor([-side, -side, -1.0, 0.6, 0.5, 1.4, -torch.pi])
    high = torch.tensor([side, side, 1.0, 5.0, 2.2, 2.0, torch.pi])
    return (low + (high - low) * torch.rand(count, 7, generator=load.generator(seed))).to(load.device)


def clustered_boxes(load: Workload, count: int, copies: int = 20, side: float = 70.0) -> Tensor:
    """Draw boxes in clusters around objects, as a head predicts them before suppression.

    Args:
        load: whose device and random numbers are used.
        count: number of boxes.
        copies: boxes around one object.
        side: half side, metres, of the square that the objects stand in.

    Returns:
        Boxes float32 [count, 7], on the load's device.
    """
    objects = street_boxes(load, -(-count // copies), side).repeat_interleave(copies, 0)[:count]
    spread = torch.tensor([0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1])
    noise = torch.randn(count, 7, generator=load.generator(1)) * spread
    boxes = objects + noise.to(load.device)
    boxes[:, 3:6] = boxes[:, 3:6].clamp_min(0.3)
    return boxes


@benchmark("iou", per_frame=False)
def overlaps(load: Workload) -> Iterator[Contest]:
    """Matrices of overlaps of rotated boxes against shapely's vectorised polygons."""
    for setting, side in SIDES.items():
        a, b = street_boxes(load, 500, side, 0), street_boxes(load, 500, side, 1)
        yield Contest(
            f"bev, 500 x 500, {setting}",
            partial(iou_bev, a, b),
            partial(iou_matrix_reference, a, b, BEV),
            shapely_peer(a, b),
            work={"pairs": len(a) * len(b)},
            bytes=a.nbytes + b.nbytes + 4 * len(a) * len(b),
        )
    yield Contest(
        "3d, 500 x 500, street",
        lambda: iou_3d(a, b),
        lambda: iou_matrix_reference(a, b, VOLUME),
        work={"pairs": len(a) * len(b)},
        bytes=a.nbytes + b.nbytes + 4 * len(a) * len(b),
    )


def shapely_peer(a: Tensor, b: Tensor) -> dict[str, Callable[[], Tensor]]:
    """shapely's intersections of all pairs that a tree finds to touch, polygons made outside; where shapely is here."""
    if a.device.type != "cpu":
        return {}
    try:
        import shapely
    except ImportError:
        return {}
    first, second = (np.asarray(shapely.polygons(footprint_corners(x))) for x in (a, b))
    tree = shapely.STRtree(second)
    area_a, area_b = np.asarray(shapely.area(first)), np.asarray(shapely.area(second))

    def overlap() -> Tensor:
        i, j = tree.query(first, predicate="intersects")
        shared = shapely.area(shapely.intersection(first[i], second[j]))
        out = np.zeros((len(first), len(second)), np.float32)
        out[i, j] = shared / (area_a[i] + area_b[j] - shared)
        return torch.from_numpy(out)

    def overlap_of_all() -> Tensor:
        shared = shapely.area(shapely.intersection(first[:, None], second[None]))
        return torch.from_numpy(shared / (area_a[:, None] + area_b - shared))

    return {"shapely intersection": overlap_of_all, "shapely STRtree + intersection": overlap}


def footprint_corners(boxes: Tensor) -> Array:
    """Corners float64 [N, 4, 2] of the footprints of boxes [N, 7]."""
    b = boxes.double().numpy()
    local = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2 * b[:, None, 3:5]
    cos, sin = np.cos(b[:, 6:7]), np.sin(b[:, 6:7])
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], -1) + b[:, None, :2]


@benchmark("nms", per_frame=False)
def suppression(load: Workload) -> Iterator[Contest]:
    """Suppression of a detector's candidates; the target on one core of a CPU is 20 ms."""
    boxes = clustered_boxes(load, CANDIDATES)
    scores = torch.rand(CANDIDATES, generator=load.generator(2)).to(load.device)
    few = scores.argsort(descending=True)[:500]
    for kind in NMS_KINDS:
        for threshold in (0.01, 0.7):
            yield Contest(
                f"{kind} > {threshold}, {CANDIDATES} boxes",
                partial(nms, boxes, scores, threshold, kind),
                work={"boxes": CANDIDATES, "kept": len(nms(boxes, scores, threshold, kind))},
                bytes=boxes.nbytes + scores.nbytes,
            )
    yield Contest(
        "rotated > 0.1, 500 boxes",
        lambda: nms(boxes[few], scores[few], 0.1),
        lambda: nms_reference(boxes[few], 0.1, NMS_KINDS["rotated"], len(few)),
        work={"boxes": len(few)},
        bytes=boxes[few].nbytes + scores[few].nbytes,
    )


@benchmark("points_in_boxes")
def inside(load: Workload) -> Iterator[Contest]:
    """The box that each point of a frame lies in."""
    for count in (20, 200):
        boxes = street_boxes(load, count, 50.0)
        boxes[:, 2] -= 1.0  # onto the ground below the sensor
        yield Contest(
            f"{count} boxes",
            partial(points_in_boxes, load.points, boxes),
            partial(points_in_boxes_reference, load.points, boxes, 0.0),
            work={"points": len(load.points), "boxes": count},
            bytes=load.points.nbytes + boxes.nbytes + 8 * len(load.points),
        )
