"""Detectors as ONNX models: what onnxruntime finds is what PyTorch finds, for clouds of any size."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import pcdet_ext
from pcdet_ext import checkpoint, config
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.inference import Detector
from pcdet_ext.structures import PointBatch

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from pcdet_ext.export.check import Comparison, Differences, compare, session  # noqa: E402
from pcdet_ext.export.onnx import export  # noqa: E402
from pcdet_ext.export.recording import recording  # noqa: E402
from pcdet_ext.export.writes import RecordingError  # noqa: E402

RANGE = [0.0, -5.12, -3.0, 10.24, 5.12, 1.0]
CLASSES = ["Car", "Pedestrian", "Cyclist"]
PILLARS = {"name": "DynamicPillarVFE", "num_filters": [16, 16]}
VOXELS = {"name": "DynamicVoxelVFE", "num_filters": [16, 16]}
ATTENTION = {"num_heads": 2, "ffn_channels": 32}
LION = {"name": "LION", "windows": [[4, 7, 7]], "group_sizes": [64], "scales": [[[2, 2, 2]]]}
LION |= {"out_window": [2, 7, 7], "out_group_size": 32}
DSVT = {"name": "DSVT", "channels": [16], "num_blocks": [1], "group_sizes": [12], "windows": [[1, 8, 8]]}
DSVT |= {"shifts": [[[0, 0, 0], [0, 4, 4]]], "num_heads": [2], "ffn_channels": [32]}
POOLED = {"name": "DSVT", "channels": [16, 16], "num_blocks": [1, 1], "group_sizes": [12, 12], "num_heads": [2, 2]}
POOLED |= {"windows": [[4, 8, 8], [1, 8, 8]], "shifts": [[[0, 0, 0], [0, 4, 4]]] * 2, "ffn_channels": [32, 32]}
POOLED |= {"pool_strides": [[4, 1, 1]], "pool_heads": 2}
SOFTMAX = {"name": "SoftmaxAttention", "num_heads": 2}


def layer(order: dict[str, Any], mixer: dict[str, Any], **partition: Any) -> dict[str, Any]:
    """A layer of a sequence backbone, of equal groups unless a partition is named."""
    return {"order": order, "partition": {"name": "EqualGroups"} | partition, "mixer": mixer}


def sequence(*layers: dict[str, Any]) -> dict[str, Any]:
    """A sequence backbone."""
    return {"name": "SequenceBackbone", "layers": list(layers)}


BACKBONES: dict[str, tuple[float, dict[str, Any], dict[str, Any] | None]] = {  # height of voxels, encoder, backbone
    "hard": (4.0, {"name": "PillarVFE", "max_points": 8, "max_voxels": 900, "num_filters": [16]}, None),
    "flatformer": (4.0, PILLARS, {"name": "FlatFormer", "num_blocks": 1, "group_size": 20, **ATTENTION}),
    "dsvt": (4.0, PILLARS, DSVT),
    "dsvt_voxel": (1.0, VOXELS, POOLED),
    "scatterformer": (1.0, VOXELS, {"name": "ScatterFormer", "channels": 16, "window": [None, 8, 8], "num_layers": 1}),
    "mamba": (1.0, VOXELS, LION | {"mixer": {"name": "Mamba", "d_state": 4}}),
    "rwkv": (1.0, VOXELS, LION | {"mixer": {"name": "RWKV"}}),
    "retnet": (1.0, VOXELS, LION | {"mixer": {"name": "RetNet", "chunk": 16}}),
    "ttt": (1.0, VOXELS, LION | {"mixer": {"name": "TTT", "mini_batch": 24}}),
    "xlstm": (1.0, VOXELS, LION | {"mixer": {"name": "XLSTM", "chunk": 16}}),
    "hilbert": (
        4.0,
        PILLARS,
        sequence(
            layer({"name": "Hilbert"}, SOFTMAX, group_size=32, masked=True),
            layer({"name": "Hilbert"}, {"name": "Mamba"}, group_size=64),
        ),
    ),
    "zorder": (
        1.0,
        VOXELS,
        sequence(
            layer({"name": "ZOrder", "lowest": "x"}, {"name": "LinearAttention", "num_heads": 2}, group_size=64),
            layer({"name": "ZOrder"}, {"name": "RWKV"}, group_size=64),
        ),
    ),
    "lsh": (
        4.0,
        PILLARS,
        sequence(
            layer({"name": "LSH", "projections": 2, "width": 6.0}, SOFTMAX, group_size=24),
            layer({"name": "LSH", "border_shift": 0.5}, SOFTMAX, name="RotatedSets", group_size=24),
        ),
    ),
    "windows": (
        4.0,
        PILLARS,
        sequence(
            layer(
                {"name": "WindowX", "window": [1, 12, 12]}, {"name": "LinearAttention", "num_heads": 2}, name="Windows"
            ),
            layer({"name": "WindowY", "window": [1, 12, 12]}, {"name": "RetNet"}, name="RotatedSets", group_size=24),
        ),
    ),
    "second": (0.1, {"name": "MeanVFE"}, {"name": "VoxelBackBone8x"}),
}
ANCHORS = [
    {"class_name": name, "sizes": [[3.9, 1.6, 1.56]], "bottom_height": -1.78, "matched": 0.6, "unmatched": 0.45}
    for name in CLASSES
]
NMS = {"iou_threshold": 0.2, "per_class": True}
HEADS: dict[str, dict[str, Any]] = {
    "anchors": {"name": "AnchorHead", "anchors": ANCHORS, "nms": {"iou_threshold": 0.05}},
    "centers": {"name": "CenterHead", "shared_channels": 16, "max_candidates": 60, "nms": NMS},
    "queries": {"name": "TransFusionHead", "num_proposals": 30, "hidden_channels": 16, "num_heads": 2, "window": 5},
}
HEADS["queries"] |= {"nms": {"Pedestrian": 0.2}, "isolated_queries": True, "small_classes": ["Pedestrian"]}
MAPS = {"name": "BaseBEVBackbone", "layer_nums": [1, 1], "layer_strides": [1, 2], "num_filters": [16, 16]}
MAPS |= {"upsample_strides": [1, 2], "num_upsample_filters": [16, 16]}
SOME = ("dsvt-queries", "mamba-centers", "scatterformer-centers")  # and hard voxels with anchors below
EVERY = [f"{name}-{['anchors', 'centers', 'queries'][i % 3]}" for i, name in enumerate(BACKBONES)]
MODELS = [*SOME, *(name for name in EVERY if name not in SOME)] if os.environ.get("PCDET_EXT_EVERY_EXPORT") else SOME
SIZES = (3000, 40, 1, 0)
MIXED = config.list_models("mixed/*" if os.environ.get("PCDET_EXT_EVERY_EXPORT") else "mixed/lsh_flatformer")


def cloud(count: int, columns: int, seed: int = 0) -> Any:
    """Points float32 [count, columns] in clusters, a few of them outside of the range."""
    generator = np.random.default_rng(seed)
    low, high = np.array(RANGE[:3]), np.array(RANGE[3:])
    centres = low + (high - low) * generator.random((12, 3))
    points = generator.random((count, columns))
    points[:, :3] = centres[generator.integers(0, 12, count)] + generator.normal(0, 1.2, (count, 3))
    return points.astype(np.float32)


def detector_of(model: dict[str, Any]) -> Detector:
    """An untrained detector whose norms know the data; model: its configuration without the name."""
    torch.manual_seed(0)
    data = {"format": "kitti", "classes": CLASSES, "point_cloud_range": RANGE}
    detector = Detector(config.from_plain({"data": data, "model": {"name": "VoxelDetector"} | model}, "test"), "cpu")
    settle(detector, cloud(3000, 4, 1))
    return detector


def settle(detector: Detector, points: Any) -> None:
    """Let the norms of a detector take the statistics of points."""
    for module in detector.model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    detector.model.train()
    with torch.no_grad():
        detector.model.features(PointBatch.from_points([torch.from_numpy(points)] * 2))
    detector.model.eval()


def lively(name: str) -> Detector:
    """An untrained detector that finds something: norms know the data, heads have larger weights."""
    backbone, head = name.split("-")
    height, encoder, inner = BACKBONES[backbone]
    size = 0.08 if backbone == "second" else 0.32
    model = {"voxel_size": [size, size, height], "encoder": encoder, "backbone": inner}
    detector = detector_of(model | {"bev_backbone": MAPS, "head": HEADS[head]})
    enliven(detector, head)
    return detector


def enliven(detector: Detector, head: str) -> None:
    """Give an untrained head, named as in `HEADS`, weights and a threshold with which it finds something."""
    for layer in detector.model.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.5 * layer.weight[0].numel() ** -0.5)
    if head != "queries":  # about a dozen boxes, no score being near the threshold
        with torch.no_grad():
            output = detector.model(PointBatch.from_points([torch.from_numpy(cloud(3000, 4))]))
        logits = output.logits.amax(2) if head == "anchors" else output.tasks[0].heatmap
        best = logits.sigmoid().flatten().sort(descending=True).values
        detector.model.head.score_threshold = float(best[40] + best[41]) / 2


@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_finds_the_same(name: str) -> None:
    detector = lively(name)
    check(detector, export(detector))


@pytest.mark.parametrize("name", MIXED)
def test_configurations_with_mixed_parts(name: str) -> None:
    detector = pcdet_ext.build(name, ["data.point_cloud_range=[0, -6.4, -3, 12.8, 6.4, 1]"], "cpu")
    settle(detector, cloud(3000, 4, 1))
    enliven(detector, "anchors")
    check(detector, export(detector))


def lower_index_first(x: torch.Tensor, k: int, dim: int = -1) -> Any:
    """`Tensor.topk` with the rule of ONNX for equal values, whose order torch leaves open."""
    values, places = x.sort(dim=dim, descending=True, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), places.narrow(dim, 0, k)))


def check(detector: Detector, model: Any) -> None:
    """onnxruntime finds in clouds of all sizes what PyTorch finds, by standard operators alone.

    Of one or no point most cells of a map are the same; which of them are best is told by `lower_index_first`.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "topk", lower_index_first)
        _check(detector, model)


