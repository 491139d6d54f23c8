"""Ground truth of one frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from pcdet_ext.scenes import EgoPlan, Scope
from pcdet_ext.structures.arrays import Array, tensor_of


@dataclass(frozen=True, eq=False)
class Targets:
    """Ground truth of one frame; every field is optional, what is None is not labelled.

    All values are tensors, or all are arrays:
      boxes         float32 [M, 7] or [M, 9]
      labels        int64 [M], 0-based positions in `class_names`
      class_names   names of the classes
      track_ids     int64 [M], the same number for one object in all frames of a sequence
      difficulty    int64 [M], as the data set counts it, -1 for none
      num_points    int64 [M], LiDAR points inside each box
      point_labels  int64 [P], the class of each point
      point_instances  int64 [P], a number for each object, the same in all frames of a sequence; 0 for no object
      futures       float32 [M, T, 2], how far each object moves along x and y in each of the next half seconds
      future_mask   bool [M, T], which of these steps are known; the others are 0
      maps          named dense maps, such as a segmentation of the bird's-eye view
      map_masks     uint8 [L, Y, X], whether a cell of the ground belongs to each layer of the map
      map_grid      the axes x and y of its grid
      occupancy     uint8 [X, Y, Z], the class of each cell, 255 where nothing is known
      occupancy_grid  the axes x and y of its grid
      occupancy_flow  float32 [X, Y, Z, 2], the velocity of what is in each cell
      plan          `EgoPlan`, where the vehicle went
      position      float64 [3], x, y, z in the world of where the sensor was, metres

    Raises ValueError for columns of another length than the boxes.
    """

    boxes: Tensor | Array | None = None
    labels: Tensor | Array | None = None
    class_names: tuple[str, ...] = ()
    track_ids: Tensor | Array | None = None
    difficulty: Tensor | Array | None = None
    num_points: Tensor | Array | None = None
    point_labels: Tensor | Array | None = None
    point_instances: Tensor | Array | None = None
    maps: Mapping[str, Tensor | Array] = field(default_factory=dict)
    position: Tensor | Array | None = None
    futures: Tensor | Array | None = None
    future_mask: Tensor | Array | None = None
    map_masks: Tensor | Array | None = None
    map_grid: tuple[Scope, Scope] | None = None
    occupancy: Tensor | Array | None = None
    occupancy_grid: tuple[Scope, Scope] | None = None
    occupancy_flow: Tensor | Array | None = None
    plan: EgoPlan | None = None

    BOX_COLUMNS: ClassVar[tuple[str, ...]] = (
        "labels",
        "track_ids",
        "difficulty",
        "num_points",
        "futures",
        "future_mask",
    )
    POINT_COLUMNS: ClassVar[tuple[str, ...]] = ("point_labels", "point_instances")
    GRIDS: ClassVar[tuple[str, ...]] = ("map_masks", "occupancy", "occupancy_flow")

    @staticmethod
    def of_names(boxes: Array, names: Sequence[str], **columns: Any) -> Targets:
        """Targets from boxes [M, 7 or 9] and one class name per box; classes are numbered as they first occur.

        columns: further fields of the targets. Raises ValueError where names and boxes differ in number.
        """
        if len(names) != len(boxes):
            raise ValueError(f"{len(boxes)} boxes but {len(names)} names")
        classes = tuple(dict.fromkeys(names))
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[name] for name in names], np.int64)
        return Targets(boxes, labels, classes, **columns)

    def __post_init__(self) -> None:
        boxes = self.boxes
        if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] not in (7, 9)):
            raise ValueError(f"boxes must be [M, 7] or [M, 9], got {tuple(boxes.shape)}")
        for name in self.BOX_COLUMNS:
            column = getattr(self, name)
            if column is not None and len(column) != len(self):
                raise ValueError(f"{len(self)} boxes but {len(column)} entries in {name}")

    def __len__(self) -> int:
        """Number of boxes."""
        return 0 if self.boxes is None else len(self.boxes)

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each box."""
        return () if self.labels is None else tuple(self.class_names[int(i)] for i in self.labels)

    def of_classes(self, classes: Sequence[str]) -> Targets:
        """The boxes of some classes alone, their labels being positions in `classes`; arrays only.

        Without boxes or labels the class names are exchanged and nothing else; point labels stay as they are.
        """
        classes = tuple(classes)
        if self.labels is None or self.class_names == classes:
            return replace(self, class_names=classes)
        number = {name: i for i, name in enumerate(classes)}
        renamed = np.array([number.get(name, -1) for name in self.class_names], np.int64)
        labels = renamed[self.labels] if len(self) else np.zeros(0, np.int64)
        return replace(self, labels=labels, class_names=classes).select(labels >= 0)

    def replace(self, **changes: Any) -> Targets:
        """A copy with some fields exchanged."""
        return replace(self, **changes)

    def select(self, keep: Tensor | Array) -> Targets:
        """The same with the boxes that `keep` (bool [M] or int64 [K]) picks, in its order."""
        columns = {name: getattr(self, name) for name in ("boxes", *self.BOX_COLUMNS)}
        return replace(self, **{name: column[keep] for name, column in columns.items() if column is not None})

    def select_points(self, keep: Tensor | Array) -> Targets:
        """The same with the labels of the points that `keep` (bool [P] or int64 [K]) picks, in its order."""
        columns = {name: getattr(self, name) for name in self.POINT_COLUMNS}
        return replace(self, **{name: column[keep] for name, column in columns.items() if column is not None})

    def map(self, change: Callable[[Any], Any]) -> Targets:
        """The same with every tensor or array replaced by `change` of it."""
        names = ("boxes", *self.BOX_COLUMNS, *self.POINT_COLUMNS, *self.GRIDS, "position")
        columns = {name: change(value) for name in names if (value := getattr(self, name)) is not None}
        plan = None if self.plan is None else self.plan.map(change)
        return replace(self, **columns, plan=plan, maps={name: change(value) for name, value in self.maps.items()})

    def tensors(self) -> Targets:
        """The same with tensors, which share memory with the arrays."""
        return self.map(tensor_of)
