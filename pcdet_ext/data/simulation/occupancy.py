"""Occupancy of simulated streets as Occ3D labels it: what fills each cell around the vehicle, and which cells are seen.

Surfaces that stay are covered with points, objects are filled with them, and the cells take the classes of the points
in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pcdet_ext.data.geometry import transform
from pcdet_ext.data.simulation.shapes import Material, Mesh
from pcdet_ext.evaluation.occupancy_rays import FREE, LOWER, SHAPE, VOXEL_SIZE
from pcdet_ext.scenes import OCCUPANCY_CLASSES
from pcdet_ext.structures import Array

DENSITY = 45.0  # points per square metre of surface: seven in the side of a cell
REACH = 60.0  # metres from the vehicle's way beyond which no surface is covered
FILLING = 0.2  # metres between the points that fill an object
RAY_STEP = 0.4  # metres between the places of a beam that make cells seen
GOLDEN = (0.7548776662466927, 0.5698402909980532)  # steps of an even sequence in the unit square (Roberts 2018)
SURFACES = {
    Material.GRASS: "terrain",
    Material.PAVEMENT: "sidewalk",
    Material.ASPHALT: "driveable_surface",
    Material.FOLIAGE: "vegetation",
    Material.BARK: "vegetation",
}  # everything else that stays was made by people
OBJECTS = {
    "Car": "car",
    "Van": "car",
    "Truck": "truck",
    "Bus": "bus",
    "Trailer": "trailer",
    "Excavator": "construction_vehicle",
    "Motorcycle": "motorcycle",
    "Cyclist": "bicycle",
    "Pedestrian": "pedestrian",
    "Barrier": "barrier",
    "Cone": "traffic_cone",
    "Sign": "manmade",
}
# Of two classes in one cell the later one counts, and objects before everything that stays.
ORDER = ("terrain", "sidewalk", "driveable_surface", "vegetation", "manmade")


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Points float32 [N, 3] that cover what stays in a scene, and the classes of their cells uint8 [N], in `ORDER`."""

    points: Array
    labels: Array

    @staticmethod
    def of(static: Mesh, way: Array) -> Surfaces:
        """The points of a scene's mesh near the vehicle's way, float64 [T, 2+]."""
        corners = static.vertices[static.triangles]  # [T, 3, 3]
        middles = corners[:, :, :2].mean(axis=1)
        low, high = way[:, :2].min(axis=0) - REACH, way[:, :2].max(axis=0) + REACH
        near = ((middles > low) & (middles < high)).all(axis=1)
        points, owner = _covered(corners[near].astype(np.float64))
        names = np.array([OCCUPANCY_CLASSES.index(SURFACES.get(m, "manmade")) for m in Material], np.uint8)
        labels = names[static.material[near]][owner]
        rank = np.zeros(len(OCCUPANCY_CLASSES), np.int64)
        rank[[OCCUPANCY_CLASSES.index(name) for name in ORDER]] = np.arange(len(ORDER))
        order = np.argsort(rank[labels], kind="stable")
        return Surfaces(points[order].astype(np.float32), labels[order])


def _covered(corners: Array) -> tuple[Array, Array]:
    """Points [N, 3] evenly on triangles float64 [T, 3, 3], and the triangle of each, int64 [N]."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    area = np.linalg.norm(np.cross(first, second), axis=1) / 2
    count = np.ceil(area * DENSITY).astype(np.int64)
    owner = np.repeat(np.arange(len(count)), count)
    number = np.arange(len(owner))
    a, b = (np.mod((number + 1) * step, 1.0) for step in GOLDEN)
    over = a + b > 1
    a, b = np.where(over, 1 - a, a), np.where(over, 1 - b, b)
    return corners[owner, 0] + a[:, None] * first[owner] + b[:, None] * second[owner], owner


def label_cells(surfaces: Surfaces, boxes: Array, names: list[str], ego: Array) -> Array:
    """The class of each cell around the vehicle, uint8 [200, 200, 16].

    Args:
        surfaces: of the scene.
        boxes: of the objects, float64 [A, 7] in the coordinates of the scene; NaN for one that is not there.
        names: what each is.
        ego: from the vehicle to the scene, float64 [4, 4].
    """
    labels = np.full(SHAPE, FREE, np.uint8)
    back, centre = np.linalg.inv(ego), ego[:2, 3]
    reach = 1.5 * SHAPE[0] * VOXEL_SIZE / 2
    near = (np.abs(surfaces.points[:, :2] - centre.astype(np.float32)) < reach).all(axis=1)
    _put(labels, transform(surfaces.points[near], back), surfaces.labels[near])
    for box, name in zip(boxes, names, strict=True):
        if np.isfinite(box).all() and np.hypot(*(box[:2] - centre)) < reach:
            inside = _filling(box)
            _put(
                labels, transform(inside, back), np.full(len(inside), OCCUPANCY_CLASSES.index(OBJECTS[name]), np.uint8)
            )
    return labels


def _filling(box: Array) -> Array:
    """Points that fill a box [7], float64 [N, 3]."""
    axes = [np.linspace(-size / 2, size / 2, max(2, int(size / FILLING) + 1)) for size in box[3:6]]
    local = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    found: Array = local @ turn.T + box[:3]
    return found


def _put(cells: Array, places: Array, values: Array) -> None:
    """Give cells the values of the places in them, the last one of each cell; places outside are left out."""
    index, inside = _cells(places)
    cells.reshape(-1)[index[inside]] = values[inside]


def _cells(places: Array) -> tuple[Array, Array]:
    """Flat cell int64 [N] of places [N, 3] in the vehicle's frame, and whether each lies in the grid, bool [N]."""
    cell = np.floor((places - np.array(LOWER)) / VOXEL_SIZE).astype(np.int64)
    inside = ((cell >= 0) & (cell < np.array(SHAPE))).all(axis=1)
    return (cell[:, 0] * SHAPE[1] + cell[:, 1]) * SHAPE[2] + cell[:, 2], inside


def seen_cells(points: Array, sensor: Array) -> Array:
    """Which cells a scan's beams go through or end in, uint8 [200, 200, 16].

    Args:
        points: where they end, float [N, 3+] in the vehicle's frame.
        sensor: where they begin, float64 [3].
    """
    seen = np.zeros(SHAPE, np.uint8)
    way = points[:, :3].astype(np.float64) - sensor
    length = np.linalg.norm(way, axis=1)
    limit = 1.5 * SHAPE[0] * VOXEL_SIZE / 2
    steps = np.arange(0.0, limit, RAY_STEP)
    for distance in steps:
        on = length > distance
        index, inside = _cells(sensor + way[on] * (distance / length[on])[:, None])
        seen.reshape(-1)[index[inside]] = 1
    index, inside = _cells(points[:, :3].astype(np.float64))
    seen.reshape(-1)[index[inside]] = 1
    return seen
