"""Triangle meshes of what stands in a street. Local frame: x forward, y left, z up from the ground, metres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import numpy as np
from numpy.typing import ArrayLike

from pcdet_ext.structures import Array


class Material(IntEnum):
    """What a surface is made of; `REFLECTIVITY` says how it answers the beam.

    METAL that is no object is a pole, WALL a building; fences, bins and free-standing walls (MASONRY) have entries of
    their own, so that what a point lies on is known.
    """

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
    FENCE = 13
    MASONRY = 14
    BIN = 15


@dataclass(frozen=True)
class Mesh:
    """vertices float32 [V, 3]; triangles int32 [T, 3]; material uint8 [T]."""

    vertices: Array
    triangles: Array
    material: Array

    @staticmethod
    def of(vertices: ArrayLike, triangles: ArrayLike, material: Material) -> Mesh:
        """A mesh of one material.

        Args:
            vertices: [V, 3], metres.
            triangles: [T, 3], rows of their corners.
            material: of all of them.
        """
        corners = np.asarray(triangles, np.int32).reshape(-1, 3)
        return Mesh(np.asarray(vertices, np.float32), corners, np.full(len(corners), material, np.uint8))

    def moved(self, x: float, y: float, z: float, heading: float = 0.0) -> Mesh:
        """Turned about z, then shifted.

        Args:
            x, y, z: the shift in metres.
            heading: the turn, counter-clockwise in radians.
        """
        cos, sin = np.cos(heading), np.sin(heading)
        turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]], np.float32)
        return Mesh(self.vertices @ turn + np.array([x, y, z], np.float32), self.triangles, self.material)

    def scaled(self, x: float, y: float, z: float) -> Mesh:
        """Stretched along the axes.

        Args:
            x, y, z: factors.
        """
        return Mesh(self.vertices * np.array([x, y, z], np.float32), self.triangles, self.material)


def join(meshes: Sequence[Mesh]) -> Mesh:
    """All meshes as one."""
    starts = np.cumsum([0, *(len(m.vertices) for m in meshes)])
    return Mesh(
        np.concatenate([m.vertices for m in meshes]),
        np.concatenate([m.triangles + s for m, s in zip(meshes, starts, strict=False)]).astype(np.int32),
        np.concatenate([m.material for m in meshes]),
    )


BLOCK_CORNERS = np.array([[i, j, k] for k in (0, 1) for j in (-1, 1) for i in (-1, 1)], np.float32)
_BLOCK_QUADS = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6), (0, 2, 3, 1)]
BLOCK_TRIANGLES = np.array([t for a, b, c, d in _BLOCK_QUADS for t in ((a, b, c), (a, c, d))], np.int32)


def block(dx: float, dy: float, dz: float, material: Material) -> Mesh:
    """A box on the ground, centred on the origin.

    Args:
        dx, dy, dz: its extent in metres.
        material: of its faces.
    """
    vertices = BLOCK_CORNERS * np.array([dx / 2, dy / 2, dz], np.float32)
    return Mesh.of(vertices, BLOCK_TRIANGLES, material)


def tube(start: Sequence[float], end: Sequence[float], radius: float, material: Material, sides: int = 6) -> Mesh:
    """An open cylinder between two points. Arguments as in `tubes`, with one point each."""
    return tubes([start], [end], radius, material, sides)


def tubes(starts: ArrayLike, ends: ArrayLike, radius: float, material: Material, sides: int = 6) -> Mesh:
    """Open cylinders of one radius between pairs of points.

    Args:
        starts: [N, 3], metres.
        ends: [N, 3].
        radius: in metres.
        material: of all.
        sides: of the polygons that stand for circles.
    """
    low, high = np.asarray(starts, np.float64), np.asarray(ends, np.float64)
    axis = high - low
    axis /= np.sqrt((axis**2).sum(1, keepdims=True))
    helper = np.where(np.abs(axis[:, :1]) < 0.9, [1.0, 0, 0], [0, 1.0, 0])
    u = _cross(axis, helper)
    u /= np.sqrt((u**2).sum(1, keepdims=True))
    cos, sin = _circle(sides)
    ring = radius * (cos[None, :, None] * u[:, None] + sin[None, :, None] * _cross(axis, u)[:, None])
    vertices = np.concatenate([low[:, None] + ring, high[:, None] + ring], 1).reshape(-1, 3)
    firsts = np.arange(len(low))[:, None, None] * (2 * sides)
    return Mesh.of(vertices, firsts + _tube_triangles(sides), material)


def _cross(a: Array, b: Array) -> Array:
    """Cross products [N, 3]; numpy's own takes longer for few."""
    ax, ay, az = a.T
    bx, by, bz = b.T
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx]).T


