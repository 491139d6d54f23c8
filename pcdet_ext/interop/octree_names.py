"""Our names for the parameters of published octree transformers: OctFormer, and HOTFormerLoc with the same parts."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from pcdet_ext.interop.parameters import first_prefix

BLOCK = {
    "cpe.conv.": "position.conv.",
    "cpe.bn.": "position.norm.",
    "cpe.norm.": "position.norm.",
    "cpe.linear.": "position.linear.",
    "norm1.": "block.mix.norm.",
    "attention.qkv.": "block.mix.module.in_proj_",
    "attention.proj.": "block.mix.module.out_proj.",
    "attention.rpe.rpe_table": "block.mix.module.relative_bias",
    "norm2.": "block.feed.norm.",
    "mlp.fc1.": "block.feed.module.in_proj.",
    "mlp.fc2.": "block.feed.module.out_proj.",
    "gamma1": "block.mix.scale",
    "gamma2": "block.feed.scale",
}


def block_name(name: str) -> str:
    """Our name for a published parameter of a block."""
    return first_prefix(BLOCK, name)


def conv_name(name: str) -> str:
    """Our name for a published parameter of a convolution with a norm."""
    return first_prefix({"bn.": "norm.", "deconv.": "conv."}, name)


def stem_name(name: str) -> str:
    """Our name for a published parameter of the stem."""
    if found := re.match(r"(convs|downsamples)\.(\d+)\.", name):
        ours = "convs" if found[1] == "convs" else "halve"
        return f"{ours}.{found[2]}.{conv_name(name[found.end() :])}"
    return f"last.{conv_name(name.removeprefix('proj.'))}" if name.startswith("proj.") else name


def stages_name(name: str, blocks: str, halve: str) -> str:
    """Our name for a published parameter of a stem and stages.

    Args:
        name: the published one.
        blocks: what the system calls its stages.
        halve: what it calls the convolutions between them.
    """
    if name.startswith("patch_embed."):
        return f"stem.{stem_name(name.removeprefix('patch_embed.'))}"
    if found := re.match(rf"{blocks}\.(\d+)\.blocks\.(\d+)\.", name):
        return f"blocks.{found[1]}.{found[2]}.{block_name(name[found.end() :])}"
    if found := re.match(rf"{halve}\.(\d+)\.", name):
        return f"halve.{found[1]}.{conv_name(name[found.end() :])}"
    return name


def our_value(key: str, value: Tensor, shape: torch.Size) -> Tensor:
    """Counters that a file has as one number in a list are numbers; all else is as it is.

    Args:
        key: our name.
        value: the published tensor.
        shape: ours, which a `Convert` is given.
    """
    return value.reshape(()) if key.endswith("num_batches_tracked") and value.numel() == 1 else value
