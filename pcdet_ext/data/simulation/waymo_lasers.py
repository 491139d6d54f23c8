"""Five lasers like those of the cars of the Waymo Open Dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from pcdet_ext.data.simulation.sensor import MOST_BEAMS
from pcdet_ext.rigid import rigid_motion
from pcdet_ext.structures import Array

MAX_RANGE = 75.0  # metres beyond which the top laser sees nothing, and nothing is labelled
TOP, FRONT, SIDE_LEFT, SIDE_RIGHT, REAR = 1, 2, 3, 4, 5
PLACES = {  # of the lasers on the vehicle: x, y, z in metres, and which way they look, in degrees
    TOP: (1.43, 0.0, 2.184, 148.0),
    FRONT: (4.07, 0.0, 0.691, 0.0),
    SIDE_LEFT: (3.245, 1.025, 0.981, 90.0),
    SIDE_RIGHT: (3.245, -1.025, 0.981, -90.0),
    REAR: (-1.154, 0.0, 0.466, 180.0),
}


@dataclass(frozen=True)
class WaymoLasers:
    """Five lasers like those of the data set: one for the surroundings, four for what is near.

    rows, columns: of the top laser's range image (the official one has 64 × 2650 pixels); side_rows, side_columns: of
    the four others' (200 × 600); side_range: how far these see, metres; range_noise: standard deviation in metres;
    dropout: share of returns lost at random. Raises ValueError for values outside their ranges.
    """

    rows: int = 64
    columns: int = 1325
    side_rows: int = 50
    side_columns: int = 150
    side_range: float = 20.0
    range_noise: float = 0.02
    dropout: float = 0.04

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "side_rows", "side_columns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for rows, columns in ((self.rows, self.columns), (self.side_rows, self.side_columns)):
            if rows * columns > MOST_BEAMS:
                raise ValueError(f"an image must have at most {MOST_BEAMS} pixels, got {rows} × {columns}")
        if not 0 < self.side_range < np.inf or not 0 <= self.range_noise < np.inf or not 0 <= self.dropout <= 1:
            raise ValueError("side_range must be above 0, range_noise at least 0, both finite, and dropout in [0, 1]")


@dataclass(frozen=True)
class Laser:
    """One laser. extrinsic: float64 [4, 4], to the vehicle's frame; inclinations: [H] in radians, rising.

    even: whether the inclinations are evenly spaced between `low` and `high`, the borders of the lowest and the highest
    row; seen: which columns look away from the vehicle.
    """

    name: int
    extrinsic: Array
    inclinations: Array
    low: float
    high: float
    even: bool
    columns: int
    seen: Array
    max_range: float

    @property
    def azimuths(self) -> Array:
        """Of the columns, in the sensor's frame: float64 [W], falling from one turn to the next."""
        turn = ((self.columns - np.arange(self.columns) - 0.5) / self.columns * 2 - 1) * np.pi
        return turn - np.arctan2(self.extrinsic[1, 0], self.extrinsic[0, 0])

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of its range image."""
        return len(self.inclinations), self.columns

    def directions(self) -> Array:
        """Unit vectors in the vehicle's frame, float64 [H, W, 3], the highest row first."""
        tilt, turn = self.inclinations[::-1, None], self.azimuths[None]
        vectors = [np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.broadcast_to(np.sin(tilt), self.shape)]
        return np.stack(vectors, -1) @ self.extrinsic[:3, :3].T


def lasers(kind: WaymoLasers, rng: np.random.Generator) -> list[Laser]:
    """The lasers of one car: no two are mounted quite alike."""
    made = []
    for name, (x, y, z, yaw) in PLACES.items():
        angles = [np.deg2rad(yaw), *rng.normal(0, 0.004, 2)]
        extrinsic = rigid_motion(Rotation.from_euler("ZYX", angles).as_matrix(), np.array([x, y, z]))
        top = name == TOP
        low, high = (-0.31, 0.042) if top else (-np.pi / 2, np.pi / 6)
        rows, columns = (kind.rows, kind.columns) if top else (kind.side_rows, kind.side_columns)
        edges = (np.arange(rows) + 0.5) / rows
        tilt = low + (high - low) * (1 - (1 - edges) ** 1.6 if top else edges)  # the top one looks closely ahead
        laser = Laser(name, extrinsic, tilt, low, high, not top, columns, np.ones(columns, bool), MAX_RANGE)
        if not top:
            away = (laser.azimuths + np.arctan2(extrinsic[1, 0], extrinsic[0, 0]) - np.deg2rad(yaw) + np.pi) % (
                2 * np.pi
            )
            seen = np.abs(away - np.pi) < np.deg2rad(95)
            laser = Laser(name, extrinsic, tilt, low, high, True, columns, seen, kind.side_range)
        made.append(laser)
    return made