def _check(detector: Detector, model: Any) -> None:
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    running = session(model, threads=1)
    compared = [compare(detector, running, cloud(count, 4), str(count)) for count in SIZES]
    far = cloud(50, 4) + 1000  # nothing in range
    compared += [compare(detector, running, far.astype(np.float32), "far")]
    damaged = cloud(500, 4)
    damaged[3, 3], damaged[40, 0], damaged[41, 2] = np.nan, np.inf, -np.inf
    with pytest.warns(UserWarning, match="3 points are NaN or infinite"):
        compared += [compare(detector, running, damaged, "damaged")]
    assert [str(one) for one in compared if not one.agrees] == []
    assert compared[0].found[0] > 5
    assert compared[SIZES.index(0)].found == (0, 0)


def test_what_was_called_before_does_not_change_the_model() -> None:
    used = lively("hard-anchors")  # which has looked at a cloud
    fresh = Detector(used.config, "cpu")
    fresh.model.load_state_dict(used.model.state_dict())
    fresh.model.head.score_threshold = used.model.head.score_threshold
    used.detect(cloud(500, 4))
    for precision in ("fp32", "fp16"):
        expected = len(export(fresh, precision=precision).SerializeToString())
        assert len(export(used, precision=precision).SerializeToString()) == expected
    assert len(used.detect(cloud(3000, 4)).scores) > 5


