"""A small made-up folder of one's own data: forklifts and people in a yard, around a sensor that moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import feather

from pcdet_ext.cli.command import main
from pcdet_ext.data.custom import CustomDataset, CustomFrames, write_labels
from pcdet_ext.data.prepare import prepare
from pcdet_ext.structures import Array

SIZES = {"Fork lift": (3.2, 1.4, 2.2), "Person": (0.7, 0.6, 1.8)}
NAMES = ("Fork lift", "Person", "Person")
COLUMNS = ("x", "y", "z", "intensity")
RANGE = (-10, -10, -3, 10, 10, 2)


def make_scene(rng: np.random.Generator, names: Sequence[str] = NAMES) -> tuple[Array, Array]:
    """Points float32 [N, 4] and boxes float32 [M, 7], one per name; 60 points on each box, the others on the ground."""
    boxes = np.zeros((len(names), 7), np.float32)
    for i, name in enumerate(names):
        angle = 2 * np.pi * (i + rng.uniform(0, 0.6)) / len(names)
        boxes[i, :2] = rng.uniform(3, 6) * np.array([np.cos(angle), np.sin(angle)])
        boxes[i, 3:6] = SIZES[name]
        boxes[i, 2] = -1.5 + boxes[i, 5] / 2
        boxes[i, 6] = rng.uniform(-3, 3)
    local = rng.uniform(-0.49, 0.49, (len(names), 60, 3)) * boxes[:, None, 3:6]
    cos, sin = np.cos(boxes[:, 6, None]), np.sin(boxes[:, 6, None])
    x, y, z = local.transpose(2, 0, 1)
    inside = np.stack([x * cos - y * sin, x * sin + y * cos, z], axis=2) + boxes[:, None, :3]
    ground = np.column_stack([rng.uniform(-8, 8, (301, 2)), rng.uniform(-1.52, -1.5, 301)])
    xyz = np.concatenate([inside.reshape(-1, 3), ground])
    return np.column_stack([xyz, rng.integers(0, 256, len(xyz))]).astype(np.float32), boxes


def write_cloud(path: Path, points: Array) -> None:
    """Write points [N, 4] (x, y, z, intensity) as the kind of file that the suffix means."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(" ".join(repr(float(v)) for v in point) for point in points)
    match path.suffix:
        case ".bin":
            points.astype("<f4").tofile(path)
        case ".npy":
            np.save(path, points)
        case ".pcd":
            header = f"FIELDS x y z intensity\nSIZE 4 4 4 4\nTYPE F F F F\nPOINTS {len(points)}\nDATA ascii\n"
            path.write_text(f"VERSION 0.7\n{header}{rows}\n")
        case ".ply":
            fields = "".join(f"property float {name}\n" for name in ("x", "y", "z", "scalar_Intensity"))
            header = f"ply\nformat ascii 1.0\nelement vertex {len(points)}\n{fields}end_header\n"
            path.write_text(f"{header}{rows}\n")
        case ".feather":
            feather.write_feather(pa.table(dict(zip(COLUMNS, points.T.copy(), strict=True))), str(path))
        case ".las" | ".laz":
            _write_las(path, points)
        case suffix:
            raise ValueError(suffix)


def _write_las(path: Path, points: Array) -> None:
    import laspy

    header = laspy.LasHeader(point_format=0, version="1.2")
    header.scales = [1e-6] * 3
    las = laspy.LasData(header)
    las.x, las.y, las.z = points[:, :3].astype(np.float64).T
    las.intensity = points[:, 3].astype(np.uint16)
    las.write(path)


def make_folder(root: Path, frames: int = 10, suffix: str = ".pcd", settings: str = "intensity_scale: 255\n") -> Path:
    """A folder with `frames` frames 000, 001, …; each depends on its number alone."""
    for i in range(frames):
        points, boxes = make_scene(np.random.default_rng(i))
        write_cloud(root / "points" / f"{i:03d}{suffix}", points)
        write_labels(root / "labels" / f"{i:03d}.txt", boxes, NAMES)
    if settings:
        (root / "dataset.yaml").write_text(settings)
    return root


def prepared(root: Path, splits: tuple[str, ...] = ("train", "val"), **options: Any) -> CustomFrames:
    """The folder's frames, after preparation."""
    source = CustomFrames(root)
    prepare(source, splits, progress=False, **options)
    return source


def dataset(root: Path, split: str = "train", **options: Any) -> CustomDataset:
    """A split of the folder, prepared before."""
    options = {"intensity_scale": 255.0, "point_features": COLUMNS} | options
    return CustomDataset(root=root, classes=("Fork lift", "Person"), point_cloud_range=RANGE, split=split, **options)


def run(*arguments: str | Path) -> int:
    """The exit code of the command `pcdet`."""
    return main([str(a) for a in arguments])
