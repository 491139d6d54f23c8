"""How clouds become an octree and the features of its leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pcdet_ext.grouping.octree import Octree, build_octree, input_features


@dataclass(frozen=True)
class OctreeInput:
    """What a network reads of clouds in [-1, 1]³.

    depth: of the leaves; full_depth: down to it all nodes exist; features: letters of `input_features`; wrap: a
    coordinate of exactly +1 falls into the first cell of its axis, as published, instead of the last one.
    """

    depth: int
    full_depth: int = 2
    features: str = "P"
    wrap: bool = False

    def octree(
        self,
        points: Sequence[Tensor],
        normals: Sequence[Tensor] | None = None,
        features: Sequence[Tensor] | None = None,
    ) -> Octree:
        """The octree of clouds. Arguments as in `build_octree`."""
        return build_octree(points, self.depth, self.full_depth, normals, features, self.wrap)

    def rows(self, octree: Octree, nempty: bool = True) -> Tensor:
        """Features of the occupied leaves, or of all leaves, zeros where there is no point, with nempty=False."""
        rows = input_features(octree, self.features)
        return rows if nempty else octree.pad(rows, octree.depth)
