"""Small made-up logs of Argoverse 2, written with pyarrow and NumPy alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

START, STEP = 315_966_070_000_000_000, 100_000_000  # nanoseconds
OBJECTS = {  # category: place in the city, heading there, length, width, height, points, speed along x
    "REGULAR_VEHICLE": ((412.0, 905.0, 0.9), 0.5, (4.5, 1.9, 1.6), 7, 5.0),
    "PEDESTRIAN": ((405.0, 897.0, 1.0), -2.0, (0.8, 0.7, 1.8), 3, 0.0),
    "STOP_SIGN": ((395.0, 900.0, 2.2), 3.0, (0.2, 0.8, 0.9), 0, 0.0),
    "ANIMAL": ((402.0, 903.0, 0.5), 0.0, (1.0, 0.4, 0.7), 2, 0.0),
}
TILT = 0.1  # radians that the first object's roof leans to the side


def write(path: Path, columns: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pa.table(dict(columns)), str(path))
    return path


def ego_at(number: int) -> tuple[np.ndarray, float]:
    """Place in the city and heading of the vehicle at a sweep."""
    return np.array([400.0 + 0.6 * number, 900.0 + 0.1 * number * number, 0.2]), 0.3 + 0.05 * number


def to_vehicle(xyz: np.ndarray, number: int) -> np.ndarray:
    place, yaw = ego_at(number)
    x, y, z = (xyz - place).T
    return np.column_stack([np.cos(yaw) * x + np.sin(yaw) * y, np.cos(yaw) * y - np.sin(yaw) * x, z])


def landmarks(log: str) -> np.ndarray:
    """What stands in the city beside the way of the vehicle, not too far away for numbers of 16 bits."""
    rng = np.random.default_rng(len(log))
    return np.column_stack([rng.uniform(380, 420, 80), rng.uniform(905, 920, 80), rng.uniform(-1, 3, 80)])


def make_log(folder: Path, sweeps: int = 4, labelled: bool = True, mapped: bool = True) -> Path:
    """A log in which a vehicle turns, one car drives and other objects stand."""
    times = [START + number * STEP for number in range(sweeps)]
    for number, time in enumerate(times):
        write(folder / f"sensors/lidar/{time}.feather", sweep(folder.name, number))
    poses = [[time, *quaternion(ego_at(n)[1]), *ego_at(n)[0]] for n, time in enumerate(times)]
    names = ("timestamp_ns", "qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
    between = [[START + STEP // 3, 1.0, 0, 0, 0, 0, 0, 0]]  # as of a camera
    columns = dict(zip(names, zip(*poses[:1], *between, *poses[1:], strict=True), strict=True))
    write(
        folder / "city_SE3_egovehicle.feather", columns | {"timestamp_ns": np.array(columns["timestamp_ns"], np.int64)}
    )
    if labelled:
        rows = [row for number in range(sweeps) for row in annotations(folder.name, number)]
        write(folder / "annotations.feather", {key: [row[key] for row in rows] for key in rows[0]})
    if mapped:
        corners = [(380.0, 880.0), (410.0, 880.0), (410.0, 920.0), (380.0, 920.0)]
        area = {"area_boundary": [{"x": x, "y": y, "z": 0.0} for x, y in corners], "id": 1}
        path = folder / "map" / f"log_map_archive_{folder.name}____XYZ_city_1.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"drivable_areas": {"1": area}}))
    return folder


def sweep(log: str, number: int) -> dict[str, np.ndarray]:
    """The columns of a sweep: the landmarks, and a point on the vehicle itself."""
    xyz = np.concatenate([to_vehicle(landmarks(log), number), [[0.3, -0.2, 1.5]]])
    rng = np.random.default_rng(number)
    columns = dict(zip("xyz", xyz.astype(np.float16).T, strict=True))
    return columns | {
        "intensity": rng.integers(0, 256, len(xyz)).astype(np.uint8),
        "laser_number": rng.integers(0, 64, len(xyz)).astype(np.uint8),
        "offset_ns": rng.integers(0, STEP, len(xyz)).astype(np.int32),
    }


def annotations(log: str, number: int) -> list[dict[str, Any]]:
    """The rows of a sweep."""
    rows = []
    for name, (place, heading, size, points, speed) in OBJECTS.items():
        moved = np.array(place) + [speed * number * STEP * 1e-9, 0.0, 0.0]
        center = to_vehicle(moved[None], number)[0]
        rotation = quaternion(heading - ego_at(number)[1], TILT if name == "REGULAR_VEHICLE" else 0.0)
        row = {"timestamp_ns": START + number * STEP, "track_uuid": f"{log}-{name}", "category": name}
        row |= dict(zip(("length_m", "width_m", "height_m"), size, strict=True))
        row |= dict(zip(("qw", "qx", "qy", "qz"), rotation, strict=True))
        row |= dict(zip(("tx_m", "ty_m", "tz_m"), center.tolist(), strict=True))
        rows.append(row | {"num_interior_pts": points})
    return rows


def quaternion(yaw: float, roll: float = 0.0) -> list[float]:
    """A rotation about x and then about z."""
    a, b, c, d = np.cos(yaw / 2), np.sin(yaw / 2), np.cos(roll / 2), np.sin(roll / 2)
    return [float(a * c), float(a * d), float(b * d), float(b * c)]
