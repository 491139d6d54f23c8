"""Runners for LION's backbones, blocks and merges."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.interop import lion
from pcdet_ext.structures import SparseVoxels


def _voxels(case: Case, grads: bool) -> SparseVoxels:
    config = case.config
    grid = config["sparse_shape_zyx"] if "sparse_shape_zyx" in config else reversed(config["grid_size_xyz"])
    features = case.tensor("in.voxel_features").requires_grad_(grads)
    return SparseVoxels(features, case.tensor("in.voxel_coords"), tuple(grid), config["batch_size"])


def _gradients(case: Case, values: Values, module: nn.Module, voxels: SparseVoxels) -> dict[str, Tensor]:
    leaves = {"in.voxel_features": voxels.features}
    return backward(values, case, leaves | {f"param.{name}": value for name, value in module.named_parameters()})


@runs("lion", "backbone")
def run_backbone(case: Case, grads: bool) -> Values:
    """Voxels through a backbone; those of the sparse form lie in a plane."""
    backbone = lion.from_official(case.config, case.tensors("param"))
    voxels = _voxels(case, grads)
    *scales, out = backbone.scales(voxels)
    flat = backbone.bev_layers > 0
    values = {
        "out.features": out.features,
        "out.indices": out.coords[:, [0, 2, 3]] if flat else out.coords,
        "out.spatial_shape": torch.tensor(out.grid[1:] if flat else out.grid),
    }
    for i, scale in enumerate(scales, 1):
        values |= {f"mid.x_conv{i}.features": scale.features, f"mid.x_conv{i}.indices": scale.coords}
    return values | _gradients(case, values, backbone, voxels) if grads else values


@runs("lion", "block")
def run_block(case: Case, grads: bool) -> Values:
    """Voxels through an encoder-decoder block."""
    block = lion.from_official(case.config, case.tensors("param"))
    voxels = _voxels(case, grads)
    out = block(voxels)
    values = {"out.features": out.features, "out.indices": out.coords}
    return values | _gradients(case, values, block, voxels) if grads else values


@runs("lion", "patch_merging")
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
    return values | _gradients(case, values, merging, voxels) if grads else values
