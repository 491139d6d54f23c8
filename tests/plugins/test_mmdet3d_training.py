"""mmdetection3d 1.4 on mmcv-lite, its operations and backbones answered by this library.

Needs mmdet3d, mmdet, mmengine and mmcv-lite: in this interpreter, or in the one that PCDET_EXT_MMDET3D_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mmdet3d_models as models
import pytest

PYTHON = "PCDET_EXT_MMDET3D_PYTHON"
NEEDED = ("mmdet3d", "mmdet", "mmengine", "mmcv", "spconv")
HERE = Path(__file__).resolve().parent
STEPS = 5


def python() -> str:
    """The interpreter that has mmdetection3d, or the test is skipped."""
    chosen = os.environ.get(PYTHON, sys.executable)
    code = f"import importlib.util as u, sys; sys.exit(' '.join(n for n in {NEEDED} if u.find_spec(n) is None) or None)"
    missing = subprocess.run([chosen, "-c", code], capture_output=True, text=True, check=False)
    if missing.returncode:
        pytest.skip(
            f"mmdetection3d needs {missing.stderr.strip()}: pip install mmdet3d==1.4.0 mmcv-lite==2.1.0 mmdet, "
            f"or let {PYTHON} name an interpreter that has them"
        )
    return chosen


def launch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script through the plugin's launcher."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    command = [python(), "-m", "pcdet_ext.plugins.mmdet3d", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600, cwd=HERE)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all models, trained one after the other in one process."""
    python()
    folder = tmp_path_factory.mktemp("mmdet3d")
    out, plan = folder / "results.json", folder / "plan.json"
    plan.write_text(json.dumps({"models": list(models.models()), "steps": STEPS, "out": str(out)}), encoding="utf-8")
    done = launch(HERE / "mmdet3d_steps.py", plan)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {"log": done.stderr, "results": json.loads(out.read_text(encoding="utf-8"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(models.models()))
def test_trains_saves_loads_and_predicts(trained: dict[str, Any], name: str) -> None:
    result = trained["results"][name]
    assert "error" not in result, result
    assert result["losses"][-1] < 0.9 * result["losses"][0]
    assert result["unmoved"] == []
    assert result["same"]
    assert len(result["found"]) == 2


@pytest.mark.slow
def test_what_was_done_is_told(trained: dict[str, Any]) -> None:
    assert "mmcv._ext, which mmcv-lite lacks, is answered by pcdet_ext" in trained["log"]
