"""What notebooks show of samples and detections: boxes where they are, points as pixels, nothing that is markup."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from pcdet_ext.structures import Detections, Sample, Targets

BOX = np.array([[10.0, 5, 0, 4, 2, 1.5, np.pi / 2]], np.float32)


def svg(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search(r"<svg.*</svg>", html, re.DOTALL)[0])


def outlines(html: str) -> list[np.ndarray]:
    lines = [part for part in svg(html).iter() if part.tag.endswith("polyline")]
    return [np.array([pair.split(",") for pair in line.get("points").split()], float) for line in lines]


def test_detections_are_drawn_from_above_to_scale() -> None:
    found = Detections(torch.from_numpy(BOX).requires_grad_(), torch.tensor([0.75]), torch.tensor([1]), ("Car", "<i>"))
    html = found._repr_html_()
    (line,) = outlines(html)
    assert (svg(html).get("width"), svg(html).get("height")) == ("480", "480")  # 20 m: 24 pixels per metre
    # It heads to the top; its front corners come first, the left one, which is at the lower x, before the right one.
    expected = np.array([[-1, 2], [1, 2], [1, -2], [-1, -2], [-1, 2], [0, 0], [0, 2]]) * [24, -24] + 240
    np.testing.assert_allclose(line, expected, atol=0.06)
    assert "<p>1 detections: 1 &lt;i&gt;</p>" in html
    assert "<td>&lt;i&gt;</td><td>0.75</td><td>10.0 5.0 0.0</td><td>4.0 2.0 1.5</td><td>90°</td>" in html
    assert "<i>" not in html


def test_a_sample_is_drawn_with_its_points() -> None:
    from PIL import Image

    points = np.array([[10.0, 9, 0], [10, 5, 1], [10, 5, 2], [np.nan, 0, 0], [11, 5, 0]], np.float32)
    sample = Sample(points, ("x", "y", "z"), "7", Targets.of_names(BOX, ("Car",)))
    html = sample._repr_html_()
    assert "frame 7: 5 points (x, y, z), 1 boxes" in html
    (image,) = [part for part in svg(html).iter() if part.tag.endswith("image")]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.get("href").partition(",")[2]))))
    assert (pixels[..., 3] > 0).sum() == 3  # two are in one pixel
    ends = outlines(html)[0]
    column, row = ends[5]  # the middle of the box, where two points are
    around = pixels[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2].reshape(-1, 4)
    assert around[around[:, 3] > 0].tolist() == [[0xFD, 0xE7, 0x25, 255]]  # of them the highest is seen


@pytest.mark.parametrize("count", [0, 3, 700])
def test_many_and_none_are_shown(count: int) -> None:
    boxes = np.tile(BOX, (count, 1))
    boxes[1:2, 0] = np.inf
    found = Detections(boxes, np.linspace(0, 1, count), np.zeros(count, int), ("Car",), track_ids=np.arange(count))
    html = found._repr_html_()
    assert len(outlines(html)) == min(max(count - 1, 0), 500)
    assert html.count("<tr>") == 1 + min(count, 20)
    assert ("and 680 more" in html) == (count == 700)
    if count:  # the best comes first
        assert f"<td>1.00</td><td>{count - 1}</td>" in html.split("<tr>")[2]
    assert (
        Sample(np.zeros((0, 3)), ("x", "y", "z"), "<b>", Targets(boxes[:, :7]))
        ._repr_html_()
        .startswith("<p>frame &lt;b")
    )
