"""Simulated drives in the Parquet layout of the Waymo Open Dataset (v2): five lasers as range images, labels, poses."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.spatial.transform import Rotation

from pcdet_ext.data.simulation.drive import Drive, drive
from pcdet_ext.data.simulation.labelling import Seen, count_points, hidden_share, labelled
from pcdet_ext.data.simulation.raycast import Beams, Hits
from pcdet_ext.data.simulation.reflectance import intensities, returned
from pcdet_ext.data.simulation.sensor import world_of
from pcdet_ext.data.simulation.shapes import Material
from pcdet_ext.data.simulation.waymo_lasers import MAX_RANGE, TOP, Laser, WaymoLasers, lasers
from pcdet_ext.data.simulation.waymo_schemas import SCHEMAS, image_columns, table_of
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

PERIOD = 0.1  # seconds between frames, and for a turn of the sensors
TYPES = {"Pedestrian": 2, "Sign": 3, "Cyclist": 4, "Barrier": 0, "Cone": 0}  # the others are vehicles, 1; 0: no label
CAMERAS = {1: 0.0, 2: 45.0, 3: -45.0, 4: 95.0, 5: -95.0}  # where the cameras of the official cars look, degrees
WORLD = np.array([1200.0, -800.0, 20.0])  # where a drive begins in the world's frame, metres
HARD_POINTS = 5  # boxes with so many points or fewer are of level 2


def segment_name(seed: int, index: int) -> str:
    """The name of a drive: as the data set's, the same for the same seed and number."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
    return f"{number:020d}_{index * 20:03d}_000_{index * 20 + 20:03d}_000"


@dataclass(frozen=True)
class WaymoWriter:
    """Writes drives of a seed below `root`. frames: per drive; val: which drives are held out."""

    root: Path
    seed: int
    frames: int
    val: tuple[bool, ...]
    kind: WaymoLasers

    def write_scene(self, index: int) -> tuple[int, float, list[Path]]:
        """Simulate and write one drive; returns its frames, seconds of ray-casting, and its files."""
        rng = np.random.default_rng([self.seed, index])
        street = drive(rng, (self.frames - 1) * PERIOD)
        paint = rng.normal(0, 1, len(street.tracks) + 1)
        scene = _Scene(self, index, street, paint, lasers(self.kind, rng))
        scene.write()
        return self.frames, scene.world.seconds, scene.files

    def finish(self, val: Sequence[bool]) -> list[Path]:
        """No file beside those of the drives: their folders say which are held out."""
        return []

    def path(self, component: str, index: int) -> Path:
        """The file of one component of a drive."""
        split = "validation" if self.val[index] else "training"
        return self.root / split / component / f"{segment_name(self.seed, index)}.parquet"


