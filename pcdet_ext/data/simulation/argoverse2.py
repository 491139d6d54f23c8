"""Simulated drives in the layout in which Argoverse 2's sensor data set is released: Feather files, log by log."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

from pcdet_ext.data.argoverse2.logs import ANNOTATIONS, LIDAR
from pcdet_ext.data.simulation.drive import Drive, drive
from pcdet_ext.data.simulation.labelling import Seen, count_points, hidden_share, labelled
from pcdet_ext.data.simulation.sensor import EvenLidar, Scan, world_of
from pcdet_ext.evaluation.argoverse2_files import POSES, POSITION, ROTATION, SIZE
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

PERIOD = 0.1  # seconds between sweeps: 10 Hz
TURN = 100_000_000  # nanoseconds that a turn of the sensor takes
MAX_RANGE = 100.0  # metres beyond which nothing is labelled
SENSOR = "up_lidar"
SENSOR_PLACE = (1.35, 0.0)  # of the sensor before the ego vehicle's origin, and left of it, metres
SIDE_STREET = 60.0  # metres of a crossing street that are drivable on the map, at each side
CROSSING = 4.0  # metres that it is wide at each side of its middle
NAMES = {  # categories of our objects; barriers have none
    "Car": "REGULAR_VEHICLE",
    "Van": "REGULAR_VEHICLE",
    "Truck": "TRUCK",
    "Bus": "BUS",
    "Trailer": "VEHICULAR_TRAILER",
    "Excavator": "LARGE_VEHICLE",
    "Motorcycle": "MOTORCYCLIST",
    "Cyclist": "BICYCLIST",
    "Pedestrian": "PEDESTRIAN",
    "Cone": "CONSTRUCTION_CONE",
    "Sign": "SIGN",
}


def log_name(seed: int, index: int) -> str:
    """The name of a log, in the form that the released ones have; the same for the same numbers."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"pcdet_ext/{seed}/{index}"))


@dataclass(frozen=True)
class Argoverse2Writer:
    """Writes drives of a seed below `root`. frames: sweeps per drive; val: which drives are held out."""

    root: Path
    seed: int
    frames: int
    val: tuple[bool, ...]
    sensor: EvenLidar

    def write_scene(self, index: int) -> tuple[int, float, list[Path]]:
        """Simulate and write one drive; returns the sweeps made, seconds of ray-casting, and the files."""
        rng = np.random.default_rng([self.seed, index])
        street = drive(rng, max((self.frames - 1) * PERIOD, PERIOD))
        paint = rng.normal(0, 1, len(street.tracks) + 1)
        log = log_name(self.seed, index)
        folder = self.root / ("val" if self.val[index] else "train") / log
        begin = 315_960_000_000_000_000 + index * 10**12
        times = [begin + round(number * PERIOD * 1e9) for number in range(self.frames)]
        world = world_of(street.static, [track.mesh for track in street.tracks])
        files, seen = [], []
        for number, time in enumerate(times):
            draw = np.random.default_rng([self.seed, index, number])
            ego, places = street.ego_pose(number * PERIOD), street.places(number * PERIOD)
            scan = self.sensor.measure(world, places, draw, ego @ self._place, paint)
            columns = self._sweep(scan)
            files.append(_write(folder / LIDAR / f"{time}.feather", columns))
            seen.append(_seen(street, number * PERIOD, ego, columns, scan))
        egos = [street.ego_pose(number * PERIOD) for number in range(self.frames)]
        files += [
            _write(folder / ANNOTATIONS, annotation_columns(street, seen, egos, times, log)),
            _write(folder / POSES, {"timestamp_ns": np.array(times, np.int64)} | _places(egos)),
            _write(
                folder / "calibration" / "egovehicle_SE3_sensor.feather",
                {"sensor_name": [SENSOR]} | _places([self._place]),
            ),
            write_map(folder / "map" / f"log_map_archive_{log}____SIM_city_{index}.json", street),
        ]
        return self.frames, world.seconds, files

    def finish(self, val: Sequence[bool]) -> list[Path]:
        """No file beside those of the drives: their folders say which are held out."""
        return []

    @property
    def _place(self) -> Array:
        """float64 [4, 4] from the sensor to the vehicle."""
        place = np.eye(4)
        place[:3, 3] = *SENSOR_PLACE, self.sensor.height
        return place

    def _sweep(self, scan: Scan) -> dict[str, Array]:
        """The columns of a sweep in the types of the released files, in the frame of the vehicle."""
        xyz = scan.points[:, :3] + self._place[:3, 3]
        turned = (np.pi - np.arctan2(scan.points[:, 1], scan.points[:, 0])) / (2 * np.pi)  # the sensor turns clockwise
        order = np.argsort(turned, kind="stable")
        columns: dict[str, Array] = dict(zip("xyz", xyz[order].astype(np.float16).T, strict=True))
        return columns | {
            "intensity": np.round(scan.points[order, 3] * 255).astype(np.uint8),
            "laser_number": scan.row[order].astype(np.uint8),
            "offset_ns": np.minimum(turned[order] * TURN, TURN - 1).astype(np.int32),
        }


