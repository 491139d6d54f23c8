"""Anchor heads of groups: against the plain anchor head, the order of channels, and what cannot be."""

from __future__ import annotations

import pytest
import torch

from pcdet_ext.models.heads import AnchorHead, AnchorHeadMulti
from pcdet_ext.models.heads.anchor_groups import AnchorGroup
from pcdet_ext.structures import Targets

CLASSES = ["Car", "Walker", "Rider"]
RANGE = [0.0, -3.2, -3.0, 6.4, 3.2, 1.0]
SIZES = {"Car": [3.9, 1.6, 1.5], "Walker": [0.8, 0.6, 1.7], "Rider": [1.8, 0.6, 1.7]}
ANCHORS = [
    {"class_name": name, "sizes": [size], "bottom_height": -1.6, "matched": 0.5, "unmatched": 0.35}
    for name, size in SIZES.items()
]
GROUPS = [["Car"], ["Walker", "Rider"]]
PARTS = {"reg": 2, "height": 1, "size": 3, "angle": 2, "velo": 2}
NUSCENES = {"parts": PARTS, "velocity": True, "sincos": True, "middle_channels": 5, "box_loss": "l1"}
OWN = {"name": "BaseBEVBackbone", "layer_nums": [1], "layer_strides": [1], "num_filters": [5]}
FRAMES = [
    Targets(
        torch.tensor([[3.0, 0.5, -0.9, 3.8, 1.7, 1.5, 0.2, 1.0, 0.5], [1.0, -2.0, -0.8, 0.8, 0.7, 1.7, 1.0, 0.0, 0.0]]),
        torch.tensor([0, 1]),
    ),
    Targets(torch.zeros(0, 9), torch.zeros(0, dtype=torch.long)),
]


def build(**more) -> AnchorHeadMulti:
    torch.manual_seed(1)
    return AnchorHeadMulti(6, CLASSES, RANGE, **{"anchors": ANCHORS, "groups": GROUPS, "shared_channels": 8} | more)


def test_one_group_of_all_classes_is_the_plain_anchor_head() -> None:
    torch.manual_seed(0)
    options = {"direction_bins": 2, "score_threshold": 0.3, "nms": {"iou_threshold": 0.2}}
    plain = AnchorHead(6, CLASSES, RANGE, ANCHORS, **options).eval()
    group = build(groups=[CLASSES], shared_channels=None, separate=False, **options).eval()
    torch.nn.init.normal_(plain.conv_cls.weight)
    group.rpn_heads[0].load_state_dict(plain.state_dict(), strict=False)
    bev = torch.randn(2, 6, 4, 5)
    ours, theirs = group(bev), plain(bev)
    frames = [Targets(frame.boxes[:, :7], frame.labels) for frame in FRAMES]
    for (name, loss), expected in zip(
        group.loss(ours, frames).items(), plain.loss(theirs, frames).values(), strict=True
    ):
        torch.testing.assert_close(loss, expected, msg=name)
    for one, other in zip(group.decode(ours), plain.decode(theirs), strict=True):
        assert len(other) > 3
        torch.testing.assert_close(one.boxes, other.boxes)
        torch.testing.assert_close(one.scores, other.scores)
        assert one.labels.equal(other.labels)


def test_a_direction_classifier_that_is_switched_off_changes_nothing() -> None:
    """Published heads keep its parameters, and neither learn from it nor correct headings by it."""
    options = {"score_threshold": 0.0, "nms": {"iou_threshold": 0.2}}
    plain, idle = build(**options).eval(), build(direction_bins=2, idle_directions=True, **options).eval()
    found = idle.load_state_dict(plain.state_dict(), strict=False)
    assert found.missing_keys == [f"rpn_heads.{i}.conv_dir_cls.{name}" for i in (0, 1) for name in ("weight", "bias")]
    bev = torch.randn(2, 6, 4, 5)
    frames = [Targets(frame.boxes[:, :7], frame.labels) for frame in FRAMES]
    losses, expected = idle.loss(idle(bev), frames), plain.loss(plain(bev), frames)
    assert losses == expected
    assert "direction" not in losses
    for one, other in zip(idle.decode(idle(bev)), plain.decode(plain(bev)), strict=True):
        assert len(other) > 3
        assert one.boxes.equal(other.boxes)


def test_joined_maps_of_parts_are_cut_into_anchors() -> None:
    """As published: of two kinds, the first takes the first half of the joined channels, whatever their names."""
    head = build(groups=[["Car"], ["Walker"], ["Rider"]], **NUSCENES).eval()
    bev = torch.randn(1, 6, 3, 4)
    shared, (first, *_) = head.shared_conv(bev), head.rpn_heads
    joined = torch.cat([first.conv_box[f"conv_{name}"](shared) for name in PARTS], 1)
    codes = head(bev).codes[0]
    assert joined.shape[1] == 20
    for kind in range(2):
        for y, x in ((0, 0), (2, 3)):
            row = codes[kind * 12 + y * 4 + x]
            torch.testing.assert_close(row, joined[0, kind * 10 : kind * 10 + 10, y, x])


