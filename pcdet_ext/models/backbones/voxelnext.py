"""VoxelNeXt's sparse backbones (Chen et al., CVPR 2023), which end in a plane of sites instead of a dense map.

State-dict keys are those of OpenPCDet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.sparse_blocks import SparseResidualBlock, SparseSequential, conv_block
from pcdet_ext.models.layers.sparse_conv import Engine, SparseConv3d, SubMConv3d, Triple
from pcdet_ext.ops import segment_reduce
from pcdet_ext.structures import SparseVoxels

DEEPER = 3  # scales of the same width whose sites are merged: strides 8, 16 and 32
NORM = (1e-5, 0.1)  # epsilon and momentum of the last norm, which is OpenPCDet's head's


class _VoxelNeXt(nn.Module):
    """Six stages, each half the size of the one before, whose last three end as one set of sites at stride 8.

    Attributes: out_channels, out_grid (1, Y, X), stride (8), strides (input cells per output cell in z, y and x; z is
    one cell in the end).
    """

    conv1: SparseSequential

    def _make(
        self, grid: Triple, channels: Sequence[int], blocks: Sequence[int], kernels: Sequence[Triple], engine: Engine
    ) -> None:
        """Make the stages on a grid of cells (Z, Y, X): channels, residual blocks and kernels (of the strided
        convolutions, for all but the first) of each, and the width of the output as the last entry of channels."""
        *widths, out_channels = channels
        if len(set(widths[-DEEPER:])) > 1:
            raise ValueError(f"the last {DEEPER} stages must have one width, got {widths[-DEEPER:]}")
        planar = grid[0] == 1
        inner, stride = ((1, 3, 3), (1, 2, 2)) if planar else ((3, 3, 3), (2, 2, 2))
        sizes = [grid]
        for i, number in enumerate(blocks):
            stage = [SparseResidualBlock(widths[i], engine=engine, kernel_size=inner) for _ in range(number)]
            if i == 0:
                self.conv1 = SparseSequential(*stage)
                continue
            kernel = kernels[i - 1]
            if any(k % 2 == 0 or k == 1 for k in kernel[planar:]):
                raise ValueError(f"kernel_sizes must be odd and at least 3, got {kernel[-1]}")
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            down = SparseConv3d(widths[i - 1], widths[i], kernel, stride, padding, engine=engine)
            sizes.append(down.out_grid(sizes[-1]))
            self.add_module(f"conv{i + 1}", SparseSequential(conv_block(down), *stage))
        flat = ((1, 3, 3), 1, (0, 1, 1))
        self.conv_out = conv_block(SparseConv3d(widths[-1], out_channels, *flat, engine=engine, first_seen=True))
        shared = SubMConv3d(out_channels, out_channels, (1, 3, 3), bias=True, engine=engine)
        self.shared_conv = conv_block(shared, *NORM)
        self.out_channels, self.stride = out_channels, 2 ** (len(blocks) - DEEPER)
        self.out_grid: Triple = (1, *sizes[-DEEPER][1:])
        self.strides = (grid[0], self.stride, self.stride)
        self.stages = len(blocks)

    def _sites(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels of the first stage's width to the output's sites."""
        scales = []
        for i in range(self.stages):
            voxels = getattr(self, f"conv{i + 1}")(voxels)
            scales.append(voxels)
        merged: SparseVoxels = self.shared_conv(self.conv_out(merged_sites(scales[-DEEPER:], self.out_grid)))
        return merged


def merged_sites(scales: Sequence[SparseVoxels], grid: Triple) -> SparseVoxels:
    """Voxels of scales that halve from one to the next, summed in the cells (y, x) of the first.

    A coarse voxel lands on the even corner of its cells: nothing of its own size. Sites ascend by (batch, y, x).
    """
    cells = torch.cat([scale.coords[:, [0, 2, 3]] * _scaled(scale, 2**i) for i, scale in enumerate(scales)]).long()
    _, height, width = grid
    keys = (cells[:, 0] * height + cells[:, 1]) * width + cells[:, 2]
    unique, place = torch.unique(keys, return_inverse=True)
    features = segment_reduce(torch.cat([scale.features for scale in scales]), place, len(unique))
    line = torch.div(unique, width, rounding_mode="floor")
    frame = torch.div(line, height, rounding_mode="floor")
    coords = torch.stack([frame, torch.zeros_like(frame), line % height, unique % width], 1).int()
    return SparseVoxels(features, coords, grid, scales[0].batch_size)


