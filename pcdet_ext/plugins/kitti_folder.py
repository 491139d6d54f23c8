"""Complete a folder in KITTI's layout as OpenPCDet and mmdetection3d expect it, for data without pictures.

python -m pcdet_ext.plugins.kitti_folder ROOT [--width 1242 --height 375]

Both read the size of images from picture files, and want a split for testing. Where there are no pictures, blank ones
of the given size do. OpenPCDet cannot read a label file without any row, nor one whose rows DontCare are not the last,
as they are in KITTI: such files are rewritten. Nothing else that is there is changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pcdet_ext.data.text import read_lines
from pcdet_ext.files import DataError, atomic_write

NOTHING = "DontCare -1 -1 -10 0 0 1 1 -1 -1 -1 -1000 -1000 -1000 -10"  # a row that no metric counts
SIZE = (1242, 375)  # of most pictures of KITTI, width and height


def complete(root: str | Path, size: tuple[int, int] = SIZE) -> int:
    """Write blank pictures for frames of `training` that have none, and lists and folders that are missing.

    Args:
        root: with training/calib and ImageSets.
        size: of the pictures, width and height in pixels.

    Returns:
        The number of pictures written.

    Raises:
        DataError: the folder is not in KITTI's layout.
    """
    root = Path(root)
    calibrations = sorted((root / "training" / "calib").glob("*.txt"))
    if not calibrations or not (root / "ImageSets").is_dir():
        raise DataError(f"{root}: not in KITTI's layout, which has training/calib/*.txt and ImageSets")
    pictures = root / "training" / "image_2"
    pictures.mkdir(exist_ok=True)
    missing = [pictures / f"{path.stem}.png" for path in calibrations]
    missing = [path for path in missing if not path.exists() and not path.with_suffix(".jpg").exists()]
    for path in missing:
        Image.new("L", size).save(path)
    for path in (root / "training" / "label_2").glob("*.txt"):
        _order_labels(path)
    _write_lists(root / "ImageSets")
    for part in ("velodyne", "calib", "image_2"):
        (root / "testing" / part).mkdir(parents=True, exist_ok=True)
    return len(missing)


def as_kitti_writes(rows: Sequence[str]) -> list[str]:
    """The rows of a label file with those of DontCare behind the others, and at least one; empty ones are left out."""
    filled = [row for row in rows if row.strip()]
    return sorted(filled, key=lambda row: row.split()[0].lower() == "dontcare") or [NOTHING]


def _order_labels(path: Path) -> None:
    rows = read_lines(path)
    ordered = as_kitti_writes(rows)
    if ordered != rows:
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{row}\n" for row in ordered), encoding="utf-8")


def _write_lists(folder: Path) -> None:
    """The frames of `trainval`, and of `test`: none."""
    names = []
    for split in ("train", "val"):
        path = folder / f"{split}.txt"
        names += path.read_text(encoding="utf-8").split() if path.is_file() else []
    content = {"trainval": sorted(names), "test": []}
    for split, frames in content.items():
        path = folder / f"{split}.txt"
        if not path.exists():
            path.write_text("".join(f"{name}\n" for name in frames), encoding="utf-8")


def main() -> None:
    """The command; see the top of the module."""
    parser = argparse.ArgumentParser("python -m pcdet_ext.plugins.kitti_folder", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--width", type=int, default=SIZE[0])
    parser.add_argument("--height", type=int, default=SIZE[1])
    options = parser.parse_args()
    try:
        count = complete(options.root, (options.width, options.height))
    except (DataError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{options.root}: {count} blank pictures")


if __name__ == "__main__":
    main()
