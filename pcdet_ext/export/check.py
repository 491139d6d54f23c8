"""Does an ONNX model in onnxruntime find what the detector finds that it was made from?"""

from __future__ import annotations

import json
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
from pcdet_ext.files import DataError
from pcdet_ext.inference import Detector, boxes_of
from pcdet_ext.structures import Array, Detections

BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-4  # metres (radians, metres per second), and scores
OTHER_LABEL = 1e6  # difference, in metres, by which boxes of different classes do not match
FURTHEST = 1.0  # metres from centre to centre of two boxes that are one


@dataclass(frozen=True)
class Differences:
    """How the boxes that two runs find in one frame differ.

    box, score: largest differences of boxes that both found (m, rad, m/s), and of their scores; alone: how many only
    the one and only the other found; best_alone: the highest score of those.
    """

    box: float
    score: float
    alone: tuple[int, int] = (0, 0)
    best_alone: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """One frame in PyTorch and in onnxruntime.

    points: how many it has; found: boxes of either, (PyTorch, onnxruntime); apart: how they differ; seconds: (PyTorch,
    onnxruntime), each the second run.
    """

    frame: str
    points: int
    found: tuple[int, int]
    apart: Differences
    seconds: tuple[float, float]

    @property
    def agrees(self) -> bool:
        """Both found the same boxes, and none further apart than rounding in float32 explains."""
        return self.apart.alone == (0, 0) and self.within(BOX_TOLERANCE, SCORE_TOLERANCE)

    def within(self, box: float, score: float, lowest: float = 0.0) -> bool:
        """Whether what was found agrees.

        Args:
            box: by how much boxes may differ (metres, radians, metres per second).
            score: by how much scores may differ.
            lowest: the score from which on boxes are told at all. A box that only one side found differs by what its
                score is above that.
        """
        apart = self.apart
        unmatched = apart.best_alone - lowest if any(apart.alone) else 0.0
        return apart.box <= box and max(apart.score, unmatched) <= score

    def __str__(self) -> str:
        mine, theirs = self.found
        times = "{:.3f} s in PyTorch, {:.3f} s in onnxruntime".format(*self.seconds)
        apart = f"boxes differ by {self.apart.box:.1e}, scores by {self.apart.score:.1e}"
        if any(self.apart.alone):
            apart += "; {} only in PyTorch, {} only in onnxruntime".format(*self.apart.alone)
            apart += f", of scores up to {self.apart.best_alone:.2f}"
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


class OnnxDetector:
    """An ONNX model that `pcdet export` wrote, in onnxruntime on the CPU.

    Args:
        path: its file.
        detector: one that was made from the same checkpoint.

    Raises:
        DataError: the file is no ONNX model, or one of a detector of other classes or columns.
    """

    def __init__(self, path: str | Path, detector: Detector) -> None:
        errors = import_package("onnxruntime.capi.onnxruntime_pybind11_state")
        try:
            self.running = session(path)
        except (errors.NoSuchFile, errors.InvalidProtobuf, errors.Fail, errors.InvalidGraph) as error:
            raise DataError(f"{path}: is no ONNX model that onnxruntime can read: {error}") from error
        about = self.running.get_modelmeta().custom_metadata_map
        self.classes, self.point_features = detector.model.head.classes, detector.point_features
        for name in ("classes", "point_features"):
            own, wanted = json.loads(about.get(name, "null")), list(getattr(self, name))
            if own != wanted:
                raise DataError(f"{path}: is a model with {name} {own}, not one exported from this detector ({wanted})")

    def detect(self, points: Array) -> Detections:
        """Detections in points [P, C], arrays."""
        cloud = np.ascontiguousarray(points[:, : len(self.point_features)], np.float32)
        boxes, scores, labels = self.running.run(None, {"points": cloud})
        return Detections(boxes, scores, labels, tuple(self.classes))


def compare_frames(detector: Detector, model: Any, frames: Sequence[str | Path]) -> list[Comparison]:
    """What a detector and its ONNX model find in files of points.

    Args:
        detector: as it was exported.
        model: its ONNX model.
        frames: the files.

    Raises:
        DataError: a file cannot be read.
    """
    running = session(model)
    return [compare(detector, running, points, name) for name, points in read_clouds(detector, frames).items()]


