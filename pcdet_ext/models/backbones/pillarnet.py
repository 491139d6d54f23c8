"""PillarNet's sparse backbones of pillars (Shi et al., ECCV 2022): the first four stages, down to stride 8.

The fifth stage is dense and stands with the two-level backbone of the map, `PillarNetNeck`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import nn

from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.backbones.voxelnext import check_pillars
from pcdet_ext.models.layers.sparse_blocks import SparseResidualBlock, SparseSequential, conv_block
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d, Triple
from pcdet_ext.structures import SparseVoxels

KERNEL = (1, 3, 3)


class _PillarNet(nn.Module, ABC):
    """Four stages on single pillars; the result is read as a map of stride 8.

    in_channels: of the pillars, and width of the first stage; grid: (1, Y, X) cells of the input; channels: of the
    stages; engine: see `sparse_conv`. State-dict keys are those of OpenPCDet.

    Attributes: out_channels, out_grid (1, Y, X), stride (8), strides (the same of z, y and x).
    Raises ValueError for widths that do not fit, and a grid that is no plane or too small to be halved that often.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (32, 64, 128, 256),
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        check_pillars(grid, channels, 4, in_channels)
        self.conv1 = SparseSequential(*(self._unit(channels[0], engine) for _ in range(2)))
        self.out_grid: Triple = (1, grid[1], grid[2])
        for i in range(1, 4):
            down = SparseConv3d(channels[i - 1], channels[i], KERNEL, (1, 2, 2), (0, 1, 1), engine=engine)
            units = [self._unit(channels[i], engine) for _ in range(2)]
            self.add_module(f"conv{i + 1}", SparseSequential(conv_block(down), *units))
            self.out_grid = down.out_grid(self.out_grid)
        self.out_channels, self.stride, self.strides = channels[3], 8, (1, 8, 8)

    @abstractmethod
    def _unit(self, channels: int, engine: Engine) -> nn.Module:
        """What a stage is made of beside its strided convolution."""

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Pillars [N, in_channels] on `grid` to [M, out_channels] on `out_grid`."""
        for i in range(4):
            voxels = getattr(self, f"conv{i + 1}")(voxels)
        return voxels


@BACKBONES.register
class PillarBackBone8x(_PillarNet):
    __doc__ = f"Plain stages.\n\n{_PillarNet.__doc__}"

    def _unit(self, channels: int, engine: Engine) -> nn.Module:
        return conv_block(SubMConv3d(channels, channels, KERNEL, engine=engine))


@BACKBONES.register
class PillarRes18BackBone8x(_PillarNet):
    __doc__ = f"Residual stages.\n\n{_PillarNet.__doc__}"

    def _unit(self, channels: int, engine: Engine) -> nn.Module:
        return SparseResidualBlock(channels, engine=engine, kernel_size=KERNEL)
