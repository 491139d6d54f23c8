"""Detectors with several heads: boxes from the map and classes of points, and the way back to points."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pcdet_ext.config import ConfigError, Node, from_plain
from pcdet_ext.inference import Detector
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads.base import coarse_cells, rows_of
from pcdet_ext.models.heads.segmentation import PointSegmentationHead
from pcdet_ext.structures import Detections, PointBatch, PointLabels, Predictions, SparseVoxels, Targets

RANGE = [0, -6.4, -3, 12.8, 6.4, 1]
CENTER = {"name": "CenterHead", "shared_channels": 8, "score_threshold": 0.0}
ALONE = {"name": "PointSegmentationHead", "point_classes": ["ground", "object"], "hidden_channels": [16]}
POINTS = {**ALONE, "weight": 0.5}
BEV = {"name": "BaseBEVBackbone", "layer_nums": [1], "layer_strides": [1], "num_filters": [8]}
BACKBONE = {"name": "LION", "mixer": {"name": "RetNet"}, "windows": [[2, 5, 5]], "group_sizes": [16]}
BACKBONE |= {"scales": [[[2, 2, 2]]], "out_window": [2, 5, 5], "out_group_size": 16}


def settings(heads: dict[str, Any] | None = None, **model: Any) -> Node:
    data = {"classes": ["Car"], "point_cloud_range": RANGE, "point_features": ["x", "y", "z", "intensity"]}
    parts = {"encoder": {"name": "DynamicVoxelVFE", "num_filters": [8]}, "backbone": BACKBONE}
    parts |= {"name": "VoxelDetector", "voxel_size": [0.8, 0.8, 1.0], **model}
    if heads is not None:
        parts["heads"] = heads
    return from_plain({"data": data, "model": parts}, "test")


def scene(seed: int = 0) -> tuple[PointBatch, torch.Tensor]:
    """Two frames of shuffled points, some outside of the range, with a car; and whether each is on the car."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(600, 4, generator=generator) * torch.tensor([14.0, 14, 4, 1]) - torch.tensor([0.5, 7, 3, 0])
    index = torch.randint(0, 2, (600,), generator=generator)
    on_car = (points[:, 0] > 4) & (points[:, 0] < 8) & (points[:, 1].abs() < 1)
    box = torch.tensor([[6.0, 0, -1, 4, 2, 1.5, 0]])
    targets = tuple(
        Targets(box, torch.zeros(1, dtype=torch.int64), point_labels=on_car[index == frame].long()) for frame in (0, 1)
    )
    return PointBatch(points, index, 2, targets), on_car


def test_two_heads_learn_together_and_answer_by_name() -> None:
    torch.manual_seed(0)
    detector, (batch, on_car) = build_detector(settings({"boxes": CENTER, "points": POINTS})), scene()
    optimizer = torch.optim.Adam(detector.parameters(), 1e-2)
    history = []
    for _ in range(40):
        losses = detector.loss(batch)
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    assert set(history[0]) == {"boxes/heatmap_0", "boxes/box_0", "points/segmentation", "total"}
    assert history[-1]["total"] < 0.5 * history[0]["total"]
    assert history[-1]["points/segmentation"] < 0.5 * history[0]["points/segmentation"]
    parts = sum(value for name, value in history[0].items() if name != "total")
    assert history[0]["total"] == pytest.approx(parts, rel=1e-5)
    for norm in detector.modules():  # few steps: the running statistics lag behind
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.momentum = 0.5
    for _ in range(10):
        detector(batch)
    found = Detector(settings({"boxes": CENTER, "points": POINTS}), "cpu", detector).predict(batch)
    assert all(isinstance(f, Predictions) and isinstance(f["points"], PointLabels) for f in found)
    assert isinstance(found[0].detections, Detections)
    for frame in (0, 1):
        mine = batch.batch_index == frame
        inside = found[frame]["points"].labels >= 0
        right = found[frame]["points"].labels[inside] == on_car[mine][inside]
        assert right.float().mean() > 0.8


def test_the_weight_of_a_head_scales_its_losses() -> None:
    batch, _ = scene()
    losses = []
    for weight in (1.0, 0.25):
        torch.manual_seed(0)
        detector = build_detector(settings({"boxes": CENTER, "points": {**POINTS, "weight": weight}}))
        losses.append({name: value.item() for name, value in detector.loss(batch).items()})
    assert losses[1]["points/segmentation"] == pytest.approx(losses[0]["points/segmentation"] / 4, rel=1e-5)
    assert losses[1]["boxes/box_0"] == pytest.approx(losses[0]["boxes/box_0"], rel=1e-5)


