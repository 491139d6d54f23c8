"""A small made-up release of nuScenes, written with the standard library and NumPy alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.nuscenes import NuScenesDataset, NuScenesFrames
from pcdet_ext.data.prepare import prepare

CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "vehicle.emergency.police", "movable_object.barrier")
SENSOR_TURN = [np.cos(-np.pi / 4), 0.0, 0.0, np.sin(-np.pi / 4)]  # the lidar's y axis points forward
SENSOR_PLACE = [0.94, 0.0, 1.84]
SIZES = {"vehicle.car": [1.9, 4.5, 1.6], "movable_object.barrier": [2.0, 0.5, 1.0]}
RANGE = [-60, -60, -5, 60, 60, 5]
CLASSES = ["car", "barrier", "pedestrian"]


def quaternion(yaw: float) -> list[float]:
    """A rotation about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


@dataclass
class Release:
    """Tables by name, and scans by file; what a test changes before `write` is written so."""

    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scans: dict[str, np.ndarray] = field(default_factory=dict)

    def row(self, table: str, token: str) -> dict[str, Any]:
        """A row by its token."""
        return next(row for row in self.tables[table] if row["token"] == token)

    def write(self, root: Path, version: str = "v1.0-mini", doubled: bool = False) -> Path:
        """Write everything below a folder; doubled: as OpenPCDet has it, with the version's name twice."""
        data = root / version if doubled else root
        (data / version).mkdir(parents=True, exist_ok=True)
        for name, rows in self.tables.items():
            (data / version / f"{name}.json").write_text(json.dumps(rows, indent=0))
        for file, points in self.scans.items():
            (data / file).parent.mkdir(parents=True, exist_ok=True)
            points.astype("<f4").tofile(data / file)
        return root


def make_release(
    scenes: tuple[str, ...] = ("scene-0061", "scene-0103"),
    keys: int = 3,
    between: int = 4,
    labelled: bool = True,
    seed: int = 0,
) -> Release:
    """Scenes of key frames every 0.5 s with sweeps between them; a turning vehicle, a car that moves, one that stands.

    In the world the points of every scan are the same few landmarks, so that joined sweeps must lie upon one another;
    each scan also has a point on the vehicle itself.
    """
    made = Release()
    made.tables["sensor"] = [
        {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
        {"token": "camera", "channel": "CAM_FRONT", "modality": "camera"},
    ]
    made.tables["calibrated_sensor"] = [
        {
            "token": f"calibrated-{kind}",
            "sensor_token": kind,
            "translation": SENSOR_PLACE,
            "rotation": SENSOR_TURN,
            "camera_intrinsic": [],
        }
        for kind in ("lidar", "camera")
    ]
    made.tables["category"] = [{"token": f"category-{i}", "name": name} for i, name in enumerate(CATEGORIES)]
    made.tables["attribute"] = [{"token": "moving", "name": "vehicle.moving"}]
    for name in ("scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance"):
        made.tables[name] = []
    for i, scene in enumerate(scenes):
        _add_scene(made, scene, 1_000_000_000 * (i + 1), keys, between, labelled, np.random.default_rng(seed + i))
    return made


def ego_at(time: float) -> tuple[list[float], float]:
    """Place and heading of the vehicle, seconds after the start of a scene."""
    return [400.0 + 5 * time, 900.0 + time * time, 0.1], 0.3 + 0.2 * time


def dataset(root: Path, split: str = "train", **settings: object) -> NuScenesDataset:
    """A split of the folder, prepared before."""
    return NuScenesDataset(root=root, classes=CLASSES, point_cloud_range=RANGE, split=split, **settings)


def prepared(release: Release, root: Path, splits: tuple[str, ...] = ("train", "val"), **options: object) -> Path:
    """Write the release into the folder and prepare it there."""
    release.write(root)
    prepare(NuScenesFrames(root), splits, progress=False, **options)
    return root


def _add_scene(
    made: Release, scene: str, start: int, keys: int, between: int, labelled: bool, rng: np.random.Generator
) -> None:
    step = 500_000 // (between + 1)
    landmarks = np.column_stack([rng.uniform(380, 430, 60), rng.uniform(880, 930, 60), rng.uniform(-1, 2, 60)])
    before = ""
    for i in range((keys - 1) * (between + 1) + 1):
        key, time = i % (between + 1) == 0, i * step
        token, sample = f"{scene}-data-{i}", f"{scene}-{-(-i // (between + 1))}"
        file = f"{'samples' if key else 'sweeps'}/LIDAR_TOP/{scene}__LIDAR_TOP__{start + time}.pcd.bin"
        place, yaw = ego_at(time * 1e-6)
        made.tables["ego_pose"].append({"token": f"{token}-pose", "translation": place, "rotation": quaternion(yaw)})
        made.tables["sample_data"].append(
            {
                "token": token,
                "sample_token": sample,
                "ego_pose_token": f"{token}-pose",
                "calibrated_sensor_token": "calibrated-lidar",
                "timestamp": start + time,
                "is_key_frame": key,
                "filename": file,
                "prev": before,
                "next": "",
            }
        )
        if before:
            made.row("sample_data", before)["next"] = token
        before = token
        made.scans[file] = _scan(landmarks, place, yaw, rng)
        if key:
            made.tables["sample"].append({"token": sample, "scene_token": scene, "timestamp": start + time})
    made.tables["scene"].append({"token": scene, "name": scene, "first_sample_token": f"{scene}-0"})
    if labelled:
        _add_objects(made, scene, keys)


def _scan(landmarks: np.ndarray, place: list[float], yaw: float, rng: np.random.Generator) -> np.ndarray:
    local = _turned(landmarks - place, -yaw) - SENSOR_PLACE
    local = _turned(local, np.pi / 2)
    xyz = np.concatenate([local, [[0.3, -0.9, -1.0]]])
    return np.column_stack([xyz, rng.uniform(0, 255, len(xyz)), rng.integers(0, 32, len(xyz))])


def _turned(xyz: np.ndarray, yaw: float) -> np.ndarray:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.column_stack([cos * xyz[:, 0] - sin * xyz[:, 1], sin * xyz[:, 0] + cos * xyz[:, 1], xyz[:, 2]])


def _add_objects(made: Release, scene: str, keys: int) -> None:
    for i, category in enumerate(CATEGORIES):
        instance = f"{scene}-instance-{i}"
        made.tables["instance"].append({"token": instance, "category_token": f"category-{i}"})
        speed = 4.0 if i == 0 else 0.0
        for k in range(keys):
            made.tables["sample_annotation"].append(
                {
                    "token": f"{instance}-{k}",
                    "sample_token": f"{scene}-{k}",
                    "instance_token": instance,
                    "attribute_tokens": ["moving"] if i == 0 else [],
                    "translation": [405.0 + 3 * i + speed * 0.5 * k, 905.0 - 4 * i, 0.8],
                    "size": list(SIZES.get(category, [0.7, 0.8, 1.7])),
                    "rotation": quaternion(0.1 * i),
                    "num_lidar_pts": 5 if category != "human.pedestrian.adult" else 0,
                    "num_radar_pts": 1,
                    "prev": f"{instance}-{k - 1}" if k else "",
                    "next": f"{instance}-{k + 1}" if k < keys - 1 else "",
                }
            )