def test_command_and_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = lively("hard-anchors")
    names = [str(tmp_path / name) for name in ("a.ckpt", "a.onnx", "frame.bin")]
    checkpoint.write(names[0], {"config": detector.config.plain(), "model": detector.model.state_dict()})
    cloud(500, 4).tofile(names[2])
    threshold = f"model.head.score_threshold={detector.model.head.score_threshold}"
    assert main(["export", *names[:2], threshold, "--check", names[2]]) == 0
    assert "frame.bin: 500 points" in capsys.readouterr().out
    model = onnx.load(names[1])
    check(detector, model)
    assert "Conv" in {node.op_type for node in export(detector.optimize()).graph.node}
    found = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert found["classes"] == CLASSES
    assert found["point_features"] == ["x", "y", "z", "intensity"]
    assert found["point_cloud_range"] == RANGE


def test_a_head_without_a_threshold_is_exported(tmp_path: Path) -> None:
    detector = lively("hard-queries")
    names = [str(tmp_path / name) for name in ("a.ckpt", "a.onnx")]
    checkpoint.write(names[0], {"config": detector.config.plain(), "model": detector.model.state_dict()})
    assert main(["export", *names, "model.head.score_threshold=null"]) == 0


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="opset must be from 18"):
        export(lively("hard-anchors"), opset=11)
    with pytest.raises(ConfigError, match="finds no boxes"):
        export(pcdet_ext.build("semantickitti/demo", device="cpu"))
    with pytest.raises(ConfigError, match="double_flip: four copies of a cloud have no ONNX form"):
        export(pcdet_ext.build("nuscenes/voxelnext_double_flip", device="cpu"))
    indoors = ["model.backbone.num_blocks=[1, 1, 1, 1]", "model.backbone.channels=[48, 48, 48, 48]"]
    indoors += ["model.backbone.num_heads=[2, 2, 2, 2]", "model.head.channels=[48, 48, 48, 48]"]
    with pytest.raises(ConfigError, match="FCAF3DHead has no ONNX form: it makes cells"):
        export(pcdet_ext.build("sunrgbd/octformer_fcaf3d", indoors, "cpu"))
    with pytest.raises(ConfigError, match="PlaceRecognizer is no detector"):
        export(pcdet_ext.build("place_recognition/demo", device="cpu"))
    with pytest.raises(RecordingError):
        export(pcdet_ext.build("kitti/octformer", device="cpu"))


def test_no_input_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"precious")
    assert main(["export", str(path), str(path)]) != 0
    assert "a.ckpt: would replace a file that this command reads or writes" in capsys.readouterr().err
    assert path.read_bytes() == b"precious"


def test_a_comparison_of_nothing_says_so() -> None:
    nothing = Comparison("a.bin", 9, (0, 0), Differences(0.0, 0.0), (0.1, 0.2))
    assert "9 points, 0 boxes, onnxruntime 0; nothing found, so nothing was compared" in str(nothing)
    assert "differ by 1.0e-04" in str(replace(nothing, found=(1, 1), apart=Differences(1e-4, 0.0)))


def test_a_choice_by_values_is_an_error() -> None:
    class Chooses(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    model = Chooses()
    with pytest.raises(RecordingError, match="Python boolean"), recording(model):
        torch.jit.trace(model, torch.ones(3))
