"""Runners for UniLION's heads beside detection: map, occupancy, motion and planning, and the grid they read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.cases.openpcdet_heads import with_total
from pcdet_ext.conformance.golden import Case, Value, Values, backward, every_input, runs
from pcdet_ext.conformance.gradients import loss_gradients
from pcdet_ext.interop import unilion_heads
from pcdet_ext.interop.parameters import load_renamed
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.bev.grid_transform import BEVGridTransform
from pcdet_ext.models.heads import HEADS, OccupancyHead, OccupancyOutput
from pcdet_ext.models.heads.transfusion_queries import QueryOutput
from pcdet_ext.scenes import EgoPlan
from pcdet_ext.structures import Targets

# A gradient of which the case keeps so many-th rows, and columns as its notes say.
THINNED = re.compile(r"grad\.in\.occ_pred_rows_0_\d+_step_(\d+)")
THINNED_COLUMNS = 11
UNUSED = "num_batches_tracked"  # by batch norms with a momentum; cases leave it out
OCCUPANCY_LOSSES = {
    "semantic": "occ_loss_voxel_sem_scal",
    "geometric": "occ_loss_voxel_geo_scal",
    "lovasz": "occ_loss_voxel_lovasz",
    "focal": "occ_loss_occ",
    "flow": "occ_loss_flow",
}
MOTION_LOSSES = {"regression": "motion_loss_reg", "classification": "loss_motion_cls"}
PLANNING_LOSSES = {
    "regression": "planning_loss_plan_reg",
    "classification": "planning_loss_plan_cls",
    "status": "planning_loss_ego_reg",
}


@runs("unilion", "bev_grid_transform")
@every_input
def run_grid_transform(case: Case, grads: bool) -> Values:
    """A map on another grid."""
    with every_setting_counts(case.config) as config:
        transform = BEVGridTransform(config["input_scope"], config["output_scope"], config.get("prescale_factor", 1))
    x = case.tensor("in.x").requires_grad_(grads)
    values = {"out.y": transform(x)}
    return values | backward(values, case, {"in.x": x}) if grads else values


@runs("unilion", "seg_map_head")
@every_input
def run_map_head(case: Case, grads: bool) -> Values:
    """Logits, losses and probabilities of the map's layers."""
    head, bev = _head(case), case.tensor("in.feats").requires_grad_()
    output = head(bev)
    loss = head.loss(output, [Targets(map_masks=masks) for masks in case.tensor("in.gt_bev_masks")])
    values = {
        "out.pred_seg": output.logits,
        "out.seg": torch.stack([found.probabilities for found in head.decode(output)]),
    }
    names = {name: f"map_loss_seg_{name}" for name in head.layers}
    return _with_losses(values, case, loss, names, head, {"in.feats": bev}, grads)


@runs("unilion", "bev_occ_head")
@every_input
def run_occupancy_head(case: Case, grads: bool) -> Values:
    """Logits, losses and the class of each cell."""
    head, bev = _head(case), case.tensor("in.feats").requires_grad_()
    output = head(bev)
    loss = head.loss(output, _occupancies(case))
    values = {
        "out.occ_pred": output.logits,
        "out.occ": torch.stack([found.labels for found in head.decode(output)]),
        "out.cls_weights": head.class_weights,
    }
    if output.flow is not None:
        values["out.flow_pred"] = output.flow
    return _with_losses(values, case, loss, OCCUPANCY_LOSSES, head, {"in.feats": bev}, grads)


@runs("unilion", "occ_losses")
@every_input
def run_occupancy_losses(case: Case, grads: bool) -> Values:
    """Losses of given logits."""
    logits = case.tensor("in.occ_pred").requires_grad_()
    size = logits.shape[1:4]
    with every_setting_counts(case.config) as config:
        if (config["Dz"], config["num_classes"]) != (size[2], logits.shape[4]):
            raise ValueError(f"Dz and num_classes do not fit logits {tuple(logits.shape)}")
        arguments = unilion_heads.occupancy_losses(config)
    head = OccupancyHead(
        in_channels=1,
        point_cloud_range=(-size[0] / 2, -size[1] / 2, -1, size[0] / 2, size[1] / 2, 1),
        heights=size[2],
        x=(-size[0] / 2, size[0] / 2, 1),
        y=(-size[1] / 2, size[1] / 2, 1),
        hidden_channels=1,
        **arguments,
    )
    loss = head.loss(OccupancyOutput(logits), _occupancies(case))
    values = _with_losses({}, case, loss, OCCUPANCY_LOSSES, nn.Module(), {"in.occ_pred": logits}, grads)
    if grads:
        (gradient,) = torch.autograd.grad(with_total(loss)["total"], [logits], retain_graph=True)
        thinned = {key: THINNED.fullmatch(key) for key in case.arrays}
        rows = {key: gradient[:, :: int(found[1]), ::THINNED_COLUMNS] for key, found in thinned.items() if found}
        values = {**values, **rows}
    return values


