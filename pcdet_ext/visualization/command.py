"""What the command `pcdet visualize` does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from pcdet_ext.files import DataError, check_output_file
from pcdet_ext.visualization.bev import draw_bev
from pcdet_ext.visualization.page import write_page
from pcdet_ext.visualization.scene import Scene, read_kitti_scene, with_detections
from pcdet_ext.visualization.view import render, show_window


def visualize(
    files: list[Path],
    out: Path | None = None,
    style: str | None = None,
    labels: Path | None = None,
    results: Path | None = None,
    calib: Path | None = None,
    score: float = 0.3,
    device: str = "auto",
    imports: bool = False,
) -> list[Path]:
    """Draw each frame that `files` names; returns the pictures written (none for a window).

    files: point files or label files, and at most one checkpoint (.ckpt) whose detector is run on the points; out: a
    .png or .html file, a folder for several frames, or None for a window; style: "map" (from above), "view" (Open3D)
    or "page" (HTML), by default what the suffix of `out` means; score: lowest score shown; imports: see
    `inference.load`.
    Raises ValueError, OSError, RuntimeError or ImportError with a message that names the file or the missing part.
    """
    checkpoints = [f for f in files if f.suffix == ".ckpt"]
    frames = [f for f in files if f.suffix != ".ckpt"]
    if len(checkpoints) > 1 or not frames:
        raise ValueError("give at least one frame (points or labels) and at most one checkpoint")
    for path in files:
        if not path.exists():
            raise ValueError(f"{path}: no such file")
    if not score <= math.inf:
        raise ValueError(f"score must be a number, got {score}")
    scenes = _scenes(frames, labels, results, calib)
    if checkpoints:
        scenes = _detected(frames, scenes, checkpoints[0], device, imports)
    if out is None:
        for scene in scenes:
            show_window(scene.above(score))
        return []
    style = style or ("page" if out.suffix == ".html" else "map")
    targets = _targets(frames, out, style)
    for target in targets:
        check_output_file(target)
    for scene, target in zip(scenes, targets, strict=True):
        _write(scene, target, style, score)
    return targets


def _scenes(frames: list[Path], labels: Path | None, results: Path | None, calib: Path | None) -> Iterator[Scene]:
    for frame in frames:
        alone = frame.suffix == ".txt"
        scene = read_kitti_scene(
            points=None if alone else frame,
            labels=frame if alone else _of_frame(labels, frame),
            calibration=_of_frame(calib, frame),
            results=_of_frame(results, frame),
        )
        if not scene.finite().holds_something:
            raise DataError(f"{frame}: has no finite point, nor boxes: there is nothing to draw")
        yield scene


def _of_frame(path: Path | None, frame: Path) -> Path | None:
    """The file of a frame in a folder of files, or the file itself."""
    if path is None or not path.is_dir():
        return path
    candidate = path / f"{frame.stem}.txt"
    if not candidate.exists():
        raise ValueError(f"{candidate}: no such file")
    return candidate


def _detected(
    frames: list[Path], scenes: Iterator[Scene], checkpoint: Path, device: str, imports: bool
) -> Iterator[Scene]:
    """The scenes with detections; the detector reads the files itself, as it knows which columns it needs."""
    from pcdet_ext.inference import boxes_of, check_finds_boxes, load

    detector = load(checkpoint, device=device, imports=imports)
    check_finds_boxes(detector.model)
    for frame, scene in zip(frames, scenes, strict=True):
        if frame.suffix == ".txt":
            raise ValueError(f"{scene.title}: a detector needs points, not labels alone")
        yield with_detections(scene, boxes_of(detector.detect(frame)))


def _targets(frames: list[Path], out: Path, style: str) -> list[Path]:
    """Where each frame's picture goes."""
    suffix = ".html" if style == "page" else ".png"
    if not out.suffix:
        return _in_folder(frames, out, suffix)
    if out.suffix != suffix:
        raise ValueError(f"{out}: a picture of style {style!r} is a {suffix} file")
    if len(frames) > 1:
        raise ValueError(f"{out}: several frames need a folder, not one file")
    return [out]


def _in_folder(frames: list[Path], out: Path, suffix: str) -> list[Path]:
    """A picture of each frame's name. Raises ValueError where two would have the same, and one be lost."""
    of: dict[Path, Path] = {}
    for frame in frames:
        target = out / f"{frame.stem}{suffix}"
        if target in of:
            raise ValueError(f"{target}: would be the picture of {of[target]} and of {frame}; draw them one by one")
        of[target] = frame
    return list(of)


def _write(scene: Scene, target: Path, style: str, score: float) -> None:
    if style == "page":
        write_page(scene, target, score)  # all detections: the page filters by itself
    elif style == "view":
        render(scene.above(score), target)
    else:
        draw_bev(scene.above(score), target)
