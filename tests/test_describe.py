"""Descriptors through the front door: one cloud, several, other kinds of input, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import pcdet_ext
from pcdet_ext.config import ConfigError
from pcdet_ext.inference import Detector
from pcdet_ext.structures import Descriptor

SMALL = ("model.encoder.num_filters=[8]", "model.pooling.rings=4", "model.pooling.out_channels=16")


@pytest.fixture(scope="module")
def describer() -> Detector:
    torch.manual_seed(0)
    return pcdet_ext.build("place_recognition/demo", SMALL, "cpu")


def cloud(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-40, -40, -2], [40, 40, 6], (300, 3)).astype(np.float32)


def test_one_cloud_and_several(describer: Detector, tmp_path: Path) -> None:
    one = describer.describe(cloud(0))
    assert one.shape == (16,)
    assert one.dtype == torch.float32
    torch.testing.assert_close(one.norm(), torch.tensor(1.0))
    cloud(1).tofile(tmp_path / "cloud.bin")
    several = describer.describe([cloud(0), torch.from_numpy(cloud(2)), tmp_path / "cloud.bin"], batch_size=2)
    assert several.shape == (3, 16)
    torch.testing.assert_close(several[0], one)
    torch.testing.assert_close(several[2], describer.describe(cloud(1)))
    assert isinstance(describer.detect(cloud(0)), Descriptor)


def test_clouds_without_points_in_range_are_refused(describer: Detector) -> None:
    far = np.full((10, 3), 1e4, np.float32)
    with pytest.raises(ValueError, match="cloud 1: has no point in the range"):
        describer.describe([cloud(0), far])
    with pytest.raises(ValueError, match="cloud 0: has no point in the range"):
        describer.describe(far[:0])
    with pytest.raises(ValueError, match="at least one point cloud"):
        describer.describe([])


def test_detectors_do_not_describe() -> None:
    detector = pcdet_ext.build("kitti/demo", device="cpu")
    with pytest.raises(ConfigError, match="no head of this detector describes places"):
        detector.describe(np.zeros((1, 4), np.float32))
