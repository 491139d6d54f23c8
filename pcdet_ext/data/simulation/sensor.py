"""A spinning multi-beam LiDAR, ray-cast through a scene with Open3D. Knows nothing of file formats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.simulation.raycast import Beams, Hits, World
from pcdet_ext.data.simulation.reflectance import THROUGH_GLASS, LaserResponse, intensities, returned
from pcdet_ext.data.simulation.scene import Scene
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.structures import Array

DIMMEST = 0.2  # of any surface: this sensor also sees dark paint, and calls it 0
MOST_BEAMS = 10_000_000  # of a turn, a few gigabytes; fifty times what sensors have


@dataclass(frozen=True)
class Scan:
    """One turn of the sensor.

    points: float32 [N, 4] (x, y, z in metres in the sensor's frame, intensity in [0, 1]); actor: int32 [N], which actor
    each point lies on, -1 for none; row: int32 [N], the beam of each, the highest first; hits, reach: int64 [A], beams
    that met each actor, and that would have met it with nothing before it (counted before dropout); seconds: time that
    ray-casting took; material: uint8 [N], the `Material` that each point lies on.
    """

    points: Array
    actor: Array
    row: Array
    hits: Array
    reach: Array
    seconds: float
    material: Array


@dataclass(frozen=True)
class SpinningLidar:
    """A sensor like the Velodyne HDL-64E in KITTI: 64 beams from +2.4° to -23.6°, 2080 firings per turn, 1.73 m high.

    range_noise: standard deviation in metres; dropout: share of returns lost at random; max_range: metres.
    Raises ValueError for values outside their ranges.
    """

    beams: int = 64
    azimuths: int = 2080
    height: float = 1.73
    elevation: tuple[float, float] = (2.4, -23.6)
    max_range: float = 120.0
    range_noise: float = 0.02
    dropout: float = 0.04

    def __post_init__(self) -> None:
        for name in ("beams", "azimuths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.beams * self.azimuths > MOST_BEAMS:
            raise ValueError(f"beams times azimuths must be at most {MOST_BEAMS}, got {self.beams} × {self.azimuths}")
        if not 0 < self.height < math.inf or not 0 < self.max_range < math.inf or not 0 <= self.range_noise < math.inf:
            raise ValueError("height and max_range must be above 0 and range_noise at least 0, all finite")
        if not all(map(math.isfinite, self.elevation)) or not 0 <= self.dropout <= 1:
            raise ValueError("elevation must be finite and dropout lie in [0, 1]")

    def elevations(self) -> Array:
        """Angle of each beam in degrees, highest first; the upper half is packed one and a half times as close."""
        top, bottom = self.elevation
        upper = self.beams // 2
        split = top - (top - bottom) * 0.405
        high = np.linspace(top, split, upper, endpoint=False)
        return np.concatenate([high, np.linspace(split, bottom, self.beams - upper)])

    def fire(self, rng: np.random.Generator, pose: Array | None = None) -> Beams:
        """The beams of one turn, with the small errors of a real one, from a pose [4, 4] of the sensor in the world.

        Without a pose the sensor stands upright over the origin. Rows go from the highest beam to the lowest.
        """
        if pose is None:
            pose = np.eye(4)
            pose[2, 3] = self.height
        tilt = np.deg2rad(self.elevations())
        step = 2 * np.pi / self.azimuths
        turn = np.linspace(np.pi, -np.pi, self.azimuths, endpoint=False) + rng.uniform(0, step)
        turns = turn[None] + rng.normal(0, 2e-4, (self.beams, self.azimuths))
        tilts = tilt[:, None] + rng.normal(0, 1e-4, (self.beams, self.azimuths))
        flat = np.cos(tilts)
        vectors = np.empty((self.beams, self.azimuths, 3), np.float32)
        vectors[..., 0], vectors[..., 1], vectors[..., 2] = flat * np.cos(turns), flat * np.sin(turns), np.sin(tilts)
        turned = vectors if np.array_equal(pose[:3, :3], np.eye(3)) else vectors @ pose[:3, :3].T.astype(np.float32)
        return Beams(pose[None, :3, 3].astype(np.float32), turned, pose, tilt, turn, (0.01, 2e-3))

    def echoes(self, found: Hits, row: Array, paint: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """The intensity that is reported of what beams meet, and which of them come back.

        Args:
            found: what N beams meet.
            row: int32 [N], the beam of each, the highest first.
            paint: [B + 1], how bright the world and each body is.
            rng: what draws noise.

        Returns:
            [N] in [0, 0.99] and bool [N].
        """
        bright = np.maximum(intensities(found, paint, rng), DIMMEST)
        back = returned(bright, found, self.dropout, rng)
        back &= (found.material != Material.GLASS) | (rng.random(len(back)) >= THROUGH_GLASS)
        return LaserResponse.random(rng, self.beams).report(found, row, paint, rng), back

    def scan(self, scene: Scene, rng: np.random.Generator) -> Scan:
        """One turn through a scene around a sensor that stands upright over the origin.

        Raises ImportError without Open3D.
        """
        world = world_of(scene.static, [a.mesh for a in scene.actors])
        return self.measure(world, np.zeros((len(scene.actors), 4)), rng)

    def measure(
        self,
        world: World,
        places: Array,
        rng: np.random.Generator,
        pose: Array | None = None,
        paint: Array | None = None,
    ) -> Scan:
        """One turn through a world.

        Args:
            world: what is met.
            places: float64 [B, 4], x, y, z (metres) and heading (radians) of its bodies; NaN for one that is not there.
            rng: what draws noise.
            pose: float64 [4, 4], from the sensor to the world; without it the sensor stands upright over the origin.
            paint: [B + 1], how bright the world and each body is, drawn from a normal distribution; without it, it is
                drawn.
        """
        begun = world.seconds
        beams = self.fire(rng, pose)
        found, reach = world.cast(beams, world.windows(beams, places, self.max_range), self.max_range)
        met = np.flatnonzero(found.distance < self.max_range)
        found = found[met]
        hits = np.bincount(found.owner[found.owner >= 0], minlength=len(places))
        if paint is None:
            paint = rng.normal(0, 1, found.owner.max(initial=-1) + 2)
        row = (met // self.azimuths).astype(np.int32)
        intensity, back = self.echoes(found, row, paint, rng)
        kept = np.flatnonzero(back)
        distance = found.distance + rng.normal(0, self.range_noise, len(met))
        rays = np.take(beams.directions.reshape(-1, 3), met[kept], axis=0)
        if pose is not None:
            rays = rays @ pose[:3, :3].astype(np.float32)
        points = np.empty((len(kept), 4), np.float32)
        points[:, :3], points[:, 3] = rays * distance[kept, None], intensity[kept]
        return Scan(points, found.owner[kept], row[kept], hits, reach, world.seconds - begun, found.material[kept])


@dataclass(frozen=True)
class EvenLidar(SpinningLidar):
    """A sensor like the Velodyne HDL-32E: 32 evenly spaced beams from +10.67° to -30.67°, 1085 firings per turn."""

    beams: int = 32
    azimuths: int = 1085
    height: float = 1.84
    elevation: tuple[float, float] = (10.67, -30.67)
    max_range: float = 100.0

    def elevations(self) -> Array:
        """Angle of each beam in degrees, highest first."""
        return np.linspace(*self.elevation, self.beams)

    def echoes(self, found: Hits, row: Array, paint: Array, rng: np.random.Generator) -> tuple[Array, Array]:
        """The intensity that is reported of what beams meet, and which come back. Arguments as in
        `SpinningLidar.echoes`.
        """
        intensity = intensities(found, paint, rng)
        return intensity, returned(intensity, found, self.dropout, rng)


def world_of(standing: Mesh, bodies: Sequence[Mesh]) -> World:
    """Meshes made ready for beams; says in ImportError what to install where Open3D is missing."""
    try:
        return World(standing, bodies)
    except (ImportError, OSError) as error:
        raise ImportError(f"simulation needs Open3D ({error}): pip install 'pcdet_ext[vis]'") from error
