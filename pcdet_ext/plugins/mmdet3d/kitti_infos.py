"""The files by which mmdetection3d's `KittiDataset` and `KittiMetric` find the frames of a folder in KITTI's layout.

    python -m pcdet_ext.plugins.mmdet3d.kitti_infos ROOT [--splits train val] [--width 1242 --height 375]

This writes kitti_infos_SPLIT.pkl (mmdetection3d's info version 1.1, in built-in types only), and the points that the
camera sees under training/velodyne_reduced, as mmdetection3d's tools/create_data.py does. It needs neither pictures nor
mmdetection3d's own dependencies. The database for `ObjectSample` is not written.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pcdet_ext.data.kitti.calibration import Calibration, in_image, pixels
from pcdet_ext.data.kitti.files import Frame, find_frames, read_points, write_points
from pcdet_ext.data.kitti.images import read_image_size
from pcdet_ext.data.kitti.labels import boxed, labels_to_boxes, read_labels
from pcdet_ext.evaluation.kitti_labels import DONT_CARE, Labels, difficulty, is_dont_care
from pcdet_ext.files import DataError, atomic_write
from pcdet_ext.ops import points_in_each_box
from pcdet_ext.plugins.kitti_folder import SIZE
from pcdet_ext.structures import Array

CLASSES = ("Pedestrian", "Cyclist", "Car", "Van", "Truck", "Person_sitting", "Tram", "Misc")  # by their numbers there
IGNORED = -1  # the number of regions, and of classes that mmdetection3d does not know
REDUCED = "velodyne_reduced"
UNKNOWN = -1  # the number of points of what has no box in space, and the index of a region


def write_infos(root: str | Path, splits: Sequence[str] = ("train", "val"), size: tuple[int, int] = SIZE) -> list[Path]:
    """Write the info files of splits, and the points of their frames that the camera sees.

    Args:
        root: with training/{velodyne,calib,label_2} and, for splits of one's own, ImageSets.
        splits: labelled ones, as ImageSets names them.
        size: width and height in pixels, of frames that have no picture and whose calibration does not state it.

    Returns:
        The info files.

    Raises:
        DataError: a file of a frame is missing or damaged.
        ValueError: the split "test", which has no labels.
    """
    if "test" in splits:
        raise ValueError("splits: the frames of test have no labels; name labelled splits, for example train and val")
    root, written = Path(root), []
    for split in splits:
        frames = [_info(frame, size) for frame in find_frames(root, split)]
        content = {
            "metainfo": {"categories": _categories(), "dataset": "kitti", "info_version": "1.1"},
            "data_list": frames,
        }
        written.append(root / f"kitti_infos_{split}.pkl")
        with atomic_write(written[-1]) as temporary:
            temporary.write_bytes(pickle.dumps(content))
    return written


def _categories() -> dict[str, int]:
    return {name: number for number, name in enumerate(CLASSES)} | {DONT_CARE: IGNORED}


def _info(frame: Frame, size: tuple[int, int]) -> dict[str, Any]:
    """What is known of one frame; writes its reduced points."""
    calibration = Calibration.read(frame.calibration)
    height, width = _image_size(frame, calibration) or size[::-1]
    points = read_points(frame.points)
    folder = frame.points.parent.parent / REDUCED
    folder.mkdir(exist_ok=True)
    seen = points[in_image(points, calibration.with_image_size((height, width)))]
    write_points(folder / frame.points.name, seen)
    return {
        "sample_idx": int(frame.frame_id) if frame.frame_id.isdecimal() else frame.frame_id,
        "images": _images(calibration, f"{frame.frame_id}.png", height, width),
        "lidar_points": {
            "num_pts_feats": points.shape[1],
            "lidar_path": frame.points.name,
            "Tr_velo_to_cam": _square(calibration.velo_to_cam),
        },
        "instances": _instances(read_labels(frame.labels, with_scores=False), calibration, seen),
    }


def _image_size(frame: Frame, calibration: Calibration) -> tuple[int, int] | None:
    """(height, width) where picture or calibration say it."""
    size = None if frame.image is None else read_image_size(frame.image)
    return size or calibration.known_image_size()


def _images(calibration: Calibration, name: str, height: int, width: int) -> dict[str, Any]:
    camera, lidar = np.array(_square(calibration.p2)), calibration.lidar_to_rectified
    return {
        "CAM2": {
            "img_path": name,
            "height": height,
            "width": width,
            "cam2img": camera.tolist(),
            "lidar2cam": lidar.tolist(),
            "lidar2img": (camera @ lidar).tolist(),
        },
        "R0_rect": _square(calibration.r0_rect),
    }


def _square(matrix: Array) -> list[list[float]]:
    """A matrix in the upper left of an identity [4, 4]."""
    whole = np.eye(4)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    rows: list[list[float]] = whole.tolist()
    return rows


def _instances(labels: Labels, calibration: Calibration, points: Array) -> list[dict[str, Any]]:
    """Every row of a label file; boxes in the camera's frame are (x, y, z, length, height, width, rotation_y)."""
    boxes = np.column_stack([labels.location, labels.dimensions[:, [2, 0, 1]], labels.rotation_y])
    centre = labels.location - np.array([0, 0.5, 0]) * labels.dimensions[:, :1]
    places, levels = pixels(centre, calibration.p2), difficulty(labels)
    depth = centre[:, 2] + calibration.p2[2, 3]
    inside = _points_inside(labels, calibration, points)
    return [
        {
            "bbox": labels.bbox[i].tolist(),
            "bbox_label": _number(name),
            "bbox_label_3d": _number(name),
            "bbox_3d": boxes[i].tolist(),
            "center_2d": places[i].tolist(),
            "depth": float(depth[i]),
            "truncated": float(labels.truncation[i]),
            "occluded": int(labels.occlusion[i]),
            "alpha": float(labels.alpha[i]),
            "score": 0.0,
            "index": UNKNOWN if is_dont_care(name) else i,
            "group_id": i,
            "difficulty": int(levels[i]),
            "num_lidar_pts": inside[i],
        }
        for i, name in enumerate(labels.names)
    ]


def _number(name: str) -> int:
    return CLASSES.index(name) if name in CLASSES else IGNORED


def _points_inside(labels: Labels, calibration: Calibration, points: Array) -> list[int]:
    """How many points each row's box holds; rows without a box have -1."""
    boxes = torch.as_tensor(labels_to_boxes(labels, calibration).boxes)
    counts = iter(points_in_each_box(torch.as_tensor(points), boxes).sum(1).tolist())
    solid = [len(boxed(labels.select(np.array([row])))) > 0 for row in range(len(labels))]
    return [next(counts) if there else UNKNOWN for there in solid]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the top of the module."""
    parser = argparse.ArgumentParser("python -m pcdet_ext.plugins.mmdet3d.kitti_infos", description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--splits", nargs="+", default=["train", "val"])
    parser.add_argument("--width", type=int, default=SIZE[0])
    parser.add_argument("--height", type=int, default=SIZE[1])
    options = parser.parse_args(arguments)
    try:
        written = write_infos(options.root, options.splits, (options.width, options.height))
    except (DataError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    for path in written:
        print(path)


if __name__ == "__main__":
    main()
