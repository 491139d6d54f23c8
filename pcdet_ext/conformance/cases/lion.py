"""Runners for LION's backbones, blocks and merges."""

from __future__ import annotations

from typing import Any

import torch

from pcdet_ext.conformance.golden import Case, Values, every_setting, runs
from pcdet_ext.conformance.gradients import probe_gradients
from pcdet_ext.interop import lion, lion_names
from pcdet_ext.structures import SparseVoxels


def _voxels(case: Case, grads: bool) -> SparseVoxels:
    config = case.config
    grid = config["sparse_shape_zyx"] if "sparse_shape_zyx" in config else reversed(config["grid_size_xyz"])
    features = case.tensor("in.voxel_features").requires_grad_(grads)
    return SparseVoxels(features, case.tensor("in.voxel_coords"), tuple(grid), config["batch_size"])


@runs("lion", "backbone")
@every_setting
def run_backbone(case: Case, grads: bool) -> Values:
    """Voxels through a backbone; those of the sparse form lie in a plane."""
    backbone: Any = lion.from_official(case.config, case.tensors("param"))
    voxels = _voxels(case, grads)
    *scales, out = backbone.scales(voxels)
    flat = len(backbone.bev_layers) > 0
    values = {
        "out.features": out.features,
        "out.indices": out.coords[:, [0, 2, 3]] if flat else out.coords,
        "out.spatial_shape": torch.tensor(out.grid[1:] if flat else out.grid),
    }
    for i, scale in enumerate(scales, 1):
        values |= {f"mid.x_conv{i}.features": scale.features, f"mid.x_conv{i}.indices": scale.coords}
    inputs = {"in.voxel_features": voxels.features}
    return values | (probe_gradients(case, values, backbone, inputs, lion_names.backbone_name) if grads else {})


@runs("lion", "block")
@every_setting
def run_block(case: Case, grads: bool) -> Values:
    """Voxels through an encoder-decoder block."""
    block = lion.from_official(case.config, case.tensors("param"))
    voxels = _voxels(case, grads)
    out = block(voxels)
    values = {"out.features": out.features, "out.indices": out.coords}
    return (
        values | probe_gradients(case, values, block, {"in.voxel_features": voxels.features}, lion_names.block_name)
        if grads
        else values
    )


@runs("lion", "patch_merging")
@every_setting
def run_merging(case: Case, grads: bool) -> Values:
    """Voxels merged into coarser ones, with or without voxel generation."""
    merging = lion.from_official(case.config, case.tensors("param"))
    voxels = _voxels(case, grads)
    out, parent = merging(voxels)
    values = {
        "out.features": out.features,
        "out.indices": out.coords,
        "out.unq_inv": parent,
        "out.spatial_shape": torch.tensor(out.grid),
    }
    return (
        values | probe_gradients(case, values, merging, {"in.voxel_features": voxels.features}, lion_names.merge_name)
        if grads
        else values
    )


@runs("lion", "operator")
@every_setting
def run_operator(case: Case, grads: bool) -> Values:
    """Sequences through one operator."""
    operator = lion.from_official(case.config, case.tensors("param"))
    x = case.tensor("in.x").requires_grad_(grads)
    values = {"out.x": operator(x)}
    if not grads:
        return values
    return values | probe_gradients(
        case, values, operator, {"in.x": x}, lambda name: f"blocks.{lion_names.operator_name(name)}"
    )
