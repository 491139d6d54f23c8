"""The published OctFormer for a class per point or per cloud (Wang, SIGGRAPH 2023)."""

from __future__ import annotations

from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.backbones.octree import OctreeStages
from pcdet_ext.models.heads.octree import OctreeClassificationHead, OctreeSegmentationHead
from pcdet_ext.models.networks.octree_input import OctreeInput


class OctreeSegmenter(nn.Module):
    """Stages and a head that gives each query point a class.

    Args:
        source: makes octrees for it: `source.octree(points)`.
        stages: the backbone.
        head: on the features of its stages.
    """

    def __init__(self, source: OctreeInput, stages: OctreeStages, head: OctreeSegmentationHead) -> None:
        super().__init__()
        self.source, self.stages, self.head = source, stages, head

    def forward(self, octree: Octree, points: Tensor, batch_index: Tensor) -> Tensor:
        """Logits of points.

        Args:
            octree: of the clouds.
            points: float32 [Q, 3] in [-1, 1].
            batch_index: int64 [Q], the cloud of each point.

        Returns:
            [Q, classes].
        """
        stages = self.stages(self.source.rows(octree, self.stages.options.nempty), octree)
        return self.head(stages, octree, points, batch_index)


class OctreeClassifier(nn.Module):
    """Stages and a head that gives each cloud a class.

    Args:
        source: makes octrees for it: `source.octree(points)`.
        stages: the backbone.
        head: on the features of the last stage.
    """

    def __init__(self, source: OctreeInput, stages: OctreeStages, head: OctreeClassificationHead) -> None:
        super().__init__()
        self.source, self.stages, self.head = source, stages, head

    def forward(self, octree: Octree) -> Tensor:
        """Logits [B, classes] of the clouds."""
        return self.head(self.stages(self.source.rows(octree, self.stages.options.nempty), octree), octree)
