"""Results of any code base as detections by frame, to be shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pcdet_ext.data.waymo.frames import TYPES
from pcdet_ext.evaluation.waymo_boxes import Boxes, Name
from pcdet_ext.structures import Detections


def detections_by_frame(found: Boxes, classes: Sequence[str], frame_ids: Mapping[Name, str]) -> dict[str, Detections]:
    """Detections as NumPy arrays, by the id of their frame; boxes of other frames are left out.

    Args:
        found: of all frames.
        classes: come first in the detections' class names.
        frame_ids: by segment and timestamp.
    """
    names = (*classes, *(name for name in TYPES if name not in classes))
    label = np.array([names.index(name) for name in TYPES], np.int64)
    rows: dict[Name, list[int]] = {}
    for row, name in enumerate(found.frames):
        rows.setdefault(name, []).append(row)
    return {
        frame_ids[name]: Detections(
            found.boxes[own].astype(np.float32), found.score[own], label[found.type[own]], names, frame_ids[name]
        )
        for name, own in rows.items()
        if name in frame_ids
    }
