"""What frames of nuScenes have labelled beside boxes: map, occupancy, futures of objects, the vehicle's own path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from pcdet_ext.data.futures import at_steps, command, ego_plan, object_futures
from pcdet_ext.data.geometry import transform
from pcdet_ext.data.index import FrameInfo, FrameTable
from pcdet_ext.data.nuscenes import maps, occupancy
from pcdet_ext.data.nuscenes.poses import Pose, inverse
from pcdet_ext.evaluation.planning import STEPS
from pcdet_ext.files import DataError
from pcdet_ext.scenes import MAP_LAYERS, EgoPlan, Scope, cells_of
from pcdet_ext.structures import Array, Sample, Targets

MOST_STEPS = 40  # half seconds, which a scene of nuScenes lasts


@dataclass(frozen=True, kw_only=True)
class SceneOptions:
    """The optional `scene:` section of nuScenes' data: what is wanted beside boxes.

    Occupancy and plan are labelled in the frame of the vehicle, and so need `frame: ego`.

    Args:
        map_layers: layers of the map to be drawn, none by default; "all" stands for those of `scenes.MAP_LAYERS`.
        map_x: minimum, maximum and cell size of the drawn grid along x, metres.
        map_y: the same along y.
        occupancy: folder of Occ3D's labels below the data folder, as "gts"; None for no occupancy.
        occupancy_x: the part along x that is wanted, minimum, maximum and cell size (0.4, as the labels have it).
        occupancy_y: the same along y.
        occupancy_mask: cells that this sensor did not see do not count; by default all do.
        futures: half seconds that the paths of objects are long; 0 for none.
        plan: half seconds that the vehicle's own path is long; 0 for none.

    Raises:
        ValueError: a grid, a layer or a number of steps does not fit.
    """

    map_layers: Sequence[str] | Literal["all"] = ()
    map_x: Sequence[float] = (-50.0, 50.0, 0.5)
    map_y: Sequence[float] = (-50.0, 50.0, 0.5)
    occupancy: str | None = None
    occupancy_x: Sequence[float] = (-40.0, 40.0, 0.4)
    occupancy_y: Sequence[float] = (-40.0, 40.0, 0.4)
    occupancy_mask: Literal["lidar", "camera"] | None = None
    futures: int = 0
    plan: int = 0

    def __post_init__(self) -> None:
        maps.check_layers(self.layers)
        for scope in self.map_grid:
            cells_of(scope)
        occupancy.check_cells(*self.occupancy_grid)
        for name in ("futures", "plan"):
            if not 0 <= getattr(self, name) <= MOST_STEPS:
                raise ValueError(f"{name} must lie in [0, {MOST_STEPS}], got {getattr(self, name)}")

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that are drawn."""
        return MAP_LAYERS if self.map_layers == "all" else tuple(self.map_layers)

    @property
    def map_grid(self) -> tuple[Scope, Scope]:
        """The axes x and y of the map."""
        return _scope("map_x", self.map_x), _scope("map_y", self.map_y)

    @property
    def occupancy_grid(self) -> tuple[Scope, Scope]:
        """The axes x and y of the occupancy."""
        return _scope("occupancy_x", self.occupancy_x), _scope("occupancy_y", self.occupancy_y)

    @property
    def needs_ego_frame(self) -> bool:
        """Whether something is wanted that is labelled in the frame of the vehicle."""
        return self.occupancy is not None or self.plan > 0


def _scope(name: str, values: Sequence[float]) -> Scope:
    if len(values) != 3:
        raise ValueError(f"{name} must be minimum, maximum and cell size, got {list(values)}")
    low, high, size = map(float, values)
    return low, high, size


