"""FlatFormer's layers, blocks, backbones and whole detectors, and its head. The mappings are in `mappings`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pcdet_ext.conformance.cases.openpcdet_heads import as_targets, with_total
from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.interop import flatformer, from_official
from pcdet_ext.interop.openpcdet_boxes import from_second
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.backbones.flatformer import FlatFormer
from pcdet_ext.models.bev import flatten_to_bev
from pcdet_ext.models.heads import CenterOutput
from pcdet_ext.models.heads.center import Candidates
from pcdet_ext.models.heads.center_branches import TaskMaps, gather_cells
from pcdet_ext.models.targets.heatmaps import CenterTargets
from pcdet_ext.structures import Groups, PointBatch, SparseVoxels


def _run(case: Case, grads: bool, inputs: dict[str, Tensor], compute: Callable[[Any], Values]) -> Values:
    """What `compute` gives with the case's module and parameters, and gradients under the published names."""
    with every_setting_counts(case.config) as config:
        module, rename = flatformer.build(config)
    state = case.tensors("param")
    flatformer.load_official(module.eval(), state, rename)
    for tensor in inputs.values():
        tensor.requires_grad_(grads)
    leaves = {name: t.requires_grad_(grads) for name, t in state.items() if f"grad.param.{name}" in case.arrays}
    ours = {rename(name): t for name, t in leaves.items()}
    parameters = {f"module.{key}": flatformer.our_value(key, t) for key, t in ours.items()}
    values = functional_call(_Computation(module, compute), parameters, ())
    if not grads:
        return values
    named = {f"in.{name}": t for name, t in inputs.items()} | {f"param.{name}": t for name, t in leaves.items()}
    return {**values, **backward(values, case, named)}


class _Computation(nn.Module):
    """A function of a module as a module, so that the parameters can be exchanged while it runs."""

    def __init__(self, module: nn.Module, compute: Callable[[Any], Values]) -> None:
        super().__init__()
        self.module, self.compute = module, compute

    def forward(self) -> Values:
        return self.compute(self.module)


@runs("flatformer", "layer")
def run_layer(case: Case, grads: bool) -> Values:
    """One layer on rows of which each `group_size` in a row are a group."""
    inputs = {"src": case.tensor("in.src"), "pe": case.tensor("in.pe")}
    rows = torch.arange(len(inputs["src"]))
    plan = Groups(rows.view(-1, case.config["group_size"]), rows)
    return _run(case, grads, inputs, lambda layer: {"out.y": layer(inputs["src"], plan, inputs["pe"])})


@runs("flatformer", "block")
def run_block(case: Case, grads: bool) -> Values:
    """One block of four layers."""
    x = case.tensor("in.x")
    return _run(case, grads, {"x": x}, lambda backbone: {"out.y": _mixed(backbone, case, x).features})


@runs("flatformer", "backbone")
def run_backbone(case: Case, grads: bool) -> Values:
    """All blocks, and their voxels on the map."""
    x = case.tensor("in.x")
    return _run(case, grads, {"x": x}, lambda backbone: {"out.bev": flatten_to_bev(_mixed(backbone, case, x))})


def _mixed(backbone: FlatFormer, case: Case, x: Tensor) -> SparseVoxels:
    grid = flatformer.grid(case.config)
    return backbone(SparseVoxels(x, case.tensor("in.coords"), grid, case.config["batch_size"]))


@runs("flatformer", "e2e")
def run_detector(case: Case, grads: bool) -> Values:
    """From points to the map of the neck and the head's predictions."""
    frame = case.tensor("in.point_coors")[:, 0].long()
    batch = PointBatch(case.tensor("in.points"), frame, case.config["batch_size"])

    def predict(detector: Any) -> Values:
        bev = detector.bev_map(batch)
        (maps,) = detector.head(bev).tasks
        published = published_maps(maps)
        return {"out.neck": bev} | {f"out.head_{name}": value for name, value in published.items()}

    return _run(case, grads, {}, predict)


def published_maps(maps: TaskMaps) -> dict[str, Tensor]:
    """Predictions under the published names and in the published box code."""
    named = {name: getattr(maps, FIELDS.get(ours, ours)) for name, ours in flatformer.BRANCHES.items()}
    named = {name: value for name, value in named.items() if value is not None}
    named |= {"dim": named["dim"][:, [1, 0, 2]], "rot": -named["rot"]}
    return named | ({"iou": (named["iou"] + 1) / 2} if "iou" in named else {})


