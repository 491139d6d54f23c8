"""Imported before another code base: numba keeps what it compiles of it, so that only the first run of a test pays.

Neither mmdetection3d nor OpenPCDet asks numba for that, and compiling their KITTI metric takes longer than to run it.
"""

from __future__ import annotations

from functools import partial

import numba

numba.jit = partial(numba.jit, cache=True)
