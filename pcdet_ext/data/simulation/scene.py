"""Random street scenes: what stands where. Knows nothing of sensors or file formats."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pcdet_ext.data.simulation import cars, shapes
from pcdet_ext.data.simulation.roads import StraightStreet, Street, WindingStreet
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.structures import Array

CROSSING_HALF = 4.0  # half the width of a street that crosses, metres
PAVEMENT, BANK = 2.5, 8.0  # metres: width of a pavement, and of the bank beyond it
SIZES = {  # length, width, height: mean and spread in metres, as labelled in KITTI
    "Car": ((3.84, 1.59, 1.53), (0.42, 0.10, 0.13)),
    "Van": ((5.0, 1.9, 2.2), (0.5, 0.12, 0.25)),
    "Truck": ((9.5, 2.55, 3.2), (2.2, 0.15, 0.4)),
    "Cyclist": ((1.76, 0.6, 1.73), (0.12, 0.05, 0.08)),
    "Pedestrian": ((0.8, 0.65, 1.75), (0.2, 0.1, 0.1)),
    # As labelled in nuScenes; a barrier's length is its short side.
    "Bus": ((11.0, 2.9, 3.4), (1.0, 0.1, 0.2)),
    "Trailer": ((10.0, 2.6, 3.7), (1.5, 0.15, 0.2)),
    "Excavator": ((6.2, 2.7, 3.1), (0.8, 0.2, 0.3)),
    "Motorcycle": ((2.1, 0.8, 1.5), (0.12, 0.06, 0.08)),
    "Barrier": ((0.5, 2.4, 1.0), (0.05, 0.3, 0.05)),
    "Cone": ((0.4, 0.4, 0.9), (0.05, 0.05, 0.12)),
    "Sign": ((0.06, 0.7, 0.7), (0.005, 0.12, 0.12)),
}

OTHER_SHAPES = {
    "Bus": shapes.bus,
    "Trailer": shapes.trailer,
    "Excavator": shapes.excavator,
    "Motorcycle": shapes.motorcycle,
    "Barrier": shapes.barrier,
}


@dataclass(frozen=True)
class Actor:
    """An object that is labelled. box: (x, y, z, dx, dy, dz, heading), z at the centre, the extent of its mesh."""

    name: str
    box: Array
    mesh: Mesh  # placed in the scene


@dataclass(frozen=True)
class Body:
    """Something that stands in a street. mesh: in its own frame, the origin in the middle of its underside.

    size: its extent in x, y, z; place: float64 [4], where its origin is and its heading.
    """

    name: str
    size: Array
    mesh: Mesh
    place: Array

    def actor(self) -> Actor:
        """As it stands there."""
        box = np.concatenate([self.place[:3], self.size, self.place[3:]])
        box[2] = float(self.place[2]) + self.size[2] / 2  # rounded to float32, as the frames of old seeds have it
        return Actor(self.name, box, self.mesh.moved(*self.place))


@dataclass(frozen=True)
class Scene:
    """A world around a sensor that stands on the ground at the origin. static: everything without a label."""

    static: Mesh
    actors: tuple[Actor, ...]


@dataclass(frozen=True)
class CrossSection:
    """A straight street as a surface: its middle higher than its edges, the kerb, and banks beyond the pavements.

    crown: metres that the road falls per metre from its middle; kerb: its height; banks: rise per metre beyond the
    right and the left pavement, up to `BANK` metres away; crossing: where along it another street crosses.
    """

    street: StraightStreet
    half_width: float
    crown: float
    kerb: float
    banks: tuple[float, float]
    crossing: float | None = None

    def height(self, x: Array, y: Array) -> Array:
        """Height at places in the world."""
        along, across = self.street.coordinates(x, y)
        away = np.abs(across)
        off_road = away > self.half_width
        if self.crossing is not None:
            off_road &= np.abs(along - self.crossing) > CROSSING_HALF
        bank = np.where(across < 0, *self.banks) * np.clip(away - self.half_width - PAVEMENT, 0, BANK)
        return np.asarray(np.where(off_road, self.kerb + bank, 0.0) - self.crown * np.minimum(away, self.half_width))


@dataclass
class Ground:
    """A gently undulating surface with a slope, and where there is a street its form: height in metres."""

    slope: Array
    waves: Array  # rows: amplitude, wave number x and y, phase
    form: CrossSection | None = None

    def height(self, x: Array, y: Array) -> Array:
        """Height at places; the sensor's own place, the origin, has the height 0."""
        plain = self._plain(x, y)
        if self.form is None:
            return plain
        origin = float(self.form.height(np.zeros(()), np.zeros(())))
        return np.asarray(plain + self.form.height(x, y) - origin)

    def _plain(self, x: Array, y: Array) -> Array:
        amplitude, kx, ky, phase = self.waves.T
        phases = x[..., None] * kx + y[..., None] * ky + phase
        rest = float((amplitude * np.sin(phase)).sum())  # the sensor's own place stays at height 0
        return self.slope[0] * x + self.slope[1] * y + (amplitude * np.sin(phases)).sum(-1) - rest

    @staticmethod
    def random(rng: np.random.Generator) -> Ground:
        waves = np.stack(
            [
                rng.uniform(0.01, 0.12, 5),
                2 * np.pi / rng.uniform(25, 90, 5) * rng.choice([-1, 1], 5),
                2 * np.pi / rng.uniform(25, 90, 5) * rng.choice([-1, 1], 5),
                rng.uniform(0, 2 * np.pi, 5),
            ],
            1,
        )
        return Ground(rng.normal(0, [0.012, 0.012]), waves)


