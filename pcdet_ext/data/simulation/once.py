"""Simulated drives in the layout in which ONCE is released: points, and a JSON file for each sequence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data import kitti
from pcdet_ext.data.once.sequences import LISTS, Frame, sequence_file
from pcdet_ext.data.simulation.drive import Drive, drive
from pcdet_ext.data.simulation.labelling import Seen, count_points, hidden_share, labelled
from pcdet_ext.data.simulation.sensor import EvenLidar, Scan, world_of
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

PERIOD = 0.5  # seconds between frames: 2 Hz
MAX_RANGE = 100.0  # metres beyond which nothing is labelled
BEGIN = 1_616_000_000_000  # milliseconds, of the first sequence
TURN = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # from x forward to x left, y back
NAMES = {  # classes of our objects; signs, barriers and cones have no labels there
    "Car": "Car",
    "Van": "Car",
    "Bus": "Bus",
    "Truck": "Truck",
    "Trailer": "Truck",
    "Excavator": "Truck",
    "Pedestrian": "Pedestrian",
    "Cyclist": "Cyclist",
    "Motorcycle": "Cyclist",
}


def sequence_name(index: int) -> str:
    """The name of a sequence, in the form that the released ones have."""
    return f"{index:06d}"


@dataclass(frozen=True)
class OnceWriter:
    """Writes drives of a seed below `root`. frames: per drive."""

    root: Path
    seed: int
    frames: int
    sensor: EvenLidar

    def write_scene(self, index: int) -> tuple[int, float, list[Path]]:
        """Simulate and write one drive; returns the scans made, seconds of ray-casting, and the files."""
        rng = np.random.default_rng([self.seed, index])
        street = drive(rng, max((self.frames - 1) * PERIOD, PERIOD))
        paint = rng.normal(0, 1, len(street.tracks) + 1)
        world = world_of(street.static, [track.mesh for track in street.tracks])
        sequence, files = sequence_name(index), []
        names, seen, poses = [], [], []
        for number in range(self.frames):
            draw = np.random.default_rng([self.seed, index, number])
            pose = self._pose(street, number * PERIOD)
            scan = self.sensor.measure(world, street.places(number * PERIOD), draw, pose, paint)
            frame = Frame(self.root, sequence, str(BEGIN + index * 10**7 + round(number * PERIOD * 1000)))
            points = np.column_stack([scan.points[:, :3], np.round(scan.points[:, 3] * 255)])
            kitti.write_points(frame.points, points.astype(np.float32))
            files.append(frame.points)
            names.append(frame.name)
            poses.append(pose)
            seen.append(_seen(street, number * PERIOD, pose, scan))
        path = sequence_file(self.root, sequence)
        content = {
            "meta_info": {"point_feature_num": 4},
            "calib": {},
            "frames": _entries(street, sequence, names, poses, seen),
        }
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(content), encoding="utf-8")
        return self.frames, world.seconds, [*files, path]

    def finish(self, val: Sequence[bool]) -> list[Path]:
        """Write which sequences each split has; returns the paths."""
        paths = []
        for split, wanted in {"train": False, "val": True}.items():
            path = self.root / LISTS / f"{split}.txt"
            own = [sequence_name(i) for i, held_out in enumerate(val) if bool(held_out) is wanted]
            with atomic_write(path) as temporary:
                temporary.write_text("".join(f"{name}\n" for name in own), encoding="utf-8")
            paths.append(path)
        return paths

    def _pose(self, street: Drive, time: float) -> Array:
        """float64 [4, 4] from the sensor, whose x points to the left and y to the back, to the street."""
        pose = street.ego_pose(time)
        pose[:3, 3] += pose[:3, 2] * self.sensor.height
        pose[:3, :3] = pose[:3, :3] @ TURN.T
        return pose


def _seen(street: Drive, time: float, pose: Array, scan: Scan) -> Seen:
    """What a frame shows."""
    boxes = street.boxes(time)
    counts = count_points(scan.points[:, :3] @ pose[:3, :3].T + pose[:3, 3], boxes)
    far = np.linalg.norm(boxes[:, :2] - pose[:2, 3], axis=1)
    return Seen(boxes, street.velocities(time), counts, hidden_share(scan.hits, scan.reach), far)


def _entries(
    street: Drive, sequence: str, names: Sequence[str], poses: Sequence[Array], seen: Sequence[Seen]
) -> list[dict[str, Any]]:
    """What the file of a sequence says of its frames."""
    from scipy.spatial.transform import Rotation

    shown = labelled(list(seen), MAX_RANGE) & np.array([track.name in NAMES for track in street.tracks])
    entries = []
    for name, pose, frame, wanted in zip(names, poses, seen, shown, strict=True):
        tracks = np.flatnonzero(wanted).tolist()
        annos = {
            "names": [NAMES[street.tracks[track].name] for track in tracks],
            "boxes_3d": local_boxes(frame.boxes[tracks], pose).tolist(),
            "boxes_2d": {},
        }
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat(canonical=True)
        entries.append(
            {
                "sequence_id": sequence,
                "frame_id": name,
                "pose": [*quaternion.tolist(), *pose[:3, 3].tolist()],
                "annos": annos,
            }
        )
    return entries


def local_boxes(boxes: Array, pose: Array) -> Array:
    """Boxes float64 [M, 7] of the street in the frame of a sensor with a pose [4, 4]; only their heading turns."""
    heading = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6]), np.zeros(len(boxes))]) @ pose[:3, :3]
    center = (boxes[:, :3] - pose[:3, 3]) @ pose[:3, :3]
    return np.column_stack([center, boxes[:, 3:6], np.arctan2(heading[:, 1], heading[:, 0])])
