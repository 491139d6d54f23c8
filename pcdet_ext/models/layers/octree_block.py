"""What octree transformers are built from: convolutions with norms, the stem, position encoding and blocks.

OctFormer (Wang, SIGGRAPH 2023) normalizes with batch norms, HOTFormerLoc (Griffiths et al., CVPR 2025) with layer
norms; otherwise they share these parts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pcdet_ext.grouping.octree import Octree
from pcdet_ext.mixers.attention import SoftmaxAttention
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.norm import SparseBatchNorm
from pcdet_ext.models.layers.octree import OctreeConv, OctreeDeconv, OctreeDWConv
from pcdet_ext.structures import Groups

POSITION_GROUPS = 8  # of a position encoding by a grouped convolution


@dataclass(frozen=True)
class OctreeOptions:
    """What the blocks of an octree transformer have in common.

    Args:
        group_size: nodes of an attention window.
        dilation: distance in the sequence between two nodes of a dilated window.
        mlp_ratio: inner width of the feed-forward parts per channel.
        norm: after convolutions, "batch" (OctFormer) or "layer" (HOTFormerLoc).
        nempty: features have a row for each occupied node; False: for every node.
        straddle: cut windows from the joined sequence of all clouds, as published, so that a window may hold the end of
            one cloud and the start of the next, and what is found in a cloud depends on those beside it.
        relative_position: whether attention has a bias of relative positions.
        position: what encodes positions: a "depth-wise" convolution, a "full" one and a linear layer, or 8 "groups" of
            channels with a convolution each.
        layer_scale: start value of learnt factors of each branch, or None.

    Raises:
        ValueError: for sizes that are not positive, and an unknown norm.
    """

    group_size: int = 32
    dilation: int = 4
    mlp_ratio: float = 4.0
    norm: Literal["batch", "layer"] = "batch"
    nempty: bool = True
    straddle: bool = False
    relative_position: bool = True
    position: Literal["depth-wise", "full", "groups"] = "depth-wise"
    layer_scale: float | None = None

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.dilation < 1 or self.mlp_ratio <= 0:
            raise ValueError(
                f"group_size, dilation and mlp_ratio must be positive, got {self.group_size}, {self.dilation} and "
                f"{self.mlp_ratio}"
            )
        if self.norm not in ("batch", "layer"):
            raise ValueError(f"norm must be batch or layer, got {self.norm!r}")
        if self.position not in ("depth-wise", "full", "groups"):
            raise ValueError(f"position must be depth-wise, full or groups, got {self.position!r}")

    def make_norm(self, channels: int) -> nn.Module:
        """The norm after a convolution."""
        if self.norm == "layer":
            return nn.LayerNorm(channels)
        return SparseBatchNorm(channels, eps=1e-5, momentum=0.1)

    def windows(self, octree: Octree, depth: int, dilation: int) -> Groups:
        """The windows of a depth. Published ones are filled up as if all were dilated.

        Args:
            octree: whose nodes are grouped.
            depth: of the nodes.
            dilation: distance along the order between the nodes of a window.
        """
        padding = self.group_size * self.dilation if self.straddle else None
        return octree.windows(depth, self.group_size, dilation, self.nempty, self.straddle, padding)


class ConvNorm(nn.Module):
    """A convolution of an octree, a norm and, by default, a ReLU.

    Args:
        conv: the convolution.
        norm: a norm over its output channels.
        relu: whether a ReLU follows.
    """

    def __init__(self, conv: OctreeConv | OctreeDeconv, norm: nn.Module, relu: bool = True) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = conv, norm, relu

    def forward(self, x: Tensor, octree: Octree, depth: int) -> Tensor:
        """Apply the convolution, the norm and the ReLU.

        Args:
            x: floating-point [N, C], rows of the nodes of `depth`.
            octree: whose nodes they are.
            depth: of the input.

        Returns:
            Rows of the depth that the convolution leads to.
        """
        x = self.norm(self.conv(x, octree, depth))
        return torch.relu(x) if self.relu else x


def conv_norm_relu(channels: int, out_channels: int, options: OctreeOptions, stride: int = 1) -> ConvNorm:
    """A convolution of 3³ cells, or with stride 2 of the 2³ children of a node, without bias; norm and ReLU.

    Args:
        channels: of the input.
        out_channels: of the output.
        options: of the octree network.
        stride: 1, or 2 to go one depth up.
    """
    kernel = "333" if stride == 1 else "222"
    conv = OctreeConv(channels, out_channels, kernel, stride, options.nempty)
    return ConvNorm(conv, options.make_norm(out_channels))


def halving(channels: int, out_channels: int, options: OctreeOptions) -> ConvNorm:
    """One depth up between two stages: a convolution of the 2³ children with bias, and a norm.

    Args:
        channels: of the input.
        out_channels: of the output.
        options: of the octree network.
    """
    conv = OctreeConv(channels, out_channels, "222", 2, options.nempty, bias=True)
    return ConvNorm(conv, options.make_norm(out_channels), relu=False)


class OctreeStem(nn.Module):
    """From leaf features to the first stage.

    Args:
        in_channels: of the leaves.
        channels: of the first stage; must be divisible by 2^halvings where it halves.
        halvings: convolutions of 3³ cells, each followed by one of 2³ children that leads one depth up.
        options: of the network.
        halve: False for the convolutions of 3³ cells alone, all at the depth of the leaves.

    Raises:
        ValueError: for sizes that do not fit.
    """

    def __init__(
        self, in_channels: int, channels: int, halvings: int, options: OctreeOptions, halve: bool = True
    ) -> None:
        super().__init__()
        if in_channels < 1 or halvings < 1 or channels < 1:
            raise ValueError(
                f"in_channels, channels and stem_down must be positive: {in_channels}, {channels}, {halvings}"
            )
        if halve and channels % 2**halvings:
            raise ValueError(f"the first stage's {channels} channels must be divisible by 2^stem_down = {2**halvings}")
        self.halvings = halvings if halve else 0
        widths = [channels // 2 ** (halvings - i) if halve else channels for i in range(halvings + 1)]
        self.convs = ModuleListOf(
            conv_norm_relu(widths[i] if i else in_channels, widths[i], options) for i in range(halvings)
        )
        self.halve, self.last = ModuleListOf[ConvNorm](), None
        if halve:
            self.halve = ModuleListOf(conv_norm_relu(a, b, options, stride=2) for a, b in itertools.pairwise(widths))
            self.last = conv_norm_relu(channels, channels, options)

    def forward(self, x: Tensor, octree: Octree, depth: int) -> Tensor:
        """Features of the leaves to features of the first stage.

        Args:
            x: floating-point [N, in_channels], rows of the nodes of `depth`.
            octree: whose nodes they are.
            depth: of the input.

        Returns:
            [M, channels], rows of depth - halvings.
        """
        if self.last is None:
            for conv in self.convs:
                x = conv(x, octree, depth)
            return x
        for conv, halve in zip(self.convs, self.halve, strict=True):
            x = halve(conv(x, octree, depth), octree, depth)
            depth -= 1
        return self.last(x, octree, depth)


class GroupedConv(nn.Module):
    """Convolutions of 3³ cells, each on an equal share of the channels.

    Args:
        channels: of the input and the output.
        groups: number of shares.
        nempty: whether there are rows of occupied nodes only.

    Raises:
        ValueError: the channels cannot be shared out equally.
    """

    def __init__(self, channels: int, groups: int, nempty: bool) -> None:
        super().__init__()
        if channels % groups:
            raise ValueError(f"{channels} channels cannot be shared out among {groups} groups")
        width = channels // groups
        self.convs = ModuleListOf(OctreeConv(width, width, nempty=nempty) for _ in range(groups))

    def forward(self, x: Tensor, octree: Octree, depth: int) -> Tensor:
        """Convolve each share of the channels.

        Args:
            x: floating-point [N, channels], rows of the nodes of `depth`.
            octree: whose nodes they are.
            depth: of the input.

        Returns:
            [N, channels].
        """
        parts = zip(self.convs, x.chunk(len(self.convs), 1), strict=True)
        return torch.cat([conv(part.contiguous(), octree, depth) for conv, part in parts], 1)


class OctreePosition(nn.Module):
    """Conditional position encoding: a convolution tells each node where it is among its neighbours, then a norm."""

    def __init__(self, channels: int, options: OctreeOptions) -> None:
        super().__init__()
        self.linear = None
        self.conv: OctreeConv | OctreeDWConv | GroupedConv
        if options.position == "full":
            self.conv = OctreeConv(channels, channels, nempty=options.nempty, bias=True)
            self.linear = nn.Linear(channels, channels)
        elif options.position == "groups":
            self.conv = GroupedConv(channels, POSITION_GROUPS, options.nempty)
        else:
            self.conv = OctreeDWConv(channels, options.nempty)
        self.norm = options.make_norm(channels)

    def forward(self, x: Tensor, octree: Octree, depth: int) -> Tensor:
        """Encode where nodes are, by a convolution of their features.

        Args:
            x: floating-point [N, channels], rows of the nodes of `depth`.
            octree: whose nodes they are.
            depth: of the input.

        Returns:
            The encoding [N, channels].
        """
        x = self.conv(x, octree, depth)
        return self.norm(x if self.linear is None else self.linear(x))


class OctreeBlock(nn.Module):
    """x + position(x), then attention inside windows and a feed-forward part, each behind a layer norm.

    Args:
        channels: C.
        num_heads: of the attention.
        options: of the network.
        dilation: of this block's windows.
        drop_path: share of the clouds that skip a branch in training.
    """

    def __init__(
        self, channels: int, num_heads: int, options: OctreeOptions, dilation: int = 1, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.options, self.dilation = options, dilation
        self.position = OctreePosition(channels, options)
        self.block = attention_block(channels, num_heads, options, dilation, drop_path, options.relative_position)

    def forward(self, x: Tensor, octree: Octree, depth: int) -> Tensor:
        """Add the position, then attend inside the windows.

        Args:
            x: floating-point [N, C], rows of the nodes of `depth`.
            octree: whose nodes they are.
            depth: of the input.

        Returns:
            [N, C].
        """
        x = x + self.position(x, octree, depth)
        return self.block(x, self.options.windows(octree, depth, self.dilation))


def attention_block(
    channels: int, num_heads: int, options: OctreeOptions, dilation: int, drop_path: float, relative_position: bool
) -> MixerBlock:
    """Attention and a feed-forward part as `OctreeBlock` has them.

    Args:
        channels: of the features.
        num_heads: of the attention.
        options: of the octree network.
        dilation: distance along the order between the nodes of a window.
        drop_path: stochastic depth.
        relative_position: whether the attention has a bias for the offset between two nodes.
    """
    mixer = {
        "name": "OctreeAttention",
        "num_heads": num_heads,
        "group_size": options.group_size,
        "dilation": dilation,
        "relative_position": relative_position,
    }
    feed_forward = {"name": "MLP", "ffn_channels": int(options.mlp_ratio * channels)}
    return MixerBlock(
        channels,
        mixer,
        feed_forward,
        layer_scale=options.layer_scale,
        drop_path=drop_path,
        drop_per="owner",
    )


def drop_rates(drop_path: float, num_blocks: int) -> list[float]:
    """Rates of stochastic depth that rise linearly from 0 to `drop_path` over all blocks."""
    return [drop_path * i / max(num_blocks - 1, 1) for i in range(num_blocks)]


def init_linear(module: nn.Module, std: float = 0.02) -> None:
    """Initialise every linear layer as the published models: truncated normal weights, zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, SoftmaxAttention):
            nn.init.trunc_normal_(part.in_proj_weight, std=std)
