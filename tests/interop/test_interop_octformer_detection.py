"""OctFormer's published detector: every name and shape of it, its settings, and where kernels go."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import pcdet_ext
from pcdet_ext import config as configurations
from pcdet_ext.interop import from_official
from pcdet_ext.interop.checkpoints import convert, load_network
from pcdet_ext.interop.octformer_detection import detector_name, our_kernel
from pcdet_ext.models.detector import build_detector

YAML = Path(__file__).resolve().parents[2] / "configs" / "sunrgbd" / "octformer_fcaf3d.yaml"
# The section `model` of the published file, smaller.
PUBLISHED: dict[str, Any] = {
    "type": "OctFormerSingleStage3DDetector",
    "voxel_size": 0.05,
    "octree_depth": 7,
    "backbone": {
        "type": "OctFormer",
        "in_channels": 3,
        "channels": [16, 32],
        "num_blocks": [1, 1],
        "num_heads": [2, 2],
        "patch_size": 16,
        "stem_down": 2,
    },
    "head": {
        "type": "FCAF3DHead",
        "in_channels": [16, 32],
        "out_channels": 24,
        "voxel_size": 0.05,
        "pts_prune_threshold": 500,
        "pts_assign_threshold": 27,
        "pts_center_threshold": 18,
        "n_classes": 10,
        "n_reg_outs": 8,
        "bbox_loss": {"type": "RotatedIoU3DLoss", "loss_weight": 0.5},
    },
    "train_cfg": {},
    "test_cfg": {"nms_pre": 300, "iou_thr": 0.4, "score_thr": 0.02},
}


@pytest.fixture(scope="module")
def entry(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "octree" / "manifest.json").read_text())["configs/det_sunrgbd.py"]


def test_every_name_and_shape_has_its_place_and_the_configuration_is_the_published_one(entry: dict[str, Any]) -> None:
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in entry["params"]}
        detector = from_official("octformer", entry["config"], {"state_dict": state})
        ours = build_detector(configurations.load(YAML))
    assert len(detector.state_dict()) == len(entry["params"]) == 587
    assert sum(p.numel() for p in detector.parameters()) == entry["total_params"]
    assert {name: v.shape for name, v in detector.state_dict().items()} == {
        name: v.shape for name, v in ours.state_dict().items()
    }
    for part in ("point_cloud_range", "voxel_size", "depth", "features", "margin", "full_depth", "out_channels"):
        assert getattr(detector.encoder, part) == getattr(ours.encoder, part), part
    assert detector.backbone.stages.options == ours.backbone.stages.options
    for part in ("classes", "origin", "cell", "assigner", "prune_threshold", "prune_by", "score_threshold",
                 "max_candidates", "nms", "class_weight", "box_weight", "center_weight"):  # fmt: skip
        assert getattr(detector.head, part) == getattr(ours.head, part), part


def published_state(detector: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters under published names and in published shapes for the small detector, all values different."""
    generator = torch.Generator().manual_seed(0)

    def kernel(cells: int, *sides: int) -> torch.Tensor:
        return torch.rand((cells, *sides) if cells > 1 else sides, generator=generator)

    head = {
        "up_block_1.0.kernel": kernel(8, 32, 16), "up_block_1.3.kernel": kernel(27, 16, 16),
        "out_block_0.0.kernel": kernel(27, 16, 24), "out_block_1.0.kernel": kernel(27, 32, 24),
        "conv_center.kernel": kernel(1, 24, 1), "conv_reg.kernel": kernel(1, 24, 8),
        "conv_cls.kernel": kernel(1, 24, 10), "conv_cls.bias": torch.rand(1, 10, generator=generator),
        "scales.0.scale": torch.tensor(1.5), "scales.1.scale": torch.tensor(2.5),
    }  # fmt: skip
    for norm, width in {"up_block_1.1": 16, "up_block_1.4": 16, "out_block_0.1": 24, "out_block_1.1": 24}.items():
        for name in ("weight", "bias", "running_mean", "running_var"):
            head[f"{norm}.bn.{name}"] = torch.rand(width, generator=generator)
        head[f"{norm}.bn.num_batches_tracked"] = torch.tensor(3)
    state = {f"head.{name}": value for name, value in head.items()}
    return state | published_backbone(detector)


