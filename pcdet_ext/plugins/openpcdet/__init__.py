"""This library inside OpenPCDet: its backbones, encoders and heads in OpenPCDet's registries, and its operations.

`import pcdet_ext.plugins.openpcdet` registers; `operations()` answers what OpenPCDet would have to compile; and
`python -m pcdet_ext.plugins.openpcdet train.py --cfg_file …` does both, and runs an unedited checkout without a build
and without a GPU. See docs/plugins.md.
"""

from __future__ import annotations

from pcdet_ext.plugins.openpcdet.environment import operations, package_folder, prepare
from pcdet_ext.plugins.openpcdet.registration import register

__all__ = ["operations", "package_folder", "prepare", "register"]

register()
