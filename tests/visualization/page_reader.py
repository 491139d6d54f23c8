"""What stands in a picture page, read back from its HTML."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np


def read_page(path: Path) -> tuple[dict[str, Any], bytes]:
    """The description and the bytes of a page."""
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    blob = re.search(r'<script type="text/plain" id="blob">(.*?)</script>', text, re.DOTALL)
    return json.loads(data[1]), gzip.decompress(base64.b64decode(blob[1]))


def points_in(frame: dict[str, Any], blob: bytes) -> np.ndarray:
    """The points [N, 3] of a frame, in metres."""
    points = frame["points"]
    steps = np.frombuffer(blob, "<u2", 3 * points["count"], points["at"]).reshape(-1, 3)
    return np.array(points["low"]) + steps / 65535 * np.array(points["size"])


def channel_in(frame: dict[str, Any], blob: bytes, name: str) -> np.ndarray:
    """The byte of each point of a frame in a column."""
    points = frame["points"]
    return np.frombuffer(blob, np.uint8, points["count"], points["channels"][name])