class SceneTargets:
    """Adds to samples what `SceneOptions` ask for.

    Args:
        options: what is wanted.
        frames: all frames of the split, in their order.
        data: the folder with `maps` and the labels of occupancy.
        tables: the folder of the released tables.
        frame_pose: from the frame of a sample to the world, float64 [4, 4], before any augmentation.
    """

    def __init__(
        self,
        options: SceneOptions,
        frames: FrameTable,
        data: Path,
        tables: Path,
        frame_pose: Callable[[FrameInfo], Array],
    ) -> None:
        self.options, self._frames, self._data, self._tables = options, frames, data, tables
        self._pose = frame_pose
        self._maps: dict[str, maps.CityMap] = {}

    def read(self, info: FrameInfo) -> Array | None:
        """The labels of a frame's occupancy, if they are wanted. Raises DataError for a file that cannot be read."""
        if self.options.occupancy is None:
            return None
        path = self._data / self.options.occupancy / info.sequence_id / info.frame_id / occupancy.FILE
        return occupancy.read_labels(path, self.options.occupancy_mask)

    def complete(self, sample: Sample, info: FrameInfo) -> Sample:
        """A sample, as augmentation left it, with all that is wanted, in its own frame."""
        moved = np.eye(4) if sample.augmented is None else sample.augmented
        targets = Targets() if sample.targets is None else sample.targets
        targets = self._with_map(targets, info, moved)
        if targets.occupancy is not None:
            grid = self.options.occupancy_grid
            labels = occupancy.resampled(np.asarray(targets.occupancy), np.linalg.inv(moved), *grid)
            targets = targets.replace(occupancy=labels, occupancy_grid=grid)
        if self.options.futures and targets.boxes is not None:
            targets = self._with_futures(targets, info, moved)
        if not self.options.plan:
            return sample.replace(targets=targets)
        plan = self._plan(info, moved)
        return sample.replace(targets=targets.replace(plan=plan), command=command(plan))

    def future_boxes(self, info: FrameInfo) -> tuple[Array, Array]:
        """Boxes with points in the half seconds after a frame, in its own frame, for the metric of plans.

        Returns:
            float64 [K, 7], one step after the other, and int64 [6], how many each step has.
        """
        later = at_steps(info, self._frames.following(info.frame_id, 2 * STEPS), STEPS)
        back = np.linalg.inv(self._pose(info))
        found, counts = [np.zeros((0, 7))], np.zeros(STEPS, np.int64)
        for step, frame in enumerate(later):
            if frame is None or frame.boxes is None or frame.pose is None:
                continue
            move = back @ frame.pose
            boxes = frame.boxes[frame.points_in_box > 0, :7].astype(np.float64)
            boxes[:, :3] = transform(boxes, move)
            boxes[:, 6] += np.arctan2(move[1, 0], move[0, 0])
            found.append(boxes)
            counts[step] = len(boxes)
        return np.concatenate(found), counts

    def _with_map(self, targets: Targets, info: FrameInfo, moved: Array) -> Targets:
        if not self.options.layers:
            return targets
        turn = self._pose(info)
        yaw = np.arctan2(turn[1, 0], turn[0, 0])
        upright = np.array([[np.cos(yaw), -np.sin(yaw), turn[0, 3]], [np.sin(yaw), np.cos(yaw), turn[1, 3]], [0, 0, 1]])
        flat = moved[np.ix_([0, 1, 3], [0, 1, 3])]
        grid = self.options.map_grid
        masks = self._map(info).masks(flat @ np.linalg.inv(upright), self.options.layers, *grid)
        return targets.replace(map_masks=masks, map_grid=grid)

    def _map(self, info: FrameInfo) -> maps.CityMap:
        if info.sequence_id not in self._locations:
            raise DataError(f"{self._tables / 'scene.json'}: has no scene {info.sequence_id!r}")
        place = self._locations[info.sequence_id]
        if place not in self._maps:
            self._maps[place] = maps.CityMap.read(self._data / maps.FOLDER / f"{place}.json")
        return self._maps[place]

    @cached_property
    def _locations(self) -> dict[str, str]:
        return maps.locations(self._tables)

    def _with_futures(self, targets: Targets, info: FrameInfo, moved: Array) -> Targets:
        """Futures of the boxes that are left; of pasted ones, which have no track, nothing is known."""
        none = np.full(len(targets), -1, np.int64)
        tracks = none if targets.track_ids is None else np.asarray(targets.track_ids)
        later = at_steps(info, self._frames.following(info.frame_id, 2 * self.options.futures), self.options.futures)
        steps, mask = object_futures(tracks, info, later, self._pose)
        turned = (steps @ moved[:2, :2].T).astype(np.float32)
        return targets.replace(futures=turned, future_mask=mask)

    def _plan(self, info: FrameInfo, moved: Array) -> EgoPlan:
        later = at_steps(info, self._frames.following(info.frame_id, 2 * self.options.plan), self.options.plan)
        poses = [None if frame is None else ego_of(frame) for frame in (info, *later)]
        before = [ego_of(frame) for frame in self._frames.previous(info.frame_id, 2)]
        plan = ego_plan(poses, before)
        turn = moved[:3, :3] / np.cbrt(abs(np.linalg.det(moved[:3, :3])))  # of the status: no sizes are in it
        status = np.asarray(plan.status).copy()
        mirrored = np.sign(np.linalg.det(turn))  # rates of rotation change their sign in a mirror
        status[:3], status[3:6], status[6:9] = turn @ status[:3], mirrored * (turn @ status[3:6]), turn @ status[6:9]
        status[9] *= mirrored
        return EgoPlan((np.asarray(plan.steps) @ moved[:2, :2].T).astype(np.float32), plan.mask, status)


def ego_of(info: FrameInfo) -> Array:
    """From the vehicle to the world in a frame of the index, float64 [4, 4]."""
    return Pose.of(info.extra["ego"]).matrix


def to_ego(sample: Sample, sensor: Pose) -> Sample:
    """A sample in the frame of its lidar, with its points and boxes in the frame of the vehicle.

    sensor: place of the lidar on the vehicle. The pose of the sample becomes that of the vehicle.
    """
    points = sample.points.copy()
    points[:, :3] = sample.points[:, :3] @ sensor.turn.T.astype(np.float32) + sensor.translation.astype(np.float32)
    pose = None if sample.pose is None else sample.pose @ inverse(sensor.matrix)
    targets = sample.targets
    if targets is not None and targets.boxes is not None:
        boxes = np.array(targets.boxes)
        boxes[:, :3] = boxes[:, :3] @ sensor.turn.T + sensor.translation
        boxes[:, 6] += np.arctan2(sensor.turn[1, 0], sensor.turn[0, 0])
        if boxes.shape[1] == 9:
            boxes[:, 7:] = boxes[:, 7:] @ sensor.turn[:2, :2].T
        targets = targets.replace(boxes=boxes)
    return sample.replace(points=points, targets=targets, pose=pose)
