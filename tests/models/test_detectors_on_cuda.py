"""Every published detector on a CUDA device: what it computes there, its losses and its gradients, beside the CPU."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pcdet_ext import config
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.models.heads.transfusion import TransFusionHead
from pcdet_ext.structures import PointBatch, Targets

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SAME_MODEL = ("_2frames", "_3frames", "_48_epochs", "demo", "pillars", "sim_to_real", "mamba_large")
DETECTORS = [
    path
    for folder in ("kitti", "lion", "mixed", "nuscenes", "waymo")
    for path in sorted((CONFIGS / folder).glob("*.yaml"))
    if not path.stem.endswith(SAME_MODEL)
]
# How much farther from float64 a device may be than the CPU in float32, in parts of the largest value: both round, and
# some networks make much of it.
FARTHER, APART = 4.0, 2e-4


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in a nested value, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from tensors(getattr(value, field.name))
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            yield from tensors(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def frames(detector: VoxelDetector, low: Tensor, high: Tensor, counts: tuple[int, ...] = (3000, 1500)) -> PointBatch:
    """Random points, denser near the middle of the range, and two boxes of the first and the last class per frame."""
    generator = torch.Generator().manual_seed(3)
    clouds, targets = [], []
    for count in counts:
        near = torch.randn(count, 3, generator=generator) * (high - low) / 8 + (high + low) / 2
        rest = torch.rand(count, detector.num_point_features - 3, generator=generator)
        clouds.append(torch.cat([near, rest], 1))
        boxes = torch.tensor([[0.0, 0, 0, 4, 2, 1.6, 0.3], [5.0, 3, 0, 0.8, 0.8, 1.7, 1.2]])
        boxes[:, :3] += (high + low) / 2
        if "nuscenes" in detector_data(detector):
            boxes = torch.cat([boxes, torch.ones(2, 2)], 1)
        targets.append(Targets(boxes, torch.tensor([0, len(detector.classes) - 1])))
    batch = PointBatch.from_points(clouds)
    return PointBatch(batch.points, batch.batch_index, batch.batch_size, tuple(targets))


def detector_data(detector: VoxelDetector) -> str:
    """The layout that the test noted at the detector."""
    return str(getattr(detector, "layout", ""))


@pytest.fixture
def exact_convolutions() -> Iterator[None]:
    """Without TF32, whose products have 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def build(path: Path) -> tuple[VoxelDetector, PointBatch]:
    """A detector of published size with random parameters, and two frames for it."""
    torch.manual_seed(0)
    settings = config.load(path)
    detector = build_detector(settings)
    detector.layout = path.stem if path.parent.name == "lion" else path.parent.name
    low, high = torch.tensor(settings["data"]["point_cloud_range"], dtype=torch.float32).split(3)
    return detector, frames(detector, low, high)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, in parts of the largest expected value."""
    if not expected.numel():
        return 0.0
    return float((found.cpu() - expected).abs().max() / expected.abs().max().clamp(min=1e-6))


@torch.no_grad()
def calibrate(detector: VoxelDetector, batch: PointBatch, device: str = "cuda") -> None:
    """Let batch norms normalise what they see: without it little comes through random layers but their biases."""
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
    detector.to(device).train()(batch.to(device))
    detector.cpu().eval()


def outputs(detector: VoxelDetector, batch: PointBatch) -> list[Tensor]:
    """The map and what the head makes of it; not what it makes of the best cells, which change with the last bit."""
    with torch.inference_mode():
        bev = detector.bev_map(batch)
        picks = isinstance(detector.head, TransFusionHead)
        return [bev, *([] if picks else tensors(detector.head(bev)))]


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_convolutions")
@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_detector_on_cuda_agrees_with_itself_on_the_cpu(path: Path) -> None:
    detector, batch = build(path)
    calibrate(detector, batch)
    on_cuda, there = copy.deepcopy(detector).cuda(), batch.to("cuda")
    on_cpu, found, exact = outputs(detector, batch), outputs(on_cuda, there), outputs(detector.double(), batch)
    assert len(found) == len(exact) > 0
    for ours, theirs, expected in zip(found, on_cpu, exact, strict=True):
        assert ours.is_cuda
        assert ours.shape == expected.shape
        assert difference(ours, expected) < FARTHER * difference(theirs, expected) + APART
    for result in on_cuda.predict(there):
        assert result.boxes.is_cuda
        assert result.boxes.isfinite().all()


@pytest.mark.gpu
@pytest.mark.usefixtures("exact_convolutions")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("path", DETECTORS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_detector_learns_on_cuda(path: Path, dtype: torch.dtype) -> None:
    """Losses are finite, every parameter that the loss reaches has a finite gradient, and the loss falls."""
    detector, batch = build(path)
    detector, batch = detector.cuda().train(), batch.to("cuda")
    optimizer = torch.optim.AdamW(detector.parameters(), 1e-3)
    history = []
    for _ in range(4):
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            loss = detector.loss(batch)["total"]
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in detector.parameters() if p.grad is not None]
        assert gradients
        assert all(g.isfinite().all() for g in gradients)
        optimizer.step()
        history.append(loss.item())
    assert all(map(torch.isfinite, torch.tensor(history)))
    assert min(history[1:]) < history[0]
