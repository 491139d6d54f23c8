"""What `mmcv.ops` needs of the compiled module `mmcv._ext` in LiDAR detectors, answered by this library's operations.

The functions have the arguments of the compiled ones and take tensors on any device. Boxes have their z at the bottom
in functions on points, at the centre in those on overlaps, as there; headings are counter-clockwise from +x.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.ops import (
    iou_bev,
    iou_bev_paired,
    nms,
    points_in_boxes,
    points_in_each_box,
    segment_argmax,
    segment_reduce,
    shared_area_bev,
    shared_area_bev_paired,
    voxel_coordinates,
    voxelize,
)
from pcdet_ext.ops.boxes import NMSKind
from pcdet_ext.ops.segment import Reduction

REDUCTIONS: tuple[Reduction, ...] = ("max", "mean", "sum")


def hard_voxelize_forward(
    points: Tensor,
    voxel_size: Tensor,
    coors_range: Tensor,
    voxels: Tensor,
    coors: Tensor,
    num_points_per_voxel: Tensor,
    voxel_num: Tensor,
    max_points: int,
    max_voxels: int,
    NDim: int = 3,
    deterministic: bool = True,
) -> None:
    """Gather the points of each voxel, up to a number of points per voxel and of voxels.

    Args:
        points: [P, C], x, y, z first, metres.
        voxel_size: [3], (x, y, z), metres.
        coors_range: [6], minimum (x, y, z), then maximum.
        voxels: [V, max_points, C], filled from the front.
        coors: int32 [V, 3], filled with the coordinates (z, y, x).
        num_points_per_voxel: int32 [V], filled.
        voxel_num: int, a tensor of one element, filled with the number of voxels.
        max_points: per voxel.
        max_voxels: per cloud.
        NDim: 3.
        deterministic: either way voxels come in the order of their first points.

    Raises:
        NotImplementedError: for another NDim.
    """
    _need_three("hard_voxelize_forward", NDim)
    found = voxelize(points.float(), coors_range.tolist(), voxel_size.tolist(), max_points, max_voxels)
    count = len(found[0])
    for out, values in zip((voxels, coors, num_points_per_voxel), found, strict=True):
        out[:count] = values.to(out.dtype)
    voxel_num.fill_(count)


def dynamic_voxelize_forward(
    points: Tensor, voxel_size: Tensor, coors_range: Tensor, coors: Tensor, NDim: int = 3
) -> None:
    """Find the voxel of each point.

    Args:
        points: [P, C], x, y, z first, metres.
        voxel_size: [3], (x, y, z), metres.
        coors_range: [6], minimum (x, y, z), then maximum.
        coors: int32 [P, 3], filled with the coordinates (z, y, x), with -1 outside of the range.
        NDim: 3.

    Raises:
        NotImplementedError: for another NDim.
    """
    _need_three("dynamic_voxelize_forward", NDim)
    coors.copy_(voxel_coordinates(points.float(), coors_range.tolist(), voxel_size.tolist()))


def _need_three(name: str, dimensions: int) -> None:
    if dimensions != 3:
        raise NotImplementedError(f"mmcv._ext.{name}: NDim must be 3, got {dimensions}")


def dynamic_point_to_voxel_forward(
    feats: Tensor, coors: Tensor, reduce_type: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Reduce the features [P, C] of points that share a voxel.

    Args:
        feats: of the points.
        coors: int32 [P, D], the voxel of each point; points with a negative coordinate are left out.
        reduce_type: "max", "mean" or "sum".

    Returns:
        Features [V, C], the voxels int32 [V, D] in ascending order, the voxel int32 [P] of each point (-1: none) and
        the number of points int32 [V] of each voxel.

    Raises:
        NotImplementedError: another reduction.
    """
    kind = _reduction(reduce_type)
    inside = (coors >= 0).all(1)
    unique, inverse, counts = torch.unique(coors[inside], dim=0, return_inverse=True, return_counts=True)
    place = torch.full((len(coors),), -1, dtype=torch.int64, device=coors.device)
    place[inside] = inverse
    reduced = segment_reduce(feats.detach(), place, len(unique), kind)
    return reduced, unique.to(coors.dtype), place.int(), counts.int()


def dynamic_point_to_voxel_backward(
    grad_feats: Tensor,
    grad_reduced_feats: Tensor,
    feats: Tensor,
    reduced_feats: Tensor,
    coors_idx: Tensor,
    reduce_count: Tensor,
    reduce_type: str,
) -> None:
    """Compute the gradients of `dynamic_point_to_voxel_forward`. Of equal maxima the first has the gradient.

    Args:
        grad_feats: [P, C], of the points, zeros, filled.
        grad_reduced_feats: [V, C], of the voxels.
        feats: [P, C], of the points.
        reduced_feats: [V, C], of the voxels.
        coors_idx: int32 [P], the voxel of each point, -1 for none.
        reduce_count: int32 [V], points of each voxel.
        reduce_type: "max", "mean" or "sum".

    Raises:
        NotImplementedError: another reduction.
    """
    kind, place = _reduction(reduce_type), coors_idx.long()
    inside = place >= 0
    if kind == "max":
        rows = segment_argmax(feats, place, len(reduced_feats))
        grad_feats.scatter_add_(0, rows.clamp(min=0), torch.where(rows < 0, 0.0, grad_reduced_feats))
        return
    share = grad_reduced_feats / reduce_count[:, None] if kind == "mean" else grad_reduced_feats
    grad_feats[inside] = share[place[inside]].to(grad_feats.dtype)


