"""Simulated data sets: frames from seeds, side by side in processes, in a format's layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.files import DataError, atomic_write, check_output_folder
from pcdet_ext.data.simulation.kitti import write_frame
from pcdet_ext.data.simulation.scene import Scene, street_scene
from pcdet_ext.data.simulation.sensor import Scan, SpinningLidar

STAMP = "simulation.json"  # written last: the folder is complete
STARTED = "simulation.started.json"  # written first, and gone at the end: the folder is ours to write into
VERSION = 2  # raise it when the same seed gives other frames


def simulate_frame(seed: int, index: int, sensor: SpinningLidar) -> tuple[Scene, Scan]:
    """Frame `index` of a seed: the same whatever else is simulated, and by how many processes."""
    rng = np.random.default_rng([seed, index])
    scene = street_scene(rng)
    return scene, sensor.scan(scene, rng)


def simulate_kitti(
    out: str | Path,
    frames: int,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: SpinningLidar | None = None,
    progress: Callable[[Iterator[int]], Iterator[int]] = iter,
) -> Path:
    """Write a data set in KITTI's object-detection layout: training/{velodyne,label_2,calib} and ImageSets.

    val_fraction: share of the frames, drawn with the seed, that ImageSets/val.txt lists. simulation.json is written
    last and says what was asked for: with the same request a finished folder is left as it is, and an interrupted one
    is completed.
    Raises ValueError for bad numbers, FileExistsError for a folder that holds something else.
    """
    out, sensor = Path(out), sensor or SpinningLidar()
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    check_output_folder(out)
    if frames < 1 or workers < 1 or not 0 <= val_fraction <= 1:
        raise ValueError(
            f"frames and workers must be positive and val_fraction in [0, 1]: {frames}, {workers}, {val_fraction}"
        )
    request = {
        "version": VERSION,
        "format": "kitti",
        "frames": frames,
        "seed": seed,
        "val_fraction": val_fraction,
        "sensor": dataclasses.asdict(sensor),
    }
    if _is_done(out, request):
        return out
    _write_json(out / STARTED, request)
    make = partial(_make, out, seed, sensor)
    if workers == 1:
        for _ in progress(map(make, range(frames))):
            pass
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for _ in progress(pool.map(make, range(frames), chunksize=4)):
                pass
    _write_splits(out, frames, seed, val_fraction)
    _write_json(out / STAMP, request)
    (out / STARTED).unlink()
    return out


def _make(out: Path, seed: int, sensor: SpinningLidar, index: int) -> int:
    scene, scan = simulate_frame(seed, index, sensor)
    write_frame(out, f"{index:06d}", scene, scan, sensor)
    return index


def _is_done(out: Path, request: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this; False where it is empty or holds the beginning of exactly this.

    FileExistsError for anything else: data without a stamp of ours may be somebody's recordings.
    """
    if not out.exists() or not any(out.iterdir()):
        return False
    for name, done in ((STAMP, True), (STARTED, False)):
        if (out / name).exists():
            if _read_json(out / name) == json.loads(json.dumps(request)):
                return done
            raise FileExistsError(f"{out}: holds another simulation (see {name}); name a new folder or remove it")
    raise FileExistsError(f"{out}: not empty and no simulation of ours ({min(p.name for p in out.iterdir())} is there)")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _write_json(path: Path, request: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(request, indent=1), encoding="utf-8")


def _write_splits(out: Path, frames: int, seed: int, val_fraction: float) -> None:
    order = np.random.default_rng([seed, frames]).permutation(frames)
    held_out = set(order[: round(frames * val_fraction)].tolist())
    splits = {
        "train": [i for i in range(frames) if i not in held_out],
        "val": sorted(held_out),
        "all": list(range(frames)),
    }
    for name, members in splits.items():
        with atomic_write(out / "ImageSets" / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{i:06d}\n" for i in members), encoding="utf-8")
