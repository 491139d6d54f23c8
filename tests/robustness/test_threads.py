"""Loading and detecting in many threads at once gives what one thread gives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import torch

import pcdet_ext
from pcdet_ext import checkpoint, config
from pcdet_ext.structures import Detections

THREADS = 8
SMALL = (
    "data.point_cloud_range=[0, -9.6, -3, 19.2, 9.6, 1]",
    "model.voxel_size=[0.4, 0.4, 4]",
    "model.bev_backbone.layer_nums=[1, 1, 1]",
    "model.head.score_threshold=0.0",
)


def clouds() -> list[np.ndarray]:
    """One cloud for each thread, each of another size."""
    rng = np.random.default_rng(0)
    low, high = (0, -9, -2, 0), (19, 9, 0, 1)
    return [rng.uniform(low, high, (500 + 300 * i, 4)).astype(np.float32) for i in range(THREADS)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small detector whose weights are random."""
    torch.manual_seed(0)
    settings = config.load("kitti/demo", SMALL)
    path = tmp_path_factory.mktemp("threads") / "model.ckpt"
    model = pcdet_ext.build("kitti/demo", device="cpu", overrides=SMALL).model
    checkpoint.write(path, {"config": settings.plain(), "model": model.state_dict()})
    return path


def same(a: Detections, b: Detections) -> bool:
    return len(a) == len(b) > 0 and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "scores", "labels")
    )


def test_a_detector_that_threads_share_finds_what_it_finds_alone(saved: Path) -> None:
    detector = pcdet_ext.load(saved, device="cpu")
    alone = [detector.detect(points) for points in clouds()]
    together = Barrier(THREADS)

    def detect(points: np.ndarray) -> list[Detections]:
        together.wait()
        return [detector.detect(points) for _ in range(3)]

    with ThreadPoolExecutor(THREADS) as pool:
        for expected, found in zip(alone, pool.map(detect, clouds()), strict=True):
            assert all(same(expected, each) for each in found)


def test_threads_that_load_do_not_disturb_each_other(saved: Path) -> None:
    points = clouds()[3]
    expected = pcdet_ext.load(saved, device="cpu").detect(points)
    defaults = torch.get_default_dtype(), torch.is_inference_mode_enabled()
    together = Barrier(THREADS)

    def load_and_detect(_: int) -> list[Detections]:
        together.wait()
        return [pcdet_ext.load(saved, device="cpu").detect(points) for _ in range(2)]

    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(load_and_detect, range(THREADS)):
            assert all(same(expected, each) for each in found)
    assert (torch.get_default_dtype(), torch.is_inference_mode_enabled()) == defaults


def test_loading_in_threads_keeps_a_default_type_that_is_not_torchs_own(saved: Path) -> None:
    """Loading sets torch's default type, which belongs to the process, and must put back what was there."""
    torch.set_default_dtype(torch.float64)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for loaded in pool.map(lambda _: pcdet_ext.load(saved, device="cpu"), range(2 * THREADS)):
                assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
