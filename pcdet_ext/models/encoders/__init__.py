"""Encoders: from points to features of the occupied voxels or pillars. See `hard`, `dynamic`, `mean` and `octree`."""

from pcdet_ext.models.encoders.dynamic import DynamicPillarVFE, DynamicPillarVFESimple2D, DynamicVoxelVFE
from pcdet_ext.models.encoders.hard import PillarVFE
from pcdet_ext.models.encoders.mean import DynamicMeanVFE, MeanVFE
from pcdet_ext.models.encoders.octree import OctreeVFE
from pcdet_ext.models.encoders.registry import ENCODERS

__all__ = [
    "ENCODERS",
    "DynamicMeanVFE",
    "DynamicPillarVFE",
    "DynamicPillarVFESimple2D",
    "DynamicVoxelVFE",
    "MeanVFE",
    "OctreeVFE",
    "PillarVFE",
]
