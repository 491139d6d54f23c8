"""Info files for mmdetection3d's KITTI data set; what it makes of them: `test_mmdet3d_runner`."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.data.kitti.calibration import Calibration
from pcdet_ext.data.kitti.files import write_points
from pcdet_ext.files import DataError
from pcdet_ext.plugins.mmdet3d.kitti_infos import write_infos

LABELS = """Car 0.00 0 -1.58 587.0 173.0 614.0 200.0 1.65 1.67 3.64 -0.65 1.71 12.0 -1.59
DontCare -1 -1 -10 503.0 169.0 590.0 190.0 -1 -1 -1 -1000 -1000 -1000 -10
Bus 0.00 3 0.20 100.0 150.0 200.0 160.0 3.00 2.50 9.00 8.00 1.70 30.0 0.10
"""
VELO_TO_CAM = np.array([[0.0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27]])
P2 = np.array([[700.0, 0, 600, 44], [0, 700, 180, 0.2], [0, 0, 1, 0.002]])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for part in ("training/velodyne", "training/calib", "training/label_2", "ImageSets"):
        (tmp_path / part).mkdir(parents=True)
    car = np.array([12.27, 0.65, -1.0, 0.5])  # inside of the car, whose centre is at camera (-0.65, 1.71 - 0.825, 12)
    points = np.array([car, car + [0.3, 0.2, 0.1, 0], [-10, 0, 0, 0], [12, 30, 0, 0], [40, 3, 0, 0]], np.float32)
    write_points(tmp_path / "training/velodyne/000007.bin", points)
    Calibration(P2, np.eye(3), VELO_TO_CAM).write(tmp_path / "training/calib/000007.txt")
    (tmp_path / "training/label_2/000007.txt").write_text(LABELS)
    (tmp_path / "ImageSets/val.txt").write_text("000007\n")
    return tmp_path


def test_frames_have_labels_calibration_and_the_points_in_view(root: Path) -> None:
    (path,) = write_infos(root, ["val"], (1200, 370))
    content = pickle.loads(path.read_bytes())
    (info,) = content["data_list"]
    assert path.name == "kitti_infos_val.pkl"
    assert content["metainfo"]["categories"]["DontCare"] == -1
    assert info["sample_idx"] == 7
    camera = info["images"]["CAM2"]
    assert (camera["height"], camera["width"]) == (370, 1200)
    assert np.allclose(camera["lidar2cam"], np.vstack([VELO_TO_CAM, [0, 0, 0, 1]]))
    assert np.allclose(camera["lidar2img"], np.array(camera["cam2img"]) @ camera["lidar2cam"])
    reduced = np.fromfile(root / "training/velodyne_reduced/000007.bin", np.float32).reshape(-1, 4)
    assert reduced[:, 0].tolist() == pytest.approx([12.27, 12.57, 40])
    car, ignored, bus = info["instances"]
    assert car["bbox_label"] == 2
    assert car["bbox_3d"] == [-0.65, 1.71, 12.0, 3.64, 1.65, 1.67, -1.59]  # location, length, height, width, angle
    assert [row["num_lidar_pts"] for row in info["instances"]] == [2, -1, 0]
    assert [row["bbox_label_3d"] for row in (ignored, bus)] == [-1, -1]
    assert (car["difficulty"], ignored["index"], bus["difficulty"]) == (1, -1, -1)
    centre = P2 @ [-0.65, 1.71 - 1.65 / 2, 12.0, 1]
    assert car["depth"] == pytest.approx(centre[2])
    assert car["center_2d"] == pytest.approx((centre[:2] / centre[2]).tolist())


def test_what_is_missing_is_named(root: Path) -> None:
    with pytest.raises(DataError, match="train"):
        write_infos(root)
    with pytest.raises(ValueError, match="no labels"):
        write_infos(root, ["test"])
    (root / "training/label_2/000007.txt").unlink()
    with pytest.raises(DataError, match=r"label_2.000007\.txt"):
        write_infos(root, ["val"])
