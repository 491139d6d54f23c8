"""The dense part of PillarNet (Shi et al., ECCV 2022): a fifth stage, and two levels joined."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pcdet_ext.models.bev.multi_scale import bev_norm, join_channels, rescale
from pcdet_ext.models.bev.registry import BEV_BACKBONES
from pcdet_ext.models.bev.residual import ResidualBlock
from pcdet_ext.models.bev.second import plain_level


@BEV_BACKBONES.register
class PillarNetNeck(nn.Module):
    """A stage of half the size, and the map and that stage brought to one scale, joined, and convolved.

    The map is brought to the common scale as it is, the stage after convolutions of its own; the convolutions of the
    first level come last, on what is joined. Beside `conv5`, which OpenPCDet keeps in its 3-D backbone, state-dict keys
    are those of its BaseBEVBackboneV1.

    Args:
        in_channels: of the map, and width of the stage.
        layer_nums: convolutions of each of the two levels, beside the first.
        num_filters: width of each level: that of what is joined, and that of the stage.
        upsample_strides: factor that each level is brought to the common scale with.
        num_upsample_filters: width that it is brought to.
        residual: the stage has residual blocks.
        map_size: cells (Y, X) of the maps that come, where they are known.

    Attributes: out_channels; stride: input cells per output cell (below 1 where the map grows).

    Raises:
        ValueError: where the lists do not fit each other, or a map does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        layer_nums: Sequence[int] = (5, 5),
        num_filters: Sequence[int] = (256, 256),
        upsample_strides: Sequence[int] = (1, 2),
        num_upsample_filters: Sequence[int] = (128, 128),
        residual: bool = True,
        map_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        lists = (layer_nums, num_filters, upsample_strides, num_upsample_filters)
        if any(len(values) != 2 for values in lists) or min(map(min, lists[1:])) < 1 or min(layer_nums) < 0:
            raise ValueError(
                f"every list must have two entries, for the map and its stage, got {list(map(list, lists))}"
            )
        if num_filters[0] != sum(num_upsample_filters) or tuple(num_filters) != (num_filters[0], in_channels):
            raise ValueError(
                f"num_filters must be the joined levels' {sum(num_upsample_filters)} and the map's {in_channels} "
                f"channels, got {list(num_filters)}"
            )
        if upsample_strides[1] != 2 * upsample_strides[0]:
            raise ValueError(f"upsample_strides must be s and 2 s, to end at one scale, got {list(upsample_strides)}")
        self.conv5 = nn.Sequential(*_stage(in_channels, residual))
        self.blocks = nn.ModuleList(
            plain_level(width, width, n) for width, n in zip(num_filters, layer_nums, strict=True)
        )
        self.deblocks = nn.ModuleList(
            rescale(in_channels, width, factor, use_conv_for_no_stride=False)
            for width, factor in zip(num_upsample_filters, upsample_strides, strict=True)
        )
        self.out_channels = num_filters[0]
        self.stride: int | float = 1 if upsample_strides[0] == 1 else 1 / upsample_strides[0]
        if map_size is not None:
            _check_size(map_size)

    def forward(self, bev: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride].

        Raises ValueError for a map of an odd size.
        """
        _check_size(bev.shape[2:])
        first, second = self.blocks
        here, above = self.deblocks
        joined = join_channels([here(bev), above(second(self.conv5(bev)))])
        result: Tensor = first(joined)
        return result


def _stage(channels: int, residual: bool) -> list[nn.Module]:
    """Half the size, then two units."""
    units = [_convolution(channels, 2)]
    if residual:
        return [*units, *(ResidualBlock(channels, channels, bias=True) for _ in range(2))]
    return [*units, *(_convolution(channels, 1) for _ in range(2))]


def _convolution(channels: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False), bev_norm(channels), nn.ReLU())


def _check_size(size: Sequence[int]) -> None:
    if any(cells % 2 for cells in size):
        raise ValueError(f"a map of {tuple(size)} cells must be even in both directions, so that its half fits it")
