"""3-D backbones: SparseVoxels to SparseVoxels."""

from pcdet_ext.models.backbones.dsvt import DSVT
from pcdet_ext.models.backbones.flatformer import FlatFormer
from pcdet_ext.models.backbones.hotformer import HOTFormer
from pcdet_ext.models.backbones.lion import LION
from pcdet_ext.models.backbones.octformer import OctFormer
from pcdet_ext.models.backbones.pillarnet import PillarBackBone8x, PillarRes18BackBone8x
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.backbones.scatterformer import ScatterFormer
from pcdet_ext.models.backbones.second import VoxelBackBone8x, VoxelResBackBone8x
from pcdet_ext.models.backbones.sequence import SequenceBackbone
from pcdet_ext.models.backbones.voxelnext import VoxelResBackBone8xVoxelNeXt, VoxelResBackBone8xVoxelNeXt2D

__all__ = [
    "BACKBONES",
    "DSVT",
    "LION",
    "FlatFormer",
    "HOTFormer",
    "OctFormer",
    "PillarBackBone8x",
    "PillarRes18BackBone8x",
    "ScatterFormer",
    "SequenceBackbone",
    "VoxelBackBone8x",
    "VoxelResBackBone8x",
    "VoxelResBackBone8xVoxelNeXt",
    "VoxelResBackBone8xVoxelNeXt2D",
]