@cache
def _circle(sides: int) -> tuple[Array, Array]:
    """Cosines and sines of evenly spaced angles."""
    angles = np.arange(sides) * 2 * np.pi / sides
    return np.cos(angles), np.sin(angles)


@cache
def _tube_triangles(sides: int) -> Array:
    """Triangles of a tube whose vertices are the ring at its start, then that at its end."""
    i = np.arange(sides)
    j = (i + 1) % sides
    return np.concatenate([np.stack([i, j, i + sides], 1), np.stack([j, j + sides, i + sides], 1)])


@cache
def _sphere(sides: int) -> tuple[Array, Array]:
    """Vertices and triangles of a unit sphere."""
    tilt = np.linspace(-np.pi / 2, np.pi / 2, 6)
    turn = np.arange(sides) * 2 * np.pi / sides
    t, s = np.meshgrid(tilt, turn, indexing="ij")
    unit = np.stack([np.cos(t) * np.cos(s), np.cos(t) * np.sin(s), np.sin(t)], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(5), np.arange(sides), indexing="ij")
    a, b = i * sides + j, i * sides + (j + 1) % sides
    return unit, np.stack([a, b, b + sides, a, b + sides, a + sides], -1).reshape(-1, 3)


def ellipsoid(centre: Sequence[float], radii: Sequence[float], material: Material, sides: int = 8) -> Mesh:
    """A closed ellipsoid of 5 × `sides` vertices.

    Args:
        centre: x, y, z in metres.
        radii: along x, y, z.
        material: of its surface.
        sides: of the polygons that stand for circles.
    """
    unit, triangles = _sphere(sides)
    return Mesh.of(unit * np.asarray(radii) + np.asarray(centre), triangles, material)


def wheel(x: float, y: float, radius: float, width: float) -> Mesh:
    """A wheel that stands on the ground, its axle along y, closed at the sides.

    Args:
        x, y: where it stands, metres.
        radius: in metres.
        width: along the axle.
    """
    cos, sin = _circle(WHEEL_SIDES)
    vertices = np.zeros((2 * WHEEL_SIDES + 2, 3))
    left, right, hubs = vertices[:WHEEL_SIDES], vertices[WHEEL_SIDES:-2], vertices[-2:]
    left[:, 0] = right[:, 0] = x + radius * cos
    left[:, 2] = right[:, 2] = radius + radius * sin
    hubs[:, 0], hubs[:, 2] = x, radius
    left[:, 1] = hubs[0, 1] = y + width / 2
    right[:, 1] = hubs[1, 1] = y - width / 2
    return Mesh.of(vertices, _wheel_triangles(), Material.RUBBER)


WHEEL_SIDES = 10


@cache
def _wheel_triangles() -> Array:
    sides = WHEEL_SIDES
    i = np.arange(sides)
    j = (i + 1) % sides
    discs = [np.stack([i, j, np.full(sides, 2 * sides)], 1)]
    discs += [np.stack([i + sides, j + sides, np.full(sides, 2 * sides + 1)], 1)]
    return np.concatenate([_tube_triangles(sides), *discs])


def truck(length: float, width: float, height: float) -> Mesh:
    """A lorry on the ground, heading along x: cab, cargo box, wheels.

    Args:
        length, width, height: its extent along x, y and z, metres.
    """
    cab = min(2.2, 0.3 * length)
    front = block(cab, width * 0.96, height * 0.72, Material.PAINT).moved(length / 2 - cab / 2, 0, 0.45)
    cargo = block(length - cab - 0.3, width, height - 1.0, Material.PAINT).moved(-(cab + 0.3) / 2, 0, 1.0)
    places = (-0.38, -0.25, 0.36)
    wheels = [wheel(sx * length, sy * (width / 2 - 0.2), 0.5, 0.3) for sx in places for sy in (-1, 1)]
    beam = block(length * 0.9, 0.9, 0.35, Material.METAL).moved(0, 0, 0.65)
    return fitted(join([front, cargo, beam, *wheels]), length, width, height)


def bus(length: float, width: float, height: float) -> Mesh:
    """A city bus: a body between skirts and roof with windows all around. Arguments as in `truck`."""
    skirt = block(length, width, 0.32 * height, Material.PAINT).moved(0, 0, 0.3)
    windows = block(length * 0.995, width * 0.97, 0.38 * height, Material.GLASS).moved(0, 0, 0.3 + 0.32 * height)
    roof = block(length, width, 0.3 * height - 0.3, Material.PAINT).moved(0, 0, 0.3 + 0.7 * height)
    wheels = [wheel(sx * length, sy * (width / 2 - 0.2), 0.48, 0.3) for sx in (-0.27, 0.3) for sy in (-1, 1)]
    return fitted(join([skirt, windows, roof, *wheels]), length, width, height)


