"""Simulated data sets: frames from seeds, side by side in processes, in a format's layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_ext.data.simulation import kitti
from pcdet_ext.data.simulation.argoverse2 import Argoverse2Writer
from pcdet_ext.data.simulation.manifest import Manifest, sizes
from pcdet_ext.data.simulation.nuscenes import PARTS, NuScenesWriter, scene_names
from pcdet_ext.data.simulation.places import PlacesWriter
from pcdet_ext.data.simulation.revisits import AerialLidar
from pcdet_ext.data.simulation.scene import Scene
from pcdet_ext.data.simulation.semantickitti import SemanticKittiWriter, sequence_names
from pcdet_ext.data.simulation.sensor import EvenLidar, Scan, SpinningLidar
from pcdet_ext.data.simulation.streets import street_scene
from pcdet_ext.data.simulation.waymo import WaymoLasers, WaymoWriter
from pcdet_ext.data.workers import run_in_processes
from pcdet_ext.files import DataError, atomic_write, check_output_folder

STAMP = "simulation.json"  # written last: the folder is complete
STARTED = "simulation.started.json"  # written first, and gone at the end: the folder is ours to write into
COMMON = "common"  # the piece of work that is done at the end, from all others
AHEAD = 2  # pieces per process that are begun before they are counted
MOST_SCENES = 10_000
# Ids of six digits; drives of 500 seconds; streets of 10 km, which is how far they are apart.
MOST_FRAMES = {
    "kitti": 1_000_000,
    "nuscenes": 1_000,
    "waymo": 5_000,
    "places": 2_000,
    "semantickitti": 5_000,
    "argoverse2": 5_000,
}
MOST_RUNS = 100
SPACING = 5.0  # metres between frames of a run through a street
VERSION = 5  # raise it when the same seed gives other frames
NUSCENES_VERSIONS = ("v1.0-mini", "v1.0-trainval")


@dataclass(frozen=True)
class Made:
    """What one piece of work gave: scans written (0: it was there already), and what ray-casting took.

    casting: seconds of processor time; files: bytes of each file that was written, by its path in the folder.
    """

    scans: int
    casting: float
    files: Mapping[str, int] = field(default_factory=dict)


_SceneWriter = NuScenesWriter | WaymoWriter | SemanticKittiWriter | Argoverse2Writer
Progress = Callable[[Iterator[Made]], Iterator[Made]]


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
    request = {"format": "nuscenes", "scenes": scenes, "frames": frames, "seed": seed, "val_fraction": val_fraction}
    request |= {"tables": version, "sensor": dataclasses.asdict(sensor), "labels": ["boxes", "map", "occupancy"]}
    work = _Work(Path(out), request, scenes, workers)
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
    request = {"format": "waymo", "scenes": scenes, "frames": frames, "seed": seed, "val_fraction": val_fraction}
    work = _Work(Path(out), request | {"sensor": dataclasses.asdict(sensor)}, scenes, workers)
    if work.begin():
        return work.out
    val = tuple(_held_out(scenes, seed, val_fraction).tolist())
    work.run(partial(_make_scene, WaymoWriter(work.out, seed, frames, val, sensor)), progress)
    return work.end([])


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
    request = {"format": "places", "scenes": scenes, "frames": frames, "runs": runs, "seed": seed}
    request |= {"val_fraction": val_fraction, "sensor": dataclasses.asdict(sensor)}
    work = _Work(Path(out), request | {"aerial": dataclasses.asdict(aerial)}, scenes * runs, workers)
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
    request = {"format": "semantickitti", "scenes": scenes, "frames": frames, "seed": seed}
    request |= {"val_fraction": val_fraction, "sensor": dataclasses.asdict(sensor)}
    work = _Work(Path(out), request, scenes, workers)
    if work.begin():
        return work.out
    val = _held_out(scenes, seed, val_fraction).tolist()
    writer = SemanticKittiWriter(work.out, seed, frames, tuple(sequence_names(val)), sensor)
    work.run(partial(_make_scene, writer), progress)
    return work.end(writer.finish(val))


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
    request = {"format": "argoverse2", "scenes": scenes, "frames": frames, "seed": seed}
    request |= {"val_fraction": val_fraction, "sensor": dataclasses.asdict(sensor)}
    work = _Work(Path(out), request, scenes, workers)
    if work.begin():
        return work.out
    val = tuple(_held_out(scenes, seed, val_fraction).tolist())
    work.run(partial(_make_scene, Argoverse2Writer(work.out, seed, frames, val, sensor)), progress)
    return work.end([])


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
        for name, most in {"scenes": MOST_SCENES, "frames": MOST_FRAMES[asked["format"]]}.items():
            if asked.get(name, 0) > most:
                raise ValueError(f"{name} must be at most {most} for {asked['format']}, got {asked[name]}")
        if asked["frames"] < 1 or self.workers < 1 or not 0 <= asked["val_fraction"] <= 1:
            raise ValueError(
                "frames and workers must be positive and val_fraction in [0, 1]: "
                f"{asked['frames']}, {self.workers}, {asked['val_fraction']}"
            )
        check_output_folder(self.out)

    def begin(self) -> bool:
        """Make the folder ours; says whether it holds exactly this already, and whole.

        Data without a stamp of ours may be somebody's recordings, and are never written over.
        """
        done = False
        if self.out.exists() and any(self.out.iterdir()):
            done = self._is_stamped()
            manifest = Manifest(self.out)
            pieces = [*map(str, range(self.pieces)), COMMON]
            if done and (not manifest.known or all(map(manifest.intact, pieces))):
                return True  # without a list of its files the folder is of an earlier version, and can only be trusted
        _write_json(self.out / STARTED, {"version": VERSION} | self.request)
        (self.out / STAMP).unlink(missing_ok=True)
        return False

    def _is_stamped(self) -> bool:
        """Whether a simulation of this request was finished here. Raises FileExistsError for anything else."""
        for name, done in ((STAMP, True), (STARTED, False)):
            if (self.out / name).exists():
                if _read_json(self.out / name) == json.loads(json.dumps({"version": VERSION} | self.request)):
                    return done
                raise FileExistsError(
                    f"{self.out}: holds another simulation (see {name}); name a new folder or remove it"
                )
        found = min(p.name for p in self.out.iterdir())
        raise FileExistsError(f"{self.out}: not empty and no simulation of ours ({found} is there)")

    def run(
        self, make: Callable[[int], Made], progress: Progress, ready: Callable[[int], bool] = lambda index: True
    ) -> None:
        """Make the pieces that are not there, whole, and `ready`; side by side where there are several workers."""
        for _ in progress(self._made(make, ready)):
            pass

    def _made(self, make: Callable[[int], Made], ready: Callable[[int], bool]) -> Iterator[Made]:
        manifest = Manifest(self.out)
        manifest.write()
        missing = [i for i in range(self.pieces) if not (ready(i) and manifest.intact(str(i)))]
        yield from (Made(0, 0.0) for _ in range(self.pieces - len(missing)))
        alone = self.workers == 1
        results = map(make, missing) if alone else run_in_processes(make, missing, self.workers, AHEAD)
        for index, made in zip(missing, results, strict=True):
            manifest.add(str(index), made.files)
            yield made

    def end(self, common: Iterable[Path], without: str = "") -> Path:
        """Say that the folder is complete; returns it.

        common: files that were made from all pieces; without: a folder that is gone again.
        """
        manifest = Manifest(self.out)
        manifest.add(COMMON, sizes(self.out, common))
        manifest.write(without)
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
