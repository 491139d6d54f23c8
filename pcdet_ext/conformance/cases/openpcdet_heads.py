"""Runners for the cases of OpenPCDet's heads, their losses and box codes, and of whole detectors."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pcdet_ext.conformance.golden import Case, Value, Values, runs
from pcdet_ext.conformance.gradients import loss_gradients
from pcdet_ext.data.augment import steps as augment
from pcdet_ext.interop import from_official, openpcdet_boxes, openpcdet_heads
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.heads import HEADS, AnchorHead, QueryOutput, TransFusionHead, losses
from pcdet_ext.models.heads.anchor import AnchorTargets
from pcdet_ext.models.heads.center_branches import gather_cells
from pcdet_ext.models.heads.transfusion_queries import CHANNELS, QueryTargets
from pcdet_ext.models.targets.anchors import BACKGROUND, IGNORED
from pcdet_ext.models.targets.box_coding import (
    PointResidualCoder,
    PreviousResidualDecoder,
    ResidualCoder,
    box_corners,
    direction_bin,
    enlarge,
    limit_period,
)
from pcdet_ext.models.targets.heatmaps import CenterTargets, draw_gaussians, gaussian, gaussian_radius
from pcdet_ext.structures import Detections, PointBatch, Sample, Targets

# What cases of losses and box codes were made with and do not say. Stated here, and not found from what a case expects:
# a comparison must not read its own answer.
CODE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 2.0)
NAN_COLUMN = 3  # of the targets, for the loss of targets that are no numbers
KITTI_MEAN_SIZES = ((3.9, 1.6, 1.56), (0.8, 0.6, 1.73), (1.76, 0.6, 1.73))
ENLARGED_BY = (0.2, 0.4, 1.0)  # metres


def as_targets(boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Targets]:
    """Objects of each frame as heads take them."""
    return [Targets(box, label) for box, label in zip(boxes, labels, strict=True)]


def with_total(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses and their sum "total"."""
    return losses | {"total": reduce(operator.add, losses.values())}


def _head(case: Case, node: Mapping[str, Any], **geometry: Any) -> Any:
    """The head of a case with its parameters, in evaluation mode."""
    config = case.config
    head = HEADS.build(
        node,
        in_channels=config["input_channels"],
        classes=config["class_names"],
        point_cloud_range=config["point_cloud_range"],
        **geometry,
    )
    head.load_state_dict(case.tensors("param"))
    return head.eval()


