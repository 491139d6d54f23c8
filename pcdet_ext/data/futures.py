"""What happens after a frame, out of the frames that follow: paths of labelled objects and of the vehicle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from pcdet_ext.data.geometry import transform
from pcdet_ext.data.index import FrameInfo
from pcdet_ext.scenes import COMMANDS, STEP, EgoPlan
from pcdet_ext.structures import Array

TOLERANCE = 0.2  # seconds by which a frame may miss its step
TURNING = 2.0  # metres to the side at the end of a path, from which on a driver is told to turn
WHEELBASE = 2.588  # metres, of the vehicles of nuScenes


def at_steps(info: FrameInfo, later: Sequence[FrameInfo], steps: int) -> list[FrameInfo | None]:
    """The frame at each half second after a frame, None where there is none at that time.

    Args:
        info: the frame.
        later: the frames after it, in their order.
        steps: how many.
    """
    found: list[FrameInfo | None] = []
    for number in range(1, steps + 1):
        fits = [frame for frame in later if abs(_gap(info, frame) - number * STEP) <= TOLERANCE]
        found.append(fits[0] if fits else None)
    return found


def _gap(info: FrameInfo, other: FrameInfo) -> float:
    """Seconds between two frames; NaN where one has no time."""
    if info.timestamp is None or other.timestamp is None:
        return float("nan")
    return other.timestamp - info.timestamp


def object_futures(
    tracks: Array, info: FrameInfo, later: Sequence[FrameInfo | None], pose_of: Callable[[FrameInfo], Array]
) -> tuple[Array, Array]:
    """How far objects move in each step, float32 [M, T, 2], and which steps are known, bool [M, T].

    Args:
        tracks: int64 [M], numbers of the objects; -1 for one without any.
        info: the frame.
        later: the frames at the steps.
        pose_of: from the frame that the steps are wanted in to the world, float64 [4, 4].

    A path is known up to the last frame in which the object is labelled in all frames before.
    """
    known = np.zeros((len(tracks), len(later) + 1), bool)
    places = np.zeros((len(tracks), len(later) + 1, 2))
    back = np.linalg.inv(pose_of(info))
    for step, frame in enumerate((info, *later)):
        if frame is None or frame.boxes is None or frame.track_ids is None or frame.pose is None:
            continue
        row = {int(number): i for i, number in enumerate(frame.track_ids.tolist())}
        rows = np.array([row.get(int(number), -1) if number >= 0 else -1 for number in tracks], np.int64)
        known[:, step] = rows >= 0
        if len(frame.boxes):
            moved = transform(frame.boxes[:, :3].astype(np.float64), back @ frame.pose)  # boxes are the sensor's
            places[:, step] = np.where(rows[:, None] >= 0, moved[rows, :2], 0)
    mask = np.logical_and.accumulate(known, axis=1)[:, 1:]
    return np.where(mask[..., None], np.diff(places, axis=1), 0).astype(np.float32), mask


def ego_plan(poses: Sequence[Array | None], before: Sequence[Array]) -> EgoPlan:
    """Where a vehicle goes, in its own frame.

    Args:
        poses: float64 [4, 4] from the vehicle to the world: now, and after each step, None where it is not known.
        before: the same one and two steps earlier, as many as are known.
    """
    now = poses[0]
    if now is None:
        raise ValueError("the vehicle's place in the frame itself must be known")
    back, count = np.linalg.inv(now), len(poses) - 1
    steps, mask, last = np.zeros((count, 2), np.float32), np.zeros(count, bool), np.zeros(2)
    for number, pose in enumerate(poses[1:]):
        if pose is None:
            break
        place = (back @ pose)[:2, 3]
        steps[number], mask[number], last = place - last, True, place
    return EgoPlan(steps, mask, _status(back, [now, *before]))


def _status(back: Array, poses: Sequence[Array]) -> Array:
    """Acceleration, rate of rotation, velocity and steering angle out of the present place and earlier ones."""
    local = [back @ pose for pose in poses]
    velocity = [(a[:3, 3] - b[:3, 3]) / STEP for a, b in pairwise(local)]
    status = np.zeros(10, np.float32)
    if velocity:
        turn = np.arctan2(local[1][1, 0], local[1][0, 0]) / -STEP
        speed = float(np.hypot(*velocity[0][:2]))
        status[5], status[6:9] = turn, velocity[0]
        status[9] = np.arctan(WHEELBASE * turn / speed) if speed > 1.0 else 0.0
    if len(velocity) > 1:
        status[:3] = (velocity[0] - velocity[1]) / STEP
    return status


def command(plan: EgoPlan) -> int:
    """What the driver was told, a position in `scenes.COMMANDS`: by how far to the side the path ends."""
    side = float(np.asarray(plan.steps)[:, 1].sum()) if len(plan.steps) else 0.0
    told = "left" if side >= TURNING else "right" if side <= -TURNING else "straight"
    return COMMANDS.index(told)
