"""mmdetection3d 1.4 on mmcv-lite, its operations and backbones answered by this library. See `mmdet3d_host`."""

from __future__ import annotations

import json
from typing import Any

import mmdet3d_host as host
import mmdet3d_models as models
import pytest

STEPS = 5


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all models, trained one after the other in one process."""
    host.python()
    folder = tmp_path_factory.mktemp("mmdet3d")
    out, plan = folder / "results.json", folder / "plan.json"
    plan.write_text(json.dumps({"models": list(models.models()), "steps": STEPS, "out": str(out)}), encoding="utf-8")
    done = host.launch(host.HERE / "mmdet3d_steps.py", plan)
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
