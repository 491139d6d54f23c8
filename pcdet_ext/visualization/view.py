"""A 3-D view with Open3D: a window where there is a screen, a picture where there is none."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from pcdet_ext.files import atomic_write
from pcdet_ext.sketch import TRUTH_COLOUR
from pcdet_ext.structures import Array
from pcdet_ext.visualization.levels import levels
from pcdet_ext.visualization.scene import (
    FOUND_TRACK_COLOUR,
    Scene,
    Track,
    box_edges,
    boxes_in,
    velocity_arrows,
)

BACKGROUND = (0.06, 0.08, 0.10, 1.0)


def _open3d() -> ModuleType:
    try:
        import open3d
    except (ImportError, OSError) as error:
        raise ImportError(
            f"Open3D cannot be loaded ({error}): pip install 'pcdet_ext[vis]', and on Debian the packages "
            "libusb-1.0-0 libgl1 libgomp1"
        ) from error
    return open3d


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _height_colours(points: Array) -> Array:
    """A ramp from blue over green to yellow between the 2nd and 98th percentile of height."""
    ramp = np.array([[0.27, 0.20, 0.55], [0.15, 0.55, 0.55], [0.40, 0.78, 0.38], [0.99, 0.91, 0.14]])
    low, high = np.percentile(points[:, 2], [2, 98]) if len(points) else (0.0, 1.0)
    share = np.clip((points[:, 2] - low) / max(high - low, 1e-3), 0, 1) * (len(ramp) - 1)
    return np.stack([np.interp(share, np.arange(len(ramp)), ramp[:, c]) for c in range(3)], 1)


def _point_colours(scene: Scene) -> Array:
    """RGB [N, 3] by class where points have labels, by age where they come from several sweeps, else by height."""
    told = levels(scene)
    return _height_colours(scene.points) if told is None else np.array([_rgb(c) for c in told.colours])[told.level]


def _geometries(o3d: ModuleType, scene: Scene) -> list[tuple[str, Any]]:
    """Named Open3D geometries: the cloud, the ground truth, and the detections of each class."""
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(scene.points[:, :3].astype(np.float64)))
    cloud.colors = o3d.utility.Vector3dVector(_point_colours(scene))
    found = [("points", cloud)] if len(scene.points) else []
    if len(truth := boxes_in(scene.truth)):
        found.append(("ground truth", _boxes(o3d, truth, TRUTH_COLOUR)))
    if scene.truth_tracks:
        found.append(("tracks of ground truth", _tracks(o3d, scene.truth_tracks, TRUTH_COLOUR)))
    if scene.found_tracks:
        found.append(("tracks of detections", _tracks(o3d, scene.found_tracks, FOUND_TRACK_COLOUR)))
    if scene.detections is not None:
        names = np.array(scene.detections.names, dtype=object)
        for name, colour in scene.colours().items():
            boxes = np.asarray(scene.detections.boxes)[np.flatnonzero(names == name)]
            if len(boxes):
                found.append((name, _boxes(o3d, boxes, colour)))
    return found


def _boxes(o3d: ModuleType, boxes: Array, colour: str) -> Any:
    edges, arrows = box_edges(boxes), velocity_arrows(boxes)
    return _lines(o3d, np.concatenate([edges.reshape(-1, 2, 3), arrows.reshape(-1, 2, 3)]), colour)


def _tracks(o3d: ModuleType, tracks: Sequence[Track], colour: str) -> Any:
    pieces = [np.stack([track.positions[:-1], track.positions[1:]], 1) for track in tracks]
    return _lines(o3d, np.concatenate(pieces), colour)


def _lines(o3d: ModuleType, segments: Array, colour: str) -> Any:
    """Segments [K, 2, 3] of one colour."""
    ends = segments.reshape(-1, 3).astype(np.float64)
    pairs = np.arange(len(ends)).reshape(-1, 2)
    lines = o3d.geometry.LineSet(o3d.utility.Vector3dVector(ends), o3d.utility.Vector2iVector(pairs))
    lines.paint_uniform_color(_rgb(colour))
    return lines


def show_window(scene: Scene) -> None:
    """Open a window and wait until it is closed. Raises RuntimeError where there is no screen."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise RuntimeError("there is no screen here (DISPLAY is not set): write a picture with --out instead")
    o3d, scene = _open3d(), scene.finite()
    geometries = [{"name": name, "geometry": geometry} for name, geometry in _geometries(o3d, scene)]
    o3d.visualization.draw(
        geometries, title=scene.title or "pcdet_ext", bg_color=BACKGROUND, point_size=2, line_width=3
    )


