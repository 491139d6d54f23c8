"""Detection frame by frame in a recording, by a detector that remembers the frames before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import Array, PointBatch, tensor_of


class DetectsOverTime(Protocol):
    """What a stream needs of a detector; see `inference.Detector`."""

    def cloud(self, points: Any) -> Tensor:
        """The points of one cloud, float32 [N, F]."""
        ...

    def predict_and_memory(
        self, batch: PointBatch, memory: VoxelMemory | None = None
    ) -> tuple[list[Any], VoxelMemory | None]:
        """What is found in each frame of a batch, and what to remember."""
        ...


class Stream:
    """Frames of recordings one after the other, as they come.

    What is remembered is forgotten where another sequence begins, and after the time that the detector's model says.
    A detector without memory finds the same as in single frames.

    Attributes: memory, what is remembered now, None at the beginning.

    Args:
        detector: finds the objects.
    """

    def __init__(self, detector: DetectsOverTime) -> None:
        self.detector = detector
        self.memory: VoxelMemory | None = None

    def reset(self) -> None:
        """Forget everything."""
        self.memory = None

    def detect(
        self, points: Array | Tensor | str | Path, pose: Array | Tensor, timestamp: float, sequence_id: str = ""
    ) -> Any:
        """Find objects in the next frame.

        Args:
            points: as for `Detector.detect`. An empty cloud has no detections, and changes nothing in the memory.
            pose: [4, 4], of the frame of the points in a world that stays the same through a sequence, metres.
            timestamp: seconds.
            sequence_id: a text that is the same for frames of one recording.

        Returns:
            As `Detector.detect` for one cloud.

        Raises:
            ValueError: the pose is no 4x4 matrix that can be inverted, or the pose or the time is not finite; and as
                `Detector.detect`.
        """
        place = tensor_of(pose).detach().to("cpu", torch.float64)
        if place.shape != (4, 4) or not bool(place.isfinite().all()) or float(torch.linalg.det(place)) == 0:
            raise ValueError(f"pose must be a matrix [4, 4] of finite numbers that can be inverted, got {pose}")
        if not np.isfinite(timestamp):
            raise ValueError(f"timestamp must be finite seconds, got {timestamp}")
        context = FrameContext(place[None], torch.tensor([timestamp], dtype=torch.float64), (sequence_id,))
        name = str(points) if isinstance(points, (str, Path)) else ""
        batch = PointBatch.from_points([self.detector.cloud(points)])
        batch = replace(batch, context=context, frame_ids=(name,))
        (found,), self.memory = self.detector.predict_and_memory(batch, self.memory)
        return found.to(points.device) if isinstance(points, Tensor) else found.numpy()
