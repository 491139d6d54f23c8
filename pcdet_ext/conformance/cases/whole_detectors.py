"""Runners for whole detectors: from points to detections and losses, and from losses back to every parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pcdet_ext.conformance.cases.openpcdet_heads import as_targets, detections, ground_truth, query_targets, with_total
from pcdet_ext.conformance.golden import GRADIENT_NORMS, Case, Value, Values, runs
from pcdet_ext.interop import from_official, lion, openpcdet, openpcdet_heads
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.heads import (
    HEADS,
    AnchorHead,
    AnchorHeadMulti,
    CenterHead,
    SparseCenterHead,
    TransFusionHead,
    VoxelNeXtHead,
)
from pcdet_ext.models.targets.anchors import BACKGROUND, IGNORED
from pcdet_ext.structures import PointBatch, SparseVoxels

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "head_label_indices", "global_step")
STATES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "lion2": lion.official_state,
    "openpcdet2": openpcdet.official_state,
}
Boxes = Sequence[Tensor]
Outcome = tuple[Values, Tensor]  # what is compared, and the loss whose gradients are


class _Whole(nn.Module):
    """A detector whose forward pass runs `outcome` of it, so that it can be run with parameters from elsewhere."""

    def __init__(self, detector: Any, outcome: Callable[[Any], Outcome]) -> None:
        super().__init__()
        self.detector, self.outcome = detector, outcome

    def forward(self) -> Outcome:
        """The outcome of the detector with the parameters it has now."""
        return self.outcome(self.detector)


@runs("lion2", "sparse_center_head")
@runs("openpcdet2", "voxelnext_head")
def run_site_head(case: Case, grads: bool) -> Values:
    """Predictions, targets, losses and detections of a head on occupied cells."""
    config = case.config
    with every_setting_counts({"model_cfg": config["model_cfg"]}) as read:
        node, stride = openpcdet_heads.head(read["model_cfg"], {}, ()), openpcdet_heads.stride(read["model_cfg"])
    geometry = {name: config[name] for name in ("point_cloud_range", "voxel_size")}
    head = HEADS.build(
        node, in_channels=config["input_channels"], classes=config["class_names"], stride=stride, **geometry
    )
    head.load_state_dict(openpcdet.official_state(head, case.tensors("param"), str))
    indices = case.tensor("in.indices")
    coords = torch.stack([indices[:, 0], torch.zeros_like(indices[:, 0]), indices[:, 1], indices[:, 2]], 1)
    height, width = case.tensor("in.spatial_shape_yx").tolist()
    features = case.tensor("in.features").requires_grad_(grads)
    voxels = SparseVoxels(features, coords, (1, height, width), config["batch_size"])
    return with_gradients(
        case, head.eval(), lambda it: _head_outcome(it, voxels, case), grads, {"in.features": features}, str
    )


def _head_outcome(head: Any, voxels: SparseVoxels, case: Case) -> Outcome:
    output, objects = head(voxels), ground_truth(case.tensor("in.gt_boxes"))
    loss = with_total(head.loss(output, as_targets(*objects)))
    values: dict[str, Value] = {"out.loss.total": loss["total"], **detections(head.decode(output))}
    values |= _sites(head, output, objects, loss, case.config["model_cfg"])
    for t, rows in enumerate(output.tasks):
        values |= {f"out.pred.{t}.{name}": getattr(rows, name) for name in head.branches}
        values[f"out.pred.{t}.{head.heatmap_name}"] = rows.heatmap
    return values, loss["total"]


@runs("lion2", "detector_e2e")
@runs("openpcdet2", "detector_e2e")
def run_whole_detector(case: Case, grads: bool) -> Values:
    """Detections, targets and losses of a whole detector, and gradients with respect to its published parameters."""
    detector = from_official(case.system, case.config, case.tensors("param"))
    points = case.tensor("in.points")
    batch = PointBatch(points[:, 1:].contiguous(), points[:, 0].long(), case.config["batch_size"])
    objects = ground_truth(case.tensor("in.gt_boxes"))
    return with_gradients(case, detector, lambda it: _outcome(it, batch, objects, case.config), grads)


def with_gradients(
    case: Case,
    module: nn.Module,
    outcome: Callable[[Any], Outcome],
    grads: bool,
    inputs: Mapping[str, Tensor] | None = None,
    *rename: Callable[[str], str],
) -> Values:
    """What `outcome` gives of a module, and on demand gradients with respect to published parameters and inputs.

    Our parameters are functions of the published ones, so that what an importer changes on the way is differentiated
    with the rest.

    Args:
        case: with the published parameters.
        module: whose parameters they are.
        outcome: computes values, and what gradients are of.
        grads: whether gradients are wanted.
        inputs: tensors that need gradients, by name.
        rename: our name for a published one, where it is not that of a detector.
    """
    if not grads:
        return outcome(module)[0]
    published = case.tensors("param")
    leaves = {name: value.requires_grad_() for name, value in published.items() if not name.endswith(BUFFERS)}
    state = STATES[case.system](module, published, *rename)
    values, loss = functional_call(_Whole(module, outcome), {f"detector.{name}": v for name, v in state.items()}, ())
    wanted = {f"param.{name}": value for name, value in leaves.items()} | dict(inputs or {})
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True, materialize_grads=True)
    norms = torch.stack([gradient.norm() for gradient in found[: len(leaves)]])
    return {**values, **dict(zip((f"grad.{n}" for n in wanted), found, strict=True)), GRADIENT_NORMS: norms}


def _outcome(detector: Any, batch: PointBatch, objects: tuple[Boxes, Boxes], config: Mapping[str, Any]) -> Outcome:
    head = detector.head
    output = head(detector.features(batch).of(head.reads))
    loss = with_total(head.loss(output, as_targets(*objects)))
    describe = next(describe for kind, describe in DESCRIPTIONS.items() if isinstance(head, kind))
    values = describe(head, output, objects, loss, config["model_cfg"]["DENSE_HEAD"])
    return {"out.loss.total": loss["total"], **values, **detections(head.decode(output))}, loss["total"]


Losses = Mapping[str, Tensor]


def _anchors(head: Any, output: Any, objects: tuple[Boxes, Boxes], loss: Losses, _: Any) -> dict[str, Value]:
    """Losses, and targets of the anchors in their order."""
    targets = head.targets(output, *objects)
    labels = targets.labels + 1
    labels[targets.labels == BACKGROUND], labels[targets.labels == IGNORED] = 0, -1
    frame, anchor = targets.positive
    values: dict[str, Value] = {
        "out.target.box_cls_labels": labels,
        "out.target.positive_rows": targets.codes[(frame * labels.shape[1] + anchor).argsort()],
        "out.loss.rpn_loss": loss["total"],
        "out.loss.rpn_loss_cls": loss["classification"],
        "out.loss.rpn_loss_loc": loss["box"],
    }
    return values | ({"out.loss.rpn_loss_dir": loss["direction"]} if "direction" in loss else {})


CENTER_LOSSES = {"heatmap": "hm_loss", "box": "loc_loss", "iou": "iou_loss", "box_iou": "iou_reg_loss"}


def _centers(head: Any, output: Any, objects: tuple[Boxes, Boxes], loss: Losses, config: Any) -> dict[str, Value]:
    """Losses of each task, and its targets in the published number of slots."""
    values: dict[str, Value] = {"out.loss.rpn_loss": loss["total"]}
    for t, target in enumerate(head.targets(output, *objects)):
        values |= {f"out.loss.{p}_head_{t}": loss[f"{o}_{t}"] for o, p in CENTER_LOSSES.items() if f"{o}_{t}" in loss}
        slots = {"inds": target.cells, "masks": target.mask.long(), "target_boxes": target.codes}
        count = config["TARGET_ASSIGNER_CONFIG"]["NUM_MAX_OBJS"]
        values |= {f"out.target.{t}.{name}": padded(rows, count) for name, rows in slots.items()}
    return values


def _sites(head: Any, output: Any, objects: tuple[Boxes, Boxes], loss: Losses, config: Any) -> dict[str, Value]:
    """Losses of each task, and its targets: with the rows as they are, and sorted by (frame, y, x)."""
    values: dict[str, Value] = {"out.loss.rpn_loss": loss["total"]}
    sites, count = output.sites, config["TARGET_ASSIGNER_CONFIG"]["NUM_MAX_OBJS"]
    where = torch.cat([sites.frame[:, None], sites.cells.flip(1)], 1)
    height, width = sites.map_size
    order = ((where[:, 0] * height + where[:, 1]) * width + where[:, 2]).argsort()
    for t, target in enumerate(head.targets(output, *objects)):
        values |= {f"out.loss.{p}_head_{t}": loss[f"{o}_{t}"] for o, p in CENTER_LOSSES.items() if f"{o}_{t}" in loss}
        slots = {
            "inds": target.index,
            "masks": target.mask.long(),
            "target_boxes": target.codes,
            "voxel_of_object": where[target.site] * target.mask[..., None],
        }
        values |= {f"out.target.{t}.{name}": padded(rows, count) for name, rows in slots.items()}
        values |= {
            f"out.target.{t}.heatmap": target.heatmap,
            f"out.target.{t}.heatmap_sorted": target.heatmap[order],
        }
    return values


def padded(rows: Tensor, count: int) -> Tensor:
    """Slots [B, K, ...] filled up with zeros to [B, count, ...]."""
    return torch.cat([rows, rows.new_zeros(len(rows), count - rows.shape[1], *rows.shape[2:])], 1)


def _queries(head: Any, output: Any, objects: tuple[Boxes, Boxes], loss: Losses, _: Any) -> dict[str, Value]:
    """Losses, and how well the matched queries overlap their objects."""
    published = {"heatmap": "loss_heatmap", "classification": "loss_cls", "box": "loss_bbox", "iou": "loss_iou"}
    matched = query_targets(head.targets(output, *objects), len(objects[0]))["out.target.matched_ious"]
    values: dict[str, Value] = {f"out.loss.{theirs}": loss[ours] for ours, theirs in published.items() if ours in loss}
    return values | {"out.loss.matched_ious": matched}


DESCRIPTIONS: dict[type, Callable[..., dict[str, Value]]] = {
    AnchorHead: _anchors,
    AnchorHeadMulti: _anchors,
    CenterHead: _centers,
    SparseCenterHead: _sites,
    TransFusionHead: _queries,
    VoxelNeXtHead: _sites,
}
