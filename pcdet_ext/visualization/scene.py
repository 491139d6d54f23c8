"""What a picture shows, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pcdet_ext.data import kitti
from pcdet_ext.data.points import read_points
from pcdet_ext.structures import Array, Detections, Targets

Boxes = TypeVar("Boxes", Targets, Detections)

TRUTH_COLOUR = "#2ca02c"
CLASS_COLOURS = ("#d62728", "#1f77b4", "#ff7f0e", "#9467bd", "#e377c2", "#17becf", "#bcbd22", "#8c564b", "#7f7f7f")
# The eight corners by their signs in half-extents, and the twelve edges between them; the first four corners are
# the bottom, the first two the front.
CORNER_SIGNS = np.array(
    [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, 1, -1], [1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, 1, 1]], np.float32
)
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


@dataclass(frozen=True)
class Scene:
    """One frame to look at, in the LiDAR frame.

    points: float32 [N, 3+]; truth: labelled boxes or None where unknown; detections: NumPy detections or None.
    """

    points: Array
    truth: Targets | None = None
    detections: Detections | None = None
    title: str = ""

    def above(self, score: float) -> Scene:
        """The scene with only those detections that score at least `score`."""
        return self if self.detections is None else replace(self, detections=self.detections.above(score))

    def finite(self) -> Scene:
        """The scene with only those points and boxes whose numbers are all finite; the title counts the others.

        Every picture is drawn from this: one NaN would otherwise leave it empty, or move what is shown.
        """
        points = np.isfinite(self.points).all(1)
        truth, lost_truths = _finite_boxes(self.truth)
        detections, lost_detections = _finite_boxes(self.detections)
        lost = {"points": int(np.sum(~points)), "boxes": lost_truths + lost_detections}
        notes = [f"{count} {what}" for what, count in lost.items() if count]
        return replace(
            self,
            points=self.points[points],
            truth=truth,
            detections=detections,
            title=f"{self.title} (not finite, left out: {', '.join(notes)})" if notes else self.title,
        )

    @property
    def holds_something(self) -> bool:
        """Whether there is a point or a box."""
        boxes = [0 if found is None or found.boxes is None else len(found) for found in (self.truth, self.detections)]
        return len(self.points) + sum(boxes) > 0

    def colours(self) -> dict[str, str]:
        """A colour for each class that was detected, the same for the same list of classes."""
        names = self.detections.class_names if self.detections is not None else ()
        return {name: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, name in enumerate(names)}


def _finite_boxes(labelled: Boxes | None) -> tuple[Boxes | None, int]:
    """Only those boxes whose numbers are all finite, and how many others there are."""
    if labelled is None or labelled.boxes is None:
        return labelled, 0
    finite = np.isfinite(np.asarray(labelled.boxes)).all(1)
    return labelled.select(finite), int(np.sum(~finite))


def box_corners(boxes: Array) -> Array:
    """Corners [M, 8, 3] of boxes [M, 7+], in the order of CORNER_SIGNS."""
    local = CORNER_SIGNS[None] * boxes[:, None, 3:6] / 2
    cos, sin = np.cos(boxes[:, 6])[:, None], np.sin(boxes[:, 6])[:, None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y, local[..., 2]], -1) + boxes[:, None, :3]


def box_edges(boxes: Array) -> Array:
    """Line segments [M, 13, 2, 3] of boxes [M, 7+]: twelve edges, and one on the floor from the centre to the front."""
    corners = box_corners(boxes)
    edges = corners[:, np.array(EDGES)]
    bottom = corners[:, :4].mean(1)
    nose = np.stack([bottom, corners[:, :2].mean(1)], 1)[:, None]
    return np.concatenate([edges, nose], 1)


def with_detections(scene: Scene, detections: Detections) -> Scene:
    """The scene with a detector's result."""
    return replace(scene, detections=detections.numpy())


def read_kitti_scene(
    points: Path | None,
    labels: Path | None = None,
    calibration: Path | None = None,
    results: Path | None = None,
) -> Scene:
    """A scene from files; what is not given is looked for beside the others in KITTI's layout.

    points: any point file, or None for boxes alone; labels and results: KITTI label files (results with scores);
    calibration: needed as soon as there are labels or results. Raises ValueError naming the file that is missing or
    damaged.
    """
    anchor = points or labels or results
    if anchor is None:
        raise ValueError("nothing to show: give a point file, a label file or a result file")
    labels = labels or _sibling(points, "label_2", ".txt")
    cloud = read_points(points) if points else np.zeros((0, 4), np.float32)
    if labels is None and results is None:
        return Scene(cloud, title=anchor.stem)
    calibration = calibration or _sibling(points or labels, "calib", ".txt")
    if calibration is None:
        raise ValueError(f"{labels or results}: no calibration file found beside it; name it with --calib")
    calib = kitti.Calibration.read(calibration)
    truth = None if labels is None else kitti.labels_to_boxes(kitti.read_labels(labels, with_scores=False), calib)
    found = None if results is None else _read_detections(results, calib)
    return Scene(cloud, truth, found, title=anchor.stem)


def _sibling(path: Path | None, folder: str, suffix: str) -> Path | None:
    """The file of the same frame in a neighbouring folder, where there is one."""
    if path is None:
        return None
    candidate = path.resolve().parent.parent / folder / (path.stem + suffix)
    return candidate if candidate.exists() else None


def _read_detections(path: Path, calibration: kitti.Calibration) -> Detections:
    labels = kitti.read_labels(path, with_scores=True)
    scores = np.asarray(kitti.boxed(labels).scores, np.float32)
    found = kitti.labels_to_boxes(labels, calibration)
    found = found.of_classes(sorted(found.class_names))
    return Detections(np.asarray(found.boxes), scores, np.asarray(found.labels), found.class_names, path.stem)
