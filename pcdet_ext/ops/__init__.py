"""Operations on points, voxels and boxes: PyTorch references with native CPU and CUDA kernels behind them."""

from pcdet_ext.ops.serialize import deserialize, octree_children, octree_parent, serialize

__all__ = ["deserialize", "octree_children", "octree_parent", "serialize"]
