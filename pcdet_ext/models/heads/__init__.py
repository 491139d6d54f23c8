"""Heads: from features to what a user asks for. See `base.Head`."""

from pcdet_ext.models.heads.anchor import AnchorHead, AnchorOutput
from pcdet_ext.models.heads.anchor_groups import AnchorGroupsOutput, AnchorHeadMulti
from pcdet_ext.models.heads.base import Features, Head, PointFeatures
from pcdet_ext.models.heads.center import CenterHead, CenterOutput
from pcdet_ext.models.heads.fcaf3d import FCAF3DHead, LocationOutput
from pcdet_ext.models.heads.map_segmentation import MapOutput, MapSegmentationHead
from pcdet_ext.models.heads.motion import MotionHead, MotionOutput
from pcdet_ext.models.heads.occupancy import OccupancyHead, OccupancyOutput
from pcdet_ext.models.heads.panoptic import PanopticHead
from pcdet_ext.models.heads.planning import PlanningHead, PlanOutput
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.segmentation import PointSegmentationHead
from pcdet_ext.models.heads.sparse_center import SparseCenterHead
from pcdet_ext.models.heads.transfusion import TransFusionHead
from pcdet_ext.models.heads.transfusion_queries import QueryOutput, QueryTargets
from pcdet_ext.models.heads.voxelnext import VoxelNeXtHead

__all__ = [
    "HEADS",
    "AnchorGroupsOutput",
    "AnchorHead",
    "AnchorHeadMulti",
    "AnchorOutput",
    "CenterHead",
    "CenterOutput",
    "FCAF3DHead",
    "Features",
    "Head",
    "LocationOutput",
    "MapOutput",
    "MapSegmentationHead",
    "MotionHead",
    "MotionOutput",
    "OccupancyHead",
    "OccupancyOutput",
    "PanopticHead",
    "PlanOutput",
    "PlanningHead",
    "PointFeatures",
    "PointSegmentationHead",
    "QueryOutput",
    "QueryTargets",
    "SparseCenterHead",
    "TransFusionHead",
    "VoxelNeXtHead",
]