class _Scene:
    """One drive on its way to the disk."""

    def __init__(self, writer: WaymoWriter, index: int, street: Drive, paint: Array, made: list[Laser]) -> None:
        self.writer, self.index, self.street, self.paint, self.lasers = writer, index, street, paint, made
        self.name = segment_name(writer.seed, index)
        self.world = world_of(street.static, [t.mesh for t in street.tracks])
        self.directions = {laser.name: laser.directions() for laser in made}
        self.files: list[Path] = []
        self.begin = 1_550_000_000_000_000 + (writer.seed % 1000) * 10**11 + index * 10**9  # microseconds

    def write(self) -> None:
        """Write all components; the images of one frame after the other, so that memory holds one."""
        seen, poses = [], []
        with ExitStack() as stack:
            images = stack.enter_context(self._parquet("lidar"))
            pixel_poses = stack.enter_context(self._parquet("lidar_pose"))
            for number in range(self.writer.frames):
                frame = _Frame(self, number)
                seen.append(frame.scan(images, pixel_poses))
                poses.append(frame.pose)
        shown = labelled(seen, MAX_RANGE) & np.array([_type(t.name) > 0 for t in self.street.tracks])
        shown &= ~np.array([inside_any(f.boxes[:, :2], self.street.unlabelled) for f in seen])
        self._write_rows("vehicle_pose", self._pose_rows(poses))
        self._write_rows("lidar_calibration", self._calibration_rows())
        boxes = [self._box_rows(number, shown[number], seen[number], poses[number]) for number in range(len(seen))]
        self._write_rows("lidar_box", [row for rows in boxes for row in rows])
        self._write_rows("lidar_camera_synced_box", [_camera_row(row) for rows in boxes for row in rows])
        self._write_rows("stats", [self._stats_row(number, rows) for number, rows in enumerate(boxes)])

    def stamp(self, number: int) -> int:
        """Microseconds of a frame."""
        return self.begin + round(number * PERIOD * 1e6)

    def key(self, number: int) -> dict[str, Any]:
        """The columns that name a frame."""
        return {"key.segment_context_name": self.name, "key.frame_timestamp_micros": self.stamp(number)}

    @contextmanager
    def _parquet(self, component: str) -> Iterator[pq.ParquetWriter]:
        path = self.writer.path(component, self.index)
        with (
            atomic_write(path) as temporary,
            pq.ParquetWriter(
                temporary, SCHEMAS[component], compression="zstd", compression_level=1, use_dictionary=False
            ) as file,
        ):
            yield file
        self.files.append(path)

    def _write_rows(self, component: str, rows: list[dict[str, Any]]) -> None:
        with self._parquet(component) as file:
            file.write_table(pa.Table.from_pylist(rows, SCHEMAS[component]))

    def _pose_rows(self, poses: list[Array]) -> list[dict[str, Any]]:
        rows = []
        for number, pose in enumerate(poses):
            moved = pose.copy()
            moved[:3, 3] += WORLD
            rows.append(self.key(number) | {"[VehiclePoseComponent].world_from_vehicle.transform": moved.ravel()})
        return rows

    def _calibration_rows(self) -> list[dict[str, Any]]:
        prefix = "[LiDARCalibrationComponent]."
        return [
            {
                "key.segment_context_name": self.name,
                "key.laser_name": laser.name,
                f"{prefix}extrinsic.transform": laser.extrinsic.ravel(),
                f"{prefix}beam_inclination.min": laser.low,
                f"{prefix}beam_inclination.max": laser.high,
                f"{prefix}beam_inclination.values": None if laser.even else laser.inclinations,
            }
            for laser in self.lasers
        ]

    def _box_rows(self, number: int, shown: Array, seen: Seen, pose: Array) -> list[dict[str, Any]]:
        """The labels of one frame: boxes in the vehicle's frame, speeds in the world's."""
        prefix, rows = "[LiDARBoxComponent].", []
        boxes = vehicle_boxes(seen.boxes, pose)
        top = seen.points if seen.top_points is None else seen.top_points
        before, after = (self.street.velocities(number * PERIOD + dt) for dt in (-0.05, 0.05))
        for track in np.flatnonzero(shown).tolist():
            name = base64.urlsafe_b64encode(hashlib.sha256(f"{self.name}/{track}".encode()).digest())[:22].decode()
            hard = seen.points[track] <= HARD_POINTS or seen.hidden[track] > 0.9
            row = self.key(number) | {"key.laser_object_id": name}
            columns = ("center.x", "center.y", "center.z", "size.x", "size.y", "size.z", "heading")
            row |= {f"{prefix}box.{c}": float(v) for c, v in zip(columns, boxes[track], strict=True)}
            row |= {f"{prefix}speed.{c}": float(v) for c, v in zip("xyz", seen.velocities[track], strict=True)}
            change = (after[track] - before[track]) / 0.1
            row |= {f"{prefix}acceleration.{c}": float(v) for c, v in zip("xyz", change, strict=True)}
            row |= {
                f"{prefix}type": _type(self.street.tracks[track].name),
                f"{prefix}num_lidar_points_in_box": int(seen.points[track]),
                f"{prefix}num_top_lidar_points_in_box": int(top[track]),
                f"{prefix}difficulty_level.detection": 2 if hard else 1,
                f"{prefix}difficulty_level.tracking": 2 if hard else 1,
            }
            rows.append(row)
        return rows

    def _stats_row(self, number: int, boxes: list[dict[str, Any]]) -> dict[str, Any]:
        counts = sorted(Counter(row["[LiDARBoxComponent].type"] for row in boxes).items())
        prefix = "[StatsComponent]."
        return self.key(number) | {
            f"{prefix}time_of_day": "Day",
            f"{prefix}location": "location_other",
            f"{prefix}weather": "sunny",
            f"{prefix}lidar_object_counts.types": [kind for kind, _ in counts],
            f"{prefix}lidar_object_counts.counts": [count for _, count in counts],
            f"{prefix}camera_object_counts.types": None,
            f"{prefix}camera_object_counts.counts": None,
        }