def published_backbone(detector: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The backbone's own parameters under their published names."""
    block = {
        "position.conv.": "cpe.conv.", "position.norm.": "cpe.bn.", "block.mix.norm.": "norm1.",
        "block.mix.module.in_proj_": "attention.qkv.", "block.mix.module.out_proj.": "attention.proj.",
        "block.mix.module.relative_bias": "attention.rpe.rpe_table", "block.feed.norm.": "norm2.",
        "block.feed.module.in_proj.": "mlp.fc1.", "block.feed.module.out_proj.": "mlp.fc2.",
    }  # fmt: skip
    state = {}
    for name, value in detector.backbone.stages.state_dict().items():
        first, _, rest = name.partition(".")
        if first == "stem":
            rest = rest.replace("halve.", "downsamples.").replace("last.", "proj.").replace("norm.", "bn.")
            published = f"patch_embed.{rest}"
        elif first == "halve":
            published = f"downsamples.{rest}"
        else:
            stage, number, inner = rest.split(".", 2)
            prefix = next(ours for ours in block if inner.startswith(ours))
            published = f"layers.{stage}.blocks.{number}.{block[prefix]}{inner.removeprefix(prefix)}"
        state[f"backbone.{published}"] = value.clone()
    return state


def test_kernels_go_where_minkowski_engine_has_their_cells() -> None:
    """Cell k of a kernel is at x = k % n, y = k // n % n, z = k // n²."""
    detector = from_official("octformer", PUBLISHED)
    state = published_state(detector)
    detector = from_official("octformer", PUBLISHED, state)
    up, out = detector.head.up_blocks[0], detector.head.out_blocks[1]
    for kernel, weight, n in (
        ("up_block_1.0", up.grow.weight, 2),
        ("up_block_1.3", up.block.conv.weight, 3),
        ("out_block_1.0", out.conv.weight, 3),
    ):
        published = state[f"head.{kernel}.kernel"]
        for cell in range(n**3):
            z, y, x = cell // n**2, cell // n % n, cell % n
            assert torch.equal(weight[:, z, y, x], published[cell].t())
    assert torch.equal(detector.head.to_box.weight, state["head.conv_reg.kernel"].t())
    assert torch.equal(detector.head.to_classes.bias, state["head.conv_cls.bias"][0])
    assert [float(scale.detach()) for scale in detector.head.scales] == [1.5, 2.5]
    assert {detector_name(name) for name in state} == set(detector.state_dict())


def test_settings_of_the_published_file_count() -> None:
    detector = from_official("octformer", PUBLISHED)
    head = detector.head
    assert (head.prune_threshold, head.max_candidates, head.score_threshold) == (500, 300, 0.02)
    assert (head.nms.iou_threshold, head.box_weight, head.prune_by) == (0.4, 0.5, "interpolated")
    assert detector.encoder.point_cloud_range == pytest.approx((-3.2,) * 3 + (3.2,) * 3)
    axis_aligned = copy.deepcopy(PUBLISHED)
    axis_aligned["head"].update(n_reg_outs=6, bbox_loss={"type": "AxisAlignedIoULoss"}, n_classes=2)
    axis_aligned["classes"] = ["door", "window"]
    detector = from_official("octformer", axis_aligned)
    assert (detector.head.to_box.out_features, detector.classes) == (6, ("door", "window"))


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("head", {"type": "VoteHead"}, "head: VoteHead is not in this library, FCAF3DHead is"),
        ("head", {"n_reg_outs": 7}, r"head.n_reg_outs: must be 8 .* or 6 .*, got 7"),
        ("head", {"n_classes": 18}, r"classes: must name the 18 classes of the head \(n_classes\), there are 10"),
        ("head", {"in_channels": [16, 48]}, r"head.in_channels: \[16, 48\] is not known here"),
        ("head", {"bbox_loss": {"type": "AxisAlignedIoULoss"}}, "head.bbox_loss.type: 'AxisAlignedIoULoss'"),
        ("head", {"cls_loss": {"type": "FocalLoss", "gamma": 3.0}}, r"head.cls_loss.gamma: 3.0 is not known here"),
        ("head", {"speed": 2}, "head.speed: the setting is not known here"),
        ("backbone", {"nempty": False}, "backbone.nempty: False is not known here; known: True"),
        ("backbone", {"stem_up": 2}, "backbone.stem_up: the setting is not known here"),
        ("test_cfg", {"nms_post": 2}, "test_cfg.nms_post: the setting is not known here"),
        (None, {"scale_factor": 0.5}, r"scale_factor: is 0.5, but voxel_size and octree_depth make it 0.3125"),
        (None, {"octree_feature": "ND"}, "features must be letters of LPF.*, got 'ND'"),
    ],
)
def test_settings_without_counterpart_are_refused(section: str | None, change: dict[str, Any], message: str) -> None:
    config = copy.deepcopy(PUBLISHED)
    (config if section is None else config[section]).update(change)
    with pytest.raises(ValueError, match=message):
        from_official("octformer", config)


def test_parameters_that_do_not_fit_are_named() -> None:
    state = published_state(from_official("octformer", PUBLISHED))
    state["head.conv_reg.kernel"] = torch.zeros(24, 7)
    del state["head.scales.1.scale"]
    with pytest.raises(ValueError, match=r"head.conv_reg.kernel is \(24, 7\), not \(8, 24\); head.scales.1 is missing"):
        from_official("octformer", PUBLISHED, state)
    assert our_kernel("head.out_blocks.0.conv.weight", torch.zeros(8, 2, 3), torch.Size([3, 3, 3, 3, 2])).ndim == 3


def test_a_checkpoint_is_converted_with_the_configuration_of_either_kind(tmp_path: Path) -> None:
    expected = from_official("octformer", PUBLISHED)
    state = published_state(expected)
    expected = from_official("octformer", PUBLISHED, state)
    official, network, ours = tmp_path / "sunrgbd.pth", tmp_path / "published.json", tmp_path / "ours.ckpt"
    torch.save({"meta": {"epoch": 18}, "state_dict": state}, official)
    network.write_text(json.dumps({"system": "octformer", "config": PUBLISHED}))
    assert convert(official, network, ours) == len(state)
    found = load_network(ours).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    overrides = [
        "data.point_cloud_range=[-3.2, -3.2, -3.2, 3.2, 3.2, 3.2]", "model.voxel_size=[0.05, 0.05, 0.05]",
        "model.backbone.channels=[16, 32]", "model.backbone.num_blocks=[1, 1]", "model.backbone.num_heads=[2, 2]",
        "model.backbone.stem_down=2", "model.backbone.group_size=16", "model.head.channels=[16, 32]",
        "model.head.out_channels=24",
    ]  # fmt: skip
    assert convert(official, YAML, ours, overrides) == len(state)
    loaded = pcdet_ext.load(ours, device="cpu")
    found = loaded.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    points = torch.rand(400, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    boxes = torch.as_tensor(loaded.detect(points.numpy()).boxes)
    assert boxes.shape[1] == 7
