"""Pairs of clouds of one place, with the pose between them, from the frames of a folder for place recognition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.index import FrameInfo
from pcdet_ext.data.places import PlacesDataset
from pcdet_ext.data.places.files import GROUND
from pcdet_ext.data.places.tuples import pairs_within
from pcdet_ext.files import DataError
from pcdet_ext.rigid import rigid_motion, upright_rotation
from pcdet_ext.structures import Array

APART = (5.0, 15.0)  # metres between the clouds of a pair, where nothing else is said


@dataclass(frozen=True, eq=False)
class CloudPair:
    """Two clouds float32 [N, 3+] and the pose float64 [4, 4] from the frame of the source to that of the target.

    opposite: whether they were taken facing more than 90° apart.
    """

    source: Array
    target: Array
    pose: Array
    opposite: bool


class CloudPairs:
    """Frames of different runs on the ground that were taken near each other, in sensors that stood upright.

    Frames whose heading is not known are left out: the pose between two clouds needs it.

    Args:
        dataset: whose frames have positions and headings.
        nearest: metres in x and y that the two are apart at least.
        farthest: metres that they are apart at most.

    Raises:
        DataError: there is no such pair.
    """

    def __init__(self, dataset: PlacesDataset, nearest: float, farthest: float) -> None:
        self.dataset = dataset
        self.frames = [f for f in dataset.frames if f.extra["view"] == GROUND and f.extra["heading"] is not None]
        xy = np.array([_pose(frame)[:2, 3] for frame in self.frames]).reshape(-1, 2)
        pairs = pairs_within(xy, farthest)
        apart = np.linalg.norm(xy[pairs[:, 0]] - xy[pairs[:, 1]], axis=1)
        runs = np.array([frame.sequence_id for frame in self.frames])
        self.pairs = pairs[(apart >= nearest) & (runs[pairs[:, 0]] != runs[pairs[:, 1]])]
        if not len(self.pairs):
            raise DataError(
                f"{dataset.root}: no two frames with a heading, of different runs on the ground, are {nearest:g} to "
                f"{farthest:g} m apart in split {dataset.split!r}"
            )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def some(self, count: int, rng: np.random.Generator) -> Sequence[int]:
        """Numbers of `count` pairs drawn without repetition, of all where there are fewer."""
        return [int(i) for i in rng.permutation(len(self))[:count]]

    def __getitem__(self, number: int) -> CloudPair:
        """A pair as it is in the files."""
        source, target = (self.frames[int(row)] for row in self.pairs[number])
        pose = np.linalg.inv(_pose(target)) @ _pose(source)
        return CloudPair(self._points(source), self._points(target), pose, bool(pose[0, 0] < 0))

    def _points(self, frame: FrameInfo) -> Array:
        return self.dataset.read(frame).points


def turned_at_random(pair: CloudPair, rng: np.random.Generator) -> CloudPair:
    """The pair with both clouds turned about the vertical axis by angles of their own."""
    source, target = _turn(rng.uniform(-np.pi, np.pi)), _turn(rng.uniform(-np.pi, np.pi))
    pose = target @ pair.pose @ source.T  # the inverse of a turn is its transpose
    return CloudPair(_moved(pair.source, source), _moved(pair.target, target), pose, pair.opposite)


def _turn(angle: float) -> Array:
    return rigid_motion(upright_rotation(angle), np.zeros(3))


def _moved(points: Array, turn: Array) -> Array:
    moved = points.copy()
    moved[:, :3] = points[:, :3] @ turn[:3, :3].T.astype(np.float32)
    return moved


def _pose(frame: FrameInfo) -> Array:
    assert frame.pose is not None  # every frame was prepared with a position
    return np.asarray(frame.pose, np.float64)
