"""A folder that a simulation is written to: piece by piece, side by side in processes, and taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcdet_ext.data.simulation.manifest import Manifest, sizes
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
    "once": 1_000,
}
VERSION = 6  # raise it when the same seed gives other frames


@dataclass(frozen=True)
class Made:
    """What one piece of work gave: scans written (0: it was there already), and what ray-casting took.

    casting: seconds of processor time; files: bytes of each file that was written, by its path in the folder.
    """

    scans: int
    casting: float
    files: Mapping[str, int] = field(default_factory=dict)


Progress = Callable[[Iterator[Made]], Iterator[Made]]


@dataclass(frozen=True)
class Work:
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
        """Make the pieces that are not there, whole and ready; side by side where there are several workers.

        Args:
            make: makes the piece of a number.
            progress: is given what was made, as it is done, and passes it on.
            ready: whether a piece that is whole can be used as it is.
        """
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
