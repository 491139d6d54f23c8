"""Triangle meshes of what stands in a street. Local frame: x forward, y left, z up from the ground, metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike

from pcdet_ext.structures import Array


class Material(IntEnum):
    """What a surface is made of; `REFLECTIVITY` says how it answers the beam."""

    ASPHALT = 0
    GRASS = 1
    PAVEMENT = 2
    PAINT = 3
    GLASS = 4
    RUBBER = 5
    PLATE = 6
    FOLIAGE = 7
    BARK = 8
    WALL = 9
    METAL = 10
    CLOTH = 11
    SKIN = 12


@dataclass(frozen=True)
class Mesh:
    """vertices float32 [V, 3]; triangles int32 [T, 3]; material uint8 [T]."""

    vertices: Array
    triangles: Array
    material: Array

    @staticmethod
    def of(vertices: ArrayLike, triangles: ArrayLike, material: Material) -> Mesh:
        """A mesh of one material."""
        corners = np.asarray(triangles, np.int32).reshape(-1, 3)
        return Mesh(np.asarray(vertices, np.float32), corners, np.full(len(corners), material, np.uint8))

    def moved(self, x: float, y: float, z: float, heading: float = 0.0) -> Mesh:
        """Turned about z, then shifted."""
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
        return Mesh(self.vertices @ turn + np.array([x, y, z], np.float32), self.triangles, self.material)

    def scaled(self, x: float, y: float, z: float) -> Mesh:
        """Stretched along the axes."""
        return Mesh(self.vertices * np.array([x, y, z], np.float32), self.triangles, self.material)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """All meshes as one."""
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.triangles + s for m, s in zip(meshes, starts, strict=False)]).astype(np.int32),
        np.concatenate([m.material for m in meshes]),
    )


def block(dx: float, dy: float, dz: float, material: Material) -> Mesh:
    """A box on the ground, centred on the origin."""
    signs = np.array([[i, j, k] for k in (0, 1) for j in (-1, 1) for i in (-1, 1)], np.float32)
    vertices = signs * np.array([dx / 2, dy / 2, dz], np.float32)
    quads = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6), (0, 2, 3, 1)]
    return Mesh.of(vertices, [t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))], material)


def tube(start: Sequence[float], end: Sequence[float], radius: float, material: Material, sides: int = 6) -> Mesh:
    """An open cylinder between two points."""
    low, high = np.asarray(start, np.float64), np.asarray(end, np.float64)
    axis = (high - low) / np.linalg.norm(high - low)
    helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.9 else np.array([0, 1.0, 0])
    u = np.cross(axis, helper)
    u /= np.linalg.norm(u)
    v = np.cross(axis, u)
    angles = np.arange(sides) * 2 * np.pi / sides
    ring = radius * (np.cos(angles)[:, None] * u + np.sin(angles)[:, None] * v)
    i = np.arange(sides)
    j = (i + 1) % sides
    triangles = np.concatenate([np.stack([i, j, i + sides], 1), np.stack([j, j + sides, i + sides], 1)])
    return Mesh.of(np.concatenate([low + ring, high + ring]), triangles, material)


def ellipsoid(centre: Sequence[float], radii: Sequence[float], material: Material, sides: int = 8) -> Mesh:
    """A closed ellipsoid of 5 × `sides` vertices."""
    tilt = np.linspace(-np.pi / 2, np.pi / 2, 6)
    turn = np.arange(sides) * 2 * np.pi / sides
    t, s = np.meshgrid(tilt, turn, indexing="ij")
    unit = np.stack([np.cos(t) * np.cos(s), np.cos(t) * np.sin(s), np.sin(t)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(5), np.arange(sides), indexing="ij")
    a, b = i * sides + j, i * sides + (j + 1) % sides
    quads = np.stack([a, b, b + sides, a, b + sides, a + sides], -1).reshape(-1, 3)
    return Mesh.of(unit * np.asarray(radii) + np.asarray(centre), quads, material)


def wheel(x: float, y: float, radius: float, width: float) -> Mesh:
    """A wheel that stands on the ground, its axle along y, closed at the sides."""
    sides = 10
    angles = np.arange(sides) * 2 * np.pi / sides
    rim = np.stack([x + radius * np.cos(angles), np.zeros(sides), radius + radius * np.sin(angles)], 1)
    left, right = rim + [0, y + width / 2, 0], rim + [0, y - width / 2, 0]
    hubs = np.array([[x, y + width / 2, radius], [x, y - width / 2, radius]])
    i = np.arange(sides)
    j = (i + 1) % sides
    triangles = np.concatenate(
        [
            np.stack([i, j, i + sides], 1),
            np.stack([j, j + sides, i + sides], 1),
            np.stack([i, j, np.full(sides, 2 * sides)], 1),
            np.stack([i + sides, j + sides, np.full(sides, 2 * sides + 1)], 1),
        ]
    )
    return Mesh.of(np.concatenate([left, right, hubs]), triangles, Material.RUBBER)


# Side profiles from the rear bumper over the roof to the front: (x / length, z / height), and where the windows begin.
PROFILES = {
    "sedan": (
        [(-0.5, 0.30), (-0.5, 0.62), (-0.31, 0.68), (-0.17, 1.0), (0.08, 1.0), (0.24, 0.66), (0.46, 0.56), (0.5, 0.32)],
        0.66,
    ),
    "hatchback": (
        [(-0.5, 0.30), (-0.5, 0.60), (-0.43, 0.93), (-0.30, 1.0), (0.08, 1.0), (0.26, 0.64), (0.46, 0.54), (0.5, 0.30)],
        0.62,
    ),
    "estate": (
        [(-0.5, 0.30), (-0.5, 0.62), (-0.45, 0.95), (-0.36, 1.0), (0.07, 1.0), (0.22, 0.66), (0.46, 0.56), (0.5, 0.32)],
        0.64,
    ),
    "suv": (
        [(-0.5, 0.30), (-0.5, 0.62), (-0.46, 0.95), (-0.38, 1.0), (0.10, 1.0), (0.24, 0.66), (0.46, 0.60), (0.5, 0.34)],
        0.64,
    ),
    "van": ([(-0.5, 0.20), (-0.5, 0.95), (-0.48, 1.0), (0.22, 1.0), (0.38, 0.62), (0.48, 0.48), (0.5, 0.24)], 0.60),
}


def vehicle_body(profile: str, length: float, width: float, height: float) -> Mesh:
    """A closed body of a side profile, drawn in above the belt line; glass between belt and roof."""
    outline, belt = PROFILES[profile]
    clearance = 0.12
    points = np.array([(-0.49, clearance), *outline, (0.49, clearance)])
    x, z = points[:, 0] * length, points[:, 1] * height
    lift = np.clip((points[:, 1] - belt) / (1 - belt), 0, 1)
    half = width / 2 * (1 - 0.16 * lift) * np.where(points[:, 1] < 0.35, 0.97, 1.0)
    n = len(points)
    left, right = np.stack([x, half, z], 1), np.stack([x, -half, z], 1)
    hub = np.array([[0.0, width / 2, belt * height * 0.9], [0.0, -width / 2, belt * height * 0.9]])
    i = np.arange(n)
    j = (i + 1) % n
    sides = np.concatenate([np.stack([i, j, np.full(n, 2 * n)], 1), np.stack([i + n, j + n, np.full(n, 2 * n + 1)], 1)])
    skin = np.concatenate([np.stack([i, j, i + n], 1), np.stack([j, j + n, i + n], 1)])
    mesh = Mesh.of(np.concatenate([left, right, hub]), np.concatenate([sides, skin]), Material.PAINT)
    middle = (lift[i] + lift[j]) / 2
    steep = np.abs(points[i, 1] - points[j, 1]) > 0.15
    glass = np.concatenate([np.tile(middle > 0.45, 2), np.tile((middle > 0.3) & steep, 2)])
    return Mesh(mesh.vertices, mesh.triangles, np.where(glass, Material.GLASS, mesh.material).astype(np.uint8))


def car(profile: str, length: float, width: float, height: float) -> Mesh:
    """A passenger car or van on its wheels, with plates and mirrors; exactly `length` × `width` × `height`."""
    radius = 0.21 * height if profile != "van" else 0.17 * height
    wheels = [wheel(sx * 0.31 * length, sy * (width / 2 - 0.12), radius, 0.2) for sx in (-1, 1) for sy in (-1, 1)]
    plate = [
        Mesh.of(
            np.array([[x, -0.26, 0.5], [x, 0.26, 0.5], [x, 0.26, 0.62], [x, -0.26, 0.62]]),
            [(0, 1, 2), (0, 2, 3)],
            Material.PLATE,
        )
        for x in (-0.5 * length - 0.005, 0.5 * length + 0.005)
    ]
    return _fitted(join([vehicle_body(profile, length, width, height), *wheels, *plate]), length, width, height)


def truck(length: float, width: float, height: float) -> Mesh:
    """A lorry: cab, cargo box, wheels."""
    cab = min(2.2, 0.3 * length)
    front = block(cab, width * 0.96, height * 0.72, Material.PAINT).moved(length / 2 - cab / 2, 0, 0.45)
    cargo = block(length - cab - 0.3, width, height - 1.0, Material.PAINT).moved(-(cab + 0.3) / 2, 0, 1.0)
    places = (-0.38, -0.25, 0.36)
    wheels = [wheel(sx * length, sy * (width / 2 - 0.2), 0.5, 0.3) for sx in places for sy in (-1, 1)]
    beam = block(length * 0.9, 0.9, 0.35, Material.METAL).moved(0, 0, 0.65)
    return _fitted(join([front, cargo, beam, *wheels]), length, width, height)


def pedestrian(height: float, stride: float, swing: float) -> Mesh:
    """A person walking: `stride` between the feet and `swing` of the arms, metres."""
    h = height
    parts = [
        ellipsoid((0, 0, 0.68 * h), (0.13, 0.20, 0.20 * h), Material.CLOTH),
        ellipsoid((0, 0, 0.93 * h), (0.10, 0.09, 0.07 * h), Material.SKIN),
        tube((stride / 2, 0.1, 0.0), (0, 0.09, 0.5 * h), 0.075, Material.CLOTH),
        tube((-stride / 2, -0.1, 0.0), (0, -0.09, 0.5 * h), 0.075, Material.CLOTH),
        tube((swing / 2, -0.24, 0.45 * h), (0, -0.2, 0.8 * h), 0.05, Material.CLOTH),
        tube((-swing / 2, 0.24, 0.45 * h), (0, 0.2, 0.8 * h), 0.05, Material.CLOTH),
    ]
    return join(parts)


def cyclist(length: float, height: float) -> Mesh:
    """A rider on a bicycle."""
    r, h = 0.34, height
    angles = np.arange(12) * 2 * np.pi / 12
    rims = []
    for x in (-length / 2 + r, length / 2 - r):
        ring = np.stack([x + r * np.cos(angles), np.zeros(12), r + r * np.sin(angles)], 1)
        rims += [tube(ring[i], ring[(i + 1) % 12], 0.025, Material.RUBBER, 4) for i in range(12)]
    rear, front = (-length / 2 + r, 0, r), (length / 2 - r, 0, r)
    saddle, bar = (-0.22, 0, 0.95), (0.42, 0, 1.05)
    frame = [
        tube(a, b, 0.025, Material.METAL, 4)
        for a, b in ((rear, saddle), (saddle, bar), (bar, front), (rear, (0, 0, 0.3)), ((0, 0, 0.3), bar))
    ]
    rider = [
        tube((-0.2, 0, 0.95), (0.1, 0, 0.82 * h), 0.17, Material.CLOTH, 8),
        ellipsoid((0.16, 0, 0.93 * h), (0.11, 0.09, 0.07 * h), Material.SKIN),
        tube((0.05, 0.2, 0.78 * h), (0.4, 0.25, 1.08), 0.05, Material.CLOTH),
        tube((0.05, -0.2, 0.78 * h), (0.4, -0.25, 1.08), 0.05, Material.CLOTH),
        tube((-0.15, 0.1, 0.92), (0.15, 0.12, 0.25), 0.07, Material.CLOTH),
        tube((-0.15, -0.1, 0.92), (0.05, -0.12, 0.4), 0.07, Material.CLOTH),
    ]
    handle = tube((0.42, -0.27, 1.05), (0.42, 0.27, 1.05), 0.02, Material.METAL, 4)
    return join([*rims, *frame, handle, *rider])


def leaves(rng: np.random.Generator, centre: Sequence[float], radii: Sequence[float], count: int, size: float) -> Mesh:
    """Loose triangles in an ellipsoid, denser outside: beams get stuck at different depths or pass through."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    place = direction * rng.uniform(0.5, 1, (count, 1)) ** 0.5 * np.asarray(radii) + np.asarray(centre)
    corners = place[:, None] + rng.normal(0, size, (count, 3, 3))
    return Mesh.of(corners.reshape(-1, 3), np.arange(3 * count), Material.FOLIAGE)


def tree(rng: np.random.Generator, height: float) -> Mesh:
    """A trunk and a porous crown."""
    crown = height * rng.uniform(0.22, 0.32)
    trunk = tube((0, 0, -0.3), (0, 0, height - crown), rng.uniform(0.1, 0.25), Material.BARK)
    top = leaves(rng, (0, 0, height - crown), (crown, crown, crown * 1.1), int(60 * crown**2), 0.22)
    return join([trunk, top])


def bush(rng: np.random.Generator, width: float, height: float) -> Mesh:
    """A porous bush on the ground."""
    return leaves(rng, (0, 0, height / 2), (width / 2, width / 2, height / 2), int(90 * width * height) + 20, 0.1)


def _fitted(mesh: Mesh, length: float, width: float, height: float) -> Mesh:
    """Stretched so that its extent is exactly that of the box."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    centred = Mesh(mesh.vertices - [*((low + high) / 2)[:2], low[2]], mesh.triangles, mesh.material)
    size = high - low
    return centred.scaled(length / size[0], width / size[1], height / size[2])
