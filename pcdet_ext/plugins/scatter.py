"""The reductions of `torch_scatter` that detectors of points use, by our operations."""

from __future__ import annotations

import torch
from torch import Tensor

from pcdet_ext.ops import segment_argmax, segment_reduce
from pcdet_ext.ops.segment import Reduction
from pcdet_ext.plugins.imports import is_installed, provide_module, tell


def provide_torch_scatter() -> None:
    """Let `import torch_scatter` give ours where it is not installed."""
    if not is_installed("torch_scatter"):
        tell("torch_scatter is not installed: its scatter_sum, scatter_mean, scatter_max and scatter_min are ours")
        offered = (scatter, scatter_add, scatter_sum, scatter_mean, scatter_max, scatter_min)
        provide_module("torch_scatter", {function.__name__: function for function in offered})


def scatter(
    src: Tensor,
    index: Tensor,
    dim: int = -1,
    out: Tensor | None = None,
    dim_size: int | None = None,
    reduce: str = "sum",
) -> Tensor:
    """`torch_scatter.scatter` along the first axis.

    Args:
        src: rows [P, …], floating point.
        index: int64 [P], the segment that each row belongs to, in any order.
        dim: the first axis, as 0 or counted from the end.
        out: not offered: must be None.
        dim_size: the number S of segments, None for the highest of `index` and one.
        reduce: "sum" (or "add"), "mean", "max" or "min".

    Returns:
        [S, …], zeros for segments without rows.

    Raises:
        NotImplementedError: another axis, type, shape or reduction; the message names it.
    """
    kinds: dict[str, Reduction] = {"add": "sum", "sum": "sum", "mean": "mean", "max": "max", "min": "min"}
    if reduce not in kinds:
        raise NotImplementedError(f"torch_scatter.scatter: reduce={reduce!r} is not offered; use {', '.join(kinds)}")
    rows, segments = _rows("scatter", src, index, dim, out, dim_size)
    return segment_reduce(rows, index, segments, kinds[reduce]).reshape(segments, *src.shape[1:])


def scatter_sum(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """The sum of the rows of each index, [S, …]. Arguments as for `scatter`."""
    return scatter(src, index, dim, out, dim_size, "sum")


def scatter_add(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """Another name of `scatter_sum`. Arguments as for `scatter`."""
    return scatter(src, index, dim, out, dim_size, "sum")


def scatter_mean(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> Tensor:
    """The mean of the rows of each index, [S, …]. Arguments as for `scatter`."""
    return scatter(src, index, dim, out, dim_size, "mean")


def scatter_max(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The maximum of the rows of each index, [S, …], and the row int64 that it comes from, P where there is none.

    Arguments as for `scatter`.
    """
    rows, segments = _rows("scatter_max", src, index, dim, out, dim_size)
    best = segment_reduce(rows, index, segments, "max").reshape(segments, *src.shape[1:])
    chosen = segment_argmax(rows, index, segments)
    return best, torch.where(chosen < 0, len(src), chosen).reshape(best.shape)


def scatter_min(
    src: Tensor, index: Tensor, dim: int = -1, out: Tensor | None = None, dim_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """The minimum of the rows of each index, [S, …], and the row int64 that it comes from, P where there is none.

    Arguments as for `scatter`.
    """
    best, chosen = scatter_max(-src, index, dim, out, dim_size)
    return -best, chosen


def _rows(
    name: str, src: Tensor, index: Tensor, dim: int, out: Tensor | None, dim_size: int | None
) -> tuple[Tensor, int]:
    """The rows [P, C] to reduce, and the number of segments."""
    first = dim in (0, -src.ndim)
    if not first or index.ndim != 1 or out is not None or not src.is_floating_point():
        raise NotImplementedError(
            f"torch_scatter.{name} is offered for floating point src [P, …], index [P] along dim=0 and without out; "
            f"got {src.dtype} {list(src.shape)}, index {list(index.shape)}, dim={dim}"
        )
    segments = dim_size if dim_size is not None else int(index.max()) + 1 if len(index) else 0
    return src.reshape(len(src), -1), segments
