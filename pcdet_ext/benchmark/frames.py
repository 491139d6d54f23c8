"""Frames to measure on: synthetic scans of given sizes, or files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.data.points import read_points
from pcdet_ext.ops import dynamic_voxelize
from pcdet_ext.structures import Array

SIZES = (20_000, 100_000)  # points, and voxels, that are measured unless others are asked for
_FRAME_POINTS = 120_000  # of one turn of the scanner
_BEAMS, _LOWEST, _HIGHEST = 64, -24.8, 2.0  # elevations in degrees, as of a 64-beam scanner
_SENSOR_HEIGHT, _MAX_RANGE = 1.73, 90.0  # metres
_SUFFIXES = (".bin", ".npy", ".pcd", ".ply")


def synthetic_scan(num_points: int, seed: int = 0) -> Array:
    """A scan float32 [num_points, 4] (x, y, z in metres, intensity in [0, 1]) with the statistics of a street's.

    64 beams turn over flat ground among upright obstacles, whose distance is drawn for each sector of the circle: rings
    on the ground, dense walls near by, few points far away, beam after beam.
    """
    rng = np.random.default_rng(seed)
    steps = int(np.ceil(num_points / _BEAMS * 1.6))  # enough rays: some 30 % hit nothing or are lost
    while True:
        points = _cast(rng, steps)
        if len(points) >= num_points:
            keep = np.sort(rng.choice(len(points), num_points, replace=False))
            return points[keep]
        steps = steps * 5 // 4


def _cast(rng: np.random.Generator, steps: int) -> Array:
    """The points that rays hit: _BEAMS elevations times `steps` azimuths."""
    elevation = np.deg2rad(np.linspace(_LOWEST, _HIGHEST, _BEAMS))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, steps, endpoint=False)[None, :]
    sectors = 180
    distance, height = rng.gamma(2.0, 12.0, sectors) + 3.0, rng.uniform(0.5, 6.0, sectors)  # metres, above ground
    sector = (np.arange(steps) * sectors // steps)[None, :]
    to_ground = np.where(elevation < 0, _SENSOR_HEIGHT / np.tan(-np.minimum(elevation, -1e-6)), np.inf)
    to_wall = np.broadcast_to(distance[sector], to_ground.shape[:1] + azimuth.shape[1:])
    on_wall = (to_wall < to_ground) & (_SENSOR_HEIGHT + to_wall * np.tan(elevation) < height[sector])
    flat = np.where(on_wall, to_wall, to_ground)
    seen = (flat < _MAX_RANGE) & (rng.random(flat.shape) > 0.1)
    beam, step = np.nonzero(seen)
    length = flat[seen] / np.cos(elevation[beam, 0]) + rng.normal(0.0, 0.02, len(beam))
    xyz = np.stack(
        [
            length * np.cos(elevation[beam, 0]) * np.cos(azimuth[0, step]),
            length * np.cos(elevation[beam, 0]) * np.sin(azimuth[0, step]),
            length * np.sin(elevation[beam, 0]),
        ],
        axis=1,
    )
    return np.column_stack([xyz, rng.beta(2.0, 5.0, len(beam))]).astype(np.float32)


@lru_cache(maxsize=8)  # benchmarks of one size share their voxels
def street_voxels(count: int, point_cloud_range: tuple[float, ...], voxel_size: tuple[float, ...]) -> Tensor:
    """Voxels of as many synthetic scans as it takes; the last frame is thinned out at random.

    Args:
        count: number of voxels.
        point_cloud_range: x, y and z minimum, then their maximum, in metres.
        voxel_size: along x, y and z, in metres.

    Returns:
        int32 [count, 4] (batch, z, y, x).
    """
    frames: list[Tensor] = []
    missing = count
    while missing:
        points = torch.from_numpy(synthetic_scan(min(_FRAME_POINTS, 4 * count), seed=len(frames)))
        frame = torch.full((len(points),), len(frames))
        coords = dynamic_voxelize(points, frame, point_cloud_range, voxel_size)[0]
        if len(coords) > missing:
            some = torch.randperm(len(coords), generator=torch.Generator().manual_seed(count))[:missing]
            coords = coords[some.sort().values]
        frames.append(coords)
        missing -= len(coords)
    return torch.cat(frames)


def load_frames(paths: Sequence[Path] = (), sizes: Iterable[int] = SIZES, seed: int = 0) -> Iterator[tuple[str, Array]]:
    """Names and points of frames.

    Args:
        paths: files, and folders whose point files are all taken; without any the frames are synthetic scans.
        sizes: numbers of points of the synthetic scans.
        seed: of these.

    Raises:
        ValueError: a folder has no point files.
        DataError: a file cannot be read.
    """
    if not paths:
        for size in sizes:
            yield f"synthetic-{size // 1000}k", synthetic_scan(size, seed)
    for path in paths:
        files = sorted(f for f in path.iterdir() if f.suffix in _SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise ValueError(f"{path}: no point files ({', '.join(_SUFFIXES)}) in this folder")
        for file in files:
            points = read_points(file)
            yield file.name, points[np.isfinite(points).all(1)]
