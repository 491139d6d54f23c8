"""The octree transformers OctFormer and HOTFormerLoc, told apart by their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pcdet_ext.interop import hotformerloc, octformer

OF_HOTFORMERLOC = ("stage", "pooling")  # settings that only its configurations have


def from_official(config: Mapping[str, Any], state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """See `hotformerloc.from_official` for configurations with `stage` or `pooling`, `octformer.from_official` else."""
    system = hotformerloc if any(key in config for key in OF_HOTFORMERLOC) else octformer
    return system.from_official(config, state_dict)
