"""What a picture shows: the points of a frame, what is labelled, what was found, and where the objects went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pcdet_ext.data.formats import read_frame_files
from pcdet_ext.data.points import XYZ
from pcdet_ext.rigid import from_box_frames
from pcdet_ext.sketch import class_colours
from pcdet_ext.structures import Array, Detections, PointLabels, Targets
from pcdet_ext.visualization.layers import Layers

Boxes = TypeVar("Boxes", Targets, Detections)

FOUND_TRACK_COLOUR = "#4cc9f0"
# The eight corners by their signs in half-extents, and the twelve edges between them; the first four corners are
# the bottom, the first two the front.
CORNER_SIGNS = np.array(
    [[1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, 1, -1], [1, 1, 1], [1, -1, 1], [-1, -1, 1], [-1, 1, 1]], np.float32
)
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
ARROW_SECONDS = 1.0  # a velocity arrow ends where the object is after this time
SLOWEST_ARROW = 0.2  # metres per second
BARB = 0.25  # length of an arrow's barbs as a share of the arrow


@dataclass(frozen=True, eq=False)
class Track:
    """The path of one object.

    track_id: its number; name: its class; positions: float64 [K, 3] of its box's centre in the LiDAR frame of the frame
    that is shown, in the order of time.
    """

    track_id: int
    name: str
    positions: Array


@dataclass(frozen=True, eq=False)
class Scene:
    """One frame to look at, in the LiDAR frame.

    points: float32 [N, 3+]; truth: labelled boxes or None where unknown; detections: NumPy detections or None;
    point_features: names of the points' columns, of the first of them where others follow; truth_tracks and
    found_tracks: paths of labelled and of detected objects; point_labels: the class of each point, by which points are
    coloured, found where something was found and labelled otherwise, or None; layers: predicted paths, a map, occupied
    cells, planned paths.
    """

    points: Array
    truth: Targets | None = None
    detections: Detections | None = None
    title: str = ""
    point_features: Sequence[str] = XYZ
    truth_tracks: Sequence[Track] = ()
    found_tracks: Sequence[Track] = ()
    point_labels: PointLabels | None = None
    layers: Layers = field(default_factory=Layers)

    def above(self, score: float) -> Scene:
        """The scene with only those detections that score at least `score`, their tracks and forecasts."""
        forecasts = [one for one in self.layers.forecasts if one.score is None or one.score >= score]
        layers = replace(self.layers, forecasts=forecasts)
        if self.detections is None:
            return replace(self, layers=layers)
        found = self.detections.above(score)
        left = set() if found.track_ids is None else {int(i) for i in found.track_ids}
        tracks = [track for track in self.found_tracks if track.track_id in left]
        return replace(self, detections=found, found_tracks=tracks, layers=layers)

    def finite(self) -> Scene:
        """The scene with only those points and boxes whose numbers are all finite; the title counts the others.

        Every picture is drawn from this: one NaN would otherwise leave it empty, or move what is shown. Velocities may
        be unknown (NaN); such a box has no arrow.
        """
        points = np.isfinite(self.points).all(1)
        truth, lost_truths = _finite_boxes(self.truth)
        detections, lost_detections = _finite_boxes(self.detections)
        lost = {"points": int(np.sum(~points)), "boxes": lost_truths + lost_detections}
        notes = [f"{count} {what}" for what, count in lost.items() if count]
        return replace(
            self.select_points(points),
            truth=truth,
            detections=detections,
            title=f"{self.title} (not finite, left out: {', '.join(notes)})" if notes else self.title,
        )

    def select_points(self, keep: Array) -> Scene:
        """The scene with only those points, and labels of points, that `keep` (bool [N] or int64 [K]) picks."""
        labels = None if self.point_labels is None else self.point_labels.select(keep)
        return replace(self, points=self.points[keep], point_labels=labels)

    @property
    def holds_something(self) -> bool:
        """Whether there is a point or a box."""
        return len(self.points) + len(boxes_in(self.truth)) + len(boxes_in(self.detections)) > 0

    def colours(self) -> dict[str, str]:
        """A colour for each class that was detected, the same for the same list of classes."""
        return class_colours(self.detections.class_names if self.detections is not None else ())


def read_scene(
    points: Path | None,
    labels: Path | None = None,
    calibration: Path | None = None,
    results: Path | None = None,
    features: Sequence[str] | None = None,
) -> Scene:
    """The scene of a frame's files. Arguments as in `data.formats.read_frame_files`, and the same errors."""
    sample, found = read_frame_files(points, labels, calibration, results, features)
    return Scene(sample.points, sample.targets, found, sample.frame_id, sample.point_features)


