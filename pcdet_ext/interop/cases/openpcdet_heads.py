"""Runners for the cases of OpenPCDet's heads, their losses and box codes, and of whole detectors."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.interop import openpcdet_heads
from pcdet_ext.interop.golden import Case, Values, runs
from pcdet_ext.models.heads import HEADS, AnchorHead
from pcdet_ext.models.heads.anchor import AnchorTargets
from pcdet_ext.models.targets import BACKGROUND, IGNORED, CenterTargets
from pcdet_ext.structures import Detections


@runs("openpcdet", "anchor_head")
def run_anchor_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses and detections of AnchorHeadSingle."""
    config = case.config
    node = openpcdet_heads.anchor_head(config["model_cfg"], config["post_processing"])
    head = HEADS.build(
        node,
        in_channels=config["input_channels"],
        classes=config["class_names"],
        point_cloud_range=config["point_cloud_range"],
    )
    head.load_state_dict(case.tensors("param"))
    head.eval()
    bev = case.tensor("in.spatial_features_2d").requires_grad_()
    output = head(bev)
    boxes, labels = ground_truth(case.tensor("in.gt_boxes"))
    losses = head.loss(output, boxes, labels)
    maps = {"cls_preds": output.logits, "box_preds": output.codes, "dir_cls_preds": output.directions}
    values = {f"out.{k}": v.reshape(len(bev), *output.map_size, -1) for k, v in maps.items() if v is not None}
    values |= {
        "out.batch_cls_preds": output.logits,
        "out.batch_box_preds": torch.stack([head.boxes(output, frame) for frame in range(len(bev))]),
        "out.loss.total": losses["total"],
        "out.loss.rpn_loss": losses["total"],
        "out.loss.rpn_loss_cls": losses["classification"],
        "out.loss.rpn_loss_loc": losses["box"],
        "out.loss.rpn_loss_dir": losses.get("direction", torch.zeros(())),
    }
    values |= _anchor_targets(head, head.targets(output, boxes, labels))
    values |= detections(head.decode(output))
    return values | (gradients(case, losses["total"], {"in.spatial_features_2d": bev}, head) if grads else {})


def _anchor_targets(head: AnchorHead, targets: AnchorTargets) -> Values:
    """Targets with the published labels: 1 for the first class, 0 for background, -1 for ignored anchors."""
    labels = targets.labels + 1
    labels[targets.labels == BACKGROUND] = 0
    labels[targets.labels == IGNORED] = -1
    codes = torch.zeros(*labels.shape, head.coder.code_size)
    codes[targets.positive] = targets.codes
    return {
        "out.target.box_cls_labels": labels,
        "out.target.box_reg_targets": codes,
        "out.target.reg_weights": (targets.labels >= 0).float(),
    }


@runs("openpcdet", "center_head")
def run_center_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses and detections of CenterHead."""
    config = case.config
    head = HEADS.build(
        openpcdet_heads.center_head(config["model_cfg"]),
        in_channels=config["input_channels"],
        classes=config["class_names"],
        point_cloud_range=config["point_cloud_range"],
        voxel_size=config["voxel_size"],
        stride=config["model_cfg"]["TARGET_ASSIGNER_CONFIG"]["FEATURE_MAP_STRIDE"],
    )
    head.load_state_dict(case.tensors("param"))
    head.eval()
    bev = case.tensor("in.spatial_features_2d").requires_grad_()
    output = head(bev)
    boxes, labels = ground_truth(case.tensor("in.gt_boxes"))
    losses = head.loss(output, boxes, labels)
    values = {"out.loss.total": losses["total"].reshape(1), "out.loss.rpn_loss": losses["total"]}
    for t, (maps, target) in enumerate(zip(output.tasks, head.targets(output, boxes, labels), strict=True)):
        values |= {f"out.pred.{t}.{name}": getattr(maps, name) for name in head.branches}
        values[f"out.pred.{t}.hm"] = maps.heatmap
        published = {"heatmap": "hm_loss", "box": "loc_loss", "iou": "iou_loss", "box_iou": "iou_reg_loss"}
        values |= {f"out.loss.{p}_head_{t}": losses[f"{o}_{t}"] for o, p in published.items() if f"{o}_{t}" in losses}
        values |= _center_targets(target, case, f"out.target.{t}.")
    values |= detections(head.decode(output))
    return values | (gradients(case, losses["total"], {"in.spatial_features_2d": bev}, head) if grads else {})


def _center_targets(target: CenterTargets, case: Case, prefix: str) -> Values:
    """Targets in as many slots as the case shows, objects with their 1-based label in the task as last column."""
    source = torch.cat([target.boxes, target.labels[..., None] + 1], 2)
    slots = {
        "target_boxes": target.codes,
        "inds": target.cells,
        "masks": target.mask.long(),
        "target_boxes_src": source,
    }
    values = {f"{prefix}heatmaps": target.heatmap}
    for name, tensor in slots.items():
        padded = tensor.new_zeros(case.arrays[prefix + name].shape)
        padded[:, : tensor.shape[1]] = tensor
        values[prefix + name] = padded
    return values


def ground_truth(gt_boxes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and 0-based labels of each frame from padded gt_boxes [B, G, columns + 1], whose last column is 1-based."""
    rows = [frame[frame[:, -1] > 0] for frame in gt_boxes]
    return [r[:, :-1] for r in rows], [r[:, -1].long() - 1 for r in rows]


def detections(found: list[Detections]) -> Values:
    """Detections of each frame under the published keys, labels 1-based."""
    values = {}
    for frame, result in enumerate(found):
        values[f"out.det.{frame}.pred_boxes"] = result.boxes
        values[f"out.det.{frame}.pred_scores"] = result.scores
        values[f"out.det.{frame}.pred_labels"] = result.labels + 1
    return values


def gradients(case: Case, loss: Tensor, inputs: dict[str, Tensor], module: torch.nn.Module) -> Values:
    """Gradients of a loss with respect to those inputs and parameters that the case has gradients for."""
    named = inputs | {f"param.{k}": p for k, p in module.named_parameters()}
    wanted = {k: t for k, t in named.items() if f"grad.{k}" in case.arrays}
    found = torch.autograd.grad(loss, list(wanted.values()))
    return {f"grad.{k}": g for k, g in zip(wanted, found, strict=True)}
