"""Operations on points, voxels and boxes: PyTorch references with native CPU and CUDA kernels behind them."""

from pcdet_ext.ops.linear_attention import scattered_linear_attention
from pcdet_ext.ops.rotated_sets import RotatedSets, rotated_sets
from pcdet_ext.ops.serialize import deserialize, octree_children, octree_parent, serialize

__all__ = [
    "RotatedSets",
    "deserialize",
    "octree_children",
    "octree_parent",
    "rotated_sets",
    "scattered_linear_attention",
    "serialize",
]
