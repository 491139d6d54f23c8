"""Chains of 3x3 convolutions of which only the outputs at some cells of a map are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from pcdet_ext.models.layers.winograd import WinogradConv2d

MOST_CELLS = 0.25  # share of the map: with more cells to compute, the whole map is about as quick


def convolve_at(chains: Sequence[nn.Sequential], maps: Tensor, cells: Tensor) -> list[Tensor]:
    """What chains of convolutions give at some cells of a map, computed from these cells' receptive fields alone.

    The values are those of `chain(maps)` up to rounding, with the zeros beyond the border that padding stands for.

    Args:
        chains: 3x3 convolutions of stride 1 with a padding of 1, and layers between them that work cell by cell
            (batch norm in evaluation mode, ReLU).
        maps: [B, C, Y, X].
        cells: flat cells (b * Y + y) * X + x, int64 [M]; they may repeat.

    Returns:
        Of each chain the values [M, out_channels].

    Raises:
        ValueError: a chain has another kind of convolution.
    """
    steps = [list(_steps(chain)) for chain in chains]
    size = (maps.shape[0], *maps.shape[2:])
    distinct, place = torch.unique(cells, return_inverse=True)
    levels = [distinct]  # level j: the cells that are needed j convolutions before the output
    while len(levels) < max(map(len, steps)):
        levels.append(_with_neighbours(levels[-1], size))
    if len(levels[-1]) > MOST_CELLS * size[0] * size[1] * size[2]:
        return [_rows(chain(maps))[cells] for chain in chains]
    rows = _rows(maps)
    patches: dict[int, Tensor] = {}  # by depth of a chain: those of its first convolution
    found = []
    for chain in steps:
        depth = len(chain)
        if depth not in patches:
            patches[depth] = _patches(rows, _neighbours(levels[depth - 1], size))
        values = _apply(chain[0], patches[depth])
        for step, wanted, known in zip(chain[1:], levels[depth - 2 :: -1], levels[depth - 1 :: -1], strict=False):
            values = _apply(step, _patches(values, _rows_of(known, _neighbours(wanted, size), size)))
        found.append(values[place])
    return found


def _steps(chain: nn.Sequential) -> Iterator[list[nn.Module]]:
    """The convolutions of a chain, each with the layers behind it."""
    step: list[nn.Module] = []
    for layer in _layers(chain):
        if isinstance(layer, nn.Conv2d):
            plain = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
            if plain != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or layer.padding_mode != "zeros":
                raise ValueError(f"a chain must have plain 3x3 convolutions, got {layer}")
            if step:
                yield step
            step = []
        elif not step:
            raise ValueError(f"a chain must begin with a convolution, got {layer}")
        step.append(layer)
    yield step


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _layers(child)
    else:
        yield module


def _rows(maps: Tensor) -> Tensor:
    """A row [C] for each cell of maps [B, C, Y, X]; no copy of maps in channels-last layout."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def _neighbours(cells: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The flat cells of the 3x3 patch around each cell, int64 [M, 9], -1 beyond the border of the map."""
    height, width = size[1:]
    step = torch.arange(-1, 2, device=cells.device)
    y = (cells // width % height)[:, None, None] + step[:, None]
    x = (cells % width)[:, None, None] + step
    around = cells[:, None, None] + step[:, None] * width + step
    return torch.where((y >= 0) & (y < height) & (x >= 0) & (x < width), around, -1).flatten(1)


def _with_neighbours(cells: Tensor, size: tuple[int, int, int]) -> Tensor:
    """The cells of all 3x3 patches around some cells, ascending."""
    marked = torch.zeros(size[0] * size[1] * size[2] + 1, dtype=torch.bool, device=cells.device)
    marked[_neighbours(cells, size).flatten()] = True  # -1 marks the entry behind the last cell
    return marked[:-1].nonzero()[:, 0]


def _rows_of(known: Tensor, cells: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Position int64 of cells among the `known` ones, -1 for the cell -1."""
    row = torch.full((size[0] * size[1] * size[2] + 1,), -1, device=cells.device)
    row[known] = torch.arange(len(known), device=cells.device)
    return row[cells]


def _patches(rows: Tensor, index: Tensor) -> Tensor:
    """Rows [N, C] at index int64 [M, 9] side by side, [M, 9 * C], zeros where it is -1."""
    patches = rows[index.clamp(min=0)]
    outside = index < 0
    return patches.masked_fill_(outside[..., None], 0).flatten(1)


def _apply(step: Sequence[nn.Module], patches: Tensor) -> Tensor:
    """A convolution and the layers behind it on patches [M, 9 * C]: [M, out_channels]."""
    convolution = step[0]
    assert isinstance(convolution, nn.Conv2d)
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    values = nn.functional.linear(patches, weight, convolution.bias)[:, :, None, None]
    if isinstance(convolution, WinogradConv2d) and convolution.relu:
        values = torch.relu(values)
    for layer in step[1:]:
        values = layer(values)
    return values[:, :, 0, 0]
