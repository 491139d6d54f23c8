"""This library inside mmdetection3d: its backbones, encoders and heads in the registry, and its operations.

`custom_imports = dict(imports=["pcdet_ext.plugins.mmdet3d"])` in a configuration registers; `operations()` answers what
mmcv would have to compile, so that `mmcv-lite` is enough; and `python -m pcdet_ext.plugins.mmdet3d tools/train.py …`
does both for an unedited mmdetection3d. See docs/plugins.md.
"""

from __future__ import annotations

from pcdet_ext.plugins.mmdet3d.environment import operations, prepare
from pcdet_ext.plugins.mmdet3d.registration import register

__all__ = ["operations", "prepare", "register"]

register()
