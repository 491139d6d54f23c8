"""Where mmdetection3d is, and how its interpreter is run with this library in it."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from pcdet_ext.structures import Detections

PYTHON = "PCDET_EXT_MMDET3D_PYTHON"
NEEDED = ("mmdet3d", "mmdet", "mmengine", "mmcv", "spconv")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MADE = ROOT / ".venv-mmdet3d" / "bin" / "python"  # by `make mmdet3d`


def python() -> str:
    """The interpreter that has mmdetection3d, or the test is skipped."""
    chosen = os.environ.get(PYTHON) or str(MADE if MADE.exists() else sys.executable)
    if missing := _missing(chosen):
        pytest.skip(
            f"{chosen} lacks {missing}: `make mmdet3d` makes .venv-mmdet3d with mmdetection3d from PyPI, which must be "
            f"reached for that; or let {PYTHON} name an interpreter that has it"
        )
    return chosen


@cache
def _missing(interpreter: str) -> str:
    """Packages that an interpreter lacks, or what it says where it cannot be run."""
    code = f"import importlib.util as u, sys; sys.exit(' '.join(n for n in {NEEDED} if u.find_spec(n) is None) or None)"
    try:
        found = subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"everything ({error})"
    return found.stderr.strip() if found.returncode else ""


def launch(*arguments: str | Path, cwd: Path = HERE, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a script or module through the plugin's launcher."""
    command = [python(), "-m", "pcdet_ext.plugins.mmdet3d", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=timeout, cwd=cwd
    )


def same_detections(own: Detections, boxes: list[list[float]], scores: list[float], labels: list[int]) -> int:
    """Check that detections are those of mmdetection3d, whose boxes have their z at the bottom, and count them."""
    assert len(own) == len(scores)
    if not len(own):
        return 0
    assert np.allclose(np.sort(own.scores), np.sort(scores), atol=1e-4)
    theirs = np.array(boxes)
    theirs[:, 2] += theirs[:, 5] / 2
    apart = np.asarray(own.boxes)[:, None, :7] - theirs[None, :, :7]
    apart[..., 6] = np.remainder(apart[..., 6] + np.pi, 2 * np.pi) - np.pi  # theirs may be a turn further
    same = (np.abs(apart) < 1e-4).all(-1) & np.equal.outer(np.asarray(own.labels), labels)
    gap = np.abs(np.subtract.outer(own.scores, own.scores)) + np.eye(len(own))
    alone = gap.min(1) > 1e-6  # of equal scores either box may suppress the other
    alone &= own.scores > own.scores.min() + 1e-6  # and of those at the limit of their number either may be left out
    assert same.any(1)[alone].all()
    assert same.any(1).mean() > 0.9
    return len(own)