class _Frame:
    """One frame of a drive."""

    def __init__(self, scene: _Scene, number: int) -> None:
        self.scene, self.number, self.time = scene, number, number * PERIOD
        self.rng = np.random.default_rng([scene.writer.seed, scene.index, number])
        self.pose = scene.street.ego_pose(self.time)
        self.places = scene.street.places(self.time)
        self.points: dict[int, Array] = {}  # of each laser, in the street's frame
        self.hits = np.zeros(len(self.places), np.int64)
        self.reach = np.zeros(len(self.places), np.int64)

    def scan(self, images: pq.ParquetWriter, pixel_poses: pq.ParquetWriter) -> Seen:
        """Simulate all lasers and write their images; returns what they show."""
        rows = []
        for laser in self.scene.lasers:
            pixels = self._pixel_poses(laser) if laser.name == TOP else None
            first, second = self._images(laser, pixels)
            row = self.scene.key(self.number) | {"key.laser_name": laser.name}
            rows.append(row | image_columns("LiDARComponent", 1, first) | image_columns("LiDARComponent", 2, second))
            if pixels is not None:
                spread = np.broadcast_to(pixels[None], (laser.shape[0], *pixels.shape))
                table = [row | image_columns("LiDARPoseComponent", 1, spread)]
                pixel_poses.write_table(table_of(table, SCHEMAS["lidar_pose"]))
        images.write_table(table_of(rows, SCHEMAS["lidar"]))
        boxes = self.scene.street.boxes(self.time)
        local = vehicle_boxes(boxes, self.pose)
        counts = {name: count_points(self._to_vehicle(points), local) for name, points in self.points.items()}
        far = np.linalg.norm(boxes[:, :2] - self.pose[:2, 3], axis=1)
        hidden = hidden_share(self.hits, self.reach)
        velocities = self.scene.street.velocities(self.time)
        return Seen(boxes, velocities, np.sum(list(counts.values()), 0), hidden, far, counts[TOP])

    def _to_vehicle(self, points: Array) -> Array:
        return (points - self.pose[:3, 3]) @ self.pose[:3, :3]

    def _pixel_poses(self, laser: Laser) -> Array:
        """Roll, pitch, yaw, x, y, z of the vehicle in the world's frame when each column is fired: float32 [W, 6].

        The middle of the image is fired at the frame's time.
        """
        spread = (np.arange(laser.columns) + 0.5) / laser.columns - 0.5
        knots = []
        for part in (-0.5, 0.0, 0.5):
            pose = self.scene.street.ego_pose(self.time + part * PERIOD)
            yaw, pitch, roll = Rotation.from_matrix(pose[:3, :3]).as_euler("ZYX")
            knots.append([roll, pitch, yaw, *(pose[:3, 3] + WORLD)])
        values = np.array(knots)
        values[:, 2] = np.unwrap(values[:, 2])
        return np.stack([np.interp(spread, (-0.5, 0.0, 0.5), column) for column in values.T], 1).astype(np.float32)

    def _beams(self, laser: Laser, pixels: Array | None) -> Beams:
        """The beams of the columns that are seen, in the street's frame."""
        rays = self.scene.directions[laser.name][:, laser.seen]
        if pixels is None:
            turned = rays @ self.pose[:3, :3].T
            origins = (self.pose[:3, :3] @ laser.extrinsic[:3, 3] + self.pose[:3, 3])[None]
        else:
            exact = pixels.astype(np.float64)
            turns = Rotation.from_euler("ZYX", exact[:, 2::-1]).as_matrix()
            turned = np.einsum("wij,hwj->hwi", turns, rays)
            origins = turns @ laser.extrinsic[:3, 3] + (exact[:, 3:] - WORLD)
        shift = float(np.abs(origins - origins.mean(0)).max())
        bend = 0.002 + (float(np.ptp(np.unwrap(pixels[:, 2]))) + 0.01 if pixels is not None else 0.0)
        centre = self.pose @ laser.extrinsic
        return Beams(
            origins.astype(np.float32),
            turned.astype(np.float32),
            centre,
            laser.inclinations[::-1],
            laser.azimuths[laser.seen],
            (0.05 + 2 * shift, bend),
        )

    def _images(self, laser: Laser, pixels: Array | None) -> tuple[Array, Array]:
        """Range images of both returns, float32 [H, W, 4]: range, intensity, elongation, no-label zone; -1: none."""
        beams = self._beams(laser, pixels)
        windows = self.scene.world.windows(beams, self.places, laser.max_range)
        found, reach = self.scene.world.cast(beams, windows, laser.max_range)
        met = np.flatnonzero(found.distance < laser.max_range)
        hits = found[met]
        self.hits += np.bincount(hits.owner[hits.owner >= 0], minlength=len(self.places))
        self.reach += reach
        first = self._returns(laser, beams, met, hits)
        row, column = np.divmod(met, beams.directions.shape[1])
        back = first[row, np.flatnonzero(laser.seen)[column], 0] > 0
        passing = back & (self.rng.random(len(met)) < _passing(hits))
        behind, skipped = met[passing], hits.distance[passing] + 0.2
        further = self.scene.world.cast_on(beams, behind, skipped, windows)
        near = further.distance < laser.max_range
        return first, self._returns(laser, beams, behind[near], further[near], share=0.6)

    def _returns(self, laser: Laser, beams: Beams, which: Array, hits: Hits, share: float = 1.0) -> Array:
        """An image of the beams `which` that met something and come back, with `share` of their light."""
        rng, writer = self.rng, self.scene.writer
        light = intensities(hits, self.scene.paint, rng) * share
        kept = returned(light, hits, writer.kind.dropout, rng)
        hits, which, light = hits[kept], which[kept], light[kept]
        bright = hits.material == Material.PLATE
        light = np.where(bright, light + rng.exponential(2.0, len(light)), light)
        distance = np.maximum(hits.distance + rng.normal(0, writer.kind.range_noise, len(which)), 0.05)
        leafy = hits.material == Material.FOLIAGE
        elongation = np.where(leafy, rng.uniform(0, 1.2, len(which)), rng.exponential(0.04, len(which)))
        origins, rays = beams.flat()
        points = origins[which] + rays[which] * distance[:, None]
        zone = np.where(inside_any(points[:, :2], self.scene.street.unlabelled), 1.0, -1.0)
        self.points[laser.name] = np.vstack([self.points.get(laser.name, np.zeros((0, 3))), points])
        image = np.full((*laser.shape, 4), -1.0, np.float32)
        row, column = np.divmod(which, beams.directions.shape[1])
        values = [distance, light, np.minimum(np.round(elongation * 64) / 64, 1.5), zone]
        image[row, np.flatnonzero(laser.seen)[column]] = np.stack(values, 1)
        return image


