"""Simulated drives in SemanticKITTI's layout: every point has what it lies on, and every object its number.

The simulator knows the object and the material that a beam meets, so that labels are exact, foliage and thin poles
included. What it does not have stays without points: parking, other-ground, and bicycles and motorcycles without rider.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.data import kitti, semantickitti
from pcdet_ext.data.simulation.drive import Drive, drive
from pcdet_ext.data.simulation.kitti import calibration
from pcdet_ext.data.simulation.sensor import Scan, SpinningLidar, world_of
from pcdet_ext.data.simulation.shapes import Material
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

PERIOD = 0.1  # seconds between scans: 10 Hz
STANDS = 0.5  # metres within which an object must stay to count as one that stands for the whole drive
TRAIN = ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10")  # the published sequences with labels
VAL = ("08",)
FIRST_OTHER = 22  # number of the first sequence that the benchmark does not have

OBJECTS = {  # label ids of our objects while they stand
    "Car": 10,
    "Van": 10,
    "Bus": 13,
    "Truck": 18,
    "Trailer": 20,
    "Excavator": 20,
    "Pedestrian": 30,
    "Cyclist": 31,
    "Motorcycle": 32,  # with its rider
    "Barrier": 51,
    "Sign": 81,
    "Cone": 99,
}
MOVING = {
    10: 252,
    31: 253,
    30: 254,
    32: 255,
    13: 257,
    18: 258,
    20: 259,
}  # the ids while they move; these have instances
SURFACES = {  # label ids of what is no object, by its material
    Material.ASPHALT: 40,
    Material.PAVEMENT: 48,
    Material.WALL: 50,
    Material.MASONRY: 51,
    Material.FENCE: 51,
    Material.FOLIAGE: 70,
    Material.BARK: 71,
    Material.GRASS: 72,
    Material.METAL: 80,
    Material.PLATE: 81,
    Material.BIN: 99,
}


def sequence_names(val: Sequence[bool]) -> list[str]:
    """A name for each drive, given which are held out.

    As far as they suffice these are the published ones of train and val, so that every tool finds the splits by itself.
    """
    further = (f"{number:02d}" for number in range(FIRST_OTHER, FIRST_OTHER + len(val)))
    names = {True: iter(VAL), False: iter(TRAIN)}
    return [next(names[bool(held_out)], None) or next(further) for held_out in val]


@dataclass(frozen=True)
class SemanticKittiWriter:
    """Writes drives of a seed below `root`. frames: scans per drive; names: of the sequences."""

    root: Path
    seed: int
    frames: int
    names: tuple[str, ...]
    sensor: SpinningLidar

    def write_scene(self, index: int) -> tuple[int, float, list[Path]]:
        """Simulate and write one drive; returns the scans made, seconds of ray-casting, and the files."""
        rng = np.random.default_rng([self.seed, index])
        street = drive(rng, max((self.frames - 1) * PERIOD, PERIOD))
        paint = rng.normal(0, 1, len(street.tracks) + 1)
        world = world_of(street.static, [track.mesh for track in street.tracks])
        ids = object_ids(street)
        sequence = self.names[index]
        files, poses = [], []
        for number in range(self.frames):
            draw = np.random.default_rng([self.seed, index, number])
            pose = street.ego_pose(number * PERIOD)
            pose[:3, 3] += pose[:3, 2] * self.sensor.height
            scan = self.sensor.measure(world, street.places(number * PERIOD), draw, pose, paint)
            frame = semantickitti.Frame(self.root, sequence, f"{number:06d}", True)
            semantickitti.write_labels(frame.labels, *point_labels(scan, ids))
            kitti.write_points(frame.points, scan.points)
            files += [frame.labels, frame.points]
            poses.append(pose)
        return self.frames, world.seconds, files + self._write_motion(sequence, poses)

    def finish(self, val: Sequence[bool]) -> list[Path]:
        """Write which sequences each split has; returns the paths."""
        paths = []
        for split, wanted in {"train": False, "val": True}.items():
            path = self.root / "splits" / f"{split}.txt"
            own = sorted(name for name, held_out in zip(self.names, val, strict=True) if bool(held_out) is wanted)
            with atomic_write(path) as temporary:
                temporary.write_text("".join(f"{name}\n" for name in own), encoding="utf-8")
            paths.append(path)
        return paths

    def _write_motion(self, sequence: str, poses: Sequence[Array]) -> list[Path]:
        """calib.txt, poses.txt (of the left camera, from where it is first) and times.txt of a sequence."""
        camera = calibration()
        lidar_to_camera = np.eye(4)
        lidar_to_camera[:3] = camera.r0_rect @ camera.velo_to_cam
        rows = []
        for pose in poses:
            moved = lidar_to_camera @ np.linalg.inv(poses[0]) @ pose @ np.linalg.inv(lidar_to_camera)
            rows.append(" ".join(f"{value:.9e}" for value in moved[:3].ravel()))
        texts = {
            "calib.txt": semantickitti.calibration_text(lidar_to_camera, [camera.p2] * 4),
            "poses.txt": "\n".join(rows) + "\n",
            "times.txt": "".join(f"{number * PERIOD:.6e}\n" for number in range(len(poses))),
        }
        paths = []
        for name, text in texts.items():
            path = self.root / "sequences" / sequence / name
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            paths.append(path)
        return paths


def object_ids(street: Drive) -> Array:
    """The label id of each track of a drive, int64 [A]: that of a moving object where it moves at any time."""
    ids = []
    for track in street.tracks:
        there = track.places[~np.isnan(track.places[:, 0]), :2]
        moves = len(there) > 1 and float(np.ptp(there, axis=0).max()) > STANDS
        own = OBJECTS[track.name]
        ids.append(MOVING.get(own, own) if moves else own)
    return np.array(ids, np.int64)


def point_labels(scan: Scan, object_ids: Array) -> tuple[Array, Array]:
    """The label id and the instance of each point of a scan, int64 [N] each.

    Instances are numbers of the drive's tracks, from 1; signs, barriers and cones are things that are not counted.
    """
    surface = np.zeros(len(Material), np.int64)
    surface[list(SURFACES)] = list(SURFACES.values())
    on_object = scan.actor >= 0
    ids = surface[scan.material]
    ids[on_object] = object_ids[scan.actor[on_object]]
    counted = np.isin(ids, [*MOVING, *MOVING.values()]) & on_object
    return ids, np.where(counted, scan.actor + 1, 0).astype(np.int64)
