"""Detection heads: from a bird's-eye-view map to boxes.

A head has `forward(bev) -> output`, `loss(output, boxes, labels) -> {"total": …}` and `decode(output) -> [Detections]`.
"""

from pcdet_ext.models.heads.anchor import AnchorHead, AnchorOutput
from pcdet_ext.models.heads.center import CenterHead, CenterOutput
from pcdet_ext.models.heads.registry import HEADS
from pcdet_ext.models.heads.transfusion import QueryOutput, TransFusionHead

__all__ = ["HEADS", "AnchorHead", "AnchorOutput", "CenterHead", "CenterOutput", "QueryOutput", "TransFusionHead"]
