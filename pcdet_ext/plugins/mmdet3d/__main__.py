"""python -m pcdet_ext.plugins.mmdet3d SCRIPT …: run a script of mmdetection3d, unedited, with this library in it."""

from __future__ import annotations

import sys

from pcdet_ext.plugins.launch import launch
from pcdet_ext.plugins.mmdet3d import prepare

USAGE = """usage: python -m pcdet_ext.plugins.mmdet3d SCRIPT [ARGUMENTS]
       python -m pcdet_ext.plugins.mmdet3d -m MODULE [ARGUMENTS]
runs, for example, mmdetection3d's tools/train.py or tools/test.py (in a wheel: mmdet3d/.mim/tools)"""

if __name__ == "__main__":
    prepare()
    launch(sys.argv[1:], USAGE)
