"""How many frames per second the trackers take: objects that cross each other, on one core."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from pcdet_ext.engine.info import hardware, versions
from pcdet_ext.evaluation.nuscenes_tracking import CLASSES
from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Detections
from pcdet_ext.tracking import GreedyTracker, KalmanTracker, Tracker

PERIOD = 0.5  # seconds
SHARES = {"car": 0.5, "pedestrian": 0.3, "truck": 0.1, "bicycle": 0.1}  # of the objects


@dataclass(frozen=True)
class TrackerTiming:
    """What one tracker took: detections in a frame, frames, and frames per second (median and best of the rounds)."""

    tracker: str
    detections: int
    frames: int
    rounds: int
    per_second: float
    best: float

    def line(self) -> str:
        """What to print."""
        speed = f"{self.per_second:.0f} frames/s (median of {self.rounds}, best {self.best:.0f})"
        return f"{self.tracker}: {self.detections} detections per frame, {self.frames} frames: {speed}"


def run_trackers(
    detections: int = 100, frames: int = 200, rounds: int = 5, json_path: Path | None = None
) -> list[TrackerTiming]:
    """Measure all trackers, printing a line for each.

    Args:
        detections: objects in a frame.
        frames: of the sequence.
        rounds: how often it is tracked, after one round that does not count.
        json_path: where everything is written.

    Raises:
        ValueError: one of the numbers is below 1.
    """
    if min(detections, frames, rounds) < 1:
        raise ValueError(f"detections, frames and rounds must be at least 1, got {(detections, frames, rounds)}")
    sequence = crossing_objects(detections, frames)
    timings = []
    for name, tracker in {"greedy": GreedyTracker(), "kalman": KalmanTracker()}.items():
        seconds = [_seconds(tracker, sequence) for _ in range(rounds + 1)][1:]
        speeds = (frames / median(seconds), frames / min(seconds))
        timings.append(TrackerTiming(name, detections, frames, rounds, *speeds))
        print(timings[-1].line(), flush=True)
    if json_path:
        content = {"hardware": hardware(), "versions": versions(), "trackers": [asdict(t) for t in timings]}
        with atomic_write(json_path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return timings


def _seconds(tracker: Tracker, sequence: Sequence[Detections]) -> float:
    tracker.reset()
    start = time.perf_counter()
    for i, found in enumerate(sequence):
        tracker.update(found, np.eye(4), PERIOD * i)
    return time.perf_counter() - start


def crossing_objects(count: int, frames: int, seed: int = 0) -> list[Detections]:
    """Draw detections of objects that cross an area of 100 x 100 m and come in again on the other side.

    Args:
        count: number of objects.
        frames: of the sequence, `PERIOD` seconds apart.
        seed: of the random numbers.

    Returns:
        Detections of each frame, in random order, boxes [count, 9] in a frame that does not move.
    """
    rng = np.random.default_rng(seed)
    place, velocity = rng.uniform(-50, 50, (count, 2)), rng.normal(0, 4, (count, 2))
    label = rng.choice([CLASSES.index(name) for name in SHARES], count, p=list(SHARES.values()))
    sequence = []
    for i in range(frames):
        boxes = np.zeros((count, 9), np.float32)
        noise = rng.normal(0, 0.1, (count, 2))
        boxes[:, :2] = (place + velocity * PERIOD * i + noise + 50) % 100 - 50
        boxes[:, 3:6], boxes[:, 6] = (4.5, 1.9, 1.6), np.arctan2(velocity[:, 1], velocity[:, 0])
        boxes[:, 7:] = velocity
        order = rng.permutation(count)
        sequence.append(Detections(boxes[order], rng.random(count).astype(np.float32), label[order], CLASSES))
    return sequence
