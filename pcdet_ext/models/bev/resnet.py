"""The map backbone of BEVDet: a residual network and a pyramid of two of its levels (Huang et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pcdet_ext.models.bev.multi_scale import join_channels
from pcdet_ext.models.bev.registry import BEV_BACKBONES
from pcdet_ext.models.bev.residual import ResidualBlock


@BEV_BACKBONES.register
class ResNetFPN(nn.Module):
    """Stages of residual blocks; a deep one is enlarged and joined with a fine one (BEVDet, Huang et al. 2021).

    Args:
        in_channels: of the map.
        layer_nums: residual blocks of each stage.
        layer_strides: stride of the first block of each.
        num_filters: channels of each.
        levels: the fine and the deep stage, by number from 0.
        level_factor: how many times as large the deep one is made, to the size of the fine one.
        out_filters: channels of the result.
        out_factor: how many times as large as the fine stage the result is; None for its size.
        map_size: cells along y and x of the maps that come, where they are known.

    Attributes: out_channels; stride, input cells per output cell.

    Raises:
        ValueError: the lists do not fit each other, or the two stages are not of one size.
    """

    def __init__(
        self,
        in_channels: int,
        layer_nums: Sequence[int] = (2, 2, 2),
        layer_strides: Sequence[int] = (2, 2, 2),
        num_filters: Sequence[int] = (128, 256, 512),
        levels: Sequence[int] = (0, 2),
        level_factor: int = 4,
        out_filters: int = 256,
        out_factor: int | None = 2,
        map_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if not len(layer_nums) == len(layer_strides) == len(num_filters) > 0 or min(layer_nums) < 1:
            counts = f"{list(layer_nums)}, {list(layer_strides)} and {list(num_filters)}"
            raise ValueError(f"layer_nums (from 1), layer_strides and num_filters must go together, got {counts}")
        if len(levels) != 2 or not all(0 <= level < len(layer_nums) for level in levels):
            raise ValueError(f"levels must be two of the {len(layer_nums)} stages, counted from 0, got {list(levels)}")
        if level_factor < 1 or (out_factor is not None and out_factor < 1):
            raise ValueError(f"level_factor and out_factor must be at least 1, got {level_factor} and {out_factor}")
        widths = [in_channels, *num_filters]
        self.layers = nn.ModuleList(
            _stage(widths[i], widths[i + 1], number, stride)
            for i, (number, stride) in enumerate(zip(layer_nums, layer_strides, strict=True))
        )
        self.levels = tuple(levels)
        self.enlarge = _enlarged(level_factor)
        joined, inner = sum(num_filters[level] for level in levels), out_filters * (1 if out_factor is None else 2)
        self.conv = nn.Sequential(*_conv(joined, inner), *_conv(inner, inner))
        self.up2 = None
        if out_factor is not None:
            last = nn.Conv2d(out_filters, out_filters, 1)
            self.up2 = nn.Sequential(_enlarged(out_factor), *_conv(inner, out_filters), last)
        self.out_channels = out_filters
        fine = 1
        for stride in layer_strides[: levels[0] + 1]:
            fine *= stride
        whole = fine % (out_factor or 1) == 0
        self.stride: int | float = fine // (out_factor or 1) if whole else fine / (out_factor or 1)
        if map_size is not None:
            self._check_sizes(map_size, layer_strides, level_factor)

    def _check_sizes(self, size: Sequence[int], strides: Sequence[int], factor: int) -> None:
        sizes, cells = [], list(size)
        for stride in strides:
            cells = [-(-n // stride) for n in cells]
            sizes.append(cells)
        fine, deep = (sizes[level] for level in self.levels)
        if fine != [factor * n for n in deep]:
            raise ValueError(_mismatch(tuple(size), tuple(fine), tuple(factor * n for n in deep)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride].

        Raises ValueError where the map's size does not divide by the strides, so that the two stages do not match.
        """
        size, found = tuple(x.shape[2:]), []
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        fine, deep = found[self.levels[0]], self.enlarge(found[self.levels[1]])
        if fine.shape[2:] != deep.shape[2:]:
            raise ValueError(_mismatch(size, tuple(fine.shape[2:]), tuple(deep.shape[2:])))
        x = self.conv(join_channels([fine, deep]))
        return x if self.up2 is None else self.up2(x)


class BasicBlock(ResidualBlock):
    """A `ResidualBlock` with torch's batch norms, whose input is brought to the result by a 3x3 convolution.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        stride: of the first convolution.
        downsample: whether the input is convolved; that convolution has a bias and no norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, downsample: bool = False) -> None:
        super().__init__(in_channels, out_channels, stride)
        self.bn1, self.bn2 = nn.BatchNorm2d(out_channels), nn.BatchNorm2d(out_channels)
        if downsample:
            self.downsample_layer = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)


def _stage(in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, downsample=True)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(number - 1)))


def _conv(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU()]


def _enlarged(factor: int) -> nn.Module:
    return nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=True)


def _mismatch(size: tuple[int, ...], fine: tuple[int, ...], deep: tuple[int, ...]) -> str:
    return f"a map of {size} cells does not divide by the strides: the two stages end at {fine} and {deep}"
