"""Heads on occupied cells as ONNX models: what onnxruntime finds is what PyTorch finds, for clouds of any size."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pcdet_ext.inference import Detector

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from test_onnx import ATTENTION, LION, PILLARS, VOXELS, cloud, detector_of

from pcdet_ext.export import sparse
from pcdet_ext.export.check import compare, session
from pcdet_ext.export.onnx import export
from pcdet_ext.models.heads.sites import best_sites
from pcdet_ext.models.layers.sparse_conv import SubMConv3d

SIZES = (3000, 1500, 400, 90, 40, 7, 2, 1, 0)
BRANCHES = dict.fromkeys(("center", "center_z", "dim", "rot"), 2)
NEXT = {"name": "VoxelNeXtHead", "tasks": [["Car"], ["Pedestrian", "Cyclist"]], "branches": BRANCHES | {"vel": 2}}
NEXT |= {"max_candidates": 40, "center_range": [0, -5, -3, 10, 5, 1], "nms": {"iou_threshold": 0.2}}
CENTERS = {"name": "SparseCenterHead", "branches": BRANCHES, "max_candidates": 40, "nms": {"iou_threshold": 0.2}}
DILATED = CENTERS | {"dilate": True, "branches": BRANCHES | {"iou": 2}, "iou_rectifier": 0.5}
DILATED |= {"nms": {"iou_threshold": 0.2, "per_class": True}}
TWO_STAGES = {"mixer": {"name": "Mamba", "d_state": 4}, "windows": [[8, 7, 7], [4, 7, 7]], "group_sizes": [64, 32]}
TWO_STAGES |= {"scales": [[[2, 2, 2]]] * 2, "bev_windows": [[1, 9, 9], [1, 13, 13]], "bev_group_sizes": [32, 64]}
DEEP = {"name": "VoxelResBackBone8xVoxelNeXt", "channels": [8, 8, 16, 16, 16], "out_channels": 16}
FLAT = {"name": "VoxelResBackBone8xVoxelNeXt2D", "channels": [16, 16, 16, 16, 16, 16], "out_channels": 16}
MODELS: dict[str, tuple[list[float], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "flatformer-dilated": (
        [0.32, 0.32, 4.0],
        PILLARS,
        {"name": "FlatFormer", "num_blocks": 1, "group_size": 20, **ATTENTION},
        DILATED,
    ),
    "lion-centers": (
        [0.32, 0.32, 0.5],
        VOXELS,
        {key: value for key, value in LION.items() if not key.startswith("out_")} | TWO_STAGES,
        CENTERS,
    ),
    "voxelnext": ([0.08, 0.08, 0.1], {"name": "MeanVFE"}, DEEP, NEXT),
    "voxelnext_2d": ([0.08, 0.08, 4.0], PILLARS, FLAT, NEXT),
}
CHOSEN = MODELS if os.environ.get("PCDET_EXT_EVERY_EXPORT") else ("flatformer-dilated",)


def lively(name: str) -> Detector:
    """An untrained detector of which every candidate is a detection, unless a better one suppresses it."""
    size, encoder, backbone, head = MODELS[name]
    detector = detector_of({"voxel_size": size, "encoder": encoder, "backbone": backbone, "head": head})
    for branches in detector.model.head.heads_list:
        for kind, branch in branches.named_children():  # scores far apart, and sizes of metres
            *_, last = (layer for layer in branch.modules() if isinstance(layer, SubMConv3d))
            nn.init.normal_(last.weight, std=0.5 if kind == branches.heatmap_name else 0.1)
    detector.model.head.score_threshold = 0.0
    return detector


@pytest.mark.parametrize("name", CHOSEN)
def test_onnxruntime_finds_the_same(name: str) -> None:
    detector = lively(name)
    model = export(detector)
    assert {node.domain for node in model.graph.node} == {""}
    running = session(model, threads=1)
    clouds = {str(count): cloud(count, 4, 11) for count in SIZES} | {"far": (cloud(50, 4) + 1000).astype(np.float32)}
    compared = {frame: compare(detector, running, points, frame) for frame, points in clouds.items()}
    assert [str(one) for one in compared.values() if not one.agrees] == []
    assert compared["3000"].found[0] > 20
    assert compared["1"].found[0] >= 1
    assert compared["0"].found == compared["far"].found == (0, 0)


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 40), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_best_sites(count: int, classes: int, most: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randperm(count * classes, generator=generator).view(count, classes) / 100  # no two alike
    expected = sorted(((float(scores[i, c]), i, c) for i in range(count) for c in range(classes)), reverse=True)[:most]
    for function in (best_sites, sparse.best_sites):
        values, rows, columns = function(scores, most)
        assert list(zip(values.tolist(), rows.tolist(), columns.tolist(), strict=True)) == expected
