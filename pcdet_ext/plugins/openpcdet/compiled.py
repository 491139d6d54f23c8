"""What OpenPCDet compiles, answered by this library's operations: the functions of its `*_cuda` modules.

They have the arguments of the compiled ones, fill the tensors that are handed to them and take tensors on any device,
whatever their names say. They return 1, as the compiled ones do, unless they say otherwise. Boxes are (x, y, z, dx, dy,
dz, heading), z at the centre, in metres and radians. Overlaps are exact where the compiled ones count corners up to
1 cm outside as inside.
"""

from __future__ import annotations

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
    shared_area_bev,
    shared_area_bev_paired,
    voxelize,
)
from pcdet_ext.ops.boxes import NMSKind

POINT_MARGIN_CPU, POINT_MARGIN_GPU = 1e-2, 1e-5  # metres, by which the two compiled forms widen boxes


def boxes_iou_bev_cpu(boxes_a: Tensor, boxes_b: Tensor, ans_iou: Tensor) -> int:
    """Compute the intersection over union of the footprints of all pairs of boxes.

    Args:
        boxes_a: [N, 7].
        boxes_b: [M, 7].
        ans_iou: [N, M], filled.
    """
    ans_iou.copy_(iou_bev(_boxes(boxes_a), _boxes(boxes_b)))
    return 1


def boxes_iou_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, ans_iou: Tensor) -> int:
    """The same function under its second name. Arguments as for `boxes_iou_bev_cpu`."""
    return boxes_iou_bev_cpu(boxes_a, boxes_b, ans_iou)


def boxes_aligned_iou_bev_cpu(boxes_a: Tensor, boxes_b: Tensor, ans_iou: Tensor) -> int:
    """Compute the intersection over union of the footprints of boxes, row by row.

    Args:
        boxes_a: [N, 7].
        boxes_b: [N, 7].
        ans_iou: [N] or [N, 1], filled.
    """
    ans_iou.copy_(iou_bev_paired(_boxes(boxes_a), _boxes(boxes_b)).view_as(ans_iou))
    return 1


def boxes_overlap_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, ans_overlap: Tensor) -> int:
    """Compute the areas that the footprints of all pairs of boxes share.

    Args:
        boxes_a: [N, 7].
        boxes_b: [M, 7].
        ans_overlap: [N, M], square metres, filled.
    """
    ans_overlap.copy_(shared_area_bev(_boxes(boxes_a), _boxes(boxes_b)))
    return 1


def boxes_aligned_overlap_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, ans_overlap: Tensor) -> int:
    """Compute the areas that the footprints of boxes share, row by row.

    Args:
        boxes_a: [N, 7].
        boxes_b: [N, 7].
        ans_overlap: [N, 1], square metres, filled.
    """
    ans_overlap.copy_(shared_area_bev_paired(_boxes(boxes_a), _boxes(boxes_b)).view_as(ans_overlap))
    return 1


def paired_boxes_overlap_bev_gpu(boxes_a: Tensor, boxes_b: Tensor, ans_overlap: Tensor) -> int:
    """The same function under its second name. Arguments as for `boxes_aligned_overlap_bev_gpu`."""
    return boxes_aligned_overlap_bev_gpu(boxes_a, boxes_b, ans_overlap)


def nms_gpu(boxes: Tensor, keep: Tensor, nms_overlap_thresh: float) -> int:
    """Suppress boxes whose footprints overlap that of a better one too much.

    Args:
        boxes: [N, 7], sorted by falling score.
        keep: int64 [N], filled from the front with the rows that stay, in their order.
        nms_overlap_thresh: the highest intersection over union that two boxes which stay may have.

    Returns:
        How many stay.
    """
    return _suppress(boxes, keep, nms_overlap_thresh, "rotated")


def nms_normal_gpu(boxes: Tensor, keep: Tensor, nms_overlap_thresh: float) -> int:
    """The same, leaving out the headings. Arguments as for `nms_gpu`."""
    return _suppress(boxes, keep, nms_overlap_thresh, "axis_aligned")


def _suppress(boxes: Tensor, keep: Tensor, threshold: float, kind: NMSKind) -> int:
    falling = -torch.arange(len(boxes), device=boxes.device, dtype=torch.float64)  # they come sorted
    kept = nms(_boxes(boxes), falling, float(threshold), kind)
    keep[: len(kept)] = kept.to(keep.device)
    return len(kept)


