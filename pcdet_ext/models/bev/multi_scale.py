"""What the backbones of several levels, brought to one scale, share. State-dict keys are those of OpenPCDet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.enlarging import only_enlarging
from pcdet_ext.models.layers.norm import EPS, MOMENTUM
from pcdet_ext.ops.enlarging_conv import takes_enlarging
from pcdet_ext.structures import is_tracing


def bev_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm of a map, with the published epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


class MultiScale(nn.Module, ABC):
    """Levels one after the other, and their outputs brought to one scale and joined on the channels.

    Subclasses give the block of a level. Attributes: out_channels; stride: input cells per output cell (below 1 where
    the map grows).

    Args:
        in_channels: of the map.
        layer_nums: convolutions of each level beside the first.
        layer_strides: stride of each level.
        num_filters: width of each level.
        upsample_strides: factor by which each level is brought to the common scale (below 1 makes it smaller); none
            where all levels have one scale already.
        num_upsample_filters: width of each level then.
        use_conv_for_no_stride: whether a factor of 1 is a plain instead of a transposed convolution.
        map_size: cells along y and x of the maps that come, where they are known.

    Raises:
        ValueError: the lists do not fit each other, the levels do not end at one scale, or the map size does not divide
            by the strides.
    """

    def __init__(
        self,
        in_channels: int,
        layer_nums: Sequence[int],
        layer_strides: Sequence[int],
        num_filters: Sequence[int],
        upsample_strides: Sequence[float] = (),
        num_upsample_filters: Sequence[int] = (),
        use_conv_for_no_stride: bool = False,
        map_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        _check_lists(layer_nums, layer_strides, num_filters, upsample_strides, num_upsample_filters)
        widths = [in_channels, *num_filters]
        self.blocks = nn.ModuleList(
            self._level(widths[i], widths[i + 1], layer_nums[i], layer_strides[i]) for i in range(len(layer_nums))
        )
        self.deblocks = nn.ModuleList(
            rescale(num_filters[i], num_upsample_filters[i], factor, use_conv_for_no_stride)
            for i, factor in enumerate(upsample_strides)
        )
        self.out_channels = sum(num_upsample_filters or num_filters)
        self.stride = _common_stride(layer_strides, upsample_strides)
        if map_size is not None:
            _check_sizes(map_size, _level_sizes(map_size, layer_strides, upsample_strides))

    @abstractmethod
    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        """The blocks of one level, [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride].

        Raises ValueError where the map's size does not divide by the strides, so that the levels would not match.
        """
        size = tuple(x.shape[2:])
        levels = []
        for block in self.blocks:
            x = block(x)
            levels.append(x)
        joined = self._enlarged_into_one(size, levels)
        if joined is not None:
            return joined
        outputs = levels if not self.deblocks else [up(x) for up, x in zip(self.deblocks, levels, strict=True)]
        _check_sizes(size, [tuple(o.shape[2:]) for o in outputs])
        return join_channels(outputs)

    def _enlarged_into_one(self, size: Sequence[int], levels: Sequence[Tensor]) -> Tensor | None:
        """The levels at one scale, each written to its channels of the joined map, where inference can do that."""
        layers = [layer for block in self.deblocks if (layer := only_enlarging(block)) is not None]
        if not layers or len(layers) < len(levels) or is_tracing():
            return None
        pairs = list(zip(levels, layers, strict=True))
        if not all(takes_enlarging(x, layer.weight, layer.bias) for x, layer in pairs):
            return None
        sizes = [(x.shape[2] * layer.factor, x.shape[3] * layer.factor) for x, layer in pairs]
        _check_sizes(size, sizes)
        joined, first = levels[0].new_empty(len(levels[0]), *sizes[0], self.out_channels).permute(0, 3, 1, 2), 0
        for x, layer in pairs:
            layer(x, out=joined, first=first)
            first += layer.out_channels
        return joined


def join_channels(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, C_i, Y, X] side by side [B, sum of C_i, Y, X].

    Those in the channels-last layout on the CPU are joined as rows of cells, since torch.cat goes through them
    element by element.
    """
    rowwise = all(m.device.type == "cpu" and m.is_contiguous(memory_format=torch.channels_last) for m in maps)
    if not rowwise or is_tracing():
        return torch.cat(list(maps), dim=1)
    rows = torch.cat([m.permute(0, 2, 3, 1).flatten(0, 2) for m in maps], dim=1)
    batch, _, height, width = maps[0].shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def rescale(in_channels: int, out_channels: int, factor: float, use_conv_for_no_stride: bool) -> nn.Sequential:
    """A convolution that changes the size of a map, batch norm and ReLU.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        factor: how many times as large the result is; below 1 it is smaller.
        use_conv_for_no_stride: whether a factor of 1 is a plain instead of a transposed convolution.
    """
    if factor > 1 or (factor == 1 and not use_conv_for_no_stride):
        kernel = round(factor)
        conv: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, kernel, kernel, bias=False)
    else:
        kernel = round(1 / factor)
        conv = nn.Conv2d(in_channels, out_channels, kernel, kernel, bias=False)
    return nn.Sequential(conv, bev_norm(out_channels), nn.ReLU())


