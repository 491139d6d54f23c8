"""Overlap of upright boxes turned about z, suppression of overlapping ones, and points inside of them.

A box is (x, y, z, dx, dy, dz, heading), z at the centre, metres and radians; further columns are left aside. Degenerate
rows have these results, with kernels and without:

- a row with a negative size (dz included), or with NaN or infinity in x, y, dx, dy or the heading, overlaps nothing and
  holds no points;
- NaN or infinity in z or dz leaves the footprint as it is, but no volume is shared and no points are held;
- a length or width of zero overlaps nothing, and holds what the margin holds;
- a height of zero leaves the footprint as it is; its volume is zero, and it holds points exactly at its z.

What overlaps nothing is not suppressed by overlap; suppression by distance looks at x and y alone.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from pcdet_ext.ops._arguments import typed
from pcdet_ext.ops._native import Int32, NativeArray, has_kernels, launch
from pcdet_ext.ops.boxes_reference import (
    AREA,
    BEV,
    VOLUME,
    iou_matrix_reference,
    iou_paired_reference,
    keep_greedily,
    nms_reference,
    points_in_boxes_reference,
)
from pcdet_ext.ops.published_boxes import published_removals

NMSKind = Literal["rotated", "axis_aligned", "circle"]
NMS_KINDS: dict[NMSKind, int] = {"rotated": 0, "axis_aligned": 1, "circle": 2}


@typed
def iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of the footprints of every box in `a` with every box in `b`. Not differentiable.

    The polygons are exact, results are accurate to 1e-6: identical boxes give 1, boxes that only touch give 0. A
    negative size, dz included, gives 0; see the top of the module for other degenerate boxes.

    Args:
        a: boxes [N, 7 or more], float32 or float64.
        b: boxes [M, 7 or more], of the type and on the device of `a`.

    Returns:
        Overlaps in [0, 1], [N, M], of the type of `a`.

    Raises:
        ValueError: an argument has the wrong shape, type or device.
    """
    return _iou_matrix(*_box_pair(a, b), BEV)


