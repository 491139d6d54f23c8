"""Heads: from features to what a user asks for. See `base.Head`."""

from pcdet_ext.models.heads.anchor import AnchorHead, AnchorOutput
from pcdet_ext.models.heads.anchor_groups import AnchorGroupsOutput, AnchorHeadMulti
from pcdet_ext.models.heads.base import Features, Head, PointFeatures
from pcdet_ext.models.heads.center import CenterHead, CenterOutput
from pcdet_ext.models.heads.panoptic import PanopticHead
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.segmentation import PointSegmentationHead
from pcdet_ext.models.heads.sparse_center import SparseCenterHead
from pcdet_ext.models.heads.transfusion import QueryOutput, TransFusionHead
from pcdet_ext.models.heads.voxelnext import VoxelNeXtHead

__all__ = [
    "HEADS",
    "AnchorGroupsOutput",
    "AnchorHead",
    "AnchorHeadMulti",
    "AnchorOutput",
    "CenterHead",
    "CenterOutput",
    "Features",
    "Head",
    "PanopticHead",
    "PointFeatures",
    "PointSegmentationHead",
    "QueryOutput",
    "SparseCenterHead",
    "TransFusionHead",
    "VoxelNeXtHead",
]