def standing(mesh: Mesh) -> tuple[Mesh, Array]:
    """A mesh shifted so that the middle of its underside is the origin, and its extent in x, y, z."""
    low, high = mesh.vertices.min(0), mesh.vertices.max(0)
    centre = (low + high) / 2
    shift = np.array([centre[0], centre[1], low[2]], np.float32)
    return Mesh(mesh.vertices - shift, mesh.triangles, mesh.material), high - low


@dataclass
class Builder:
    """A scene in the making; remembers what is taken so that nothing overlaps.

    start: metres along the street from which places are counted; spared: metres around the origin that stay free;
    walkways: strips across the street (from, to) that stay free of what stands at the roadside.
    """

    rng: np.random.Generator
    ground: Ground
    street: Street
    start: float = 0.0
    spared: float = 3.0
    walkways: tuple[tuple[float, float], ...] = ()
    static: list[Mesh] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    taken: list[tuple[float, float, float]] = field(default_factory=list)  # discs: x, y, radius

    def to_world(self, along: float, across: float) -> tuple[float, float, float]:
        """From street coordinates to the world's x and y, and the street's heading there."""
        x, y, heading = self.street.at(along + self.start, across)
        return float(x), float(y), float(heading)

    def ground_height(self, x: float, y: float) -> float:
        """Height of the ground at one place."""
        return float(self.ground.height(np.array(x), np.array(y)))

    def free(self, x: float, y: float, radius: float) -> bool:
        """Whether a disc touches nothing.

        Args:
            x, y: its centre in the world.
            radius: in metres.
        """
        return self._all_free(np.array([[x, y]]), radius)

    def _all_free(self, places: Array, radius: float) -> bool:
        """Whether none of the discs of one radius around places [N, 2] touches anything."""
        if (np.hypot(*places.T) < radius + self.spared).any():
            return False
        if not self.taken:
            return True
        x, y, radii = np.array(self.taken).T
        apart = (places[:, :1] - x) ** 2 + (places[:, 1:] - y) ** 2
        return bool((apart > (radius + radii) ** 2).all())

    def take(self, x: float, y: float, heading: float, length: float, width: float) -> bool:
        """Reserve a rectangle as a chain of discs, where it is free; says whether it was.

        Args:
            x, y: its centre in the world.
            heading: of its length, radians.
            length, width: in metres.
        """
        radius = width / 2 + 0.15
        steps = max(1, int(np.ceil(length / width)))
        offsets = (np.arange(steps) + 0.5) / steps * length - length / 2
        places = np.column_stack([x + offsets * np.cos(heading), y + offsets * np.sin(heading)])
        if not self._all_free(places, radius):
            return False
        self.taken += [(a, b, radius) for a, b in places.tolist()]
        return True

    def place(self, mesh: Mesh, along: float, across: float, turn: float = 0.0, radius: float = 0.0) -> None:
        """Stand something without a label on the ground, where its disc is free.

        Args:
            mesh: what stands there, its feet at z = 0.
            along: metres along the street.
            across: metres to its left.
            turn: its heading to that of the street, radians.
            radius: of the disc; 0 puts it anywhere.
        """
        x, y, yaw = self.to_world(along, across)
        if radius and any(low - radius < across < high + radius for low, high in self.walkways):
            return
        if radius and not self.free(x, y, radius):
            return
        if radius:
            self.taken.append((x, y, radius))
        self.static.append(mesh.moved(x, y, self.ground_height(x, y), yaw + turn))

    def add(self, name: str, along: float, across: float, turn: float) -> bool:
        """Stand an object of a class on the ground, where it is free; says whether it was.

        Args:
            name: of the class.
            along: metres along the street.
            across: metres to its left.
            turn: its heading to that of the street, radians.
        """
        size = self.size(name)
        x, y, yaw = self.to_world(along, across)
        heading = yaw + turn + self.rng.normal(0, 0.03)
        mesh, extent = standing(self.mesh(name, size))
        free = self.take(x, y, heading, extent[0], extent[1])
        if free:
            self.bodies.append(Body(name, extent, mesh, np.array([x, y, self.ground_height(x, y), heading])))
        return free

    def size(self, name: str) -> Array:
        """Length, width, height of one object of a class."""
        mean, spread = (np.array(v) for v in SIZES[name])
        return np.clip(self.rng.normal(mean, spread), mean - 2.2 * spread, mean + 2.2 * spread)

    def mesh(self, name: str, size: Array) -> Mesh:
        """The shape of one object."""
        rng = self.rng
        if name in ("Car", "Van"):
            profile = str(rng.choice(cars.PASSENGER)) if name == "Car" else "van"
            length, width, height = size
            return cars.car(profile, length, width, height, cars.Style.random(rng))
        if name == "Truck":
            return shapes.truck(*size)
        if name == "Cyclist":
            return shapes.cyclist(size[0], size[2])
        if name == "Cone":
            return shapes.cone(size[0], size[2])
        if name == "Sign":
            length, width, height = size
            return shapes.block(length, width, height, Material.PLATE)
        if name in OTHER_SHAPES:
            return OTHER_SHAPES[name](*size)
        return shapes.pedestrian(size[2], rng.uniform(0.1, 0.7), rng.uniform(0.0, 0.5))