def _passing(hits: Hits) -> Array:
    """How probable it is that part of the light passes: by leaves, and where a beam grazes an edge."""
    return np.where(hits.material == Material.FOLIAGE, 0.3, np.where(hits.cosine < 0.15, 0.05, 0.004))


def inside_any(points: Array, zones: Array) -> Array:
    """Which points [N, 2] lie in one of the convex rectangles [Z, 4, 2]: bool [N]."""
    inside = np.zeros(len(points), bool)
    for zone in zones:
        edges = np.roll(zone, -1, 0) - zone
        apart = points[:, None] - zone
        side = edges[:, 0] * apart[..., 1] - edges[:, 1] * apart[..., 0]
        inside |= (side >= 0).all(1) | (side <= 0).all(1)
    return inside


def vehicle_boxes(boxes: Array, pose: Array) -> Array:
    """Boxes [A, 7] of the street's frame in the vehicle's, whose small tilt they take on."""
    centres = (boxes[:, :3] - pose[:3, 3]) @ pose[:3, :3]
    heading = boxes[:, 6] - np.arctan2(pose[1, 0], pose[0, 0])
    return np.column_stack([centres, boxes[:, 3:6], (heading + np.pi) % (2 * np.pi) - np.pi])


def _type(name: str) -> int:
    return TYPES.get(name, 1)


def _camera_row(box: dict[str, Any]) -> dict[str, Any]:
    """The camera-synchronised box of a label: the same, as everything is simulated at one time."""
    prefix, source = "[LiDARCameraSyncedBoxComponent].", "[LiDARBoxComponent].box."
    row = {name: value for name, value in box.items() if name.startswith("key.")}
    row |= {f"{prefix}camera_synced_box.{n.removeprefix(source)}": v for n, v in box.items() if n.startswith(source)}
    angle = np.rad2deg(np.arctan2(box[f"{source}center.y"], box[f"{source}center.x"]))
    off = {camera: abs((angle - middle + 180) % 360 - 180) for camera, middle in CAMERAS.items()}
    nearest = min(off, key=lambda camera: off[camera])
    return row | {f"{prefix}most_visible_camera_name": nearest if off[nearest] <= 30 else 0}
