"""HOTFormerLoc (Griffiths et al., CVPR 2025) as a model that is trained and tested: octrees of whole clouds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.config import construct
from pcdet_ext.data.normalize import CloudNormalization
from pcdet_ext.models.backbones.hotformer import HOTFormerStages, RelayOptions
from pcdet_ext.models.layers.octree_block import OctreeOptions
from pcdet_ext.models.networks.hotformerloc import HOTFormerLoc
from pcdet_ext.models.networks.octree_input import OctreeInput
from pcdet_ext.models.places.recognizer import PlaceModel, frames_with
from pcdet_ext.models.pooling import POOLINGS
from pcdet_ext.models.registry import DETECTORS
from pcdet_ext.structures import PointBatch

COORDINATES = 3  # input channels: the mean point of each leaf


@DETECTORS.register
class OctreePlaceRecognizer(PlaceModel):
    """The published HOTFormerLoc; the defaults are those of its model for CS-Wild-Places.

    Args:
        num_point_features: columns of the points; those behind x, y, z are not looked at.
        positive_radius: metres in x and y within which two frames of a batch show the same place.
        negative_radius: metres from which on they show different ones.
        pooling: configuration.
        depth: of the octree.
        channels: of each stage of OctFormer, then of the hierarchical stage.
        num_blocks: as channels.
        num_levels: depths of the hierarchical stage.
        stem_down: depths between the leaves and the first stage.
        drop_path: rate of stochastic depth of the last block.
        options: settings of `OctreeOptions`.
        relay: settings of `RelayOptions`.
        normalization: settings of `CloudNormalization`, how clouds come into the cube.
        wrap: a coordinate of exactly +1 falls into the first cell of its axis, as published.
        loss: configuration of the loss on descriptors, by default `TruncatedSmoothAP`.
        chunk_size: frames that are worked on at once in training, None for the whole batch; see `PlaceModel`.

    Raises:
        ConfigError: when a component does not fit.
    """

    def __init__(
        self,
        num_point_features: int,
        positive_radius: float,
        negative_radius: float,
        pooling: Mapping[str, Any],
        depth: int = 7,
        channels: Sequence[int] = (128, 256),
        num_blocks: Sequence[int] = (4, 10),
        num_levels: int = 3,
        stem_down: int = 2,
        drop_path: float = 0.5,
        options: Mapping[str, Any] | None = None,
        relay: Mapping[str, Any] | None = None,
        normalization: Mapping[str, Any] | None = None,
        wrap: bool = False,
        loss: Mapping[str, Any] | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(num_point_features, positive_radius, negative_radius, loss, chunk_size)
        if len(channels) != 2:
            raise ValueError(f"channels must be two numbers, got {list(channels)}")
        stages = HOTFormerStages(
            COORDINATES,
            channels,
            num_blocks,
            num_levels=num_levels,
            stem_down=stem_down,
            drop_path=drop_path,
            options=construct(OctreeOptions, {"norm": "layer", "group_size": 64, **(options or {})}),
            relay=construct(RelayOptions, relay or {}),
        )
        self.network = HOTFormerLoc(
            OctreeInput(depth, wrap=wrap),
            stages,
            POOLINGS.build(pooling, channels=[channels[1]] * num_levels),
            construct(CloudNormalization, normalization or {}),
            unit_length=False,
        )

    @property
    def descriptor_size(self) -> int:
        """D of the descriptors."""
        return int(getattr(self.network.pooling, "out_channels"))  # noqa: B009 - of a module, whose type is not known

    def pooled(self, batch: PointBatch) -> tuple[Tensor, Tensor]:
        """Descriptors of the frames that have points, and which these are."""
        there = torch.bincount(batch.batch_index, minlength=batch.batch_size) > 0
        if not bool(there.any()):
            return batch.points.new_zeros(batch.batch_size, self.descriptor_size), there
        if bool(there.all()):
            return self.network(batch), there
        found = self.network(frames_with(batch, there))
        return found.new_zeros(batch.batch_size, found.shape[1]).index_put((there,), found), there
