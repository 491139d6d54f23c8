"""Runners for OpenPCDet's encoders, maps to bird's-eye view, and 2-D and 3-D backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Values, backward, runs
from pcdet_ext.interop import openpcdet, openpcdet_backbones
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES, flatten_to_bev
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.structures import PointBatch, SparseVoxels


def _described(section: str, make: Callable[..., Any], config: Mapping[str, Any], *more: Any) -> dict[str, Any]:
    """Our configuration of a component, every setting of whose published section (its name) counts."""
    with every_setting_counts({section: {"NAME": config["NAME"], **config["model_cfg"]}}) as settings:
        return make(settings[section], *more)


def load(module: nn.Module, case: Case) -> Any:
    """The module in evaluation mode with exactly the case's parameters."""
    module.load_state_dict(case.tensors("param"))
    return module.eval()


@runs("openpcdet", "vfe")
def run_vfe(case: Case, grads: bool) -> Values:
    """Encoders on points or on given voxels, in evaluation and training mode."""
    config = case.config
    hard = "in.voxels" in case.arrays
    caps = tuple(max(size, 1) for size in case.arrays["in.voxels"].shape[1::-1]) if hard else (None, None)
    node = _described("VFE", openpcdet.encoder, config, *caps) | ({} if hard else {"x_major": True})
    encoder = ENCODERS.build(
        node,
        in_channels=config["num_point_features"],
        point_cloud_range=config["point_cloud_range"],
        voxel_size=config["voxel_size"],
    )
    load(encoder, case)
    inputs = {k: v.requires_grad_(grads and v.is_floating_point()) for k, v in case.tensors("in").items()}
    run = _encoding(encoder, inputs, config["batch_size"])
    voxels = run()
    values = _encoded(voxels)
    if grads:
        values |= backward(values, case, _leaves(encoder, inputs))
    if any(key.startswith("out.train_mode_") for key in case.arrays):
        encoder.train()
        values["out.train_mode_pillar_features"] = run().features
        values |= {f"out.train_mode_updated_{name}": value for name, value in encoder.named_buffers()}
    return values


def _encoding(encoder: Any, inputs: Mapping[str, Tensor], batch_size: int) -> Callable[[], SparseVoxels]:
    if "points" in inputs:
        frame, points = inputs["points"][:, 0].detach().long(), inputs["points"][:, 1:]
        return lambda: encoder(PointBatch(points, frame, batch_size))
    voxels = [inputs[key] for key in ("voxels", "voxel_coords", "voxel_num_points")]
    return lambda: encoder.encode(*voxels, batch_size)


def _encoded(voxels: SparseVoxels) -> dict[str, Tensor]:
    """An encoder's result under the published names: what follows the encoder reads one of them."""
    coords = voxels.coords
    values = {"out.pillar_features": voxels.features, "out.voxel_features": voxels.features}
    return values | {"out.voxel_coords": coords, "out.pillar_coords": coords[:, [0, 2, 3]]}


def _leaves(module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    leaves = {f"in.{name}": value for name, value in inputs.items() if value.requires_grad}
    return leaves | {f"param.{name}": value for name, value in module.named_parameters()}


@runs("openpcdet", "map_to_bev")
def run_map_to_bev(case: Case, grads: bool) -> Values:
    """Pillars or voxels on a dense map."""
    config, inputs = case.config, case.tensors("in")
    features = inputs["features"] if "features" in inputs else inputs["pillar_features"]
    coords = inputs["indices"] if "indices" in inputs else inputs["voxel_coords"]
    grid = config["spatial_shape"] if "spatial_shape" in config else config["grid_size"][::-1]
    frames = max(coords[:, 0].tolist(), default=0) + 1  # the published scatter counts them so
    batch_size = config.get("batch_size", frames)
    features.requires_grad_(grads)
    values = {"out.spatial_features": flatten_to_bev(SparseVoxels(features, coords, tuple(grid), batch_size))}
    if grads:
        name = "features" if "features" in inputs else "pillar_features"
        values |= backward(values, case, {f"in.{name}": features})
    return values


@runs("openpcdet", "bev_backbone")
def run_bev_backbone(case: Case, grads: bool) -> Values:
    """A map through a 2-D backbone."""
    node = _described("BACKBONE_2D", openpcdet_backbones.bev_backbone, case.config)
    backbone = load(BEV_BACKBONES.build(node, in_channels=case.config["input_channels"]), case)
    bev = case.tensor("in.spatial_features").requires_grad_(grads)
    uncounted = case.config["NAME"] == "BaseBEVBackbone" and not case.config["model_cfg"].get("UPSAMPLE_STRIDES")
    channels = 0 if uncounted else backbone.out_channels  # that backbone counts those of its deconvolutions alone
    values = {"out.spatial_features_2d": backbone(bev), "out.num_bev_features": channels}
    if grads:
        values |= backward(values, case, _leaves(backbone, {"spatial_features": bev}))
    return values


@runs("openpcdet", "sparse_backbone")
def run_sparse_backbone(case: Case, grads: bool) -> Values:
    """Voxels through a 3-D backbone and onto the map."""
    config = case.config
    grid = tuple(config["grid_size"][::-1])
    node = _described("BACKBONE_3D", openpcdet_backbones.backbone, config, config.get("channel_div", 1))
    backbone = load(BACKBONES.build(node, in_channels=config["input_channels"], grid=grid), case)
    features = case.tensor("in.voxel_features").requires_grad_(grads)
    voxels = backbone(SparseVoxels(features, case.tensor("in.voxel_coords"), grid, config["batch_size"]))
    values = {
        "out.spatial_features": flatten_to_bev(voxels),
        "out.stride": backbone.stride,
        "out.sparse_shape_in": torch.tensor(backbone.in_grid),
    }
    if grads:
        values |= backward(values, case, _leaves(backbone, {"voxel_features": features}))
    return values
