"""Runners for the cases of DSVT: its partition, its backbone, and whole detectors from points to boxes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.grouping.orders import WindowX, WindowY
from pcdet_ext.grouping.partitions import RotatedSets
from pcdet_ext.interop import dsvt, from_official
from pcdet_ext.models.backbones.dsvt import DSVT
from pcdet_ext.models.backbones.dsvt_pooling import pool_plan
from pcdet_ext.models.heads.center import CenterOutput
from pcdet_ext.models.heads.transfusion_queries import CHANNELS, QueryOutput
from pcdet_ext.structures import Detections, Groups, PointBatch, SparseVoxels


def _voxels(case: Case, grid: tuple[int, int, int], features: Tensor) -> SparseVoxels:
    return SparseVoxels(features, case.tensor("in.voxel_coords"), grid, case.meta["batch_size"])


@runs("dsvt", "input_layer")
def run_input_layer(case: Case, _grads: bool) -> Values:
    """Windows, sets, masks and position embeddings of every stage, and the mappings of the poolings between them."""
    node = dsvt.partition(case.config["INPUT_LAYER"])
    plain: dict[str, Any] = dict.fromkeys(("num_heads", "ffn_channels"), [1] * len(node["channels"])) | {
        "pooling": "linear"
    }
    backbone = DSVT(in_channels=node["channels"][0], grid=dsvt.grid(case.config), **node, **plain).eval()
    state = {dsvt.backbone_name(f"input_layer.{name}"): value for name, value in case.tensors("param").items()}
    expected = {name for name in backbone.state_dict() if ".position." in name}
    if set(state) != expected:
        raise ValueError(f"parameters that do not fit: {', '.join(sorted(set(state) ^ expected))}")
    backbone.load_state_dict(state, strict=False)
    voxels = _voxels(case, backbone.in_grid, case.tensor("in.voxel_features"))
    values: dict[str, Tensor] = {}
    for s, blocks in enumerate(backbone.stages):
        if s:
            values |= _pooling(voxels, backbone.pool_strides[s - 1], s)
            pooled = pool_plan(voxels, backbone.pool_strides[s - 1])
            features = voxels.features.new_zeros(len(pooled.coords), 0)
            voxels = SparseVoxels(features, pooled.coords, pooled.grid, voxels.batch_size)
        size = node["group_sizes"][s]
        for i, layer in enumerate(blocks[0].layers):  # as published, layer i embeds places in windows of kind i
            window, which = layer.position_window, f"stage{s}_shift{i}"
            both = [RotatedSets(size).cut(voxels, order(window.window, window.shift)) for order in (WindowY, WindowX)]
            values |= {
                f"out.batch_win_inds_{which}": window.pieces(voxels),
                f"out.coors_in_win_{which}": window.place(voxels),
                f"out.set_voxel_inds_{which}": torch.stack([groups.index for groups in both]),
                f"out.set_voxel_mask_{which}": torch.stack([_repeated(groups) for groups in both]),
            }
            for b, block in enumerate(blocks):
                values[f"out.pos_embed_stage{s}_block{b}_shift{i}"] = block.layers[i].position(window.place(voxels))
    return values


def _repeated(groups: Groups) -> Tensor:
    """bool [G, S]: slots that repeat a voxel."""
    return torch.zeros_like(groups.index, dtype=torch.bool) if groups.valid is None else ~groups.valid


def _pooling(voxels: SparseVoxels, stride: tuple[int, int, int], stage: int) -> dict[str, Tensor]:
    plan, volume = pool_plan(voxels, stride), math.prod(stride)
    return {
        f"out.pooling_mapping_index_stage{stage}": plan.slot // volume,
        f"out.pooling_index_in_pool_stage{stage}": plan.slot % volume,
        f"out.voxel_coors_stage{stage}": plan.coords,
    }


@runs("dsvt", "dsvt")
def run_backbone(case: Case, grads: bool) -> Values:
    """Voxels through a backbone."""
    backbone: Any = from_official("dsvt", case.config, case.tensors("param"))
    features = case.tensor("in.voxel_features").requires_grad_(grads)
    voxels = backbone(_voxels(case, backbone.in_grid, features))
    values = {"out.voxel_features": voxels.features, "out.voxel_coords": voxels.coords}
    leaves = _published(case, backbone, dsvt.backbone_name) | {"in.voxel_features": features}
    return values | (backward(values, case, leaves) if grads else {})


def _published(case: Case, module: nn.Module, rename: Callable[[str], str]) -> dict[str, Tensor]:
    """Our parameters under the published names of the case."""
    ours = dict(module.named_parameters())
    return {f"param.{name}": ours[rename(name)] for name in case.tensors("param") if rename(name) in ours}


@runs("dsvt", "pipeline_center")
def run_center_pipeline(case: Case, grads: bool) -> Values:
    """A detector with CenterHead, from points to the maps of each task and to boxes."""

    def maps(output: CenterOutput) -> Values:
        values: dict[str, Tensor] = {}
        for t, task in enumerate(output.tasks):
            values |= {f"out.head{t}.{k}": v for k, v in vars(task).items() if v is not None}
            values[f"out.head{t}.hm"] = task.heatmap
        return values

    return _run_detector(case, grads, maps)


@runs("dsvt", "pipeline_transfusion")
def run_transfusion_pipeline(case: Case, grads: bool) -> Values:
    """A detector with TransFusionHead, from points to the predictions of its queries and to boxes."""

    def predictions(output: QueryOutput) -> Values:
        names = ["center", "height", "dim", "rot", "vel"][: 5 if output.codes.shape[1] == 10 else 4]
        values = dict(zip(names, output.codes.split([CHANNELS[n] for n in names], 1), strict=True))
        values |= {} if output.iou is None else {"iou": output.iou[:, None]}
        values |= {"heatmap": output.logits, "dense_heatmap": output.heatmap}
        values |= {"query_heatmap_score": output.peak_scores, "query_labels": output.labels}
        return {f"out.head.{name}": value for name, value in values.items()}

    return _run_detector(case, grads, predictions)


def _run_detector(case: Case, grads: bool, describe: Callable[[Any], Values]) -> Values:
    detector: Any = from_official("dsvt", case.config, case.tensors("param"))
    points = case.tensor("in.points").requires_grad_(grads)
    output = detector(PointBatch(points[:, 1:], points[:, 0].detach().long(), case.meta["batch_size"]))
    values = dict(describe(output))
    for frame, found in enumerate(detector.head.decode(output)):
        values |= _boxes(found, f"out.final_b{frame}.")
    leaves = _published(case, detector, dsvt.detector_name) | {"in.points": points}
    return values | (backward(values, case, leaves) if grads else {})


def _boxes(found: Detections, prefix: str) -> dict[str, Tensor]:
    """Detections under the published keys, labels 1-based."""
    values = {"pred_boxes": found.boxes, "pred_scores": found.scores, "pred_labels": found.labels + 1}
    return {prefix + name: torch.as_tensor(value) for name, value in values.items()}
