"""Mixers: what exchanges information between the voxels of a group or segment, bare of everything around it."""

from pcdet_ext.mixers.attention import SoftmaxAttention
from pcdet_ext.mixers.base import Mixer
from pcdet_ext.mixers.linear_attention import LinearAttention
from pcdet_ext.mixers.mamba import Mamba
from pcdet_ext.mixers.octree_attention import OctreeAttention
from pcdet_ext.mixers.registry import MIXERS
from pcdet_ext.mixers.retnet import RetNet
from pcdet_ext.mixers.rwkv import RWKV
from pcdet_ext.mixers.ttt import TTT
from pcdet_ext.mixers.xlstm import XLSTM

__all__ = [
    "MIXERS",
    "RWKV",
    "TTT",
    "XLSTM",
    "LinearAttention",
    "Mamba",
    "Mixer",
    "OctreeAttention",
    "RetNet",
    "SoftmaxAttention",
]
