"""The TransFusion head with several decoder layers, and its options for the published head of UniLION."""

from __future__ import annotations

import pytest
import torch

from pcdet_ext.config import ConfigError
from pcdet_ext.interop import from_official
from pcdet_ext.models.heads import HEADS, TransFusionHead
from pcdet_ext.models.heads.transfusion_queries import CHANNELS
from pcdet_ext.models.targets.box_coding import lifted
from pcdet_ext.ops import iou_3d
from pcdet_ext.structures import Targets

BRANCHES = {"center": 2, "height": 2, "dim": 2, "rot": 2, "iou": 2}


def make_head(**changes: object) -> TransFusionHead:
    torch.manual_seed(0)
    node = {"name": "TransFusionHead", "hidden_channels": 16, "num_heads": 2, "ffn_channels": 8, "num_proposals": 12}
    context = {"in_channels": 5, "classes": ("car", "cone"), "voxel_size": (0.5, 0.5, 4.0), "stride": 2}
    area = (0.0, -6.0, -3.0, 12.0, 6.0, 1.0)
    return HEADS.build(node | {"branches": BRANCHES} | changes, point_cloud_range=area, **context)


def bev(frames: int = 1) -> torch.Tensor:
    return torch.randn(frames, 5, 12, 12, generator=torch.Generator().manual_seed(1))


def truth() -> list[Targets]:
    boxes = torch.tensor([[5.3, 2.1, -1.0, 3.9, 1.6, 1.5, 2.5], [9.2, -3.3, -0.8, 0.5, 0.4, 1.0, -3.0]])
    return [Targets(boxes, torch.tensor([0, 1])), Targets(boxes[:1], torch.tensor([0]))]


def test_every_layer_looks_from_the_centres_of_the_one_before_and_learns() -> None:
    head = make_head(num_layers=3)
    seen = []
    for decoder in (head.decoder, *(layer[0] for layer in head.later_layers)):
        decoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[2]))
    output = head(bev(2))
    assert len(output.earlier) == 2
    for layer, at in zip(output.earlier, seen[1:], strict=True):
        torch.testing.assert_close(at, layer.codes[:, :2].transpose(1, 2))
        assert not at.requires_grad
    losses = head.loss(output, truth())
    own = {"classification", "box", "iou"}
    assert set(losses) == {"heatmap", *own, *(f"layer_{i}_{name}" for i in (0, 1) for name in own)}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_losses_of_layers_are_divided_by_the_matched_queries_of_all() -> None:
    head = make_head(num_layers=2).eval()
    output = head(bev(2))
    alone = head.loss(output.earlier[0], truth())
    both = head.loss(output, truth())
    torch.testing.assert_close(both["layer_0_box"], alone["box"] / 2)
    torch.testing.assert_close(both["heatmap"], alone["heatmap"])


def test_without_auxiliary_losses_the_last_layer_alone_learns() -> None:
    output, alone = (make_head(num_layers=2, auxiliary_losses=on).eval()(bev()) for on in (True, False))
    assert alone.earlier == ()
    torch.testing.assert_close(alone.codes, output.codes)


def test_matched_objects_are_counted_among_all_of_the_frame() -> None:
    """One that cannot be used, in front of the others, still counts."""
    head = make_head().eval()
    output = head(bev())
    boxes = torch.cat([torch.full((1, 7), torch.nan), truth()[0].boxes])
    found = head.targets(output, [boxes], [torch.tensor([0, 0, 1])])
    assert sorted(found.objects.tolist()) == [1, 2]
    torch.testing.assert_close(found.boxes, boxes[found.objects])


def test_detections_know_their_queries() -> None:
    head = make_head(score_threshold=0.2, nms={"car": 1.0}, nms_kind="circle", nms_max=1).eval()
    output = head(bev())
    output.logits[:], output.peak_scores[:] = 3.0, torch.linspace(0.1, 1.0, 12)
    output.labels[0] = torch.tensor([0, 1] * 6)
    (found,) = head.decode(output)
    assert found.queries.tolist() == [3, 5, 7, 9, 10, 11]  # of the cars the best alone
    torch.testing.assert_close(found.boxes, head.boxes(output.codes)[0, found.queries])


