"""Sparse 3-D convolutions (SECOND, Yan et al. 2018; submanifold: Graham et al., CVPR 2018).

One layer, two engines with the same parameters and results. "native" (here and in `gathered_conv`): tables of
neighbouring voxels. On CUDA there is one matrix product for all kernel cells. On the CPU a kernel of this library
computes (`ops.sparse_conv`) where no gradient is needed, features and weights are float32, the output channels are a
multiple of 16, and the native library is built; elsewhere there is one matrix product per kernel cell. "spconv": the
library of that name. "auto" is what PCDET_EXT_SPARSE_CONV=native|spconv in the environment says, or else spconv on CUDA
where it is installed, and native (`python tools/benchmark.py ops --only sparse_conv` measures both).
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pcdet_ext.models.layers.gathered_conv import (
    GatherTable,
    cell_coords,
    convolve_gathered,
    strided_gather,
    submanifold_gather,
)
from pcdet_ext.ops._native import on_cuda
from pcdet_ext.ops.neighbours import neighbour_table
from pcdet_ext.ops.sparse_conv import reads_of_pairs, sparse_conv, takes_sparse_conv
from pcdet_ext.structures import SparseVoxels, untraced

Triple = tuple[int, int, int]
Engine = Literal["auto", "native", "spconv"]
ENVIRONMENT = "PCDET_EXT_SPARSE_CONV"


class SparseConv3d(nn.Module):
    """Convolution whose output exists where an input falls into its receptive field; cross-correlation.

    An output cell o reads the inputs o * stride - padding + k. weight: [out, kz, ky, kx, in], as in spconv 2; bias
    [out] or None. Output rows of the native engine ascend by (batch, z, y, x), or with `first_seen` stand in the order
    in which kernel cell after kernel cell reaches them from the input rows, as those of spconv on the CPU do; elsewhere
    spconv has no fixed order.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: cells, a number or (z, y, x).
        stride: cells, a number or (z, y, x).
        padding: cells, a number or (z, y, x).
        bias: whether one is added.
        engine: "native", "spconv", or "auto", see the top of the module.
        first_seen: the order of the output rows of the native engine, see above.

    Raises:
        ValueError: sizes are impossible.
        ImportError: `engine` is "spconv", which is not installed.
    """

    submanifold = False
    relu = False  # whether ReLU comes last, as in a copy for inference

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = False,
        engine: Engine = "auto",
        first_seen: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.first_seen = in_channels, out_channels, first_seen
        self.kernel_size = _triple(kernel_size, "kernel_size", minimum=1)
        self.stride = _triple(stride, "stride", minimum=1)
        self.padding = _triple(padding, "padding", minimum=0)
        self.engine = _checked_engine(engine, "engine")
        self.weight = nn.Parameter(torch.empty(out_channels, *self.kernel_size, in_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform initialisation of torch's dense convolutions (bound 1 / sqrt(fan in))."""
        bound = 1 / math.sqrt(self.in_channels * math.prod(self.kernel_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        """Sizes, for print."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, engine={self.engine!r}"
        )

    def out_grid(self, grid: Triple) -> Triple:
        """Cells (Z, Y, X) of the output for an input grid; ValueError where nothing is left."""
        if self.submanifold:
            return grid
        sizes = zip(grid, self.kernel_size, self.stride, self.padding, strict=True)
        z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)
        if min(z, y, x) < 1:
            raise ValueError(f"a grid of {grid} cells is too small for a kernel of {self.kernel_size}")
        return z, y, x

    @untraced
    def forward(self, voxels: SparseVoxels, addend: Tensor | None = None, relu: bool = False) -> SparseVoxels:
        """Rows [M, out_channels] on the output's cells, not compiled. Arguments as in `ops.sparse_conv.sparse_conv`."""
        if voxels.features.shape[1] != self.in_channels:
            raise ValueError(f"the layer takes {self.in_channels} channels, got {voxels.features.shape[1]}")
        single = math.prod(self.kernel_size) == 1  # spconv reads the memory of such a weight as [in, out]
        if not single and _resolve(self.engine, voxels.features.device.type) == "spconv" and len(voxels):
            result = self._forward_spconv(voxels)
            return result.with_features(self._finished(result.features, addend, relu))
        return self._forward_native(voxels, addend, relu)

    def _finished(self, result: Tensor, addend: Tensor | None, relu: bool) -> Tensor:
        """Rows [M, out_channels] with the bias, the addend, and ReLU where it is wanted."""
        result = sum((more for more in (self.bias, addend) if more is not None), start=result)
        return torch.relu(result) if relu or self.relu else result

    def _forward_native(self, voxels: SparseVoxels, addend: Tensor | None, relu: bool) -> SparseVoxels:
        gathers = on_cuda(voxels.coords) and not self.first_seen
        key = ("sparse_conv", gathers, self.submanifold, self.kernel_size, self.stride, self.padding, self.first_seen)
        table = voxels.plan(key, self._gather_table if gathers else self._table)
        if gathers:
            result = self._finished(convolve_gathered(voxels.features, self.weight, table), addend, relu)
        elif takes_sparse_conv(voxels.features, self.weight, self.bias, addend):
            reads = voxels.plan((*key, "reads"), lambda _: reads_of_pairs(table.pairs, len(table.coords)))
            last = self.bias, addend, relu or self.relu
            result = sparse_conv(voxels.features, self.weight.flatten(1, 3), reads, *last)
        else:
            result = self._finished(_apply(voxels.features, self.weight, table.pairs, len(table.coords)), addend, relu)
        if self.submanifold:
            return voxels.with_features(result)
        return SparseVoxels(result, table.coords, table.grid, voxels.batch_size, table.plans)

    def _gather_table(self, voxels: SparseVoxels) -> GatherTable:
        if self.submanifold:
            return submanifold_gather(voxels, submanifold_table(voxels, self.kernel_size))
        return strided_gather(voxels, self.kernel_size, self.stride, self.padding, self.out_grid(voxels.grid))

    def _table(self, voxels: SparseVoxels) -> NeighbourTable:
        if self.submanifold:
            return NeighbourTable(submanifold_pairs(voxels, self.kernel_size), voxels.coords, voxels.grid)
        sizes = (self.kernel_size, self.stride, self.padding, self.out_grid(voxels.grid))
        return strided_table(voxels, *sizes, self.first_seen)

    def _forward_spconv(self, voxels: SparseVoxels) -> SparseVoxels:
        spconv = _spconv()
        given = voxels.features, voxels.coords.contiguous(), list(voxels.grid), voxels.batch_size
        tensor = spconv.SparseConvTensor(*given)
        tables = voxels.plan("spconv_tables", lambda _: {})
        tensor.indice_dict = tables
        result = self._spconv_layer(voxels.features.device.type)(tensor)
        tables.update(result.indice_dict)  # spconv works on a copy
        if self.submanifold:
            return voxels.with_features(result.features)
        return SparseVoxels(result.features, result.indices, self.out_grid(voxels.grid), voxels.batch_size)

    def _spconv_layer(self, device_type: str) -> nn.Module:
        """spconv's layer for our weight, outside the module tree because the weight is ours.

        Without the bias, which spconv refuses to add on the CPU outside of training.
        """
        layers = self.__dict__.setdefault("_spconv_layers", {})
        if device_type not in layers:
            spconv = _spconv()
            sizes = (self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding)
            options: dict[str, Any] = {"bias": False}
            if device_type == "cpu":
                options["algo"] = spconv.ConvAlgo.Native  # the only one with a CPU path
            if self.submanifold:  # layers of one geometry share their tables through this key
                options["indice_key"] = f"submanifold{self.kernel_size}"
            layers[device_type] = (spconv.SubMConv3d if self.submanifold else spconv.SparseConv3d)(*sizes, **options)
        layer = layers[device_type]
        layer.weight = self.weight
        return layer.train(self.training)


class SubMConv3d(SparseConv3d):
    """Convolution whose output cells are its input cells (Graham et al., CVPR 2018).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: cells, a number or (z, y, x), odd.
        bias: whether one is added.
        engine: see `SparseConv3d`.

    Raises:
        ValueError: a kernel size is even.
    """

    submanifold = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        bias: bool = False,
        engine: Engine = "auto",
    ) -> None:
        kernel = _triple(kernel_size, "kernel_size", minimum=1)
        if any(k % 2 == 0 for k in kernel):
            raise ValueError(f"kernel_size of a submanifold convolution must be odd, got {kernel}")
        super().__init__(in_channels, out_channels, kernel, 1, tuple(k // 2 for k in kernel), bias, engine)


Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class NeighbourTable:
    """What a convolution needs to know about the coordinates.

    pairs: for each kernel cell in row-major order (input rows, output rows), int64, each row at most once; coords:
    int32 [M, 4] and grid of the output; plans: cache that all outputs with these coordinates share.
    """

    pairs: Pairs
    coords: Tensor
    grid: Triple
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)


def submanifold_pairs(voxels: SparseVoxels, kernel: Triple) -> Pairs:
    """Pairs (input row, output row) of each cell of an odd kernel, outputs being where the inputs are.

    Cells behind the centre mirror those before it.
    """
    keys, shifts = _keys_and_shifts(voxels, kernel)
    centre = len(shifts) // 2
    table = neighbour_table(keys, shifts[:centre])
    cell, out = (table.t() >= 0).nonzero(as_tuple=True)
    counts = torch.bincount(cell, minlength=centre).tolist()
    first = list(zip(table[out, cell].split(counts), out.split(counts), strict=True)) if centre else []
    same = torch.arange(len(keys), device=keys.device)
    return [*first, (same, same), *((out, into) for into, out in reversed(first))]


def submanifold_table(voxels: SparseVoxels, kernel: Triple) -> Tensor:
    """Row int64 [N, kz * ky * kx] of each voxel's neighbour at each cell of an odd kernel, -1 where there is none."""
    return neighbour_table(*_keys_and_shifts(voxels, kernel))


def _keys_and_shifts(voxels: SparseVoxels, kernel: Triple) -> tuple[Tensor, Tensor]:
    """A number int64 [N] for each voxel, and how far that of the neighbour at each kernel cell is from it."""
    half = [k // 2 for k in kernel]
    depth, height, width = (n + 2 * h for n, h in zip(voxels.grid, half, strict=True))  # so that no line wraps
    strides = _key_strides((depth, height, width))
    steps = itertools.product(*(range(-h, h + 1) for h in half))
    shifts = [sum(n * s for n, s in zip(step, strides[1:], strict=True)) for step in steps]
    keys = (voxels.coords.long() * torch.tensor(strides, device=voxels.coords.device)).sum(1)
    return keys, torch.tensor(shifts, device=voxels.coords.device)


def strided_table(
    voxels: SparseVoxels, kernel: Triple, stride: Triple, padding: Triple, out_grid: Triple, first_seen: bool = False
) -> NeighbourTable:
    """Output cells of a strided convolution, and what each reads.

    Args:
        voxels: the input.
        kernel: cells along z, y and x.
        stride: likewise.
        padding: likewise.
        out_grid: cells of the output along z, y and x.
        first_seen: whether output cells stand in the order in which kernel cell after kernel cell reaches them.

    Returns:
        The output cells, by default ascending by (batch, z, y, x), with the pairs of input and output rows of each
            kernel cell.
    """
    coords = voxels.coords.long()
    strides = _key_strides(out_grid)
    axes = [
        [_reached(coords[:, a + 1], k, stride[a], padding[a], out_grid[a]) for k in range(kernel[a])] for a in range(3)
    ]
    rows, keys = [], []
    for (z, in_z), (y, in_y), (x, in_x) in itertools.product(*axes):
        row = (in_z & in_y & in_x).nonzero().squeeze(1)
        rows.append(row)
        keys.append(coords[row, 0] * strides[0] + z[row] * strides[1] + y[row] * strides[2] + x[row])
    unique, inverse = torch.unique(torch.cat(keys), return_inverse=True)
    if first_seen:
        unique, inverse = _as_first_seen(unique, inverse)
    pairs = list(zip(rows, inverse.split([len(r) for r in rows]), strict=True))
    return NeighbourTable(pairs, cell_coords(unique, out_grid), out_grid)


def _as_first_seen(unique: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Unique values and where each value of a list is among them, in the order of their first occurrence in it."""
    place = torch.arange(len(inverse), device=inverse.device)
    first = torch.full_like(unique, len(inverse)).scatter_reduce_(0, inverse, place, "amin")
    order = first.argsort()
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    return unique[order], rank[inverse]


def _reached(position: Tensor, offset: int, stride: int, padding: int, size: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the output cell that reads a position at an offset of its kernel, and whether there is one."""
    shifted = position + padding - offset
    cell = torch.div(shifted, stride, rounding_mode="floor")
    return cell, (cell * stride == shifted) & (cell >= 0) & (cell < size)


def _key_strides(grid: Triple) -> tuple[int, int, int, int]:
    depth, height, width = grid
    return depth * height * width, height * width, width, 1


def convolve_pairs(features: Tensor, weight: Tensor, pairs: Pairs, rows: int) -> Tensor:
    """The sum over kernel cells k of features[input rows] @ weight[k], at the output rows.

    Args:
        features: floating-point [N, in].
        weight: [K, in, out].
        pairs: for each kernel cell (input rows, output rows), each row at most once.
        rows: number of output rows, M.

    Returns:
        [M, out].
    """
    return _apply(features, weight.permute(2, 0, 1)[:, None, None], pairs, rows)


def _apply(features: Tensor, weight: Tensor, pairs: Pairs, rows: int) -> Tensor:
    """Rows [rows, Cout] for a weight [Cout, kz, ky, kx, Cin], computed in its type: autocast narrows what comes in."""
    apply: Callable[..., Tensor] = _TableConvolution.apply
    return apply(features.to(weight.dtype), weight, pairs, rows)


class _TableConvolution(torch.autograd.Function):
    """Sum over kernel cells of gathered inputs times the cell's weights; the gathered rows are not kept."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, pairs: Pairs, rows: int) -> Tensor:
        ctx.save_for_backward(features, weight)
        ctx.pairs = pairs
        inputs, products = _Workspace(features, pairs), _Workspace(features, pairs, weight.shape[0])
        result = features.new_zeros(rows, weight.shape[0])
        for cell, (into, out) in zip(_cells(weight), pairs, strict=True):
            if _is_identity(into, out, rows, len(features)):
                result.addmm_(features, cell.t())
            elif len(into):
                result.index_add_(0, out, products.multiply(inputs.gather(features, into), cell.t()))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        features, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grads, inputs = _Workspace(grad, ctx.pairs), _Workspace(features, ctx.pairs)
        grad_features = torch.zeros_like(features) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for i, (cell, (into, out)) in enumerate(zip(_cells(weight), ctx.pairs, strict=True)):
            if not len(into):
                continue
            identity = _is_identity(into, out, len(grad), len(features))
            rows = grad if identity else grads.gather(grad, out)
            if grad_weight is not None:
                taken = features if identity else inputs.gather(features, into)
                grad_weight.flatten(1, 3)[:, i] = rows.t() @ taken
            if grad_features is not None and identity:
                grad_features.addmm_(rows, cell)
            elif grad_features is not None:
                grad_features.index_add_(0, into, inputs.multiply(rows, cell))
        return grad_features, grad_weight, None, None


def _is_identity(into: Tensor, out: Tensor, outputs: int, inputs: int) -> bool:
    """Whether a kernel cell maps every row to itself, as the centre of a submanifold convolution: nothing to gather."""
    return into is out and len(into) == outputs == inputs


class _Workspace:
    """Memory for the rows of one kernel cell, used again for the next: fresh pages for each cost as much as the work.

    A result is valid until the next call.
    """

    def __init__(self, like: Tensor, pairs: Pairs, channels: int | None = None) -> None:
        longest = max(len(into) for into, _ in pairs)
        self._rows = like.new_empty(longest, like.shape[1] if channels is None else channels)

    def gather(self, features: Tensor, rows: Tensor) -> Tensor:
        """features[rows]"""
        return torch.index_select(features, 0, rows, out=self._rows[: len(rows)])

    def multiply(self, rows: Tensor, matrix: Tensor) -> Tensor:
        """rows @ matrix"""
        return torch.mm(rows, matrix, out=self._rows[: len(rows)])


def _cells(weight: Tensor) -> Sequence[Tensor]:
    """The weights [out, in] of each kernel cell."""
    return weight.flatten(1, 3).unbind(1)


def _triple(value: int | Sequence[int], name: str, minimum: int) -> Triple:
    result = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(result) != 3 or min(result) < minimum:
        raise ValueError(f"{name} must be a number or three (z, y, x), at least {minimum}, got {value}")
    return result


def _checked_engine(engine: str, name: str) -> Engine:
    known: dict[str, Engine] = {"auto": "auto", "native": "native", "spconv": "spconv"}
    if engine not in known:
        raise ValueError(f"{name} must be auto, native or spconv, got {engine!r}")
    return known[engine]


def _resolve(engine: Engine, device_type: str) -> Engine:
    if engine == "auto":
        engine = _checked_engine(os.environ.get(ENVIRONMENT, "auto"), ENVIRONMENT)
    if engine == "auto":
        return "spconv" if device_type == "cuda" and _has_spconv() else "native"
    return engine


@cache
def _has_spconv() -> bool:
    return find_spec("spconv") is not None


@cache
def _spconv() -> Any:
    """spconv's torch module, with its ConvAlgo."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its own use of deprecated torch names
            import spconv.pytorch as module
            from spconv.core import ConvAlgo
    except ImportError as error:
        raise ImportError("the engine 'spconv' needs spconv: pip install pcdet_ext[spconv]") from error
    module.ConvAlgo = ConvAlgo
    return module
