"""Operations on points, voxels and boxes: PyTorch references with native CPU and CUDA kernels behind them."""

from pcdet_ext.ops.boxes import (
    iou_3d,
    iou_3d_paired,
    iou_bev,
    iou_bev_paired,
    nms,
    points_in_boxes,
    points_in_each_box,
    shared_area_bev,
    shared_area_bev_paired,
)
from pcdet_ext.ops.causal_conv1d import causal_conv1d
from pcdet_ext.ops.group_attention import group_attention
from pcdet_ext.ops.linear_attention import scattered_linear_attention
from pcdet_ext.ops.octree_conv import octree_depthwise_conv
from pcdet_ext.ops.octree_tokens import OctreeTokens, octree_from_tokens, octree_tokens
from pcdet_ext.ops.rotated_sets import RotatedSets, rotated_sets
from pcdet_ext.ops.segment import segment_argmax, segment_reduce, segment_softmax
from pcdet_ext.ops.selective_scan import selective_scan
from pcdet_ext.ops.serialize import deserialize, octree_children, octree_parent, serialize
from pcdet_ext.ops.voxelize import dynamic_voxelize, grid_size, voxel_coordinates, voxelize
from pcdet_ext.ops.wkv import wkv

__all__ = [
    "OctreeTokens",
    "RotatedSets",
    "causal_conv1d",
    "deserialize",
    "dynamic_voxelize",
    "grid_size",
    "group_attention",
    "iou_3d",
    "iou_3d_paired",
    "iou_bev",
    "iou_bev_paired",
    "nms",
    "octree_children",
    "octree_depthwise_conv",
    "octree_from_tokens",
    "octree_parent",
    "octree_tokens",
    "points_in_boxes",
    "points_in_each_box",
    "rotated_sets",
    "scattered_linear_attention",
    "segment_argmax",
    "segment_reduce",
    "segment_softmax",
    "selective_scan",
    "serialize",
    "shared_area_bev",
    "shared_area_bev_paired",
    "voxel_coordinates",
    "voxelize",
    "wkv",
]
