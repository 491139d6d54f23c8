"""A folder of one's own clouds and labels as it is on disk.

    <root>/points/<frame>.{bin,npy,pcd,ply,las,laz}      one cloud per frame
    <root>/labels/<frame>.{txt,json}                     its boxes (see `labels`)
    <root>/dataset.yaml                                  optional: what the files do not say (`Settings`)
    <root>/ImageSets/<split>.txt                         optional: frames of each split
    <root>/poses.{txt,json}  <root>/timestamps.{txt,json}  optional (see `motion`)

Files may lie in subfolders, as points/drive_1/0001.pcd with labels/drive_1/0001.txt: each subfolder is a sequence, and
its name is part of the frame id.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcdet_ext import config
from pcdet_ext.config import construct, suggest
from pcdet_ext.data.points import ONE_SCAN, SUFFIXES, XYZ, is_nuscenes_bin
from pcdet_ext.data.text import read_lines
from pcdet_ext.files import DataError, MissingFileError

POINTS, LABELS, LISTS, SETTINGS = "points", "labels", "ImageSets", "dataset.yaml"
LABEL_SUFFIXES = (".txt", ".json")
MADE_SPLITS = ("train", "val", "all")  # where there is no folder of lists
FEW_SEQUENCES = 5  # with fewer of them the made split is one of frames
MOST_SWEEPS = 400  # scans that a frame is joined of


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The content of `dataset.yaml`; a folder without the file has the defaults.

    Args:
        point_features: names of the columns of .bin files, and of .npy files without names, in their order; of other
            files the columns to be read. None: x, y, z, and intensity where the files have it.
        classes: all class names that labels may have; empty for any.
        intensity_scale: what the intensity is divided by, such as 255.
        heading_unit: of the labels.
        velocity: whether boxes have velocities (labels in JSON with `velocity: [vx, vy]`).
        max_sweeps: how many scans can be joined to a frame, its own among them; more than 1 need poses.
        val_share: share of the frames in "val" where no lists say which.

    Raises:
        ValueError: a value is outside its range.
    """

    point_features: Sequence[str] | None = None
    classes: Sequence[str] = ()
    intensity_scale: float = 1.0
    heading_unit: Literal["radians", "degrees"] = "radians"
    velocity: bool = False
    max_sweeps: int = 1
    val_share: float = 0.2

    def __post_init__(self) -> None:
        names = self.point_features
        if names is not None and (tuple(names[:3]) != XYZ or len(set(names)) < len(names)):
            raise ValueError(f"point_features must be x, y, z and then different other columns, got {list(names)}")
        if names is not None and "timestamp" in names and self.max_sweeps > 1:
            raise ValueError(
                "point_features: with several sweeps, 'timestamp' is the age of the sweep; call the column otherwise"
            )
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be different names, got {list(self.classes)}")
        if not self.intensity_scale > 0:
            raise ValueError(f"intensity_scale must be positive, got {self.intensity_scale}")
        if not 1 <= self.max_sweeps <= MOST_SWEEPS:
            raise ValueError(f"max_sweeps must lie in [1, {MOST_SWEEPS}], got {self.max_sweeps}")
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share must lie between 0 and 1, got {self.val_share}")

    @property
    def degrees(self) -> bool:
        """Whether the labels' headings are in degrees."""
        return self.heading_unit == "degrees"


def read_settings(root: Path) -> Settings:
    """The settings of a data folder. Raises ConfigError that names file and key for what is wrong in them."""
    path = root / SETTINGS
    return construct(Settings, config.load(path)) if path.exists() else Settings()


@dataclass(frozen=True)
class Folder:
    """The files of a data folder.

    clouds, labels: by frame id; foreign: how many other files lie among the clouds, by their suffix.
    """

    root: Path
    clouds: Mapping[str, Path]
    labels: Mapping[str, Path]
    foreign: Mapping[str, int]

    @property
    def frame_ids(self) -> list[str]:
        """All frames that have a cloud or a label file, in natural order (9 before 10)."""
        return sorted({*self.clouds, *self.labels}, key=natural)


