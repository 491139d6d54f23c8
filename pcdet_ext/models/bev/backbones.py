"""Bird's-eye-view maps: from sparse voxels to a dense map, and the 2-D convolutional backbones on it.

State-dict keys are those of OpenPCDet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.config import Registry
from pcdet_ext.models.layers.norm import EPS, MOMENTUM
from pcdet_ext.structures import SparseVoxels

BEV_BACKBONES = Registry("BEV backbone")


def flatten_to_bev(voxels: SparseVoxels) -> Tensor:
    """The map [B, C * Z, Y, X] of sparse voxels, channel c at height z being c * Z + z; empty cells are 0.

    For pillars (Z = 1) it is the scatter of PointPillars, otherwise the height compression of SECOND.
    """
    return voxels.dense().flatten(1, 2)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS, momentum=MOMENTUM)


class _MultiScale(nn.Module, ABC):
    """Levels one after the other, and their outputs brought to one scale and joined on the channels.

    Subclasses give the block of a level. layer_nums, layer_strides, num_filters: convolutions (beside the first),
    stride and width of each level; upsample_strides, num_upsample_filters: factor and width that each level is brought
    to the common scale with (a factor below 1 makes it smaller), or none, where all levels have one scale already;
    use_conv_for_no_stride: a factor of 1 is a plain instead of a transposed convolution.

    Attributes: out_channels; stride: input cells per output cell (below 1 where the map grows).
    Raises ValueError when the lists do not fit each other, or the levels do not end at one scale.
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
    ) -> None:
        super().__init__()
        _check_lists(layer_nums, layer_strides, num_filters, upsample_strides, num_upsample_filters)
        widths = [in_channels, *num_filters]
        self.blocks = nn.ModuleList(
            self._level(widths[i], widths[i + 1], layer_nums[i], layer_strides[i]) for i in range(len(layer_nums))
        )
        self.deblocks = nn.ModuleList(
            _rescale(num_filters[i], num_upsample_filters[i], factor, use_conv_for_no_stride)
            for i, factor in enumerate(upsample_strides)
        )
        self.out_channels = sum(num_upsample_filters or num_filters)
        self.stride = _common_stride(layer_strides, upsample_strides)

    @abstractmethod
    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        """The blocks of one level, [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride].

        Raises ValueError where the map's size does not divide by the strides, so that the levels would not match.
        """
        size = tuple(x.shape[2:])
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            outputs.append(self.deblocks[i](x) if len(self.deblocks) else x)
        if len({o.shape[2:] for o in outputs}) > 1:
            sizes = ", ".join(str(tuple(o.shape[2:])) for o in outputs)
            raise ValueError(f"a map of {size} cells does not divide by the strides: the levels end at {sizes}")
        return torch.cat(outputs, dim=1)


@BEV_BACKBONES.register
class BaseBEVBackbone(_MultiScale):
    __doc__ = f"Levels of plain 3x3 convolutions (SECOND, PointPillars).\n\n{_MultiScale.__doc__}"

    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        layers = [
            nn.ZeroPad2d(1),
            nn.Conv2d(in_channels, out_channels, 3, stride, bias=False),
            _norm(out_channels),
            nn.ReLU(),
        ]
        for _ in range(number):
            layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), _norm(out_channels), nn.ReLU()]
        return nn.Sequential(*layers)


@BEV_BACKBONES.register
class BaseBEVResBackbone(_MultiScale):
    __doc__ = f"Levels of residual blocks, one more than layer_nums says (DSVT, LION).\n\n{_MultiScale.__doc__}"

    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        first = ResidualBlock(in_channels, out_channels, stride, downsample=True)
        return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(number)))