def test_circles_compare_centres() -> None:
    head = make_head(nms={"cone": 1.0}, nms_kind="circle").eval()
    output = head(bev())
    output.logits[:], output.peak_scores[:], output.labels[:] = 3.0, 0.5, 1
    output.codes[:] = 0.0
    output.codes[0, 0] = torch.arange(12) * 0.75  # cells of 1 m
    assert head.decode(output)[0].queries.tolist() == list(range(0, 12, 2))
    head.later_of_equals = True
    assert head.decode(output)[0].queries.tolist() == list(range(1, 12, 2))


def test_scores_of_zero_stay_where_there_is_no_threshold() -> None:
    for threshold, count in ((0.0, 0), (None, 12)):
        head = make_head(score_threshold=threshold).eval()
        output = head(bev())
        output.peak_scores[:] = 0.0
        assert len(head.decode(output)[0]) == count


@pytest.mark.parametrize(("bottoms", "count"), [(False, 12), (True, 0)])
def test_ranges_hold_for_centres_or_bottoms(bottoms: bool, count: int) -> None:
    head = make_head(range_of_bottoms=bottoms, score_threshold=None, center_range=[-99, -99, -1, 99, 99, 1]).eval()
    output = head(bev())
    output.codes[:, 2:6] = torch.tensor([0.5, 0.0, 0.0, 2.0])[:, None]  # centres at 0.5 m, 7.4 m high
    assert len(head.decode(output)[0]) == count


def test_a_heatmap_may_have_no_bias_where_branches_have_one() -> None:
    head = make_head(conv_bias=True, heatmap_conv_bias=False)
    assert head.heatmap_head[0].conv.bias is None
    assert head.prediction_head.center[0][0].bias is not None


@pytest.mark.parametrize("changes", [{"num_layers": 0}, {"nms_max": 0}, {"nms_kind": "square"}])
def test_settings_that_make_no_sense_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        make_head(**changes)


def official() -> dict[str, object]:
    """Settings of a small published head."""
    plane = {"pc_range": [0.0, -6.0], "voxel_size": [0.5, 0.5], "out_size_factor": 2}
    cost = {
        "cls_cost": {"type": "FocalLossCost", "weight": 0.15},
        "reg_cost": {"type": "BBoxBEVL1Cost", "weight": 0.25},
    }
    cost["iou_cost"] = {"type": "IoU3DCost", "weight": 0.25}
    calculator = {"type": "BboxOverlaps3D", "coordinate": "lidar"}
    return {
        "type": "TransFusionHeadV2",
        "num_proposals": 6,
        "in_channels": 5,
        "hidden_channel": 16,
        "num_classes": 3,
        "num_heads": 2,
        "ffn_channel": 8,
        "num_decoder_layers": 2,
        "common_heads": {"center": [2, 2], "height": [1, 2], "dim": [3, 2], "rot": [2, 2]},
        "bbox_coder": {
            "type": "TransFusionBBoxCoder",
            "post_center_range": [0, -6, -9, 12, 6, 9],
            "code_size": 8,
            **plane,
        },
        "loss_cls": {"type": "FocalLoss", "use_sigmoid": True, "loss_weight": 1.0},
        "loss_heatmap": {"type": "GaussianFocalLoss", "loss_weight": 1.0},
        "loss_bbox": {"type": "L1Loss", "loss_weight": 0.25},
        "train_cfg": {
            "dataset": "Waymo",
            "assigner": {"type": "HungarianAssigner3D", "iou_calculator": calculator, **cost},
            "point_cloud_range": [0.0, -6.0, -3.0, 12.0, 6.0, 1.0],
            "grid_size": [24, 24, 1],
            "voxel_size": [0.5, 0.5, 4.0],
            "out_size_factor": 2,
            "gaussian_overlap": 0.1,
            "min_radius": 2,
            "code_weights": [1.0] * 8,
        },
        "test_cfg": {"dataset": "Waymo", "grid_size": [24, 24, 1], "nms_type": "circle", "post_max_size": 9, **plane},
    }