def _occupancies(case: Case) -> list[Targets]:
    """The occupancy of each frame, and where the case has it, its flow."""
    labels = case.tensor("in.gt_occ")
    flows = case.tensor("in.gt_flow") if "in.gt_flow" in case.arrays else [None] * len(labels)
    return [Targets(occupancy=own, occupancy_flow=flow) for own, flow in zip(labels, flows, strict=True)]


@runs("unilion", "naive_motion_head")
@every_input
def run_motion_head(case: Case, grads: bool) -> Values:
    """Paths of given queries, and their losses for given matches."""
    head, bev = _head(case), case.tensor("in.feats").requires_grad_()
    query = case.tensor("in.query_feat").requires_grad_()
    logits, peaks, labels = (case.tensor(f"in.{n}") for n in ("heatmap", "query_heatmap_score", "query_labels"))
    found = QueryOutput(logits, labels, peaks, logits, torch.zeros(len(bev), 8, labels.shape[1]), None, query)
    output = head.paths(bev, found)
    futures, masks = (case.tensors(f"in.gt_agent_fut_{name}") for name in ("trajs", "masks"))
    matches = [case.tensor(f"in.assigned.{frame}").long().unbind(1) for frame in range(len(bev))]
    targets = [
        Targets(torch.zeros(len(futures[f"{i}"]), 7), futures=futures[f"{i}"], future_mask=masks[f"{i}"].bool())
        for i in range(len(bev))
    ]
    values: dict[str, Value] = {
        "out.agent_fut_preds": output.steps,
        "out.agent_fut_preds_cls": output.logits,
        "out.agent_queries": output.queries,
    }
    inputs = {"in.feats": bev, "in.query_feat": query}
    return _with_losses(values, case, head.loss(output, targets, matches), MOTION_LOSSES, head, inputs, grads)


@runs("unilion", "anchor_planner_head")
@every_input
def run_planning_head(case: Case, grads: bool) -> Values:
    """Paths of the vehicle, their losses, and the chosen one."""
    head, bev = _head(case), case.tensor("in.feats").requires_grad_()
    output = head.paths(bev, case.tensor("in.gt_ego_fut_cmd").argmax(1))
    parts = (case.tensor(f"in.{name}") for name in ("gt_ego_fut_trajs", "gt_ego_fut_masks", "ego_status"))
    targets = [Targets(plan=EgoPlan(*plan)) for plan in zip(*parts, strict=True)]
    values: dict[str, Value] = {
        "out.ego_fut_preds": output.steps,
        "out.ego_fut_preds_cls": output.logits,
        "out.ego_status_preds": output.status[:, None],
        "out.plan": torch.stack([found.path for found in head.decode(output)]),
    }
    loss = head.loss(output, targets)
    return _with_losses(values, case, loss, PLANNING_LOSSES, head, {"in.feats": bev}, grads)


def _head(case: Case) -> Any:
    """The head of a case with its parameters, in evaluation mode."""
    with every_setting_counts(case.config) as config:
        kind = unilion_heads.KINDS[case.kind]
        if "type" in config and config["type"] != kind:
            raise ValueError(f"type: {config['type']!r} is no {kind}, of which the case is")
        node = unilion_heads.BUILDERS[kind](config)
    head = HEADS.build(node)
    counters = {key: value for key, value in head.state_dict().items() if key.endswith(UNUSED)}
    rename = unilion_heads.our_name(kind)
    parameters = {rename(name): value for name, value in case.tensors("param").items()}
    load_renamed(head, counters | parameters, str)
    return head.eval()


def _with_losses(
    values: Mapping[str, Value],
    case: Case,
    loss: dict[str, Tensor],
    names: Mapping[str, str],
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    grads: bool,
) -> Values:
    """The values with the losses under their published names, their total, and the gradients of it."""
    total = with_total(loss)["total"]
    found = {**values, "out.loss.total": total, **{f"out.loss.{names[name]}": value for name, value in loss.items()}}
    if not grads:
        return found
    kind = unilion_heads.KINDS.get(case.kind)
    return found | loss_gradients(case, total, module, inputs, unilion_heads.our_name(kind) if kind else str)
