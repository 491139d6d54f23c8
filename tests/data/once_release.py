"""A small made-up release of ONCE, written with the standard library and NumPy alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

BOXES = {"Car": [3.0, -12.0, -0.8, 4.5, 1.9, 1.6, -1.5], "Pedestrian": [-4.0, 8.0, -0.7, 0.8, 0.7, 1.8, 0.2]}
BOXES["Bus"] = [10.0, -35.0, 0.0, 11.0, 2.9, 3.2, 1.6]
SEQUENCES = {"000000": 3, "000001": 3, "000027": 2, "000080": 2}  # frames; those of the last have no labels
SPLITS = {"train": ["000000", "000001"], "val": ["000027"], "raw_small": ["000080"]}


def make_release(root: Path) -> Path:
    """Sequences of a vehicle that drives straight on; in those of train every second frame has labels."""
    for number, (name, count) in enumerate(SEQUENCES.items()):
        frames = [entry(name, number, i) for i in range(count)]
        for i, frame in enumerate(frames):
            if name == "000080" or (name in SPLITS["train"] and i % 2):
                del frame["annos"]
            path = root / "data" / name / "lidar_roof" / f"{frame['frame_id']}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            points(number, i).tofile(path)
        write_sequence(root, name, frames)
    (root / "ImageSets").mkdir()
    for split, names in SPLITS.items():
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def write_sequence(root: Path, name: str, frames: list[Any]) -> Path:
    path = root / "data" / name / f"{name}.json"
    path.write_text(json.dumps({"meta_info": {"weather": "sunny"}, "calib": {}, "frames": frames}))
    return path


def entry(sequence: str, number: int, frame: int) -> dict[str, Any]:
    """What the file of a sequence says of a frame."""
    return {
        "sequence_id": sequence,
        "frame_id": str(1_616_000_000_000 + 100_000 * number + 500 * frame),
        "pose": [0.0, 0.0, np.sin(0.2), np.cos(0.2), 5.0 * frame, 2.0, 0.1],
        "annos": {"names": list(BOXES), "boxes_3d": list(BOXES.values()), "boxes_2d": {}},
    }


def points(number: int, frame: int) -> np.ndarray:
    """Six points in each box, and others around."""
    rng = np.random.default_rng([number, frame])
    inside = [np.array(box[:3]) + rng.uniform(-0.3, 0.3, (6, 3)) for box in BOXES.values()]
    around = np.column_stack([rng.uniform(-40, 40, (50, 2)), rng.uniform(3, 5, 50)])
    xyz = np.concatenate([*inside, around])
    return np.column_stack([xyz, rng.integers(0, 256, len(xyz))]).astype("<f4")
