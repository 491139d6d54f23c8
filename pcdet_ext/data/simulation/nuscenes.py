"""Simulated drives in the layout in which nuScenes is released: tables, key frames, sweeps, maps, Occ3D's occupancy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pcdet_ext.data.geometry import transform
from pcdet_ext.data.nuscenes.maps import FOLDER
from pcdet_ext.data.nuscenes.splits import MINI, official_scenes
from pcdet_ext.data.simulation.city_map import map_tables
from pcdet_ext.data.simulation.drive import Drive, drive
from pcdet_ext.data.simulation.labelling import Seen, count_points, hidden_share, labelled
from pcdet_ext.data.simulation.occupancy import Surfaces, label_cells, seen_cells
from pcdet_ext.data.simulation.sensor import EvenLidar, world_of
from pcdet_ext.evaluation.nuscenes_files import ATTRIBUTES
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

OCCUPANCY = "gts"  # folder of Occ3D's labels
PARTS = "parts"  # folder of what the scenes leave for the tables
PERIOD = 0.05  # seconds between scans: 20 Hz
SCANS_PER_KEY = 10  # key frames at 2 Hz
MAX_RANGE = 80.0  # metres beyond which nothing is labelled
SENSOR_PLACE = (0.94, 0.0)  # of the sensor before the ego vehicle's origin, and left of it, metres
MAP_RESOLUTION = 0.1  # metres per pixel: what the devkit takes for granted
MAP_MARGIN = 60.0  # metres of map around the street
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
CATEGORIES = (
    *(f"human.pedestrian.{n}" for n in ("adult", "child", "wheelchair", "stroller", "personal_mobility")),
    *(f"human.pedestrian.{n}" for n in ("police_officer", "construction_worker")),
    "animal",
    *(f"vehicle.{n}" for n in ("car", "motorcycle", "bicycle", "bus.bendy", "bus.rigid", "truck", "construction")),
    *(f"vehicle.{n}" for n in ("emergency.ambulance", "emergency.police", "trailer")),
    *(f"movable_object.{n}" for n in ("barrier", "trafficcone", "pushable_pullable", "debris")),
    "static_object.bicycle_rack",
)
NAMES = {  # what nuScenes calls our objects; signs have no labels there
    "Car": "vehicle.car",
    "Van": "vehicle.car",
    "Truck": "vehicle.truck",
    "Bus": "vehicle.bus.rigid",
    "Trailer": "vehicle.trailer",
    "Excavator": "vehicle.construction",
    "Motorcycle": "vehicle.motorcycle",
    "Cyclist": "vehicle.bicycle",
    "Pedestrian": "human.pedestrian.adult",
    "Barrier": "movable_object.barrier",
    "Cone": "movable_object.trafficcone",
}
TABLES = (
    *("attribute", "calibrated_sensor", "category", "ego_pose", "instance", "log", "map", "sample"),
    *("sample_annotation", "sample_data", "scene", "sensor", "visibility"),
)
Row = dict[str, Any]
Tables = dict[str, list[Row]]


def token(*parts: object) -> str:
    """A token of 32 hexadecimal digits: the same for the same parts."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def scene_names(version: str, val: list[bool]) -> list[str]:
    """A name for each scene, given which are held out.

    Those of v1.0-mini get the official names of their split as far as these suffice, so that every tool finds the
    split by itself; other simulated scenes have names of their own.
    """
    official = {
        held_out: sorted(official_scenes(f"mini_{split}")) for held_out, split in ((True, "val"), (False, "train"))
    }
    if version == MINI and all(val.count(held_out) <= len(names) for held_out, names in official.items()):
        names = {held_out: iter(those) for held_out, those in official.items()}
        return [next(names[held_out]) for held_out in val]
    return [f"sim-{number:04d}" for number in range(len(val))]


