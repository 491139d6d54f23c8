"""Unedited OpenPCDet, its operations and backbones answered by this library, on KITTI frames.

Needs a checkout: PCDET_EXT_OPENPCDET=…, and PCDET_EXT_OPENPCDET_PYTHON=… where this interpreter lacks its packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openpcdet_configs as configs
import openpcdet_host as host
import pytest

STEPS = 5
STOCK = ("pointpillars", "second", "centerpoint")
BACKBONES = ("flatformer", "dsvt", "scatterformer", "sequence", *(f"lion_{name.lower()}" for name in configs.MIXERS))


def plan(kitti: str) -> dict[str, Any]:
    flat, cubic = configs.FLAT, configs.CUBIC
    models = {name: getattr(configs, name)(kitti) for name in STOCK}
    models["flatformer"] = configs.with_backbone(kitti, configs.FLATFORMER, flat)
    models["dsvt"] = configs.with_backbone(kitti, configs.DSVT, flat)
    models["sequence"] = configs.with_backbone(kitti, configs.SEQUENCE, cubic)
    models["scatterformer"] = configs.with_backbone(kitti, configs.SCATTERFORMER, cubic, stride=2)
    for name in configs.MIXERS:
        models[f"lion_{name.lower()}"] = configs.with_backbone(kitti, configs.lion(name), cubic)
    return models


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all models, trained one after the other in one process."""
    host.checkout()
    host.python()
    shared = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kitti_mini"
    if not shared.is_dir():
        pytest.skip(f"the KITTI frames are not here ({shared})")
    folder = tmp_path_factory.mktemp("openpcdet")
    kitti = host.write_kitti(folder / "kitti", shared)
    return host.run_plan(folder, plan(str(kitti)), steps=STEPS, kitti=str(kitti))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STOCK, *BACKBONES])
def test_trains_resumes_and_is_measured(trained: dict[str, Any], name: str) -> None:
    result = trained["results"][name]
    assert "error" not in result, result
    assert result["losses"][-1] < 0.9 * result["losses"][0]
    assert result["unmoved"] == []
    assert result["resumed"] == [STEPS, 1]
    assert result["same"]
    assert len(result["found"]) == 5
    assert "Car_3d/moderate_R40" in result["scores"]


@pytest.mark.slow
def test_what_was_done_is_told(trained: dict[str, Any]) -> None:
    assert "compiled modules answered by pcdet_ext: iou3d_nms_cuda" in trained["log"]
