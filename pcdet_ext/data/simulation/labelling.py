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
    there; far: float64 [A], metres from the ego vehicle; top_points: int64 [A], points of the main sensor, where there
    are several.
    """

    boxes: Array
    velocities: Array
    points: Array
    hidden: Array
    far: Array
    top_points: Array | None = None


def count_points(points: Array, boxes: Array) -> Array:
    """How many of the points [N, 3] lie in each box [A, 7], int64 [A]; boxes that are NaN hold none."""
    counts = np.zeros(len(boxes), np.int64)
    if not len(points):
        return counts
    x, y, z = np.ascontiguousarray(points.T)
    reach = np.hypot(boxes[:, 3], boxes[:, 4]) / 2
    there = (boxes[:, 0] + reach >= x.min()) & (boxes[:, 0] - reach <= x.max())
    there &= (boxes[:, 1] + reach >= y.min()) & (boxes[:, 1] - reach <= y.max())  # not for NaN
    for number in np.flatnonzero(there).tolist():
        box = boxes[number]
        near = np.flatnonzero(np.abs(x - box[0]) <= reach[number])  # most points are far away
        near = near[np.abs(y[near] - box[1]) <= reach[number]]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        dx, dy = x[near] - box[0], y[near] - box[1]
        inside = (np.abs(dx * cos + dy * sin) <= box[3] / 2) & (np.abs(dy * cos - dx * sin) <= box[4] / 2)
        counts[number] = int((inside & (np.abs(z[near] - box[2]) <= box[5] / 2)).sum())
    return counts


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
