"""Bird's-eye-view maps: from sparse voxels to a dense map, and the 2-D convolutional backbones on it."""

from pcdet_ext.models.bev.cascade import CascadeDEDBackbone
from pcdet_ext.models.bev.flatten import flatten_to_bev
from pcdet_ext.models.bev.pillarnet import PillarNetNeck
from pcdet_ext.models.bev.registry import BEV_BACKBONES
from pcdet_ext.models.bev.residual import BaseBEVResBackbone
from pcdet_ext.models.bev.resnet import ResNetFPN
from pcdet_ext.models.bev.second import SECONDFPN, BaseBEVBackbone

__all__ = [
    "BEV_BACKBONES",
    "SECONDFPN",
    "BaseBEVBackbone",
    "BaseBEVResBackbone",
    "CascadeDEDBackbone",
    "PillarNetNeck",
    "ResNetFPN",
    "flatten_to_bev",
]
