"""What flows through the library: typed objects with named fields.

Conventions: LiDAR frame x forward, y left, z up, metres. A box is
``(x, y, z, dx, dy, dz, heading[, vx, vy])`` with z at the box centre and heading counter-clockwise
from +x in radians. Ranges are half-open ``[min, max)``. Voxel coordinates are ``(z, y, x)``. Labels are 0-based.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pcdet_ext import sketch
from pcdet_ext.scenes import EgoPlan, Forecasts, FrameContext, MapLayers, OccupancyGrid, PlannedPath, Scope

Array = np.ndarray

# Decorator: torch.compile runs the function as it is instead of tracing it, for what decides sizes from data and gains
# nothing from compilation. torch's own lazy form of `torch.compiler.disable`, which would import the compiler at once.
untraced = torch._disable_dynamo  # type: ignore[attr-defined]  # torch has no public name for it


def tensor_of(values: Tensor | Array) -> Tensor:
    """The values as a tensor where they are: `torch.as_tensor` would bring them to torch's default device."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


def rows_of(values: Array, keep: Array) -> Array:
    """values[keep] for `keep` bool [N] or int64 [K], without general indexing, which takes several times longer.

    Raises IndexError for rows that are not there.
    """
    if keep.dtype != bool:
        return values.take(keep, axis=0)
    if len(keep) != len(values):
        raise IndexError(f"{len(values)} rows but {len(keep)} flags")
    return values.compress(keep, axis=0)


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


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame as read from a data set.

    points: float32 [N, F]; point_features: name of each of their columns, x, y, z first; targets: what is labelled,
    with arrays, or None; sequence_id: the recording that the frame belongs to, empty where frames stand alone;
    calibration: the format's own object, with the size of its images where there are some; pose: float64 [4, 4],
    sensor to world; timestamp: seconds; point_rows: int64 [N], the row in the frame's file of each point, for results
    that have a line per point of the file, or None where nobody needs it; augmented: float64 [4, 4], what augmentation
    did to the places in the frame, None for nothing; command: what the driver is told, a position in `scenes.COMMANDS`.
    Raises ValueError where columns and their names, or points and their labels, differ in number.
    """

    points: Array
    point_features: tuple[str, ...]
    frame_id: str
    targets: Targets | None = None
    sequence_id: str = ""
    calibration: Any = None
    pose: Array | None = None
    timestamp: float | None = None
    point_rows: Array | None = None
    augmented: Array | None = None
    command: int | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or self.points.shape[1] != len(self.point_features):
            raise ValueError(f"points must be [N, {len(self.point_features)}], got {list(self.points.shape)}")
        names = () if self.targets is None else self.targets.POINT_COLUMNS
        columns = {name.replace("_", " "): getattr(self.targets, name) for name in names}
        for name, column in (columns | {"point rows": self.point_rows}).items():
            if column is not None and len(column) != len(self.points):
                raise ValueError(f"{len(self.points)} points but {len(column)} {name}")

    def replace(self, **changes: Any) -> Sample:
        """A copy with some fields exchanged."""
        return replace(self, **changes)

    def select_points(self, keep: Array) -> Sample:
        """The same with the points, and their labels, that `keep` (bool [N] or int64 [K]) picks, in its order."""
        targets = None if self.targets is None else self.targets.select_points(keep)
        rows = None if self.point_rows is None else self.point_rows[keep]
        return replace(self, points=rows_of(self.points, keep), targets=targets, point_rows=rows)

    def _repr_html_(self) -> str:
        """What a notebook shows: the points from above with the labelled boxes, and a table of these."""
        targets = self.targets or Targets()
        boxes = None if targets.boxes is None else np.asarray(targets.boxes)
        title = (
            f"frame {self.frame_id}: {len(self.points)} points ({', '.join(self.point_features)}), {len(targets)} boxes"
        )
        return sketch.frame_html(title, self.points, boxes, targets.names)


@dataclass(frozen=True, eq=False)
class PointBatch:
    """Points of several frames, and optionally their ground truth.

    points: float32 [P, F]; batch_index: int64 [P], frame of each point, in any order; targets: one of tensors for each
    frame, their labels being positions in the detector's classes; commands: int64 [B], what drivers are told, positions
    in `scenes.COMMANDS`, for heads that plan; context: where and when the frames were taken, on the CPU, for detectors
    that remember.
    """

    points: Tensor
    batch_index: Tensor
    batch_size: int
    targets: tuple[Targets, ...] | None = None
    frame_ids: tuple[str, ...] = ()
    commands: Tensor | None = None
    context: FrameContext | None = None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PointBatch:
        """The same batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PointBatch:
        """The same batch in page-locked memory (called by torch's data loader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, change: Callable[[Tensor], Tensor]) -> PointBatch:
        targets = None if self.targets is None else tuple(t.map(change) for t in self.targets)
        points, batch_index = change(self.points), change(self.batch_index)
        commands = None if self.commands is None else change(self.commands)
        return replace(self, points=points, batch_index=batch_index, targets=targets, commands=commands)

    @staticmethod
    def from_points(clouds: Sequence[Tensor]) -> PointBatch:
        """Join clouds [N_i, F] of equal width into one batch without ground truth."""
        if not clouds:
            raise ValueError("clouds must hold at least one point cloud")
        counts = torch.tensor([len(c) for c in clouds], device=clouds[0].device)
        index = torch.arange(len(clouds), device=clouds[0].device).repeat_interleave(counts)
        return PointBatch(torch.cat(list(clouds)), index, len(clouds))


@dataclass(frozen=True, eq=False)
class SparseVoxels:
    """Features on the occupied cells of a batch of voxel grids.

    features: [N, C]; coords: int32 [N, 4] as (batch, z, y, x), each at most once, but for what `models.temporal` makes;
    grid: (Z, Y, X) cells. point_index: int64 [P], row of the voxel that each point of the batch is in, -1 for none;
    None where nobody asked for it. `plans` caches what depends on the coordinates alone (orders, partitions, neighbour
    tables), so that blocks of one stage share it; `with_features` keeps the cache, because the coordinates stay.
    """

    features: Tensor
    coords: Tensor
    grid: tuple[int, int, int]
    batch_size: int
    plans: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    point_index: Tensor | None = None

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 4:
            raise ValueError(f"coords must be [N, 4], got {tuple(self.coords.shape)}")
        if self.features.ndim != 2 or len(self.features) != len(self.coords):
            raise ValueError(f"features must be [{len(self.coords)}, C], got {tuple(self.features.shape)}")

    def __len__(self) -> int:
        return len(self.coords)

    def with_features(self, features: Tensor) -> SparseVoxels:
        """The same cells with other features [N, C']; cached plans are shared."""
        return replace(self, features=features)

    @untraced
    def plan(self, key: Hashable, make: Callable[[SparseVoxels], Any]) -> Any:
        """The cached plan under `key`, made by `make(self)` the first time; torch.compile does not look inside."""
        if key not in self.plans:
            self.plans[key] = make(self)
        return self.plans[key]

    def dense(self) -> Tensor:
        """All cells [B, C, Z, Y, X], empty ones 0; differentiable."""
        depth, height, width = self.grid
        b, z, y, x = self.coords.long().unbind(1)
        flat = ((b * depth + z) * height + y) * width + x
        cells = self.features.new_zeros(self.batch_size * depth * height * width, self.features.shape[1])
        cells = cells.index_copy(0, flat, self.features)
        return cells.view(self.batch_size, depth, height, width, -1).permute(0, 4, 1, 2, 3)


@dataclass(frozen=True, eq=False)
class Groups:
    """Equal-size groups of voxels.

    index: int64 [G, L], voxel in each slot; inverse: int64 [N], flat slot g * L + l that each voxel reads back;
    valid: bool [G, L], False where a slot is padding or a duplicate, or None when all count; owner: int64 [G, L], slots
    of different owners do not see each other, or None when all of a group do; cells: int [N, 3], cell (z, y, x) of each
    voxel for mixers that look at relative positions, negative for rows without a place; None where nobody told.
    """

    index: Tensor
    inverse: Tensor
    valid: Tensor | None = None
    owner: Tensor | None = None
    cells: Tensor | None = None

    def gather(self, x: Tensor) -> Tensor:
        """Voxel features [N, C] to slots [G, L, C]."""
        return x[self.index]

    def scatter(self, y: Tensor) -> Tensor:
        """Slots [G, L, C] back to voxels [N, C]."""
        return y.reshape(-1, y.shape[-1])[self.inverse]

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.index)

    def group_of_voxel(self) -> Tensor:
        """int64 [N]: the group that each voxel reads back from."""
        return torch.div(self.inverse, self.index.shape[1], rounding_mode="floor")

    def owner_of_voxel(self) -> Tensor:
        """int64 [N]: the owner of the slot that each voxel reads back from, or its group where there are no owners."""
        return self.group_of_voxel() if self.owner is None else self.owner.flatten()[self.inverse]

    def of_slots(self) -> Groups:
        """The same groups for features that are gathered already, slots [G * L, C] in their order."""
        slots = torch.arange(self.index.numel(), device=self.index.device)
        cells = None if self.cells is None else self.cells[self.index.flatten()]
        return _SlotGroups(slots.view(self.index.shape), slots, self.valid, self.owner, cells)


@dataclass(frozen=True, eq=False)
class _SlotGroups(Groups):
    """Groups of slots that lie one behind the other: nothing has to be moved."""

    def gather(self, x: Tensor) -> Tensor:
        return x.view(*self.index.shape, x.shape[-1])

    def scatter(self, y: Tensor) -> Tensor:
        return y.reshape(-1, y.shape[-1])


@dataclass(frozen=True, eq=False)
class Segments:
    """Variable-length runs of voxels.

    order: int64 [N], voxel at each place of the sequence; inverse: int64 [N], place of each voxel;
    offsets: int64 [W + 1], segment w is places offsets[w] to offsets[w + 1].
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor

    def gather(self, x: Tensor) -> Tensor:
        """Voxel features [N, C] in sequence order [N, C]."""
        return x[self.order]

    def scatter(self, y: Tensor) -> Tensor:
        """Sequence [N, C] back to voxel order [N, C]."""
        return y[self.inverse]

    @property
    def num_groups(self) -> int:
        """W, the number of segments."""
        return len(self.offsets) - 1

    def group_of_voxel(self) -> Tensor:
        """int64 [N]: the segment of each voxel."""
        return torch.bucketize(self.inverse, self.offsets[1:], right=True)


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
