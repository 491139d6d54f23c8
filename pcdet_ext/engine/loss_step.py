"""The loss of a detector as a module, in the form that strategies for several processes wrap."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.structures import PointBatch


@runtime_checkable
class HasLoss(Protocol):
    """What can be trained."""

    def loss(self, batch: Any) -> Mapping[str, Tensor]:
        """Losses of a batch by name; "total" is what is minimised."""
        ...


class Wrapped:
    """Hides a batch from Fabric, which casts floating-point inputs to half precision.

    Coordinates in bfloat16 would be exact to a quarter of a metre at 40 m.
    """

    def __init__(self, batch: Any) -> None:
        self.batch = batch


class LossStep(nn.Module):
    """The detector's loss as a forward pass, which is what strategies wrap.

    What a detector over time remembers goes from one batch to the next; it forgets where another sequence begins.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        if not isinstance(detector, HasLoss):
            raise TypeError(f"a {type(detector).__name__} cannot be trained: it has no loss(batch)")
        self.detector = detector
        self.loss = detector.loss
        self.remembers = getattr(detector, "temporal", None) is not None
        self.memory: VoxelMemory | None = None

    def forward(self, wrapped: Wrapped) -> Mapping[str, Tensor]:
        if not self.remembers:
            return self.loss(wrapped.batch)
        warn_without_places(wrapped.batch)
        detector: Any = self.detector
        losses: Mapping[str, Tensor]
        losses, self.memory = detector.loss_and_memory(wrapped.batch, self.memory)
        return losses


def warn_without_places(batch: PointBatch) -> None:
    """Warn, once, where a detector over time is given frames of which it is not known where or when they were taken."""
    if batch.context is None and len(batch.points):
        warnings.warn(
            "this detector remembers earlier frames, but the data do not say where (pose) or when (timestamp) frames "
            "were taken: each is looked at alone",
            stacklevel=2,
        )
