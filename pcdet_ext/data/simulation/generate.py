"""Simulated data sets: frames from seeds, side by side in processes, in a format's layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.simulation import kitti
from pcdet_ext.data.simulation.nuscenes import NuScenesWriter, scene_names
from pcdet_ext.data.simulation.scene import Scene, street_scene
from pcdet_ext.data.simulation.sensor import EvenLidar, Scan, SpinningLidar
from pcdet_ext.data.simulation.waymo import WaymoLasers, WaymoWriter
from pcdet_ext.files import DataError, atomic_write, check_output_folder

STAMP = "simulation.json"  # written last: the folder is complete
STARTED = "simulation.started.json"  # written first, and gone at the end: the folder is ours to write into
VERSION = 2  # raise it when the same seed gives other frames
NUSCENES_VERSIONS = ("v1.0-mini", "v1.0-trainval")


@dataclass(frozen=True)
class Made:
    """What one piece of work gave: scans written (0: it was there already), and what ray-casting took.

    casting: seconds of processor time.
    """

    scans: int
    casting: float


Progress = Callable[[Iterator[Made]], Iterator[Made]]


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
    progress: Progress = iter,
) -> Path:
    """Write a data set in KITTI's object-detection layout: training/{velodyne,label_2,calib} and ImageSets.

    Args:
        out: folder to write to. simulation.json is written last and says what was asked for: with the same request a
            finished folder is left as it is, and an interrupted one is completed.
        frames: each is a street of its own.
        seed: the same seed gives the same frames.
        val_fraction: share of the frames, drawn with the seed, that ImageSets/val.txt lists.
        workers: processes.
        sensor: the LiDAR; like a Velodyne HDL-64E if not given.
        progress: is given the pieces of work as they are done, one `Made` per frame, and passes them on.

    Raises:
        ValueError: for bad numbers.
        FileExistsError: for a folder that holds something else.
        ImportError: without Open3D.
    """
    sensor = sensor or SpinningLidar()
    request = {"format": "kitti", "frames": frames, "seed": seed, "val_fraction": val_fraction}
    work = _Work(Path(out), request | {"sensor": dataclasses.asdict(sensor)}, frames, workers)
    if work.begin():
        return work.out
    work.run(partial(_make_kitti, work.out, seed, sensor), progress)
    held_out = _held_out(frames, seed, val_fraction)
    splits = {
        "train": np.flatnonzero(~held_out).tolist(),
        "val": np.flatnonzero(held_out).tolist(),
        "all": list(range(frames)),
    }
    for name, members in splits.items():
        with atomic_write(work.out / "ImageSets" / f"{name}.txt") as temporary:
            temporary.write_text("".join(f"{i:06d}\n" for i in members), encoding="utf-8")
    return work.end()


def simulate_nuscenes(
    out: str | Path,
    scenes: int,
    frames: int,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: EvenLidar | None = None,
    version: str = "v1.0-mini",
    progress: Progress = iter,
) -> Path:
    """Write drives in the layout in which nuScenes is released, with LIDAR_TOP as the only sensor.

    Scans at 20 Hz, every tenth a key frame with annotations. Up to ten scenes (two held out) in v1.0-mini have the
    official names of its scenes, others names of their own; splits/train.txt, splits/val.txt and, for the devkit,
    <version>/splits.json list them.

    Args:
        out: as `simulate_kitti`.
        scenes: drives, each through a street of its own.
        frames: key frames per scene, half a second apart.
        seed: the same seed gives the same scenes.
        val_fraction: share of the scenes that are held out.
        workers: processes; each makes one scene at a time.
        sensor: the LiDAR; like a Velodyne HDL-32E if not given.
        version: name of the folder of tables, v1.0-mini or v1.0-trainval.
        progress: as `simulate_kitti`, one `Made` per scene.

    Raises:
        ValueError, FileExistsError, ImportError: as `simulate_kitti`.
    """
    sensor = sensor or EvenLidar()
    if version not in NUSCENES_VERSIONS:
        raise ValueError(f"version must be one of {', '.join(NUSCENES_VERSIONS)}, got {version}")
    request = {"format": "nuscenes", "scenes": scenes, "frames": frames, "seed": seed, "val_fraction": val_fraction}
    request |= {"tables": version, "sensor": dataclasses.asdict(sensor)}
    work = _Work(Path(out), request, scenes, workers)
    if work.begin():
        return work.out
    val = _held_out(scenes, seed, val_fraction).tolist()
    writer = NuScenesWriter(work.out, seed, frames, version, tuple(scene_names(version, val)), sensor)
    work.run(partial(_make_scene, writer), progress)
    writer.finish(val)
    return work.end()


def simulate_waymo(
    out: str | Path,
    scenes: int,
    frames: int,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: WaymoLasers | None = None,
    progress: Progress = iter,
) -> Path:
    """Write drives in the Parquet layout of the Waymo Open Dataset, version 2: {training,validation}/<component>/.

    Five lasers at 10 Hz with two returns; the top one turns while the vehicle moves and has a pose per pixel. Objects
    stand still during a turn of the sensors. The lidar components have one row group per frame.

    Args:
        out: as `simulate_kitti`.
        scenes: drives (segments), each through a street of its own.
        frames: per drive, a tenth of a second apart.
        seed: the same seed gives the same drives.
        val_fraction: share of the drives that go to validation/.
        workers: processes; each makes one drive at a time.
        sensor: the lasers; smaller images than the official ones if not given.
        progress: as `simulate_kitti`, one `Made` per drive.

    Raises:
        ValueError, FileExistsError, ImportError: as `simulate_kitti`.
    """
    sensor = sensor or WaymoLasers()
    request = {"format": "waymo", "scenes": scenes, "frames": frames, "seed": seed, "val_fraction": val_fraction}
    work = _Work(Path(out), request | {"sensor": dataclasses.asdict(sensor)}, scenes, workers)
    if work.begin():
        return work.out
    val = tuple(_held_out(scenes, seed, val_fraction).tolist())
    work.run(partial(_make_scene, WaymoWriter(work.out, seed, frames, val, sensor)), progress)
    return work.end()


def _make_kitti(out: Path, seed: int, sensor: SpinningLidar, index: int) -> Made:
    if kitti.is_written(out, f"{index:06d}"):
        return Made(0, 0.0)
    scene, scan = simulate_frame(seed, index, sensor)
    kitti.write_frame(out, f"{index:06d}", scene, scan, sensor)
    return Made(1, scan.seconds)


def _make_scene(writer: NuScenesWriter | WaymoWriter, index: int) -> Made:
    return Made(*writer.write_scene(index))


def _held_out(count: int, seed: int, val_fraction: float) -> np.ndarray:
    """Which frames or scenes are held out: bool [count], drawn with the seed."""
    order = np.random.default_rng([seed, count]).permutation(count)
    held_out = np.zeros(count, bool)
    held_out[order[: round(count * val_fraction)]] = True
    return held_out


@dataclass(frozen=True)
class _Work:
    """A folder that a simulation is written to in independent pieces.

    request: what was asked for, in JSON types. Raises as `simulate_kitti`.
    """

    out: Path
    request: dict[str, Any]
    pieces: int
    workers: int

    def __post_init__(self) -> None:
        asked = self.request
        if asked["seed"] < 0:
            raise ValueError(f"seed must be at least 0, got {asked['seed']}")
        if asked.get("scenes", 1) < 1:
            raise ValueError(f"scenes must be at least 1, got {asked['scenes']}")
        if asked["frames"] < 1 or self.workers < 1 or not 0 <= asked["val_fraction"] <= 1:
            raise ValueError(
                "frames and workers must be positive and val_fraction in [0, 1]: "
                f"{asked['frames']}, {self.workers}, {asked['val_fraction']}"
            )
        check_output_folder(self.out)

    def begin(self) -> bool:
        """Make the folder ours; says whether it holds exactly this already.

        Data without a stamp of ours may be somebody's recordings, and are never written over.
        """
        request = {"version": VERSION} | self.request
        if self.out.exists() and any(self.out.iterdir()):
            for name, done in ((STAMP, True), (STARTED, False)):
                if (self.out / name).exists():
                    if _read_json(self.out / name) == json.loads(json.dumps(request)):
                        return done
                    raise FileExistsError(
                        f"{self.out}: holds another simulation (see {name}); name a new folder or remove it"
                    )
            found = min(p.name for p in self.out.iterdir())
            raise FileExistsError(f"{self.out}: not empty and no simulation of ours ({found} is there)")
        _write_json(self.out / STARTED, request)
        return False

    def run(self, make: Callable[[int], Made], progress: Progress) -> None:
        """Make all pieces, side by side where there are several workers."""
        if self.workers == 1:
            for _ in progress(map(make, range(self.pieces))):
                pass
            return
        chunk = max(1, min(4, self.pieces // (4 * self.workers)))
        with ProcessPoolExecutor(min(self.workers, self.pieces), mp_context=get_context("spawn")) as pool:
            for _ in progress(pool.map(make, range(self.pieces), chunksize=chunk)):
                pass

    def end(self) -> Path:
        """Say that the folder is complete; returns it."""
        _write_json(self.out / STAMP, {"version": VERSION} | self.request)
        (self.out / STARTED).unlink()
        return self.out


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def _write_json(path: Path, request: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(request, indent=1), encoding="utf-8")
