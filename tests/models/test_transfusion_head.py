"""The TransFusion head against published cases, naive windows, and degenerate input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import pcdet_ext.conformance.cases.openpcdet_heads  # noqa: F401  (registers the runners)
from pcdet_ext.config import ConfigError
from pcdet_ext.conformance.golden import run_case
from pcdet_ext.models.heads import HEADS, TransFusionHead
from pcdet_ext.models.heads.transfusion_decoder import window_mask
from pcdet_ext.ops import iou_3d
from pcdet_ext.structures import Targets

CLASSES = ("car", "bus", "cone")
BRANCHES = {"center": 2, "height": 2, "dim": 2, "rot": 2}
MAP = (12, 20)
CONTEXT = {
    "in_channels": 5,
    "classes": CLASSES,
    "point_cloud_range": (0.0, -6.0, -3.0, 20.0, 6.0, 1.0),
    "voxel_size": (0.5, 0.5, 4.0),
    "stride": 2,
}


def truth(boxes: object, labels: object) -> list[Targets]:
    """Objects of each frame as heads take them."""
    return [Targets(box, label) for box, label in zip(boxes, labels, strict=True)]


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(losses.values())


def make_head(**changes) -> TransFusionHead:
    torch.manual_seed(0)
    node = {"name": "TransFusionHead", "hidden_channels": 16, "num_heads": 2, "ffn_channels": 8, "num_proposals": 12}
    return HEADS.build(node | changes, **CONTEXT)


def random_bev(frames: int = 2) -> torch.Tensor:
    return torch.randn(frames, 5, *MAP, generator=torch.Generator().manual_seed(1))


def objects() -> tuple[torch.Tensor, torch.Tensor]:
    boxes = torch.tensor([[5.3, 2.1, -1.0, 3.9, 1.6, 1.5, 2.5], [15.2, -3.3, -0.8, 0.5, 0.4, 1.0, -3.0]])
    return boxes, torch.tensor([0, 2])


@pytest.mark.parametrize("case", ["opcd_b2", "dsvt_b2"])
def test_reproduces_published_head(shared, case):
    report = run_case(shared / "golden" / "openpcdet" / f"transfusion_{case}.json", grads=True)
    assert report.status == "pass", report.line()


@pytest.mark.parametrize("height", ["center", "top"])
def test_decoding_its_own_targets_gives_the_objects(height):
    head = make_head(height=height, score_threshold=0.3).eval()
    output = head(random_bev(1))
    boxes, labels = objects()
    targets = head.targets(output, [boxes], [labels])
    frame, query = targets.positive
    output.codes[frame, :, query] = targets.codes
    output.logits[:] = -9.0
    output.logits[frame, targets.labels[frame, query], query] = 9.0
    output.labels[frame, query] = targets.labels[frame, query]
    output.peak_scores[:] = 1.0
    found = head.decode(output)[0]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 2]
    torch.testing.assert_close(found.boxes[order], boxes, atol=1e-4, rtol=1e-4)


def test_matching_is_the_cheapest_of_all():
    """Against every assignment of 2 objects to 5 queries, at the costs of section 9."""
    head = make_head(num_proposals=5).eval()
    output = head(random_bev(1))
    boxes, labels = objects()
    query = head.targets(output, [boxes], [labels]).positive[1]
    predicted, p = head.boxes(output.codes)[0].detach(), output.logits[0].detach().sigmoid()

    def cost(q: int, g: int) -> float:
        chance = p[labels[g], q]
        focal = -0.25 * (1 - chance) ** 2 * chance.log() + 0.75 * chance**2 * (1 - chance).log()
        distance = ((predicted[q, :2] - boxes[g, :2]) / torch.tensor([20.0, 12.0])).abs().sum()
        overlap = iou_3d(predicted[q : q + 1], boxes[g : g + 1])[0, 0]
        return (0.15 * focal + 0.25 * distance - 0.25 * overlap).item()

    best = min(itertools.permutations(range(5), 2), key=lambda pair: cost(pair[0], 0) + cost(pair[1], 1))
    assert sorted(query.tolist()) == sorted(best)


@pytest.mark.parametrize("wraps", [False, True])
def test_window_equals_naive_one(wraps):
    rows, columns, radius = 6, 9, 2
    cell = torch.tensor([[0, 8, 30, 53], [17, 18, 45, 4]])
    hidden = window_mask(cell, (rows, columns), radius, wraps)
    for (b, q), key in itertools.product(itertools.product(range(2), range(4)), range(rows * columns)):
        row, column = divmod(int(cell[b, q]), columns)
        steps = itertools.product(range(-radius, radius + 1), repeat=2)
        if wraps:
            seen = key in {(row + i) * columns + column + j for i, j in steps}
        else:
            seen = max(abs(key // columns - row), abs(key % columns - column)) <= radius
        assert bool(hidden[b, q, key]) != seen


def test_a_wrapping_window_wider_than_the_map_holds_cells_several_times():
    rows, columns, radius = 4, 5, 3
    cell = torch.tensor([[0, 7], [12, 19]])
    times = window_mask(cell, (rows, columns), radius, wraps=True).exp()
    for b, q in itertools.product(range(2), range(2)):
        row, column = divmod(int(cell[b, q]), columns)
        steps = itertools.product(range(-radius, radius + 1), repeat=2)
        held = [(row + i) * columns + column + j for i, j in steps]
        expected = torch.tensor([float(held.count(key)) for key in range(rows * columns)])
        torch.testing.assert_close(times[b, q], expected)


def test_a_window_as_large_as_the_map_changes_nothing():
    bev = random_bev(1)
    whole, window = make_head().eval()(bev), make_head(window=20).eval()(bev)
    torch.testing.assert_close(whole.codes, window.codes)


def test_cells_outside_the_window_have_no_influence():
    head = make_head(window=1, isolated_queries=True).eval()
    features = torch.randn(1, 16, 240)
    positions = head._positions(MAP, features)
    cell = torch.tensor([[45, 100]])
    masks = head._masks(cell, MAP)
    queries = torch.randn(1, 16, 2)
    changed = features.clone()
    changed[..., 200:] += 5
    before, after = (head.decoder(queries, f, positions[cell], positions, *masks) for f in (features, changed))
    torch.testing.assert_close(before, after)


def test_positions_of_oblong_maps():
    like = torch.zeros(1)
    assert make_head()._positions((3, 5), like)[1 * 5 + 2].tolist() == [2.5, 1.5]
    assert make_head(x_rows=True)._positions((3, 5), like)[1 * 5 + 2].tolist() == [1.5, 2.5]


def test_border_cells_may_be_peaks():
    scores = torch.zeros(1, 3, 4, 4)
    scores[0, :, 0, 0] = 0.9
    assert make_head()._peaks(scores)[0, :, 0, 0].tolist() == pytest.approx([0.9] * 3)
    published = make_head(border_peaks=False, small_classes=["cone"])
    assert published._peaks(scores)[0, :, 0, 0].tolist() == pytest.approx([0, 0, 0.9])


def test_suppression_of_chosen_classes_keeps_the_order_of_queries():
    head = make_head(nms={"car": 0.1}).eval()
    output = head(random_bev(1))
    output.codes[:] = 0.0  # all boxes lie on each other
    output.codes[:, 7] = 1.0
    output.logits[:], output.peak_scores[:] = 5.0, 1.0
    output.labels[0] = torch.tensor([0, 1] * 6)
    assert head.decode(output)[0].labels.tolist() == [0, 1, 1, 1, 1, 1, 1]


def test_rectified_score_mixes_overlap_per_class():
    """score^(1 - a) * ((iou + 1) / 2)^a with the a of the class."""
    head = make_head(branches=BRANCHES | {"iou": 2}, iou_rectifier=[0.25, 0.0, 1.0]).eval()
    output = head(random_bev(1))
    output.logits[:], output.peak_scores[:], output.iou[:] = 0.0, 0.9, -0.5
    output.labels[0] = torch.arange(12) % 3
    found = head.decode(output)[0]
    score = 0.5 * 0.9
    expected = torch.tensor([score**0.75 * 0.25**0.25, score, 0.25])
    torch.testing.assert_close(found.scores, expected[found.labels])
    assert set(found.labels.tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match="iou_rectifier must have 3 numbers, got 2"):
        make_head(branches=BRANCHES | {"iou": 2}, iou_rectifier=[0.5, 0.5])


def test_frames_without_objects_train():
    head = make_head(branches=BRANCHES | {"iou": 2})
    boxes, labels = objects()
    broken = torch.tensor([[math.nan, 0, 0, 1, 1, 1, 0], [5, 0, 0, 0, 1, 1, 0]])
    nothing = torch.zeros(0, 7), torch.zeros(0, dtype=torch.long)
    for first in (nothing, (broken, labels), (boxes, labels)):
        losses = head.loss(head(random_bev()), truth(*zip(first, nothing, strict=True)))
        total(losses).backward()
        assert total(losses).isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_no_detection_is_an_empty_result():
    head = make_head(score_threshold=1.0).eval()
    assert [d.boxes.shape for d in head.decode(head(random_bev()))] == [(0, 7), (0, 7)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"branches": {"center": 2}}, "'height'"),
        ({"branches": BRANCHES | {"velo": 2}}, "did you mean 'vel'"),
        ({"iou_rectifier": 0.5}, "needs the branch 'iou'"),
        ({"code_weights": [1.0] * 10}, "code_weights must have 8"),
        ({"small_classes": ["cones"]}, "did you mean 'cone'"),
        ({"nms": {"buss": 0.1}}, "did you mean 'bus'"),
        ({"height": "bottom"}, "height"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_head(**changes)


def test_velocity_head_needs_velocities():
    head = make_head(branches=BRANCHES | {"vel": 2})
    boxes, labels = objects()
    with pytest.raises(ValueError, match="9 columns"):
        head.loss(head(random_bev(1)), truth([boxes], [labels]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iou_weight", -1.0),
        ("norm_momentum", 2.0),
        ("gaussian_overlap", 0.0),
        ("center_range", [0.0]),
        *((name, -0.1) for name in ("class_cost", "box_cost", "iou_cost", "dropout")),
        *((name, 0) for name in ("num_proposals", "ffn_channels", "hidden_channels", "num_heads", "heatmap_convs")),
        *((name, 2) for name in ("peak_size", "dropout")),
        *((name, -1) for name in ("min_radius", "window")),
        ("num_heads", 3),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        make_head(**{name: value})
