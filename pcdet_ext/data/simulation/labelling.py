"""Which objects of a drive are labelled when, and how many points they hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.structures import Array


@dataclass(frozen=True)
class Seen:
    """What one frame shows of a drive's tracks, numbered as there.

    boxes: float64 [A, 7] in the street's frame, NaN for what is not there; velocities: float64 [A, 3]; points: int64
    [A] in each box; hidden: float64 [A], the share of beams towards it that something else stopped, 1 where none goes
    there; far: float64 [A], metres from the ego vehicle.
    """

    boxes: Array
    velocities: Array
    points: Array
    hidden: Array
    far: Array


def count_points(points: Array, boxes: Array) -> Array:
    """How many of the points [N, 3] lie in each box [A, 7], int64 [A]; boxes that are NaN hold none."""
    counts = np.zeros(len(boxes), np.int64)
    for number in np.flatnonzero(np.isfinite(boxes).all(1)).tolist():
        counts[number] = int(_inside(points, boxes[number]).sum())
    return counts


def _inside(points: Array, box: Array) -> Array:
    """Which points lie in a box; its surroundings are looked at first, as most points are far away."""
    reach = float(np.hypot(box[3], box[4])) / 2
    near = points[(np.abs(points[:, 0] - box[0]) <= reach) & (np.abs(points[:, 1] - box[1]) <= reach)] - box[:3]
    cos, sin = np.cos(box[6]), np.sin(box[6])
    along, across = near[:, 0] * cos + near[:, 1] * sin, near[:, 1] * cos - near[:, 0] * sin
    half = box[3:6] / 2
    return (np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(near[:, 2]) <= half[2])


def hidden_share(hits: Array, reach: Array) -> Array:
    """Share of the beams towards each object that something else stopped; 1 where no beam goes there."""
    return np.where(reach > 0, 1 - np.minimum(hits, reach) / np.maximum(reach, 1), 1.0)


def labelled(frames: list[Seen], max_range: float) -> Array:
    """Bool [T, A]: an object is labelled from the first to the last frame in which it holds points.

    Between them also without points; never beyond `max_range` metres, nor when it is not there.
    """
    shown = np.array([(f.points > 0) & (f.far <= max_range) for f in frames])
    begun = np.maximum.accumulate(shown, 0)
    unfinished = np.maximum.accumulate(shown[::-1], 0)[::-1]
    return begun & unfinished & np.array([f.far <= max_range for f in frames])
