"""Building and detecting do not depend on torch's defaults and modes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain

import numpy as np
import pytest
import torch
from torch_states import STATES

import pcdet_ext
from pcdet_ext.inference import Detector
from pcdet_ext.structures import Detections, PointBatch, Targets

SMALL = ("data.point_cloud_range=[0, -12.8, -3, 25.6, 12.8, 1]", "model.head.score_threshold=0.0")
NAMES = ("demo", "pointpillars", "second", "centerpoint_pillar", "flatformer", "dsvt", "scatterformer")
MODELS = (*NAMES, *(f"lion_{mixer}" for mixer in ("mamba", "retnet", "rwkv", "ttt", "xlstm")))


def cloud() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform([0, -7, -2, 0], [24, 7, 0, 1], (1500, 4)).astype(np.float32)


def build(name: str) -> Detector:
    torch.manual_seed(0)
    return pcdet_ext.build(f"kitti/{name}", SMALL, device="cpu")


@cache
def plain(name: str) -> tuple[Detector, Detections]:
    detector = build(name)
    return detector, detector.detect(cloud())


def check(found: Detections, expected: Detections) -> None:
    assert len(expected) > 10
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("state", [state for state in STATES if state != "autocast"])
@pytest.mark.parametrize("name", MODELS)
def test_detect(name: str, state: str) -> None:
    detector, expected = plain(name)
    with STATES[state]():
        found = detector.detect(cloud())
    check(found, expected)


@pytest.mark.parametrize("name", MODELS)
def test_detect_in_autocast_is_close(name: str) -> None:
    """Layers compute in bfloat16 then, as they should: scores are those of a rounded network."""
    detector, expected = plain(name)
    with STATES["autocast"]():
        found = detector.detect(cloud())
    assert found.boxes.dtype == np.float32
    assert np.isfinite(found.boxes).all()
    best = slice(None, 10)
    np.testing.assert_allclose(np.sort(found.scores)[::-1][best], np.sort(expected.scores)[::-1][best], atol=0.05)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["demo", "second", "flatformer", "lion_mamba", "lion_rwkv"])
def test_build(name: str, state: str) -> None:
    with STATES[state]():
        detector = build(name)
    expected = plain(name)[0].model.state_dict()
    for key, value in detector.model.state_dict().items():
        assert (value.dtype, value.device) == (expected[key].dtype, expected[key].device)
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0)
    assert not any(t.is_inference() for t in chain(detector.model.parameters(), detector.model.buffers()))


def step(detector: Detector) -> dict[str, torch.Tensor]:
    """Losses and gradients of a batch of two frames."""
    boxes = np.array([[10, 0, -1, 4, 2, 1.5, 0.3], [15, 3, -1, 4, 2, 1.5, 1.3]], np.float32)
    targets = Targets(boxes=torch.from_numpy(boxes), labels=torch.from_numpy(np.zeros(2, np.int64)))
    batch = replace(PointBatch.from_points([torch.from_numpy(cloud())] * 2), targets=(targets, targets))
    torch.manual_seed(0)
    model = detector.model.train()
    model.zero_grad()
    losses = model.loss(batch)
    losses["total"].backward()
    model.eval()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()} | gradients


@pytest.mark.parametrize("state", ["float64 by default", "bfloat16 by default", "meta by default", "deterministic"])
@pytest.mark.parametrize("name", ["pointpillars", "centerpoint_pillar", "flatformer", "lion_ttt"])
def test_training_step(name: str, state: str) -> None:
    detector = build(name)
    expected = step(detector)
    with STATES[state]():
        found = step(detector)
    assert len(expected) > 20
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)
