"""Where a street runs, and the paths that vehicles take along it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pcdet_ext.structures import Array

STEP = 0.5  # metres between the nodes of a path
TURN_SPEED = 4.5  # metres per second in a turn at a crossing


@dataclass(frozen=True)
class StraightStreet:
    """A street turned by `yaw` against the x axis, whose middle passes the origin `shift` metres to its left."""

    yaw: float
    shift: float = 0.0

    def at(self, along: Array | float, across: Array | float) -> tuple[Array, Array, Array]:
        """World x, y and the street's heading at places along it and to its left, in metres."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        along, across = np.asarray(along), np.asarray(across) + self.shift
        return along * cos - across * sin, along * sin + across * cos, np.full(np.shape(along), self.yaw)

    def coordinates(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Places along and across the street of places in the world: the inverse of `at`."""
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        return x * cos + y * sin, y * cos - x * sin - self.shift


@dataclass(frozen=True)
class WindingStreet:
    """A street that bends to both sides: nodes every `STEP` metres from `start` on; headings in radians."""

    start: float
    nodes: Array  # [N, 3]: x, y, heading

    @staticmethod
    def random(rng: np.random.Generator, start: float, end: float, tightest: float = 150.0) -> WindingStreet:
        """A street that starts at the origin with heading 0.

        Args:
            rng: what draws its bends.
            start, end: metres along it, from the origin.
            tightest: radius in metres of a circle that it is nowhere bent more than.
        """
        along = np.arange(start, end + STEP, STEP)
        weights = rng.dirichlet([1.0, 1.0, 1.0]) * rng.uniform(0.2, 1.0) / tightest
        lengths, phases = rng.uniform(80, 400, 3), rng.uniform(0, 2 * np.pi, 3)
        bend = (weights * np.sin(2 * np.pi * along[:, None] / lengths + phases)).sum(1)
        heading = np.cumsum(bend) * STEP
        heading -= np.interp(0.0, along, heading)
        xy = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], 1), 0) * STEP
        xy -= [np.interp(0.0, along, column) for column in xy.T]
        return WindingStreet(start, np.column_stack([xy, heading]))

    def at(self, along: Array | float, across: Array | float) -> tuple[Array, Array, Array]:
        """World x, y and the street's heading at places along it and to its left, in metres."""
        nodes = self.start + STEP * np.arange(len(self.nodes))
        x, y, heading = (np.interp(along, nodes, column) for column in self.nodes.T)
        return x - across * np.sin(heading), y + across * np.cos(heading), heading


Street = StraightStreet | WindingStreet


@dataclass(frozen=True)
class Path:
    """A line that something follows. xy: float64 [N, 2], nodes about `STEP` apart; headings: [N], continuous.

    speeds: [N], what may be driven at each node; stops: where on it a red light holds, and which light (0 or 1).
    """

    xy: Array
    headings: Array
    lengths: Array
    speeds: Array
    stops: tuple[tuple[float, int], ...] = ()

    @staticmethod
    def through(street: Street, along: ArrayLike, across: ArrayLike, speeds: ArrayLike = np.inf) -> Path:
        """A path through places in the street's coordinates; it brakes in time before slower parts.

        Args:
            street: whose coordinates they are.
            along: [N], metres along the street.
            across: [N], metres to its left.
            speeds: what may be driven there, one number or [N], metres per second.
        """
        x, y, _ = street.at(np.asarray(along, np.float64), np.asarray(across, np.float64))
        steps = np.diff(np.stack([x, y], 1), axis=0)
        headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
        middle = np.concatenate([headings[:1], (headings[1:] + headings[:-1]) / 2, headings[-1:]])
        lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*steps.T))])
        allowed = np.broadcast_to(np.asarray(speeds, np.float64), lengths.shape).copy()
        for i in range(len(allowed) - 2, -1, -1):
            allowed[i] = min(allowed[i], np.sqrt(allowed[i + 1] ** 2 + 2 * 1.5 * (lengths[i + 1] - lengths[i])))
        return Path(np.stack([x, y], 1), middle, lengths, allowed)

    @property
    def length(self) -> float:
        """In metres."""
        return float(self.lengths[-1])

    def at(self, distance: Array | float) -> tuple[Array, Array, Array]:
        """x, y and heading after a distance along the path."""
        columns = (*self.xy.T, self.headings)
        x, y, heading = (np.interp(distance, self.lengths, column) for column in columns)
        return x, y, heading

    def nearest(self, x: float, y: float) -> float:
        """Distance along the path of the node nearest to a place."""
        return float(self.lengths[np.argmin(np.hypot(self.xy[:, 0] - x, self.xy[:, 1] - y))])


def straight_path(street: Street, start: tuple[float, float], end: tuple[float, float]) -> Path:
    """A path from one place to another.

    Args:
        street: whose coordinates they are.
        start: metres along the street and to its left.
        end: the same.
    """
    count = max(2, int(np.hypot(end[0] - start[0], end[1] - start[1]) / STEP) + 1)
    return Path.through(street, np.linspace(start[0], end[0], count), np.linspace(start[1], end[1], count))


def straight_lane(street: Street, across: float, start: float, end: float) -> Path:
    """A lane along the street, either way.

    Args:
        street: on which it is.
        across: metres that it is left of the middle.
        start, end: metres along the street.
    """
    return straight_path(street, (start, across), (end, across))


def crossing_lane(street: Street, along: float, start: float, end: float) -> Path:
    """A lane of a street that crosses ours.

    Args:
        street: ours.
        along: metres along it at which the other one crosses.
        start, end: metres to the left of ours.
    """
    return straight_path(street, (along, start), (along, end))


def right_turn(street: Street, across: float, start: float, along: float, end: float, radius: float = 6.0) -> Path:
    """From a lane of ours, to the right into a crossing lane.

    The lane keeps right: `across` is negative for those who drive along the street, positive for those against it.

    Args:
        street: ours.
        across: metres that the lane is left of the middle.
        start: metres along the street at which the path begins.
        along: metres along it at which the other street crosses.
        end: metres to the left of ours at which the path ends.
        radius: of the bend, metres.
    """
    way = 1.0 if across < 0 else -1.0  # along the street, or against it
    before = np.arange(start, along - way * radius, way * STEP)
    angles = np.linspace(0, np.pi / 2, int(radius * np.pi / 2 / STEP) + 2)
    arc_along = along - way * radius * (1 - np.sin(angles))
    arc_across = across - way * radius * (1 - np.cos(angles))
    after = np.arange(across - way * (radius + STEP), end, -way * STEP)
    places = np.concatenate([before, arc_along, np.full(len(after), along)])
    sides = np.concatenate([np.full(len(before), across), arc_across, after])
    slow = np.full(len(places), np.inf)
    slow[len(before) : len(before) + len(angles)] = TURN_SPEED
    return Path.through(street, places, sides, slow)
