"""An animation of a drive seen from above, as a GIF."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import Image

from pcdet_ext.files import atomic_write
from pcdet_ext.visualization.bev import bev_figure, view_range
from pcdet_ext.visualization.scene import Scene

FRAME_MILLISECONDS = 200
DPI = 70  # of pictures that are 12 inches wide
COLOURS = 256


def write_animation(scenes: Iterable[Scene], path: str | Path, milliseconds: int = FRAME_MILLISECONDS) -> None:
    """Write a GIF that shows scene after scene from above, each in its own LiDAR frame, and begins anew at the end.

    Args:
        scenes: in the order of time, with those detections that are to be shown. All show the part of the ground that
            the first one needs.
        path: the file.
        milliseconds: that each is seen.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is no scene.
    """
    pictures = list(_pictures(scenes))
    if not pictures:
        raise ValueError("an animation needs at least one frame")
    first, *others = pictures
    with atomic_write(path) as temporary:
        first.save(temporary, "GIF", save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=False)


def _pictures(scenes: Iterable[Scene]) -> Iterator[Image.Image]:
    view = None
    for scene in scenes:
        view = view or view_range(scene.finite())
        data = io.BytesIO()
        bev_figure(scene, view).savefig(data, dpi=DPI, format="png")
        with Image.open(data) as picture:
            yield picture.convert("RGB").quantize(COLOURS)
