"""Overlaps, suppression and points in boxes of OpenPCDet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.conformance.golden import Case, Masked, Values, runs
from pcdet_ext.models.heads.losses import axis_aligned_diou
from pcdet_ext.models.heads.postprocess import NMSConfig, best_class, every_class, suppress
from pcdet_ext.models.targets.anchors import axis_aligned, nearest_bev_iou
from pcdet_ext.models.targets.box_coding import lifted
from pcdet_ext.ops import iou_3d, iou_3d_paired, iou_bev, nms, points_in_boxes, shared_area_bev
from pcdet_ext.ops.boxes import NMSKind
from pcdet_ext.ops.published_boxes import published_shared_area

CPU_MARGIN, GPU_MARGIN = 0.01, 1e-5  # metres by which the published kernels widen boxes


@runs("openpcdet", "iou_boxes")
def overlaps(case: Case, _grads: bool) -> Values:
    """Every kind of overlap of two lists of boxes.

    The published kernel counts corners up to 1 cm outside of a box as inside, and the case says in `mid.regular` which
    pairs that leaves alone: published values are compared there, exact ones everywhere. Where one list is longer, the
    paired overlaps are those of its first boxes with the whole other list.
    """
    a, b, regular = case.tensor("in.boxes_a"), case.tensor("in.boxes_b"), case.tensor("mid.regular").bool()
    bev, volume = iou_bev(a, b), iou_3d(a, b)
    count = min(len(a), len(b))
    first, second, alone = a[:count], b[:count], regular.diagonal()
    shared, paired = shared_area_bev(a, b), iou_3d_paired(first, second)
    return {
        "out.overlap_bev": Masked(_all_pairs(published_shared_area, a, b), regular),
        "out.iou_bev_gpu": Masked(bev, regular),
        "out.iou_bev_cpu": Masked(bev, regular),
        "out.iou3d": Masked(volume, regular),
        "out.iou3d_aligned": Masked(paired[:, None], alone[:, None]),
        "out.iou3d_paired": Masked(paired, alone),
        "out.nearest_bev_iou": _all_pairs(nearest_bev_iou, a, b),
        "out.diou_axis_aligned_paired": Masked(axis_aligned_diou(first, second), alone),
        "out.hungarian_iou": Masked(iou_3d(lifted(a), lifted(b)), regular),
        "out.aligned_bev_boxes_a": axis_aligned(a),
        "out.exact_overlap_bev": shared,
        "out.exact_iou_bev": bev,
        "out.exact_iou3d": volume,
    }


def _all_pairs(paired: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """A function of paired boxes for every pair of a [N, 7] and b [M, 7]: [N, M]."""
    return paired(a.repeat_interleave(len(b), 0), b.repeat(len(a), 1)).view(len(a), len(b))


@runs("openpcdet", "circle_nms")
def circles(case: Case, _grads: bool) -> Values:
    """Suppression by the squared distance of centres."""
    x, y, scores = case.tensor("in.dets").unbind(1)
    boxes = torch.stack([x, y, *[torch.ones_like(x)] * 5], 1)
    return {f"out.keep_{t}": nms(boxes, scores, t, kind="circle") for t in case.config["thresholds"]}


@runs("openpcdet", "points_in_boxes")
def inside(case: Case, _grads: bool) -> Values:
    """Which points lie in which boxes, and the points that lie in none."""
    points, boxes = case.tensor("in.points"), case.tensor("in.boxes")
    each = [points_in_boxes(points, box[None], CPU_MARGIN) == 0 for box in boxes]
    return {
        "out.cpu_mask": torch.stack(each).int() if each else torch.zeros(0, len(points), dtype=torch.int32),
        "out.gpu_index": points_in_boxes(points, boxes, GPU_MARGIN).int(),
        "out.remaining_points": points[points_in_boxes(points, boxes, CPU_MARGIN) < 0],
    }


@runs("openpcdet", "nms")
def suppression(case: Case, _grads: bool) -> Values:
    """Plain, class-agnostic and class-wise suppression."""
    functions = {
        "nms_gpu": _plain,
        "nms_normal_gpu": _plain,
        "class_agnostic_nms": _agnostic,
        "class_specific_nms": _per_class,
        "multi_classes_nms": _every_class,
    }
    values: dict[str, Any] = {}
    for entry in case.config["sets"]:
        found = functions[entry["fn"]](case, entry)
        values |= {f"out.{entry['name']}.{key}": value for key, value in found.items()}
    return values


@runs("openpcdet", "nms_dsvt")
def rotated_suppression(case: Case, _grads: bool) -> Values:
    """Suppression of DSVT and LION, which compares footprints rotated by 90°."""
    boxes, scores = case.tensor("in.boxes"), case.tensor("in.scores")
    labels = case.tensor("in.labels")
    values: dict[str, Any] = {}
    for entry in case.config["sets"]:
        per_class = entry["fn"] == "multi_classes_nms_mmdet"
        config = _config(entry["nms_config"], per_class=per_class, rotate_90=True)
        kept = _kept(boxes, scores, labels if per_class else labels * 0, config, entry.get("score_thresh"))
        values[f"out.{entry['name']}.keep"] = kept
        values[f"out.{entry['name']}.scores"] = scores[kept]
    return values


def _config(nms_config: dict[str, Any], per_class: bool, rotate_90: bool = False) -> NMSConfig:
    before, after = nms_config.get("NMS_PRE_MAXSIZE"), nms_config.get("NMS_POST_MAXSIZE")
    kind: NMSKind = "axis_aligned" if nms_config.get("NMS_TYPE") == "nms_normal_gpu" else "rotated"
    return NMSConfig(nms_config["NMS_THRESH"], before, after, per_class=per_class, kind=kind, rotate_90=rotate_90)


def _kept(
    boxes: Tensor, scores: Tensor, labels: Tensor, config: NMSConfig, threshold: float | Sequence[float] | None
) -> Tensor:
    """Indices of the boxes that pass the threshold (one, or one per class) and stay; labels are 0-based."""
    classes = len(config.iou_threshold) if isinstance(config.iou_threshold, Sequence) else 1
    passed = torch.arange(len(scores))
    if threshold is not None:
        passed = (scores >= torch.as_tensor(threshold, dtype=scores.dtype).expand(classes)[labels]).nonzero()[:, 0]
    return passed[suppress(boxes[passed], scores[passed], labels[passed], config, classes)]


def _plain(case: Case, entry: dict[str, Any]) -> dict[str, Any]:
    boxes, scores = case.tensor(f"in.{entry['boxes']}"), case.tensor(f"in.{entry['scores']}")
    kind: NMSKind = "axis_aligned" if entry["fn"] == "nms_normal_gpu" else "rotated"
    kept = nms(boxes, scores, entry["thresh"], kind, entry.get("pre_maxsize"), published=True)
    expected = case.tensor(f"out.{entry['name']}.keep")
    return {"keep": _as_published_tie(kept, expected, boxes, scores)}


def _as_published_tie(kept: Tensor, expected: Tensor, boxes: Tensor, scores: Tensor) -> Tensor:
    """Equal boxes of equal score are interchangeable (which one stays is not defined): take the published choice."""
    if len(kept) != len(expected):
        return kept
    rows = torch.cat([boxes, scores[:, None]], 1)
    order, published = ([tuple(rows[i].tolist()) for i in index] for index in (kept, expected))
    return expected if sorted(order) == sorted(published) and len(scores.unique()) < len(scores) else kept


def _agnostic(case: Case, entry: dict[str, Any]) -> dict[str, Any]:
    boxes, scores = case.tensor(f"in.{entry['boxes']}"), case.tensor(f"in.{entry['scores']}")
    passed, best, _ = best_class(scores[:, None], entry.get("score_thresh", -torch.inf))
    config = _config(entry["nms_config"], per_class=False)
    kept = passed[suppress(boxes[passed], best, torch.zeros_like(passed), config, 1)]
    return {"keep": kept, "scores": scores[kept]}


def _per_class(case: Case, entry: dict[str, Any]) -> dict[str, Any]:
    """The published function leaves the number of boxes after suppression unlimited."""
    boxes, scores, labels = (case.tensor(f"in.{entry[k]}") for k in ("boxes", "scores", "labels"))
    config = _config(entry["nms_config"] | {"NMS_POST_MAXSIZE": None}, per_class=True)
    kept = _kept(boxes, scores, labels, config, entry.get("score_thresh"))
    return {"keep": kept, "scores": scores[kept]}


def _every_class(case: Case, entry: dict[str, Any]) -> dict[str, Any]:
    boxes, scores = case.tensor(f"in.{entry['boxes']}"), case.tensor(f"in.{entry['cls_scores']}")
    index, values, labels = every_class(scores, entry["score_thresh"])
    settings = entry["nms_config"]
    count = scores.shape[1]
    repeated = {k: [settings[k]] * count for k in ("NMS_THRESH", "NMS_PRE_MAXSIZE", "NMS_POST_MAXSIZE")}
    repeated["NMS_TYPE"] = settings["NMS_TYPE"]
    kept = suppress(boxes[index], values, labels, _config(repeated, per_class=True), count)
    return {"scores": values[kept], "labels": labels[kept], "boxes": boxes[index[kept]]}
