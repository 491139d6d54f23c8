"""Detection frame by frame in a recording, by a detector that remembers the frames before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.ranges import check_timestamp
from pcdet_ext.rigid import check_rigid
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import Array, PointBatch


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


UNNAMED = "(unnamed)"  # the recording of frames of which it is not said
ROTATION_TOLERANCE = 1e-3  # of a product of two rows of a rotation; rounding to float32 is far below


class Stream:
    """Frames of recordings one after the other, as they come.

    What is remembered is forgotten where another sequence begins, and after the time that the detector's model says.
    A frame that is missing makes the time to the next one longer. A detector without memory finds the same as in single
    frames.

    Attributes: memory, what is remembered now, None at the beginning.

    Args:
        detector: finds the objects.
    """

    def __init__(self, detector: DetectsOverTime) -> None:
        self.detector = detector
        self.memory: VoxelMemory | None = None
        self._last: tuple[str, float] | None = None  # the sequence and the time of the frame before

    def reset(self) -> None:
        """Forget everything: the next frame is the first one of a recording."""
        self.memory = self._last = None

    def detect(
        self, points: Array | Tensor | str | Path, pose: Array | Tensor, timestamp: float, sequence_id: str = ""
    ) -> Any:
        """Find objects in the next frame.

        Args:
            points: as for `Detector.detect`. An empty cloud has no detections, and changes nothing in the memory.
            pose: [4, 4], of the frame of the points in a world that stays the same through a sequence: a rotation and a
                translation in metres.
            timestamp: seconds, no less than that of the frame before in the same sequence.
            sequence_id: a text that is the same for frames of one recording, and may be left out where there is one.

        Returns:
            As `Detector.detect` for one cloud.

        Raises:
            ValueError: the pose is no rotation and translation, the pose or the time is not finite, or the time goes
                back; and as `Detector.detect`. Nothing that is remembered changes.
        """
        place, name = _rigid(pose), sequence_id or UNNAMED
        time = self._checked_time(timestamp, name)
        cloud = self.detector.cloud(points)
        context = FrameContext(place[None], torch.tensor([time], dtype=torch.float64), (name,))
        frame_id = str(points) if isinstance(points, (str, Path)) else ""
        batch = replace(PointBatch.from_points([cloud]), context=context, frame_ids=(frame_id,))
        (found,), self.memory = self.detector.predict_and_memory(batch, self.memory)
        self._last = name, time
        return found.to(points.device) if isinstance(points, Tensor) else found.numpy()

    def _checked_time(self, timestamp: float, name: str) -> float:
        """Raises ValueError for what is no finite time, or before that of the last frame of the same recording."""
        time = check_timestamp(timestamp)
        if self._last is not None and self._last[0] == name and time < self._last[1]:
            raise ValueError(
                f"timestamp goes back from {self._last[1]} to {time} s: frames of a recording must come in the order "
                "of time; call reset() before another recording, or give it another sequence_id"
            )
        return time


def _rigid(pose: Array | Tensor) -> Tensor:
    """A pose on the CPU, float64 [4, 4]. Raises ValueError for one that is not a rotation and a translation."""
    given: Any = pose
    if isinstance(pose, Tensor) and pose.layout == torch.strided and not pose.is_complex():
        given = pose.detach().to("cpu", torch.float64).numpy()
    return torch.from_numpy(check_rigid(given, ROTATION_TOLERANCE))