def find_files(root: Path) -> Folder:
    """The clouds and label files of a data folder.

    Raises DataError when there are no clouds, or two clouds or two label files for one frame.
    """
    folder = root / POINTS
    if not folder.is_dir():
        raise MissingFileError(
            f"{root}: no data of one's own here: {folder} is missing, which holds the clouds "
            f"(FRAME{{{','.join(SUFFIXES)}}}), beside {LABELS}/FRAME.txt"
        )
    clouds, foreign = _by_frame(folder, SUFFIXES)
    if not clouds:
        others = f"; it has files {', '.join(sorted(foreign))}" if foreign else ""
        raise MissingFileError(f"{folder}: holds no point cloud ({', '.join(SUFFIXES)}){others}")
    labels, _ = _by_frame(root / LABELS, LABEL_SUFFIXES)
    return Folder(root, clouds, labels, foreign)


def _by_frame(folder: Path, suffixes: Sequence[str]) -> tuple[dict[str, Path], dict[str, int]]:
    found: dict[str, Path] = {}
    foreign: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        _check_name(path)
        if path.suffix.lower() not in suffixes:
            foreign[path.suffix] = foreign.get(path.suffix, 0) + 1
            continue
        name = frame_id_of(path, folder)
        if name in found:
            raise DataError(f"{path}: frame {name!r} has another file, {found[name].name}; one of them must go")
        found[name] = path
    return found, foreign


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="replace")
        raise DataError(f"{shown}: the name of this file is not UTF-8; rename it") from None


def frame_id_of(path: Path, folder: Path) -> str:
    """The frame id of a file: its path below `folder` without suffix, with `/` between the parts."""
    name = path.relative_to(folder).as_posix()
    suffix = ONE_SCAN if is_nuscenes_bin(name) else path.suffix
    return name[: -len(suffix)]


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their value."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts]


def sequence_of(frame_id: str) -> str:
    """The subfolder that a frame lies in, "" for none."""
    return frame_id.rpartition("/")[0]


def frames_of_split(folder: Folder, split: str, val_share: float) -> list[str]:
    """Frame ids of a split, in natural order or that of its list.

    Without a folder of lists, "train" and "val" are made: a frame is in "val" where the hash of its id, as a share of
    all hashes, is below `val_share`, so that it stays where it is when frames are added. With `FEW_SEQUENCES` sequences
    or more, whole sequences are held back in this way. "all" are all frames.

    Args:
        folder: the data folder.
        split: name of the split.
        val_share: share of the frames or sequences that are held back.

    Raises:
        DataError: the split is unknown or has no frames, or a list is damaged.
    """
    lists = folder.root / LISTS
    ids = _listed(lists, split) if lists.is_dir() else _made(folder, split, val_share)
    if not ids:
        raise DataError(f"{folder.root}: split {split!r} has no frames")
    return ids


def _listed(lists: Path, split: str) -> list[str]:
    path = lists / f"{split}.txt"
    if not path.exists():
        raise MissingFileError(f"{path}: no such split{suggest(split, (p.stem for p in lists.glob('*.txt')))}")
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), 1):
        name = line.strip()
        if name in lines:
            raise DataError(f"{path}:{number}: frame {name!r} stands in line {lines[name]} already")
        if name:
            lines[name] = number
    return list(lines)


def _made(folder: Folder, split: str, val_share: float) -> list[str]:
    if split not in MADE_SPLITS:
        raise DataError(
            f"{folder.root}: there is no folder {LISTS}, and split {split!r} is none of the made ones"
            f"{suggest(split, MADE_SPLITS)}"
        )
    ids = folder.frame_ids
    if split == "all":
        return ids
    sequences = {sequence_of(name) for name in ids}
    unit = sequence_of if len(sequences) >= FEW_SEQUENCES else str
    shares = {key: _hash_share(key) for key in map(unit, ids)}
    if len(shares) < 2:
        raise DataError(f"{folder.root}: one frame alone cannot be split into 'train' and 'val'; prepare --splits all")
    held = {key for key, share in shares.items() if share < val_share} or {min(shares, key=lambda key: shares[key])}
    if len(held) == len(shares):
        held.remove(max(shares, key=lambda key: shares[key]))
    return [name for name in ids if (unit(name) in held) == (split == "val")]


def _hash_share(name: str) -> float:
    """A number in [0, 1) that depends on a name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def check_known_class(name: str, classes: Sequence[str], where: str) -> None:
    """Hold a class against those that the settings state.

    Args:
        name: the class.
        classes: those stated; where there are none, any will do.
        where: what the message begins with.

    Raises:
        DataError: the class is not among those stated.
    """
    if classes and name not in classes:
        raise DataError(f"{where}: unknown class {name!r}{suggest(name, classes)} (classes in {SETTINGS})")
