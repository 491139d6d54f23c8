"""Octrees of the published octree transformers: construction, tables and layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pcdet_ext.conformance.golden import Case, Values, backward, every_setting, runs
from pcdet_ext.data.normalize import inside_unit_cube, inside_unit_cylinder, normalize_cloud, to_cylindrical
from pcdet_ext.grouping.octree import Octree, build_octree, input_features
from pcdet_ext.interop.settings import skip
from pcdet_ext.models.layers.octree import (
    OctreeConv,
    OctreeDeconv,
    OctreeDWConv,
    octree_global_pool,
    octree_interpolate,
    octree_max_pool,
    octree_upsample,
)


def listed(case: Case, name: str) -> list[Tensor]:
    """Arrays in.<name>_0, in.<name>_1, …"""
    found: list[Tensor] = []
    while f"in.{name}_{len(found)}" in case.arrays:
        found.append(case.tensor(f"in.{name}_{len(found)}"))
    return found


def _prepared(raw: Tensor, settings: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised points, which of them are kept, and those in the coordinates of the octree."""
    normalize = settings["normalize"]
    points = raw
    if normalize is not None:
        scale, sphere = normalize["scale_factor"], normalize["unit_sphere_norm"]
        points = normalize_cloud(raw, scale, sphere, normalize["zero_mean"])
    keep = inside_unit_cube(points)
    if settings["coordinates"] == "cylindrical":
        keep &= inside_unit_cylinder(points)
        return points, keep, to_cylindrical(points[keep])
    return points, keep, points[keep]


@runs("octree", "octree_build")
@every_setting
def octree_build(case: Case, _grads: bool) -> Values:
    """Normalisation, octree, neighbour tables, input features."""
    config = case.config
    values: dict[str, Tensor] = {}
    prepared = [_prepared(raw, config["preprocess"]) for raw in listed(case, "raw_points")]
    clouds = [inside for _, _, inside in prepared]
    signals = {name: listed(case, name) for name in ("normals", "features")}
    kept = {
        name: [x[keep] for x, (_, keep, _) in zip(found, prepared, strict=True)] if found else None
        for name, found in signals.items()
    }
    depth, full_depth = config["octree"]["depth"], config["octree"]["full_depth"]
    octree = build_octree(clouds, depth, full_depth, **kept, wrap=True)
    first_leaf = octree.levels[depth].occupied.cumsum(0) - octree.levels[depth].occupied
    leaves = octree.point_leaf.split([len(cloud) for cloud in clouds])
    for i, (points, keep, inside) in enumerate(prepared):
        values |= {f"out.normalized_{i}": points, f"out.keep_{i}": keep, f"out.octree_points_{i}": inside}
        values[f"out.point_to_node_{i}"] = (leaves[i] - first_leaf[i]).int()
    return values | _octree_values(octree, config)


def _octree_values(octree: Octree, config: Mapping[str, Any]) -> dict[str, Tensor]:
    counts = torch.stack([level.counts for level in octree.levels])
    occupied = torch.stack([level.occupied for level in octree.levels])
    values = {
        "out.octree.nnum": counts.sum(1),
        "out.octree.nnum_nempty": occupied.sum(1),
        "out.octree.batch_nnum": counts,
        "out.octree.batch_nnum_nempty": occupied,
        "out.octree.points": octree.points,
    }
    if octree.normals is not None:
        values["out.octree.normals"] = octree.normals
    if octree.features is not None:
        values["out.octree.features"] = octree.features
    for d, level in enumerate(octree.levels):
        values |= {f"out.octree.keys.{d}": level.keys, f"out.octree.children.{d}": level.children}
        values[f"out.octree.neighs.{d}"] = octree.neighbours(d).int()
    for name in config["input_features"]:
        values[f"out.input_feature.{name}"] = input_features(octree, name)
    for depth, kernel, stride, nempty in config["neigh_tables"]:
        key = f"out.get_neigh.depth{depth}.kernel{kernel}.stride{stride}.nempty{int(nempty)}"
        values[key] = octree.table(depth, kernel, stride, nempty).int()
    depth = config["xyzb_depth"]
    values[f"out.xyzb_nempty.{depth}"] = octree.coords(depth)[:, [3, 2, 1, 0]]
    return values


@runs("octree", "octree_ops")
@every_setting
def octree_ops(case: Case, grads: bool) -> Values:
    """Every layer on features of one depth."""
    config, nempty = case.config, case.config["nempty"]
    skip(config, "in_channels", "out_channels")  # which the features and weights tell
    octree = build_octree(listed(case, "points"), **config["octree"], wrap=True)
    depth = config["depth"]
    fine = case.tensor("in.data").requires_grad_(grads)
    coarse = case.tensor("in.data_coarse").requires_grad_(grads)
    query = case.tensor("in.query_pts")
    inputs = {"in.data": fine, "in.data_coarse": coarse}
    values = {}
    for name in dict.fromkeys(key.split(".")[0] for key in case.tensors("param")):
        parameters = {key: case.tensor(f"param.{name}.{key}") for key in case.tensors(f"param.{name}")}
        layer = _layer(name, parameters["weights"], "bias" in parameters, nempty)
        layer.load_state_dict(parameters)
        inputs |= {f"param.{name}.{key}": parameter for key, parameter in layer.named_parameters()}
        is_deconv = name.startswith("deconv")
        values[f"out.{name}"] = layer(coarse, octree, depth - 1) if is_deconv else layer(fine, octree, depth)
    at = (query[:, :3], query[:, 3].long(), nempty)
    values |= {
        "out.upsample_nearest_1": octree_upsample(coarse, octree, depth - 1, depth, nempty),
        "out.upsample_nearest_2": octree_upsample(coarse, octree, depth - 1, depth + 1, nempty),
        "out.interp_nearest": octree_interpolate(fine, octree, depth, *at, wrap=True),
        "out.interp_linear": octree_interpolate(fine, octree, depth, *at, linear=True, wrap=True),
        "out.max_pool": octree_max_pool(fine, octree, depth, nempty),
        "out.global_pool": octree_global_pool(fine, octree, depth, nempty),
    }
    return values | (backward(values, case, inputs) if grads else {})


def _layer(name: str, weights: Tensor, bias: bool, nempty: bool) -> torch.nn.Module:
    """The layer that a name such as conv333, conv222_s2, deconv333_s2 or dwconv means."""
    if name == "dwconv":
        return OctreeDWConv(weights.shape[2], nempty, bias)
    kernel = name.removeprefix("de").removeprefix("conv")[:3]
    if name.startswith("deconv"):
        return OctreeDeconv(weights.shape[2], weights.shape[1], kernel, nempty, bias)
    _, in_channels, out_channels = weights.shape
    return OctreeConv(in_channels, out_channels, kernel, 2 if name.endswith("_s2") else 1, nempty, bias)
