"""Unedited OpenPCDet, its operations and backbones answered by this library, on KITTI frames.

Needs a checkout: PCDET_EXT_OPENPCDET=…, and PCDET_EXT_OPENPCDET_PYTHON=… where this interpreter lacks its packages.
"""

from __future__ import annotations

import shutil
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
OCTREES = ("octformer", "hotformer")
BACKBONES = (
    "flatformer",
    "dsvt",
    "scatterformer",
    "sequence",
    *OCTREES,
    *(f"lion_{name.lower()}" for name in configs.MIXERS),
)


def plan(kitti: str) -> dict[str, Any]:
    flat, cubic = configs.FLAT, configs.CUBIC
    models = {name: getattr(configs, name)(kitti) for name in STOCK}
    models["flatformer"] = configs.with_backbone(kitti, small_backbones.FLATFORMER, flat)
    models["dsvt"] = configs.with_backbone(kitti, small_backbones.DSVT, flat)
    models["sequence"] = configs.with_backbone(kitti, small_backbones.SEQUENCE, cubic)
    models["scatterformer"] = configs.with_backbone(kitti, small_backbones.SCATTERFORMER, cubic, stride=2)
    models["octformer"] = configs.with_backbone(kitti, small_backbones.OCTFORMER, cubic, stride=2)
    models["hotformer"] = configs.with_backbone(kitti, small_backbones.HOTFORMER, cubic, stride=2)
    for name in configs.MIXERS:
        models[f"lion_{name.lower()}"] = configs.with_backbone(kitti, configs.lion(name), cubic)
    return models


def write_frames(folder: Path) -> Path:
    """KITTI frames in a folder; without them, or without OpenPCDet, the test is skipped."""
    host.checkout()
    host.python()
    shared = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kitti_mini"
    if not shared.is_dir():
        pytest.skip(f"the KITTI frames are not here ({shared})")
    return host.write_kitti(folder / "kitti", shared)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of all models, trained one after the other in one process."""
    folder = tmp_path_factory.mktemp("openpcdet")
    kitti = write_frames(folder)
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


@pytest.mark.slow
def test_two_processes_train_together_on_the_cpu(tmp_path: Path) -> None:
    """Their train.py and evaluation, with DistributedDataParallel, which fails on parameters that get no gradient."""
    folder, kitti = tmp_path, write_frames(tmp_path)
    name, config = "two", configs.with_backbone(str(kitti), configs.lion("Mamba"), configs.CUBIC)
    host.run_plan(folder, {name: config}, steps=0, kitti=str(kitti))
    tools = host.checkout() / "tools"
    out = host.checkout() / "output" / Path(*folder.parts[1:])  # where OpenPCDet puts what it writes
    arguments = ["train.py", "--launcher", "pytorch", "--cfg_file", folder / f"{name}.yaml", "--epochs", "1"]
    arguments += ["--batch_size", "4", "--workers", "1", "--wo_gpu_stat"]
    try:
        done = host.launch(*arguments, processes=2, folder=tools)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-6000:]
        assert "there is no GPU: processes are connected by gloo" in said
        assert "total_batch_size: 4" in said
        assert "Car AP_R40@0.70, 0.70, 0.70" in said
        state = torch.load(out / name / "default" / "ckpt" / "checkpoint_epoch_1.pth", weights_only=False)
        assert state["it"] * 4 >= len(np.loadtxt(kitti / "ImageSets" / "train.txt"))
        assert not any(key.startswith("module.") for key in state["model_state"])
    finally:
        shutil.rmtree(out, ignore_errors=True)
