"""UniLION's published parameter names in the words of this library."""

from __future__ import annotations

import re

from pcdet_ext.interop.lion_names import block_name, layer_name, merge_name
from pcdet_ext.interop.parameters import first_prefix

BEV_PREFIXES = {"bev_backbone.": "", "pts_neck.": ""}


def backbone_name(name: str) -> str:
    """Our name for a parameter of a published 3-D backbone."""
    part, _, rest = name.partition(".")
    if part in ("input_merge", "dow0"):
        return f"inputs.{int(part == 'dow0')}.{merge_name(rest)}"
    if part == "layer_out":
        return f"out_layer.{layer_name(rest)}"
    if found := re.fullmatch(r"block(\d+)", part):
        return f"stages.{int(found[1]) - 1}.block.{block_name(rest)}"
    if found := re.fullmatch(r"dow(\d+)", part):
        return f"stages.{int(found[1]) - 1}.merge.{merge_name(rest)}"
    return name


def bev_name(name: str) -> str:
    """Our name for a parameter of a published map backbone or its neck, with the prefix of one or the other."""
    return first_prefix(BEV_PREFIXES, name).replace(".downsample.", ".downsample_layer.")


def temporal_name(name: str) -> str:
    """Our name for the parameter of what passes memory on."""
    return name.replace("temporal_fuser.0.", "fuser.")
