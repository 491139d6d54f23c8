"""mmdetection3d's PointPillars against this library's, on the same frames with the same weights, on the CPU.

python -m pcdet_ext.plugins.mmdet3d benchmarks/mmdet3d_pointpillars.py CHECKPOINT FRAME.bin … [--threads 2 --runs 5]

CHECKPOINT is one of mmengine's Runner, whose detector has a counterpart here (see pcdet_ext.plugins.mmdet3d.weights).
Both find boxes in each frame in turn, in one process; what is reported is the median time per frame, and whether they
find the same.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmdet3d.models  # noqa: F401
import numpy as np
import torch
from mmdet3d.registry import MODELS
from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

import pcdet_ext
from pcdet_ext.data.kitti.files import read_points
from pcdet_ext.plugins.mmdet3d import weights
from pcdet_ext.plugins.mmdet3d.configs import read_config


def theirs(checkpoint: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Scores that mmdetection3d finds in a frame, best first."""
    init_default_scope("mmdet3d")
    model: Any = MODELS.build(ConfigDict(read_config(checkpoint)["model"])).eval()
    load_checkpoint(model, str(checkpoint), map_location="cpu", strict=True)

    def detect(points: np.ndarray) -> np.ndarray:
        sample = Det3DDataSample(metainfo={"box_type_3d": LiDARInstance3DBoxes})
        batch = {"inputs": {"points": [torch.from_numpy(points)]}, "data_samples": [sample]}
        with torch.no_grad():
            found = model.test_step(batch)[0].pred_instances_3d
        return np.sort(found.scores_3d.numpy())[::-1]

    return detect


def ours(checkpoint: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The same by the detector that the checkpoint becomes here."""
    with tempfile.TemporaryDirectory() as folder:
        weights.to_library(checkpoint, checkpoint, Path(folder) / "ours.ckpt")
        detector = pcdet_ext.load(Path(folder) / "ours.ckpt", device="cpu")
    return lambda points: np.sort(detector.detect(points).scores)[::-1]


def seconds(detect: Callable[[np.ndarray], np.ndarray], frames: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for points in frames:
        detect(points)
    return (time.perf_counter() - start) / len(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("frames", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    frames = [read_points(path) for path in options.frames]
    sides = {"mmdetection3d": theirs(options.checkpoint), "pcdet_ext": ours(options.checkpoint)}
    found = {name: [detect(points) for points in frames] for name, detect in sides.items()}  # warms up, too
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(options.runs):  # in turns, so that what else the machine does meets both
        for name, detect in sides.items():
            times[name].append(seconds(detect, frames))
    medians = {name: statistics.median(each) for name, each in times.items()}
    for name, value in medians.items():
        print(f"{name}: {1000 * value:.1f} ms per frame ({options.threads} threads, median of {options.runs} runs)")
    print(f"time of mmdetection3d / ours: {medians['mmdetection3d'] / medians['pcdet_ext']:.2f}")
    pairs = list(zip(found["mmdetection3d"], found["pcdet_ext"], strict=True))
    same = [len(a) == len(b) and bool(np.allclose(a, b, atol=1e-4)) for a, b in pairs]
    print(f"same scores to 1e-4 in {sum(same)} of {len(same)} frames, {sum(len(a) for a, _ in pairs)} boxes")


main()
