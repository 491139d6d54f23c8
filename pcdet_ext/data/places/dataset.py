"""Frames of a prepared folder for place recognition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pcdet_ext.config import Node, construct
from pcdet_ext.data.base import DATASETS, FrameDataset
from pcdet_ext.data.custom.clouds import Columns
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.places.tuples import neighbours, order_in_pairs
from pcdet_ext.evaluation.places import PlaceEvaluator, Visit
from pcdet_ext.structures import Array, Descriptor, Sample, Targets


@DATASETS.register
@dataclass(kw_only=True, eq=False, repr=False)
class PlacesDataset(FrameDataset):
    """Clouds with the positions at which they were taken; what every data set has is described at `FrameDataset`.

    In training an epoch goes through pairs of frames of the same place, so that every batch of an even size has
    positives for all its frames.

    Args:
        classes: none; places have no classes.
        point_features: x, y, z alone where they are not stated.
        positive_radius: metres, in x and y, within which two frames show the same place.
        negative_radius: metres from which on they show different places; what lies between is neither.

    Raises:
        ValueError: radii that are not positive, or not in this order; training frames without any positive pair.
    """

    classes: Sequence[str] = ()
    positive_radius: float
    negative_radius: float

    measures: ClassVar[type] = Descriptor
    LAYOUT: ClassVar[str] = "places"
    PAIRED: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.positive_radius <= self.negative_radius < np.inf:
            raise ValueError(
                "positive_radius must be above 0 and at most negative_radius, got "
                f"{self.positive_radius} and {self.negative_radius}"
            )
        super().__post_init__()
        self.columns = Columns.of_json(self.all_frames[0].extra["columns"])
        if self.training and not any(map(len, self._partners)):
            raise ValueError(
                f"{self.all_frames.path}: no two frames are within positive_radius {self.positive_radius:g} m"
            )

    def check_classes(self) -> None:
        """Raises ValueError for classes: frames have none."""
        if self.classes:
            raise ValueError(f"classes: places have none, got {', '.join(self.classes)}")

    @property
    def labelled(self) -> bool:
        """Every frame has a position."""
        return True

    def available_features(self) -> tuple[str, ...]:
        """The columns of the folder's clouds."""
        return Columns.of_json(self.all_frames[0].extra["columns"]).features

    def read(self, info: FrameInfo) -> Sample:
        """A frame with all its points, and its position as what is to be learned."""
        path = Path(self.root) / info.extra["cloud"]
        points = self.check_points(self.columns.read(path), info, path)
        position = None if info.pose is None else info.pose[:3, 3]
        return Sample(
            points,
            self.columns.features,
            info.frame_id,
            Targets(position=position),
            info.sequence_id,
            pose=info.pose,
            timestamp=info.timestamp,
        )

    def epoch_order(self, rng: np.random.Generator) -> Array:
        """Pairs of samples of the same place, in random order; see `order_in_pairs`."""
        order = order_in_pairs(self._partners, rng)
        return np.concatenate([order + len(self.frames) * again for again in range(self.repeat)])

    @cached_property
    def _partners(self) -> list[Array]:
        xy = np.array([pose[:2, 3] for info in self.frames if (pose := info.pose) is not None])
        return neighbours(xy, self.positive_radius)

    def evaluator(self, options: Mapping[str, Any] | None = None) -> PlaceEvaluator:
        """Recall for pairs of runs; see `PlaceEvaluator`. options: its `radius` and `candidates`.

        Raises ConfigError for other options, and where no run could be looked up in another one.
        """

        def place_metric(radius: float = self.positive_radius, candidates: int = 25) -> PlaceEvaluator:
            return PlaceEvaluator(self._visits, radius, candidates)

        options = options if isinstance(options, Node) else Node(options or {}, "test.metric")
        return construct(place_metric, options)

    @cached_property
    def _visits(self) -> Mapping[str, Visit]:
        return {info.frame_id: _visit(info) for info in self.frames}


def _visit(info: FrameInfo) -> Visit:
    assert info.pose is not None  # every frame was prepared with a position
    x, y, z = info.pose[:3, 3].tolist()
    return Visit(info.sequence_id, x, y, z, info.extra["heading"], info.extra["view"])