def parked(b: Builder, side: int, half_width: float, crossing: float | None, kind: str | None = None) -> None:
    """A row of parked cars.

    Args:
        b: the street.
        side: 1 for its left side, -1 for its right one.
        half_width: from its middle to the kerb, metres.
        crossing: metres along it at which another street crosses, None for none.
        kind: along the "kerb", "slanted" or "straight" to it, or "none"; drawn where it is None.
    """
    kind = kind or b.rng.choice(["none", "kerb", "slanted", "straight"], p=[0.3, 0.45, 0.12, 0.13])
    if kind == "none":
        return
    turn, step, across = {
        "kerb": (0.0, 5.6, half_width + 1.1),
        "slanted": (side * np.pi / 4, 3.6, half_width + 2.4),
        "straight": (side * np.pi / 2, 2.7, half_width + 2.8),
    }[kind]
    share = b.rng.uniform(0.15, 0.9)
    for along in np.arange(-55, 70, step):
        near_crossing = crossing is not None and abs(along - crossing) < 8
        if b.rng.random() > share or near_crossing:
            continue
        flip = np.pi if b.rng.random() < (0.15 if kind == "kerb" else 0.35) else 0.0
        direction = (0.0 if side < 0 else np.pi) if kind == "kerb" else 0.0
        name = "Van" if b.rng.random() < 0.08 else "Car"
        b.add(name, along + b.rng.normal(0, 0.25), side * across + b.rng.normal(0, 0.12), turn + flip + direction)


def frontage(b: Builder, side: int, distance: float, crossing: float | None) -> None:
    """Buildings, walls, fences or hedges along the street, with gaps.

    Args:
        b: the street.
        side: 1 for its left side, -1 for its right one.
        distance: from its middle, metres.
        crossing: metres along it at which another street crosses, None for none.
    """
    along = -75.0
    while along < 80:
        length = b.rng.uniform(6, 28)
        middle = along + length / 2
        along += length + (b.rng.uniform(1, 12) if b.rng.random() < 0.5 else 0.3)
        if crossing is not None and abs(middle - crossing) < length / 2 + 7:
            continue
        kind = b.rng.choice(["building", "wall", "hedge", "fence", "open"], p=[0.5, 0.1, 0.15, 0.05, 0.2])
        place = (middle, side * (distance + b.rng.uniform(0, 2)))
        if kind == "building":
            depth = b.rng.uniform(6, 14)
            mesh = shapes.block(length, depth, b.rng.uniform(3.5, 12), Material.WALL)
            b.place(mesh.moved(0, 0, -0.6), place[0], place[1] + side * depth / 2)
        elif kind == "wall":
            b.place(shapes.block(length, 0.3, b.rng.uniform(0.9, 2.3), Material.MASONRY).moved(0, 0, -0.3), *place)
        elif kind == "hedge":
            hedges = [shapes.bush(b.rng, 1.3, b.rng.uniform(1, 2.5)).moved(o, 0, 0) for o in np.arange(0, length, 1.2)]
            b.place(shapes.join(hedges).moved(-length / 2, 0, 0), *place)
        elif kind == "fence":
            feet = np.arange(0, length, 1.5)[:, None] * [1.0, 0, 0]
            posts = shapes.tubes(feet + [0, 0, -0.2], feet + [0, 0, 1.1], 0.05, Material.FENCE, 4)
            rails = [shapes.tube((0, 0, h), (length, 0, h), 0.04, Material.FENCE, 4) for h in (0.4, 0.75, 1.1)]
            b.place(shapes.join([posts, *rails]).moved(-length / 2, 0, 0), *place)


