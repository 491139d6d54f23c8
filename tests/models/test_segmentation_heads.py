"""Heads that label points: the Lovász loss against its definition, objects against brute force, and learning."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcdet_ext.config import ConfigError, Node, from_plain
from pcdet_ext.inference import Detector
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.models.heads import PanopticHead, PointFeatures, PointSegmentationHead
from pcdet_ext.models.heads.lovasz import lovasz_softmax
from pcdet_ext.models.heads.panoptic import PanopticOutput, grid_clusters
from pcdet_ext.structures import PointBatch, PointLabels, Targets


def jaccard_loss(own: list[bool], wrong: set[int]) -> float:
    """1 - IoU of a class whose points are `own`, where the points `wrong` are mispredicted."""
    truth = {i for i, mine in enumerate(own) if mine}
    found = truth ^ wrong
    return 1 - len(truth & found) / len(truth | found) if truth | found else 0.0


def choquet(error: list[float], own: list[bool]) -> float:
    """The Lovász extension of the Jaccard loss as an integral over the sets of points whose error exceeds a level."""
    levels = sorted({0.0, *error})
    total = 0.0
    for low, high in pairwise(levels):
        total += (high - low) * jaccard_loss(own, {i for i, e in enumerate(error) if e > low})
    return total


def probabilities_of(seed: int, points: int, classes: int) -> Tensor:
    return torch.rand(points, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(1)


@given(st.integers(0, 999), st.lists(st.integers(0, 3), min_size=1, max_size=25))
@settings(max_examples=60, deadline=None)
def test_the_lovasz_loss_is_the_lovasz_extension_of_the_jaccard_loss(seed: int, labels: list[int]) -> None:
    probabilities = probabilities_of(seed, len(labels), 4)
    expected = []
    for number in sorted(set(labels)):
        own = [label == number for label in labels]
        error = [abs(float(mine) - p) for mine, p in zip(own, probabilities[:, number].tolist(), strict=True)]
        expected.append(choquet(error, own))
    loss = lovasz_softmax(probabilities, torch.tensor(labels))
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-12)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    chosen = weights[sorted(set(labels))].numpy()
    weighted = lovasz_softmax(probabilities, torch.tensor(labels), weights)
    assert weighted.item() == pytest.approx((np.array(expected) * chosen).sum() / chosen.sum(), abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_at_hard_predictions_it_is_one_minus_the_mean_intersection_over_union(pairs: list[tuple[int, int]]) -> None:
    labels, found = torch.tensor(pairs).T
    loss = lovasz_softmax(torch.nn.functional.one_hot(found, 3).double(), labels)
    ious = []
    for number in labels.unique().tolist():
        own, other = labels == number, found == number
        ious.append(((own & other).sum() / (own | other).sum()).item())
    assert loss.item() == pytest.approx(1 - np.mean(ious), abs=1e-6)


def test_gradients_of_the_lovasz_loss() -> None:
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 1])
    logits = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: lovasz_softmax(x.softmax(1), labels), [logits])
    none = lovasz_softmax(logits[:0].softmax(1), labels[:0])
    assert none.item() == 0
    none.backward()


@given(
    st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), max_size=40),
    st.integers(1, 3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_clusters_are_the_connected_cells(cells: list[tuple[int, int]], least: int, random: Any) -> None:
    places = np.array([[x + random.random() * 0.98, y + random.random() * 0.98] for x, y in cells]).reshape(-1, 2)
    found = grid_clusters(places * 0.5, 0.5, least)
    owner = {cell: cell for cell in cells}

    def root(cell: tuple[int, int]) -> tuple[int, int]:
        while owner[cell] != cell:
            cell = owner[cell]
        return cell

    for a, b in product(owner, owner):
        if max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= 1:
            low, high = sorted((root(a), root(b)))
            owner[high] = low
    sizes: dict[tuple[int, int], int] = {}
    for cell in cells:
        sizes[root(cell)] = sizes.get(root(cell), 0) + 1
    numbers = {cell: i for i, cell in enumerate(sorted(c for c, n in sizes.items() if n >= least), 1)}
    assert found.tolist() == [numbers.get(root(cell), 0) for cell in cells]


def test_points_without_a_place_belong_to_no_cluster() -> None:
    places = np.array([[0.1, 0.1], [np.nan, 0.1], [np.nan, 0.1], [0.2, np.inf], [1e30, 0], [0.3, 0.2], [-5, 9]])
    assert grid_clusters(places, 0.5, 2).tolist() == [1, 0, 0, 0, 0, 1, 0]
    assert grid_clusters(places, 0.5, 1).tolist() == [2, 0, 0, 0, 0, 2, 1]
    assert grid_clusters(places[1:5], 0.5).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("head", [PointSegmentationHead, PanopticHead])
def test_a_batch_whose_classes_have_no_weight_has_the_loss_zero(head: type[PointSegmentationHead]) -> None:
    options: dict[str, Any] = {"things": ["b"]} if head is PanopticHead else {}
    layer = head(4, point_classes=["a", "b"], hidden_channels=(), class_weights=[0, 1], **options)
    inside, frames = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64)
    output = layer(PointFeatures(torch.randn(3, 4), frames, 1, inside, torch.randn(3, 3)))
    targets = [
        Targets(point_labels=torch.zeros(3, dtype=torch.int64), point_instances=torch.zeros(3, dtype=torch.int64))
    ]
    loss = sum(layer.loss(output, targets).values())
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in layer.parameters())
    for wrong in ([1, -1], [1, float("nan")], [float("inf"), 1], [1e39, 1]):
        with pytest.raises(ValueError, match="class_weights must be finite numbers of at least 0"):
            head(4, point_classes=["a", "b"], class_weights=wrong, **options)


RANGE = [-8.0, -8.0, -2.0, 8.0, 8.0, 2.0]
NAMES = ["ground", "car", "bike"]


def scene() -> PointBatch:
    """Two frames: ground, two cars and a bike, the cars two metres apart."""
    rng = np.random.default_rng(0)
    clouds, targets = [], []
    for frame in range(2):
        ground = np.column_stack([rng.uniform(-8, 8, (300, 2)), rng.normal(-1.5, 0.02, 300)])
        centres = [(-4.0, 2.0 + frame), (2.0, 3.0), (3.0, -4.0 - frame)]
        objects = [np.array([*c, 0.0]) + rng.uniform(-1, 1, (60, 3)) * [1.5, 0.8, 0.7] for c in centres]
        points = np.concatenate([ground, *objects])
        labels, own = np.repeat([0, 1, 1, 2], [300, 60, 60, 60]), np.repeat([0, 7, 8, 7], [300, 60, 60, 60])
        clouds.append(torch.from_numpy(np.column_stack([points, rng.random(len(points))]).astype(np.float32)))
        targets.append(Targets(point_labels=torch.from_numpy(labels), point_instances=torch.from_numpy(own)))
    batch = PointBatch.from_points(clouds)
    return PointBatch(batch.points, batch.batch_index, 2, tuple(targets))


BACKBONES: dict[str, dict[str, Any] | None] = {
    "none": None,
    "sequence": {
        "name": "SequenceBackbone",
        "layers": [
            {
                "order": {"name": "Hilbert"},
                "partition": {"name": "EqualGroups", "group_size": 64},
                "mixer": {"name": "LinearAttention", "num_heads": 2},
            }
        ],
    },
    "octformer": {
        "name": "OctFormer",
        "channels": [16, 32],
        "num_blocks": [1, 1],
        "num_heads": [2, 2],
        "stem_down": 1,
        "drop_path": 0.0,
        "out_channels": 16,
    },
    "flatformer": {"name": "FlatFormer", "num_blocks": 1, "window": [None, 5, 5], "group_size": 32, "num_heads": 2},
}


def settings_of(head: dict[str, Any], backbone: str = "none", size: float = 0.5) -> Node:
    pillars = backbone == "flatformer"
    encoder = {"name": "DynamicPillarVFE" if pillars else "DynamicVoxelVFE", "num_filters": [16]}
    model = {"name": "VoxelDetector", "voxel_size": [size, size, 4.0 if pillars else size], "encoder": encoder}
    model |= {"head": head} | ({"backbone": BACKBONES[backbone]} if BACKBONES[backbone] else {})
    data = {"classes": NAMES, "point_cloud_range": RANGE, "point_features": ["x", "y", "z", "intensity"]}
    return from_plain({"data": data, "model": model}, "test")


PANOPTIC = {"name": "PanopticHead", "things": ["car", "bike"], "own_channels": [16], "lovasz_weight": 1.0}


def trained(detector: VoxelDetector, batch: PointBatch, steps: int) -> list[dict[str, float]]:
    optimizer = torch.optim.Adam(detector.parameters(), 0.01)
    history = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses = detector.train().loss(batch)
        losses["total"].backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for norm in detector.modules():  # few steps: the running statistics lag behind
        if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
            norm.momentum = 0.5
    for _ in range(10):
        detector(batch)
    return history


@pytest.mark.parametrize("backbone", BACKBONES)
def test_classes_and_objects_are_learnt_on_any_backbone(backbone: str) -> None:
    torch.manual_seed(0)
    batch = scene()
    config = settings_of(PANOPTIC, backbone)
    detector = build_detector(config)
    history = trained(detector, batch, 50)
    assert set(history[0]) == {"segmentation", "lovasz", "offsets", "total"}
    assert all(history[-1][name] < 0.5 * history[0][name] for name in history[0])
    found = Detector(config, "cpu", detector).predict(batch)
    for frame, labels in enumerate(found):
        truth = batch.targets[frame]
        assert isinstance(labels, PointLabels)
        assert labels.class_names == tuple(NAMES)
        assert (labels.labels == truth.point_labels).float().mean() > 0.95
        for label, own in ((1, 7), (1, 8), (2, 7)):
            mine = (truth.point_labels == label) & (truth.point_instances == own)
            numbers, counts = labels.instances[mine].unique(return_counts=True)
            best = numbers[counts.argmax()]
            assert best > 0
            assert counts.max() > 50
            assert (labels.instances == best).sum() < 75  # and no other object has the number


def test_points_of_one_pillar_are_told_apart_by_their_own_columns() -> None:
    labels = {}
    for own in ([], [16]):
        torch.manual_seed(0)
        config = settings_of({"name": "PointSegmentationHead", "own_channels": own}, "flatformer", size=8.0)
        batch, detector = scene(), build_detector(config)
        trained(detector, batch, 40)
        labels[bool(own)] = torch.cat([f.labels for f in detector.eval().predict(batch)])
    truth = torch.cat([t.point_labels for t in batch.targets])
    assert (labels[True] == truth).float().mean() > (labels[False] == truth).float().mean() + 0.1


def features_of(points: Tensor, index: Tensor, frames: int, width: int = 3) -> PointFeatures:
    inside = torch.ones(len(points), dtype=torch.bool)
    return PointFeatures(torch.randn(len(points), width), index, frames, inside, points)


def test_right_offsets_give_the_objects_and_no_loss() -> None:
    batch = scene()
    head = PanopticHead(3, ["car", "bike"], classes=NAMES, min_points=5)
    labels = torch.cat([t.point_labels for t in batch.targets])
    own = torch.cat([t.point_instances for t in batch.targets])
    offsets = torch.zeros(len(labels), 2)
    for frame, label, number in product(range(2), (1, 2), (7, 8)):
        mine = (batch.batch_index == frame) & (labels == label) & (own == number)
        offsets[mine] = batch.points[mine, :2].mean(0) - batch.points[mine, :2]
    logits = torch.nn.functional.one_hot(labels, 3) * 50.0
    output = PanopticOutput(logits, features_of(batch.points, batch.batch_index, 2), offsets)
    assert head.loss(output, batch.targets)["offsets"].item() == pytest.approx(0, abs=1e-6)
    moved = PanopticOutput(logits, output.points, offsets + 1.5)
    assert head.loss(moved, batch.targets)["offsets"].item() == pytest.approx(0.2 * 3, rel=1e-5)
    for frame, found in enumerate(head.decode(output)):
        assert found.labels.tolist() == batch.targets[frame].point_labels.tolist()
        pairs = set(zip(batch.targets[frame].point_instances.tolist(), found.labels.tolist(), strict=True))
        number = {}
        for key, mine in zip(
            zip(batch.targets[frame].point_instances.tolist(), found.labels.tolist(), strict=True),
            found.instances.tolist(),
            strict=True,
        ):
            assert number.setdefault(key, mine) == mine
        assert sorted(number.values()) == [0, 1, 2, 3]
        assert len(pairs) == 4


def test_an_object_has_the_class_of_most_of_its_points() -> None:
    points = torch.tensor([[0.0, 0, 0, 0]] * 5 + [[5.0, 5, 0, 0]])
    index = torch.zeros(6, dtype=torch.int64)
    logits = torch.nn.functional.one_hot(torch.tensor([1, 2, 2, 1, 2, 1]), 3) * 9.0
    head = PanopticHead(3, ["car", "bike"], classes=NAMES, min_points=2)
    (found,) = head.decode(PanopticOutput(logits, features_of(points, index, 1), torch.zeros(6, 2)))
    assert found.labels.tolist() == [2, 2, 2, 2, 2, 1]
    assert found.instances.tolist() == [1, 1, 1, 1, 1, 0]
    empty = PanopticOutput(logits[:0], features_of(points[:0], index[:0], 2), torch.zeros(0, 2))
    assert [len(f.instances) for f in head.decode(empty)] == [0, 0]
    losses = head.loss(empty, [Targets(point_labels=index[:0], point_instances=index[:0])] * 2)
    assert all(value.item() == 0 for value in losses.values())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="'cra' is no class of points; did you mean 'car'"):
        build_detector(settings_of({**PANOPTIC, "things": ["cra"]}))
    with pytest.raises(ConfigError, match="cell must be above 0, got 0"):
        build_detector(settings_of({**PANOPTIC, "cell": 0.0}))
    with pytest.raises(ValueError, match="own_channels needs num_point_features"):
        PointSegmentationHead(3, NAMES, own_channels=[8])
    with pytest.raises(ValueError, match="point_classes must be different names"):
        PointSegmentationHead(3)
    batch = scene()
    head = PanopticHead(3, ["car"], classes=NAMES)
    output = head(features_of(batch.points, batch.batch_index, 2))
    with pytest.raises(ValueError, match="frame 0 of the batch has no point instances"):
        head.loss(output, [t.replace(point_instances=None) for t in batch.targets])