@BEV_BACKBONES.register
class CascadeDEDBackbone(nn.Module):
    """Encoders and decoders in a row, each a small U-Net of residual blocks (ScatterFormer, He et al., ECCV 2024).

    num_layers: how many; num_sbb: plain blocks of each level; down_strides: stride of each level, where the first is
    taken only by the block that brings the input to feature_dim channels, if it has others.
    Attributes: out_channels; stride: input cells per output cell. Raises ValueError when the lists do not fit.
    """

    def __init__(
        self,
        in_channels: int,
        num_layers: int = 4,
        num_sbb: Sequence[int] = (2, 1, 1),
        down_strides: Sequence[int] = (1, 2, 2),
        feature_dim: int = 128,
    ) -> None:
        super().__init__()
        if num_layers < 1 or not len(num_sbb) == len(down_strides) > 0:
            raise ValueError(
                "num_layers must be at least 1, num_sbb and down_strides must have one entry a level, "
                f"got {num_layers}, {list(num_sbb)} and {list(down_strides)}"
            )
        if min(down_strides) < 1 or min(num_sbb) < 0:
            raise ValueError(f"down_strides and num_sbb must be positive, got {list(down_strides)} and {list(num_sbb)}")
        widths = [in_channels] + [feature_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(_EncoderDecoder(w, feature_dim, num_sbb, down_strides) for w in widths)
        self.out_channels = feature_dim
        self.stride = down_strides[0] if in_channels != feature_dim else 1
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, feature_dim, Y / stride, X / stride].

        Raises ValueError where the map's size does not divide by the strides, so that the levels would not match.
        """
        for layer in self.layers:
            x = layer(x)
        return x


class _EncoderDecoder(nn.Module):
    """Down level by level, and up again with the levels' outputs added; the decoder's first entry is the deepest."""

    def __init__(self, in_channels: int, channels: int, num_sbb: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        first = [] if in_channels == channels else [ResidualBlock(in_channels, channels, strides[0], downsample=True)]
        heads = [first, *([ResidualBlock(channels, channels, stride, downsample=True)] for stride in strides[1:])]
        self.encoder = nn.ModuleList(
            nn.Sequential(*head, *(ResidualBlock(channels, channels) for _ in range(number)))
            for head, number in zip(heads, num_sbb, strict=True)
        )
        self.decoder = nn.ModuleList(
            _rescale(channels, channels, stride, use_conv_for_no_stride=False) for stride in reversed(strides[1:])
        )
        self.decoder_norm = nn.ModuleList(_norm(channels) for _ in strides[1:])

    def forward(self, x: Tensor) -> Tensor:
        size, skips = tuple(x.shape[2:]), []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for up, norm, skip in zip(self.decoder, self.decoder_norm, reversed(skips[:-1]), strict=True):
            x = up(x)
            if x.shape != skip.shape:
                raise ValueError(f"a map of {size} cells does not divide by the strides of the levels")
            x = norm(x + skip)
        return x


@BEV_BACKBONES.register
class SECONDFPN(_MultiScale):
    __doc__ = (
        "Levels of single 3x3 convolutions, one more than layer_nums says; residual: each beside an identity where its "
        "input and output have one shape. This is SECOND with its feature pyramid as in mmdetection3d, and so are the "
        f"state-dict keys.\n\n{_MultiScale.__doc__}"
    )

    def __init__(
        self,
        in_channels: int,
        layer_nums: Sequence[int],
        layer_strides: Sequence[int],
        num_filters: Sequence[int],
        upsample_strides: Sequence[float] = (),
        num_upsample_filters: Sequence[int] = (),
        use_conv_for_no_stride: bool = False,
        residual: bool = False,
    ) -> None:
        self._unit = ResidualUnit if residual else ConvUnit
        super().__init__(
            in_channels,
            layer_nums,
            layer_strides,
            num_filters,
            upsample_strides,
            num_upsample_filters,
            use_conv_for_no_stride,
        )

    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        first = self._unit(in_channels, out_channels, stride)
        return nn.Sequential(first, *(self._unit(out_channels, out_channels) for _ in range(number)))


class ConvUnit(nn.Sequential):
    """A 3x3 convolution, batch norm and ReLU: [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        super().__init__(conv, _norm(out_channels), nn.ReLU())


class ResidualUnit(ConvUnit):
    """A `ConvUnit` whose input is added to its output, behind the ReLU, where both have one shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch has no annotation here
        return x + y if x.shape == y.shape else y


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity (He et al., CVPR 2016), which a 1x1 one may bring to shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, downsample: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = _norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = _norm(out_channels)
        self.downsample_layer = None
        if downsample:
            self.downsample_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), _norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""
        identity = x if self.downsample_layer is None else self.downsample_layer(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + identity)


def _rescale(in_channels: int, out_channels: int, factor: float, use_conv_for_no_stride: bool) -> nn.Sequential:
    if factor > 1 or (factor == 1 and not use_conv_for_no_stride):
        kernel = round(factor)
        conv: nn.Module = nn.ConvTranspose2d(in_channels, out_channels, kernel, kernel, bias=False)
    else:
        kernel = round(1 / factor)
        conv = nn.Conv2d(in_channels, out_channels, kernel, kernel, bias=False)
    return nn.Sequential(conv, _norm(out_channels), nn.ReLU())


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
            "layer_nums, layer_strides and num_filters must have one entry a level, "
            f"got {levels}, {len(layer_strides)} and {len(num_filters)}"
        )
    if len(upsample_strides) != len(num_upsample_filters) or len(upsample_strides) not in (0, levels):
        raise ValueError(
            f"upsample_strides and num_upsample_filters must have {levels} entries each, or none, "
            f"got {len(upsample_strides)} and {len(num_upsample_filters)}"
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
