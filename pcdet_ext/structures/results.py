"""What a detector finds in one frame: boxes, classes of points, the descriptor of a place, or several of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_ext import sketch
from pcdet_ext.scenes import Forecasts, MapLayers, OccupancyGrid, PlannedPath
from pcdet_ext.structures.arrays import Array, tensor_of


@dataclass(frozen=True, eq=False)
class Detections:
    """What a detector found in one frame.

    boxes: float32 [M, 7 or 9]; scores: float32 [M] in [0, 1]; labels: int64 [M] into class_names; track_ids: int64 [M],
    the same number for one object in all frames of a sequence, or None; queries: int64 [M], the query of the head that
    each was made of, or None. All are tensors, or (after `numpy()`) arrays.
    """

    boxes: Tensor | Array
    scores: Tensor | Array
    labels: Tensor | Array
    class_names: tuple[str, ...]
    frame_id: str = ""
    track_ids: Tensor | Array | None = None
    queries: Tensor | Array | None = None

    def __post_init__(self) -> None:
        if not len(self.boxes) == len(self.scores) == len(self.labels):
            raise ValueError(f"{len(self.boxes)} boxes, {len(self.scores)} scores, {len(self.labels)} labels")
        if self.track_ids is not None and len(self.track_ids) != len(self.boxes):
            raise ValueError(f"{len(self.boxes)} boxes, {len(self.track_ids)} track_ids")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.class_names[int(i)] for i in self.labels]

    def select(self, keep: Tensor | Array | slice) -> Detections:
        """The detections that `keep` (bool [M], int64 [K] or a slice) picks."""
        return self._map(lambda column: column[keep])

    def above(self, score: float) -> Detections:
        """Those with a score of at least `score`."""
        return self.select(self.scores >= score)

    def numpy(self) -> Detections:
        """The same with NumPy arrays."""
        if isinstance(self.boxes, np.ndarray):
            return self
        return self._map(lambda column: torch.as_tensor(column, device="cpu").detach().numpy())

    def to(self, device: torch.device | str) -> Detections:
        """The same with tensors on `device`."""
        return self._map(lambda column: torch.as_tensor(column, device=device))

    def _map(self, change: Callable[[Any], Any]) -> Detections:
        columns = {name: getattr(self, name) for name in ("boxes", "scores", "labels", "track_ids", "queries")}
        return replace(self, **{name: change(column) for name, column in columns.items() if column is not None})

    def _repr_html_(self) -> str:
        """What a notebook shows: the boxes from above, and a table of the best of them."""
        found = self.numpy()
        tracks = None if found.track_ids is None else np.asarray(found.track_ids)
        names, classes = found.names, self.class_names
        return sketch.found_html(np.asarray(found.boxes), np.asarray(found.scores), names, classes, tracks)


@dataclass(frozen=True, eq=False)
class PointLabels:
    """A class for each point of one frame, and where objects are told apart, the object that it is of.

    labels: int64 [N], positions in class_names, -1 for points without one; scores: float32 [N] in [0, 1]; instances:
    int64 [N], a number from 1 for each object of the frame, 0 for points of none, or None. All are tensors, or (after
    `numpy()`) arrays.
    """

    labels: Tensor | Array
    scores: Tensor | Array
    class_names: tuple[str, ...]
    instances: Tensor | Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: Tensor | Array | slice) -> PointLabels:
        """The labels of the points that `keep` (bool [N], int64 [K] or a slice) picks, in its order."""
        return self._map(lambda column: column[keep])

    def numpy(self) -> PointLabels:
        """The same with NumPy arrays."""
        if isinstance(self.labels, np.ndarray):
            return self
        return self._map(lambda column: torch.as_tensor(column, device="cpu").detach().numpy())

    def to(self, device: torch.device | str) -> PointLabels:
        """The same with tensors on `device`."""
        return self._map(lambda column: torch.as_tensor(column, device=device))

    def _map(self, change: Callable[[Any], Any]) -> PointLabels:
        columns = {name: getattr(self, name) for name in ("labels", "scores", "instances")}
        return replace(self, **{name: change(column) for name, column in columns.items() if column is not None})


@dataclass(frozen=True, eq=False)
class Descriptor:
    """What tells the place of one frame from others: places that look alike have descriptors at a small distance.

    values: float32 [D], a tensor or (after `numpy()`) an array; all zeros for a frame without points in range.
    """

    values: Tensor | Array
    frame_id: str = ""

    def __len__(self) -> int:
        return len(self.values)

    def numpy(self) -> Descriptor:
        """The same with a NumPy array."""
        return replace(self, values=torch.as_tensor(self.values, device="cpu").detach().numpy())

    def to(self, device: torch.device | str) -> Descriptor:
        """The same with a tensor on `device`."""
        return replace(self, values=torch.as_tensor(self.values, device=device))


Found = Detections | PointLabels | MapLayers | OccupancyGrid | Forecasts | PlannedPath  # by a head in one frame


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the heads of a detector with several of them found in one frame, by the name of the head."""

    heads: Mapping[str, Found]

    @property
    def detections(self) -> Detections:
        """The boxes of all heads that find boxes, in the order of the heads, with the class names of them all.

        Where only some heads tell velocities, the boxes of the others stand still. Raises ValueError where no head
        finds boxes.
        """
        found = [part for part in self.heads.values() if isinstance(part, Detections)]
        if not found:
            raise ValueError(f"none of the heads {', '.join(self.heads)} finds boxes")
        return found[0] if len(found) == 1 else _joined(found)

    def followed_by(self, forecasts: Forecasts) -> Detections:
        """The boxes whose paths are forecast, one for each row of the forecasts.

        Raises ValueError where the head that the forecasts name found no boxes, or another number of them.
        """
        boxes = self.heads.get(forecasts.of)
        if not isinstance(boxes, Detections):
            raise ValueError(f"forecasts follow the boxes of the head {forecasts.of!r}, which found none that are here")
        if len(boxes) != len(forecasts):
            raise ValueError(f"{len(forecasts)} forecasts for the {len(boxes)} boxes of the head {forecasts.of!r}")
        return boxes

    def select(self, which: Callable[[Detections], Tensor | Array | slice]) -> Predictions:
        """The same with those boxes of each head that `which` picks (bool [M], int64 [K] or a slice), and with the
        forecasts of these."""
        picked = {name: which(part) for name, part in self.heads.items() if isinstance(part, Detections)}

        def own(name: str, part: Found) -> Found:
            if isinstance(part, Detections):
                return part.select(picked[name])
            return part.select(picked[part.of]) if isinstance(part, Forecasts) and part.of in picked else part

        return Predictions({name: own(name, part) for name, part in self.heads.items()})

    def above(self, score: float) -> Predictions:
        """The same with the boxes that have a score of at least `score`, and the forecasts of these."""
        return self.select(lambda boxes: boxes.scores >= score)

    def __getitem__(self, name: str) -> Found:
        return self.heads[name]

    def numpy(self) -> Predictions:
        """The same with NumPy arrays."""
        return Predictions({name: found.numpy() for name, found in self.heads.items()})

    def to(self, device: torch.device | str) -> Predictions:
        """The same with tensors on `device`."""
        return Predictions({name: found.to(device) for name, found in self.heads.items()})


def _joined(parts: Sequence[Detections]) -> Detections:
    """The detections of several heads in one frame as one, labelled by one list of class names."""
    names = tuple(dict.fromkeys(name for part in parts for name in part.class_names))
    width = max(part.boxes.shape[1] for part in parts)
    boxes, labels = [], []
    for part in parts:
        own = tensor_of(part.boxes)
        boxes.append(torch.cat([own, own.new_zeros(len(own), width - own.shape[1])], 1))
        number = torch.tensor([names.index(n) for n in part.class_names], dtype=torch.int64, device=own.device)
        labels.append(number[tensor_of(part.labels)])
    scores = torch.cat([tensor_of(part.scores) for part in parts])
    joined = Detections(torch.cat(boxes), scores, torch.cat(labels), names, parts[0].frame_id)
    return joined.numpy() if isinstance(parts[0].boxes, np.ndarray) else joined