def _reduction(name: str) -> Reduction:
    for kind in REDUCTIONS:
        if name == kind:
            return kind
    raise NotImplementedError(f"mmcv._ext: the reduction {name!r} is not offered; use {', '.join(REDUCTIONS)}")


def box_iou_rotated(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode_flag: int = 0, aligned: bool = False) -> None:
    """Compute the overlaps of rotated rectangles (x, y, w, h, angle).

    Args:
        bboxes1: [N, 5].
        bboxes2: [M, 5].
        ious: [N · M], or [N] with `aligned`, filled.
        mode_flag: 0 for the shared area over the union, 1 for that over the area of the first.
        aligned: whether rows are compared with the same rows alone.
    """
    a, b = _standing(bboxes1), _standing(bboxes2)
    if mode_flag == 0:
        found = iou_bev_paired(a, b) if aligned else iou_bev(a, b)
    else:
        area = (a[:, 3] * a[:, 4]).clamp(min=1e-9)
        found = shared_area_bev_paired(a, b) / area if aligned else shared_area_bev(a, b) / area[:, None]
    ious.copy_(found.flatten())


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int = 0,
) -> Tensor:
    """Suppress rotated rectangles (x, y, w, h, angle) that overlap a better one too much.

    Args:
        dets: [N, 5], or [N, 6] with the labels.
        scores: [N].
        order: int64 [N], rows by falling score; not needed here.
        dets_sorted: [N, 5 or 6], `dets` in this order; not needed here.
        labels: [N]; not needed here: those in `dets` count.
        iou_threshold: the highest intersection over union that two rectangles which stay may have.
        multi_label: other than 0, rectangles of different labels (the sixth column) do not suppress each other.

    Returns:
        Rows int64 [K] that stay, best score first.
    """
    boxes = _standing(dets)
    if not multi_label:
        return nms(boxes, scores.detach().float(), iou_threshold)
    return _by_label(boxes, scores, dets[:, 5], iou_threshold)


