"""The backbone of residual blocks (DSVT, LION). State-dict keys are those of OpenPCDet."""

from __future__ import annotations

from torch import Tensor, nn

from pcdet_ext.models.bev.multi_scale import MultiScale, bev_norm
from pcdet_ext.models.bev.registry import BEV_BACKBONES
from pcdet_ext.models.layers.winograd import normed_relu


@BEV_BACKBONES.register
class BaseBEVResBackbone(MultiScale):
    __doc__ = f"Levels of residual blocks, one more than layer_nums says (DSVT, LION).\n\n{MultiScale.__doc__}"

    def _level(self, in_channels: int, out_channels: int, number: int, stride: int) -> nn.Sequential:
        first = ResidualBlock(in_channels, out_channels, stride, downsample=True)
        return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels) for _ in range(number)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside an identity (He et al., CVPR 2016).

    Args:
        in_channels: of the map.
        out_channels: of the result.
        stride: of the first convolution.
        downsample: whether a 1x1 convolution brings the input to the shape of the result.
        bias: whether the 3x3 convolutions have one.
    """

    normed = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, downsample: bool = False, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)
        self.bn1 = bev_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        self.bn2 = bev_norm(out_channels)
        self.downsample_layer: nn.Module | None = None
        if downsample:
            self.downsample_layer = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), bev_norm(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, Y, X] to [B, out_channels, Y / stride, X / stride]."""
        identity = x if self.downsample_layer is None else self.downsample_layer(x)
        x = normed_relu(self.conv1, self.bn1, x)
        return normed_relu(self.conv2, self.bn2, x, identity)
