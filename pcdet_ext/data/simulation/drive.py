"""A drive through a street: what stands there, how everything moves, and where the ego vehicle is at every moment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from pcdet_ext.data.simulation import shapes
from pcdet_ext.data.simulation.roads import Path, WindingStreet, crossing_lane, right_turn, straight_lane, straight_path
from pcdet_ext.data.simulation.scene import (
    Body,
    Builder,
    Ground,
    frontage,
    ground_strip,
    parked,
    roadside,
    standing,
)
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.data.simulation.traffic import LIGHT_PHASES, TIME_STEP, Mover, Traffic
from pcdet_ext.rigid import rigid_motion
from pcdet_ext.structures import Array

BEYOND = 110.0  # metres of street before where the drive begins, and behind where it may end
SECTION = 130.0  # metres of street that are furnished at a time
EGO_SIZE = (4.6, 1.9)  # length and width, metres
WARM_UP = 4.0  # seconds of traffic before the drive begins
SUSPENSION = 0.5  # share of the ground's tilt that the vehicle takes on
ROOM = 0.03  # metres between an object and its box at each side and above
MARGIN = TIME_STEP  # seconds known before the first and after the last frame, as a turn of a sensor lasts
KINDS = {"Car": 0.58, "Van": 0.07, "Truck": 0.13, "Bus": 0.08, "Motorcycle": 0.14}


@dataclass(frozen=True)
class Track:
    """An object that is labelled, all the time. mesh: in its own frame, the origin in the middle of its underside.

    places: float64 [T, 4], x, y, z of that point and the heading, continuous; [1, 4] for what never moves; NaN when it
    is not there. parked: it rests; a vehicle that nobody drives.
    """

    name: str
    size: Array
    mesh: Mesh
    places: Array
    parked: bool = False


@dataclass(frozen=True)
class Drive:
    """A street over time, in metres from where the ego vehicle starts. Times in seconds from the drive's begin.

    ego: float64 [T, 4], x, y, z, heading every `TIME_STEP` from -`MARGIN` on; unlabelled: rectangles [Z, 4, 2] on the
    ground inside which nothing is labelled; street, half_width, crossing: where its road runs; walkways: strips (from,
    to) across it where people walk; lanes: of each way.
    """

    static: Mesh
    tracks: tuple[Track, ...]
    ego: Array
    ground: Ground
    unlabelled: Array
    street: WindingStreet
    half_width: float
    crossing: float | None
    walkways: tuple[tuple[float, float], ...]
    lanes: int

    def ego_pose(self, time: float) -> Array:
        """From the ego vehicle's frame (on the ground, x forward) to the street's: float64 [4, 4]."""
        x, y, z, heading = _at(self.ego, time)
        west, east, south, north = self.ground.height(x + np.array([-1, 1, 0, 0]), y + np.array([0, 0, -1, 1]))
        slope = np.array([east - west, north - south]) / 2 * SUSPENSION
        cos, sin = np.cos(heading), np.sin(heading)
        forward = np.array([cos, sin, slope @ [cos, sin]])
        forward /= np.linalg.norm(forward)
        up = np.array([-slope[0], -slope[1], 1.0])
        up -= (up @ forward) * forward
        up /= np.linalg.norm(up)
        return rigid_motion(np.stack([forward, np.cross(up, forward), up], 1), np.array([x, y, z]))

    def places(self, time: float) -> Array:
        """x, y, z (underside), heading of all tracks: float64 [A, 4]."""
        return _at(self._records, time)

    def velocities(self, time: float) -> Array:
        """Velocity of all tracks over the ground, metres per second: float64 [A, 3]; 0 for what is not there."""
        h = TIME_STEP / 2
        change = (_at(self._records, time + h) - _at(self._records, time - h))[:, :3] / (2 * h)
        return np.nan_to_num(change)

    @cached_property
    def _records(self) -> Array:
        """The places of all tracks: float64 [T, A, 4]."""
        records = np.empty((len(self.ego), len(self.tracks), 4))
        for number, track in enumerate(self.tracks):
            records[:, number] = track.places
        return records

    def boxes(self, time: float) -> Array:
        """Boxes of all tracks in the street's frame: float64 [A, 7]; NaN for what is not there.

        They are wider than the objects by what people leave when they draw boxes around noisy points.
        """
        places = self.places(time)
        sizes = np.array([t.size for t in self.tracks]).reshape(-1, 3) + [2 * ROOM, 2 * ROOM, ROOM]
        centres = places[:, :3] + np.stack([np.zeros(len(sizes))] * 2 + [sizes[:, 2] / 2], 1)
        return np.concatenate([centres, sizes, places[:, 3:]], 1)


def _at(record: Array, time: float) -> Array:
    """A record [T, …] at a time, linear between its rows; NaN beside a row that is NaN."""
    step = np.clip((time + MARGIN) / TIME_STEP, 0, len(record) - 1)
    low = min(int(step), len(record) - 2)
    return record[low] + (step - low) * (record[low + 1] - record[low])


def drive(rng: np.random.Generator, seconds: float) -> Drive:
    """A drive of some seconds; different with every state of `rng`."""
    end = 14.0 * (seconds + WARM_UP) + BEYOND
    street = WindingStreet.random(rng, -BEYOND - 40, end + 40)
    half_width = rng.uniform(4.6, 8.0)
    crossing = rng.uniform(50, 120) if rng.random() < 0.6 else None
    plan = _Plan(Builder(rng, Ground.random(rng), street, spared=0.0), half_width, crossing, end)
    walkways = plan.furnish()
    plan.signs()
    ego = plan.ego()
    plan.vehicles(ego)
    plan.people(walkways)
    record = plan.run(seconds)
    ground = plan.builder.ground
    resting = [Track(b.name, b.size, b.mesh, b.place[None], parked=True) for b in plan.builder.bodies]
    static = [*plan.builder.static, ground_strip(rng, ground, street, half_width, crossing, (-BEYOND, end))]
    moving = [
        Track(part.name, part.size, part.mesh, _places(part, record[:, number], plan.traffic.movers[number], ground))
        for number, parts in enumerate(plan.parts)
        for part in parts
    ]
    own = np.column_stack([record[:, 0, :2], ground.height(record[:, 0, 0], record[:, 0, 1]), record[:, 0, 2]])
    zones = _unlabelled(rng, street, half_width, end)
    return Drive(
        shapes.join(static),
        (*moving, *resting),
        own,
        ground,
        zones,
        street,
        half_width,
        crossing,
        tuple(walkways),
        plan.lanes,
    )


@dataclass(frozen=True)
class _Part:
    """A body that moves; offset: metres by which it is ahead of the middle of what it belongs to."""

    name: str
    size: Array
    mesh: Mesh
    offset: float = 0.0


def _places(part: _Part, record: Array, mover: Mover, ground: Ground) -> Array:
    x, y, heading = mover.path.at(record[:, 4] + part.offset)
    return np.column_stack([x, y, ground.height(x, y), heading])


class _Plan:
    """A drive in the making. Traffic keeps right: `across` is negative for those who drive along the street."""

    def __init__(self, builder: Builder, half_width: float, crossing: float | None, end: float) -> None:
        self.builder, self.half_width, self.crossing, self.end = builder, half_width, crossing, end
        self.rng, self.street = builder.rng, builder.street
        self.lanes = max(1, int(half_width / 3.4))
        self.traffic = Traffic(offset=builder.rng.uniform(0, sum(LIGHT_PHASES)))
        self.ego_lane = 0
        self.parts: list[list[_Part]] = []  # of each mover; the ego vehicle has none

    def furnish(self) -> list[tuple[float, float]]:
        """Parked vehicles, roadworks, buildings and plants, section by section; returns where people walk."""
        b = self.builder
        walkways: list[tuple[float, float]] = []
        styles = {}
        for side in (-1, 1):
            wide = self.rng.random() < 0.3  # parked at an angle: people walk behind the cars
            inner = self.half_width + (5.2 if wide else 3.1)
            walkways.append((inner, inner + 1.2) if side > 0 else (-inner - 1.2, -inner))
            styles[side] = (["slanted", "straight"] if wide else ["none", "kerb", "kerb"], inner + 2.2)
        b.walkways = tuple(walkways)
        for start in np.arange(SECTION / 2 - BEYOND, self.end, SECTION):
            b.start = float(start)
            near = self.crossing is not None and abs(self.crossing - start) < SECTION
            crossing = self.crossing - b.start if self.crossing is not None and near else None
            for side, (kinds, distance) in styles.items():
                self._roadworks(side, crossing)
                self._heavy(side, crossing)
                parked(b, side, self.half_width, crossing, str(self.rng.choice(kinds)))
                roadside(b, side, self.half_width)
                frontage(b, side, distance + self.rng.uniform(0, 6), crossing)
        b.start = 0.0
        return walkways

    def _roadworks(self, side: int, crossing: float | None) -> None:
        """Cones or barriers along the kerb, sometimes an excavator where they end."""
        if self.rng.random() > 0.6:
            return
        first, across = self.rng.uniform(-50, 30), side * (self.half_width + 0.45)
        if crossing is not None and -30 < first - crossing < 12:
            return
        name, step = [("Cone", 2.5), ("Barrier", 3.2)][int(self.rng.integers(2))]
        count = int(self.rng.integers(4, 9))
        for number in range(count):
            self.builder.add(name, first + number * step, across, -side * np.pi / 2)
        if self.rng.random() < 0.6:
            self.builder.add("Excavator", first + count * step + 5, side * (self.half_width + 1.65), 0.0)

    def _heavy(self, side: int, crossing: float | None) -> None:
        """Trucks and trailers at the kerb."""
        for _ in range(self.rng.poisson(0.7)):
            along = self.rng.uniform(-55, 60)
            if crossing is None or abs(along - crossing) > 16:
                name = "Trailer" if self.rng.random() < 0.6 else "Truck"
                self.builder.add(name, along, side * (self.half_width + 1.6), 0.0 if side < 0 else np.pi)

    def signs(self) -> None:
        """Traffic signs on poles, facing those who drive towards them."""
        b = self.builder
        for along in np.arange(-BEYOND, self.end, 35.0) + self.rng.uniform(-12, 12):
            side = int(self.rng.choice([-1, 1]))
            x, y, yaw = b.to_world(along, side * (self.half_width + 0.6))
            if (self.crossing is not None and abs(along - self.crossing) < 7) or not b.free(x, y, 0.4):
                continue
            b.taken.append((x, y, 0.4))
            size, ground, low = b.size("Sign"), b.ground_height(x, y), self.rng.uniform(1.9, 2.4)
            heading = yaw + (np.pi if side < 0 else 0.0)
            mesh, extent = standing(b.mesh("Sign", size))
            b.bodies.append(Body("Sign", extent, mesh, np.array([x, y, ground + low, heading])))
            pole = shapes.tube((-0.09, 0, -0.3), (-0.09, 0, low + size[2] + 0.05), 0.04, Material.METAL)
            b.static.append(pole.moved(x, y, ground, heading))

    def _lane(self, lane: int, way: int) -> float:
        """Where across the street the middle of a lane is; lane 0 is the innermost, way 1 along the street."""
        return -way * (lane + 0.5) * self.half_width / self.lanes

    def _lane_path(self, across: float, way: int, turns: bool = False) -> Path:
        """A path along a lane with its red light; or one that turns right at the crossing."""
        start, end = (-BEYOND, self.end) if way > 0 else (self.end, -BEYOND)
        if self.crossing is None:
            return straight_lane(self.street, across, start, end)
        stop = self.street.at(self.crossing - way * 8.0, across)[:2]
        if turns:
            path = right_turn(self.street, across, start, self.crossing - way * 1.8, -way * 95.0)
        else:
            path = straight_lane(self.street, across, start, end)
        return replace(path, stops=((path.nearest(*map(float, stop)), 0),))

    def ego(self) -> Mover:
        """The ego vehicle, the first mover; it may turn at the crossing, and stops where its path ends."""
        turns = self.crossing is not None and self.rng.random() < 0.35
        lane = self.lanes - 1 if turns else int(self.rng.integers(self.lanes))
        self.ego_lane = lane
        path = self._lane_path(self._lane(lane, 1), 1, turns)
        speeds = np.minimum(path.speeds, np.sqrt(2 * 1.5 * np.maximum(path.length - 4 - path.lengths, 0)))
        wish = self.rng.uniform(7, 12)
        mover = Mover(replace(path, speeds=speeds), BEYOND, wish, *EGO_SIZE, speed=0.8 * wish, stays=True)
        self._add(mover, [])
        return mover

    def _add(self, mover: Mover, parts: list[_Part]) -> None:
        self.traffic.movers.append(mover)
        self.parts.append(parts)

    def _make(self, name: str, offset: float = 0.0) -> _Part:
        mesh, extent = standing(self.builder.mesh(name, self.builder.size(name)))
        return _Part(name, extent, mesh, offset)

    def vehicles(self, ego: Mover) -> None:
        """Vehicles and cyclists in all lanes of both streets."""
        spacing = self.rng.uniform(18, 50)
        for way in (1, -1):
            for lane in range(self.lanes):
                across = self._lane(lane, way)
                straight = turning = self._lane_path(across, way)
                if lane == self.lanes - 1 and self.crossing is not None:
                    turning = self._lane_path(across, way, turns=True)
                avoid = ego.position if (way, lane) == (1, self.ego_lane) else None
                self._fill(straight, turning, spacing, avoid)
            edge = self._lane_path(-way * (self.half_width - 0.45), way)
            place = self.rng.uniform(20, 80)
            while place < edge.length - 30:
                self._add_vehicle("Cyclist", edge, place, self.rng.uniform(3.5, 6))
                place += 12 + self.rng.exponential(80)
        if self.crossing is not None:
            for way in (1, -1):
                path = crossing_lane(self.street, self.crossing + way * 1.8, -way * 95.0, way * 95.0)
                stop = 95.0 - self.half_width - 3.0
                path = replace(path, stops=((stop, 1),))
                self._fill(path, path, spacing * 1.5, None, until=stop - 8)

    def _fill(self, straight: Path, turning: Path, spacing: float, avoid: float | None, until: float = np.inf) -> None:
        """Vehicles one behind the other; some take the turning path at the crossing. avoid: the ego vehicle's place."""
        place = self.rng.uniform(8, 20)
        while place < min(straight.length - 15, until):
            name = str(self.rng.choice(list(KINDS), p=list(KINDS.values())))
            before_light = bool(straight.stops) and place < straight.stops[0][0] - 15
            route = turning if before_light and self.rng.random() < 0.25 else straight
            if avoid is None or abs(place - avoid) > 22:
                self._add_vehicle(name, route, place, self.rng.uniform(6.5, 13))
            place += 26 + self.rng.exponential(spacing)

    def _add_vehicle(self, name: str, path: Path, place: float, wish: float) -> None:
        parts = [self._make(name)]
        if name == "Truck" and self.rng.random() < 0.4:
            parts.append(self._make("Trailer"))
        lengths = [float(p.size[0]) for p in parts]
        whole = sum(lengths) + 0.7 * (len(parts) - 1)
        fronts = whole / 2 - np.concatenate([[0.0], np.cumsum(np.add(lengths, 0.7))[:-1]])
        parts = [replace(p, offset=float(f - n / 2)) for p, f, n in zip(parts, fronts, lengths, strict=True)]
        width = max(float(p.size[1]) for p in parts)
        self._add(Mover(path, float(place), wish, whole, width, speed=0.7 * wish), parts)

    def people(self, walkways: list[tuple[float, float]]) -> None:
        """Walking and standing people on both sides, alone or in groups, and some who cross the street."""
        for low, high in walkways:
            for _ in range(self.rng.poisson((self.end + BEYOND) / 14)):
                self._group(low, high)
        if self.crossing is None:
            return
        for _ in range(self.rng.poisson(2.5)):
            along = self.crossing - 5.7 + self.rng.uniform(-0.6, 0.6)
            ends = np.array([-1, 1]) * int(self.rng.choice([-1, 1])) * (self.half_width + self.rng.uniform(0.6, 2.2))
            path = straight_path(self.street, (along, ends[0]), (along, ends[1]))
            part, speed = self._make("Pedestrian"), self.rng.uniform(1.1, 1.7)
            self._add(Mover(path, 0.0, speed, 0.5, 0.5, yields=False, waits=True, stays=True), [part])

    def _group(self, low: float, high: float) -> None:
        start, way = self.rng.uniform(-BEYOND, self.end), int(self.rng.choice([-1, 1]))
        if self.crossing is not None and abs(start - self.crossing) < 8:
            return
        stop = start + way * self.rng.uniform(20, 60)
        if self.crossing is not None and (start - self.crossing) * (stop - self.crossing) < 0:
            stop = self.crossing - way * 7.0  # nobody walks into the crossing street
        speed = self.rng.uniform(0.9, 1.7) if self.rng.random() < 0.75 else 0.0
        for member in range(1 + self.rng.poisson(0.4)):
            across = self.rng.uniform(low + 0.2, high - 0.2)
            first = start - way * 0.9 * member
            path = straight_path(self.street, (first, across), (stop, across))
            self._add(
                Mover(path, 0.0, speed, 0.5, 0.5, speed=speed, yields=False, stays=True), [self._make("Pedestrian")]
            )

    def run(self, seconds: float) -> Array:
        """What moved, from `MARGIN` before the drive begins to `MARGIN` after its end."""
        record = self.traffic.run(WARM_UP + seconds + 2 * MARGIN)
        return record[round((WARM_UP - MARGIN) / TIME_STEP) :]


def _unlabelled(rng: np.random.Generator, street: WindingStreet, half_width: float, end: float) -> Array:
    """Grounds beside the street whose objects nobody labels: corners [Z, 4, 2]."""
    zones = []
    for _ in range(rng.poisson(1.2)):
        side, first, length = int(rng.choice([-1, 1])), rng.uniform(-30, end - BEYOND), rng.uniform(15, 40)
        along = np.array([first, first + length, first + length, first])
        across = side * (half_width + np.array([0.1, 0.1, 40.0, 40.0]))
        zones.append(np.stack(street.at(along, across)[:2], 1))
    return np.reshape(zones, (-1, 4, 2))
