"""What is known or found about a whole scene beside boxes: map layers, occupancy, futures of objects, the own path.

All of it is in the frame of the sample it belongs to: x forward, y left, z up, metres. Steps of futures and paths are
half seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray
Scope = tuple[float, float, float]  # of an axis of a grid: minimum, maximum, cell size; metres

MAP_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
OCCUPANCY_CLASSES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
    "free",
)
NOT_COUNTED = 255  # the label of an occupancy cell of which nothing is known
COMMANDS = ("left", "right", "straight")  # what a driver is told
STEP = 0.5  # seconds between the steps of futures and paths


def cells_of(scope: Scope) -> int:
    """How many cells an axis of a grid has. Raises ValueError where its range is empty or no whole number of them."""
    low, high, size = scope
    if not (size > 0 and high > low):
        raise ValueError(f"an axis needs a minimum below its maximum and a positive cell size, got {list(scope)}")
    cells = (high - low) / size
    if abs(cells - round(cells)) > 1e-3:
        raise ValueError(f"{low:g} to {high:g} m is no whole number of cells of {size:g} m")
    return round(cells)


@dataclass(frozen=True, eq=False)
class FrameContext:
    """Where and when the frames of a batch were taken, and of which sequences.

    poses: float64 [B, 4, 4], of the frame of the points in the world; timestamps: float64 [B], seconds; sequence_ids:
    of each frame, the same text for frames of one recording, empty for a frame that stands alone. Raises ValueError
    where these differ in number.
    """

    poses: Tensor
    timestamps: Tensor
    sequence_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.poses.shape[1:] != (4, 4) or not len(self.poses) == len(self.timestamps) == len(self.sequence_ids):
            counts = f"{list(self.poses.shape)}, {len(self.timestamps)} timestamps, {len(self.sequence_ids)} sequences"
            raise ValueError(f"poses must be [B, 4, 4], with B timestamps and sequences, got {counts}")

    @staticmethod
    def alone(frames: int) -> FrameContext:
        """Frames of which nothing is known: each stands alone."""
        poses = torch.eye(4, dtype=torch.float64).expand(frames, 4, 4)
        return FrameContext(poses, torch.zeros(frames, dtype=torch.float64), ("",) * frames)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.poses)


@dataclass(frozen=True, eq=False)
class EgoPlan:
    """Where the vehicle went after a frame, ground truth of planning.

    steps: float32 [T, 2], how far it moved along x and y in each half second; mask: bool [T], which steps are known;
    status: float32 [10], acceleration and rate of rotation (x, y, z each), velocity (x, y, z) and steering angle.
    """

    steps: Tensor | Array
    mask: Tensor | Array
    status: Tensor | Array

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.mask):
            raise ValueError(f"{len(self.steps)} steps but {len(self.mask)} entries in mask")

    def map(self, change: Callable[[Any], Any]) -> EgoPlan:
        """The same with every tensor or array replaced by `change` of it."""
        return EgoPlan(change(self.steps), change(self.mask), change(self.status))


class _Found:
    """Results of one frame, whose fields that are tensors can be moved."""

    columns: tuple[str, ...] = ()

    def numpy(self) -> Any:
        """The same with NumPy arrays."""
        return self._map(lambda column: torch.as_tensor(column, device="cpu").detach().numpy())

    def to(self, device: torch.device | str) -> Any:
        """The same with tensors on `device`."""
        return self._map(lambda column: torch.as_tensor(column, device=device))

    def _map(self, change: Callable[[Any], Any]) -> Any:
        changes = {name: change(getattr(self, name)) for name in self.columns}
        return replace(self, **changes)  # type: ignore[type-var]  # every subclass is a dataclass


@dataclass(frozen=True, eq=False)
class MapLayers(_Found):
    """How sure each cell of the ground is to belong to each layer of a map.

    probabilities: float32 [L, Y, X] in [0, 1]; names: of the layers; x, y: the axes of the grid.
    """

    probabilities: Tensor | Array
    names: tuple[str, ...]
    x: Scope
    y: Scope
    columns = ("probabilities",)


@dataclass(frozen=True, eq=False)
class OccupancyGrid(_Found):
    """What fills each cell around the vehicle.

    labels: uint8 [X, Y, Z], positions in class_names; flow: float32 [X, Y, Z, 2], velocity, where a head tells it; x,
    y: the axes of the grid.
    """

    labels: Tensor | Array
    class_names: tuple[str, ...]
    x: Scope
    y: Scope
    flow: Tensor | Array | None = None

    def _map(self, change: Callable[[Any], Any]) -> OccupancyGrid:
        return replace(self, labels=change(self.labels), flow=None if self.flow is None else change(self.flow))


@dataclass(frozen=True, eq=False)
class Forecasts(_Found):
    """Possible paths of the objects that another head found, in its order.

    paths: float32 [M, K, T, 2], x and y after each half second; scores: float32 [M, K], logits; of: name of the head
    that found the objects.
    """

    paths: Tensor | Array
    scores: Tensor | Array
    of: str
    columns = ("paths", "scores")

    def select(self, keep: Tensor | Array | slice) -> Forecasts:
        """The paths of the objects that `keep` (bool [M], int64 [K] or a slice) picks."""
        return Forecasts(self.paths[keep], self.scores[keep], self.of)

    def __len__(self) -> int:
        """Number of objects."""
        return len(self.paths)


@dataclass(frozen=True, eq=False)
class PlannedPath(_Found):
    """The path that the vehicle should take: float32 [T, 2], x and y after each half second."""

    path: Tensor | Array
    columns = ("path",)

    def __len__(self) -> int:
        """Number of steps."""
        return len(self.path)
