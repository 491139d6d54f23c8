"""The center head against published cases, its own targets, and degenerate input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import pcdet_ext.conformance.cases.openpcdet_heads  # noqa: F401  (registers the runners)
from pcdet_ext.config import ConfigError
from pcdet_ext.conformance.golden import run_case
from pcdet_ext.models.heads import HEADS, CenterHead
from pcdet_ext.models.heads.center import CenterOutput
from pcdet_ext.models.heads.center_branches import TaskMaps
from pcdet_ext.models.heads.postprocess import NMSConfig
from pcdet_ext.models.targets.heatmaps import draw_gaussians, gaussian, gaussian_radius
from pcdet_ext.structures import Targets

CLASSES = ("car", "bus", "walker")
CONTEXT = {
    "in_channels": 5,
    "classes": CLASSES,
    "point_cloud_range": (0.0, -8.0, -3.0, 24.0, 8.0, 1.0),
    "voxel_size": (0.5, 0.25, 4.0),
    "stride": 2,
}
VELOCITY = {"center": 1, "center_z": 1, "dim": 2, "rot": 1, "vel": 1}
MAP = (32, 24)


def truth(boxes: object, labels: object) -> list[Targets]:
    """Objects of each frame as heads take them."""
    return [Targets(box, label) for box, label in zip(boxes, labels, strict=True)]


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(losses.values())


def make_head(**changes) -> CenterHead:
    torch.manual_seed(0)
    return HEADS.build({"name": "CenterHead", "shared_channels": 8} | changes, **CONTEXT)


def random_bev(frames: int = 2) -> torch.Tensor:
    return torch.randn(frames, 5, *MAP, generator=torch.Generator().manual_seed(1))


def objects(velocity: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    boxes = torch.tensor(
        [
            [5.3, 2.1, -1.0, 3.9, 1.6, 1.5, 2.5, 1.0, -2.0],
            [15.2, -3.3, -0.8, 9.0, 2.5, 3.0, -3.0, 0.0, 4.0],
            [20.7, 6.4, -0.9, 0.8, 0.7, 1.8, -1.0, 0.5, 0.5],
        ]
    )
    return boxes if velocity else boxes[:, :7], torch.tensor([0, 1, 2])


def perfect_output(head: CenterHead, targets, iou: float | None = None) -> CenterOutput:
    """Maps that say exactly what the targets ask for."""
    tasks = []
    for target in targets:
        frames, _, height, width = target.heatmap.shape
        codes = torch.zeros(frames, target.codes.shape[2], height * width)
        codes.scatter_(2, target.cells[:, None].expand(-1, codes.shape[1], -1), target.codes.transpose(1, 2))
        codes = codes.view(frames, -1, height, width)
        logits = torch.where(target.heatmap == 1, 6.0, -9.0)
        parts = dict(zip(("center", "center_z", "dim", "rot"), codes[:, :8].split([2, 1, 3, 2], 1), strict=True))
        velocity = codes[:, 8:] if codes.shape[1] == 10 else None
        overlap = None if iou is None else torch.full((frames, 1, height, width), iou)
        tasks.append(TaskMaps(logits, **parts, vel=velocity, iou=overlap))
    return CenterOutput(tuple(tasks))


@pytest.mark.parametrize("case", ["waymo_b2", "nus_b2", "iou_b2", "nogt", "nodet", "dsvt_b2"])
def test_reproduces_published_head(shared, case):
    report = run_case(shared / "golden" / "openpcdet" / f"center_head_{case}.json", grads=True)
    assert report.status == "pass", report.line()


@pytest.mark.parametrize("tasks", [None, [["walker"], ["car", "bus"]]])
@pytest.mark.parametrize("upsample", [1, 2])
def test_decoding_its_own_targets_gives_the_objects(tasks, upsample):
    head = make_head(tasks=tasks, branches=VELOCITY, upsample=upsample, score_threshold=0.5).eval()
    output = head(random_bev(1))
    assert output.tasks[0].heatmap.shape[2:] == (MAP[0] * upsample, MAP[1] * upsample)
    boxes, labels = objects(velocity=True)
    found = head.decode(perfect_output(head, head.targets(output, [boxes], [labels])))[0]
    order = found.labels.argsort()
    assert found.labels[order].tolist() == [0, 1, 2]
    torch.testing.assert_close(found.boxes[order], boxes, atol=1e-4, rtol=1e-4)


def test_perfect_maps_have_no_box_loss():
    head = make_head(branches=VELOCITY | {"iou": 1}, box_iou_loss=True)
    boxes, labels = objects(velocity=True)
    targets = head.targets(head(random_bev(1)), [boxes], [labels])
    losses = head.loss(perfect_output(head, targets, iou=1.0), truth([boxes], [labels]))
    assert losses["box_0"] < 1e-5
    assert losses["iou_0"] < 1e-4
    assert losses["box_iou_0"] < 1e-4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6))
def test_heatmap_equals_naive_drawing(seed, count):
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(-3, 14, (count, 2), generator=generator)
    radii = torch.randint(0, 5, (count,), generator=generator)
    channels = torch.randint(0, 2, (count,), generator=generator)
    drawn = torch.zeros(2, 9, 11)
    draw_gaussians(drawn, channels, cells, radii)
    expected = torch.zeros(2, 9, 11)
    for channel, (x, y), radius in zip(channels.tolist(), cells.tolist(), radii.tolist(), strict=True):
        sigma = (2 * radius + 1) / 6
        for row in range(max(y - radius, 0), min(y + radius + 1, 9)):
            for column in range(max(x - radius, 0), min(x + radius + 1, 11)):
                value = math.exp(-((row - y) ** 2 + (column - x) ** 2) / (2 * sigma**2))
                expected[channel, row, column] = max(expected[channel, row, column], value)
    torch.testing.assert_close(drawn, expected)


def test_gaussian_peaks_at_one_and_grows_with_the_object():
    assert gaussian(3).max() == 1
    assert gaussian(0).tolist() == [[1.0]]
    radii = gaussian_radius(torch.tensor([2.0, 8.0, 20.0]), torch.tensor([2.0, 4.0, 10.0]), 0.1)
    assert (radii.diff() > 0).all()


@pytest.mark.parametrize("branches", [None, {"center": 1, "center_z": 1, "dim": 1, "rot": 1, "iou": 1}])
def test_frames_without_objects_train(branches):
    head = make_head(branches=branches, box_iou_loss=True, tasks=[["car"], ["bus", "walker"]])
    nothing = torch.zeros(0, 7), torch.zeros(0, dtype=torch.long)
    boxes, labels = objects()
    for batch in ([nothing, nothing], [nothing, (boxes[:1], labels[:1])]):
        losses = head.loss(head(random_bev()), truth(*zip(*batch, strict=True)))
        total(losses).backward()
        assert total(losses).isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, -1.0])
def test_unusable_objects_do_not_count(bad):
    head = make_head().eval()
    output = head(random_bev(1))
    boxes, labels = objects()
    broken = boxes[:1].clone()
    broken[0, 3] = bad
    alone = total(head.loss(output, truth([boxes], [labels])))
    together = total(head.loss(output, truth([torch.cat([broken, boxes])], [torch.cat([labels[:1], labels])])))
    torch.testing.assert_close(together, alone)


def test_unknown_velocity_is_no_error():
    head = make_head(branches=VELOCITY).eval()
    boxes, labels = objects(velocity=True)
    boxes[0, 7:] = math.nan
    losses = head.loss(head(random_bev(1)), truth([boxes], [labels]))
    total(losses).backward()
    assert total(losses).isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_order_of_tasks_does_not_change_targets():
    """The published head overwrites labels while it walks through the tasks, so that later ones lose objects."""
    boxes, labels = objects()
    for tasks in ([["car"], ["bus", "walker"]], [["bus", "walker"], ["car"]]):
        head = make_head(tasks=tasks)
        targets = head.targets(head(random_bev(1)), [boxes], [labels])
        assert sorted(int(t.mask.sum()) for t in targets) == [1, 2]


def test_many_objects_have_no_limit():
    head = make_head().eval()
    boxes, labels = objects()
    output = head(random_bev(1))
    target = head.targets(output, [boxes.repeat(300, 1)], [labels.repeat(300)])[0]
    assert target.mask.sum() == 900


def test_no_detection_is_an_empty_result():
    head = make_head(branches=VELOCITY, score_threshold=1.0).eval()
    found = head.decode(head(random_bev()))
    assert [d.boxes.shape for d in found] == [(0, 9), (0, 9)]


def test_rectified_score_mixes_overlap():
    head = make_head(branches=VELOCITY | {"iou": 1}, iou_rectifier=[0.5, 0.0, 1.0], score_threshold=0.5).eval()
    boxes, labels = objects(velocity=True)
    output = perfect_output(head, head.targets(head(random_bev(1)), [boxes], [labels]), iou=-0.5)
    found = head.decode(output)[0]
    score = 1 / (1 + math.exp(-6))
    expected = {0: math.sqrt(score * 0.25), 1: score, 2: 0.25}
    assert {int(k): float(s) for k, s in zip(found.labels, found.scores, strict=True)} == pytest.approx(expected)


def test_suppression_of_rotated_footprints_is_a_named_option():
    """Cars side by side: the published Waymo heads of DSVT and LION suppress one of them, we do not."""
    side_by_side = torch.tensor([[5.0, 0.0, 0, 4, 2, 1.5, 0], [5.0, 2.1, 0, 4, 2, 1.5, 0]])
    kept = {}
    for rotate_90 in (False, True):
        head = make_head(nms={"iou_threshold": 0.2, "rotate_90": rotate_90}, score_threshold=0.5).eval()
        targets = head.targets(head(random_bev(1)), [side_by_side], [torch.tensor([0, 0])])
        kept[rotate_90] = len(head.decode(perfect_output(head, targets))[0])
    assert kept == {False: 2, True: 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code_weights": [1.0] * 10}, "code_weights must have 8"),
        ({"tasks": [["car", "bus"]]}, "'walker' must be in one task"),
        ({"tasks": [["car", "bus", "wolker"]]}, "did you mean 'walker'"),
        ({"branches": {"center": 2}}, "'center_z'"),
        ({"branches": VELOCITY | {"velo": 2}}, "did you mean 'vel'"),
        ({"branches": VELOCITY | {"vel": 0}}, "at least one convolution"),
        ({"iou_rectifier": 0.5}, "needs the branch 'iou'"),
        ({"branches": VELOCITY | {"iou": 1}, "iou_rectifier": [0.5]}, "iou_rectifier must have 3"),
        ({"nms": {"iou_threshold": [0.1, 0.2], "per_class": True}}, "3 values"),
        ({"nms": {"iou_treshold": 0.1}}, "did you mean 'iou_threshold'"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_head(**changes)


def test_velocity_head_needs_velocities():
    head = make_head(branches=VELOCITY)
    boxes, labels = objects()
    with pytest.raises(ValueError, match="9 columns"):
        head.loss(head(random_bev(1)), truth([boxes], [labels]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class_weight", math.nan),
        ("box_weight", -1.0),
        ("shared_channels", 0),
        ("max_candidates", 0),
        ("norm_eps", 0.0),
        ("norm_momentum", 1.5),
        ("gaussian_overlap", 1.0),
        ("gaussian_overlap", 0.0),
        ("center_range", [0.0, 1.0]),
        ("score_threshold", math.nan),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        CenterHead(**CONTEXT, **{name: value})


@pytest.mark.parametrize("convs", ["abc", None, True, 1.5])
def test_a_branch_takes_a_number_of_convolutions(convs: object) -> None:
    with pytest.raises(ValueError, match="branch 'dim' must be a number of convolutions"):
        CenterHead(**CONTEXT, branches=VELOCITY | {"dim": convs})


@pytest.mark.parametrize("name", ["iou_threshold", "max_before", "max_after"])
def test_suppression_refuses_negative_settings(name: str) -> None:
    for value in (-1, math.nan):
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            NMSConfig(**{name: value})
        with pytest.raises(ValueError, match=f"{name} must be at least 0"):
            NMSConfig(per_class=True, **{name: [1, value]})