@dataclass(frozen=True)
class NuScenesWriter:
    """Writes scenes of a seed below `root`. frames: key frames per scene; names: of the scenes."""

    root: Path
    seed: int
    frames: int
    version: str
    names: tuple[str, ...]
    sensor: EvenLidar

    def write_scene(self, index: int) -> tuple[int, float, list[Path]]:
        """Simulate and write one scene; returns the scans made, seconds of ray-casting, and the files.

        One of the files is the `part` that `finish` needs.
        """
        part = self.part(index)
        rng = np.random.default_rng([self.seed, index])
        count = (self.frames - 1) * SCANS_PER_KEY + 1
        street = drive(rng, (count - 1) * PERIOD)
        paint = rng.normal(0, 1, len(street.tracks) + 1)
        scene = _Scene(self, index, street, paint, count)
        rows = scene.write()
        with atomic_write(part) as temporary:
            temporary.write_text(json.dumps(rows), encoding="utf-8")
        return count, scene.world.seconds, [part, *scene.files]

    def part(self, index: int) -> Path:
        """Rows for the tables that a scene leaves, until `finish` takes them."""
        return self.root / PARTS / f"{index:04d}.json"

    def finish(self, val: list[bool]) -> list[Path]:
        """Join what the scenes have left into the tables, and write the splits; returns the paths of both."""
        tables = _fixed_tables()
        for index in range(len(self.names)):
            part: Tables = json.loads(self.part(index).read_text(encoding="utf-8"))
            for name, rows in part.items():
                tables[name] += rows
        texts = {self.root / self.version / f"{name}.json": json.dumps(rows, indent=0) for name, rows in tables.items()}
        splits = {
            "train": [n for n, held_out in zip(self.names, val, strict=True) if not held_out],
            "val": [n for n, held_out in zip(self.names, val, strict=True) if held_out],
        }
        for name, scenes in splits.items():
            texts[self.root / "splits" / f"{name}.txt"] = "".join(f"{scene}\n" for scene in scenes)
        texts[self.root / self.version / "splits.json"] = json.dumps(
            splits, indent=1
        )  # where the devkit looks for them
        for path, text in texts.items():
            with atomic_write(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for index in range(len(self.names)):
            self.part(index).unlink()
        (self.root / PARTS).rmdir()
        return list(texts)


def _fixed_tables() -> Tables:
    """Tables with the rows that every release has."""
    tables: Tables = {name: [] for name in TABLES}
    tables["attribute"] = [{"token": token("attribute", n), "name": n, "description": ""} for n in ATTRIBUTES if n]
    tables["category"] = [
        {"token": token("category", n), "name": n, "description": "", "index": i} for i, n in enumerate(CATEGORIES, 1)
    ]
    tables["visibility"] = [{"token": str(i), "level": n, "description": ""} for i, n in enumerate(VISIBILITY, 1)]
    tables["sensor"] = [{"token": token("sensor", "LIDAR_TOP"), "channel": "LIDAR_TOP", "modality": "lidar"}]
    return tables


class _Scene:
    """One scene on its way to the disk."""

    def __init__(self, writer: NuScenesWriter, index: int, street: Drive, paint: Array, count: int) -> None:
        self.writer, self.index, self.street, self.paint, self.count = writer, index, street, paint, count
        self.world = world_of(street.static, [t.mesh for t in street.tracks])
        corners = street.street.nodes[:, :2]
        self.offset = np.array([*(MAP_MARGIN - corners.min(0)), 0.0])  # global coordinates are not negative
        self.extent = np.ptp(corners, axis=0) + 2 * MAP_MARGIN
        self.begin = 1_600_000_000_000_000 + (writer.seed % 1000) * 10**11 + index * 10**9  # microseconds
        self.log = f"sim-{writer.seed}-{index:04d}"
        self.files: list[Path] = []
        self.calibrated = np.eye(4)  # y forward, x right: how the sensor is mounted in the official cars
        self.calibrated[:2, :2] = [[0, 1], [-1, 0]]
        self.calibrated[:3, 3] = *SENSOR_PLACE, writer.sensor.height
        self.location = f"simulation-{writer.seed}-{index:04d}"
        self.surfaces = Surfaces.of(street.static, street.ego)

    def token(self, *parts: object) -> str:
        return token(self.writer.seed, self.index, *parts)

    def write(self) -> Tables:
        """Write all scans and the map; returns the rows of the tables."""
        tables: Tables = {name: [] for name in TABLES}
        seen = []
        for number in range(self.count):
            frame = self._scan(number, tables)
            if frame is not None:
                seen.append(frame)
        self._annotate(seen, tables)
        self._describe(len(seen), tables)
        self._write_map()
        return tables

    def _stamp(self, number: int) -> int:
        return self.begin + round(number * PERIOD * 1e6)

    def _scan(self, number: int, tables: Tables) -> Seen | None:
        """Simulate one scan and write it; returns what a key frame shows."""
        rng = np.random.default_rng([self.writer.seed, self.index, number])
        time, key = number * PERIOD, number % SCANS_PER_KEY == 0
        ego, places = self.street.ego_pose(time), self.street.places(time)
        scan = self.writer.sensor.measure(self.world, places, rng, ego @ self.calibrated, self.paint)
        name = self._file_name(number)
        with self._file(name) as temporary:
            ring = self.writer.sensor.beams - 1 - scan.row
            rows = np.column_stack([scan.points[:, :3], np.round(scan.points[:, 3] * 255), ring])
            rows.astype("<f4").tofile(temporary)
        self._record(number, ego, name, tables)
        if not key:
            return None
        pose = ego @ self.calibrated
        boxes = self.street.boxes(time)
        counts = count_points(scan.points[:, :3] @ pose[:3, :3].T + pose[:3, 3], boxes)
        hidden = hidden_share(scan.hits, scan.reach)
        far = np.linalg.norm(boxes[:, :2] - ego[:2, 3], axis=1)
        self._write_occupancy(number // SCANS_PER_KEY, boxes, scan.points, ego)
        return Seen(boxes, self.street.velocities(time), counts, hidden, far)

    def _write_occupancy(self, sample: int, boxes: Array, points: Array, ego: Array) -> None:
        """The file of a key frame that Occ3D has; there is no camera, and so no mask of cells that one sees."""
        names = [track.name for track in self.street.tracks]
        labels = label_cells(self.surfaces, boxes, names, ego)
        local = transform(points, self.calibrated)
        mask = seen_cells(local, self.calibrated[:3, 3])
        name = f"{OCCUPANCY}/{self.writer.names[self.index]}/{self.token('sample', sample)}/labels.npz"
        with self._file(name) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, semantics=labels, mask_lidar=mask)

    @contextmanager
    def _file(self, name: str) -> Iterator[Path]:
        """A temporary path for one of the scene's files."""
        path = self.writer.root / name
        with atomic_write(path) as temporary:
            yield temporary
        self.files.append(path)

    def _file_name(self, number: int) -> str:
        folder = "samples" if number % SCANS_PER_KEY == 0 else "sweeps"
        return f"{folder}/LIDAR_TOP/{self.log}__LIDAR_TOP__{self._stamp(number)}.pcd.bin"

    def _record(self, number: int, ego: Array, name: str, tables: Tables) -> None:
        """The rows of one scan: sample_data and ego_pose, and sample for a key frame."""
        last = (self.count - 1) // SCANS_PER_KEY
        sample = min(math.ceil(number / SCANS_PER_KEY), last)  # a sweep belongs to the key frame that it leads to
        stamp, key = self._stamp(number), number % SCANS_PER_KEY == 0
        tables["ego_pose"].append(
            {
                "token": self.token("ego_pose", number),
                "timestamp": stamp,
                "rotation": quaternion(ego[:3, :3]),
                "translation": (ego[:3, 3] + self.offset).tolist(),
            }
        )
        tables["sample_data"].append(
            {
                "token": self.token("sample_data", number),
                "sample_token": self.token("sample", sample),
                "ego_pose_token": self.token("ego_pose", number),
                "calibrated_sensor_token": self.token("calibrated_sensor"),
                "timestamp": stamp,
                "fileformat": "pcd",
                "is_key_frame": key,
                "height": 0,
                "width": 0,
                "filename": name,
                **self._links("sample_data", number, self.count),
            }
        )
        if key:
            tables["sample"].append(
                {
                    "token": self.token("sample", sample),
                    "timestamp": stamp,
                    **self._links("sample", sample, last + 1),
                    "scene_token": self.token("scene"),
                }
            )

    def _links(self, kind: str, number: int, count: int) -> Row:
        """The rows before and after in a chain of `count`."""
        before = self.token(kind, number - 1) if number > 0 else ""
        after = self.token(kind, number + 1) if number < count - 1 else ""
        return {"prev": before, "next": after}

    def _annotate(self, seen: list[Seen], tables: Tables) -> None:
        """The rows of all objects: instances, and annotations frame by frame."""
        tracks = self.street.tracks
        shown = labelled(seen, MAX_RANGE) & np.array([t.name in NAMES for t in tracks])
        annotations: list[list[Row]] = [[] for _ in seen]
        for track in np.flatnonzero(shown.any(0)).tolist():
            frames = np.flatnonzero(shown[:, track]).tolist()
            tokens = [self.token("annotation", track, frame) for frame in frames]
            tables["instance"].append(
                {
                    "token": self.token("instance", track),
                    "category_token": token("category", NAMES[tracks[track].name]),
                    "nbr_annotations": len(frames),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            for place, frame in enumerate(frames):
                links: Row = {"prev": "", "next": ""}
                if place > 0:
                    links["prev"] = tokens[place - 1]
                if place < len(frames) - 1:
                    links["next"] = tokens[place + 1]
                annotations[frame].append(self._annotation(track, frame, seen[frame], tokens[place]) | links)
        tables["sample_annotation"] = [row for rows in annotations for row in rows]

    def _annotation(self, track: int, frame: int, seen: Seen, own: str) -> Row:
        box = seen.boxes[track]
        attribute = attribute_of(
            self.street.tracks[track].name, self.street.tracks[track].parked, seen.velocities[track]
        )
        return {
            "token": own,
            "sample_token": self.token("sample", frame),
            "instance_token": self.token("instance", track),
            "visibility_token": str(1 + int(np.searchsorted((0.4, 0.6, 0.8), 1 - seen.hidden[track], side="right"))),
            "attribute_tokens": [token("attribute", attribute)] if attribute else [],
            "translation": (box[:3] + self.offset).tolist(),
            "size": [box[4], box[3], box[5]],
            "rotation": [math.cos(box[6] / 2), 0.0, 0.0, math.sin(box[6] / 2)],
            "num_lidar_pts": int(seen.points[track]),
            "num_radar_pts": 0,
        }

    def _describe(self, samples: int, tables: Tables) -> None:
        """The rows of the scene itself: scene, log, map, calibrated_sensor."""
        tables["scene"].append(
            {
                "token": self.token("scene"),
                "log_token": self.token("log"),
                "nbr_samples": samples,
                "first_sample_token": self.token("sample", 0),
                "last_sample_token": self.token("sample", samples - 1),
                "name": self.writer.names[self.index],
                "description": "simulated street",
            }
        )
        day = datetime.fromtimestamp(self.begin / 1e6, UTC).strftime("%Y-%m-%d")
        tables["log"].append(
            {
                "token": self.token("log"),
                "logfile": self.log,
                "vehicle": "sim",
                "date_captured": day,
                "location": self.location,
            }
        )
        tables["map"].append(
            {
                "token": self.token("map"),
                "log_tokens": [self.token("log")],
                "category": "semantic_prior",
                "filename": self._map_name(),
            }
        )
        tables["calibrated_sensor"].append(
            {
                "token": self.token("calibrated_sensor"),
                "sensor_token": token("sensor", "LIDAR_TOP"),
                "translation": self.calibrated[:3, 3].tolist(),
                "rotation": quaternion(self.calibrated[:3, :3]),
                "camera_intrinsic": [],
            }
        )

    def _map_name(self) -> str:
        return f"maps/{self.token('map')}.png"

    def _write_map(self) -> None:
        """A picture of the ground that can be driven on (255), 0.1 m per pixel, north up."""
        width, height = np.ceil(self.extent / MAP_RESOLUTION).astype(int)
        picture = np.zeros((height, width), np.uint8)
        street, half = self.street.street, self.street.half_width
        strips = [(street.start, street.start + len(street.nodes) * 0.5, -half, half)]
        if self.street.crossing is not None:
            strips.append((self.street.crossing - 4, self.street.crossing + 4, -MAP_MARGIN, MAP_MARGIN))
        for start, end, low, high in strips:
            along = np.arange(start, end, 0.07)[:, None]
            x, y, _ = street.at(np.broadcast_to(along, (len(along), 1)), np.arange(low, high, 0.07)[None])
            column = ((x + self.offset[0]) / MAP_RESOLUTION).astype(int)
            row = height - 1 - ((y + self.offset[1]) / MAP_RESOLUTION).astype(int)
            there = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            picture[row[there], column[there]] = 255
        with self._file(self._map_name()) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        tables = map_tables(self.street, self.offset, self.extent, self.token)
        with self._file(f"{FOLDER}/{self.location}.json") as temporary:
            temporary.write_text(json.dumps(tables), encoding="utf-8")


def attribute_of(name: str, parked: bool, velocity: Array) -> str:
    """The attribute of an object by what it is and how it moves; empty where it has none.

    Args:
        name: what it is, in the simulator.
        parked: whether it stands at the roadside.
        velocity: [2+] in metres per second, along x and y first.
    """
    kind, fast = NAMES[name], float(np.hypot(*velocity[:2])) > 0.2
    if kind.startswith("human"):
        return "pedestrian.moving" if fast else "pedestrian.standing"
    if kind.startswith("movable"):
        return ""
    if name in ("Motorcycle", "Cyclist"):
        return "cycle.with_rider"
    if parked:
        return "vehicle.parked"
    return "vehicle.moving" if fast else "vehicle.stopped"


def quaternion(rotation: Array) -> list[float]:
    """A rotation matrix [3, 3] as w, x, y, z with w at least 0."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_quat(canonical=True, scalar_first=True).tolist()