def our_maps(published: Mapping[str, Tensor]) -> TaskMaps:
    """The inverse of `published_maps`."""
    maps = dict(published) | {"dim": published["dim"][:, [1, 0, 2]], "rot": -published["rot"]}
    if "iou" in maps:
        maps["iou"] = 2 * maps["iou"] - 1
    return TaskMaps(**{FIELDS.get(ours := flatformer.BRANCHES[name], ours): value for name, value in maps.items()})


FIELDS = {"hm": "heatmap"}


@runs("flatformer", "head")
def run_head(case: Case, grads: bool) -> Values:
    """Targets, losses and decoding from given maps."""
    head: Any = from_official("flatformer", case.config)
    head.score_threshold = flatformer.score_threshold(case.config["head"]["bbox_coder"])  # before suppression
    raw = {name: t.requires_grad_() for name, t in case.tensors("in").items() if name.startswith("raw_")}
    maps = our_maps({name.removeprefix("raw_"): t for name, t in raw.items()})
    output = CenterOutput((maps,))
    boxes, labels = zip(*(_objects(case, frame) for frame in range(case.config["batch_size"])), strict=True)
    (targets,), losses = head.targets(output, boxes, labels), with_total(head.loss(output, as_targets(boxes, labels)))
    values = _targets(targets, case)
    values |= {f"out.loss_{name}": losses[f"{ours}_0"] for name, ours in LOSSES.items() if f"{ours}_0" in losses}
    for frame, found in enumerate(head.candidates(output)[0]):
        rot = gather_cells(case.tensor("in.raw_rot")[frame : frame + 1], found.cells[None])[0]
        values |= {f"out.decoded_{name}_{frame}": value for name, value in _decoded(found, rot).items()}
    return values | (_head_grads(losses["total"], raw) if grads else {})


LOSSES = {"heatmap": "heatmap", "bbox": "box", "iou": "iou"}


def _objects(case: Case, frame: int) -> tuple[Tensor, Tensor]:
    """A frame's objects as the published head takes them: class by class, and no more than `max_objs`."""
    boxes, labels = case.tensor(f"in.gt_boxes_{frame}"), case.tensor(f"in.gt_labels_{frame}")
    train = case.config["train_cfg"]
    kept = labels.argsort(stable=True)[: train["max_objs"] * train.get("dense_reg", 1)]
    ours = from_second(boxes[kept, :7])
    return torch.cat([ours, boxes[kept, 7:]], 1), labels[kept]


def _targets(targets: CenterTargets, case: Case) -> dict[str, Tensor]:
    """Targets in as many slots as the case shows."""
    codes = targets.codes[..., [0, 1, 2, 4, 3, *range(5, targets.codes.shape[-1])]]
    codes[..., 6:8] *= -1
    slots = {"box": codes, "ind": targets.cells, "mask": targets.mask}
    values = {"out.target_heatmap": targets.heatmap}
    for name, tensor in slots.items():
        values[f"out.target_{name}"] = padded = tensor.new_zeros(case.arrays[f"out.target_{name}"].shape)
        padded[:, : tensor.shape[1]] = tensor
    return values


def _decoded(found: Candidates, rot: Tensor) -> dict[str, Tensor]:
    """Boxes (x, y, z, w, l, h, yaw, velocity), scores and labels; rot: published (sin, cos) [M, 2] behind the boxes.

    Of the angles that mean our heading, the one nearest to the published range's. Zeros in `rot` have no angle.
    """
    x, y, z, dx, dy, dz, heading = found.boxes[:, :7].unbind(1)
    expected = torch.atan2(*rot.unbind(1))
    yaw = -(heading + math.pi / 2)
    yaw = yaw + 2 * math.pi * ((expected - yaw) / (2 * math.pi)).round()
    yaw = torch.where((rot == 0).all(1), expected, yaw)
    boxes = torch.cat([torch.stack([x, y, z, dy, dx, dz, yaw], 1), found.boxes[:, 7:]], 1)
    return {"boxes": boxes, "scores": found.scores, "labels": found.labels}


def _head_grads(total: Tensor, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the loss in the maps; of the heatmap's, the case has the first row."""
    grads = torch.autograd.grad(total, list(raw.values()), materialize_grads=True)
    values = {f"grad.in.{name}": grad for name, grad in zip(raw, grads, strict=True)}
    return values | {"grad.in.raw_heatmap_row0": values["grad.in.raw_heatmap"][:, :, 0]}
