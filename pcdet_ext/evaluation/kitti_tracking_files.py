"""Files of the KITTI tracking benchmark: rows of boxes with track ids, and the list of sequences."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_ext.files import DataError, MissingFileError, paused_collection
from pcdet_ext.structures import Array

TYPES = ("car", "van", "truck", "pedestrian", "person", "cyclist", "tram", "misc", "dontcare")
DONT_CARE = "dontcare"
LONGEST = 1_000_000  # frames of a sequence, a day at ten a second
COLUMNS = 17  # frame, track id, type, truncated, occluded, alpha, box, size, place, ry; a score may follow
TYPE_COLUMN = 2
USED = {"frame": 0, "track id": 1, "truncated": 3, "occluded": 4, "x1": 6, "y1": 7, "x2": 8, "y2": 9}


@dataclass(frozen=True, eq=False)
class TrackRows:
    """Boxes of one sequence on one side, in the order of the file.

    path: of the file; frame, track: int64 [N]; kind: lower-case type of each, unicode [N]; truncation, occlusion:
    float64 [N]; box: float64 [N, 4] (x1, y1, x2, y2) pixels.
    """

    path: Path
    frame: Array
    track: Array
    kind: Array
    truncation: Array
    occlusion: Array
    box: Array

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, keep: Array) -> TrackRows:
        """The rows that `keep` (bool [N] or int64 [K]) picks."""
        columns = (self.frame, self.track, self.kind, self.truncation, self.occlusion, self.box)
        return TrackRows(self.path, *(column[keep] for column in columns))


@paused_collection()
def read_rows(path: Path, frames: int) -> TrackRows:
    """Boxes of a label or result file (.txt, or compressed as .txt.gz).

    Boxes with negative track ids are left out, except DontCare regions. A score at the end of a line is not used, but
    must be a number.

    Args:
        path: of the file.
        frames: how many frames the sequence has.

    Raises:
        MissingFileError: there is no such file.
        DataError: a line has the wrong number of columns, something that is no finite number, a frame that is not in
            the sequence, or an unknown type; the message names the file and the line.
    """
    lines = [(number, line.split()) for number, line in enumerate(_lines(path), 1) if line.strip()]
    for number, fields in lines:
        if len(fields) not in (COLUMNS, COLUMNS + 1):
            raise DataError(f"{path}:{number}: expected {COLUMNS} columns, and maybe a score, got {len(fields)}")
    values = _values(path, lines)
    numbers = np.array([number for number, _ in lines], np.int64)
    for name, column in USED.items():
        wrong = ~np.isfinite(values[:, column])
        if name in ("frame", "track id"):
            wrong |= np.mod(values[:, column], 1, where=~wrong, out=np.zeros(len(values))) != 0
            wrong |= np.abs(values[:, column]) > 2**53
        for i in np.flatnonzero(wrong):
            raise DataError(f"{path}:{numbers[i]}: {name} is {lines[i][1][column]!r}, expected a number")
    frame, track = values[:, 0].astype(np.int64), values[:, 1].astype(np.int64)
    for i in np.flatnonzero((frame < 0) | (frame >= frames)):
        raise DataError(f"{path}:{numbers[i]}: frame {frame[i]} is not in the sequence, which has {frames} frames")
    kind = np.array([fields[TYPE_COLUMN].lower() for _, fields in lines], np.str_)
    keep = (track >= 0) | (kind == DONT_CARE)
    for i in np.flatnonzero(keep & ~np.isin(kind, TYPES)):
        raise DataError(f"{path}:{numbers[i]}: unknown type {lines[i][1][TYPE_COLUMN]!r}; known: {', '.join(TYPES)}")
    return TrackRows(path, frame, track, kind, values[:, 3], values[:, 4], values[:, 6:10]).select(keep)


def _values(path: Path, lines: list[tuple[int, list[str]]]) -> Array:
    """float64 [N, 17]; the column of the type is 0."""
    rows = [[*fields[:TYPE_COLUMN], "0", *fields[TYPE_COLUMN + 1 :]] for _, fields in lines]
    try:
        return np.array([list(map(float, row))[:COLUMNS] for row in rows], np.float64).reshape(len(rows), COLUMNS)
    except ValueError:
        for (number, _), row in zip(lines, rows, strict=True):
            for column, text in enumerate(row):
                _check_number(f"{path}:{number}", column + 1, text)
        raise


def _check_number(where: str, column: int, text: str) -> None:
    try:
        float(text)
    except ValueError:
        raise DataError(f"{where}: column {column} is {text!r}, expected a number") from None


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8").splitlines()
    except (FileNotFoundError, IsADirectoryError):
        raise MissingFileError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: damaged ({error})") from error


def read_sequence_map(path: Path) -> dict[str, int]:
    """How many frames each sequence has, from lines "NAME empty FIRST FRAMES" (evaluate_tracking.seqmap.*).

    Raises DataError, which names the file and the line, for lines of another form and for a sequence named twice.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) < 4 or not (fields[3].isascii() and fields[3].isdecimal()):
            raise DataError(f"{path}:{number}: expected 'NAME empty FIRST_FRAME FRAMES', got {line.strip()!r}")
        name = fields[0]
        if Path(name).name != name or name in found:
            raise DataError(f"{path}:{number}: {'names ' + name + ' twice' if name in found else name + ' is no name'}")
        if len(fields[3].lstrip("0")) > len(str(LONGEST)) or int(fields[3]) > LONGEST:
            raise DataError(f"{path}:{number}: a sequence has at most {LONGEST} frames, got {fields[3]:.40}")
        found[name] = int(fields[3])
    if not found:
        raise DataError(f"{path}: names no sequence")
    return found


def find_sequence_map(folder: Path) -> Path:
    """The only evaluate_tracking.seqmap* of a folder. Raises DataError where there is none, or more than one."""
    found = sorted(folder.glob("evaluate_tracking.seqmap*")) if folder.is_dir() else []
    if len(found) != 1:
        several = f"{', '.join(p.name for p in found)}: choose one with" if found else "has no such file; name one with"
        raise DataError(f"{folder}: evaluate_tracking.seqmap*: {several} sequence_map=FILE")
    return found[0]


def sequence_file(folder: Path, name: str) -> Path:
    """The file of a sequence in the folder or in the one inside that holds the files, compressed or not."""
    places = [folder / inner / f"{name}.txt{end}" for inner in ("", "label_02", "data") for end in ("", ".gz")]
    for place in places:
        if place.is_file():
            return place
    raise MissingFileError(f"{places[0]}: no such file, nor {name}.txt.gz, nor one in label_02/ or data/")
