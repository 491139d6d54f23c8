"""A spinning multi-beam LiDAR, ray-cast through a scene with Open3D. Knows nothing of file formats."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.simulation.scene import Scene
from pcdet_ext.structures import Array
from pcdet_ext.data.simulation.shapes import Material, Mesh, join

# Share of light that a surface sends back (mean) and its spread from one object to the next.
REFLECTIVITY = {
    Material.ASPHALT: (0.26, 0.03),
    Material.GRASS: (0.34, 0.05),
    Material.PAVEMENT: (0.33, 0.04),
    Material.PAINT: (0.35, 0.22),
    Material.GLASS: (0.08, 0.04),
    Material.RUBBER: (0.08, 0.03),
    Material.PLATE: (0.97, 0.02),
    Material.FOLIAGE: (0.34, 0.07),
    Material.BARK: (0.26, 0.05),
    Material.WALL: (0.33, 0.10),
    Material.METAL: (0.38, 0.15),
    Material.CLOTH: (0.30, 0.15),
    Material.SKIN: (0.45, 0.05),
}


@dataclass(frozen=True)
class Scan:
    """One turn of the sensor.

    points: float32 [N, 4] (x, y, z in metres from the sensor, intensity in [0, 1]); actor: int32 [N], which actor each
    point lies on, -1 for none; hits, reach: int64 [A], beams that met each actor, and that would have met it with
    nothing before it (counted before dropout).
    """

    points: Array
    actor: Array
    hits: Array
    reach: Array


@dataclass(frozen=True)
class SpinningLidar:
    """A sensor like the Velodyne HDL-64E: 64 beams from +2° to -24.8°, about 2080 firings a turn, 1.73 m high.

    range_noise: standard deviation in metres; dropout: share of returns lost at random; max_range: metres.
    Raises ValueError for values outside their ranges.
    """

    beams: int = 64
    azimuths: int = 2080
    height: float = 1.73
    elevation: tuple[float, float] = (2.0, -24.8)
    max_range: float = 120.0
    range_noise: float = 0.02
    dropout: float = 0.04

    def __post_init__(self) -> None:
        for name in ("beams", "azimuths"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.height < math.inf or not 0 < self.max_range < math.inf or not 0 <= self.range_noise < math.inf:
            raise ValueError("height and max_range must be above 0 and range_noise at least 0, all finite")
        if not all(map(math.isfinite, self.elevation)) or not 0 <= self.dropout <= 1:
            raise ValueError("elevation must be finite and dropout lie in [0, 1]")

    def elevations(self) -> Array:
        """Angle of each beam in degrees, highest first; the upper half is packed one and a half times as close."""
        top, bottom = self.elevation
        upper = self.beams // 2
        split = top - (top - bottom) * 0.39
        high = np.linspace(top, split, upper, endpoint=False)
        return np.concatenate([high, np.linspace(split, bottom, self.beams - upper)])

    def directions(self, rng: np.random.Generator) -> Array:
        """Unit vectors float32 [beams · azimuths, 3], beam by beam, with the small errors of a real turn."""
        tilt = np.deg2rad(self.elevations())[:, None]
        turn = np.linspace(np.pi, -np.pi, self.azimuths, endpoint=False) + rng.uniform(0, 2 * np.pi / self.azimuths)
        turn = turn[None] + rng.normal(0, 2e-4, (self.beams, self.azimuths))
        tilt = tilt + rng.normal(0, 1e-4, (self.beams, self.azimuths))
        vectors = [np.cos(tilt) * np.cos(turn), np.cos(tilt) * np.sin(turn), np.sin(tilt)]
        return np.stack(vectors, -1).reshape(-1, 3).astype(np.float32)

    def scan(self, scene: Scene, rng: np.random.Generator) -> Scan:
        """One turn through a scene. Raises ImportError without Open3D."""
        fired = self.directions(rng)
        mesh = join([scene.static, *(a.mesh for a in scene.actors)])
        sizes = [len(scene.static.triangles), *(len(a.mesh.triangles) for a in scene.actors)]
        owner = np.repeat(np.arange(-1, len(scene.actors), dtype=np.int32), sizes)
        distance, triangle, cosine = _cast(mesh, fired, self.height)
        met = np.isfinite(distance) & (distance < self.max_range)
        rays, distance, triangle, cosine = fired[met], distance[met], triangle[met], cosine[met]
        actor = owner[triangle]
        hits = np.bincount(actor[actor >= 0], minlength=len(scene.actors))
        intensity = self._intensity(mesh.material[triangle], actor, cosine, distance, rng)
        kept = self._returns(intensity, cosine, distance, rng)
        distance = distance + rng.normal(0, self.range_noise, len(distance))
        points = np.column_stack([rays * distance[:, None], intensity])[kept].astype(np.float32)
        return Scan(points, actor[kept], hits, self._reach(scene, fired))

    def _intensity(
        self, material: Array, actor: Array, cosine: Array, distance: Array, rng: np.random.Generator
    ) -> Array:
        """Intensity by material and angle; every actor has its own paint."""
        table = np.array([REFLECTIVITY[m] for m in Material])
        mean, spread = table[material].T
        own = rng.normal(0, 1, actor.max(initial=-1) + 2)[actor + 1]  # one draw an actor, and one for the rest
        base = mean + spread * np.where(actor >= 0, own, rng.normal(0, 0.5, len(actor)))
        angled = base * (0.55 + 0.45 * cosine) + rng.normal(0, 0.03, len(base))
        return np.clip(np.round(angled, 2), 0.0, 0.99)

    def _returns(self, intensity: Array, cosine: Array, distance: Array, rng: np.random.Generator) -> Array:
        """Which beams come back: lost at random, and where the echo is weak (dark, grazing, far)."""
        echo = (0.05 + intensity) * (0.12 + cosine) / (1 + (distance / 38) ** 2)
        seen = 1 / (1 + np.exp(-(echo - 0.018) / 0.005))
        return rng.random(len(echo)) < seen * (1 - self.dropout)

    def _reach(self, scene: Scene, rays: Array) -> Array:
        """Beams that cross each actor, whatever stands before it."""
        counts = np.zeros(len(scene.actors), np.int64)
        for i, actor in enumerate(scene.actors):
            towards = rays[_towards(rays, actor.mesh.vertices - np.array([0, 0, self.height], np.float32))]
            distance = _cast(actor.mesh, towards, self.height)[0]
            counts[i] = int((np.isfinite(distance) & (distance < self.max_range)).sum())
        return counts


def _cast(mesh: Mesh, rays: Array, height: float) -> tuple[Array, Array, Array]:
    """Distance [N] (inf: nothing met), triangle [N] and cosine to its normal [N] of rays from (0, 0, height)."""
    try:
        from open3d import core, t
    except (ImportError, OSError) as error:
        raise ImportError(f"simulation needs Open3D ({error}): pip install 'pcdet_ext[vis]'") from error

    def tensor(values: Array) -> core.Tensor:
        return core.Tensor.from_numpy(np.ascontiguousarray(values))

    world = t.geometry.RaycastingScene(nthreads=1)
    world.add_triangles(tensor(mesh.vertices), tensor(mesh.triangles.astype(np.uint32)))
    starts = np.broadcast_to(np.array([0, 0, height], np.float32), rays.shape)
    found = world.cast_rays(tensor(np.concatenate([starts, rays], 1)), nthreads=1)
    cosine = np.abs((found["primitive_normals"].numpy() * rays).sum(1))
    return found["t_hit"].numpy(), found["primitive_ids"].numpy().astype(np.int64), cosine


def _towards(rays: Array, vertices: Array) -> Array:
    """Which rays lie in the cone from the origin that holds all vertices."""
    units = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
    axis = units.mean(0)
    axis /= np.linalg.norm(axis)
    return rays @ axis >= (units @ axis).min() - 1e-6
