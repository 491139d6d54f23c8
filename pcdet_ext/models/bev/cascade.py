"""The backbone of encoders and decoders in a row (ScatterFormer)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pcdet_ext.models.bev.multi_scale import bev_norm, rescale
from pcdet_ext.models.bev.registry import BEV_BACKBONES
from pcdet_ext.models.bev.residual import ResidualBlock
from pcdet_ext.models.layers.enlarging import only_enlarging
from pcdet_ext.models.layers.folding import ScaleAndShift


@BEV_BACKBONES.register
class CascadeDEDBackbone(nn.Module):
    """Encoders and decoders in a row, each a small U-Net of residual blocks (ScatterFormer, He et al., ECCV 2024).

    Attributes: out_channels; stride: input cells per output cell.

    Args:
        in_channels: of the map.
        num_layers: how many U-Nets.
        num_sbb: plain blocks of each level.
        down_strides: stride of each level, where the first is taken only by the block that brings the input to
            `feature_dim` channels, if it has others.
        feature_dim: channels of all levels and of the output.
        map_size: cells along y and x of the maps that come, where they are known.

    Raises:
        ValueError: the lists do not fit each other, or the map size does not divide by the strides.
    """

    def __init__(
        self,
        in_channels: int,
        num_layers: int = 4,
        num_sbb: Sequence[int] = (2, 1, 1),
        down_strides: Sequence[int] = (1, 2, 2),
        feature_dim: int = 128,
        map_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1 or not len(num_sbb) == len(down_strides) > 0:
            raise ValueError(
                "num_layers must be at least 1, num_sbb and down_strides must have one entry per level, "
                f"got {num_layers}, {list(num_sbb)} and {list(down_strides)}"
            )
        if min(down_strides) < 1 or min(num_sbb) < 0:
            raise ValueError(f"down_strides and num_sbb must be positive, got {list(down_strides)} and {list(num_sbb)}")
        widths = [in_channels] + [feature_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(_EncoderDecoder(w, feature_dim, num_sbb, down_strides) for w in widths)
        self.out_channels = feature_dim
        self.stride = down_strides[0] if in_channels != feature_dim else 1
        if map_size is not None:
            _check_divides(map_size, self.stride, down_strides[1:])
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


def _check_divides(size: Sequence[int], first: int, strides: Sequence[int]) -> None:
    """Refuse maps whose levels would not come back to their own size; the first stride is not undone, and may round."""
    total = math.prod(strides)
    if any(-(-cells // first) % total for cells in size):
        wanted = f"{total} cells" if first == 1 else f"{total} cells after the first stride of {first}"
        raise ValueError(f"a map of {tuple(size)} cells does not divide by the strides, by {wanted} in all")


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
            rescale(channels, channels, stride, use_conv_for_no_stride=False) for stride in reversed(strides[1:])
        )
        self.decoder_norm = nn.ModuleList(bev_norm(channels) for _ in strides[1:])

    def forward(self, x: Tensor) -> Tensor:
        size, skips = tuple(x.shape[2:]), []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for up, norm, skip in zip(self.decoder, self.decoder_norm, reversed(skips[:-1]), strict=True):
            joined = _joined(up, norm, x, skip)
            if joined is None:
                raise ValueError(f"a map of {size} cells does not divide by the strides of the levels")
            x = joined
        return x


def _joined(up: nn.Module, norm: nn.Module, x: Tensor, skip: Tensor) -> Tensor | None:
    """norm(up(x) + skip), in one pass where inference can do that; None where the two maps have different sizes."""
    layer = only_enlarging(up)
    if layer is None or not isinstance(norm, ScaleAndShift):
        x = up(x)
        return norm(x + skip) if x.shape == skip.shape else None
    if tuple(cells * layer.factor for cells in x.shape[2:]) != tuple(skip.shape[2:]):
        return None
    return layer(x, skip, norm.scale.flatten(), norm.shift.flatten())
