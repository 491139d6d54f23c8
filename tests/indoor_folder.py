"""A small made-up folder of indoor scenes: coloured furniture in a room, as points with boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.data.custom import write_labels
from pcdet_ext.structures import Array

SIZES = {"table": (1.4, 0.8, 0.7), "chair": (0.6, 0.6, 0.9)}
COLOURS = {"table": (0.6, 0.4, 0.2), "chair": (0.1, 0.2, 0.8)}
COLUMNS = ("x", "y", "z", "red", "green", "blue")


def make_room(rng: np.random.Generator) -> tuple[Array, Array, list[str]]:
    """Points float32 [N, 6] with colours from 0 to 1, boxes float32 [M, 7] and their classes.

    A grey floor at z = -1, and a table and two chairs around the middle, of which the surfaces have points.
    """
    names = ["table", "chair", "chair"]
    boxes = np.zeros((len(names), 7), np.float32)
    points = [np.column_stack([rng.uniform(-2, 2, (400, 2)), np.full(400, -1.0), np.full((400, 3), 0.5)])]
    for i, name in enumerate(names):
        angle = 2 * np.pi * (i + rng.uniform(0, 0.3)) / len(names)
        size = np.array(SIZES[name])
        boxes[i] = [np.cos(angle), np.sin(angle), -1 + size[2] / 2, *size, rng.uniform(-1.5, 1.5)]
        points.append(np.column_stack([surface(rng, boxes[i]), np.tile(COLOURS[name], (200, 1))]))
    return np.concatenate(points).astype(np.float32), boxes, names


def surface(rng: np.random.Generator, box: Array) -> Array:
    """200 points [200, 3] on the faces of a box."""
    local = rng.uniform(-0.5, 0.5, (200, 3))
    face = rng.integers(0, 3, 200)
    local[np.arange(200), face] = np.sign(local[np.arange(200), face]) / 2
    x, y, z = (local * box[3:6]).T
    cos, sin = np.cos(box[6]), np.sin(box[6])
    return np.column_stack([x * cos - y * sin, x * sin + y * cos, z]) + box[:3]


def make_rooms(root: Path, frames: int) -> Path:
    """A folder with scenes 000, 001, …; each depends on its number alone."""
    for folder in ("points", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(frames):
        points, boxes, names = make_room(np.random.default_rng(i))
        points.astype("<f4").tofile(root / "points" / f"{i:03d}.bin")
        write_labels(root / "labels" / f"{i:03d}.txt", boxes, names)
    (root / "dataset.yaml").write_text(f"point_features: [{', '.join(COLUMNS)}]\n")
    return root
