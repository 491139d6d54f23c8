"""Does an ONNX model in onnxruntime find what the detector finds that it was made from?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from pcdet_ext.data.points import read_columns
from pcdet_ext.export.packages import import_package
from pcdet_ext.inference import Detector, boxes_of
from pcdet_ext.structures import Array, Detections

BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-4  # metres (radians, metres per second), and scores
OTHER_LABEL = 1e6  # difference, in metres, by which boxes of different classes do not match


@dataclass(frozen=True)
class Comparison:
    """One frame in PyTorch and in onnxruntime.

    points: how many it has; found: boxes of either, (PyTorch, onnxruntime); box, score: largest differences of matched
    boxes and of their scores; seconds: (PyTorch, onnxruntime), each the second run.
    """

    frame: str
    points: int
    found: tuple[int, int]
    box: float
    score: float
    seconds: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """As many boxes on both sides, and none further apart than the tolerances."""
        return self.found[0] == self.found[1] and self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE

    def __str__(self) -> str:
        mine, theirs = self.found
        times = "{:.3f} s in PyTorch, {:.3f} s in onnxruntime".format(*self.seconds)
        apart = f"boxes differ by {self.box:.1e}, scores by {self.score:.1e}"
        if not mine and not theirs:
            apart = "nothing found, so nothing was compared (a lower model.head.score_threshold finds more)"
        return f"{self.frame}: {self.points} points, {mine} boxes, onnxruntime {theirs}; {apart}; {times}"


def session(model: Any, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU for a model or the path of one; threads: torch's number by default."""
    import torch

    runtime = import_package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3
    source = str(model) if isinstance(model, (str, Path)) else model.SerializeToString()
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def compare_frames(detector: Detector, model: Any, frames: Sequence[str | Path]) -> list[Comparison]:
    """What a detector and its ONNX model find in files of points.

    Raises DataError for a file that cannot be read.
    """
    running = session(model)
    clouds = {str(path): read_columns(path, detector.point_features) for path in frames}
    return [compare(detector, running, points, name) for name, points in clouds.items()]


def compare(detector: Detector, running: Any, points: Array, frame: str = "points") -> Comparison:
    """What a detector and a session of its ONNX model find in points [P, C]."""
    points = np.ascontiguousarray(points[:, : len(detector.point_features)], np.float32)
    for _ in range(2):  # the first run warms up
        start = time.perf_counter()
        mine = boxes_of(detector.detect(points))
        between = time.perf_counter()
        boxes, scores, labels = running.run(None, {"points": points})
        end = time.perf_counter()
    theirs = Detections(boxes, scores, labels, mine.class_names)
    box, score = differences(mine, theirs)
    return Comparison(frame, len(points), (len(mine), len(theirs)), box, score, (between - start, end - between))


def differences(a: Detections, b: Detections) -> tuple[float, float]:
    """The largest differences of boxes and of scores between detections that are matched, arrays; NaN counts as much.

    Matched are boxes of one class, so that the sum of their differences is smallest.
    """
    if not len(a) or not len(b):
        return 0.0, 0.0
    apart = np.abs(np.asarray(a.boxes)[:, None] - np.asarray(b.boxes)[None])
    apart[..., 6] = np.abs((apart[..., 6] + math.pi) % (2 * math.pi) - math.pi)
    apart = np.nan_to_num(apart.max(2), nan=OTHER_LABEL, posinf=OTHER_LABEL)
    apart = apart + OTHER_LABEL * (np.asarray(a.labels)[:, None] != np.asarray(b.labels)[None])
    rows, columns = linear_sum_assignment(apart)
    score = np.abs(np.asarray(a.scores)[rows] - np.asarray(b.scores)[columns])
    return float(apart[rows, columns].max()), float(score.max())