def render(scene: Scene, path: str | Path, size: tuple[int, int] = (1280, 800)) -> None:
    """Write a PNG of the scene seen from behind and above the sensor, without a screen.

    Args:
        scene: what is shown.
        path: the file.
        size: width and height in pixels.

    Raises:
        ImportError: Open3D is not installed.
        RuntimeError: the system has no graphics driver that Open3D can use.
    """
    scene = scene.finite()
    with quiet():
        o3d = _open3d()
        image = _rendered(o3d, scene, size)
    with atomic_write(path) as temporary:
        if not o3d.io.write_image(str(temporary), image):
            raise OSError(f"{path}: Open3D could not write the picture")


def _rendered(o3d: ModuleType, scene: Scene, size: tuple[int, int]) -> Any:
    """The picture; the renderer itself, which prints once more when it goes, does not outlive this."""
    rendering = o3d.visualization.rendering
    try:
        renderer = rendering.OffscreenRenderer(*size)
    except RuntimeError as error:
        raise RuntimeError(
            f"Open3D cannot draw here ({error}): on Debian install libvulkan1 and mesa-vulkan-drivers"
        ) from error
    renderer.scene.set_background(BACKGROUND)
    for name, geometry in _geometries(o3d, scene):
        material = rendering.MaterialRecord()
        is_cloud = name == "points"
        material.shader = "defaultUnlit" if is_cloud else "unlitLine"
        material.point_size, material.line_width = 2.0, 3.0
        renderer.scene.add_geometry(name, geometry, material)
    renderer.setup_camera(60.0, *_camera(scene))
    return renderer.render_to_image()


def _camera(scene: Scene) -> tuple[list[float], list[float], list[float]]:
    """Look-at point, eye and up: over the sensor's shoulder, towards where the boxes or points are."""
    labelled = [b.boxes for b in (scene.truth, scene.detections) if b is not None and b.boxes is not None and len(b)]
    targets = np.concatenate([np.asarray(b)[:, :3] for b in labelled]) if labelled else scene.points[:, :3]
    middle = np.median(targets, 0) if len(targets) else np.array([10.0, 0.0, -1.0])
    forward = np.array([middle[0], middle[1]]) if np.hypot(middle[0], middle[1]) > 3 else np.array([10.0, 0.0])
    direction = forward / np.hypot(*forward)
    eye = [*(-14 * direction), 11.0]
    return [*(direction * 14), -1.0], eye, [0.0, 0.0, 1.0]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what the renderer prints, through C++ and through Python; where it fails, show it on standard error."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as printed:
        try:
            with _descriptors_to(printed.fileno()), redirect_stdout(printed), redirect_stderr(printed):
                yield
        except BaseException:
            printed.seek(0)
            sys.stderr.write(printed.read())
            raise


@contextmanager
def _descriptors_to(target: int) -> Iterator[None]:
    """Send what is written to the descriptors of standard output and error to another one."""
    _flush()
    saved = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in saved:
            os.dup2(target, stream)
        yield
    finally:
        _flush()
        for stream, copy in saved:
            os.dup2(copy, stream)
            os.close(copy)


def _flush() -> None:
    """Write what Python and the C library still hold back, while it goes where it was meant to go."""
    sys.stdout.flush()
    sys.stderr.flush()
    if os.name == "posix":
        ctypes.CDLL(None).fflush(None)
