"""Place recognition: one descriptor per cloud (HOTFormerLoc, Griffiths et al., CVPR 2025)."""

from __future__ import annotations

from torch import Tensor, nn

from pcdet_ext.data.normalize import CloudNormalization
from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.backbones.hotformer import HierarchicalFeatures, HOTFormerStages
from pcdet_ext.models.module_checks import parameter_dtype
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.models.pooling.base import RowFeatures
from pcdet_ext.structures import PointBatch


class HOTFormerLoc(nn.Module):
    """Octree, hierarchical stages and a pooling.

    Args:
        source: how clouds become octrees.
        stages: of HOTFormer.
        pooling: of nodes or relay tokens.
        normalization: how clouds of points come into the cube of the octree.
        unit_length: give descriptors the length 1.

    Raises:
        ValueError: for a pooling of relay tokens on stages that have none, and one of cells.
    """

    def __init__(
        self,
        source: OctreeInput,
        stages: HOTFormerStages,
        pooling: nn.Module,
        normalization: CloudNormalization,
        unit_length: bool = True,
    ) -> None:
        super().__init__()
        if getattr(pooling, "reads", "nodes") == "cells":
            raise ValueError(
                f"{type(pooling).__name__} pools voxels with their cells, which an octree's nodes do not have"
            )
        if getattr(pooling, "reads", "nodes") == "tokens" and not stages.hierarchy.relay_blocks:
            raise ValueError(f"{type(pooling).__name__} pools relay tokens, which these stages do not have")
        self.source, self.stages, self.pooling = source, stages, pooling
        self.normalization, self.unit_length = normalization, unit_length

    def forward(self, batch: PointBatch) -> Tensor:
        """Descriptors [B, D] of clouds; columns of points behind x, y, z are not looked at.

        Raises ValueError for a cloud without points.
        """
        octree = self.octree(batch)
        return self.pool(self.features(octree), octree)

    def octree(self, batch: PointBatch) -> Octree:
        """The octree of clouds as they are. Raises ValueError for a cloud without points."""
        clouds = [batch.points[batch.batch_index == frame, :3] for frame in range(batch.batch_size)]
        return self.source.octree([self.normalization(cloud) for cloud in clouds])

    def features(self, octree: Octree) -> HierarchicalFeatures:
        """Nodes and relay tokens of the hierarchical stage."""
        rows, dtype = self.source.rows(octree, self.stages.options.nempty), parameter_dtype(self)
        return self.stages.hierarchical(rows if dtype is None else rows.to(dtype), octree)

    def pool(self, features: HierarchicalFeatures, octree: Octree) -> Tensor:
        """Descriptors [B, D] from the features of an octree."""
        reads_tokens = getattr(self.pooling, "reads", "nodes") == "tokens"
        rows = token_rows(features) if reads_tokens else node_rows(features, octree, self.stages.options.nempty)
        found = self.pooling(rows)
        return nn.functional.normalize(found) if self.unit_length else found


def node_rows(features: HierarchicalFeatures, octree: Octree, nempty: bool = True) -> list[RowFeatures]:
    """The nodes of each depth, the finest first.

    Args:
        features: of the depths.
        octree: whose nodes they are.
        nempty: whether there are rows of occupied nodes only.
    """
    return [RowFeatures(x, octree.frame(depth, nempty), octree.batch_size) for depth, x in features.nodes.items()]


def token_rows(features: HierarchicalFeatures) -> list[RowFeatures]:
    """The relay tokens of each depth, the finest first, without those of windows of padding."""
    levels = []
    for depth, tokens in features.tokens.items():
        windows = features.windows[depth]
        real = windows.owner < windows.batch_size
        levels.append(RowFeatures(tokens[real], windows.owner[real], windows.batch_size))
    return levels