@pytest.mark.parametrize(
    "node",
    [
        {"name": "PillarVFE", "max_points": 4, "max_voxels": 30, "num_filters": [4]},
        {"name": "MeanVFE", "max_points": 4, "max_voxels": 30},
        {"name": "DynamicVoxelVFE", "num_filters": [4]},
        {"name": "DynamicVoxelVFE", "num_filters": [4], "drop_first": True},
        {"name": "DynamicPillarVFE", "num_filters": [4]},
        {"name": "DynamicMeanVFE", "x_major": True},
    ],
    ids=lambda node: "-".join(map(str, node.values())),
)
def test_points_know_their_voxel(node: dict[str, Any]) -> None:
    pillar = node["name"] == "DynamicPillarVFE"
    size = (0.8, 0.8, 4.0 if pillar else 1.0)
    encoder = ENCODERS.build(node, in_channels=4, point_cloud_range=RANGE, voxel_size=size).eval()
    batch, _ = scene()
    assert encoder(batch).point_index is None
    encoder.keep_point_index = True
    voxels = encoder(batch)
    rows = {tuple(cell): i for i, cell in enumerate(voxels.coords.tolist())}
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    for point, frame, row in zip(batch.points, batch.batch_index.tolist(), voxels.point_index.tolist(), strict=True):
        axes = slice(0, 2) if pillar else slice(0, 3)
        inside = bool(((point[:3] >= low) & (point[:3] < high))[axes].all())
        x, y, z = ((point[:3] - low) / torch.tensor(size)).floor().long().tolist()
        assert row == (rows.get((frame, 0 if pillar else z, y, x), -1) if inside else -1)


def test_cells_of_a_coarser_grid() -> None:
    coords = torch.tensor([[0, 0, 0, 0], [0, 3, 7, 9], [1, 2, 4, 5]], dtype=torch.int32)
    fine = SparseVoxels(torch.zeros(3, 1), coords, (4, 8, 10), 2)
    assert coarse_cells(fine, (2, 8, 5), (2, 1, 2)).tolist() == [[0, 0, 0, 0], [0, 1, 7, 4], [1, 1, 4, 2]]
    uneven = SparseVoxels(
        torch.zeros(3, 1), torch.tensor([[0, 40, 8, 59], [0, 0, 7, 56], [0, 16, 15, 55]]), (41, 60, 60), 1
    )
    assert coarse_cells(uneven, (2, 8, 8), (16, 8, 8)).tolist() == [[0, 1, 1, 7], [0, 0, 0, 7], [0, 1, 1, 6]]
    assert rows_of(fine, torch.tensor([[1, 2, 4, 5], [1, 0, 0, 0]])).tolist() == [2, -1]
    assert rows_of(SparseVoxels(torch.zeros(0, 1), coords[:0], (4, 8, 10), 2), coords.long()).tolist() == [-1] * 3


UNEVEN: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "second": ({"name": "VoxelBackBone8x", "channels": [8, 8, 8, 8, 8]}, (41, 60, 52)),
    "dsvt": (
        {
            "name": "DSVT",
            "channels": [8, 8],
            "num_blocks": [1, 1],
            "num_heads": [2, 2],
            "ffn_channels": [8, 8],
            "group_sizes": [8, 8],
            "windows": [[4, 4, 4], [4, 4, 4]],
            "shifts": [[[0, 0, 0], [2, 2, 2]]] * 2,
            "pool_strides": [[2, 4, 4]],
            "partial_cells": True,
        },
        (7, 50, 46),
    ),
    "scatterformer": ({"name": "ScatterFormer", "channels": 16, "window": [None, 6, 6]}, (16, 37, 45)),
    "flatformer": (
        {"name": "FlatFormer", "num_blocks": 1, "window": [None, 5, 5], "group_size": 8, "num_heads": 2},
        (1, 37, 45),
    ),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_voxels_find_themselves_in_the_coarse_grid_of_every_backbone(name: str) -> None:
    """Also where the grid does not divide by the strides: the coarse cell exists, and it depends on the voxel."""
    node, grid = UNEVEN[name]
    torch.manual_seed(0)
    backbone = BACKBONES.build(node, in_channels=node.get("channels", 8) if name == "scatterformer" else 8, grid=grid)
    cells = torch.stack([torch.randint(0, n, (60,)) for n in (1, *grid)], 1).unique(dim=0)
    width = 16 if name == "scatterformer" else 8
    features = torch.randn(len(cells), width, requires_grad=True)
    fine = SparseVoxels(features, cells.int(), grid, 1)
    out = backbone.eval()(fine)
    rows = rows_of(out, coarse_cells(fine, out.grid, backbone.strides))
    assert (rows >= 0).all()
    for voxel in range(0, len(cells), 7):
        (grad,) = torch.autograd.grad(out.features[rows[voxel]].square().sum(), features, retain_graph=True)
        assert grad[voxel].abs().sum() > 0


