"""Mixers: what exchanges information between the voxels of a group or segment."""

from pcdet_ext.mixers.attention import SoftmaxAttention
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.mixers.registry import MIXERS

__all__ = ["MIXERS", "LinearAttention", "SoftmaxAttention"]
