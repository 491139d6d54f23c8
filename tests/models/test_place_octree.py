"""HOTFormerLoc as a model that is trained: the published size, frames without points, a training step."""

from __future__ import annotations

import pytest
import torch

from pcdet_ext import config
from pcdet_ext.config import ConfigError
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.places import OctreePlaceRecognizer
from pcdet_ext.structures import PointBatch, Targets

SMALL = (
    "model.channels=[16,32]",
    "model.num_blocks=[2,1]",
    "model.depth=6",
    "model.stem_down=1",
    "model.drop_path=0",
    "model.options.group_size=16",
    "model.pooling.num_queries=[8,4,4]",
    "model.pooling.out_channels=32",
    "model.chunk_size=2",
)


def small(*overrides: str) -> OctreePlaceRecognizer:
    torch.manual_seed(0)
    model = build_detector(config.load("place_recognition/hotformerloc", [*SMALL, *overrides]))
    assert isinstance(model, OctreePlaceRecognizer)
    return model


def batch(frames: int = 4) -> PointBatch:
    generator = torch.Generator().manual_seed(1)
    made = PointBatch.from_points([torch.rand(200, 3, generator=generator) * 40 - 20 for _ in range(frames)])
    at = [torch.tensor([100.0 * (i // 2), 0, 0], dtype=torch.float64) for i in range(frames)]
    return PointBatch(made.points, made.batch_index, frames, tuple(Targets(position=p) for p in at))


def test_published_configuration_has_the_published_size() -> None:
    with torch.device("meta"):
        model = build_detector(config.load("place_recognition/hotformerloc"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(35.37e6, abs=5e3)
    assert model.descriptor_size == 256


def test_frames_without_points_have_zeros_and_leave_the_others_as_they_are() -> None:
    model, points = small("model.options.straddle=false").eval(), batch(2)
    whole = model(points)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(2))
    spread = model(PointBatch(points.points, points.batch_index * 2, 4))
    torch.testing.assert_close(spread[[0, 2]], whole)
    assert not spread[[1, 3]].any()
    assert not model(PointBatch(points.points[:0], points.batch_index[:0], 3)).any()


def test_all_parameters_learn_from_a_batch_in_chunks() -> None:
    model = small()
    model.loss(batch())["total"].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not idle


def test_settings_that_do_not_fit_are_refused_by_key() -> None:
    with pytest.raises(ConfigError, match="channels must be two numbers"):
        small("model.channels=[16]")
    with pytest.raises(ConfigError, match="has no such key"):
        small("model.relay.statistic=cov")
