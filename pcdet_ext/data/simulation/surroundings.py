"""What stands beside a street in towns, suburbs and the country: facades, gardens, woods, walls, and clutter.

Everything is placed in street coordinates: metres along the street and to its left.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pcdet_ext.data.simulation import shapes
from pcdet_ext.data.simulation.scene import Builder
from pcdet_ext.data.simulation.shapes import Material, Mesh

BEGIN, END = -55.0, 85.0  # metres along the street that are furnished
STRETCHES = {  # how often a stretch of a street is of each kind, by the character of the street
    "town": {"facades": 0.65, "gardens": 0.2, "wall": 0.1, "wood": 0.05},
    "suburb": {"facades": 0.15, "gardens": 0.55, "wood": 0.15, "wall": 0.05, "open": 0.1},
    "country": {"facades": 0.05, "gardens": 0.1, "wood": 0.5, "wall": 0.1, "open": 0.25},
}


def surroundings(b: Builder, side: int, nearest: float, crossing: float | None, character: str) -> None:
    """Furnish one side of a street, stretch by stretch.

    Args:
        b: the scene, in which vehicles stand already.
        side: 1 for the left side, -1 for the right one.
        nearest: metres from the middle of the street at which buildings may begin.
        crossing: where another street crosses, or None.
        character: "town", "suburb" or "country".
    """
    kinds = STRETCHES[character]
    along = BEGIN
    while along < END:
        length = min(b.rng.uniform(15, 60), END - along)
        kind = str(b.rng.choice(list(kinds), p=list(kinds.values())))
        distance = nearest + b.rng.exponential(1.2)
        STRETCH[kind](b, side, along, along + length, distance, crossing)
        along += length
    clutter(b, side, nearest, b.rng.gamma(2.0, {"town": 9.0, "suburb": 9.0, "country": 4.0}[character]))


def _clear(b: Builder, along: tuple[float, float], across: tuple[float, float], crossing: float | None) -> bool:
    """Whether a rectangle (from, to along and across the street) touches no object and no crossing street."""
    if crossing is not None and along[0] < crossing + 5.5 and along[1] > crossing - 5.5:
        return False
    if not b.taken:
        return True
    x, y, radius = np.array(b.taken).T
    ox, oy, yaw = b.to_world(0.0, 0.0)
    u = (x - ox) * np.cos(yaw) + (y - oy) * np.sin(yaw)
    v = (y - oy) * np.cos(yaw) - (x - ox) * np.sin(yaw)
    low, high = min(across), max(across)
    inside = (u > along[0] - radius) & (u < along[1] + radius) & (v > low - radius) & (v < high + radius)
    return not bool(inside.any())


def _stand(
    b: Builder, mesh: Mesh, middle: float, across: float, size: tuple[float, float], crossing: float | None
) -> None:
    """Place a mesh of an extent along and across the street, where it is clear."""
    along = (middle - size[0] / 2, middle + size[0] / 2)
    if _clear(b, along, (across - size[1] / 2, across + size[1] / 2), crossing):
        b.place(mesh, middle, across)


def facades(b: Builder, side: int, start: float, end: float, distance: float, crossing: float | None) -> None:
    """Buildings wall to wall, some set back, with stairs and bays before them.

    Args:
        b: the street.
        side: 1 for its left side, -1 for its right one.
        start, end: metres along it.
        distance: from its middle, metres.
        crossing: metres along it at which another street crosses, None for none.
    """
    along = start
    while along < end:
        length = b.rng.uniform(5, 18)
        depth, height = b.rng.uniform(6, 12), b.rng.uniform(4, 12)
        front = distance + max(0.0, b.rng.normal(0, 0.8))
        building = shapes.block(length, depth, height + 1, Material.WALL).moved(0, 0, -1)
        _stand(b, building, along + length / 2, side * (front + depth / 2), (length, depth), crossing)
        for _ in range(b.rng.poisson(1.2)):
            bay = (b.rng.uniform(0.5, 2.5), b.rng.uniform(0.3, 0.9))
            mesh = shapes.block(*bay, b.rng.uniform(0.3, 3.0), Material.WALL)
            _stand(b, mesh, along + b.rng.uniform(0, length), side * (front - bay[1] / 2), bay, crossing)
        along += length + (b.rng.uniform(2, 8) if b.rng.random() < 0.3 else 0.1)


def gardens(b: Builder, side: int, start: float, end: float, distance: float, crossing: float | None) -> None:
    """Hedges, low walls or fences, and behind them plants, sheds, houses, and cars in their drives.

    Arguments as in `facades`.
    """
    along = start
    while along < end:
        length = b.rng.uniform(8, 20)
        middle = along + length / 2
        fence = b.rng.choice(["hedge", "wall", "fence", "none"], p=[0.4, 0.25, 0.2, 0.15])
        if b.rng.random() < 0.15:
            b.add("Car", middle, side * (distance + b.rng.uniform(2.5, 5)), side * np.pi / 2 * b.rng.choice([-1, 1]))
        else:
            _boundary(b, str(fence), middle, side * distance, 0.9 * length, crossing)
        depth, width = b.rng.uniform(7, 11), length * b.rng.uniform(0.5, 0.8)
        house = shapes.block(width, depth, b.rng.uniform(4, 9), Material.WALL).moved(0, 0, -0.6)
        setback = distance + b.rng.uniform(2, 8)
        _stand(b, house, middle + b.rng.normal(0, 1), side * (setback + depth / 2), (width, depth), crossing)
        for _ in range(b.rng.poisson(3)):
            _plant(b, along + b.rng.uniform(0, length), side * (distance + b.rng.uniform(0.8, 6)), crossing)
        along += length


def _boundary(b: Builder, kind: str, middle: float, across: float, length: float, crossing: float | None) -> None:
    """A hedge, wall or fence along the street."""
    if kind == "hedge":
        height, width = b.rng.uniform(0.8, 2.4), b.rng.uniform(0.6, 1.4)
        mesh = shapes.foliage_block(b.rng, length, width, height)
        _stand(b, mesh, middle, across, (length, width), crossing)
    elif kind == "wall":
        mesh = shapes.block(length, 0.3, b.rng.uniform(0.5, 2.2) + 0.3, Material.MASONRY).moved(0, 0, -0.3)
        _stand(b, mesh, middle, across, (length, 0.3), crossing)
    elif kind == "fence":
        height = b.rng.uniform(0.8, 1.6)
        slats = np.arange(-length / 2, length / 2, b.rng.uniform(0.12, 0.5))[:, None] * [1.0, 0, 0]
        posts = shapes.tubes(slats + [0, 0, -0.2], slats + [0, 0, height], 0.03, Material.FENCE, 4)
        rails = [shapes.tube((-length / 2, 0, h), (length / 2, 0, h), 0.04, Material.FENCE, 4) for h in (0.3, height)]
        _stand(b, shapes.join([posts, *rails]), middle, across, (length, 0.2), crossing)


def _plant(b: Builder, along: float, across: float, crossing: float | None) -> None:
    """A bush or a tree."""
    if b.rng.random() < 0.35:
        tree = shapes.tree(b.rng, b.rng.uniform(3, 11))
        _stand(b, tree, along, across, (0.6, 0.6), crossing)
        return
    width, height = b.rng.uniform(0.7, 4.0), b.rng.uniform(0.5, 2.8)
    mesh = shapes.foliage_block(b.rng, width, width * b.rng.uniform(0.5, 1), height, round_off=True)
    _stand(b, mesh, along, across, (width, width), crossing)


def wood(b: Builder, side: int, start: float, end: float, distance: float, crossing: float | None) -> None:
    """Trunks, undergrowth and crowns. Arguments as in `facades`."""
    density = b.rng.uniform(0.03, 0.12)
    for _ in range(b.rng.poisson(density * (end - start) * 14)):
        place = (b.rng.uniform(start, end), side * (distance + b.rng.uniform(0, 14)))
        if b.rng.random() < 0.5:
            _stand(b, shapes.tree(b.rng, b.rng.uniform(4, 12)), *place, (0.6, 0.6), crossing)
        else:
            length, width, height = b.rng.uniform([1, 1, 0.8], [5, 3, 5]).tolist()
            mesh = shapes.foliage_block(b.rng, length, width, height, round_off=True)
            _stand(b, mesh, *place, (length, width), crossing)


def wall(b: Builder, side: int, start: float, end: float, distance: float, crossing: float | None) -> None:
    """A long wall, with creepers on it. Arguments as in `facades`."""
    height = b.rng.uniform(1.2, 4.0)
    for along in np.arange(start, end, 8.0):
        mesh = shapes.block(8.0, 0.4, height + 0.5, Material.MASONRY).moved(0, 0, -0.5)
        _stand(b, mesh, along + 4, side * distance, (8.0, 0.4), crossing)
        if b.rng.random() < 0.4:
            length = b.rng.uniform(1, 7)
            leaves = shapes.foliage_block(b.rng, length, 0.7, height * b.rng.uniform(0.4, 1.0))
            _stand(b, leaves, along + 4, side * (distance - 0.5), (length, 0.7), crossing)


def open_land(b: Builder, side: int, start: float, end: float, distance: float, crossing: float | None) -> None:
    """Fields, with tufts and bushes, and often a guard rail. Arguments as in `facades`."""
    if b.rng.random() < 0.5:
        length = end - start
        rail = shapes.block(length, 0.08, 0.32, Material.METAL).moved(0, 0, 0.45)
        feet = np.arange(-length / 2, length / 2, 2.0)[:, None] * [1.0, 0, 0]
        posts = shapes.tubes(feet + [0, 0, -0.2], feet + [0, 0, 0.7], 0.06, Material.METAL, 4)
        middle = (start + end) / 2
        _stand(b, shapes.join([rail, posts]), middle, side * (distance - 0.6), (length, 0.2), crossing)
    for _ in range(b.rng.poisson((end - start) * 0.15)):
        _plant(b, b.rng.uniform(start, end), side * (distance + b.rng.uniform(0.5, 20)), crossing)


Stretch = Callable[[Builder, int, float, float, float, float | None], None]
STRETCH: dict[str, Stretch] = {
    "facades": facades,
    "gardens": gardens,
    "wood": wood,
    "wall": wall,
    "open": open_land,
}


def clutter(b: Builder, side: int, nearest: float, count: float) -> None:
    """Bins, boxes, skips, benches, stacks of material, poles and young trees on the pavement.

    Args:
        b: the street.
        side: 1 for its left side, -1 for its right one.
        nearest: metres from its middle around which they stand.
        count: how many, on average.
    """
    for _ in range(b.rng.poisson(count)):
        along = b.rng.uniform(BEGIN, END)
        across = side * (nearest + b.rng.uniform(-1.2, 2.5))
        kind = b.rng.choice(["bin", "box", "skip", "bench", "stack", "pole", "tree", "bush"])
        mesh, radius = _piece(b, str(kind))
        if abs(across) - radius > nearest - 2.0:
            b.place(mesh, along, across, b.rng.normal(0, 0.15), radius=radius)


def _piece(b: Builder, kind: str) -> tuple[Mesh, float]:
    """A piece of clutter, and the radius of the disc that it takes."""
    rng = b.rng
    if kind == "pole":
        pole = shapes.tube((0, 0, -0.3), (0, 0, rng.uniform(2.2, 8)), rng.uniform(0.04, 0.14), Material.METAL)
        sign = shapes.block(0.05, 0.6, 0.6, Material.PLATE).moved(0, 0, 2.0)
        return (shapes.join([pole, sign]) if rng.random() < 0.4 else pole), 0.3
    if kind == "tree":
        return shapes.tree(rng, rng.uniform(3, 9)), 0.4
    if kind == "bush":
        width = rng.uniform(0.6, 2.0)
        return shapes.foliage_block(rng, width, width, rng.uniform(0.4, 1.6), round_off=True), width / 2
    if kind == "bench":
        seat = shapes.block(1.6, 0.45, 0.08, Material.FENCE).moved(0, 0, 0.42)
        back = shapes.block(1.6, 0.06, 0.45, Material.FENCE).moved(0, 0.22, 0.45)
        return shapes.join([seat, back]), 0.85
    low, high, material = {
        "bin": ([0.4, 0.4, 0.7], [1.3, 1.0, 1.4], Material.BIN),
        "box": ([0.3, 0.3, 0.6], [1.6, 0.7, 1.6], Material.MASONRY),
        "skip": ([2.5, 1.4, 1.0], [5.5, 2.2, 2.4], Material.BIN),
        "stack": ([0.8, 0.8, 0.3], [3.0, 2.0, 1.6], Material.MASONRY),
    }[kind]
    dx, dy, dz = rng.uniform(low, high)
    return shapes.block(dx, dy, dz, material), float(np.hypot(dx, dy)) / 2