@typed
def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of the volumes [N, M] of boxes; arguments, accuracy and errors as for `iou_bev`."""
    return _iou_matrix(*_box_pair(a, b), VOLUME)


@typed
def shared_area_bev(a: Tensor, b: Tensor) -> Tensor:
    """Area [N, M] in m² that the footprints of boxes share; arguments, accuracy and errors as for `iou_bev`."""
    return _iou_matrix(*_box_pair(a, b), AREA)


@typed
def iou_bev_paired(a: Tensor, b: Tensor) -> Tensor:
    """`iou_bev` of each row of a [N, 7+] with the same row of b [N, 7+], as [N]."""
    return _iou_paired(*_box_pair(a, b, paired=True), BEV)


@typed
def iou_3d_paired(a: Tensor, b: Tensor) -> Tensor:
    """`iou_3d` of each row of a [N, 7+] with the same row of b [N, 7+], as [N]."""
    return _iou_paired(*_box_pair(a, b, paired=True), VOLUME)


@typed
def shared_area_bev_paired(a: Tensor, b: Tensor) -> Tensor:
    """`shared_area_bev` of each row of a [N, 7+] with the same row of b [N, 7+], as [N]."""
    return _iou_paired(*_box_pair(a, b, paired=True), AREA)


@typed
def nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    kind: NMSKind = "rotated",
    pre_max: int | None = None,
    post_max: int | None = None,
    published: bool = False,
) -> Tensor:
    """Non-maximum suppression: a box that stays removes every box of a lower score that overlaps it too much.

    Args:
        boxes: [N, 7 or more], float32 or float64.
        scores: [N], on the device of the boxes. A box whose score is NaN never stays.
        iou_threshold: a larger overlap than this removes a box; for "circle", a squared distance of the centres (m²)
            of at most this.
        kind: "rotated" compares the footprints as they are turned, "axis_aligned" leaves out their headings, and
            "circle" compares centres alone.
        pre_max: look only at so many boxes, those with the best scores.
        post_max: keep at most so many boxes.
        published: use the overlap of OpenPCDet's kernels with its quirks (see `pcdet_ext.ops.published_boxes`). Slow.

    Returns:
        Indices int64 [K] of the boxes that stay, best score first; of equal scores the lower index first.

    Raises:
        ValueError: an argument has the wrong shape, type or device, or a value that means nothing.
    """
    boxes = _check_boxes("boxes", boxes)
    if scores.ndim != 1 or len(scores) != len(boxes) or scores.device != boxes.device:
        raise ValueError(
            f"scores must be [{len(boxes)}] on {boxes.device}, got {list(scores.shape)} on {scores.device}"
        )
    if kind not in NMS_KINDS:
        raise ValueError(f"kind must be one of {', '.join(NMS_KINDS)}, got {kind!r}")
    if not 0 <= iou_threshold < math.inf:
        raise ValueError(f"iou_threshold must be at least 0 and finite, got {iou_threshold}")
    for name, most in (("pre_max", pre_max), ("post_max", post_max)):
        if most is not None and most < 0:
            raise ValueError(f"{name} must be at least 0, got {most}")
    usable = torch.nonzero(~scores.isnan()).squeeze(1)
    order = usable[scores[usable].argsort(descending=True, stable=True)][:pre_max]
    if kind == "axis_aligned":
        boxes = torch.cat([boxes[:, :6], torch.zeros_like(boxes[:, 6:])], 1)
    most = len(order) if post_max is None else min(post_max, len(order))
    if published:
        if kind == "circle":
            raise ValueError("published is for the kinds 'rotated' and 'axis_aligned'")
        pairs = published_removals(boxes[order], iou_threshold, kind == "rotated")
        return order[keep_greedily(pairs, len(order))[:most]]
    return order[_nms(boxes[order].contiguous(), float(iou_threshold), NMS_KINDS[kind], most)]


@typed
def points_in_boxes(points: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """For each point the lowest index of a box that holds it. Top and bottom belong to a box, its sides do not.

    Args:
        points: [P, 3 or more], columns x, y, z, …, of any floating type. A point that is not finite is in no box.
        boxes: [M, 7 or more], float32 or float64, on the device of the points.
        margin: metres by which boxes are widened along and across their heading, not in height; published codes use
            0.01 or 1e-5.

    Returns:
        int64 [P], -1 for points in no box.

    Raises:
        ValueError: an argument has the wrong shape, type or device, or the margin is not finite.
    """
    boxes = _check_boxes("boxes", boxes)
    if points.ndim != 2 or points.shape[1] < 3 or not points.is_floating_point():
        raise ValueError(f"points must be floating point [P, 3+], got {points.dtype} {list(points.shape)}")
    if points.device != boxes.device:
        raise ValueError(f"points are on {points.device}, boxes on {boxes.device}")
    if not math.isfinite(margin):
        raise ValueError(f"margin must be finite, got {margin}")
    return _points_in_boxes(points.to(boxes.dtype).contiguous(), boxes.contiguous(), float(margin))


@typed
def points_in_each_box(points: Tensor, boxes: Tensor, margin: float = 0.0) -> Tensor:
    """Whether each box holds each point; a point may be in several boxes.

    Args:
        points: float [P, 3 or more], columns x, y, z, … in metres.
        boxes: [M, 7 or more].
        margin: see `points_in_boxes`, whose borders boxes have here, too.

    Returns:
        bool [M, P].

    Raises:
        ValueError: as `points_in_boxes`.
    """
    flags = [points_in_boxes(points, boxes[i : i + 1], margin) == 0 for i in range(len(boxes))]
    if not flags:
        points_in_boxes(points, boxes, margin)  # refuses what it does not take
        return torch.zeros(0, len(points), dtype=torch.bool, device=points.device)
    return torch.stack(flags)


def _check_boxes(name: str, boxes: Tensor) -> Tensor:
    if boxes.ndim != 2 or boxes.shape[1] < 7:
        raise ValueError(f"{name} must be [N, 7+], got {list(boxes.shape)}")
    if boxes.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name} must be float32 or float64, got {boxes.dtype}")
    return boxes[:, :7]


def _box_pair(a: Tensor, b: Tensor, paired: bool = False) -> tuple[Tensor, Tensor]:
    a, b = _check_boxes("a", a), _check_boxes("b", b)
    if a.dtype != b.dtype or a.device != b.device:
        raise ValueError(f"a and b must agree, got {a.dtype} on {a.device} and {b.dtype} on {b.device}")
    if paired and len(a) != len(b):
        raise ValueError(f"a and b must have as many rows, got {len(a)} and {len(b)}")
    return a.contiguous(), b.contiguous()


def _rows(boxes: Tensor) -> NativeArray:
    return (boxes, boxes.dtype, 7 * len(boxes))


@torch.library.custom_op("pcdet_ext::iou_matrix", mutates_args=())
def _iou_matrix(a: Tensor, b: Tensor, kind: int) -> Tensor:
    if not has_kernels(a):
        return iou_matrix_reference(a, b, kind)
    (n, m), dtype = (len(a), len(b)), a.dtype
    out = a.new_empty(n, m)
    overlaps = (out, dtype, n * m)
    launch("iou_matrix", a.device, _rows(a), n, (b, dtype, 7 * m), m, Int32(kind), overlaps, dtype=dtype)
    return out


@_iou_matrix.register_fake
def _(a: Tensor, b: Tensor, kind: int) -> Tensor:
    return a.new_empty(len(a), len(b))


@torch.library.custom_op("pcdet_ext::iou_paired", mutates_args=())
def _iou_paired(a: Tensor, b: Tensor, kind: int) -> Tensor:
    if not has_kernels(a):
        return iou_paired_reference(a, b, kind)
    n, dtype = len(a), a.dtype
    out = a.new_empty(n)
    pairs = _rows(a), (b, dtype, 7 * n)
    launch("iou_paired", a.device, *pairs, n, Int32(kind), (out, dtype, n), dtype=dtype)
    return out


@_iou_paired.register_fake
def _(a: Tensor, b: Tensor, kind: int) -> Tensor:
    return a.new_empty(len(a))


@torch.library.custom_op("pcdet_ext::nms", mutates_args=())
def _nms(boxes: Tensor, threshold: float, kind: int, most: int) -> Tensor:
    if not has_kernels(boxes):
        return nms_reference(boxes, threshold, kind, most)
    kept, count = boxes.new_empty(most, dtype=torch.int64), boxes.new_zeros(1, dtype=torch.int64)
    results = (kept, torch.int64, most), (count, torch.int64, 1)
    numbers = len(boxes), float(threshold), Int32(kind), most
    launch("nms", boxes.device, _rows(boxes), *numbers, *results, dtype=boxes.dtype)
    return kept[: int(count)].clone()


@_nms.register_fake
def _(boxes: Tensor, threshold: float, kind: int, most: int) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


@torch.library.custom_op("pcdet_ext::points_in_boxes", mutates_args=())
def _points_in_boxes(points: Tensor, boxes: Tensor, margin: float) -> Tensor:
    if not has_kernels(points):
        return points_in_boxes_reference(points, boxes, margin)
    (n, columns), dtype = points.shape, boxes.dtype
    index = points.new_empty(n, dtype=torch.int64)
    cloud = (points, dtype, n * columns), n, columns
    found = (index, torch.int64, n)
    launch("points_in_boxes", points.device, *cloud, _rows(boxes), len(boxes), float(margin), found, dtype=dtype)
    return index


@_points_in_boxes.register_fake
def _(points: Tensor, boxes: Tensor, margin: float) -> Tensor:
    return points.new_empty(len(points), dtype=torch.int64)