def trailer(length: float, width: float, height: float) -> Mesh:
    """A box on wheels with landing gear, without the vehicle that pulls it. Arguments as in `truck`."""
    cargo = block(length, width, height - 1.15, Material.PAINT).moved(0, 0, 1.15)
    beam = block(length * 0.92, 0.9, 0.3, Material.METAL).moved(0, 0, 0.85)
    wheels = [wheel(-x * length, y * (width / 2 - 0.2), 0.5, 0.35) for x in (0.2, 0.32, 0.44) for y in (-1, 1)]
    legs = [tube((0.25 * length, y, 0.0), (0.25 * length, y, 0.9), 0.08, Material.METAL) for y in (-0.7, 0.7)]
    return fitted(join([cargo, beam, *wheels, *legs]), length, width, height)


def excavator(length: float, width: float, height: float) -> Mesh:
    """A construction vehicle: tracks, a cab beside its engine, and an arm with a bucket in front. Arguments as in
    `truck`.
    """
    tracks = [block(0.62 * length, 0.22 * width, 0.28 * height, Material.RUBBER) for _ in range(2)]
    sides = [m.moved(-0.19 * length, y * 0.39 * width, 0) for m, y in zip(tracks, (-1, 1), strict=True)]
    engine = block(0.4 * length, 0.8 * width, 0.34 * height, Material.PAINT).moved(-0.3 * length, 0, 0.28 * height)
    cab = block(0.22 * length, 0.4 * width, 0.6 * height, Material.GLASS).moved(
        -0.02 * length, 0.2 * width, 0.3 * height
    )
    elbow, base = (0.2 * length, -0.1 * width, height - 0.18), (0.0, -0.1 * width, 0.5 * height)
    arm = tubes([base, elbow], [elbow, (0.42 * length, -0.1 * width, 0.3 * height)], 0.18, Material.PAINT)
    bucket = block(0.16 * length, 0.4 * width, 0.26 * height, Material.METAL).moved(0.42 * length, -0.1 * width, 0)
    return fitted(join([*sides, engine, cab, arm, bucket]), length, width, height)


def motorcycle(length: float, width: float, height: float) -> Mesh:
    """A motorcycle and its rider. Arguments as in `truck`."""
    r = 0.31
    wheels = [wheel(x, 0, r, 0.13) for x in (-length / 2 + r, length / 2 - r)]
    body = ellipsoid((0, 0, 0.62), (0.55, 0.17, 0.27), Material.PAINT)
    fork = tube((length / 2 - r, 0, r), (0.45, 0, 1.0), 0.06, Material.METAL)
    handle = tube((0.45, -width / 2, 1.0), (0.45, width / 2, 1.0), 0.03, Material.METAL, 4)
    back = tube((-0.25, 0, 0.8), (0.05, 0, 0.85 * height), 0.2, Material.CLOTH, 8)
    head = ellipsoid((0.1, 0, height - 0.13), (0.14, 0.13, 0.13), Material.SKIN)
    arms = tubes(
        [(0.02, y, 0.8 * height) for y in (-0.2, 0.2)], [(0.42, y, 1.02) for y in (-0.3, 0.3)], 0.06, Material.CLOTH
    )
    legs = tubes(
        [(-0.2, y, 0.78) for y in (-0.14, 0.14)], [(0.15, y, 0.3) for y in (-0.24, 0.24)], 0.09, Material.CLOTH
    )
    return fitted(join([*wheels, body, fork, handle, back, head, arms, legs]), length, width, height)


def barrier(length: float, width: float, height: float) -> Mesh:
    """A barrier that closes a lane: a foot and a narrower wall. Arguments as in `truck`; `length` is its short side."""
    foot = block(length, width, 0.35 * height, Material.WALL)
    wall = block(0.45 * length, width, 0.65 * height, Material.PLATE).moved(0, 0, 0.35 * height)
    return join([foot, wall])


