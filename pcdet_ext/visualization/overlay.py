"""Two clouds laid over each other, seen from above: before and after a pose was found."""

from __future__ import annotations

from pathlib import Path

from pcdet_ext.files import atomic_write
from pcdet_ext.structures import Array

COLOURS = ("#d95f02", "#1b6ca8")


def draw_overlay(path: str | Path, source: Array, target: Array, pose: Array, names: tuple[str, str]) -> None:
    """Write a PNG with both clouds as they are, and with the source moved into the frame of the target.

    Args:
        path: the file.
        source: points [N, 3+] in metres.
        target: points [M, 3+] in metres.
        pose: float [4, 4], source to target.
        names: what the picture calls the two clouds.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'pcdet_ext[vis]'") from error
    moved = source[:, :3] @ pose[:3, :3].T + pose[:3, 3]
    figure = Figure(figsize=(14, 7), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for title, cloud, place in (("as given", source, 121), ("source moved by the pose", moved, 122)):
        axes = figure.add_subplot(place, aspect="equal", title=title, xlabel="x (m)", ylabel="y (m)")
        for points, colour, name in zip((target, cloud), COLOURS[::-1], names[::-1], strict=True):
            axes.plot(points[:, 0], points[:, 1], ",", color=colour, label=name)
        axes.legend(markerscale=20, loc="upper right")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png")
