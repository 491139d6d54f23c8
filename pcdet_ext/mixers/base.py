"""What a mixer is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from pcdet_ext.structures import Groups, Segments


class Mixer(Protocol):
    """Exchanges information inside the groups of a plan, and does nothing else.

    A mixer is bare: no residual, no norm around it, no feed-forward part; these belong to the block that holds it
    (`pcdet_ext.models.layers.mixer_block`). Its last linear map is called `out_proj`.

    plan_types: the kinds of plans that it works on.
    """

    plan_types: ClassVar[tuple[type, ...]]

    def __call__(self, x: Tensor, plan: Groups | Segments, position: Tensor | None = None) -> Tensor:
        """Features [N, C] mixed inside the groups, [N, C]; position: [N, C] or None, added where the mixer wants it."""
        ...
