"""FlatFormer (mit-han-lab/flatformer, on mmdetection3d 0.15): its configurations and checkpoints in this library.

Published heads predict boxes (x, y, z, w, l, h, yaw) whose yaw turns clockwise from the negative y axis. Their last
convolutions are converted so that the same detector gives the boxes of this library; see `_HEAD_OUTPUTS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Size, Tensor, nn

from pcdet_ext.config import suggest
from pcdet_ext.interop.parameters import first_prefix, load_renamed
from pcdet_ext.interop.settings import given, skip
from pcdet_ext.models.backbones.flatformer import FlatFormer, transformer_layer
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.models.heads import HEADS, CenterHead
from pcdet_ext.models.layers.mixer_block import MixerBlock

Config = Mapping[str, Any]

BRANCHES = {
    "reg": "center",
    "height": "center_z",
    "dim": "dim",
    "rot": "rot",
    "vel": "vel",
    "iou": "iou",
    "heatmap": "hm",
}
CHANNELS = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}
BRANCH_CHANNELS = 64  # of a branch, whatever the shared convolution has, unless separate_head.head_conv says otherwise
BRANCH_NORM = {"branch_norm_eps": 1e-5, "branch_norm_momentum": 0.1}  # the configured norm is not passed on to them
# What the published model has, for configurations without the section.
TRAIN_CFG: dict[str, Any] = {
    "gaussian_overlap": 0.1,
    "min_radius": 1,
    "code_weights": [1.0] * 8 + [0.0, 0.0],
    "iou_weight": 1.0,
}
TEST_CFG: dict[str, Any] = {"iou_pow": 2.0}
# What the published classes have where a section does not say it.
MIDDLE_ENCODER: dict[str, Any] = {
    "in_channels": 128,
    "num_heads": 8,
    "num_blocks": 2,
    "activation": "gelu",
    "window_shape": (9, 9, 1),
    "sparse_shape": (468, 468, 1),
    "pos_temperature": 10000,
    "normalize_pos": False,
    "group_size": 69,
}
NORM: dict[str, Any] = {"eps": 1e-3, "momentum": 0.01}
HEAD_NORM: dict[str, Any] = {"eps": 1e-5, "momentum": 0.1}
BOX_LOSS: dict[str, Any] = {"loss_weight": 0.25}
NMS = {"nms_thr": "iou_threshold", "pre_max_size": "max_before", "post_max_size": "max_after"}


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """A FlatFormer module with its parameters, in eval mode.

    config: of a detector (sections voxel_encoder, middle_encoder, backbone, neck, bbox_head, as they stand in a
    configuration or under its key "model") gives a `VoxelDetector`; of the backbone alone ("FlatFormer") or of one
    block ("BasicBlock", in key `module` or `type`) a `FlatFormer`; of a layer ("BasicLayer") a `MixerBlock`; with
    the key `head` a `CenterHead`. drop_first_voxel (default True, as published): whether each frame loses a pillar.
    state_dict: parameters, or a checkpoint with them under "state_dict".
    Raises ValueError for what this library does not have or that does not fit.
    """
    module, rename = build(config)
    if state_dict is not None:
        load_official(module, state_dict.get("state_dict", state_dict), rename)
    return module.eval()


def build(config: Config) -> tuple[nn.Module, Callable[[str], str]]:
    """The untrained module, and how its published parameter names become ours."""
    if "model" in config:
        return build(given(config["model"], **{k: config[k] for k in ("drop_first_voxel",) if k in config}))
    if "voxel_encoder" in config:
        return detector(config), detector_name
    if "head" in config:
        sections = (config.get("train_cfg", {}), config.get("test_cfg", {}))
        return _alone(head(config["head"], *sections), config["head"], config.get("train_cfg", {})), head_name
    kind = config.get("module", config.get("type", "FlatFormer"))
    if kind == "FlatFormer":
        return _backbone(config), backbone_name
    if kind == "BasicBlock":
        return _backbone(config, num_blocks=1), lambda name: backbone_name(f"block_list.0.{name}")
    if kind == "BasicLayer":
        return layer(config), layer_name
    known = ("FlatFormer", "BasicBlock", "BasicLayer")
    raise ValueError(f"module: {kind!r} is not in this library{suggest(str(kind), known)}")


def backbone(config: Config) -> dict[str, Any]:
    """The configuration of a `FlatFormer` from a middle_encoder section."""
    config = given(config, **MIDDLE_ENCODER)
    (wx, wy, _), (nx, ny, _) = _sizes(config, "window_shape"), _sizes(config, "sparse_shape")
    if tuple(config.get("output_shape", (ny, nx))) != (ny, nx):
        raise ValueError(f"output_shape {config['output_shape']} must be sparse_shape's (ny, nx) {(ny, nx)}")
    return {
        "name": "FlatFormer",
        "num_blocks": _of(config, "num_blocks"),
        "window": [None, wy, wx],  # the published orders do not look at z
        "group_size": _of(config, "group_size"),
        "num_heads": _of(config, "num_heads"),
        "activation": _of(config, "activation"),
        "temperature": float(_of(config, "pos_temperature")),
        "normalize_position": bool(_of(config, "normalize_pos")),
    }


def grid(config: Config) -> tuple[int, int, int]:
    """(Z, Y, X) cells of a middle_encoder section."""
    nx, ny, nz = _sizes(given(config, **MIDDLE_ENCODER), "sparse_shape")
    return nz, ny, nx


def _backbone(config: Config, **changed: int) -> FlatFormer:
    node = backbone(given(config, **changed)) | changed
    del node["name"]
    return FlatFormer(given(config, **MIDDLE_ENCODER)["in_channels"], grid(config), **node)


def layer(config: Config) -> MixerBlock:
    """One layer, for rows whose groups are given."""
    mixer = {"name": "SoftmaxAttention", "num_heads": _of(config, "num_heads")}
    return transformer_layer(
        _of(config, "in_channels"), mixer, activation=given(config, **MIDDLE_ENCODER)["activation"]
    )


def detector(config: Config) -> VoxelDetector:
    """The untrained detector that the sections of a published model describe.

    Raises ValueError for components and settings that this library does not have.
    """
    encoder, bbox_head = _of(config, "voxel_encoder"), _of(config, "bbox_head")
    geometry = {name: _of(config if name in config else encoder, name) for name in ("point_cloud_range", "voxel_size")}
    built = VoxelDetector(
        classes=classes(bbox_head),
        num_point_features=_of(encoder, "in_channels"),
        **geometry,
        encoder=vfe(encoder, config.get("drop_first_voxel", True)),
        backbone=backbone(_of(config, "middle_encoder")),
        bev_backbone=bev_backbone(_of(config, "backbone"), _of(config, "neck")),
        head=head(bbox_head, config.get("train_cfg", {}), config.get("test_cfg", {})),
    )
    if built.encoder.grid != grid(config["middle_encoder"]):
        raise ValueError(
            f"sparse_shape {list(grid(config['middle_encoder'])[::-1])} does not fit range and voxel size, "
            f"which make {list(built.encoder.grid[::-1])} cells"
        )
    published = bbox_head["bbox_coder"]["out_size_factor"]
    if built.stride != published:
        raise ValueError(f"out_size_factor: the head is set to a stride of {published}, but its map has {built.stride}")
    return built


def vfe(config: Config, drop_first: bool) -> dict[str, Any]:
    """The configuration of a `DynamicPillarVFE` from a voxel_encoder section (DynamicVFE)."""
    for name in ("with_cluster_center", "with_voxel_center"):
        if not config.get(name, False):
            raise ValueError(f"{name} False is not known here")
    _check_norm(config, "voxel_encoder")
    *inner, last = _of(config, "feat_channels")
    return {
        "name": "DynamicPillarVFE",
        "num_filters": [2 * width for width in inner] + [last],  # ours count what a layer passes on
        "with_distance": config.get("with_distance", False),
        "clamp": True,
        "drop_first": drop_first,
    }


def bev_backbone(second: Config, neck: Config) -> dict[str, Any]:
    """The configuration of a `SECONDFPN` from the sections backbone (SECOND) and neck (SECONDFPN)."""
    _check_norm(second, "backbone")
    _check_norm(neck, "neck")
    return {
        "name": "SECONDFPN",
        "layer_nums": _of(second, "layer_nums"),
        "layer_strides": _of(second, "layer_strides"),
        "num_filters": _of(second, "out_channels"),
        "upsample_strides": _of(neck, "upsample_strides"),
        "num_upsample_filters": _of(neck, "out_channels"),
        "use_conv_for_no_stride": neck.get("use_conv_for_no_stride", False),
        "residual": second.get("residual", False),
    }


def classes(config: Config) -> list[str]:
    """Class names of a bbox_head section, in the order of their labels."""
    return [name for task in _of(config, "tasks") for name in task["class_names"]]


def head(config: Config, train_cfg: Config, test_cfg: Config) -> dict[str, Any]:
    """The configuration of a `CenterHead` from published sections.

    Args:
        config: bbox_head of the model.
        train_cfg: its train_cfg.
        test_cfg: its test_cfg.

    Raises:
        ValueError: a setting is not known here.
    """
    train, test, coder = given(train_cfg, **TRAIN_CFG), given(test_cfg, **TEST_CFG), _of(config, "bbox_coder")
    _check_head(config, coder, test)
    branches, norm = _of(config, "common_heads"), given(config.get("norm_cfg", {}), **HEAD_NORM)
    weights = train["code_weights"]
    node = {
        "name": "CenterHead",
        "tasks": [list(task["class_names"]) for task in config["tasks"]],
        "branches": {BRANCHES[name]: convs for name, (_, convs) in branches.items()},
        "heatmap_convs": config.get("num_heatmap_convs", 2),
        "shared_channels": config.get("share_conv_channel", 64),
        "norm_eps": norm["eps"],
        "norm_momentum": norm["momentum"],
        "branch_channels": config.get("separate_head", {}).get("head_conv", BRANCH_CHANNELS),
        "gaussian_overlap": train["gaussian_overlap"],
        "min_radius": train["min_radius"],
        "outside": "skip",
        "class_weight": config.get("loss_cls", {}).get("loss_weight", 1.0),
        "box_weight": config.get("loss_bbox", BOX_LOSS).get("loss_weight", 1.0),
        "code_weights": [*weights[:3], weights[4], weights[3], *weights[5 : 10 if "vel" in branches else 8]],
        "score_threshold": max(score_threshold(coder), test.get("score_threshold", 0.0)),
        "max_candidates": coder.get("max_num", 100),
        "center_range": coder["post_center_range"],
        "nms": {"per_class": True} | {ours: test[name] for name, ours in NMS.items() if name in test},
    }
    if "iou" in branches:
        # Ours predicts 2 IoU - 1, whose distance is twice that of the IoU.
        node |= {"iou_weight": train["iou_weight"] / 2, "iou_power": test["iou_pow"], "iou_of_tops": True}
    else:
        skip(train, "iou_weight")
        skip(test, "iou_pow")
    if coder["voxel_size"][0] != coder["voxel_size"][1]:
        node["width_along_x"] = True
    return node | BRANCH_NORM


def score_threshold(coder: Config) -> float:
    """What scores of decoded boxes must exceed, from a bbox_coder section; without a limit, or with 0, all pass."""
    return coder.get("score_threshold") or -1.0  # which no score is below


def _alone(node: dict[str, Any], config: Config, train_cfg: Config) -> CenterHead:
    """A head without a detector around it; only x and y of the geometry matter."""
    coder = config["bbox_coder"]
    low, size = coder["pc_range"], coder["voxel_size"]
    cells = train_cfg.get("grid_size", [1, 1])
    high = [a + n * s for a, n, s in zip(low[:2], cells, size, strict=False)]
    return HEADS.build(
        node,
        in_channels=_of(config, "in_channels"),
        classes=classes(config),
        point_cloud_range=[*low[:2], 0.0, *high, 1.0],
        voxel_size=[*size[:2], 1.0],
        stride=coder["out_size_factor"],
    )


def _check_head(config: Config, coder: Config, test: Config) -> None:
    """Settings that would mean another head."""
    for name, (channels, _) in config["common_heads"].items():
        if CHANNELS.get(name) != channels:
            raise ValueError(f"common_heads.{name}: {channels} channels, known: {CHANNELS}")
    if not config.get("norm_bbox", True):
        raise ValueError("norm_bbox False: sizes are always logarithms here")
    if config.get("separate_head", {}).get("final_kernel", 3) != 3:
        raise ValueError(f"final_kernel must be 3, got {config['separate_head']['final_kernel']}")
    if test.get("nms_type", "rotate") != "rotate":
        raise ValueError(f"nms_type {test['nms_type']!r} is not known here; known: 'rotate'")
    inner, outer = coder["post_center_range"], test.get("post_center_limit_range", coder["post_center_range"])
    if any(a < b for a, b in zip(inner[:3], outer[:3], strict=True)) or any(
        a > b for a, b in zip(inner[3:], outer[3:], strict=True)
    ):
        raise ValueError(f"post_center_limit_range {list(outer)} must contain post_center_range {list(inner)}")


def _check_norm(config: Config, section: str) -> None:
    norm = config.get("norm_cfg", NORM)
    if (norm.get("eps"), norm.get("momentum")) != (1e-3, 0.01):
        raise ValueError(f"{section}.norm_cfg: eps and momentum must be 0.001 and 0.01, got {dict(norm)}")


def _of(config: Config, name: str) -> Any:
    if name not in config:
        raise ValueError(f"the configuration needs {name!r}, it has {', '.join(map(str, config))}")
    return config[name]


def _sizes(config: Config, name: str) -> tuple[int, int, int]:
    sizes = tuple(_of(config, name))
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"{name} must be three positive sizes (x, y, z), got {list(sizes)}")
    return sizes


PREFIXES = {
    r"voxel_encoder\.vfe_layers": "encoder.pfn_layers",
    r"middle_encoder": "backbone",
    r"backbone|neck": "bev_backbone",
    r"bbox_head": "head",
}


def detector_name(name: str) -> str:
    """Our name for a published parameter of a whole detector."""
    for pattern, ours in PREFIXES.items():
        if found := re.match(rf"({pattern})\.", name):
            return f"{ours}.{INSIDE.get(ours, str)(name[found.end() :])}"
    return name


LAYER = {
    "attn.attn.": "mix.module.",
    "norm1.": "mix.norm.",
    "fc1.": "feed.module.in_proj.",
    "fc2.": "feed.module.out_proj.",
    "norm2.": "feed.norm.",
}


def layer_name(name: str) -> str:
    """Our name for a published parameter of a layer."""
    return first_prefix(LAYER, name)


def backbone_name(name: str) -> str:
    """Our name for a published parameter of the backbone."""
    if found := re.match(r"block_list\.(\d+)\.block\.(\d+)\.", name):
        return f"blocks.{found[1]}.{found[2]}.{layer_name(name[found.end() :])}"
    return name


def head_name(name: str) -> str:
    """Our name for a published parameter of the head."""
    name = name.replace(".conv.", ".0.").replace(".bn.", ".1.")
    if found := re.match(r"task_heads\.(\d+)\.([a-z]+)\.", name):
        task, branch = found.groups()
        return f"heads_list.{task}.{BRANCHES.get(branch, branch)}.{name[found.end() :]}"
    return name


INSIDE: dict[str, Callable[[str], str]] = {"backbone": backbone_name, "head": head_name}

# Published (w, l, h) is our (dy, dx, dz); (sin, cos) of the yaw is minus our (cos, sin) of the heading -(yaw + π/2); an
# expected overlap is 2 IoU - 1 here.
_HEAD_OUTPUTS: dict[str, Callable[[Tensor, bool], Tensor]] = {
    "dim": lambda t, bias: t[[1, 0, 2]],
    "rot": lambda t, bias: -t,
    "iou": lambda t, bias: 2 * t - 1 if bias else 2 * t,
}


def our_value(key: str, value: Tensor) -> Tensor:
    """The value of a parameter under our name, those of a head's last convolutions converted; differentiable."""
    found = re.search(r"heads_list\.\d+\.(\w+)\.\d+\.(weight|bias)$", key)
    if found and found.group(1) in _HEAD_OUTPUTS:
        return _HEAD_OUTPUTS[found.group(1)](value, found.group(2) == "bias")
    return value


def load_official(module: nn.Module, state_dict: Mapping[str, Tensor], rename: Callable[[str], str]) -> None:
    """Load a published state dict, every entry of it.

    Args:
        module: which gets the parameters.
        state_dict: published tensors by name.
        rename: our name for a published one.

    Raises:
        ValueError: entries are missing, have no place or another shape; the message names them.
    """

    def convert(key: str, value: Tensor, shape: Size) -> Tensor:
        return our_value(key, value) if value.shape == shape else value

    load_renamed(module, state_dict, rename, convert)