@pytest.mark.parametrize("options", [{}, {"direction_bins": 2}, NUSCENES, {"separate": False}], ids=str)
def test_every_parameter_learns_and_detections_are_of_the_groups(options: dict) -> None:
    head = build(score_threshold=0.0, nms={"max_after": 4, "per_class": True}, **options)
    output = head(torch.randn(2, 6, 4, 5))
    losses = head.loss(output, FRAMES)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(
        p.grad is not None and p.grad.any() for n, p in head.named_parameters() if "shared" in n or "conv_cls" in n
    )
    found = head.eval().decode(output)
    assert [each.boxes.shape[1] for each in found] == [9 if options.get("velocity") else 7] * 2
    if options.get("separate", True):
        labels = found[0].labels.tolist()
        assert labels == sorted(labels)
        assert all(1 <= labels.count(label) <= 4 for label in range(3))


def test_an_anchor_may_be_reported_for_each_class_of_its_group() -> None:
    head = build(score_threshold=0.5, nms={"iou_threshold": 0.1, "per_class": True}).eval()
    for conv in (group.conv_cls for group in head.rpn_heads):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.constant_(conv.bias, -9.0)
    with torch.no_grad():
        head.rpn_heads[1].conv_cls.bias[:2] = torch.tensor([1.0, 2.0])  # both classes of the first kind, a walker's
    (found,) = head.decode(head(torch.zeros(1, 6, 1, 1)))
    assert found.labels.tolist() == [1, 2]
    torch.testing.assert_close(found.boxes[0], found.boxes[1])
    torch.testing.assert_close(found.scores, torch.tensor([1.0, 2.0]).sigmoid())


def test_several_heights_are_kinds_of_their_own() -> None:
    tall = [ANCHORS[0] | {"bottom_height": [-1.6, 0.4]}, *ANCHORS[1:]]
    head = build(anchors=tall)
    anchors = head.anchors((2, 2), torch.device("cpu"))[0]
    assert anchors.shape == (2, 2, 4, 7)
    assert (anchors[0, 0, :, 2] - 0.75).tolist() == pytest.approx([-1.6, 0.4, -1.6, 0.4])
    assert anchors[0, 0, :, 6].tolist() == pytest.approx([0, 0, 1.57, 1.57])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": [["Car"]]}, "must be in one task"),
        ({"parts": {"all": 6}}, "a code of 7 numbers"),
        ({"code_weights": [1.0]}, "must be 7 numbers"),
        ({"anchors": ANCHORS[:2]}, "must have one entry in anchors"),
        ({"negative_weight": -1.0}, "negative_weight must be at least 0"),
        ({"raw_scores": True}, "with separate, scores are always probabilities"),
        ({"group_backbones": [None]}, "an entry for each of 2 groups, got 1"),
        ({"group_backbones": [OWN | {"layer_strides": [2]}, None]}, "must keep the size of the map"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_velocities_must_be_known_where_they_are_learnt() -> None:
    head = build(**NUSCENES)
    boxes = Targets(torch.ones(1, 7), torch.tensor([0]))
    with pytest.raises(ValueError, match="9 columns"):
        head.loss(head(torch.randn(1, 6, 4, 5)), [boxes])


def test_idle_directions_need_a_classifier() -> None:
    with pytest.raises(ValueError, match="idle_directions: there is no direction classifier"):
        build(idle_directions=True)


def test_a_group_may_have_a_backbone_of_its_own() -> None:
    head = build(group_backbones=[None, OWN]).eval()
    own = AnchorGroup(5, (1, 2), 4, 2, 7, 0, None, 1, 5).eval()
    missing, more = own.load_state_dict(head.rpn_heads[1].state_dict(), strict=False)
    assert not missing
    assert more
    assert all(name.startswith("bev_backbone.blocks.") for name in more)
    bev = torch.randn(2, 6, 4, 5)
    shared, found = head.shared_conv(bev), head(bev)
    logits, codes, _ = own(head.rpn_heads[1].bev_backbone(shared))
    assert found.logits[1].equal(logits)
    assert found.codes[:, -codes.shape[1] :].equal(codes)
    assert found.logits[0].equal(head.rpn_heads[0](shared)[0])


def test_raw_scores_are_the_logits_of_the_same_detections() -> None:
    options = {"separate": False, "score_threshold": 0.02, "nms": {"iou_threshold": 0.2}}
    plain, raw = build(**options).eval(), build(raw_scores=True, **options).eval()
    raw.load_state_dict(plain.state_dict())
    bev = 9 * torch.randn(1, 6, 4, 5)
    (expected,), (found,) = plain.decode(plain(bev)), raw.decode(raw(bev))
    assert len(found) > 3
    assert found.boxes.equal(expected.boxes)
    torch.testing.assert_close(found.scores.sigmoid(), expected.scores)
