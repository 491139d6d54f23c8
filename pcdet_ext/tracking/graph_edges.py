"""Edges between tracks and detections of one class that are near each other, and the features of these edges."""

from __future__ import annotations

import torch
from torch import Tensor

CLASSES = ("car", "pedestrian", "bicycle", "bus", "motorcycle", "trailer", "truck")  # numbers of the classes
LIMITS = (4.0, 1.0, 3.0, 5.5, 13.0, 3.0, 4.0)  # metres between a track, moved on, and a detection
NEIGHBOURS = 5.0  # metres
PERIOD = 0.5  # seconds between frames


def within(boxes: Tensor, label: Tensor, batch: Tensor, distance: float = NEIGHBOURS) -> Tensor:
    """Edges int64 [2, E] between boxes that are near, with themselves too.

    Args:
        boxes: [N, 7].
        label: int64 [N]; boxes of different classes have no edge.
        batch: int64 [N], the sample of each; neither have those of different samples.
        distance: metres up to which centres are near.
    """
    gaps = (boxes[:, None, :2] - boxes[None, :, :2]).norm(dim=2)
    near = (gaps <= distance) & (label[:, None] == label[None]) & (batch[:, None] == batch[None])
    return near.nonzero().T


def moved(boxes: Tensor, velocity: Tensor, elapsed: Tensor) -> Tensor:
    """Places [T, 2] of tracks, carried on by their velocities.

    Args:
        boxes: [T, 7], where they were last.
        velocity: [T, 2], metres per second; gets no gradient.
        elapsed: [T], seconds since then.
    """
    return boxes[:, :2] + velocity.detach() * elapsed[:, None]


def may_be(places: Tensor, labels: Tensor, boxes: Tensor, other: Tensor, limits: Tensor) -> Tensor:
    """bool [T, N]: which detections are of a track's class and near enough to its place.

    Args:
        places: [T, 2] of the tracks.
        labels: int64 [T], their classes.
        boxes: [N, 7] of the detections.
        other: int64 [N], their classes.
        limits: metres by class.
    """
    gaps = (places[:, None] - boxes[None, :, :2]).norm(dim=2)
    return (gaps <= limits[labels][:, None]) & (labels[:, None] == other[None])


def features(edges: Tensor, tracks: Tensor, places: Tensor, age: Tensor, boxes: Tensor) -> Tensor:
    """Features [E, 10] of edges: difference of the boxes, of the places, and the age of the track.

    Args:
        edges: int64 [2, E], from tracks to detections.
        tracks: [T, 7], boxes where the tracks were last.
        places: [T, 2], where they would be now.
        age: [T], frames of each track.
        boxes: [N, 7] of the detections.
    """
    track, detection = edges
    return torch.cat(
        [
            boxes[detection] - tracks[track],
            boxes[detection, :2] - places[track],
            age[track, None].to(boxes.dtype),
        ],
        dim=1,
    )