def _scaled(scale: SparseVoxels, factor: int) -> torch.Tensor:
    """What coordinates (batch, y, x) are multiplied by."""
    return scale.coords.new_tensor([1, factor, factor])


@BACKBONES.register
class VoxelResBackBone8xVoxelNeXt(_VoxelNeXt):
    """VoxelNeXt's backbone of voxels; one layer of z is added to the grid, as published.

    Args:
        in_channels: of the voxels.
        grid: (Z, Y, X) cells of the input.
        channels: of the first five stages; the sixth is as wide as the fifth, and so must be the fourth.
        kernel_sizes: cells of the strided convolutions of stages 2 and 3, then 4, then 5 and 6; odd.
        out_channels: of the output.
        engine: see `sparse_conv`.

    Raises:
        ValueError: for widths and kernels that cannot be, and for a grid too small to be halved that often.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        kernel_sizes: Sequence[int] = (3, 3, 3, 3),
        out_channels: int = 128,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        if len(channels) != 5 or len(kernel_sizes) != 4:
            raise ValueError(
                f"channels must be 5 widths and kernel_sizes 4 numbers, got {list(channels)} and {list(kernel_sizes)}"
            )
        depth, height, width = grid
        self.in_grid = (depth + 1, height, width)
        self.conv_input = conv_block(SubMConv3d(in_channels, channels[0], 3, engine=engine))
        k = [*kernel_sizes, kernel_sizes[3]]
        kernels = [(size, size, size) for size in k]
        self._make(self.in_grid, [*channels, channels[4], out_channels], [2] * 6, kernels, engine)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to sites [M, out_channels] on `out_grid`."""
        voxels = SparseVoxels(voxels.features, voxels.coords, self.in_grid, voxels.batch_size)
        return self._sites(self.conv_input(voxels))


@BACKBONES.register
class VoxelResBackBone8xVoxelNeXt2D(_VoxelNeXt):
    """VoxelNeXt's backbone of pillars.

    Args:
        in_channels: of the pillars; the width of the first stage.
        grid: (1, Y, X) cells of the input.
        channels: of the six stages.
        out_channels: of the output.
        engine: see `sparse_conv`.

    Raises:
        ValueError: for widths that do not fit, and a grid that is no plane or too small to be halved that often.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        channels: Sequence[int] = (32, 64, 128, 256, 256, 256),
        out_channels: int = 256,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        check_pillars(grid, channels, 6, in_channels)
        _, height, width = grid
        kernels = [(1, 3, 3)] * 5
        self._make((1, height, width), [*channels, out_channels], [3, 4, 6, 3, 3, 3], kernels, engine)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Pillars [N, in_channels] on `grid` to sites [M, out_channels] on `out_grid`."""
        return self._sites(voxels)


def check_pillars(grid: Sequence[int], channels: Sequence[int], stages: int, in_channels: int) -> None:
    """Check that a backbone of pillars gets pillars, and widths that fit.

    Args:
        grid: cells along z, y and x.
        channels: width of each stage.
        stages: number of stages.
        in_channels: width of the pillars, which the first stage must have.

    Raises:
        ValueError: the grid has several layers, or the widths do not fit the stages or the pillars.
    """
    if grid[0] != 1:
        raise ValueError(f"the backbone takes pillars, a grid of one layer in z, got {tuple(grid)} cells")
    if len(channels) != stages or channels[0] != in_channels:
        raise ValueError(f"channels must be {stages} widths, the pillars' {in_channels} first, got {list(channels)}")
