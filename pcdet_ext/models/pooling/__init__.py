"""Poolings: from the features of a cloud's nodes, voxels or relay tokens to one descriptor per cloud."""

from pcdet_ext.models.pooling.attention import PyramidAttentionPooling, TokenAttentionPooling
from pcdet_ext.models.pooling.base import Pooling, RowFeatures
from pcdet_ext.models.pooling.fourier import FourierPooling
from pcdet_ext.models.pooling.gem import GeM, PyramidGeM
from pcdet_ext.models.pooling.registry import POOLINGS

__all__ = [
    "POOLINGS",
    "FourierPooling",
    "GeM",
    "Pooling",
    "PyramidAttentionPooling",
    "PyramidGeM",
    "RowFeatures",
    "TokenAttentionPooling",
]