def points_in_boxes_cpu(boxes: Tensor, points: Tensor, point_indices: Tensor) -> int:
    """Find the points inside each box, which is 1 cm wider to each side, as in the compiled function.

    Args:
        boxes: [M, 7].
        points: [P, 3].
        point_indices: int32 [M, P], filled with 1 where the box holds the point, with 0 elsewhere.
    """
    point_indices.copy_(points_in_each_box(points.float(), _boxes(boxes), POINT_MARGIN_CPU))
    return 1


def points_in_boxes_gpu(boxes: Tensor, points: Tensor, box_idxs_of_pts: Tensor) -> int:
    """Find the first box of its frame that holds each point.

    Args:
        boxes: [B, M, 7].
        points: [B, P, 3].
        box_idxs_of_pts: int32 [B, P], filled with the row of the box, with -1 where there is none.
    """
    for own, cloud, found in zip(boxes, points, box_idxs_of_pts, strict=True):
        found.copy_(points_in_boxes(cloud.float(), _boxes(own), POINT_MARGIN_GPU))
    return 1


def ingroup_indices(group_inds: Tensor, out_inds: Tensor) -> None:
    """Fill out_inds int64 [N] with the place of each row among the rows of the same group, in their order."""
    order = torch.argsort(group_inds, stable=True)
    counts = torch.unique_consecutive(group_inds[order], return_counts=True)[1]
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    out_inds[order] = (torch.arange(len(order), device=order.device) - starts).to(out_inds.dtype)


def _boxes(boxes: Tensor) -> Tensor:
    """Boxes as our operations take them, whatever precision a head computed them in."""
    return boxes.detach().float()


class Point2VoxelCPU3d:
    """`spconv.utils.Point2VoxelCPU3d` by our hard voxelisation; arguments as there.

    Args:
        vsize_xyz: size of a voxel, metres.
        coors_range_xyz: minimum (x, y, z), then maximum.
        num_point_features: columns of the points.
        max_num_voxels: per cloud; points of further voxels are dropped.
        max_num_points_per_voxel: further points of a voxel are dropped.
    """

    def __init__(
        self,
        vsize_xyz: list[float],
        coors_range_xyz: list[float],
        num_point_features: int,
        max_num_voxels: int,
        max_num_points_per_voxel: int,
    ) -> None:
        self.voxel_size = [float(v) for v in vsize_xyz]
        self.point_cloud_range = [float(v) for v in coors_range_xyz]
        self.num_point_features = num_point_features
        self.max_voxels, self.max_points = int(max_num_voxels), int(max_num_points_per_voxel)

    def point_to_voxel(self, pc: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Voxels [M, max_points, C], their coordinates int32 [M, 3] (z, y, x) and numbers of points int32 [M].

        Raises ValueError for points with other columns than were announced.
        """
        if pc.shape[1] != self.num_point_features:
            raise ValueError(f"points must have {self.num_point_features} columns, got {list(pc.shape)}")
        return voxelize(pc.float(), self.point_cloud_range, self.voxel_size, self.max_points, self.max_voxels)


IOU3D_NMS = (
    boxes_iou_bev_cpu,
    boxes_iou_bev_gpu,
    boxes_aligned_iou_bev_cpu,
    boxes_overlap_bev_gpu,
    boxes_aligned_overlap_bev_gpu,
    paired_boxes_overlap_bev_gpu,
    nms_gpu,
    nms_normal_gpu,
)
ROIAWARE_POOL3D = (points_in_boxes_cpu, points_in_boxes_gpu)
# Compiled modules of OpenPCDet, and which of their functions are answered. The others raise when they are called.
MODULES: dict[str, dict[str, Callable[..., Any]]] = {
    "pcdet.ops.iou3d_nms.iou3d_nms_cuda": {f.__name__: f for f in IOU3D_NMS},
    "pcdet.ops.roiaware_pool3d.roiaware_pool3d_cuda": {f.__name__: f for f in ROIAWARE_POOL3D},
    "pcdet.ops.ingroup_inds.ingroup_inds_cuda": {"forward": ingroup_indices},
    "pcdet.ops.roipoint_pool3d.roipoint_pool3d_cuda": {},
    "pcdet.ops.pointnet2.pointnet2_stack.pointnet2_stack_cuda": {},
    "pcdet.ops.pointnet2.pointnet2_batch.pointnet2_batch_cuda": {},
    "pcdet.ops.bev_pool.bev_pool_ext": {},
}
