"""Preparation of a data set: an index of its frames, and a database of its objects for ground-truth sampling.

Everything is written under one folder, `<root>/pcdet_ext` unless told otherwise: `index_<split>.json`, and for each
database split `database_<split>/` with `database.json` and per class the points of all objects in one .npy file.
No file holds pickled objects.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pcdet_ext.data.files import DataError, atomic_write
from pcdet_ext.data.formats import kitti
from pcdet_ext.data.geometry import inside_boxes
from pcdet_ext.structures import Array, Boxes

FORMAT = 1  # of the files written here; a reader takes no other
FOLDER = "pcdet_ext"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameInfo:
    """What the index tells of one frame.

    num_points: rows in the point file; dropped: how many of them are not finite; boxes: [M][7] LiDAR frame, or None for
    a frame without labels; names, difficulty, points_in_box: a value each box.
    """

    frame_id: str
    folder: str
    num_points: int
    dropped: int
    image_size: tuple[int, int]
    boxes: list[list[float]] | None = None
    names: list[str] = field(default_factory=list)
    difficulty: list[int] = field(default_factory=list)
    points_in_box: list[int] = field(default_factory=list)

    def to_boxes(self) -> Boxes | None:
        """The labelled boxes, None where the frame has no labels."""
        if self.boxes is None:
            return None
        boxes = np.array(self.boxes, np.float32).reshape(-1, 7)
        columns = (np.array(column, np.int64) for column in (self.difficulty, self.points_in_box))
        return Boxes(boxes, tuple(self.names), *columns)


@dataclass(frozen=True)
class Objects:
    """All objects of one class in a database.

    boxes: float32 [M, 7]; difficulty: int64 [M]; frame_ids: [M]; points: float32 [P, F] relative to the box centre, not
    turned; object m has points[offsets[m] : offsets[m + 1]].
    """

    boxes: Array
    difficulty: Array
    frame_ids: tuple[str, ...]
    offsets: Array
    points: Array

    def __len__(self) -> int:
        return len(self.boxes)

    def points_of(self, index: int) -> Array:
        """Points of one object [K, F], relative to its box centre."""
        return np.asarray(self.points[self.offsets[index] : self.offsets[index + 1]])


@dataclass(frozen=True)
class Summary:
    """What a preparation did: frames and objects by class of a split, and the frames left out with the reason."""

    split: str
    frames: int
    objects: dict[str, int]
    dropped_points: int
    skipped: list[str]


def prepare_kitti(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    database: Sequence[str] = ("train",),
    out: str | Path | None = None,
    workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = True,
) -> list[Summary]:
    """Index the splits of a KITTI-format folder, and build the object databases of those that `database` names.

    out: folder to write to, `<root>/pcdet_ext` when None. workers: processes, 0 for none but this one.
    Raises DataError naming the file of a damaged frame; with on_error "skip" such frames are left out and logged.
    """
    out = Path(out) if out else Path(root) / FOLDER
    summaries = []
    for split in splits:
        frames = kitti.find_frames(root, split)
        read = partial(_read_frame, on_error=on_error, cut=split in database)
        results = list(_run(read, frames, workers, f"kitti {split}", progress))
        infos = [info for info, _, _ in results if info]
        skipped = [error for _, _, error in results if error]
        write_index(index_path(out, split), infos)
        if split in database:
            write_database(database_path(out, split), ((i, clouds) for i, clouds, _ in results if i))
        summaries.append(_summary(split, infos, skipped))
    return summaries


def index_path(folder: str | Path, split: str) -> Path:
    """Index file of a split in a preparation folder."""
    return Path(folder) / f"index_{split}.json"


def database_path(folder: str | Path, split: str) -> Path:
    """Object database of a split in a preparation folder."""
    return Path(folder) / f"database_{split}"


def write_index(path: Path, infos: Sequence[FrameInfo]) -> None:
    """Write an index, a line for each frame, atomically."""
    lines = ",\n".join(json.dumps(asdict(info)) for info in infos)
    with atomic_write(path) as temporary:
        temporary.write_text(f'{{"format": {FORMAT}, "frames": [\n{lines}\n]}}\n', encoding="utf-8")


def read_index(path: Path) -> list[FrameInfo]:
    """Read an index. Raises DataError when it is missing, damaged, or of another format."""
    content = _read_json(path, "frames")
    try:
        return [FrameInfo(**{**entry, "image_size": tuple(entry["image_size"])}) for entry in content]
    except (TypeError, KeyError) as error:
        raise DataError(f"{path}: damaged index ({error})") from error


def write_database(folder: Path, frames: Iterator[tuple[FrameInfo, list[Array]]]) -> None:
    """Write the objects of frames, given as (frame, point cloud of each box relative to its centre).

    `database.json` is written last: while it is missing or old, the rest is not looked at.
    """
    objects: dict[str, list[tuple[FrameInfo, int, Array]]] = {}
    for info, clouds in frames:
        for i, cloud in enumerate(clouds):
            objects.setdefault(info.names[i], []).append((info, i, cloud))
    listed = {}
    for number, name in enumerate(sorted(objects)):
        rows = objects[name]
        clouds = [cloud for _, _, cloud in rows]
        points_file = f"class_{number}.npy"
        with atomic_write(folder / points_file) as temporary:
            np.save(temporary, np.concatenate(clouds), allow_pickle=False)
        listed[name] = {
            "points": points_file,
            "boxes": [info.boxes[i] for info, i, _ in rows],
            "difficulty": [info.difficulty[i] for info, i, _ in rows],
            "frame_ids": [info.frame_id for info, _, _ in rows],
            "offsets": np.cumsum([0, *map(len, clouds)]).tolist(),
        }
    with atomic_write(folder / "database.json") as temporary:
        temporary.write_text(json.dumps({"format": FORMAT, "classes": listed}), encoding="utf-8")


def read_database(folder: Path) -> dict[str, Objects]:
    """Objects of each class; points stay on disk until they are used (memory-mapped, shared by all processes).

    Raises DataError when the database is missing or damaged.
    """
    path = folder / "database.json"
    return {name: _read_objects(folder, name, entry) for name, entry in _read_json(path, "classes").items()}


def _read_objects(folder: Path, name: str, entry: dict[str, Any]) -> Objects:
    path = folder / entry["points"]
    try:
        points = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged object points ({error})") from error
    boxes = np.array(entry["boxes"], np.float32).reshape(-1, 7)
    offsets = np.array(entry["offsets"], np.int64)
    if len(offsets) != len(boxes) + 1 or offsets[-1] != len(points):
        raise DataError(f"{folder / 'database.json'}: {name} does not fit {path.name}; prepare the data again")
    return Objects(boxes, np.array(entry["difficulty"], np.int64), tuple(entry["frame_ids"]), offsets, points)


def _read_json(path: Path, key: str) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file; make it with: python tools/prepare_data.py kitti --root DIR (and --out "
            f"{path.parent} when the data folder is read-only)"
        ) from None
    except ValueError as error:
        raise DataError(f"{path}: damaged ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or key not in content:
        raise DataError(f"{path}: not of this version's format {FORMAT}; prepare the data again")
    return content[key]


def _read_frame(frame: kitti.Frame, on_error: str, cut: bool) -> tuple[FrameInfo | None, list[Array], str | None]:
    """Index entry, object clouds (when `cut`) and, for a damaged frame that is skipped, the error."""
    try:
        return *_index_frame(frame, cut), None
    except (DataError, OSError) as error:
        if on_error == "raise":
            raise
        return None, [], str(error)


def _index_frame(frame: kitti.Frame, cut: bool) -> tuple[FrameInfo, list[Array]]:
    points = kitti.read_points(frame.points)
    finite = np.isfinite(points).all(axis=1)
    calibration = kitti.Calibration.read(frame.calibration)
    info = FrameInfo(frame.frame_id, frame.folder, len(points), int((~finite).sum()), frame.image_size())
    if frame.folder == "testing":
        return info, []
    boxes = kitti.labels_to_boxes(kitti.read_labels(frame.labels, with_scores=False), calibration)
    points = points[finite]
    inside = inside_boxes(points, boxes.boxes)
    labelled = replace(
        info,
        boxes=boxes.boxes.tolist(),
        names=list(boxes.names),
        difficulty=boxes.difficulty.tolist(),
        points_in_box=inside.sum(axis=1).tolist(),
    )
    return labelled, [
        _relative(points[mask], box) for mask, box in zip(inside, boxes.boxes, strict=True)
    ] if cut else []


def _relative(points: Array, box: Array) -> Array:
    points = points.copy()
    points[:, :3] -= box[:3]
    return points


def _run(read: Callable, frames: Sequence[kitti.Frame], workers: int, title: str, progress: bool) -> Iterator:
    """Results of `read` for each frame, in order, with a progress bar on standard error."""
    from tqdm import tqdm

    bar = partial(tqdm, total=len(frames), desc=title, unit="frame", disable=not progress)
    if workers == 0:
        yield from bar(map(read, frames))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from bar(pool.map(read, frames, chunksize=4))


def _summary(split: str, infos: Sequence[FrameInfo], skipped: list[str]) -> Summary:
    for error in skipped:
        _log.warning("frame left out: %s", error)
    objects = Counter(name for info in infos for name in info.names)
    return Summary(split, len(infos), dict(objects), sum(info.dropped for info in infos), skipped)