@runs("openpcdet", "anchor_head")
def run_anchor_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses and detections of AnchorHeadSingle."""
    config = case.config
    with every_setting_counts({k: config[k] for k in ("model_cfg", "post_processing")}) as read:
        node = openpcdet_heads.anchor_head(read["model_cfg"], read["post_processing"])
        openpcdet_heads.stride(read["model_cfg"])
    head = _head(case, node)
    bev = case.tensor("in.spatial_features_2d").requires_grad_()
    output = head(bev)
    boxes, labels = ground_truth(case.tensor("in.gt_boxes"))
    loss = with_total(head.loss(output, as_targets(boxes, labels)))
    maps = {"cls_preds": output.logits, "box_preds": output.codes, "dir_cls_preds": output.directions}
    values = {f"out.{k}": v.reshape(len(bev), *output.map_size, -1) for k, v in maps.items() if v is not None}
    values |= {
        "out.batch_cls_preds": output.logits,
        "out.batch_box_preds": torch.stack([head.boxes(output, frame) for frame in range(len(bev))]),
        "out.loss.total": loss["total"],
        "out.loss.rpn_loss": loss["total"],
        "out.loss.rpn_loss_cls": loss["classification"],
        "out.loss.rpn_loss_loc": loss["box"],
        "out.loss.rpn_loss_dir": loss.get("direction", torch.zeros(())),
    }
    counted = config["model_cfg"]["TARGET_ASSIGNER_CONFIG"].get("NORM_BY_NUM_EXAMPLES", False)
    values |= _anchor_targets(head, head.targets(output, boxes, labels), counted)
    values |= detections(head.decode(output))
    return values | (loss_gradients(case, loss["total"], head, {"in.spatial_features_2d": bev}, str) if grads else {})


def _anchor_targets(head: AnchorHead, targets: AnchorTargets, counted: bool) -> dict[str, Tensor]:
    """Targets with the published labels: 1 for the first class, 0 for background, -1 for ignored anchors.

    counted: NORM_BY_NUM_EXAMPLES, which divides the published weights of boxes; no published loss reads them.
    """
    labels = targets.labels + 1
    labels[targets.labels == BACKGROUND] = 0
    labels[targets.labels == IGNORED] = -1
    codes = torch.zeros(*labels.shape, head.coder.code_size)
    codes[targets.positive] = targets.codes
    return {
        "out.target.box_cls_labels": labels,
        "out.target.box_reg_targets": codes,
        "out.target.reg_weights": _box_weights(head, targets.labels, counted),
    }


def _box_weights(head: AnchorHead, labels: Tensor, counted: bool) -> Tensor:
    """Weights [B, N] of the anchors' boxes: 1, or 1 / (positive and background anchors of the class)."""
    weights = (labels >= 0).float()
    if not counted:
        return weights
    per_cell = [len(spec) for spec in head.specs]
    cells = labels.view(len(labels), -1, sum(per_cell))
    examples = [(part >= BACKGROUND).sum((1, 2), keepdim=True) for part in cells.split(per_cell, 2)]
    divisors = [n.clamp_min(1).expand(-1, -1, size) for n, size in zip(examples, per_cell, strict=True)]
    return (weights.view_as(cells) / torch.cat(divisors, 2)).view_as(labels)


@runs("openpcdet", "center_head")
def run_center_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses and detections of CenterHead."""
    config = case.config
    with every_setting_counts({"model_cfg": config["model_cfg"]}) as read:
        node, stride = openpcdet_heads.center_head(read["model_cfg"]), openpcdet_heads.stride(read["model_cfg"])
    head = _head(case, node, voxel_size=config["voxel_size"], stride=stride)
    bev = case.tensor("in.spatial_features_2d").requires_grad_()
    output = head(bev)
    boxes, labels = ground_truth(case.tensor("in.gt_boxes"))
    loss = with_total(head.loss(output, as_targets(boxes, labels)))
    values = {"out.loss.total": loss["total"].reshape(1), "out.loss.rpn_loss": loss["total"]}
    for t, (maps, target) in enumerate(zip(output.tasks, head.targets(output, boxes, labels), strict=True)):
        values |= {f"out.pred.{t}.{name}": getattr(maps, name) for name in head.branches}
        values[f"out.pred.{t}.hm"] = maps.heatmap
        published = {"heatmap": "hm_loss", "box": "loc_loss", "iou": "iou_loss", "box_iou": "iou_reg_loss"}
        values |= {f"out.loss.{p}_head_{t}": loss[f"{o}_{t}"] for o, p in published.items() if f"{o}_{t}" in loss}
        values |= _center_targets(target, case, f"out.target.{t}.")
    values |= detections(head.decode(output))
    return values | (loss_gradients(case, loss["total"], head, {"in.spatial_features_2d": bev}, str) if grads else {})


def _center_targets(target: CenterTargets, case: Case, prefix: str) -> dict[str, Tensor]:
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


QUERIES_OF_WINDOWS = {"dsvt": True, "opcd": False}  # by the code base that a case says to be of


@runs("openpcdet", "transfusion_head")
def run_transfusion_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses and detections of TransFusionHead."""
    config = case.config
    with every_setting_counts({"model_cfg": config["model_cfg"]}) as read:
        node = openpcdet_heads.transfusion_head(
            read["model_cfg"], config["class_names"], QUERIES_OF_WINDOWS.get(config.get("variant", ""))
        )
        stride = openpcdet_heads.stride(read["model_cfg"])
    head = _head(case, node, voxel_size=config["voxel_size"], stride=stride)
    bev = case.tensor("in.spatial_features_2d").requires_grad_()
    output = head(bev)
    boxes, labels = ground_truth(case.tensor("in.gt_boxes"))
    targets, loss = head.targets(output, boxes, labels), with_total(head.loss(output, as_targets(boxes, labels)))
    values = _queries(head, output) | query_targets(targets, len(boxes))
    published = {"heatmap": "loss_heatmap", "classification": "loss_cls", "box": "loss_bbox", "iou": "loss_iou"}
    values |= {f"out.loss.{published[name]}": value for name, value in loss.items() if name in published}
    values |= {
        "out.loss.total": loss["total"].reshape(1),
        "out.loss.loss_trans": loss["total"],
        "out.loss.matched_ious": values["out.target.matched_ious"],
    }
    values |= detections(head.decode(output))
    return values | (loss_gradients(case, loss["total"], head, {"in.spatial_features_2d": bev}, str) if grads else {})