def _by_label(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Rows that stay, best score first, where boxes of different labels do not suppress each other."""
    kept = []
    for label in torch.unique(labels):
        own = (labels == label).nonzero().squeeze(1)
        kept.append(own[nms(boxes[own], scores[own].detach().float(), iou_threshold)])
    rows = torch.cat(kept).sort()[0] if kept else labels.new_zeros(0, dtype=torch.int64)
    return rows[scores[rows].argsort(descending=True, stable=True)]


def nms_upright(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """`mmcv._ext.nms`: suppress upright rectangles that overlap a better one too much.

    Args:
        bboxes: (x1, y1, x2, y2), [N, 4].
        scores: [N].
        iou_threshold: the highest intersection over union that two rectangles which stay may have.
        offset: 1 where corners are pixels, which belong to the rectangle; else 0.

    Returns:
        Rows int64 [K] that stay, best score first.
    """
    low, high = bboxes[:, :2].detach().float(), bboxes[:, 2:4].detach().float() + offset
    angle = torch.zeros_like(low[:, :1])
    rectangles = torch.cat([(low + high) / 2, high - low, angle], 1)
    return nms(_standing(rectangles), scores.detach().float(), iou_threshold, "axis_aligned")


def _standing(rectangles: Tensor) -> Tensor:
    """Rectangles (x, y, w, h, angle) [N, 5+] as boxes [N, 7] of height 1."""
    x, y, w, h, angle = rectangles[:, :5].detach().float().unbind(1)
    return torch.stack([x, y, torch.zeros_like(x), w, h, torch.ones_like(x), angle], 1)


def iou3d_boxes_overlap_bev_forward(boxes_a: Tensor, boxes_b: Tensor, ans_overlap: Tensor) -> None:
    """Compute the areas that the footprints of all pairs of boxes share.

    Args:
        boxes_a: [N, 7].
        boxes_b: [M, 7].
        ans_overlap: [N, M], square metres, filled.
    """
    ans_overlap.copy_(shared_area_bev(boxes_a.detach().float(), boxes_b.detach().float()))


def iou3d_nms3d_forward(boxes: Tensor, keep: Tensor, num_out: Tensor, nms_overlap_thresh: float) -> None:
    """Suppress boxes whose footprints overlap that of a better one too much.

    Args:
        boxes: [N, 7], sorted by falling score.
        keep: int64 [N], filled from the front with the rows that stay, in their order.
        num_out: int64, a tensor of one element, filled with how many stay.
        nms_overlap_thresh: the highest intersection over union that two boxes which stay may have.
    """
    _suppress(boxes, keep, num_out, nms_overlap_thresh, "rotated")


def iou3d_nms3d_normal_forward(boxes: Tensor, keep: Tensor, num_out: Tensor, nms_overlap_thresh: float) -> None:
    """The same, leaving out the headings. Arguments as for `iou3d_nms3d_forward`."""
    _suppress(boxes, keep, num_out, nms_overlap_thresh, "axis_aligned")


def _suppress(boxes: Tensor, keep: Tensor, num_out: Tensor, threshold: float, kind: NMSKind) -> None:
    falling = -torch.arange(len(boxes), device=boxes.device, dtype=torch.float64)  # they come sorted
    kept = nms(boxes.detach().float(), falling, float(threshold), kind)
    keep[: len(kept)] = kept.to(keep.device)
    num_out.fill_(len(kept))


def points_in_boxes_cpu_forward(boxes: Tensor, points: Tensor, out: Tensor) -> None:
    """Find the points inside each box of one frame.

    Args:
        boxes: [M, 7], z at the bottom.
        points: [P, 3].
        out: int32 [M, P], filled with 1 where the box holds the point, with 0 elsewhere.
    """
    out.copy_(points_in_each_box(points.float(), _centred(boxes)))


def points_in_boxes_part_forward(boxes: Tensor, points: Tensor, out: Tensor) -> None:
    """Find the first box of its frame that holds each point.

    Args:
        boxes: [B, M, 7], z at the bottom.
        points: [B, P, 3].
        out: int32 [B, P], filled with the row of the box, with -1 where there is none.
    """
    for own, cloud, found in zip(boxes, points, out, strict=True):
        found.copy_(points_in_boxes(cloud.float(), _centred(own)))


def points_in_boxes_all_forward(boxes: Tensor, points: Tensor, out: Tensor) -> None:
    """Find all boxes of its frame that hold each point.

    Args:
        boxes: [B, M, 7], z at the bottom.
        points: [B, P, 3].
        out: int32 [B, P, M], filled with 1 where the box holds the point, with 0 elsewhere.
    """
    for own, cloud, found in zip(boxes, points, out, strict=True):
        found.copy_(points_in_each_box(cloud.float(), _centred(own)).T)


def _centred(boxes: Tensor) -> Tensor:
    """Boxes [M, 7] with the z of their centres, from those with the z of their bottoms."""
    x, y, z, dx, dy, dz, heading = boxes.detach().float().unbind(1)
    return torch.stack([x, y, z + dz / 2, dx, dy, dz, heading], 1)


def points_in_boxes_part(points: Tensor, boxes: Tensor) -> Tensor:
    """`mmcv.ops.points_in_boxes_part` where there is no GPU for it to ask after: int32 [B, P]."""
    found = points.new_full(points.shape[:2], -1, dtype=torch.int32)
    points_in_boxes_part_forward(boxes, points, found)
    return found


def points_in_boxes_all(points: Tensor, boxes: Tensor) -> Tensor:
    """`mmcv.ops.points_in_boxes_all` where there is no GPU for it to ask after: int32 [B, P, M]."""
    found = points.new_zeros(*points.shape[:2], boxes.shape[1], dtype=torch.int32)
    points_in_boxes_all_forward(boxes, points, found)
    return found


def get_compiler_version() -> str:
    """What is told of the compiler in reports on the environment."""
    return "none (mmcv._ext is answered by pcdet_ext)"


def get_compiling_cuda_version() -> str:
    """What is told of CUDA in reports on the environment."""
    return "none (mmcv._ext is answered by pcdet_ext)"


OFFERED: tuple[Callable[..., Any], ...] = (
    hard_voxelize_forward,
    dynamic_voxelize_forward,
    dynamic_point_to_voxel_forward,
    dynamic_point_to_voxel_backward,
    box_iou_rotated,
    nms_rotated,
    iou3d_boxes_overlap_bev_forward,
    iou3d_nms3d_forward,
    iou3d_nms3d_normal_forward,
    points_in_boxes_cpu_forward,
    points_in_boxes_part_forward,
    points_in_boxes_all_forward,
    get_compiler_version,
    get_compiling_cuda_version,
)
CONTENT = {function.__name__: function for function in OFFERED} | {"nms": nms_upright}
# Names of sparse convolutions in `mmcv.ops`, which spconv has, too.
SPARSE = [
    "SparseConvTensor",
    "SparseModule",
    "SparseSequential",
    *(f"{kind}Conv{n}d" for kind, n in itertools.product(("Sparse", "SubM", "SparseInverse"), (2, 3))),
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseMaxPool2d",
    "SparseMaxPool3d",
]
