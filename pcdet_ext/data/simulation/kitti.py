"""Simulated scans in KITTI's layout: a calibrated camera decides what is labelled, and how."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.data import kitti
from pcdet_ext.data.simulation.scene import Actor, Scene
from pcdet_ext.data.simulation.sensor import Scan, SpinningLidar
from pcdet_ext.structures import Array

IMAGE_SIZE = (375, 1242)
MIN_BOX_HEIGHT = 10.0  # pixels below which nobody labels an object
MAX_DEPTH = 80.0  # metres beyond which nobody does
ROOM = 0.045  # metres between an object and its box at each side, as boxes are drawn around noisy points
OCCLUSION_STEPS = (0.15, 0.5, 0.8)  # hidden share from which an object is partly, largely, hardly visible (1, 2, 3)


def calibration() -> kitti.Calibration:
    """A colour camera left in front of the sensor: 720 px focal length, mounted as in the data set's car."""
    p2 = np.array([[721.5, 0, 609.6, 44.86], [0, 721.5, 172.9, 0.2164], [0, 0, 1, 0.002746]])
    tilt = np.deg2rad(0.4)
    r0_rect = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    velo_to_cam = np.array([[0.0, -1, 0, -0.004], [0, 0, -1, -0.0763], [1, 0, 0, -0.2718]])
    return kitti.Calibration(p2, r0_rect, velo_to_cam, IMAGE_SIZE)


def labels_of(scene: Scene, scan: Scan, sensor: SpinningLidar, calib: kitti.Calibration) -> kitti.Labels:
    """Labels of the actors that the camera sees, nearest first, and DontCare last, as KITTI has them.

    Truncation is the share of the projected box outside the image, occlusion a level by the share of beams towards an
    actor that something else stopped. An actor without points in view is a DontCare region.

    Args:
        scene: the street.
        scan: of it.
        sensor: which made the scan.
        calib: between sensor and camera.
    """
    points = np.bincount(scan.actor[scan.actor >= 0], minlength=len(scene.actors))
    boxes = np.array([_from_sensor(a, sensor) for a in scene.actors]).reshape(-1, 7)
    order = np.argsort(np.hypot(boxes[:, 0], boxes[:, 1]))
    names = tuple(scene.actors[i].name for i in order)
    labels = kitti.boxes_to_labels(boxes[order], names, calib)
    corners = kitti.camera_corners(labels.dimensions, labels.location, labels.rotation_y)
    full = kitti.image_boxes(corners, calib.p2)
    truncation = 1 - _area(labels.bbox) / np.maximum(_area(full), 1e-6)
    hidden = 1 - scan.hits[order] / np.maximum(scan.reach[order], 1)
    occlusion = np.searchsorted(OCCLUSION_STEPS, hidden, side="right")
    depth = labels.location[:, 2]
    in_view = (depth > 1.0) & (depth < MAX_DEPTH) & (truncation < 0.9) & (_height(labels.bbox) >= MIN_BOX_HEIGHT)
    empty = points[order] == 0
    return _finished(labels, np.clip(truncation, 0, 1), occlusion, in_view, empty)


def _finished(labels: kitti.Labels, truncation: Array, occlusion: Array, in_view: Array, empty: Array) -> kitti.Labels:
    """The rows in view with their columns filled; those without points become DontCare and come last."""
    rows = np.concatenate([np.flatnonzero(in_view & ~empty), np.flatnonzero(in_view & empty)])
    ignored = empty[rows]
    fill = np.where(ignored[:, None], -1000.0, labels.location[rows])
    return kitti.Labels(
        names=tuple(kitti.DONT_CARE if e else labels.names[i] for i, e in zip(rows, ignored, strict=True)),
        truncation=np.where(ignored, -1.0, np.round(truncation[rows], 2)),
        occlusion=np.where(ignored, -1, occlusion[rows]).astype(np.int64),
        alpha=np.where(ignored, -10.0, labels.alpha[rows]),
        bbox=labels.bbox[rows],
        dimensions=np.where(ignored[:, None], -1.0, labels.dimensions[rows]),
        location=fill,
        rotation_y=np.where(ignored, -10.0, labels.rotation_y[rows]),
        scores=None,
    )


def _from_sensor(actor: Actor, sensor: SpinningLidar) -> Array:
    """An actor's box with the sensor as origin, and the room around the object that people leave."""
    return actor.box + np.array([0, 0, -sensor.height, 2 * ROOM, 2 * ROOM, 0, 0])


def _height(bbox: Array) -> Array:
    return bbox[:, 3] - bbox[:, 1]


def _area(bbox: Array) -> Array:
    return np.clip(bbox[:, 2] - bbox[:, 0], 0, None) * np.clip(_height(bbox), 0, None)


def write_frame(root: Path, frame_id: str, scene: Scene, scan: Scan, sensor: SpinningLidar) -> list[Path]:
    """Write points, labels and calibration of one frame.

    Args:
        root: the data folder; the files go to training/ below it.
        frame_id: of the frame, which names the files.
        scene: the street.
        scan: of it.
        sensor: which made the scan.

    Returns:
        The files.
    """
    calib = calibration()
    kitti.write_frame(root, frame_id, scan.points, labels_of(scene, scan, sensor, calib), calib)
    frame = kitti.Frame(root, frame_id)
    return [frame.points, frame.labels, frame.calibration]
