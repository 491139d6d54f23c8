"""Every configuration of the repository: it is read, its detector is built, and it says what cannot be done with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.data.formats import NOT_READ_YET, build_dataset
from pcdet_ext.models.detector import build_detector

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
MODELS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "datasets")
DATASETS = sorted((CONFIGS / "datasets").glob("*.yaml"))


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_detector_is_built(path: Path) -> None:
    settings = config.load(path)
    with torch.device("meta"):  # shapes alone: the largest has 20 million parameters
        detector = build_detector(settings)
    assert sum(p.numel() for p in detector.parameters()) > 10_000
    assert detector.classes == tuple(settings["data"]["classes"])


@pytest.mark.parametrize("path", DATASETS, ids=lambda path: path.stem)
def test_data_sets_that_cannot_be_read_yet_say_so(path: Path) -> None:
    data = config.load(path)["data"]
    if data["name"] in NOT_READ_YET:
        with pytest.raises(ConfigError, match=rf"{path.name}:\d+.*cannot be read yet"):
            build_dataset(data, "train", training=True)
