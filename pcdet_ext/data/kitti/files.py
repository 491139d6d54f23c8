"""The KITTI object-detection layout as it is on disk (Geiger et al., CVPR 2012).

    <root>/training/{velodyne/ID.bin, label_2/ID.txt, calib/ID.txt, image_2/ID.png}   <root>/ImageSets/<split>.txt

`testing/` has the same folders without labels; image_2 is optional, and any kind of image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pcdet_ext.config import suggest
from pcdet_ext.data.kitti.calibration import Calibration
from pcdet_ext.data.points import read_bin
from pcdet_ext.data.text import read_lines
from pcdet_ext.evaluation.kitti_labels import Labels, write_labels
from pcdet_ext.files import DataError, MissingFileError, atomic_write
from pcdet_ext.structures import Array

POINT_FEATURES = ("x", "y", "z", "intensity")  # columns of the velodyne files
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp")
VAL_SHARE = 0.2  # of the frames, in the split made where there is no ImageSets folder


def read_points(path: str | Path) -> Array:
    """Points float32 [N, 4] (x, y, z, reflectance) of a velodyne file. Raises DataError when it is cut short."""
    return read_bin(path, columns=len(POINT_FEATURES))


def write_points(path: str | Path, points: Array) -> None:
    """Write points [N, 4] as a velodyne file."""
    if points.ndim != 2 or points.shape[1] != 4:
        raise ValueError(f"points must be [N, 4], got {list(points.shape)}")
    with atomic_write(path) as temporary:
        points.astype("<f4").tofile(temporary)


@dataclass(frozen=True)
class Frame:
    """Where the files of one frame lie, whether they exist or not; `image`: its image, None where there is none."""

    root: Path
    frame_id: str
    folder: str = "training"
    image: Path | None = None

    @property
    def points(self) -> Path:
        """The velodyne file."""
        return self._file("velodyne", ".bin")

    @property
    def labels(self) -> Path:
        """The label_2 file."""
        return self._file("label_2", ".txt")

    @property
    def calibration(self) -> Path:
        """The calib file."""
        return self._file("calib", ".txt")

    def _file(self, kind: str, suffix: str) -> Path:
        return self.root / self.folder / kind / f"{self.frame_id}{suffix}"


def find_frames(root: str | Path, split: str, seed: int = 0) -> list[Frame]:
    """The frames of a split: those in ImageSets/<split>.txt, or without that folder of a seeded split.

    The made split knows "train", "val" (one frame in five) and "trainval" of training/, and "test", all of testing/.

    Args:
        root: the data folder.
        split: name of the split.
        seed: of the made split.

    Raises:
        DataError: the root, the split or all frames are missing, or the list is damaged.
    """
    root = Path(root)
    folder = "testing" if split == "test" else "training"
    if not (root / folder / "velodyne").is_dir():
        raise MissingFileError(f"{root}: no KITTI data here, {folder}/velodyne is missing")
    lists = root / "ImageSets"
    ids = _listed_ids(lists, split) if lists.is_dir() else _made_split(root / folder / "velodyne", split, seed)
    if not ids:
        raise DataError(f"{root}: split {split!r} has no frames")
    images = _images(root / folder / "image_2")
    return [Frame(root, frame_id, folder, images.get(frame_id)) for frame_id in ids]


def write_frame(root: str | Path, frame_id: str, points: Array, labels: Labels, calibration: Calibration) -> None:
    """Write one labelled frame; the points come last, so that a frame with points is complete.

    Args:
        root: the data folder; the frame goes to training/ below it.
        frame_id: of the frame, which names the files.
        points: float32 [N, 4] (x, y, z, intensity), in metres.
        labels: in the camera's frame; scores are left out.
        calibration: between sensor and camera.
    """
    frame = Frame(Path(root), frame_id)
    calibration.write(frame.calibration)
    write_labels(frame.labels, labels if labels.scores is None else replace(labels, scores=None))
    write_points(frame.points, points)


def _images(folder: Path) -> dict[str, Path]:
    """The image of each frame id; where several files have one, that with a usual ending."""
    files = sorted(folder.glob("*.*"), key=lambda path: (path.suffix.lower() not in IMAGE_SUFFIXES, path.name))
    return {path.stem: path for path in reversed(files)}


def _listed_ids(lists: Path, split: str) -> list[str]:
    path = lists / f"{split}.txt"
    if not path.exists():
        raise MissingFileError(f"{path}: no such split{suggest(split, (p.stem for p in lists.glob('*.txt')))}")
    ids = [line.strip() for line in read_lines(path) if line.strip()]
    for frame_id in ids:
        if Path(frame_id).name != frame_id:
            raise DataError(f"{path}: {frame_id!r} is no frame id")
    return ids


def _made_split(velodyne: Path, split: str, seed: int) -> list[str]:
    ids = sorted(path.stem for path in velodyne.glob("*.bin"))
    if split in ("trainval", "test"):
        return ids
    if split not in ("train", "val"):
        raise DataError(
            f"{velodyne.parent.parent}: no ImageSets folder, and split {split!r} is none of the made ones"
            f"{suggest(split, ('train', 'val', 'trainval', 'test'))}"
        )
    order = np.random.default_rng(seed).permutation(len(ids))
    count = min(max(round(VAL_SHARE * len(ids)), 1), len(ids) - 1) if len(ids) > 1 else 0
    chosen = order[:count] if split == "val" else order[count:]
    return [ids[i] for i in sorted(chosen)]