def roadside(b: Builder, side: int, half_width: float) -> None:
    """Poles, signs, trees, bushes, bins along the pavement.

    Args:
        b: the street.
        side: 1 for its left side, -1 for its right one.
        half_width: from its middle to the kerb, metres.
    """
    for _ in range(b.rng.poisson(5)):
        place = (b.rng.uniform(-60, 70), side * (half_width + b.rng.uniform(0.5, 2.2)))
        pole = shapes.tube((0, 0, -0.3), (0, 0, b.rng.uniform(2.2, 8)), b.rng.uniform(0.04, 0.12), Material.METAL)
        sign = shapes.block(0.05, 0.6, 0.6, Material.PLATE).moved(0, 0, 2.0)
        b.place(shapes.join([pole, sign]) if b.rng.random() < 0.4 else pole, *place, radius=0.3)
    for _ in range(b.rng.poisson(5)):
        place = (b.rng.uniform(-60, 70), side * (half_width + b.rng.uniform(1.5, 9)))
        b.place(shapes.tree(b.rng, b.rng.uniform(4, 10)), *place, radius=0.4)
    for _ in range(b.rng.poisson(4)):
        place = (b.rng.uniform(-50, 60), side * (half_width + b.rng.uniform(1.5, 9)))
        b.place(shapes.bush(b.rng, b.rng.uniform(0.7, 2.5), b.rng.uniform(0.6, 2)), *place, radius=1.0)
    for _ in range(b.rng.poisson(1.5)):
        place = (b.rng.uniform(-40, 50), side * (half_width + b.rng.uniform(0.4, 3)))
        dx, dy, dz = b.rng.uniform([0.4, 0.4, 0.7], [1.2, 1.0, 1.4])
        b.place(shapes.block(dx, dy, dz, Material.BIN), *place, radius=0.8)


def ground_strip(
    rng: np.random.Generator,
    ground: Ground,
    street: WindingStreet,
    half_width: float,
    crossing: float | None,
    ends: tuple[float, float],
) -> Mesh:
    """The ground along a street as triangles: asphalt, pavement a kerb higher, grass rough.

    Args:
        rng: what draws how rough it is.
        ground: its heights.
        street: along which it lies.
        half_width: from the middle to the kerb, metres.
        crossing: metres along it at which another street crosses, None for none.
        ends: metres along the street from which and up to which it reaches.
    """
    spread = np.linspace(0, 1, 22)[1:] ** 1.7 * 150
    sides = np.sort(np.concatenate([spread, [half_width, half_width + 0.05]]))
    across_nodes = np.concatenate([-sides[::-1], [0.0], sides])
    along_nodes = np.arange(ends[0], ends[1], 2.0)
    if crossing is not None:
        edges = crossing + np.array([-CROSSING_HALF - 0.05, -CROSSING_HALF, CROSSING_HALF, CROSSING_HALF + 0.05])
        along_nodes = np.sort(np.concatenate([along_nodes, edges]))
    along, across = np.meshgrid(along_nodes, across_nodes, indexing="ij")
    on_road = np.abs(across) <= half_width
    if crossing is not None:
        on_road |= np.abs(along - crossing) <= CROSSING_HALF
    x, y, _ = street.at(along, across)
    kerb, rough = rng.uniform(0.05, 0.14), np.where(on_road, 0.008, 0.03)
    z = ground.height(x, y) + np.where(on_road, 0.0, kerb) + rng.normal(0, 1, x.shape) * rough
    n = len(across_nodes)
    i, j = np.meshgrid(np.arange(len(along_nodes) - 1), np.arange(n - 1), indexing="ij")
    a = (i * n + j).ravel()
    triangles = np.concatenate([np.stack([a, a + n, a + n + 1], 1), np.stack([a, a + n + 1, a + 1], 1)])
    road = (on_road[:-1, :-1] & on_road[1:, 1:]).ravel()
    paved = np.abs(across[:-1, :-1]).ravel() < half_width + 4.5
    material = np.where(road, Material.ASPHALT, np.where(paved, Material.PAVEMENT, Material.GRASS)).astype(np.uint8)
    vertices = np.stack([x.ravel(), y.ravel(), z.ravel()], 1).astype(np.float32)
    return Mesh(vertices, triangles.astype(np.int32), np.tile(material, 2))
