"""Occupancy on nuScenes (Occ3D): IoU of voxels, and RayIoU, flow errors and panoptic quality along LiDAR-like rays.

Tian et al., "Occ3D", NeurIPS 2023; Liu et al., "Fully Sparse 3D Occupancy Prediction", ECCV 2024 (RayIoU, RayPQ); the
flow errors are those of OpenOcc. All are as UniLION's evaluators have them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pcdet_ext.evaluation.base import Plot
from pcdet_ext.evaluation.occupancy_panoptic import RayPanoptic
from pcdet_ext.evaluation.occupancy_rays import FREE, SHAPE, cast
from pcdet_ext.structures import Array

CLASSES = (
    "others", "barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone",
    "trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation", "free",
)  # fmt: skip
THINGS = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle", "pedestrian")
MOVING = THINGS  # whose flow is measured
THRESHOLDS = (1, 2, 4)  # metres
FLOW_THRESHOLD = 1  # place of 2 m among these
MASKS = ("all", "lidar_mask", "camera_mask")
NAN = float("nan")


@dataclass(frozen=True, eq=False)
class Occupancy:
    """One side of a frame: labels uint8 [200, 200, 16] in the vehicle's frame, axes x, y, z; 17 is free.

    flow: float32 [200, 200, 16, 2] in m/s; instances: integers [200, 200, 16], 0 for none; mask_lidar, mask_camera:
    uint8 [200, 200, 16], of ground truth. All but the labels may be None.
    """

    labels: Array
    flow: Array | None = None
    instances: Array | None = None
    mask_lidar: Array | None = None
    mask_camera: Array | None = None

    def __post_init__(self) -> None:
        for name, more in (("labels", ()), ("flow", (2,)), *((n, ()) for n in MASK_FIELDS)):
            value = getattr(self, name)
            if value is not None and value.shape != (*SHAPE, *more):
                raise ValueError(f"{name} must be {[*SHAPE, *more]}, got {list(value.shape)}")
        if self.labels.dtype != np.uint8:
            raise ValueError(f"labels must be uint8, got {self.labels.dtype}")


MASK_FIELDS = ("instances", "mask_lidar", "mask_camera")


@dataclass(frozen=True, eq=False)
class RayCounts:
    """Rays by class: truth, found int64 [18]; true int64 [3, 18] at each threshold; flow: float64 [18], errors summed
    over the true positives at 2 m of frames with flow, None without flow; with_flow: int64 [18], how many these are;
    panoptic: what matching segments gave, None without instances."""

    truth: Array
    found: Array
    true: Array
    flow: Array | None
    with_flow: Array
    panoptic: RayPanoptic | None

    def iou(self) -> Array:
        """float64 [3, 17]; NaN for classes that no ray hits."""
        union = (self.truth + self.found - self.true)[:, :FREE]
        return np.divide(self.true[:, :FREE], union, out=np.full(union.shape, np.nan), where=union > 0)

    def flow_errors(self) -> Array:
        """Mean flow error of each moving class in m/s, float64 [17]; NaN for the others, and without true positives."""
        count = self.with_flow[:FREE]
        moving = np.isin(CLASSES[:FREE], MOVING) & (count > 0)
        flow = np.zeros(FREE) if self.flow is None else self.flow[:FREE]
        return np.divide(flow, count, out=np.full(FREE, np.nan), where=moving)

    def values(self) -> dict[str, float]:
        """RayIoU, with flow mAVE and OccScore."""
        found = _means("RayIoU", self.iou())
        if self.flow is not None:
            found["mAVE"] = _mean(self.flow_errors())
            found["OccScore"] = 0.9 * found["RayIoU"] + 0.1 * max(1 - found["mAVE"], 0.0)
        return found

    def to_json(self) -> dict[str, Any]:
        """All numbers; NaN is null."""
        counts = {"gt": self.truth.tolist(), "pred": self.found.tolist(), "tp": self.true.tolist()}
        found: dict[str, Any] = {name: _plain(value) for name, value in self.values().items()}
        found |= {"iou_per_class": [[_plain(v) for v in row] for row in self.iou()], "counts": counts}
        if self.flow is not None:
            found["ave_per_class"] = [_plain(v) for v in self.flow_errors()]
        return found


def _means(name: str, table: Array) -> dict[str, float]:
    """Means of a table [3, C] over the thresholds and all classes, and over the classes at each threshold."""
    return {name: _mean(table)} | {f"{name}@{t}": _mean(row) for t, row in zip(THRESHOLDS, table, strict=True)}


def _mean(values: Array) -> float:
    return NAN if np.isnan(values).all() else float(np.nanmean(values))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


@dataclass(frozen=True, eq=False)
class OccupancyResult:
    """What was counted.

    confusion: int64 [18, 18] (truth, found) by the name of the mask: "all", "lidar_mask", "camera_mask"; rays: None
    where no poses were given.
    """

    confusion: Mapping[str, Array]
    rays: RayCounts | None

    def iou(self, mask: str = "all") -> Array:
        """IoU of the voxels of each class, float64 [18]; NaN for classes on neither side."""
        table = self.confusion[mask]
        own = np.diagonal(table)
        union = table.sum(axis=0) + table.sum(axis=1) - own
        return np.divide(own, union, out=np.full(len(own), np.nan), where=union > 0)

    def mean_iou(self, mask: str = "all") -> float:
        """mIoU: over the classes that are not free."""
        return _mean(self.iou(mask)[:FREE])

    @property
    def score(self) -> float:
        """What "better" means: the RayIoU, without rays the mIoU of all voxels."""
        return self.mean_iou() if self.rays is None else self.rays.values()["RayIoU"]

    @property
    def values(self) -> dict[str, float]:
        """The usual numbers by name."""
        found = {f"mIoU/{mask}": self.mean_iou(mask) for mask in self.confusion}
        if self.rays is not None:
            found |= self.rays.values()
            if self.rays.panoptic is not None:
                found |= _means("RayPQ", self.rays.panoptic.quality())
        return found

    def table(self) -> str:
        """One row for each class in percent, and the means."""
        columns = {f"IoU {mask.removesuffix('_mask')}": self.iou(mask)[:FREE] for mask in self.confusion}
        if self.rays is not None:
            columns |= {f"Ray@{t}": row for t, row in zip(THRESHOLDS, self.rays.iou(), strict=True)}
        lines = [f"{'%':<22}" + "".join(f"{name:>12}" for name in columns)]
        for c, name in enumerate(CLASSES[:FREE]):
            lines.append(f"{name:<22}" + "".join(f"{100 * column[c]:>12.2f}" for column in columns.values()))
        lines.append(f"{'mean':<22}" + "".join(f"{100 * _mean(column):>12.2f}" for column in columns.values()))
        return "\n".join([*lines, *(f"{name}: {value:.4f}" for name, value in self.values.items())])

    def plots(self) -> Sequence[Plot]:
        """RayIoU over the threshold, of each class."""
        if self.rays is None:
            return []
        axis, table = np.array(THRESHOLDS), self.rays.iou()
        return [Plot("ray_iou", "metres", "IoU", {c: (axis, table[:, i]) for i, c in enumerate(CLASSES[:FREE])})]

    def to_json(self) -> dict[str, Any]:
        """All numbers and counts; NaN is null."""
        found: dict[str, Any] = {"voxel": {mask: self._voxel_json(mask) for mask in self.confusion}}
        if self.rays is not None:
            found["ray"] = self.rays.to_json()
            if self.rays.panoptic is not None:
                found["ray_pq"] = _panoptic_json(self.rays.panoptic)
        return found

    def _voxel_json(self, mask: str) -> dict[str, Any]:
        classes = {name: _plain(v) for name, v in zip(CLASSES[:FREE], self.iou(mask)[:FREE], strict=True)}
        return {**classes, "mIoU": _plain(self.mean_iou(mask)), "confusion": self.confusion[mask].tolist()}


def _panoptic_json(panoptic: RayPanoptic) -> dict[str, Any]:
    found: dict[str, Any] = {n: _plain(v) for n, v in _means("RayPQ", panoptic.quality()).items()}
    tables = {"tp": panoptic.true, "fp": panoptic.false, "fn": panoptic.missed, "iou_sum": panoptic.overlap}
    # Free voxels are never a segment, but have a place in the published lists.
    return found | {name: np.pad(table, ((0, 0), (0, 1))).tolist() for name, table in tables.items()}


@dataclass
class OccupancyCounts:
    """Adds up frames one by one: voxels of all, and rays of those whose origins are given."""

    _voxels: Array = field(default_factory=lambda: np.zeros((len(MASKS), len(CLASSES), len(CLASSES)), np.int64))
    _masked: list[bool] = field(default_factory=lambda: [True, True, True])  # whether all frames had each mask
    _rays: Array = field(default_factory=lambda: np.zeros((2 + len(THRESHOLDS), 256), np.int64))
    _flow: Array = field(default_factory=lambda: np.zeros(256))
    _with_flow: Array = field(default_factory=lambda: np.zeros(256, np.int64))
    _has_rays: bool = False
    _has_flow: bool = False
    _panoptic: RayPanoptic | None = None

    def add(self, truth: Occupancy, found: Occupancy, starts: Array | None = None) -> None:
        """Take one frame.

        Args:
            truth: labels 0 to 17, 255 where nothing is known (voxels that do not count; rays stop there all the same).
            found: labels 0 to 17.
            starts: where rays are cast from, float64 [O, 3], see `occupancy_rays.origins`.

        Raises:
            ValueError: a prediction has other labels, or flow or instances that the truth lacks, or the reverse.
        """
        if int(found.labels.max()) > FREE:
            raise ValueError(f"labels of predictions go from 0 to {FREE}, got {int(found.labels.max())}")
        for name in ("flow", "instances"):
            if (getattr(truth, name) is None) != (getattr(found, name) is None):
                raise ValueError(f"{name} is given for one side only")
        self._add_voxels(truth, found)
        if starts is not None:
            self._add_rays(truth, found, np.asarray(starts, np.float64).reshape(-1, 3))

    def _add_voxels(self, truth: Occupancy, found: Occupancy) -> None:
        from pcdet_ext.evaluation.compiled_rays import count_voxels

        none = np.zeros(truth.labels.size, np.uint8)
        given = (truth.mask_lidar, truth.mask_camera)
        lidar, camera = (none if mask is None else (mask != 0).astype(np.uint8).reshape(-1) for mask in given)
        self._masked[1] &= truth.mask_lidar is not None
        self._masked[2] &= truth.mask_camera is not None
        self._voxels += count_voxels(truth.labels.reshape(-1), found.labels.reshape(-1), lidar, camera, len(CLASSES))

    def _add_rays(self, truth: Occupancy, found: Occupancy, starts: Array) -> None:
        self._has_rays = True
        hits = cast(truth.labels, starts)
        real = truth.labels.reshape(-1)[hits.voxel] != FREE  # a ray through empty space has no right answer
        others = cast(found.labels, starts, real)
        voxel, other = hits.voxel[real], others.voxel[real]
        own, given = truth.labels.reshape(-1)[voxel], found.labels.reshape(-1)[other]
        error = np.abs(others.distance[real] - hits.distance[real])
        self._rays[0] += np.bincount(own, minlength=256)
        self._rays[1] += np.bincount(given, minlength=256)
        near = [(own == given) & (error < np.float32(t)) for t in THRESHOLDS]
        for row, hit in zip(self._rays[2:], near, strict=True):
            row += np.bincount(own[hit], minlength=256)
        if truth.flow is not None and found.flow is not None:
            self._has_flow, hit = True, near[FLOW_THRESHOLD]
            gap = truth.flow.reshape(-1, 2)[voxel[hit]] - found.flow.reshape(-1, 2)[other[hit]]
            self._with_flow += np.bincount(own[hit], minlength=256)
            self._flow += np.bincount(own[hit], np.sqrt((gap**2).sum(axis=1)), 256)
        if truth.instances is not None and found.instances is not None:
            if self._panoptic is None:
                things = frozenset(CLASSES.index(name) for name in THINGS)
                self._panoptic = RayPanoptic(FREE, things, THRESHOLDS)
            ids = truth.instances.reshape(-1)[voxel], found.instances.reshape(-1)[other]
            self._panoptic.add(own, ids[0], given, ids[1], error)

    def result(self) -> OccupancyResult:
        """The metrics over all frames added; those with a mask where every frame had it."""
        named = zip(MASKS, self._voxels, self._masked, strict=True)
        confusion = {name: table for name, table, there in named if there}
        if not self._has_rays:
            return OccupancyResult(confusion, None)
        rays = self._rays[:, : len(CLASSES)]
        flow = self._flow[: len(CLASSES)] if self._has_flow else None
        return OccupancyResult(
            confusion, RayCounts(rays[0], rays[1], rays[2:], flow, self._with_flow[: len(CLASSES)], self._panoptic)
        )