def _queries(head: TransFusionHead, output: QueryOutput) -> dict[str, Tensor]:
    values = {"out.query_labels": output.labels, "out.pred.heatmap": output.logits}
    names = [name for name in ("center", "height", "dim", "rot", "vel") if name in head.branches]
    parts = output.codes.split([CHANNELS[name] for name in names], 1)
    values |= {f"out.pred.{name}": part for name, part in zip(names, parts, strict=True)}
    values |= {"out.pred.query_heatmap_score": output.peak_scores, "out.pred.dense_heatmap": output.heatmap}
    return values | ({} if output.iou is None else {"out.pred.iou": output.iou[:, None]})


def query_targets(targets: QueryTargets, frames: int) -> dict[str, Value]:
    codes = torch.zeros(*targets.labels.shape, targets.codes.shape[1])
    weights = torch.zeros_like(codes)
    codes[targets.positive], weights[targets.positive] = targets.codes, 1.0
    of_frame = [targets.overlaps[targets.positive[0] == frame] for frame in range(frames)]
    return {
        "out.target.labels": targets.labels,
        "out.target.label_weights": torch.ones_like(targets.labels),
        "out.target.bbox_targets": codes,
        "out.target.bbox_weights": weights,
        "out.target.num_pos": len(targets.codes),
        "out.target.heatmap": targets.heatmap,
        "out.target.matched_ious": torch.stack([o.sum() / max(len(o), 1) for o in of_frame]).mean(),
    }


@runs("openpcdet", "losses")
def run_losses(case: Case, grads: bool) -> Values:
    """Each published loss on its own, with the gradient of its sum."""
    data = {k: t.requires_grad_() if t.is_floating_point() else t for k, t in case.tensors("in").items()}
    values = {}
    for name, (loss, differentiated) in (_losses(data) | _with_parameters(data, case.arrays)).items():
        values[f"out.{name}"] = loss
        key = f"grad.{name}.{differentiated}"
        if grads and key in case.arrays:
            values[key] = torch.autograd.grad(loss.sum(), data[differentiated], retain_graph=True)[0]
    return values