def test_published_heads_of_several_layers_load() -> None:
    head = from_official("unilion", official())
    assert (len(head.later_layers), head.nms) == (1, dict.fromkeys(range(3), 0.7))
    state = {}
    for name, value in head.state_dict().items():
        number = 0
        if name.startswith("later_layers."):
            _, layer, part, name = name.split(".", 3)
            number, name = int(layer) + 1, ("decoder", "prediction_head")[int(part)] + "." + name
        part, _, rest = name.partition(".")
        if part == "prediction_head":
            rest = rest.replace(".0.0.", ".0.conv.").replace(".0.1.", ".0.bn.")
        state[f"{part}.{number}.{rest}" if part in ("decoder", "prediction_head") else name] = value + 1
    assert "prediction_head.1.center.0.conv.weight" in state
    loaded = from_official("unilion", official(), state).state_dict()
    for name, value in head.state_dict().items():
        assert loaded[name].equal(value + 1)


@pytest.mark.parametrize("layers", [1, 2])
def test_published_overlaps_are_learnt_from_joined_rows(layers: int) -> None:
    """Row frame · P + query of the joined predictions [B, layers · P], of whatever frame and layer it is."""
    with_iou = {name: [count, 2] for name, count in CHANNELS.items() if name != "vel"}
    head = from_official("unilion", official() | {"common_heads": with_iou, "num_decoder_layers": layers})
    assert head.iou_of_joined_rows
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        output = head(torch.randn(2, 5, 12, 12, generator=generator))
    boxes = head.boxes(output.codes)[:, 1:4, :7] + 0.2
    boxes[..., 3:6] = boxes[..., 3:6].clamp(1, 3)
    frames = [Targets(box, torch.tensor([0, 1, 2])) for box in boxes]
    losses = head.loss(output, frames)
    everything = [*output.earlier, output]
    joined = torch.cat([layer.iou for layer in everything], 1).flatten()
    for number, layer in enumerate(everything):
        wanted = head.targets(layer, *zip(*((f.boxes, f.labels) for f in frames), strict=True))
        frame, query = wanted.positive
        found = head.boxes(layer.codes)[frame, query, :7]
        iou = iou_3d(lifted(found), lifted(wanted.boxes)).diagonal()
        rows = frame * layer.iou.shape[1] + query
        expected = 0.5 * (joined[rows] - (2 * iou - 1)).abs()[iou > 0].mean()
        name = "iou" if layer is output else f"layer_{number}_iou"
        assert (iou > 0).any()
        torch.testing.assert_close(losses[name], expected)


def test_published_heads_of_local_queries_have_one_layer_whatever_they_say() -> None:
    config = official() | {"type": "TransFusionHead", "hidden_channel": 128, "num_decoder_layers": 3}
    assert len(from_official("unilion", config).later_layers) == 0


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (None, "num_classes", 4, "num_classes must be 3 for Waymo"),
        (None, "nms_kernel_size", 1, "nms_kernel_size"),
        (None, "query_radius", 3, "query_radius"),
        ("loss_cls", "gamma", 1.5, "loss_cls.gamma"),
        ("bbox_coder", "out_size_factor", 4, "bbox_coder.out_size_factor"),
        ("bbox_coder", "voxel_size", [0.1, 0.1], "bbox_coder.voxel_size"),
        ("test_cfg", "grid_size", [12, 12, 1], "test_cfg.grid_size"),
        ("test_cfg", "dataset", "nuScenes", "train_cfg is for Waymo"),
        ("train_cfg", "pos_weight", 2.0, "pos_weight"),
        ("train_cfg", "gaussian_overlop", 2.0, "gaussian_overlop"),
    ],
)
def test_published_settings_that_are_not_known_are_refused(
    section: str | None, key: str, value: object, message: str
) -> None:
    config = official()
    (config if section is None else config[section])[key] = value
    with pytest.raises(ValueError, match=message):
        from_official("unilion", config)
