"""UniLION (happinesslz/UniLION), LiDAR and LiDAR over time, and its parts, with their parameters in this library.

The branch of images is not here; its parameters in checkpoints are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pcdet_ext.interop import lion, unilion_detection, unilion_heads, unilion_model, unilion_names, unilion_parts
from pcdet_ext.interop.openpcdet_settings import Config, known_name
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.models.temporal import TEMPORAL

Rename = Callable[[str], str]
COUNTER = "num_batches_tracked"
IMAGES = ("img_backbone.", "img_neck.", "img_map2bev.")  # what published checkpoints have beside: see the module


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """UniLION or a part of it with its parameters, in eval mode.

    Args:
        config: the model, with the `type` "UniLION", or under `model` with constants of the published code beside it;
            or the section of a part, with its `type`; of the map backbone both `bev_backbone` and `pts_neck`; of the
            memory over time `max_seq_time` with `lion_dim`, `pc_range`, `voxel_size` and `grid_size`.
        state_dict: parameters under their published names, without the prefix of the part but those of the map
            backbone and its neck; or a checkpoint with them under "state_dict".

    Raises:
        ValueError: for what this library does not have, or parameters that do not fit.
    """
    state = None if state_dict is None else state_dict.get("state_dict", state_dict)
    try:
        make, rename = _part_of(config)
        module = make(config)
    except KeyError as error:
        raise ValueError(f"the configuration has no {error}") from error
    if state is not None:
        own = {name: value for name, value in state.items() if not name.startswith(IMAGES)}
        module.load_state_dict(official_state(module, own, rename))
    return module.eval()


def official_state(module: nn.Module, state_dict: Mapping[str, Tensor], rename: Rename) -> dict[str, Tensor]:
    """A published state dict in the names and shapes of a module; differentiable.

    The counters of batch norms, which nothing reads, may be missing. Errors are otherwise those of `renamed`.

    Args:
        module: that the state is for.
        state_dict: published parameters by name.
        rename: gives our name for a published one.
    """
    counters = {name: value for name, value in module.state_dict().items() if name.endswith(COUNTER)}
    given = {rename(name) for name in state_dict}
    missing = {name: value for name, value in counters.items() if name not in given}
    names = {name: name for name in missing}
    return lion.official_state(module, {**state_dict, **missing}, lambda name: names.get(name) or rename(name))


def load(detector: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Give a detector the parameters of a published one, every one of them but those of the branch of images.

    Its heads must have the names that `from_official` gives them. Raises ValueError for what does not fit.
    """
    own = {name: value for name, value in state_dict.items() if not name.startswith(IMAGES)}
    detector.load_state_dict(official_state(detector, own, unilion_model.detector_name))


def _part_of(config: Config) -> tuple[Callable[[Config], nn.Module], Rename]:
    if "model" in config:
        return unilion_model.detector_of, unilion_model.detector_name
    if "type" not in config and "bev_backbone" in config:
        return bev_backbone_of, unilion_names.bev_name
    if "type" not in config and "max_seq_time" in config:
        return temporal_of, unilion_names.temporal_name
    if "type" not in config:
        raise ValueError(
            f"the configuration needs 'type', or 'bev_backbone' and 'pts_neck', it has {', '.join(config)}"
        )
    part: tuple[Callable[[Config], nn.Module], Rename] = known_name("type", config["type"], PARTS)
    return part


def encoder_of(config: Config) -> nn.Module:
    """The encoder for a section `pts_voxel_encoder`."""
    geometry = {name: config[name] for name in ("point_cloud_range", "voxel_size")}
    return ENCODERS.build(unilion_parts.encoder(config), in_channels=config["num_point_features"], **geometry)


def backbone_of(config: Config) -> nn.Module:
    """The 3-D backbone for a section `pts_backbone`."""
    grid = tuple(reversed(config["grid_size"]))
    return BACKBONES.build(unilion_parts.backbone(config), in_channels=config["layer_dim"][0], grid=grid)


def bev_backbone_of(config: Config) -> nn.Module:
    """The map backbone for the sections `bev_backbone` and `pts_neck`."""
    section = config["bev_backbone"]
    node = unilion_parts.bev_backbone(section, config["pts_neck"])
    return BEV_BACKBONES.build(node, in_channels=unilion_parts.bev_in_channels(section))


def temporal_of(config: Config) -> nn.Module:
    """What remembers voxels, for `max_seq_time`, `lion_dim`, `pc_range`, `voxel_size` and `grid_size`."""
    geometry = {"point_cloud_range": config["pc_range"], "voxel_size": config["voxel_size"]}
    grid = tuple(reversed(config["grid_size"]))
    return TEMPORAL.build(unilion_parts.temporal(config), channels=config["lion_dim"], grid=grid, **geometry)


def detection_head_of(config: Config) -> nn.Module:
    """The head for a section `det_head`."""
    geometry, classes = unilion_detection.geometry(config), unilion_detection.class_names(config)
    node = unilion_detection.head(config)
    return HEADS.build(node, in_channels=config["in_channels"], classes=classes, **geometry)


def scene_head_of(config: Config) -> nn.Module:
    """The head for a section `occ_head`, `map_head`, `motion_head` or `planning_head`."""
    return HEADS.build(unilion_heads.head(config))


PARTS: dict[str, tuple[Callable[[Config], nn.Module], Rename]] = {
    "DynamicPillarVFE3D": (encoder_of, str),
    "Lion3DBackbone": (backbone_of, unilion_names.backbone_name),
    "TransFusionHead": (detection_head_of, unilion_detection.head_name),
    "TransFusionHeadV2": (detection_head_of, unilion_detection.head_name),
    "UniLION": (unilion_model.detector_of, unilion_model.detector_name),
    **{kind: (scene_head_of, unilion_heads.our_name(kind)) for kind in unilion_heads.NAMES},
}
