"""Published implementations: their configurations and checkpoints here, and numeric comparisons with them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pcdet_ext.config import suggest
from pcdet_ext.interop.settings import every_setting_counts

if TYPE_CHECKING:
    from torch import Tensor, nn

# Each module has from_official(config, state_dict); it is imported when it is asked for.
SYSTEMS = {
    "dsvt": "pcdet_ext.interop.dsvt",
    "flatformer": "pcdet_ext.interop.flatformer",
    "hotformerloc": "pcdet_ext.interop.hotformerloc",
    "lion": "pcdet_ext.interop.lion",
    "lion2": "pcdet_ext.interop.lion",
    "octformer": "pcdet_ext.interop.octformer",
    "octree": "pcdet_ext.interop.octree",
    "openpcdet": "pcdet_ext.interop.openpcdet_detectors",
    "openpcdet2": "pcdet_ext.interop.openpcdet_detectors",
    "scatterformer": "pcdet_ext.interop.scatterformer",
    "trajectoryformer": "pcdet_ext.interop.trajectoryformer",
    "unilion": "pcdet_ext.interop.unilion",
}


def from_official(system: str, config: Mapping[str, Any], state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A module of this library, in eval mode, that does what a published one with this configuration does.

    Args:
        system: a key of `SYSTEMS`.
        config: the settings under their published names.
        state_dict: the parameters under their published names, or None for fresh ones.

    Raises:
        ValueError: the system or a setting is unknown, a setting has no counterpart here, or parameters do not fit.
    """
    if system not in SYSTEMS:
        raise ValueError(f"no system is named {system!r}{suggest(system, SYSTEMS)}")
    with every_setting_counts(config) as settings:
        return import_module(SYSTEMS[system]).from_official(settings, state_dict)
