"""Unedited OpenPCDet, its operations and backbones answered by this library, on KITTI frames.

Needs a checkout: PCDET_EXT_OPENPCDET=…, and PCDET_EXT_OPENPCDET_PYTHON=… where this interpreter lacks its packages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openpcdet_configs as configs
import openpcdet_host as host
import pytest
import small_backbones
import torch

import pcdet_ext
from pcdet_ext.data.formats import BENCHMARKS
from pcdet_ext.plugins.openpcdet import weights

STEPS = 5
STOCK = ("pointpillars", "second", "centerpoint")
BACKBONES = ("flatformer", "dsvt", "scatterformer", "sequence", *(f"lion_{name.lower()}" for name in configs.MIXERS))


def plan(kitti: str) -> dict[str, Any]:
    flat, cubic = configs.FLAT, configs.CUBIC
    models = {name: getattr(configs, name)(kitti) for name in STOCK}
    models["flatformer"] = configs.with_backbone(kitti, small_backbones.FLATFORMER, flat)
    models["dsvt"] = configs.with_backbone(kitti, small_backbones.DSVT, flat)
    models["sequence"] = configs.with_backbone(kitti, small_backbones.SEQUENCE, cubic)
    models["scatterformer"] = configs.with_backbone(kitti, small_backbones.SCATTERFORMER, cubic, stride=2)
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
    return host.run_plan(folder, plan(str(kitti)), steps=STEPS, kitti=str(kitti)) | {"folder": folder, "kitti": kitti}


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
@pytest.mark.parametrize("name", [*STOCK, *BACKBONES])
def test_the_checkpoint_gives_the_same_detections_here(trained: dict[str, Any], name: str, tmp_path: Path) -> None:
    config, theirs = trained["folder"] / f"{name}.yaml", trained["folder"] / f"{name}.pth"
    ours, back = tmp_path / "ours.ckpt", tmp_path / "back.pth"
    weights.to_library(config, theirs, ours)
    detector = pcdet_ext.load(ours, device="cpu")
    compared = equal = 0
    for frame in trained["results"][name]["found"]:
        found = detector.detect(np.load(trained["folder"] / "frames" / f"{frame['frame']}.npy"))
        assert len(found) == len(frame["pred_scores"])
        if not len(found):
            continue
        assert np.allclose(found.scores, frame["pred_scores"], atol=1e-4)
        theirs_boxes = np.reshape(frame["pred_boxes"], (-1, 7))
        apart = found.boxes[:, None] - theirs_boxes[None]
        apart[..., 6] = np.remainder(apart[..., 6] + np.pi, 2 * np.pi) - np.pi  # theirs may be a turn further
        same_class = np.equal.outer(found.labels + 1, frame["pred_labels"])
        there = ((np.abs(apart) < 1e-4).all(-1) & same_class).any(1)
        gap = np.abs(np.subtract.outer(found.scores, found.scores)) + np.eye(len(found))
        assert there[gap.min(1) > 1e-6].all()  # of equal scores either box may suppress the other
        compared, equal = compared + len(found), equal + int(there.sum())
    assert equal > 0.9 * compared > 0
    weights.to_openpcdet(config, ours, back)
    expected, written = (torch.load(path, weights_only=False)["model_state"] for path in (theirs, back))
    assert set(expected) == set(written)
    assert all(torch.equal(value, written[key]) for key, value in expected.items() if key != "global_step")


@pytest.mark.slow
def test_their_kitti_metric_is_ours(trained: dict[str, Any]) -> None:
    truth, found = trained["kitti"] / "training" / "label_2", trained["folder"] / "detections"
    ours = BENCHMARKS.build({"name": "kitti", "ground_truth": truth, "results": found, "classes": configs.CLASSES})
    theirs, compared = trained["results"]["metric"], 0
    for key, value in theirs.items():
        name, _, level = key.rpartition("/")
        if not level.endswith("_R40"):
            continue
        kind, metric = name.split("_")
        expected = ours.ap(kind, {"image": "bbox"}.get(metric, metric), level.removesuffix("_R40"))
        assert value == pytest.approx(expected, abs=0.01), key
        compared += value > 0
    assert compared > 5


@pytest.mark.slow
def test_what_was_done_is_told(trained: dict[str, Any]) -> None:
    assert "compiled modules answered by pcdet_ext: iou3d_nms_cuda" in trained["log"]