def _losses(d: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, str]]:
    """Published name: (our value, the input it is differentiated by)."""
    logits, onehot, weight = d["logits"], d["onehot"], d["w"][..., None]
    reg, reg_t, probability, heatmap = d["reg"], d["reg_t"], d["hm_prob"], d["hm_t"]
    maps, boxes = gather_cells(d["maps"], d["ind"]), gather_cells(d["box_maps"], d["ind"])
    mask, gt = d["mask"].bool(), d["gt"].detach()
    nan_target = torch.where(torch.arange(d["target"].shape[-1]) == NAN_COLUMN, math.nan, d["target"])
    codes = torch.tensor(CODE_WEIGHTS)
    direction = F.cross_entropy(d["dirlog"].transpose(1, 2), d["dir_onehot"].argmax(-1), reduction="none")
    iou = losses.iou_prediction_loss(gather_cells(d["iou_map"], d["ind"])[mask][:, 0], boxes[mask].detach(), gt[mask])
    return {
        "SigmoidFocalClassificationLoss": (losses.sigmoid_focal_loss(logits, onehot) * weight, "logits"),
        "WeightedSmoothL1Loss": (losses.smooth_l1_loss(reg, reg_t, code_weights=codes) * weight, "reg"),
        "WeightedSmoothL1Loss_l1": (losses.smooth_l1_loss(reg, reg_t, beta=0.0) * weight, "reg"),
        "WeightedCrossEntropyLoss": (direction * d["w"], "dirlog"),
        "FocalLossCenterNet": (losses.center_focal_loss(probability, heatmap), "hm_prob"),
        "FocalLossCenterNet_nopos": (losses.center_focal_loss(probability, d["hm_t_nopos"]), "hm_prob"),
        "FocalLossCenterNet_masked": (losses.center_focal_loss(probability, heatmap, d["hm_mask"]), "hm_prob"),
        "GaussianFocalLoss": (losses.gaussian_focal_loss(probability, heatmap, eps=1e-12), "hm_prob"),
        "RegLossCenterNet": (losses.masked_l1_loss(maps, d["target"], mask), "maps"),
        "RegLossCenterNet_nomask": (losses.masked_l1_loss(maps, d["target"], torch.zeros_like(mask)), "maps"),
        "RegLossCenterNet_nan_target": (losses.masked_l1_loss(maps, nan_target, mask, ignore_nan=False), "maps"),
        "calculate_iou_loss_centerhead": (iou, "iou_map"),
        "calculate_iou_reg_loss_centerhead": (
            (1 - losses.axis_aligned_diou(boxes[mask], gt[mask])).mean(),
            "box_maps",
        ),
        "L1Loss": (losses.smooth_l1_loss(reg, reg_t.nan_to_num(), beta=0.0), "reg"),
    }


def _with_parameters(d: Mapping[str, Tensor], keys: Iterable[str]) -> dict[str, tuple[Tensor, str]]:
    """As `_losses`, those whose published names hold their parameters: …_g1_a04 is gamma 1, alpha 0.4; …_beta1."""
    weight = d["w"][..., None]
    values = {}
    for name in (key.removeprefix("out.") for key in keys):
        if found := re.fullmatch(r"SigmoidFocalClassificationLoss_g([\d.]+)_a([\d.]+)", name):
            gamma, alpha = map(_number, found.groups())
            values[name] = (
                losses.sigmoid_focal_loss(d["logits"], d["onehot"], alpha=alpha, gamma=gamma) * weight,
                "logits",
            )
        elif found := re.fullmatch(r"WeightedSmoothL1Loss_beta([\d.]+)", name):
            values[name] = losses.smooth_l1_loss(d["reg"], d["reg_t"], beta=_number(found[1])) * weight, "reg"
    return values


def _number(text: str) -> float:
    """A number in a name, which may be written without its point: "04" is 0.4."""
    return float(f"0.{text[1:]}" if text.startswith("0") and "." not in text and len(text) > 1 else text)


@runs("openpcdet", "gaussian")
def run_gaussian(case: Case, grads: bool) -> Values:
    """Radii, single bumps and a drawn heatmap."""
    length, width = case.tensor("in.dx"), case.tensor("in.dy")
    heatmap = torch.zeros(1, *case.config["hw"])
    centers = case.tensor("in.centers").long()
    draw_gaussians(heatmap, torch.zeros(len(centers), dtype=torch.long), centers, case.tensor("in.radii"))
    values = {"out.heatmap": heatmap[0]}
    for key in case.arrays:
        name, _, number = key.removeprefix("out.").partition("radius")
        if name == "gaussian2D_":
            values[key] = gaussian(int(number))
        elif key.startswith("out.radius_"):
            values[key] = gaussian_radius(length, width, float(number.removeprefix("_")))
    return values


def _scene(points: Tensor) -> Sample:
    """A frame of points alone, whose columns beside x, y, z have no meaning here."""
    columns = ("x", "y", "z", *(f"column {i}" for i in range(3, points.shape[1])))
    return Sample(points.numpy(), columns, "")


