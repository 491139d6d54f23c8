"""A small picture from above, and a table, as HTML: what notebooks show of a frame or of what was found in it.

Nothing is imported for it before it is drawn, and then pillow alone.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

import numpy as np

from pcdet_ext.rigid import Array, from_box_frames

TRUTH_COLOUR = "#2ca02c"
CLASS_COLOURS = (
    *("#d62728", "#1f77b4", "#ff7f0e", "#9467bd", "#e377c2"),
    *("#17becf", "#bcbd22", "#8c564b", "#7f7f7f", "#aec7e8"),
)
VIRIDIS = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
)
GROUND = "#10141a"
PIXELS = 480  # of the longer side
FEWEST_METRES = 20.0
MOST_BOXES = 500  # that are drawn
MOST_ROWS = 20  # of a table


def picture(points: Array, boxes: Array, colours: Sequence[str], texts: Sequence[str]) -> str:
    """An SVG picture from above, x to the right and y up, with points coloured by height.

    Args:
        points: float [N, 3 or more], may be empty.
        boxes: float [M, 7 or 9]; those whose place or size is not finite are left out, as those after the first 500.
        colours: "#rrggbb", one per box.
        texts: one per box, shown when the pointer is on it.
    """
    points = points[np.isfinite(points[:, :3]).all(1), :3]
    drawn = [i for i in range(len(boxes)) if np.isfinite(boxes[i, :7]).all()][:MOST_BOXES]
    corners = _corners(boxes[drawn].astype(np.float64))
    low, high = _bounds(points, corners)
    scale = PIXELS / float((high - low).max())
    width, height = np.ceil((high - low) * scale).astype(int).tolist()
    parts = [f'<rect width="{width}" height="{height}" fill="{GROUND}"/>', _image(points, low, scale, width, height)]
    for i, outline in zip(drawn, corners, strict=True):
        places = (outline - low) * scale * [1, -1] + [0, height]
        parts.append(_outline(places, colours[i], texts[i]))
    view = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {view}>{"".join(parts)}</svg>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of the first 20 rows, and how many more there are."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[:MOST_ROWS]
    )
    more = len(rows) - MOST_ROWS
    note = f"<p>and {more} more</p>" if more > 0 else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def class_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each class of a list."""
    return {name: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, name in enumerate(names)}


def _corners(boxes: Array) -> Array:
    """[M, 7, 2]: around each box from its front, and then from its middle to its front."""
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [1, 1], [0, 0], [1, 0]])
    return from_box_frames(signs, boxes)


def _bounds(points: Array, corners: Array) -> tuple[Array, Array]:
    """The lowest and the highest x and y [2] of all boxes and of 98 % of the points, at least 20 m apart."""
    parts = [corners.reshape(-1, 2)]
    if len(points):
        parts.append(np.percentile(points[:, :2], [1, 99], axis=0))
    places = np.concatenate(parts)
    if not len(places):
        places = np.zeros((1, 2))
    low, high = places.min(0), places.max(0)
    grow = np.maximum(FEWEST_METRES - (high - low), 4) / 2
    return low - grow, high + grow


def _image(points: Array, low: Array, scale: float, width: int, height: int) -> str:
    """The points as an image inside the picture: of several in a pixel, the highest."""
    if not len(points):
        return ""
    from PIL import Image

    ramp = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in VIRIDIS])
    pixels = np.zeros((height, width, 4), np.uint8)
    cells = np.floor((points[:, :2] - low) * scale).astype(np.int64)
    inside = ((cells >= 0) & (cells < [width, height])).all(1)
    order = np.argsort(points[inside, 2], kind="stable")
    cells, z = cells[inside][order], points[inside, 2][order]
    bottom, top = np.percentile(z, [2, 98]) if len(z) else (0.0, 1.0)
    share = np.clip((z - bottom) / max(top - bottom, 1e-3), 0, 1) * (len(ramp) - 1)
    colours = np.stack([np.interp(share, np.arange(len(ramp)), ramp[:, c]) for c in range(3)], 1)
    pixels[height - 1 - cells[:, 1], cells[:, 0]] = np.column_stack([colours, np.full(len(z), 255)])
    target = io.BytesIO()
    Image.fromarray(pixels).save(target, "PNG")
    data = base64.b64encode(target.getvalue()).decode()
    return f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/>'


def _outline(places: Array, colour: str, text: str) -> str:
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places.tolist())
    title = f"<title>{html.escape(text)}</title>"
    return f'<polyline points="{line}" fill="{colour}" fill-opacity="0.15" stroke="{colour}">{title}</polyline>'


def box_table(boxes: Array, names: Sequence[str], scores: Array | None, track_ids: Array | None) -> str:
    """An HTML table of boxes: class, score and track where there are some, place, size, heading in degrees.

    Args:
        boxes: [M, 7 or 9].
        names: class of each.
        scores: [M], or None.
        track_ids: int64 [M], or None.
    """
    columns = ["class", *(["score"] if scores is not None else []), *(["track"] if track_ids is not None else [])]
    rows = []
    for i, (box, name) in enumerate(zip(boxes.tolist(), names, strict=True)):
        told = [] if scores is None else [f"{scores[i]:.2f}"]
        told += [] if track_ids is None else [str(int(track_ids[i]))]
        place, size = (" ".join(f"{value:.1f}" for value in box[k : k + 3]) for k in (0, 3))
        rows.append([name, *told, place, size, f"{np.degrees(box[6]):.0f}°"])
    return table([*columns, "x y z (m)", "size (m)", "heading"], rows)


def frame_html(title: str, points: Array, boxes: Array | None, names: Sequence[str]) -> str:
    """A frame with its labelled boxes as HTML: title, picture from above, table.

    Args:
        title: any text.
        points: [N, 3 or more].
        boxes: [M, 7 or 9], or None.
        names: class of each box; boxes without names are called objects.
    """
    boxes = np.zeros((0, 7)) if boxes is None else boxes
    names = names if len(names) == len(boxes) else ["object"] * len(boxes)
    drawn = picture(points, boxes, [TRUTH_COLOUR] * len(boxes), names)
    return f"<p>{html.escape(title)}</p>{drawn}{box_table(boxes, names, None, None) if len(boxes) else ''}"


def found_html(boxes: Array, scores: Array, names: Sequence[str], classes: Sequence[str], tracks: Array | None) -> str:
    """Detections as HTML: how many, picture from above, and a table of the best.

    Args:
        boxes: [M, 7 or 9].
        scores: [M].
        names: class of each box.
        classes: all class names, whose order gives the colours.
        tracks: int64 [M], or None.
    """
    colours = class_colours(classes)
    best = np.argsort(-scores, kind="stable")
    boxes, scores, names = boxes[best], scores[best], [names[i] for i in best]
    texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
    drawn = picture(np.zeros((0, 3)), boxes, [colours[name] for name in names], texts)
    counts = ", ".join(f"{names.count(name)} {html.escape(name)}" for name in classes if name in names)
    own = None if tracks is None else tracks[best]
    return (
        f"<p>{len(boxes)} detections{': ' if counts else ''}{counts}</p>{drawn}{box_table(boxes, names, scores, own)}"
    )
