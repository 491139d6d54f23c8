"""pcdet_ext: 3-D perception in LiDAR point clouds with sparse voxel sequence backbones."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcdet_ext.config import list_models
    from pcdet_ext.inference import Detector, build, load
    from pcdet_ext.places import PlaceIndex

__version__ = "0.1.0"
__all__ = ["Detector", "PlaceIndex", "build", "list_models", "load"]

# What the package offers directly, and the module that defines it.
_DEFINED_IN = {
    "Detector": "pcdet_ext.inference",
    "build": "pcdet_ext.inference",
    "list_models": "pcdet_ext.config",
    "load": "pcdet_ext.inference",
    "PlaceIndex": "pcdet_ext.places",
}


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is asked for, so that `import pcdet_ext` stays light."""
    if name not in _DEFINED_IN:
        raise AttributeError(f"module 'pcdet_ext' has no attribute {name!r}")
    return getattr(import_module(_DEFINED_IN[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