def with_detections(scene: Scene, detections: Detections) -> Scene:
    """The scene with a detector's result."""
    return replace(scene, detections=detections.numpy())


def with_point_labels(scene: Scene, labels: PointLabels) -> Scene:
    """The scene with the class of each point; labels: of those points that are finite. Raises ValueError otherwise."""
    scene = scene.finite()
    if len(labels) != len(scene.points):
        raise ValueError(f"{scene.title}: {len(scene.points)} points are finite, but {len(labels)} have labels")
    return replace(scene, point_labels=labels.numpy())


def labelled_points(targets: Targets | None) -> PointLabels | None:
    """The labels of points in a ground truth, with scores of 1; None without any."""
    if targets is None or targets.point_labels is None:
        return None
    labels = np.asarray(targets.point_labels)
    return PointLabels(labels, np.ones(len(labels), np.float32), targets.class_names)


def boxes_in(holder: Targets | Detections | None) -> Array:
    """Boxes [M, 7 or 9] of what may hold none."""
    boxes = None if holder is None else holder.boxes
    return np.zeros((0, 7), np.float32) if boxes is None else np.asarray(boxes)


def _finite_boxes(labelled: Boxes | None) -> tuple[Boxes | None, int]:
    """Only those boxes whose place, size and score are finite, and how many others there are."""
    if labelled is None or labelled.boxes is None:
        return labelled, 0
    finite = np.isfinite(np.asarray(labelled.boxes)[:, :7]).all(1)
    if isinstance(labelled, Detections):
        finite &= np.isfinite(np.asarray(labelled.scores))
    return labelled.select(finite), int(np.sum(~finite))


def box_corners(boxes: Array) -> Array:
    """Corners [M, 8, 3] of boxes [M, 7+], in the order of CORNER_SIGNS."""
    z = boxes[:, None, 2] + CORNER_SIGNS[:, 2] * boxes[:, None, 5] / 2
    return np.concatenate([from_box_frames(CORNER_SIGNS[:, :2], boxes), z[..., None]], -1)


def box_edges(boxes: Array) -> Array:
    """Line segments [M, 13, 2, 3] of boxes [M, 7+]: twelve edges, and one on the floor from the centre to the front."""
    corners = box_corners(boxes)
    edges = corners[:, np.array(EDGES)]
    bottom = corners[:, :4].mean(1)
    nose = np.stack([bottom, corners[:, :2].mean(1)], 1)[:, None]
    return np.concatenate([edges, nose], 1)


def velocity_arrows(boxes: Array) -> Array:
    """Line segments [K, 3, 2, 3] of the K boxes that move: from the centre to where the object is after one second,
    and two barbs there. None for boxes [M, 7], and for boxes [M, 9] that stand still or have no finite velocity.
    """
    if boxes.shape[1] < 9:
        return np.zeros((0, 3, 2, 3), np.float32)
    speed = np.hypot(boxes[:, 7], boxes[:, 8])
    boxes = boxes[np.isfinite(speed) & (speed >= SLOWEST_ARROW)]
    way = np.column_stack([boxes[:, 7:9], np.zeros(len(boxes))]) * ARROW_SECONDS
    tail, tip = boxes[:, :3], boxes[:, :3] + way
    across = np.column_stack([-way[:, 1], way[:, 0], way[:, 2]])
    barbs = [tip - BARB * way + side * across * BARB / 2 for side in (1, -1)]
    return np.stack([np.stack([tail, tip], 1), *(np.stack([tip, end], 1) for end in barbs)], 1)