def test_a_head_of_points_alone_needs_no_map() -> None:
    detector = build_detector(settings(head=ALONE))
    batch, _ = scene()
    assert set(detector.loss(batch)) == {"segmentation", "total"}
    found = Detector(settings(head=ALONE), "cpu", detector)
    cloud = torch.rand(50, 4)
    labels, nothing = found.detect([cloud.numpy(), cloud[:0].numpy()])
    assert (len(labels), len(nothing)) == (50, 0)
    with pytest.raises(ValueError, match="no head of this detector reads a map"):
        detector.bev_map(batch)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "either `head`, its only one, or `heads`"),
        ({"head": CENTER, "heads": {"a": CENTER}}, "either `head`, its only one, or `heads`"),
        ({"heads": {"a": {**CENTER, "weight": -1}}}, r"heads\.a\.weight must be a number from 0, got -1"),
        ({"heads": {"a": {**CENTER, "weight": "much"}}}, r"heads\.a\.weight"),
        ({"heads": {"a": {**CENTER, "classes": ["Cra"]}}}, "head 'a' has the unknown class 'Cra'.*did you mean 'Car'"),
        ({"heads": {"a": {"name": "CentreHead"}}}, "did you mean 'CenterHead'"),
        ({"heads": {"a": {**POINTS, "point_classes": ["a", "a"]}}}, "point_classes must be different names"),
        (
            {
                "head": ALONE,
                "bev_backbone": BEV,
            },
            "a map that no head reads",
        ),
    ],
)
def test_wrong_heads_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_detector(settings(**model))


def test_labels_that_do_not_fit_are_refused() -> None:
    detector = build_detector(settings({"boxes": CENTER, "points": POINTS}))
    batch, _ = scene()
    output = detector(batch)["points"]
    head = detector.heads["points"]
    assert isinstance(head, PointSegmentationHead)
    good = [t.point_labels for t in batch.targets]
    for labels, message in (
        ([None, good[1]], "frame 0 of the batch has no point labels"),
        ([good[0][:-1], good[1]], "points, .* point labels"),
        ([good[0] + 1, good[1]], "point labels go from .* to 2, there are 2 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            head.loss(output, [Targets(point_labels=each) for each in labels])
    none = [Targets(point_labels=torch.full_like(each, -1)) for each in good]
    assert head.loss(output, none)["segmentation"] == 0
    with pytest.raises(ValueError, match="frame 0 of the batch has no labelled boxes"):
        detector.heads["boxes"].loss(detector(batch)["boxes"], none)


def test_a_head_learns_and_names_its_own_classes() -> None:
    """A head of the second class learns as one that is alone in a detector of this class, and says its name."""
    batch, _ = scene()
    boxes = torch.tensor([[6.0, 0, -1, 4, 2, 1.5, 0], [9.0, 3, -1, 0.8, 0.8, 1.8, 0]])
    both = tuple(Targets(boxes, torch.tensor([0, 1])) for _ in range(2))
    people = tuple(Targets(boxes[1:], torch.tensor([0])) for _ in range(2))
    config = settings({"people": {**CENTER, "classes": ["Pedestrian"]}, "all": CENTER})
    config["data"]["classes"] = ["Car", "Pedestrian"]
    alone = settings({"people": CENTER})
    alone["data"]["classes"] = ["Pedestrian"]
    detector, expected = build_detector(config), build_detector(alone)
    expected.load_state_dict({k: v for k, v in detector.state_dict().items() if not k.startswith("heads.all.")})
    losses = detector.loss(replace(batch, targets=both))
    for name, value in expected.loss(replace(batch, targets=people)).items():
        if name != "total":
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert losses["people/box_0"] > 0
    found = Detector(config, "cpu", detector).detect([batch.points.numpy(), batch.points[:0].numpy()])
    assert len(found[0]["people"]) > 0
    assert set(found[0]["people"].names) == {"Pedestrian"}
    assert [f["people"].class_names for f in found] == [("Pedestrian",)] * 2
    assert found[0]["all"].class_names == ("Car", "Pedestrian")
    empty = Detector(config, "cpu", detector).detect(batch.points[:0].numpy())
    assert empty["people"].class_names == ("Pedestrian",)


@pytest.mark.parametrize("arrays", [False, True])
def test_boxes_of_all_heads_are_joined(arrays: bool) -> None:
    cars = Detections(torch.ones(2, 7), torch.tensor([0.9, 0.8]), torch.tensor([1, 0]), ("Van", "Car"), "7")
    people = Detections(torch.full((1, 9), 2.0), torch.tensor([0.7]), torch.tensor([0]), ("Pedestrian",), "7")
    vans = Detections(torch.full((1, 7), 3.0), torch.tensor([0.6]), torch.tensor([0]), ("Van",), "7")
    points = PointLabels(torch.zeros(3, dtype=torch.int64), torch.ones(3), ("ground",))
    found = Predictions({"points": points, "cars": cars, "people": people, "vans": vans})
    joined = (found.numpy() if arrays else found).detections
    assert joined.names == ["Car", "Van", "Pedestrian", "Van"]
    assert joined.class_names == ("Van", "Car", "Pedestrian")
    assert joined.frame_id == "7"
    assert joined.boxes[:, 0].tolist() == [1, 1, 2, 3]
    assert joined.boxes[:, 8].tolist() == [0, 0, 2, 0]
    assert joined.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])
    assert isinstance(joined.boxes, torch.Tensor) != arrays
    with pytest.raises(ValueError, match="none of the heads points finds boxes"):
        _ = Predictions({"points": points}).detections
