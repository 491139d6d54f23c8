"""SECOND's sparse 3-D backbones (Yan et al., Sensors 2018), plain and residual: 8 times smaller in x and y.

State-dict keys are those of OpenPCDet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.sparse_blocks import SparseResidualBlock, SparseSequential, conv_block
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d
from pcdet_ext.structures import SparseVoxels


class _Second(nn.Module, ABC):
    """Four stages and a last convolution that halves z.

    Attributes: out_channels, out_grid (Z, Y, X), stride (input cells per output cell in x and y), strides (the same of
    z, y and x).

    Args:
        in_channels: of the voxels.
        grid: cells of the input along z, y and x, to which one layer of z is added as published.
        channels: width of the stem and first stage, of the other stages, and of the output.
        last_pad: padding in z of the last convolution.
        engine: see `sparse_conv`.

    Raises:
        ValueError: the grid is too small to be halved that often.
    """

    def __init__(
        self, in_channels: int, grid: Sequence[int], channels: Sequence[int], last_pad: int, engine: Engine
    ) -> None:
        super().__init__()
        if len(channels) != 5:
            raise ValueError(f"channels must be 5 widths (four stages, output), got {list(channels)}")
        depth, height, width = grid
        self.in_grid = (depth + 1, height, width)
        self.conv_input = conv_block(SubMConv3d(in_channels, channels[0], 3, engine=engine))
        paddings = [(1, 1, 1), (1, 1, 1), (0, 1, 1)]
        down = [SparseConv3d(channels[i], channels[i + 1], 3, 2, paddings[i], engine=engine) for i in range(3)]
        self.conv1 = SparseSequential(*self._stage(channels[0], first=True))
        self.conv2, self.conv3, self.conv4 = (
            SparseSequential(conv_block(conv), *self._stage(channels[i + 1])) for i, conv in enumerate(down)
        )
        last = SparseConv3d(channels[3], channels[4], (3, 1, 1), (2, 1, 1), (last_pad, 0, 0), engine=engine)
        self.conv_out = conv_block(last)
        self.out_channels = channels[4]
        self.stride, self.strides = 8, (16, 8, 8)
        self.out_grid = self.in_grid
        for conv in [*down, last]:
            self.out_grid = conv.out_grid(self.out_grid)

    @abstractmethod
    def _stage(self, channels: int, first: bool = False) -> list[nn.Module]:
        """What follows the strided convolution of a stage; the first stage has none."""

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to voxels [M, out_channels] on `out_grid`."""
        voxels = SparseVoxels(voxels.features, voxels.coords, self.in_grid, voxels.batch_size)
        for stage in (self.conv_input, self.conv1, self.conv2, self.conv3, self.conv4, self.conv_out):
            voxels = stage(voxels)
        return voxels


@BACKBONES.register
class VoxelBackBone8x(_Second):
    __doc__ = f"Plain stages, as in SECOND.\n\n{_Second.__doc__}"

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 64, 128),
        last_pad: int = 0,
        engine: Engine = "auto",
    ) -> None:
        self._engine = engine
        super().__init__(in_channels, grid, channels, last_pad, engine)

    def _stage(self, channels: int, first: bool = False) -> list[nn.Module]:
        number = 1 if first else 2
        return [conv_block(SubMConv3d(channels, channels, 3, engine=self._engine)) for _ in range(number)]


@BACKBONES.register
class VoxelResBackBone8x(_Second):
    __doc__ = (
        "Residual stages, as in the published CenterPoint and TransFusion; use_bias: whether the convolutions of the "
        f"residual blocks have one.\n\n{_Second.__doc__}"
    )

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        last_pad: int = 0,
        use_bias: bool = True,
        engine: Engine = "auto",
    ) -> None:
        self._engine, self._use_bias = engine, use_bias
        super().__init__(in_channels, grid, channels, last_pad, engine)

    def _stage(self, channels: int, first: bool = False) -> list[nn.Module]:
        return [SparseResidualBlock(channels, self._use_bias, self._engine) for _ in range(2)]
