"""pcdet_ext: 3D object detection in LiDAR point clouds with sparse voxel sequence backbones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcdet_ext.inference import Detector, build, load

__all__ = ["Detector", "build", "load"]


def __getattr__(name: str) -> Any:
    """The front door: what it names is imported when it is asked for, so that `import pcdet_ext` stays light."""
    if name not in __all__:
        raise AttributeError(f"module 'pcdet_ext' has no attribute {name!r}")
    from pcdet_ext import inference

    return getattr(inference, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