def read_clouds(detector: Detector, frames: Sequence[str | Path]) -> dict[str, Array]:
    """Points float32 [N, F] as a detector takes them, by the names of the files they are read from.

    Raises DataError for a file that cannot be read or has too few columns.
    """
    clouds, names = {}, detector.point_features
    for path in frames:
        clouds[str(path)] = points = read_columns(path, names)
        if points.shape[1] < len(names):
            raise DataError(
                f"{path}: has {points.shape[1]} columns, this detector reads {len(names)} ({', '.join(names)})"
            )
    return clouds


def compare(detector: Detector, running: Any, points: Array, frame: str = "points") -> Comparison:
    """What a detector and a session of its ONNX model find in one cloud.

    Args:
        detector: as it was exported.
        running: the session.
        points: [P, C], of which the detector's columns come first.
        frame: what the comparison calls the cloud.
    """
    points = np.ascontiguousarray(points[:, : len(detector.point_features)], np.float32)
    for _ in range(2):  # the first run warms up
        start = time.perf_counter()
        mine = boxes_of(detector.detect(points))
        between = time.perf_counter()
        boxes, scores, labels = running.run(None, {"points": points})
        end = time.perf_counter()
    theirs = Detections(boxes, scores, labels, mine.class_names)
    found, seconds = (len(mine), len(theirs)), (between - start, end - between)
    return Comparison(frame, len(points), found, differences(mine, theirs), seconds)


def disagreement(
    compared: Sequence[Comparison], precision: str, tolerance: Sequence[float] | None = None, lowest: float = 0.0
) -> str:
    """What is wrong with a model by comparisons of some frames, in words; empty for nothing.

    Args:
        compared: of each frame.
        precision: of the model. "fp32" must agree with PyTorch, others must find something where PyTorch does.
        tolerance: largest differences of boxes and of scores to ask for instead.
        lowest: see `Comparison.within`.
    """
    if tolerance is not None:
        box, score = tolerance
        different = [one.frame for one in compared if not one.within(box, score, lowest)]
        fault = f"onnxruntime differs from PyTorch by more than the tolerance ({box:g}, {score:g})"
    elif precision == "fp32":
        different = [one.frame for one in compared if not one.agrees]
        fault = "onnxruntime finds something else than PyTorch"
    else:
        lost = not any(one.found[1] for one in compared)
        different = [one.frame for one in compared if one.found[0] and lost]
        fault = f"nothing is found any more in {precision}, which PyTorch does"
    return f"{fault}, in {', '.join(different)}" if different else ""


def differences(a: Detections, b: Detections) -> Differences:
    """How detections differ, arrays; NaN counts as much.

    Matched are boxes of one class whose centres are at most `FURTHEST` apart, so that the sum of differences is
    smallest.
    """
    boxes, others = np.asarray(a.boxes), np.asarray(b.boxes)
    if not (len(boxes) and len(others)):  # no boxes may be boxes without velocities
        boxes, others = boxes[:, :7], others[:, :7]
    apart = np.abs(boxes[:, None] - others[None])
    apart[..., 6] = np.abs((apart[..., 6] + math.pi) % (2 * math.pi) - math.pi)
    apart = np.nan_to_num(apart, nan=OTHER_LABEL, posinf=OTHER_LABEL)
    near = np.hypot(apart[..., 0], apart[..., 1]) <= FURTHEST
    near &= np.asarray(a.labels)[:, None] == np.asarray(b.labels)[None]
    largest = apart.max(2)
    rows, columns = linear_sum_assignment(np.where(near, largest, OTHER_LABEL))
    matched = near[rows, columns]
    rows, columns = rows[matched], columns[matched]
    mine, theirs = np.asarray(a.scores), np.asarray(b.scores)
    score = np.nan_to_num(np.abs(mine[rows] - theirs[columns]), nan=1.0)
    rest = np.concatenate([np.delete(mine, rows), np.delete(theirs, columns)])
    alone = len(mine) - len(rows), len(theirs) - len(columns)
    box = float(largest[rows, columns].max(initial=0.0))
    return Differences(box, float(score.max(initial=0.0)), alone, float(np.nan_to_num(rest, nan=1.0).max(initial=0.0)))