def _check_lists(
    layer_nums: Sequence[int],
    layer_strides: Sequence[int],
    num_filters: Sequence[int],
    upsample_strides: Sequence[float],
    num_upsample_filters: Sequence[int],
) -> None:
    levels = len(layer_nums)
    if not levels == len(layer_strides) == len(num_filters) > 0:
        raise ValueError(
            "layer_nums, layer_strides and num_filters must have one entry per level, "
            f"got {levels}, {len(layer_strides)} and {len(num_filters)}"
        )
    if len(upsample_strides) != len(num_upsample_filters) or len(upsample_strides) not in (0, levels):
        raise ValueError(
            f"upsample_strides and num_upsample_filters must have {levels} entries each, or none, "
            f"got {len(upsample_strides)} and {len(num_upsample_filters)}"
        )
    if min(layer_nums) < 0:
        raise ValueError(f"layer_nums must be at least 0, got {list(layer_nums)}")
    if min(num_filters) < 1 or min(num_upsample_filters, default=1) < 1:
        raise ValueError(
            "num_filters and num_upsample_filters must be at least 1, "
            f"got {list(num_filters)} and {list(num_upsample_filters)}"
        )
    if min([*layer_strides, *upsample_strides]) <= 0:
        raise ValueError("layer_strides and upsample_strides must be positive")


def _common_stride(layer_strides: Sequence[int], upsample_strides: Sequence[float]) -> int | float:
    """Input cells per output cell of the joined levels."""
    total, strides = 1, []
    for i, stride in enumerate(layer_strides):
        total *= stride
        factor = upsample_strides[i] if upsample_strides else 1
        strides.append(total / round(factor) if factor >= 1 else total * round(1 / factor))
    if len(set(strides)) > 1:
        raise ValueError(f"levels end at different strides {strides}: adjust upsample_strides")
    return int(strides[0]) if strides[0] == int(strides[0]) else strides[0]


def _level_sizes(
    size: Sequence[int], layer_strides: Sequence[int], upsample_strides: Sequence[float]
) -> list[tuple[int, ...]]:
    """Cells (Y, X) of each level's output at the common scale, for a map of `size` cells."""
    sizes = []
    for i, stride in enumerate(layer_strides):
        size = [-(-cells // stride) for cells in size]  # a 3x3 convolution with a border of one cell
        factor = upsample_strides[i] if upsample_strides else 1
        sizes.append(tuple(c * round(factor) if factor >= 1 else c // round(1 / factor) for c in size))
    return sizes


def _check_sizes(size: Sequence[int], sizes: Sequence[tuple[int, ...]]) -> None:
    if len(set(sizes)) > 1 or 0 in sizes[0]:
        ends = ", ".join(map(str, sizes))
        raise ValueError(f"a map of {tuple(size)} cells does not divide by the strides: the levels end at {ends}")