@runs("openpcdet", "box_codec")
def run_box_codec(case: Case, grads: bool) -> Values:
    """Codes of boxes, corners, angles and frames."""
    d = case.tensors("in")
    boxes, anchors, labels = d["boxes"], d["anchors"], d["classes"] - 1
    plain, sincos, wide = ResidualCoder(), ResidualCoder(sincos=True), ResidualCoder(extra=2)
    point, bare = PointResidualCoder(KITTI_MEAN_SIZES), PointResidualCoder()
    codes, scene = plain.encode(boxes, anchors), _scene(d["points"])
    rotations = len(case.arrays.get("out.rotate_points", ()))
    values: dict[str, Value] = {
        "residual.code_size": plain.code_size,
        "residual.encode": codes,
        "residual.decode": plain.decode(d["enc7"], anchors),
        "residual.encode9": wide.encode(d["boxes9"], d["anchors9"]),
        "residual.decode9": wide.decode(d["enc9"], d["anchors9"]),
        "residual_sincos.code_size": sincos.code_size,
        "residual_sincos.encode": sincos.encode(boxes, anchors),
        "residual_sincos.decode": sincos.decode(d["enc8"], anchors),
        "previous_residual.decode": PreviousResidualDecoder().decode(d["enc7"], anchors),
        "previous_residual_roi.decode": PreviousResidualDecoder(reverse_heading=True).decode(d["enc7"], anchors),
        "point.encode": point.encode(boxes, anchors, labels),
        "point.decode": point.decode(d["enc8"], anchors, labels),
        "point_nomean.encode": bare.encode(boxes, anchors),
        "point_nomean.decode": bare.decode(d["enc8"], anchors),
        "corners_3d": box_corners(boxes),
        "enlarged": enlarge(boxes, ENLARGED_BY),
        "corner_loss": losses.corner_loss(boxes, d["boxes_b"]),
        "kitti_lidar_to_fakelidar": openpcdet_boxes.to_second(boxes),
        "kitti_fakelidar_to_lidar": openpcdet_boxes.from_second(boxes),
        "rotate_points": np.array([augment.rotate(scene, a).points for a in d["angles"][:rotations].tolist()]),
    }
    heading = codes[:, 6] + anchors[:, 6]
    for key in case.arrays:
        if found := re.fullmatch(r"out\.(limit_period(_edge)?_(\d*)pi_(half|[\d.]+))", key):
            name, edge, period, offset = found.groups()
            offset = 0.5 if offset == "half" else float(offset)
            values[name] = limit_period(d[f"angles{edge or ''}"], offset, int(period or 1) * math.pi)
        if found := re.fullmatch(r"out\.(direction_target\.bins(\d+)_off(-?[\d.]+))", key):
            values[found[1]] = direction_bin(heading, int(found[2]), float(found[3]))[None]
    return {f"out.{name}": value for name, value in values.items()}


@runs("openpcdet", "detector_e2e")
def run_detector(case: Case, grads: bool) -> Values:
    """A whole detector, from points to detections."""
    detector: Any = from_official("openpcdet", case.config, case.tensors("param"))
    points = case.tensor("in.points")
    frame = points[:, 0].long()
    return detections(detector.predict(PointBatch(points[:, 1:].contiguous(), frame, int(frame.max()) + 1)))


def ground_truth(gt_boxes: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and 0-based labels of each frame from padded gt_boxes [B, G, columns + 1], whose last column is 1-based."""
    rows = [frame[frame[:, -1] > 0] for frame in gt_boxes]
    return [r[:, :-1] for r in rows], [r[:, -1].long() - 1 for r in rows]


def detections(found: list[Detections]) -> dict[str, Tensor]:
    """Detections of each frame under the published keys, labels 1-based."""
    values = {}
    for frame, result in enumerate(found):
        values[f"out.det.{frame}.pred_boxes"] = torch.as_tensor(result.boxes)
        values[f"out.det.{frame}.pred_scores"] = torch.as_tensor(result.scores)
        values[f"out.det.{frame}.pred_labels"] = torch.as_tensor(result.labels) + 1
    return values
