"""Ground truth and results of the Waymo Open Dataset in any of the files that they come in."""

from __future__ import annotations

import logging
from pathlib import Path

from pcdet_ext.evaluation.waymo_boxes import COLUMNS, Boxes, Name, joined, read_boxes
from pcdet_ext.evaluation.waymo_messages import read_objects
from pcdet_ext.files import DataError, MissingFileError

SPLITS = ("validation", "training")  # those with labels; the first that is there is meant
FRAMES = "vehicle_pose"  # a component that has every frame, also one without an object

_log = logging.getLogger(__name__)


def read_truth(path: str | Path) -> tuple[Boxes, set[Name] | None]:
    """Labelled boxes, and the frames that there are, or None where the files do not say.

    path: a folder of Parquet components, that of a split or one with `validation` or `training` in it; or a file, see
    `read_side`. Raises DataError naming what is missing or damaged.
    """
    path = Path(path)
    if not path.is_dir():
        return read_side(path, scores=False), None
    folder = next((f for f in (path, *(path / split for split in SPLITS)) if (f / "lidar_box").is_dir()), None)
    files = sorted((folder / "lidar_box").glob("*.parquet")) if folder is not None else []
    if not files:
        raise MissingFileError(f"{path}: no labels here (lidar_box/*.parquet)")
    boxes = joined([read_boxes(file, scores=False) for file in files])
    return boxes, {name for file in files for name in _frames(file.parent.parent / FRAMES / file.name)}


def read_side(path: str | Path, scores: bool) -> Boxes:
    """Boxes of a Parquet file or an `Objects` message; scores: whether they must have some. Raises DataError."""
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name a file of results (.parquet or .bin)")
    readers = {".parquet": read_boxes, ".bin": read_objects}
    if path.suffix not in readers:
        raise DataError(f"{path}: must be a Parquet file (.parquet) or an Objects message (.bin)")
    found = readers[path.suffix](path, scores)
    if scores and not len(found):
        _log.warning("%s: holds no box: nothing was found in any frame", path)
    return found


def _frames(path: Path) -> list[Name]:
    """The frames of a segment."""
    import pyarrow as pa
    from pyarrow import parquet

    names = [COLUMNS["context"][0], COLUMNS["time"][0]]
    try:
        table = parquet.ParquetFile(path, memory_map=True).read(columns=names, use_threads=False)
        columns = [table[name].to_pylist() for name in names]
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file, the component {FRAMES} is missing") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{path}: damaged, or no component {FRAMES} ({error})") from error
    return list(zip(*columns, strict=True))
