"""Simulated data sets: frames from seeds, side by side in processes, in a format's layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.simulation import kitti
from pcdet_ext.data.simulation.argoverse2 import Argoverse2Writer
from pcdet_ext.data.simulation.manifest import sizes
from pcdet_ext.data.simulation.nuscenes import PARTS, NuScenesWriter, scene_names
from pcdet_ext.data.simulation.once import OnceWriter
from pcdet_ext.data.simulation.places import PlacesWriter
from pcdet_ext.data.simulation.revisits import AerialLidar
from pcdet_ext.data.simulation.scene import Scene
from pcdet_ext.data.simulation.semantickitti import SemanticKittiWriter, sequence_names
from pcdet_ext.data.simulation.sensor import EvenLidar, Scan, SpinningLidar
from pcdet_ext.data.simulation.streets import street_scene
from pcdet_ext.data.simulation.waymo import WaymoWriter
from pcdet_ext.data.simulation.waymo_lasers import WaymoLasers
from pcdet_ext.data.simulation.work import Made, Progress, Work
from pcdet_ext.files import atomic_write

MOST_RUNS = 100
SPACING = 5.0  # metres between frames of a run through a street
NUSCENES_VERSIONS = ("v1.0-mini", "v1.0-trainval")

_SceneWriter = NuScenesWriter | WaymoWriter | SemanticKittiWriter | Argoverse2Writer | OnceWriter


def simulate_frame(seed: int, index: int, sensor: SpinningLidar) -> tuple[Scene, Scan]:
    """A frame that is the same whatever else is simulated, and by how many processes.

    Args:
        seed: of the data set.
        index: number of the frame.
        sensor: what scans it.
    """
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
            finished folder is left as it is, an interrupted one is completed, and files that are gone or cut are made
            again.
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
    work = Work(Path(out), request | {"sensor": dataclasses.asdict(sensor)}, frames, workers)
    if work.begin():
        return work.out
    work.run(partial(_make_kitti, work.out, seed, sensor), progress)
    held_out = _held_out(frames, seed, val_fraction)
    splits = {
        "train": np.flatnonzero(~held_out).tolist(),
        "val": np.flatnonzero(held_out).tolist(),
        "all": list(range(frames)),
    }
    lists = {work.out / "ImageSets" / f"{name}.txt": members for name, members in splits.items()}
    for path, members in lists.items():
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{i:06d}\n" for i in members), encoding="utf-8")
    return work.end(lists)


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

    Beside the tables there are the maps of the map expansion, in maps/expansion, and Occ3D's labels in gts.

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
    request = _request("nuscenes", scenes, frames, seed, val_fraction, sensor)
    request |= {"tables": version, "labels": ["boxes", "map", "occupancy"]}
    work = Work(Path(out), request, scenes, workers)
    if work.begin():
        return work.out
    val = _held_out(scenes, seed, val_fraction).tolist()
    writer = NuScenesWriter(work.out, seed, frames, version, tuple(scene_names(version, val)), sensor)
    work.run(partial(_make_scene, writer), progress, ready=lambda index: writer.part(index).exists())
    return work.end(writer.finish(val), without=PARTS)


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
    work = Work(Path(out), _request("waymo", scenes, frames, seed, val_fraction, sensor), scenes, workers)
    return _write_drives(work, progress, lambda val: WaymoWriter(work.out, seed, frames, tuple(val), sensor))


def simulate_places(
    out: str | Path,
    scenes: int,
    frames: int,
    runs: int = 5,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: EvenLidar | None = None,
    aerial: AerialLidar | None = None,
    progress: Progress = iter,
) -> Path:
    """Write runs through the same streets for place recognition: clouds, and `frames.csv` with their positions.

    What stands in a street stays; trees and bushes are in leaf in one season and bare in the other; parked and driving
    vehicles are others in every run. Runs go along the street and against it in turn, in any lane of their side; every
    fifth one sees the street from above.

    Args:
        out: as `simulate_kitti`.
        scenes: streets, ten kilometres apart.
        frames: per run, about five metres apart.
        runs: through each street.
        seed: the same seed gives the same streets and runs.
        val_fraction: share of the streets that are held out, with all their runs.
        workers: processes; each makes one run at a time.
        sensor: the LiDAR of runs on the ground; like a Velodyne HDL-32E with a third of its firings if not given.
        aerial: the LiDAR of runs above it.
        progress: as `simulate_kitti`, one `Made` per run.

    Raises:
        ValueError, FileExistsError, ImportError: as `simulate_kitti`.
    """
    if not 2 <= runs <= MOST_RUNS:
        raise ValueError(f"runs must lie in [2, {MOST_RUNS}], got {runs}")
    sensor, aerial = sensor or EvenLidar(azimuths=360), aerial or AerialLidar()
    request = _request("places", scenes, frames, seed, val_fraction, sensor)
    request |= {"runs": runs, "aerial": dataclasses.asdict(aerial)}
    work = Work(Path(out), request, scenes * runs, workers)
    if work.begin():
        return work.out
    val = tuple(_held_out(scenes, seed, val_fraction).tolist())
    writer = PlacesWriter(work.out, seed, frames, runs, val, SPACING, sensor, aerial)
    work.run(partial(_make_run, writer), progress)
    return work.end(writer.finish())


def simulate_semantickitti(
    out: str | Path,
    scenes: int,
    frames: int,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: SpinningLidar | None = None,
    progress: Progress = iter,
) -> Path:
    """Write drives in SemanticKITTI's layout: sequences/NN/{velodyne,labels,calib.txt,poses.txt,times.txt}.

    Every point has a label, and those of vehicles and people the number of their object, the same for a whole drive.
    The first ten drives for training and the first held out have the published names, others follow from 22 on;
    splits/train.txt and splits/val.txt list them.

    Args:
        out: as `simulate_kitti`.
        scenes: drives (sequences), each through a street of its own.
        frames: per drive, a tenth of a second apart.
        seed: the same seed gives the same drives.
        val_fraction: share of the drives that are held out.
        workers: processes; each makes one drive at a time.
        sensor: the LiDAR; like a Velodyne HDL-64E if not given.
        progress: as `simulate_kitti`, one `Made` per drive.

    Raises:
        ValueError, FileExistsError, ImportError: as `simulate_kitti`.
    """
    sensor = sensor or SpinningLidar()
    work = Work(Path(out), _request("semantickitti", scenes, frames, seed, val_fraction, sensor), scenes, workers)

    def writer(val: list[bool]) -> SemanticKittiWriter:
        return SemanticKittiWriter(work.out, seed, frames, tuple(sequence_names(val)), sensor)

    return _write_drives(work, progress, writer)


def simulate_argoverse2(
    out: str | Path,
    scenes: int,
    frames: int,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: EvenLidar | None = None,
    progress: Progress = iter,
) -> Path:
    """Write drives in the layout in which Argoverse 2's sensor data set is released: {train,val}/LOG/ of Feather files.

    One lidar at 10 Hz, with annotations, poses, calibration and a map of the drivable area in every log. Points are
    float16, as released.

    Args:
        out: as `simulate_kitti`.
        scenes: drives (logs), each through a street of its own.
        frames: sweeps per drive, a tenth of a second apart, all annotated.
        seed: the same seed gives the same drives.
        val_fraction: share of the drives that go to val/.
        workers: processes; each makes one drive at a time.
        sensor: the LiDAR; like a Velodyne HDL-32E if not given.
        progress: as `simulate_kitti`, one `Made` per drive.

    Raises:
        ValueError, FileExistsError, ImportError: as `simulate_kitti`.
    """
    sensor = sensor or EvenLidar()
    work = Work(Path(out), _request("argoverse2", scenes, frames, seed, val_fraction, sensor), scenes, workers)
    return _write_drives(work, progress, lambda val: Argoverse2Writer(work.out, seed, frames, tuple(val), sensor))


def simulate_once(
    out: str | Path,
    scenes: int,
    frames: int,
    seed: int = 0,
    val_fraction: float = 0.2,
    workers: int = 2,
    sensor: EvenLidar | None = None,
    progress: Progress = iter,
) -> Path:
    """Write drives in the layout in which ONCE is released: data/NNNNNN/{NNNNNN.json, lidar_roof}, and ImageSets.

    One lidar and no cameras, at 2 Hz, every frame labelled.

    Args:
        out: as `simulate_kitti`.
        scenes: drives (sequences), each through a street of its own.
        frames: per drive, half a second apart.
        seed: the same seed gives the same drives.
        val_fraction: share of the drives that are held out.
        workers: processes; each makes one drive at a time.
        sensor: the LiDAR; with 40 beams if not given.
        progress: as `simulate_kitti`, one `Made` per drive.

    Raises:
        ValueError, FileExistsError, ImportError: as `simulate_kitti`.
    """
    sensor = sensor or EvenLidar(beams=40)
    work = Work(Path(out), _request("once", scenes, frames, seed, val_fraction, sensor), scenes, workers)
    return _write_drives(work, progress, lambda val: OnceWriter(work.out, seed, frames, sensor))


def _request(layout: str, scenes: int, frames: int, seed: int, val_fraction: float, sensor: Any) -> dict[str, Any]:
    """What a folder of drives is known by."""
    asked = {"format": layout, "scenes": scenes, "frames": frames, "seed": seed, "val_fraction": val_fraction}
    return asked | {"sensor": dataclasses.asdict(sensor)}


def _write_drives(work: Work, progress: Progress, writer_of: Callable[[list[bool]], _SceneWriter]) -> Path:
    """Write all drives with the writer for those that are held out, and what it makes of them together."""
    if not work.begin():
        asked = work.request
        val = _held_out(asked["scenes"], asked["seed"], asked["val_fraction"]).tolist()
        writer = writer_of(val)
        work.run(partial(_make_scene, writer), progress)
        work.end(writer.finish(val))
    return work.out


def _make_kitti(out: Path, seed: int, sensor: SpinningLidar, index: int) -> Made:
    scene, scan = simulate_frame(seed, index, sensor)
    files = kitti.write_frame(out, f"{index:06d}", scene, scan, sensor)
    return Made(1, scan.seconds, sizes(out, files))


def _make_scene(writer: _SceneWriter, index: int) -> Made:
    scans, casting, files = writer.write_scene(index)
    return Made(scans, casting, sizes(writer.root, files))


def _make_run(writer: PlacesWriter, index: int) -> Made:
    scans, casting, files = writer.write_run(index)
    return Made(scans, casting, sizes(writer.root, files))


def _held_out(count: int, seed: int, val_fraction: float) -> np.ndarray:
    """Which frames or scenes are held out: bool [count], drawn with the seed; one at least, where there are two."""
    least = int(val_fraction > 0 and count > 1)
    order = np.random.default_rng([seed, count]).permutation(count)
    held_out = np.zeros(count, bool)
    held_out[order[: max(round(count * val_fraction), least)]] = True
    return held_out