def cone(width: float, height: float) -> Mesh:
    """A traffic cone on its square foot, with a reflecting collar."""
    foot = block(width, width, 0.06 * height, Material.RUBBER)
    rings = [(0.36 * width, 0.06), (0.24 * width, 0.4), (0.17 * width, 0.65), (0.06 * width, 1.0)]
    materials = (Material.PAINT, Material.PLATE, Material.PAINT)
    cos, sin = _circle(10)
    ring = np.stack([cos, sin, np.zeros(10)], 1)
    parts = [
        Mesh.of(
            np.concatenate([ring * [a, a, 1] + [0, 0, low * height], ring * [b, b, 1] + [0, 0, high * height]]),
            _tube_triangles(10),
            material,
        )
        for (a, low), (b, high), material in zip(rings[:-1], rings[1:], materials, strict=True)
    ]
    return join([foot, *parts])


def pedestrian(height: float, stride: float, swing: float) -> Mesh:
    """A person walking along x.

    Args:
        height: in metres.
        stride: between the feet, metres.
        swing: of the arms, metres.
    """
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
        rims.append(tubes(ring, np.roll(ring, -1, 0), 0.025, Material.RUBBER, 4))
    rear, front = (-length / 2 + r, 0, r), (length / 2 - r, 0, r)
    saddle, bar = (-0.22, 0, 0.95), (0.42, 0, 1.05)
    pedals = (0, 0, 0.3)
    starts, ends = [rear, saddle, bar, rear, pedals], [saddle, bar, front, pedals, bar]
    frame = tubes(starts, ends, 0.025, Material.METAL, 4)
    rider = [
        tube((-0.2, 0, 0.95), (0.1, 0, 0.82 * h), 0.17, Material.CLOTH, 8),
        ellipsoid((0.16, 0, 0.93 * h), (0.11, 0.09, 0.07 * h), Material.SKIN),
        tube((0.05, 0.2, 0.78 * h), (0.4, 0.25, 1.08), 0.05, Material.CLOTH),
        tube((0.05, -0.2, 0.78 * h), (0.4, -0.25, 1.08), 0.05, Material.CLOTH),
        tube((-0.15, 0.1, 0.92), (0.15, 0.12, 0.25), 0.07, Material.CLOTH),
        tube((-0.15, -0.1, 0.92), (0.05, -0.12, 0.4), 0.07, Material.CLOTH),
    ]
    handle = tube((0.42, -0.27, 1.05), (0.42, 0.27, 1.05), 0.02, Material.METAL, 4)
    return join([*rims, frame, handle, *rider])


def leaves(rng: np.random.Generator, centre: Sequence[float], radii: Sequence[float], count: int, size: float) -> Mesh:
    """Loose triangles in an ellipsoid, denser outside: beams get stuck at different depths or pass through.

    Args:
        rng: what draws them.
        centre: x, y, z of the ellipsoid, metres.
        radii: along x, y, z.
        count: of triangles.
        size: standard deviation of their corners, metres.
    """
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
    """A porous bush on the ground.

    Args:
        rng: what draws its leaves.
        width: along x and y, metres.
        height: in metres.
    """
    return leaves(rng, (0, 0, height / 2), (width / 2, width / 2, height / 2), int(90 * width * height) + 20, 0.1)


def foliage_block(
    rng: np.random.Generator, length: float, width: float, height: float, round_off: bool = False
) -> Mesh:
    """Dense leaves in a box on the ground, as of a hedge, most of them near its faces; or of a rounded bush.

    Args:
        rng: what draws them.
        length, width, height: of the box along x, y and z, metres.
        round_off: whether it is a bush.
    """
    area = 2 * (length + width) * height + length * width
    count = int(min(4000, 40 + 45 * area))
    place = rng.uniform(-1, 1, (count, 3))
    if round_off:
        place /= np.maximum(np.linalg.norm(place, axis=1, keepdims=True), 1e-6)
        place *= rng.uniform(0.6, 1.0, (count, 1)) * (1 + 0.15 * np.sin(5 * place[:, :1] + 7 * place[:, 1:2]))
    else:
        face = rng.integers(0, 3, count)
        place[np.arange(count), face] = np.sign(place[np.arange(count), face]) * rng.uniform(0.75, 1.05, count)
    centre = place * [length / 2, width / 2, height / 2] + [0, 0, height / 2]
    corners = centre[:, None] + rng.normal(0, 0.09, (count, 3, 3))
    return Mesh.of(corners.reshape(-1, 3), np.arange(3 * count), Material.FOLIAGE)


def fitted(mesh: Mesh, length: float, width: float, height: float) -> Mesh:
    """A mesh stretched so that its extent is exactly that of a box on the ground, centred on the origin.

    Args:
        mesh: any.
        length, width, height: of the box along x, y and z, metres.
    """
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    centred = Mesh(mesh.vertices - [*((low + high) / 2)[:2], low[2]], mesh.triangles, mesh.material)
    size = high - low
    return centred.scaled(length / size[0], width / size[1], height / size[2])
