"""Runners for the cases of ScatterFormer: its layers, blocks, backbones, and whole detectors from points to boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Value, Values, runs
from pcdet_ext.conformance.gradients import probe_gradients
from pcdet_ext.conformance.ranked import Ranked
from pcdet_ext.interop import from_official, scatterformer
from pcdet_ext.models.heads.center import CenterOutput
from pcdet_ext.models.heads.postprocess import rectify_scores
from pcdet_ext.models.heads.transfusion import TransFusionHead
from pcdet_ext.models.heads.transfusion_queries import CHANNELS
from pcdet_ext.structures import Detections, PointBatch, Segments, SparseVoxels


@runs("scatterformer", "sla_layer")
def run_attention(case: Case, grads: bool) -> Values:
    """The attention layer on rows that are sorted by window."""
    layer, counts = _module(case), case.tensor("in.counts")
    x = case.tensor("in.x").requires_grad_(grads)
    same = torch.arange(len(x))
    windows = Segments(same, same, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))
    values = {"out.y": layer(x, windows)}
    return _with_gradients(values, case, layer, {"in.x": x}, grads)


@runs("scatterformer", "cwi_ffn")
@runs("scatterformer", "block")
@runs("scatterformer", "pillar_pool")
def run_on_voxels(case: Case, grads: bool) -> Values:
    """The interaction across windows, blocks, and attention over the voxels of each pillar."""
    config, module = case.config, _module(case)
    features = case.tensor("in.features").requires_grad_(grads)
    grid = tuple(config["spatial_shape"])
    found = module(SparseVoxels(features, case.tensor("in.indices"), grid, config["batch_size"]))
    return _with_gradients(_as_published(case, found), case, module, {"in.features": features}, grads)


@runs("scatterformer", "backbone")
def run_backbone(case: Case, grads: bool) -> Values:
    """The whole 3-D backbone."""
    config, backbone = case.config, _module(case)
    features = case.tensor("in.voxel_features").requires_grad_(grads)
    grid = tuple(reversed(config["grid_size"]))
    found = backbone(SparseVoxels(features, case.tensor("in.voxel_coords"), grid, config["batch_size"]))
    return _with_gradients(_as_published(case, found), case, backbone, {"in.voxel_features": features}, grads)


@runs("scatterformer", "vfe")
def run_encoder(case: Case, grads: bool) -> Values:
    """Points to features of dynamic voxels."""
    encoder = _module(case)
    voxels = encoder(_points(case))
    values = {"out.voxel_features": voxels.features, "out.voxel_coords": voxels.coords}
    return _with_gradients(values, case, encoder, {}, grads)


@runs("scatterformer", "bev_ded")
def run_bev_backbone(case: Case, grads: bool) -> Values:
    """The cascade of encoder-decoders on a map."""
    backbone = _module(case)
    bev = case.tensor("in.spatial_features").requires_grad_(grads)
    values = {"out.spatial_features_2d": backbone(bev)}
    return _with_gradients(values, case, backbone, {"in.spatial_features": bev}, grads)


@runs("scatterformer", "detector_center")
def run_center_detector(case: Case, grads: bool) -> Values:
    """Points to maps and to boxes before suppression, scores rectified."""
    detector = _module(case)
    output = detector(_points(case))
    maps = output.tasks[0]
    values = {f"out.{name}": getattr(maps, name) for name in detector.head.branches} | {"out.hm": maps.heatmap}
    values |= _center_boxes(detector.head, output)
    return _with_gradients(values, case, detector, {}, grads)


def _center_boxes(head: Any, output: CenterOutput) -> dict[str, Value]:
    """Boxes in the order of their heatmap scores."""
    values: dict[str, Value] = {}
    for frame, found in enumerate(head.candidates(output)[0]):
        scores = found.scores
        if head.iou_rectifier is not None:
            scores = rectify_scores(scores, found.iou, head.iou_rectifier[found.labels])
        rows = _boxes(frame, Detections(found.boxes, scores, found.labels, head.classes))
        values |= {key: Ranked(value, found.scores, tuple(rows)) for key, value in rows.items()}
    return values


@runs("scatterformer", "detector_transfusion")
def run_transfusion_detector(case: Case, grads: bool) -> Values:
    """Points to predictions of queries and to boxes before suppression, scores rectified."""
    detector = _module(case)
    head: TransFusionHead = detector.head
    head.nms = {}
    output = detector(_points(case))
    names = [name for name in ("center", "height", "dim", "rot", "vel") if name in head.branches]
    parts = output.codes.split([CHANNELS[name] for name in names], 1)
    values = {f"out.{name}": part for name, part in zip(names, parts, strict=True)}
    values |= {} if output.iou is None else {"out.iou": output.iou[:, None]}
    values |= {"out.heatmap": output.logits, "out.query_heatmap_score": output.peak_scores}
    values |= {"out.dense_heatmap": output.heatmap}
    for frame, found in enumerate(head.decode(output)):
        values |= _boxes(frame, found)
    return _with_gradients(values, case, detector, {}, grads)


def _boxes(frame: int, found: Detections) -> dict[str, Tensor]:
    parts = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels + 1}
    return {f"out.pre_nms_{name}{frame}": torch.as_tensor(part) for name, part in parts.items()}


def _module(case: Case) -> Any:
    """What the case is of, with its parameters, in evaluation mode."""
    return from_official("scatterformer", case.config, case.tensors("param"))


def _points(case: Case) -> PointBatch:
    points = case.tensor("in.points")
    frames = points[:, 0].long()
    return PointBatch(points[:, 1:].contiguous(), frames, case.config.get("batch_size", int(frames.max()) + 1))


def _as_published(case: Case, found: SparseVoxels) -> dict[str, Tensor]:
    """Features and coords with the rows as the case has them; as they are where the cells are not the same."""
    if "out.indices" not in case.arrays:
        return {"out.features": found.features}
    wanted = case.tensor("out.indices").long()
    sizes = torch.tensor([found.batch_size, *found.grid])

    def keys(coords: Tensor) -> Tensor:
        strides = torch.cat([sizes[1:].flip(0).cumprod(0).flip(0), sizes.new_ones(1)])
        return (coords.long() * strides).sum(1)

    ours, theirs = keys(found.coords), keys(wanted)
    if not torch.equal(ours.sort().values, theirs.sort().values):
        return {"out.features": found.features, "out.indices": found.coords}
    rows = ours.argsort()[theirs.argsort().argsort()]
    return {"out.features": found.features[rows], "out.indices": found.coords[rows]}


def _with_gradients(
    values: dict[str, Tensor], case: Case, module: nn.Module, inputs: Mapping[str, Tensor], grads: bool
) -> Values:
    if not grads:
        return values
    return values | probe_gradients(case, values, module, inputs, scatterformer.build(case.config)[1])
