"""Small made-up folders: the KITTI layout, and a release of nuScenes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nuscenes_release import Release, make_release

from pcdet_ext.data import kitti
from pcdet_ext.data.nuscenes.prepare import NuScenesFrames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.simulation import EvenLidar, simulate_nuscenes

CALIBRATION = kitti.Calibration(
    p2=[[721.5, 0.0, 609.6, 44.9], [0.0, 721.5, 172.9, 0.2], [0.0, 0.0, 1.0, 0.0027]],
    r0_rect=[
        [0.9999239, 0.00983776, -0.00744505],
        [-0.0098698, 0.9999421, -0.00427846],
        [0.00740253, 0.00435161, 0.9999631],
    ],
    velo_to_cam=[
        [0.007533745, -0.9999714, -0.000616602, -0.004069766],
        [0.01480249, 0.0007280733, -0.9998902, -0.07631618],
        [0.9998621, 0.00752379, 0.01480755, -0.2717806],
    ],
    image_size=(375, 1242),
)
SIZES = {"Car": (3.9, 1.6, 1.5), "Pedestrian": (0.8, 0.6, 1.7), "Van": (5.0, 1.9, 2.2)}


def write_scene(root: Path, frame_id: str, rng: np.random.Generator, names: tuple[str, ...]) -> None:
    """A frame with an object of each name in front of the camera, 30 points in each, and scattered points around."""
    boxes = np.zeros((len(names), 7))
    for box, name, x in zip(boxes, names, range(10, 60, 8), strict=False):
        box[:3] = x, rng.uniform(-4, 4), -0.8
        box[3:6] = SIZES[name]
        box[6] = rng.uniform(-3, 3)
    labels = kitti.boxes_to_labels(boxes, names, CALIBRATION)
    labels = replace(labels, truncation=np.zeros(len(names)), occlusion=np.zeros(len(names), np.int64))
    inside = boxes[:, None, :3] + rng.uniform(-0.25, 0.25, (len(names), 30, 3))
    around = np.column_stack([rng.uniform(-60, 60, (400, 2)), rng.uniform(-2, -1.7, 400)])
    xyz = np.concatenate([inside.reshape(-1, 3), around])
    points = np.column_stack([xyz, rng.uniform(0, 1, len(xyz))]).astype(np.float32)
    kitti.write_frame(root, frame_id, points, labels, CALIBRATION)
    with (root / "training" / "label_2" / f"{frame_id}.txt").open("a") as stream:
        stream.write("DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10\n")


@pytest.fixture
def kitti_root(tmp_path: Path) -> Path:
    """Six frames, 000000 to 000003 in train and the others in val; objects Car, Pedestrian and Van."""
    root = tmp_path / "kitti"
    rng = np.random.default_rng(7)
    for i in range(6):
        write_scene(root, f"{i:06d}", rng, ("Car", "Pedestrian", "Van", "Car")[: 2 + i % 3])
    (root / "ImageSets").mkdir()
    (root / "ImageSets" / "train.txt").write_text("000000\n000001\n000002\n000003\n")
    (root / "ImageSets" / "val.txt").write_text("000004\n000005\n")
    return root


@pytest.fixture
def release() -> Release:
    """A release of nuScenes with two scenes of three key frames."""
    return make_release()


@pytest.fixture(scope="session")
def scene_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of two simulated nuScenes drives of four key frames, with maps and occupancy."""
    out = tmp_path_factory.mktemp("scene")
    sensor = EvenLidar(beams=16, azimuths=180, range_noise=0.0, dropout=0.0)
    simulate_nuscenes(out, scenes=2, frames=4, seed=3, val_fraction=0.5, workers=1, sensor=sensor)
    prepare(NuScenesFrames(out, max_sweeps=1), progress=False)
    return out
