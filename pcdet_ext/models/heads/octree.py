"""Heads of octree transformers: a class for every query point, or one for the whole cloud (OctFormer, Wang, 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.octree import OctreeDeconv, octree_global_pool, octree_interpolate
from pcdet_ext.models.layers.octree_block import ConvNorm, OctreeOptions
from pcdet_ext.models.layers.octree_pyramid import OctreePyramid


class OctreeSegmentationHead(nn.Module):
    """A feature pyramid over the stages, transposed convolutions towards the leaves, and a classifier of points.

    Args:
        in_channels: of the stages, the finest first.
        num_classes: columns of the logits.
        channels: of the pyramid and the classifier.
        up: depths from the finest stage down to where points read their features.
        dropout: before both linear layers of the classifier.
        options: of the network.
        wrap: a query at exactly +1 reads the first cell of its axis, as published, instead of the last one.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int,
        up: int,
        dropout: Sequence[float],
        options: OctreeOptions,
        wrap: bool = False,
    ) -> None:
        super().__init__()
        if len(dropout) != 2:
            raise ValueError(f"dropout must be two shares, one per linear layer of the classifier, got {list(dropout)}")
        self.nempty, self.wrap = options.nempty, wrap
        self.pyramid = OctreePyramid(in_channels, channels, options)
        self.up = ModuleListOf(
            ConvNorm(OctreeDeconv(channels, channels, "333", options.nempty), options.make_norm(channels))
            for _ in range(up)
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout[0]),
            nn.Linear(channels, channels),
            options.make_norm(channels),
            nn.ReLU(),
            nn.Dropout(dropout[1]),
            nn.Linear(channels, num_classes),
        )

    def forward(self, stages: Mapping[int, Tensor], octree: Octree, points: Tensor, batch_index: Tensor) -> Tensor:
        """Logits of points; one in a cell without a node has features of zeros.

        Args:
            stages: features of the backbone by depth.
            octree: that they belong to.
            points: float32 [Q, 3] in [-1, 1].
            batch_index: int64 [Q], the cloud of each point.

        Returns:
            [Q, num_classes].
        """
        depth, x = max(stages), self.pyramid(stages, octree)
        for up in self.up:
            x = up(x, octree, depth)
            depth += 1
        x = octree_interpolate(x, octree, depth, points, batch_index, self.nempty, wrap=self.wrap)
        return self.classifier(x)


class OctreeClassificationHead(nn.Module):
    """The mean of each cloud's coarsest features, and two linear layers.

    Args:
        in_channels: of the coarsest stage.
        num_classes: columns of the logits.
        options: of the network.
        dropout: before the last layer.
        channels: of the hidden layer.
    """

    def __init__(
        self, in_channels: int, num_classes: int, options: OctreeOptions, dropout: float = 0.5, channels: int = 256
    ) -> None:
        super().__init__()
        self.nempty = options.nempty
        self.hidden = nn.Linear(in_channels, channels, bias=False)
        self.norm, self.dropout = options.make_norm(channels), nn.Dropout(dropout)
        self.last = nn.Linear(channels, num_classes)

    def forward(self, stages: Mapping[int, Tensor], octree: Octree) -> Tensor:
        """Logits [B, num_classes] of the clouds."""
        depth = min(stages)
        pooled = octree_global_pool(stages[depth], octree, depth, self.nempty)
        return self.last(self.dropout(self.norm(self.hidden(pooled)).relu()))
