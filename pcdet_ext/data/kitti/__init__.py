"""The KITTI object-detection layout: its files, a data set of its frames, their preparation and their metric."""

from pcdet_ext.data.kitti.benchmark import evaluate_folders
from pcdet_ext.data.kitti.calibration import Calibration, in_image
from pcdet_ext.data.kitti.dataset import KittiDataset
from pcdet_ext.data.kitti.files import (
    POINT_FEATURES,
    Frame,
    find_frames,
    read_points,
    write_frame,
    write_points,
)
from pcdet_ext.data.kitti.images import read_image_size
from pcdet_ext.data.kitti.labels import (
    NEAR,
    boxed,
    boxes_to_labels,
    camera_corners,
    clip_to_image,
    image_boxes,
    labels_to_boxes,
    read_labels,
    result_rows,
)
from pcdet_ext.data.kitti.prepare import KittiFrames, prepare_kitti
from pcdet_ext.evaluation.kitti_labels import DONT_CARE, Labels, difficulty, is_dont_care, write_labels

__all__ = [
    "DONT_CARE",
    "NEAR",
    "POINT_FEATURES",
    "Calibration",
    "Frame",
    "KittiDataset",
    "KittiFrames",
    "Labels",
    "boxed",
    "boxes_to_labels",
    "camera_corners",
    "clip_to_image",
    "difficulty",
    "evaluate_folders",
    "find_frames",
    "image_boxes",
    "in_image",
    "is_dont_care",
    "labels_to_boxes",
    "prepare_kitti",
    "read_image_size",
    "read_labels",
    "read_points",
    "result_rows",
    "write_frame",
    "write_labels",
    "write_points",
]
