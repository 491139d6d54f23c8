"""The detectors of Argoverse 2 and ONCE learn from simulated data of their layout, and are tested with its metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_ext import config
from pcdet_ext.data.argoverse2 import Argoverse2Frames
from pcdet_ext.data.base import collate
from pcdet_ext.data.formats import build_dataset
from pcdet_ext.data.once import OnceFrames
from pcdet_ext.data.prepare import prepare
from pcdet_ext.data.simulation import EvenLidar, simulate_argoverse2, simulate_once
from pcdet_ext.models.detector import build_detector

open3d = pytest.importorskip("open3d", exc_type=ImportError)

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODELS = sorted(
    path for pattern in ("argoverse2/*", "lion/argoverse2_*", "lion/once_*") for path in CONFIGS.glob(f"{pattern}.yaml")
)
SIDE = 10.0  # metres of the small range to each side
SENSOR = EvenLidar(beams=12, azimuths=240)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A simulated set for each data set, prepared."""
    folder = tmp_path_factory.mktemp("sets")
    found = {"Argoverse2Dataset": folder / "argoverse2", "OnceDataset": folder / "once"}
    simulate_argoverse2(found["Argoverse2Dataset"], 2, 1, seed=1, workers=1, sensor=SENSOR)
    simulate_once(found["OnceDataset"], 2, 1, seed=1, workers=1, sensor=SENSOR)
    prepare(Argoverse2Frames(found["Argoverse2Dataset"]), progress=False)
    prepare(OnceFrames(found["OnceDataset"]), progress=False)
    return found


def small(path: Path, roots: dict[str, Path]) -> config.Node:
    """A configuration with its own voxels on a small range, and a narrow backbone with short groups."""
    settings = config.load(path)
    low, high = settings["data"]["point_cloud_range"][2], settings["data"]["point_cloud_range"][5]
    root = roots[settings["data"]["name"]]
    changes = [f"data.root={root}", f"data.point_cloud_range={[-SIDE, -SIDE, low, SIDE, SIDE, high]}"]
    if settings["model"]["backbone"]["name"] == "LION":
        changes += ["model.backbone.group_sizes=[32, 32, 32, 32]", "model.encoder.num_filters=[16, 16]"]
        changes += ["model.backbone.scales=[[[2, 2, 2]], [[2, 2, 2]], [[2, 2, 2]], [[2, 2, 2]]]"]
        if "bev_windows" in settings["model"]["backbone"]:
            changes += ["model.backbone.bev_group_sizes=[16, 16, 16]"]
    else:
        changes += ["model.backbone.channels=[4, 8, 8, 16, 16]", "model.backbone.out_channels=16"]
    return config.load(path, changes)


def test_there_are_such_detectors() -> None:
    assert [f"{path.parent.name}/{path.stem}" for path in MODELS] == [
        "argoverse2/voxelnext",
        *(f"lion/{name}_{mixer}" for name in ("argoverse2", "once") for mixer in ("mamba", "retnet", "rwkv")),
    ]


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_detector_learns_and_is_tested(path: Path, roots: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings = small(path, roots)
    detector: Any = build_detector(settings)
    train = build_dataset(settings["data"], "train", training=True)
    optimizer = torch.optim.SGD(detector.parameters(), 1e-6)
    total = detector.loss(collate([train[0]], train.classes))["total"]
    total.backward()
    assert math.isfinite(total.item())
    assert all(p.grad.isfinite().all() for p in detector.parameters() if p.grad is not None)
    optimizer.step()
    test = build_dataset(settings["data"], settings["test"]["split"], training=False)
    metric = test.evaluator(settings["test"].get("metric"))
    detector.eval()
    with torch.no_grad():
        (found,) = detector.predict(collate([test[0]], test.classes))
    metric.add(test[0], found)
    assert 0 <= metric.result().score < 50
    (written,) = metric.write(tmp_path)
    usable = found.numpy().boxes  # such a network also finds boxes of no or of endless size
    usable = usable[np.isfinite(usable).all(axis=1) & (usable[:, 3:6] > 0).all(axis=1)]
    if len(usable):
        (read,) = test.read_results(written).values()
        np.testing.assert_allclose(read.boxes[:, :6], usable[:, :6], rtol=1e-6)
