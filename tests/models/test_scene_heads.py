"""Heads that tell about a scene beside boxes: map layers, occupancy, motion and planning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pcdet_ext.config import ConfigError, Node, from_plain
from pcdet_ext.inference import Detector
from pcdet_ext.models.bev.grid_transform import BEVGridTransform
from pcdet_ext.models.detector import build_detector
from pcdet_ext.models.heads import MapSegmentationHead, MotionHead, MotionOutput, OccupancyHead, PlanningHead
from pcdet_ext.models.heads.lovasz import lovasz_softmax
from pcdet_ext.models.heads.occupancy_losses import geometric_affinity, scene_class_affinity, weighted_focal
from pcdet_ext.models.heads.paths import fan_of_paths, sine_embedding
from pcdet_ext.models.heads.planning import PlanOutput
from pcdet_ext.scenes import EgoPlan, Forecasts, MapLayers, OccupancyGrid, PlannedPath, cells_of
from pcdet_ext.structures import PointBatch, Predictions, Targets

RANGE = (-8.0, -8.0, -2.0, 8.0, 8.0, 2.0)


def test_a_map_on_another_grid_is_a_linear_function_where_it_was_one() -> None:
    rows, columns = torch.arange(-5.5, 6), torch.arange(-8.5, 9)
    plane = (2 * rows[:, None] + 3 * columns)[None, None]
    transform = BEVGridTransform([[-6, 6, 1], [-9, 9, 1]], [[-2, 3, 0.25], [-4, 4, 0.5]])
    y, x = torch.arange(-2 + 0.125, 3, 0.25), torch.arange(-4 + 0.25, 4, 0.5)
    torch.testing.assert_close(transform(plane)[0, 0], 2 * y[:, None] + 3 * x)


def test_places_on_a_map_do_not_suffer_from_half_precision() -> None:
    columns = torch.arange(-89.5, 90).expand(4, 180)[None, None]
    transform = BEVGridTransform([[-2, 2, 1], [-90, 90, 1]], [[-2, 2, 1], [-90, 90, 1]]).bfloat16()
    torch.testing.assert_close(transform(columns.bfloat16()), columns.bfloat16())


def test_nothing_is_read_from_outside_of_a_map() -> None:
    transform = BEVGridTransform([[0, 4, 1], [0, 4, 1]], [[-4, 0, 1], [0, 4, 1]])
    assert bool((transform(torch.ones(1, 1, 4, 4))[0, 0, :3] == 0).all())


@pytest.mark.parametrize("scope", [(0, 1, 0.3), (1, 1, 0.5), (0, 1, 0), (0, 1, -1), (0, math.nan, 1)])
def test_an_axis_that_is_no_whole_number_of_cells_is_refused(scope: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"axis|whole number"):
        cells_of(scope)


def small_map_head(**settings: Any) -> MapSegmentationHead:
    axes: dict[str, Any] = {"x": (-6, 6, 1.0), "y": (-4, 4, 1.0)}
    size = {"hidden_channels": 8, "encoder_channels": 4, "encoder_blocks": (0, 0, 0)}
    return MapSegmentationHead(3, RANGE, **axes, layers=("road", "walk"), **size, **settings)


def test_map_losses_are_the_focal_loss_of_each_layer() -> None:
    torch.manual_seed(0)
    head, bev = small_map_head().eval(), torch.randn(2, 3, 16, 16)
    output = head(bev)
    masks = torch.rand(2, 2, 8, 12) > 0.7
    losses = head.loss(output, [Targets(map_masks=own.to(torch.uint8)) for own in masks])
    p = output.logits.sigmoid()
    true = torch.where(masks, p, 1 - p)
    torch.testing.assert_close(losses["road"], (-true.log() * (1 - true) ** 2)[:, 0].mean())
    torch.testing.assert_close(losses["walk"], (-true.log() * (1 - true) ** 2)[:, 1].mean())
    found = head.decode(output)[1]
    assert isinstance(found.numpy(), MapLayers)
    assert isinstance(found.numpy().probabilities, np.ndarray)
    torch.testing.assert_close(found.probabilities, p[1])


def test_maps_of_another_size_or_none_are_refused() -> None:
    head = small_map_head().eval()
    output = head(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="no map_masks"):
        head.loss(output, [Targets()])
    with pytest.raises(ValueError, match=r"\(2, 12, 8\), not \(2, 8, 12\)"):
        head.loss(output, [Targets(map_masks=torch.zeros(2, 12, 8))])


def small_occupancy_head(**settings: Any) -> OccupancyHead:
    axes: dict[str, Any] = {"x": (-4, 4, 1.0), "y": (-3, 3, 1.0), "heights": 2}
    classes = ("car", "vegetation", "free")
    return OccupancyHead(3, RANGE, **axes, occupancy_classes=classes, hidden_channels=4, **settings)


def test_cells_of_occupancy_are_where_the_map_is() -> None:
    head = small_occupancy_head()
    bev = torch.zeros(1, 3, 16, 16, requires_grad=True)
    output = head(bev)
    assert output.logits.shape == (1, 8, 6, 2, 3)
    output.logits[0, 7, 0].abs().sum().backward()  # x from 3 to 4 m, y from -3 to -2 m
    assert bev.grad is not None
    touched = bev.grad.abs().sum((0, 1)).nonzero()
    centre = touched.float().mean(0) + 0.5 - 8
    assert centre[1] > 2
    assert centre[0] < -1.5


def plain_affinity(p: Tensor, own: Tensor) -> float:
    hits = sum(float(p[i]) for i in range(len(p)) if own[i])
    precision, recall = hits / float(p.sum()), hits / int(own.sum())
    others = [1 - float(p[i]) for i in range(len(p)) if not own[i]]
    return -sum(math.log(share) for share in (precision, recall, sum(others) / len(others)))


def test_affinity_losses_are_precision_recall_and_specificity() -> None:
    torch.manual_seed(1)
    p, labels = torch.rand(50, 4, dtype=torch.float64).softmax(1), torch.randint(0, 4, (50,))
    labels[labels == 1] = 0
    wanted = (plain_affinity(p[:, 0], labels == 0) + plain_affinity(p[:, 2], labels == 2)) / 2
    assert float(scene_class_affinity(p, labels, free=3)) == pytest.approx(wanted, rel=1e-4)
    assert float(geometric_affinity(p, labels, free=3)) == pytest.approx(
        plain_affinity(1 - p[:, 3], labels != 3), rel=1e-4
    )


def test_without_free_cells_their_specificity_still_counts_in_the_geometric_loss() -> None:
    p, labels = torch.tensor([[0.7, 0.1, 0.2], [0.5, 0.2, 0.3]], dtype=torch.float64), torch.tensor([0, 1])
    precision, recall = 1.5 / (1.5 + 1e-5), 1.5 / (2 + 1e-5)
    wanted = -math.log(precision) - math.log(recall) - math.log(1e-5)
    assert float(geometric_affinity(p, labels, free=2)) == pytest.approx(wanted, abs=2e-5)
    of_all = -math.log(0.7 / (1.2 + 1e-5)) - math.log(0.7 / (1 + 1e-5)) - math.log(0.5 / (1 + 1e-5))
    assert float(scene_class_affinity(p, torch.tensor([0, 2]), free=2)) == pytest.approx(of_all, rel=1e-4)


def test_gradients_of_the_occupancy_losses() -> None:
    torch.manual_seed(2)
    logits = torch.randn(1, 3, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 3, 3, 255, 1, 0, 2, 3, 3, 2, 255]).view(1, 3, 2, 2)
    counted = labels != 255

    weights = torch.rand(3, 2, 2, dtype=torch.float64)[counted[0]]

    def steady(x: Tensor) -> Tensor:
        p = x.softmax(-1)[counted]
        focal = weighted_focal(x[counted], labels[counted], torch.arange(1.0, 5), weights)
        return torch.stack(
            [scene_class_affinity(p, labels[counted], 3), geometric_affinity(p, labels[counted], 3), focal]
        )

    assert torch.autograd.gradcheck(steady, (logits,))


def test_unknown_cells_do_not_count_unless_it_is_asked_for() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (8, 6, 2), dtype=torch.uint8)
    labels[:2] = 255
    bev = torch.randn(1, 3, 16, 16)
    head = small_occupancy_head()
    output = head(bev)
    other = replace(output, logits=output.logits.clone())
    other.logits[:, :2] += torch.randn(1, 2, 6, 2, 3)  # only where nothing is known
    targets = [Targets(occupancy=labels)]
    first, second = head.loss(output, targets), head.loss(other, targets)
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name)
    head.lovasz_of_unknown = True
    assert head.loss(output, targets)["lovasz"] != head.loss(other, targets)["lovasz"]


def test_lovasz_takes_a_label_beyond_the_classes_as_background() -> None:
    p = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
    wide = torch.cat([p, torch.zeros(3, 1)], 1)  # a third class that no point is likely to be of
    got = lovasz_softmax(p, torch.tensor([0, 1, 255]))
    third = lovasz_softmax(wide, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(got * 2 + 1, third * 3)  # the third class is missed altogether: 1


def test_a_frame_without_any_occupied_cell_has_finite_losses() -> None:
    head = small_occupancy_head()
    losses = head.loss(
        head(torch.randn(1, 3, 16, 16)), [Targets(occupancy=torch.full((8, 6, 2), 2, dtype=torch.uint8))]
    )
    assert all(bool(value.isfinite()) for value in losses.values())
    assert losses["semantic"] == 0


def test_nothing_known_at_all_is_no_loss() -> None:
    head = small_occupancy_head(flow=True)
    unknown = Targets(occupancy=torch.full((8, 6, 2), 255, dtype=torch.uint8), occupancy_flow=torch.zeros(8, 6, 2, 2))
    losses = head.loss(head(torch.randn(1, 3, 16, 16)), [unknown])
    assert losses["focal"] == 0
    assert losses["flow"] == 0
    assert losses["lovasz"] == 0


def test_wrong_occupancy_is_refused() -> None:
    head = small_occupancy_head()
    output = head(torch.zeros(1, 3, 16, 16))
    for labels, message in (
        (None, "no occupancy"),
        (torch.zeros(6, 8, 2), "not"),
        (torch.full((8, 6, 2), 7), "label 7"),
    ):
        with pytest.raises(ValueError, match=message):
            head.loss(output, [Targets(occupancy=labels)])


def test_flow_of_another_size_is_refused() -> None:
    head = small_occupancy_head(flow=True)
    labels, output = torch.zeros(8, 6, 2), head(torch.zeros(1, 3, 16, 16))
    for size in ((8, 6, 2), (6, 8, 2, 2), (8, 6, 2, 3)):
        with pytest.raises(ValueError, match="occupancy_flow of frame 0"):
            head.loss(output, [Targets(occupancy=labels, occupancy_flow=torch.zeros(size))])


def test_weights_grow_with_the_distance_from_the_sensor() -> None:
    weights = small_occupancy_head().cell_weights
    torch.testing.assert_close(weights, weights.flip(0).flip(1))
    assert weights[0, 0] == 2
    assert weights.argmin() in (3 * 6 + 2, 3 * 6 + 3, 4 * 6 + 2, 4 * 6 + 3)
    corners = small_occupancy_head(distance_of_corners=True).cell_weights
    assert corners[4, 3] == 1
    assert corners[0, 0] == 2


def test_sine_embeddings_are_those_of_the_paper() -> None:
    got = sine_embedding(torch.tensor([[0.25, 1.5]], dtype=torch.float64), 8)[0]
    want = []
    for value in (1.5, 0.25):
        for j in range(4):
            angle = 2 * math.pi * value / 10000 ** (2 * (j // 2) / 4)
            want.append(math.sin(angle) if j % 2 == 0 else math.cos(angle))
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_the_fan_of_paths_stands_drives_and_turns_to_both_sides() -> None:
    fan = fan_of_paths(6, 12)
    assert bool((fan[0] == 0).all())
    ends = fan[:, -1]
    assert len({tuple(end.tolist()) for end in ends[1:]}) == 5
    assert ends[1:, 0].max() > 5
    assert ends[:, 1].min() < 0 < ends[:, 1].max()


def motion_head(**settings: Any) -> MotionHead:
    return MotionHead(3, ["car"], hidden_channels=8, num_heads=2, steps=4, modes=3, dropout=0.0, **settings)


def test_motion_learns_the_best_path_by_known_steps_in_the_order_of_the_matches() -> None:
    head = motion_head(classification_weight=1.0)
    future = torch.tensor([[[1.0, 0]] * 4, [[0, 2.0]] * 4])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    targets = [Targets(torch.zeros(2, 7), futures=future * mask[..., None], future_mask=mask)]
    steps = torch.zeros(1, 2, 3, 4, 2)
    steps[0, 0, 1] = future[1]  # the first query stands for the second object, and its second path is right
    steps[0, 1, 2] = future[0]
    matches = [(torch.tensor([0, 1]), torch.tensor([1, 0]))]
    logits = torch.full((1, 2, 3), -9.0)
    logits[0, 0, 1] = logits[0, 1, 2] = 9
    losses = head.loss(MotionOutput(steps, logits, torch.zeros(1, 6, 8)), targets, matches)
    assert losses["regression"] == 0
    assert losses["classification"] < 1e-3
    head.masks_in_object_order = True  # the published order: steps that nobody knows count now
    assert head.loss(MotionOutput(steps, logits, torch.zeros(1, 6, 8)), targets, matches)["regression"] > 0


def test_no_objects_are_no_loss_of_motion() -> None:
    head = motion_head()
    output = MotionOutput(torch.randn(1, 2, 3, 4, 2), torch.randn(1, 2, 3), torch.zeros(1, 6, 8))
    empty = Targets(torch.zeros(0, 7), futures=torch.zeros(0, 4, 2), future_mask=torch.zeros(0, 4, dtype=torch.bool))
    none = torch.zeros(0, dtype=torch.int64)
    losses = head.loss(output, [empty], [(none, none)])
    assert losses["regression"] == 0
    assert losses["classification"] == 0
    with pytest.raises(ValueError, match="no futures"):
        head.loss(output, [Targets(torch.zeros(0, 7))], [(none, none)])


def test_plans_are_learnt_and_chosen_among_the_paths_of_the_command() -> None:
    head = PlanningHead(3, hidden_channels=8, num_heads=2, steps=3, modes=2, dropout=0.0)
    steps, logits = torch.zeros(2, 3, 2, 3, 2), torch.zeros(2, 3, 2)
    path = torch.tensor([[1.0, 0], [1, 0.5], [1, 1]])
    steps[0, 2, 1] = steps[1, 0, 0] = path
    logits[0, 2, 1] = logits[1, 0, 0] = 5
    logits[0, 0, 0] = logits[1, 1, 1] = 50  # of other commands
    output = PlanOutput(steps, logits, torch.zeros(2, 10), torch.tensor([2, 0]))
    for found in head.decode(output):
        torch.testing.assert_close(found.path, torch.tensor([[1.0, 0], [2, 0.5], [3, 1.5]]))
    plan = EgoPlan(path, torch.tensor([True, True, False]), torch.full((10,), 0.5))
    losses = head.loss(output, [Targets(plan=plan)] * 2)
    assert losses["regression"] == 0
    assert losses["status"] == 0.5
    unknown = EgoPlan(path * 9, torch.zeros(3, dtype=torch.bool), torch.zeros(10))
    losses = head.loss(output, [Targets(plan=unknown)] * 2)
    assert losses["regression"] == 0
    assert losses["classification"] == 0


def test_anchors_of_another_shape_or_from_no_array_are_refused(tmp_path: Any) -> None:
    np.save(tmp_path / "anchors.npy", np.zeros((1, 3, 4, 2), np.float32))
    assert motion_head(anchors=str(tmp_path / "anchors.npy")).anchors.shape == (1, 3, 4, 2)
    (tmp_path / "text.npy").write_text("no array")
    for wrong in (str(tmp_path / "text.npy"), str(tmp_path / "missing.npy"), np.zeros((1, 3, 5, 2))):
        with pytest.raises(ValueError, match="anchors"):
            motion_head(anchors=wrong)


HEADS = {
    "detection": {
        "name": "TransFusionHead",
        "num_proposals": 5,
        "hidden_channels": 16,
        "ffn_channels": 16,
        "num_heads": 2,
    },
    "map": {"name": "MapSegmentationHead", "x": [-6.0, 6.0, 1.0], "y": [-6.0, 6.0, 1.0], "layers": ["road"]}
    | {"hidden_channels": 8, "encoder_channels": 8, "encoder_blocks": [0, 0, 0], "weight": 2.0},
    "occupancy": {"name": "OccupancyHead", "x": [-4.0, 4.0, 1.0], "y": [-4.0, 4.0, 1.0], "heights": 2}
    | {"occupancy_classes": ["car", "free"], "hidden_channels": 8},
    "motion": {"name": "MotionHead", "hidden_channels": 16, "num_heads": 2, "steps": 4, "modes": 2},
    "planning": {"name": "PlanningHead", "hidden_channels": 16, "num_heads": 2, "steps": 3, "modes": 2},
}


def settings(heads: dict[str, Any]) -> Node:
    data = {"classes": ["car"], "point_cloud_range": list(RANGE), "point_features": ["x", "y", "z", "intensity"]}
    bev = {"name": "BaseBEVBackbone", "layer_nums": [0], "layer_strides": [1], "num_filters": [8]}
    model = {"name": "VoxelDetector", "voxel_size": [1.0, 1.0, 4.0], "bev_backbone": bev, "heads": heads}
    return from_plain(
        {"data": data, "model": model | {"encoder": {"name": "DynamicVoxelVFE", "num_filters": [8]}}}, "test"
    )


def scene(commands: Tensor | None) -> PointBatch:
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(400, 4, generator=generator) * 16 - torch.tensor([8.0, 8, 8, 0])
    points[:, 2].clamp_(-1.9, 1.9)
    boxes = torch.tensor([[2.0, 1, 0, 4, 2, 1.5, 0], [-4, -3, 0, 4, 2, 1.5, 1]])
    target = Targets(
        boxes,
        torch.zeros(2, dtype=torch.int64),
        futures=torch.ones(2, 4, 2),
        future_mask=torch.ones(2, 4, dtype=torch.bool),
        map_masks=torch.ones(1, 12, 12, dtype=torch.uint8),
        occupancy=torch.zeros(8, 8, 2, dtype=torch.uint8),
        plan=EgoPlan(torch.ones(3, 2), torch.ones(3, dtype=torch.bool), torch.zeros(10)),
    )
    return PointBatch(points, torch.arange(400) % 2, 2, (target, target), commands=commands)


def test_one_detector_learns_and_tells_everything() -> None:
    torch.manual_seed(0)
    detector, batch = build_detector(settings(HEADS)), scene(torch.tensor([0, 2]))
    losses = detector.loss(batch)
    parts = {name.split("/")[0] for name in losses}
    assert parts == {*HEADS, "total"}
    torch.testing.assert_close(losses["total"], sum(v for k, v in losses.items() if k != "total"))
    losses["total"].backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None]
    assert not without
    found = detector.eval().predict(batch)
    assert len(found) == 2
    assert all(isinstance(f, Predictions) for f in found)
    kinds = {"map": MapLayers, "occupancy": OccupancyGrid, "motion": Forecasts, "planning": PlannedPath}
    for name, kind in kinds.items():
        assert isinstance(found[0].numpy()[name], kind)
    boxes, motion = found[1].detections, found[1]["motion"]
    assert isinstance(motion, Forecasts)
    assert motion.paths.shape == (len(boxes), 2, 4, 2)
    steps = motion.paths[:, :, 1:] - motion.paths[:, :, :-1]
    first = motion.paths[:, :, 0] - boxes.boxes[:, None, :2]
    output = detector(batch)["motion"].steps[1, boxes.queries]
    torch.testing.assert_close(torch.cat([first[:, :, None], steps], 2), output, atol=1e-4, rtol=1e-4)


def test_forecasts_keep_to_the_boxes_that_are_left() -> None:
    torch.manual_seed(0)
    detector = Detector(settings(HEADS), "cpu")
    batch = scene(torch.tensor([0, 2]))
    there = batch.batch_index == 0
    empty = replace(batch, points=batch.points[there], batch_index=batch.batch_index[there])  # in frame 1 is no point
    first, second = detector.predict(empty)
    assert len(first.followed_by(first["motion"])) > 1
    assert len(second.followed_by(second["motion"])) == 0
    scores = first["detection"].scores
    kept = first.above(float(scores.max()))
    best = scores == scores.max()
    torch.testing.assert_close(kept.followed_by(kept["motion"]).boxes, first["detection"].boxes[best])
    torch.testing.assert_close(kept["motion"].paths, first["motion"].paths[best])


def test_a_command_is_needed_to_plan_and_it_matters() -> None:
    torch.manual_seed(0)
    heads = {name: HEADS[name] for name in ("planning",)}
    detector = build_detector(settings(heads)).eval()
    with pytest.raises(ValueError, match="commands"):
        detector(scene(None))
    told = [detector.predict(scene(torch.tensor([c, c])))[0]["planning"].path for c in range(3)]
    assert not torch.equal(told[0], told[1])
    assert not torch.equal(told[1], told[2])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"of": "boxes"}, "no head before it"),
        ({"of": "map"}, "has no queries"),
        ({"classes": []}, "must have the classes of"),
    ],
)
def test_motion_needs_a_head_of_queries_before_it(changed: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        build_detector(settings(HEADS | {"motion": HEADS["motion"] | changed}))


def test_scene_heads_tell_of_an_empty_cloud_what_they_tell_of_one_beside_others() -> None:
    heads = {
        "boxes": {"name": "CenterHead", "tasks": [["car"]], "shared_channels": 8},
        "map": {"name": "MapSegmentationHead", "x": [-6, 6, 1.0], "y": [-4, 4, 1.0], "hidden_channels": 8,
                "encoder_channels": 4, "encoder_blocks": [0, 0, 0]},
        "cells": {"name": "OccupancyHead", "x": [-6, 6, 1.0], "y": [-4, 4, 1.0], "hidden_channels": 8},
    }  # fmt: skip
    data = {"name": "CustomDataset", "root": "-", "classes": ["car"], "point_features": ["x", "y", "z"]}
    model = {"name": "VoxelDetector", "voxel_size": [1.0, 1.0, 4.0], "heads": heads,
             "encoder": {"name": "DynamicPillarVFE", "num_filters": [8]}}  # fmt: skip
    detector = Detector(from_plain({"data": {**data, "point_cloud_range": list(RANGE)}, "model": model}, "test"), "cpu")
    empty, points = np.zeros((0, 3), np.float32), np.random.default_rng(0).uniform(-1, 1, (50, 3)).astype(np.float32)
    alone, beside = detector.detect(empty), detector.detect([points, empty])[1]
    assert len(alone.heads["boxes"]) == 0
    np.testing.assert_allclose(alone.heads["map"].probabilities, beside.heads["map"].probabilities, atol=1e-6)
    assert isinstance(alone.heads["cells"], OccupancyGrid)
    np.testing.assert_array_equal(alone.heads["cells"].labels, beside.heads["cells"].labels)