def _seen(street: Drive, time: float, ego: Array, columns: Mapping[str, Array], scan: Scan) -> Seen:
    """What a sweep shows, counted in the coordinates that the file keeps of its points."""
    points = np.column_stack([columns[axis] for axis in "xyz"]).astype(np.float64)
    boxes = street.boxes(time)
    counts = count_points(points @ ego[:3, :3].T + ego[:3, 3], boxes)
    far = np.linalg.norm(boxes[:, :2] - ego[:2, 3], axis=1)
    return Seen(boxes, street.velocities(time), counts, hidden_share(scan.hits, scan.reach), far)


def annotation_columns(
    street: Drive, seen: Sequence[Seen], egos: Sequence[Array], times: Sequence[int], log: str
) -> dict[str, Any]:
    """The columns of annotations.feather.

    Args:
        street: the drive.
        seen: what each sweep shows.
        egos: [4, 4] from the vehicle to the street at each sweep.
        times: of the sweeps, nanoseconds.
        log: its name, from which objects get theirs.
    """
    from scipy.spatial.transform import Rotation

    shown = labelled(list(seen), MAX_RANGE) & np.array([track.name in NAMES for track in street.tracks])
    frames, tracks = (places.tolist() for places in np.nonzero(shown))
    found = [(seen[f], t) for f, t in zip(frames, tracks, strict=True)]
    boxes = np.array([frame.boxes[t] for frame, t in found]).reshape(-1, 7)
    poses = np.array([egos[f] for f in frames]).reshape(-1, 4, 4)
    center = np.einsum("nji,nj->ni", poses[:, :3, :3], boxes[:, :3] - poses[:, :3, 3])
    upright = Rotation.from_rotvec(np.column_stack([np.zeros((len(boxes), 2)), boxes[:, 6]]))
    turned = Rotation.from_matrix(poses[:, :3, :3]).inv() * upright
    rotation = turned.as_quat(canonical=True, scalar_first=True)
    columns: dict[str, Any] = {
        "timestamp_ns": np.array([times[f] for f in frames], np.int64),
        "track_uuid": [str(uuid.uuid5(uuid.UUID(log), str(t))) for t in tracks],
        "category": [NAMES[street.tracks[t].name] for t in tracks],
    }
    for names, values in ((SIZE, boxes[:, 3:6]), (ROTATION, rotation), (POSITION, center)):
        columns |= dict(zip(names, values.T, strict=True))
    return columns | {"num_interior_pts": np.array([frame.points[t] for frame, t in found], np.int64)}


def write_map(path: Path, street: Drive) -> Path:
    """Write the map of a log: its road, and the one that crosses it, as drivable areas; returns the path."""
    half, start = street.half_width, street.street.start
    along = np.arange(start, start + len(street.street.nodes) * 0.5, 2.0)
    strips = [(along, -half, half)]
    if street.crossing is not None:
        strips.append((np.array([street.crossing - CROSSING, street.crossing + CROSSING]), -SIDE_STREET, SIDE_STREET))
    areas = {}
    for number, (places, low, high) in enumerate(strips):
        across = np.repeat([low, high], len(places))
        x, y, _ = street.street.at(np.concatenate([places, places[::-1]]), across)
        z = street.ground.height(x, y)
        corners = np.round(np.column_stack([x, y, z]), 3).tolist()
        areas[str(number)] = {
            "id": number,
            "area_boundary": [dict(zip("xyz", corner, strict=True)) for corner in corners],
        }
    content = {"drivable_areas": areas, "lane_segments": {}, "pedestrian_crossings": {}}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
    return path


def _places(poses: Sequence[Array]) -> dict[str, Array]:
    """Columns of rigid motions [4, 4]."""
    from scipy.spatial.transform import Rotation

    rotation = Rotation.from_matrix([pose[:3, :3] for pose in poses]).as_quat(canonical=True, scalar_first=True)
    translation = np.array([pose[:3, 3] for pose in poses])
    return dict(zip((*ROTATION, *POSITION), np.column_stack([rotation, translation]).T, strict=True))


def _write(path: Path, columns: Mapping[str, Any]) -> Path:
    with atomic_write(path) as temporary:
        feather.write_feather(pa.table(dict(columns)), str(temporary))
    return path
