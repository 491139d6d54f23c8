"""A small folder in SemanticKITTI's layout, and what is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.data import semantickitti

IDS = np.array([10, 252, 30, 40, 60, 50, 70, 80, 0, 99])  # a few of the published ones, with ignored ones


def write_sequence(root: Path, name: str, frames: int, points: int = 300, labelled: bool = True) -> None:
    """Random frames of a sequence in a square of 40 m, with labels, poses (x forward by 1 m a frame) and times."""
    folder = root / "sequences" / name
    (folder / "velodyne").mkdir(parents=True)
    for number in range(frames):
        rng = np.random.default_rng([int(name), number])
        cloud = np.column_stack([rng.uniform(-20, 20, (points, 2)), rng.uniform(-2, 1, points), rng.random(points)])
        cloud.astype("<f4").tofile(folder / "velodyne" / f"{number:06d}.bin")
        if labelled:
            ids = rng.choice(IDS, points)
            instances = np.where(np.isin(ids, (10, 252, 30)), rng.integers(1, 4, points), 0)
            semantickitti.write_labels(folder / "labels" / f"{number:06d}.label", ids, instances)
    tr = np.array([[0.0, -1, 0, 0.1], [0, 0, -1, 0.2], [1, 0, 0, 0.3], [0, 0, 0, 1]])
    rows = []
    for number in range(frames):
        pose = np.eye(4)
        pose[0, 3] = number
        rows.append(" ".join(f"{v:.9e}" for v in (tr @ pose @ np.linalg.inv(tr))[:3].ravel()))
    (folder / "calib.txt").write_text(semantickitti.calibration_text(tr, [np.eye(3, 4)] * 4))
    (folder / "poses.txt").write_text("\n".join(rows) + "\n")
    (folder / "times.txt").write_text("".join(f"{number / 10:e}\n" for number in range(frames)))
