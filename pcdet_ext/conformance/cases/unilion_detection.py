"""Runners for the detection heads of UniLION, and for their decoding alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.conformance.cases.openpcdet_heads import as_targets, with_total
from pcdet_ext.conformance.golden import Case, Value, Values, every_input, runs
from pcdet_ext.conformance.gradients import loss_gradients
from pcdet_ext.interop import from_official, unilion_detection
from pcdet_ext.models.heads import QueryOutput, TransFusionHead
from pcdet_ext.models.heads.transfusion_queries import CHANNELS, QueryTargets
from pcdet_ext.structures import Detections, tensor_of

LOSSES = {"classification": "loss_cls", "box": "loss_bbox", "iou": "loss_iou"}


@runs("unilion", "transfusion_head")
@runs("unilion", "transfusion_head_v2")
@every_input
def run_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses, detections and gradients of a head."""
    head: Any = from_official("unilion", case.config, case.tensors("param"))
    bev = case.tensor("in.feats").requires_grad_(grads)
    output = head(bev)
    boxes = [standing(box) for box in case.tensors("in.gt_boxes").values()]
    labels = list(case.tensors("in.gt_labels").values())
    loss = losses(head.loss(output, as_targets(boxes, labels)))
    layers = [*output.earlier, output]
    values: dict[str, Value] = {f"out.pred.{name}": value for name, value in predictions(head, output).items()}
    values |= _targets([head.targets(layer, boxes, labels) for layer in layers])
    values |= {f"out.loss.{name}": value for name, value in loss.items()}
    for frame, found in enumerate(head.decode(output)):
        values |= {f"out.det.{frame}.{name}": value for name, value in published_detections(found).items()}
    if grads:
        values |= loss_gradients(case, loss["total"], head, {"in.feats": bev}, unilion_detection.head_name)
    return values


def standing(boxes: Tensor) -> Tensor:
    """Boxes [N, 7 or 9] around their centres from published ones, whose z is their bottom."""
    return torch.cat([boxes[:, :2], boxes[:, 2:3] + boxes[:, 5:6] / 2, boxes[:, 3:]], 1)


def predictions(head: TransFusionHead, output: QueryOutput) -> dict[str, Tensor]:
    """Predictions of all layers, one after the other, under the published names."""
    layers = [*output.earlier, output]
    names = [name for name in ("center", "height", "dim", "rot", "vel") if name in head.branches]
    codes = torch.cat([layer.codes for layer in layers], 2)
    values = dict(zip(names, codes.split([CHANNELS[name] for name in names], 1), strict=True))
    values |= {
        "heatmap": torch.cat([layer.logits for layer in layers], 2),
        "query_feat": output.features,
        "query_heatmap_score": output.peak_scores,
        "dense_heatmap": output.heatmap,
        "query_labels": output.labels,
    }
    if output.iou is not None:
        values["iou"] = torch.cat([layer.iou for layer in layers if layer.iou is not None], 1)[:, None]
    return values


def losses(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses and their total under the published names; the last layer has the number -1."""
    values = {}
    for name, value in found.items():
        *earlier, short = name.split("_") if name.startswith("layer_") else ["layer", "-1", name]
        values["det_loss_heatmap" if name == "heatmap" else f"det_{'_'.join(earlier)}_{LOSSES[short]}"] = value
    return with_total(values)


def _targets(layers: Sequence[QueryTargets]) -> dict[str, Value]:
    """Targets of all layers, one after the other on the axis of proposals."""
    last = layers[-1]
    proposals, frames = last.labels.shape[1], len(last.labels)
    shape = (frames, proposals * len(layers))
    codes, overlaps = torch.zeros(*shape, last.codes.shape[1]), torch.zeros(shape)
    weights, pairs = torch.zeros_like(codes), []
    for number, layer in enumerate(layers):
        frame, query = layer.positive[0], layer.positive[1] + number * proposals
        codes[frame, query], weights[frame, query], overlaps[frame, query] = layer.codes, 1.0, layer.overlaps
        pairs.append(torch.stack([frame, query, layer.objects], 1))
    joined = torch.cat(pairs)
    labels = torch.cat([layer.labels for layer in layers], 1)
    return {
        "out.target.labels": labels,
        "out.target.label_weights": torch.ones_like(labels),
        "out.target.bbox_targets": codes,
        "out.target.bbox_weights": weights,
        "out.target.ious": overlaps,
        "out.target.num_pos": len(joined),
        "out.target.heatmap": last.heatmap,
        **{f"out.target.assigned.{frame}": joined[joined[:, 0] == frame, 1:] for frame in range(frames)},
    }


def published_detections(found: Detections) -> dict[str, Tensor]:
    """Detections under the published names, z being the bottom of boxes."""
    boxes = tensor_of(found.boxes)
    bottom = boxes[:, 2:3] - boxes[:, 5:6] / 2
    boxes = torch.cat([boxes[:, :2], bottom, boxes[:, 3:]], 1)
    return {"boxes": boxes, "scores": tensor_of(found.scores), "labels": tensor_of(found.labels).int()}


@runs("unilion", "transfusion_decode")
@every_input
def run_decoding(case: Case, grads: bool) -> Values:
    """Detections from given predictions, with the paths that a motion head predicts for their queries."""
    head: Any = from_official("unilion", case.config)
    (found,) = head.decode(_before_decoding(case.inputs("in.pred"), case.tensor("in.query_labels"), head))
    values = {f"out.{name}": value for name, value in published_detections(found).items()}
    if "in.agent_fut_preds" in case.arrays:
        query = tensor_of(found.queries)
        start = tensor_of(found.boxes)[:, None, None, :2]
        values["out.trajs"] = case.tensor("in.agent_fut_preds")[0, query].cumsum(2) + start
        values["out.trajs_cls"] = case.tensor("in.agent_fut_preds_cls")[0, query]
    return values


def _before_decoding(given: Mapping[str, Tensor], labels: Tensor, head: TransFusionHead) -> QueryOutput:
    """What a head would have told, from predictions of which the published decoding has written over two.

    It writes metres into the centres and the sizes that it is given, and cases of this kind hold them as it left them.
    Raises ValueError for sizes that are not positive, which are not in metres.
    """
    if not bool((given["dim"] > 0).all()):
        raise ValueError("in.pred.dim: sizes must be positive metres, as the published decoding leaves them")
    origin, cell = (torch.tensor(pair).view(1, 2, 1) for pair in (head.origin, head.cell))
    parts = [(given["center"] - origin) / cell, given["height"], given["dim"].log(), given["rot"]]
    codes = torch.cat([*parts, *([given["vel"]] if "vel" in head.branches else [])], 1)
    iou = given["iou"][:, 0] if "iou" in head.branches else None
    unused = torch.zeros(len(codes), 0, codes.shape[2])
    return QueryOutput(unused, labels, given["query_heatmap_score"], given["heatmap"], codes, iou, unused)
