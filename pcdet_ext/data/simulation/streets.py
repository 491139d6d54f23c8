"""Random single streets around a sensor: traffic, parked cars, people, and what stands beside the road."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pcdet_ext.data.simulation import shapes
from pcdet_ext.data.simulation.roads import StraightStreet
from pcdet_ext.data.simulation.scene import CROSSING_HALF, PAVEMENT, Builder, CrossSection, Ground, Scene, parked
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.data.simulation.surroundings import surroundings

CHARACTERS = {"town": 0.4, "suburb": 0.4, "country": 0.2}
HALF_WIDTHS = {"town": (2.8, 7.0), "suburb": (2.6, 6.0), "country": (3.2, 9.0)}  # of the road, metres


def street_scene(rng: np.random.Generator) -> Scene:
    """A street with traffic, parked cars, people, buildings and plants; different with every state of `rng`."""
    character = str(rng.choice(list(CHARACTERS), p=list(CHARACTERS.values())))
    yaw = rng.normal(0, 0.05) if rng.random() < 0.9 else rng.uniform(-np.pi, np.pi)
    half_width = rng.uniform(*HALF_WIDTHS[character])
    lanes = _lanes(half_width)
    own_lane = (rng.integers(lanes) + 0.5) * half_width / lanes  # the sensor keeps right
    street = StraightStreet(yaw, float(own_lane + rng.normal(0, 0.3)))
    crossing = rng.uniform(12, 45) * rng.choice([-1, 1, 1]) if rng.random() < 0.3 else None
    form = CrossSection(
        street,
        half_width,
        crown=rng.uniform(0, 0.03),
        kerb=rng.uniform(0.03, 0.14),
        banks=tuple(rng.choice([0, 0, 1], 2) * rng.uniform(-0.15, 0.3, 2)),
        crossing=crossing,
    )
    ground = replace(Ground.random(rng), form=form)
    builder = Builder(rng, ground, street)
    busy = rng.gamma(1.2, 0.6)
    _traffic(builder, half_width, busy)
    if crossing is not None:
        _cross_traffic(builder, crossing, busy)
    for side in (-1, 1):
        before = len(builder.bodies)
        kind = str(rng.choice(["none", "kerb", "slanted", "straight"], p=[0.4, 0.5, 0.05, 0.05]))
        parked(builder, side, half_width, crossing, kind)
        _people(builder, side, half_width)
        room = ROOM[kind] if len(builder.bodies) > before else 0.0
        surroundings(builder, side, half_width + room + rng.uniform(0.4, 2.8), crossing, character)
    builder.static.append(_surface(rng, ground, form))
    return Scene(shapes.join(builder.static), tuple(b.actor() for b in builder.bodies))


ROOM = {"none": 0.0, "kerb": 2.2, "slanted": 4.8, "straight": 5.2}  # metres beside the road that parked cars take


def _lanes(half_width: float) -> int:
    """Lanes in each direction."""
    return max(1, int(half_width / 3.4))


def _vehicle(rng: np.random.Generator) -> str:
    return str(rng.choice(["Car", "Van", "Truck"], p=[0.87, 0.09, 0.04]))


def _traffic(b: Builder, half_width: float, busy: float) -> None:
    """Moving vehicles and cyclists, keeping right."""
    lanes = _lanes(half_width)
    for side, turn in ((-1, 0.0), (1, np.pi)):
        for lane in range(lanes):
            across = side * (lane + 0.5) * half_width / lanes
            along = b.rng.uniform(-60, -30)
            while along < 75:
                along += b.rng.exponential(45 / busy) + 9
                b.add(_vehicle(b.rng), along, across + b.rng.normal(0, 0.25), turn)
        for _ in range(b.rng.poisson(0.5)):
            b.add("Cyclist", b.rng.uniform(-40, 55), side * (half_width - 0.7), turn)


def _cross_traffic(b: Builder, crossing: float, busy: float) -> None:
    """Vehicles on the street that crosses ours, some of them turning."""
    for lane, turn in ((-1.8, np.pi / 2), (1.8, -np.pi / 2)):
        for _ in range(b.rng.poisson(busy)):
            skew = b.rng.normal(0, 0.5) if b.rng.random() < 0.25 else 0.0
            b.add(_vehicle(b.rng), crossing - lane, b.rng.uniform(-40, 40), turn + skew)


def _people(b: Builder, side: int, half_width: float) -> None:
    """Pedestrians on the pavement, some in groups, some crossing."""
    for _ in range(b.rng.poisson(1.6)):
        along, across = b.rng.uniform(-30, 45), side * (half_width + b.rng.uniform(0.4, 3.5))
        for member in range(1 + b.rng.poisson(0.4)):
            turn = b.rng.choice([0, np.pi]) + b.rng.normal(0, 0.4)
            b.add("Pedestrian", along + member * 0.8, across + b.rng.normal(0, 0.3), turn)
    if b.rng.random() < 0.25:
        b.add("Pedestrian", b.rng.uniform(6, 35), b.rng.uniform(-1, 1) * half_width, np.pi / 2)
    for _ in range(b.rng.poisson(0.35)):
        b.add("Cyclist", b.rng.uniform(-25, 45), side * (half_width + 1.2), b.rng.choice([0, np.pi]))


def _surface(rng: np.random.Generator, ground: Ground, form: CrossSection) -> Mesh:
    """The ground as triangles, finer near the sensor: asphalt, pavement a kerb higher, grass rough."""
    axis = np.sign(np.linspace(-1, 1, 161)) * np.abs(np.linspace(-1, 1, 161)) ** 1.5 * 120
    x, y = np.meshgrid(axis, axis, indexing="ij")
    along, across = form.street.coordinates(x, y)
    on_road = np.abs(across) < form.half_width
    if form.crossing is not None:
        on_road |= np.abs(along - form.crossing) < CROSSING_HALF
    paved = np.abs(across) < form.half_width + PAVEMENT
    rough = np.where(on_road, 0.008, np.where(paved, 0.02, rng.uniform(0.03, 0.09)))
    z = ground.height(x, y) + rng.normal(0, 1, x.shape) * rough
    n = len(axis)
    i, j = np.meshgrid(np.arange(n - 1), np.arange(n - 1), indexing="ij")
    a = (i * n + j).ravel()
    triangles = np.concatenate([np.stack([a, a + n, a + n + 1], 1), np.stack([a, a + n + 1, a + 1], 1)])
    road, pavement = on_road[:-1, :-1].ravel(), paved[:-1, :-1].ravel()
    material = np.where(road, Material.ASPHALT, np.where(pavement, Material.PAVEMENT, Material.GRASS)).astype(np.uint8)
    vertices = np.stack([x.ravel(), y.ravel(), z.ravel()], 1).astype(np.float32)
    return Mesh(vertices, triangles.astype(np.int32), np.tile(material, 2))
