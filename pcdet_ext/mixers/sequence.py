"""What mixers of sequences share: gather the groups, mix along them, scatter back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from pcdet_ext.structures import Groups, Segments


class SequenceMixer(nn.Module, ABC):
    """A bare mixer that reads the slots of a group one after the other.

    Every slot takes part, copies that fill a group up too, except those that a plan marks as not valid: they hold
    zeros. Subclasses give `mix`.
    """

    plan_types: ClassVar[tuple[type, ...]] = (Groups,)

    def forward(self, x: Tensor, plan: Groups | Segments, position: Tensor | None = None) -> Tensor:
        """Mix features along the sequence that each group is.

        Args:
            x: floating-point [N, C], features of the voxels.
            plan: groups of equal size.
            position: [N, C], added to the features, or None.

        Returns:
            [N, C].

        Raises:
            ValueError: the plan is no `Groups`, or its groups join voxels that must not see each other.
        """
        if not isinstance(plan, Groups):
            raise ValueError(f"{type(self).__name__} takes equal-size Groups, got {type(plan).__name__}")
        if plan.owner is not None:
            _check_owners(plan.owner, plan.valid)
        sequences = plan.gather(x if position is None else x + position)
        if plan.valid is not None:
            sequences = sequences * plan.valid.unsqueeze(-1)
        return plan.scatter(self.mix(sequences))

    @abstractmethod
    def mix(self, sequences: Tensor) -> Tensor:
        """Sequences [G, L, C] to [G, L, C]."""


def _check_owners(owner: Tensor, valid: Tensor | None) -> None:
    """A sequence has no mask between its slots: all that count must have one owner."""
    valid = torch.ones_like(owner, dtype=torch.bool) if valid is None else valid
    highest = owner.masked_fill(~valid, -1).amax(1, keepdim=True)
    if bool((valid & (owner != highest)).any()):
        raise ValueError("a group holds voxels of different owners, which a mixer of sequences cannot keep apart")
