"""Backbones of plain 3x3 convolutions (SECOND, PointPillars), with the keys of OpenPCDet or mmdetection3d."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from pcdet_ext.models.bev.multi_scale import MultiScale, bev_norm
from pcdet_ext.models.bev.registry import BEV_BACKBONES


@BEV_BACKBONES.register
class BaseBEVBackbone(MultiScale):
    __doc__ = f"Levels of plain 3x3 convolutions (SECOND, PointPillars).\n\n{MultiScale.__doc__}"

    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        return plain_level(in_channels, out_channels, number, stride)


def plain_level(in_channels: int, out_channels: int, number: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution with a stride and further ones without, each with batch norm and ReLU.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        number: of convolutions without a stride.
        stride: of the first one.
    """
    layers = [
        nn.Identity(),  # which pads in the published code, and counts in state-dict keys; two copies of the map less
        nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
        bev_norm(out_channels),
        nn.ReLU(),
    ]
    for _ in range(number):
        layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), bev_norm(out_channels), nn.ReLU()]
    return nn.Sequential(*layers)


@BEV_BACKBONES.register
class SECONDFPN(MultiScale):
    __doc__ = (
        "Levels of single 3x3 convolutions, one more than layer_nums says; residual: each beside an identity where its "
        "input and output have one shape. This is SECOND with its feature pyramid as in mmdetection3d, and so are the "
        f"state-dict keys.\n\n{MultiScale.__doc__}"
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
        map_size: Sequence[int] | None = None,
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
            map_size,
        )

    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        first = self._unit(in_channels, out_channels, stride)
        return nn.Sequential(first, *(self._unit(out_channels, out_channels) for _ in range(number)))


class ConvUnit(nn.Sequential):
    """A 3x3 convolution, batch norm and ReLU: [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride].

    Args:
        in_channels: of the map.
        out_channels: of the result.
        stride: of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        super().__init__(conv, bev_norm(out_channels), nn.ReLU())


class ResidualUnit(ConvUnit):
    """A `ConvUnit` whose input is added to its output, behind the ReLU, where both have one shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch has no annotation here
        return x + y if x.shape == y.shape else y
