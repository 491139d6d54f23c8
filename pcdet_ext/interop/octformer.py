"""OctFormer (github.com/octree-nn/octformer): its configurations and checkpoints in this library."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from pcdet_ext.interop import octformer_detection
from pcdet_ext.interop.octree_names import block_name, conv_name, our_value, stages_name
from pcdet_ext.interop.parameters import first_prefix, load_renamed
from pcdet_ext.interop.settings import skip
from pcdet_ext.models.backbones.octformer import OctFormerStages
from pcdet_ext.models.heads.octree import OctreeClassificationHead, OctreeSegmentationHead
from pcdet_ext.models.layers.octree_block import OctreeBlock, OctreeOptions
from pcdet_ext.models.networks.octformer import OctreeClassifier, OctreeSegmenter
from pcdet_ext.models.networks.octree_input import OctreeInput

Config = Mapping[str, Any]
FULL_DEPTH, DROP_PATH = 2, 0.5  # published defaults
CHANNELS = {"N": 3, "D": 1, "L": 3, "P": 3, "F": 3}  # of each letter of the input feature; F: colours


def from_official(config: Config, state_dict: Mapping[str, Any] | None = None) -> nn.Module:
    """A published OctFormer with its parameters, in eval mode.

    Args:
        config: of a detector, with `head`, see `octformer_detection`. Of a network, `octree` (depth, full_depth),
            `feature` and `model`, or the same settings side by side; with head_up it is an `OctreeSegmenter`, otherwise
            an `OctreeClassifier`, and without out_channels its stages alone. Of a block: `block` and `octree_t`.
        state_dict: parameters, or a checkpoint with them under "model_state_dict" or "model".

    Windows straddle clouds and coordinates of +1 wrap, as published.

    Raises:
        ValueError: for what this library does not have, or that does not fit.
    """
    if "head" in config:
        return octformer_detection.from_official(config, state_dict)
    module, rename = build(config)
    if state_dict is not None:
        load_official(module, state_dict, rename)
    return module.eval()


def load_official(module: nn.Module, state_dict: Mapping[str, Any], rename: Callable[[str], str]) -> None:
    """Load published parameters, or a checkpoint that holds them.

    Args:
        module: which gets the parameters.
        state_dict: published tensors by name, or a mapping with these under "model_state_dict" or "model".
        rename: our name for a published one.

    Raises:
        ValueError: entries are missing, have no place or another shape; the message names them.
    """
    for key in ("model_state_dict", "model"):
        if isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    load_renamed(module, state_dict, rename, our_value)


def build(config: Config) -> tuple[nn.Module, Callable[[str], str]]:
    """The untrained module, and how its published parameter names become ours."""
    if "block" in config:
        return _block(config), block_name
    if "out_channels" not in config.get("model", config):
        skip(config, "octree", "octree_depth", "full_depth", "voxel_size", "scale_factor", "head_shapes")
        return _stages(config, config.get("model", config)), lambda name: backbone_name(name.removeprefix("backbone."))
    return _network(config), network_name


def _block(config: Config) -> OctreeBlock:
    block, octree = config["block"], config["octree_t"]
    skip(config, "octree", "depth")
    options = OctreeOptions(
        block["patch_size"],
        octree["dilation"],
        block.get("mlp_ratio", 4.0),
        nempty=block["nempty"],
        straddle=True,
        position=_position(block),
    )
    if octree["patch_size"] != block["patch_size"]:
        raise ValueError(f"octree_t.patch_size is {octree['patch_size']}, block.patch_size {block['patch_size']}")
    return OctreeBlock(block["dim"], block["num_heads"], options, block["dilation"])


def _network(config: Config) -> nn.Module:
    model = config.get("model", config)
    stages = _stages(config, model)
    classes, drop = model["out_channels"], model["head_drop"]
    if "head_up" not in model:
        head = OctreeClassificationHead(stages.channels[-1], classes, stages.options, drop)
        return OctreeClassifier(_input(config), stages, head)
    width, up = model["fpn_channel"], model["head_up"]
    return OctreeSegmenter(
        _input(config),
        stages,
        OctreeSegmentationHead(stages.channels, classes, width, up, drop, stages.options, wrap=True),
    )


def _stages(config: Config, model: Config) -> OctFormerStages:
    options = OctreeOptions(
        model["patch_size"],
        model["dilation"],
        nempty=model["nempty"],
        straddle=True,
        position=_position(model),
    )
    given = model.get("in_channels")
    channels = sum(CHANNELS[letter] for letter in _features(config))
    if given is not None and given != channels and "F" not in _features(config):
        raise ValueError(f"in_channels is {given}, but the input feature {_features(config)} has {channels}")
    return OctFormerStages(
        channels if given is None else given,
        model["channels"],
        model["num_blocks"],
        model["num_heads"],
        model["stem_down"],
        model.get("drop_path", DROP_PATH),
        options,
    )


def _position(config: Config) -> Literal["depth-wise", "groups"]:
    return "depth-wise" if config.get("use_dwconv", True) else "groups"


def _features(config: Config) -> str:
    """Letters of the input feature, of which a note may stand behind: "NDFP (10 channels)"."""
    given = str(config["feature"] if "feature" in config else config["input_feature"]).split(maxsplit=1)
    letters = given[0].upper() if given else ""
    if not letters or set(letters) - set(CHANNELS):
        raise ValueError(f"the input feature must be letters of {''.join(CHANNELS)}, got {letters!r}")
    return "".join(dict.fromkeys(letters))


def _input(config: Config) -> OctreeInput:
    octree = config.get("octree", config)
    depth = octree["depth"] if "depth" in octree else octree["octree_depth"]
    return OctreeInput(depth, octree.get("full_depth", FULL_DEPTH), _features(config), wrap=True)


SEGMENTATION = {"conv1x1.": "pyramid.lateral.", "conv3x3.": "pyramid.convs.", "up_conv.": "up."}
CLASSIFICATION = {"cls_header.0.fc.": "hidden.", "cls_header.0.bn.": "norm.", "cls_header.2.": "last."}


def backbone_name(name: str) -> str:
    """Our name for a published parameter of the backbone."""
    return stages_name(name, "layers", "downsamples")


def head_name(name: str) -> str:
    """Our name for a published parameter of a head."""
    if found := re.match(r"(conv3x3|up_conv)\.(\d+)\.", name):
        return f"{SEGMENTATION[found[1] + '.']}{found[2]}.{conv_name(name[found.end() :])}"
    return first_prefix(SEGMENTATION | CLASSIFICATION, name)


def network_name(name: str) -> str:
    """Our name for a published parameter of a network."""
    part, _, rest = name.partition(".")
    return (
        f"stages.{backbone_name(rest)}" if part == "backbone" else f"head.{head_name(rest)}" if part == "head" else name
    )
