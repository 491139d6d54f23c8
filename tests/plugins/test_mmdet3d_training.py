"""mmdetection3d 1.4 on mmcv-lite, its operations and backbones answered by this library. See `mmdet3d_host`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mmdet3d_host as host
import mmdet3d_models as models
import numpy as np
import pytest
import torch

import pcdet_ext
from pcdet_ext.plugins.mmdet3d import weights

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
    return {"log": done.stderr, "results": json.loads(out.read_text(encoding="utf-8")), "folder": folder}


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
@pytest.mark.parametrize("name", list(models.models()))
def test_the_checkpoint_gives_the_same_detections_here(trained: dict[str, Any], name: str, tmp_path: Path) -> None:
    theirs, config = trained["folder"] / f"{name}.pth", models.write_config(tmp_path / "config.py", name)
    ours, back = tmp_path / "ours.ckpt", tmp_path / "back.pth"
    weights.to_library(config, theirs, ours)
    detector, compared = pcdet_ext.load(ours, device="cpu"), 0
    for number, found in enumerate(trained["results"][name]["found"]):
        own = detector.detect(np.load(trained["folder"] / f"frame_{number}.npy"))
        compared += host.same_detections(own, *found)
    assert compared > 10
    weights.to_mmdet3d(config, ours, back)
    expected, written = (torch.load(path, weights_only=True)["state_dict"] for path in (theirs, back))
    assert set(expected) == set(written)
    if name == "pointpillars":  # its first layer has the same inputs twice, and weights of both add up
        expected.pop("voxel_encoder.pfn_layers.0.linear.weight")
    assert all(torch.equal(value, written[key]) for key, value in expected.items())


@pytest.mark.slow
def test_what_was_done_is_told(trained: dict[str, Any]) -> None:
    assert "mmcv._ext, which mmcv-lite lacks, is answered by pcdet_ext" in trained["log"]
