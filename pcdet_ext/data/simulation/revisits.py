"""A street that is passed several times: buildings stay, plants change with the season, traffic with every run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from pcdet_ext.data.simulation import shapes
from pcdet_ext.data.simulation.raycast import World
from pcdet_ext.data.simulation.roads import WindingStreet
from pcdet_ext.data.simulation.scene import Builder, Ground, frontage, ground_strip, parked, standing
from pcdet_ext.data.simulation.sensor import SpinningLidar, world_of
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.structures import Array

BEYOND = 70.0  # metres of street before the first and behind the last frame
SECTION = 130.0  # metres of street that are furnished at a time
AHEAD, BEHIND = 60.0, 45.0  # metres around the sensor in which vehicles drive
DRIVING = ("Car",) * 7 + ("Van", "Truck", "Cyclist")  # what may drive around the sensor, each half of the time

Season = Literal["summer", "winter"]


@dataclass(frozen=True)
class AerialLidar(SpinningLidar):
    """A sensor that looks down from `height` metres above the ground, its beams in circles of up to `radius` metres."""

    beams: int = 64
    azimuths: int = 200
    height: float = 60.0
    max_range: float = 150.0
    range_noise: float = 0.04
    radius: float = 50.0

    def elevations(self) -> Array:
        """Angle of each beam in degrees, highest first; on flat ground the circles are evenly spaced."""
        return -np.rad2deg(np.arctan2(self.height, np.linspace(self.radius, 1.0, self.beams)))


@dataclass(frozen=True)
class Plant:
    """A tree or bush. stem: metres of its trunk, 0 for a bush; crown: radii of its leaves; seed: of its shape."""

    x: float
    y: float
    z: float
    stem: float
    crown: tuple[float, float, float]
    seed: int

    def mesh(self, season: Season) -> Mesh:
        """As it is in a season: in winter without most of its leaves, in summer a little larger."""
        rng = np.random.default_rng([self.seed, 0 if season == "summer" else 1])
        grown = 1.0 if season == "summer" else 0.85
        radii = tuple(grown * r for r in self.crown)
        count = int((60 if self.stem else 110) * radii[0] * max(radii[2], radii[0]))
        count = max(4, int(count * (0.2 if season == "winter" else 1.0)))
        foliage = shapes.leaves(rng, (0, 0, self.stem + (0.0 if self.stem else self.crown[2])), radii, count, 0.2)
        if not self.stem:
            return foliage.moved(self.x, self.y, self.z)
        trunk = shapes.tube((0, 0, -0.3), (0, 0, self.stem), 0.06 + self.stem / 50, Material.BARK)
        return shapes.join([trunk, foliage]).moved(self.x, self.y, self.z)


@dataclass(frozen=True)
class RunPlan:
    """How a run goes through a street.

    direction: 1 along it, -1 against it; across: metres left of the street's middle; season; aerial: seen from above.
    """

    number: int
    direction: int
    across: float
    season: Season
    aerial: bool = False

    @property
    def name(self) -> str:
        """What the run is called, and what is special about it."""
        way = "aerial" if self.aerial else "along" if self.direction > 0 else "against"
        return f"{self.number:02d}_{way}_{self.season}"


@dataclass(frozen=True)
class Street:
    """A street of some metres; everything that stays follows from (seed, number)."""

    seed: int
    number: int
    length: float
    course: WindingStreet = field(init=False)
    ground: Ground = field(init=False)
    half_width: float = field(init=False)
    crossing: float = field(init=False)

    def __post_init__(self) -> None:
        rng = self._rng(0)
        set_field = object.__setattr__
        set_field(self, "course", WindingStreet.random(rng, -BEYOND - 40, self.length + BEYOND + 40))
        set_field(self, "ground", Ground.random(rng))
        set_field(self, "half_width", float(rng.uniform(4.6, 7.5)))
        set_field(self, "crossing", float(rng.uniform(0.2, 0.8) * self.length))

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.number, *what])

    @cached_property
    def lanes(self) -> int:
        """Lanes in each direction."""
        return max(1, int(self.half_width / 3.4))

    @cached_property
    def permanent(self) -> Builder:
        """Buildings, walls, fences, hedges, poles and the ground; nothing else may stand where they do."""
        rng = self._rng(1)
        builder = Builder(rng, self.ground, self.course, spared=0.0)
        for start in np.arange(SECTION / 2 - BEYOND, self.length + BEYOND, SECTION):
            builder.start = float(start)
            near = abs(self.crossing - start) < SECTION
            for side in (-1, 1):
                frontage(builder, side, self.half_width + rng.uniform(3, 14), self.crossing - start if near else None)
                _poles(builder, side, self.half_width)
        builder.start = 0.0
        ends = (-BEYOND, self.length + BEYOND)
        builder.static.append(ground_strip(rng, self.ground, self.course, self.half_width, self.crossing, ends))
        return builder

    @cached_property
    def plants(self) -> list[Plant]:
        """Trees and bushes at the roadside."""
        rng, plants = self._rng(2), []
        for _ in range(rng.poisson((self.length + 2 * BEYOND) / 9)):
            tree = bool(rng.random() < 0.6)
            along, side = rng.uniform(-BEYOND, self.length + BEYOND), int(rng.choice([-1, 1]))
            x, y, _ = (float(v) for v in self.course.at(along, side * (self.half_width + rng.uniform(1.5, 9))))
            radius, height = rng.uniform(1.0, 2.6), rng.uniform(3.0, 8.0)
            seed = int(rng.integers(2**31))
            crown = (radius, radius, 1.1 * radius) if tree else (radius / 2, radius / 2, radius / 2)
            if self.permanent.free(x, y, 0.4) and abs(along - self.crossing) > 6:
                z = self.permanent.ground_height(x, y)
                plants.append(Plant(x, y, z, height if tree else 0.0, crown, seed))
        return plants

    def plan(self, number: int) -> RunPlan:
        """The run of a number: forth and back in turn, in two seasons and changing lanes, every fifth from above."""
        rng = self._rng(3, number)
        direction = 1 if number % 2 == 0 else -1
        season: Season = "summer" if number // 2 % 2 == 0 else "winter"
        lane = int(rng.integers(self.lanes))
        across = -direction * (lane + 0.5) * self.half_width / self.lanes
        aerial = number % 5 == 4
        return RunPlan(number, direction, float(rng.normal(0, 3.0)) if aerial else across, season, aerial)

    def poses(self, plan: RunPlan, frames: int, height: float) -> Array:
        """Where a sensor is in the frames of a run, evenly spread over the street.

        Args:
            plan: of the run: direction, lane and number.
            frames: how many, one for every length / frames metres.
            height: of the sensor above the ground, metres.

        Returns:
            float64 [frames, 4, 4], sensor to world.
        """
        rng = self._rng(4, plan.number)
        step = self.length / frames
        along = (np.arange(frames) + 0.5) * step + rng.uniform(-0.3, 0.3, frames) * step
        along = along if plan.direction > 0 else along[::-1]
        across = plan.across + np.cumsum(rng.normal(0, 0.1, frames)).clip(-0.6, 0.6)
        x, y, heading = self.course.at(along, across)
        heading = heading + (0.0 if plan.direction > 0 else math.pi) + rng.normal(0, 0.03, frames)
        poses = np.tile(np.eye(4), (frames, 1, 1))
        poses[:, 0, 0] = poses[:, 1, 1] = np.cos(heading)
        poses[:, 1, 0] = np.sin(heading)
        poses[:, 0, 1] = -poses[:, 1, 0]
        poses[:, 0, 3], poses[:, 1, 3], poses[:, 2, 3] = x, y, self.ground.height(x, y) + height
        return poses


class Passage:
    """One run through a street, with a sensor on the ground or in the air: what it meets, and its scans.

    Args:
        street: what stands in it in every run.
        plan: of the run.
        frames: how many.
        ground: the sensor of runs on the ground.
        aerial: that of runs above it.
    """

    def __init__(self, street: Street, plan: RunPlan, frames: int, ground: SpinningLidar, aerial: AerialLidar) -> None:
        self.street, self.plan = street, plan
        self.rng = np.random.default_rng([street.seed, street.number, 5, plan.number])
        self.sensor = aerial if plan.aerial else ground
        self.poses = street.poses(plan, frames, ground.height)
        self.lift = self.sensor.height - ground.height
        builder = Builder(self.rng, street.ground, street.course, spared=0.0, taken=list(street.permanent.taken))
        for start in np.arange(SECTION / 2 - BEYOND, street.length + BEYOND, SECTION):
            builder.start = float(start)
            for side in (-1, 1):
                parked(builder, side, street.half_width, street.crossing - start)
        resting = [body.mesh.moved(*body.place) for body in builder.bodies]
        plants = [plant.mesh(plan.season) for plant in street.plants]
        self.vehicles = [standing(builder.mesh(name, builder.size(name)))[0] for name in DRIVING]
        self.world: World = world_of(shapes.join([*street.permanent.static, *plants, *resting]), self.vehicles)

    def scan(self, index: int) -> Array:
        """Points float32 [N, 4] of the next frame; of an aerial run too with the origin as high as a car's sensor."""
        pose = self.poses[index].copy()
        pose[2, 3] += self.lift
        points = self.sensor.measure(self.world, self._traffic(index), self.rng, pose).points
        points[:, 2] += np.float32(self.lift)
        return points

    def _traffic(self, index: int) -> Array:
        """Where vehicles drive while a frame is taken: float64 [V, 4], NaN for those that are elsewhere."""
        street, rng = self.street, self.rng
        own = (index + 0.5) * street.length / len(self.poses)
        own = own if self.plan.direction > 0 else street.length - own
        along = own + rng.uniform(-BEHIND, AHEAD, len(self.vehicles))
        way = rng.choice([-1, 1], len(self.vehicles))
        across = -way * (rng.integers(street.lanes, size=len(way)) + 0.5) * street.half_width / street.lanes
        x, y, heading = street.course.at(along, across)
        places = np.column_stack([x, y, street.ground.height(x, y), heading + np.where(way > 0, 0.0, math.pi)])
        near = np.hypot(x - self.poses[index, 0, 3], y - self.poses[index, 1, 3]) < 6.0
        places[near | (rng.random(len(way)) < 0.5)] = np.nan
        return places


def _poles(b: Builder, side: int, half_width: float) -> None:
    """Lamps, signs and boxes that stay where they are."""
    for _ in range(b.rng.poisson(5)):
        place = (b.rng.uniform(-65, 65), side * (half_width + b.rng.uniform(0.5, 2.2)))
        pole = shapes.tube((0, 0, -0.3), (0, 0, b.rng.uniform(2.2, 8)), b.rng.uniform(0.04, 0.12), Material.METAL)
        sign = shapes.block(0.05, 0.6, 0.6, Material.PLATE).moved(0, 0, 2.0)
        b.place(shapes.join([pole, sign]) if b.rng.random() < 0.4 else pole, *place, radius=0.3)
    for _ in range(b.rng.poisson(1.5)):
        place = (b.rng.uniform(-65, 65), side * (half_width + b.rng.uniform(0.4, 3)))
        dx, dy, dz = b.rng.uniform([0.4, 0.4, 0.7], [1.2, 1.0, 1.4])
        b.place(shapes.block(dx, dy, dz, Material.METAL), *place, radius=0.8)
