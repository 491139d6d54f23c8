"""Pictures of orders, partitions and mixers on the voxels of a cloud, seen from above (matplotlib)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from pcdet_ext.files import atomic_write
from pcdet_ext.grouping.orders import Order
from pcdet_ext.ops import dynamic_voxelize
from pcdet_ext.structures import Array, Groups, Segments, SparseVoxels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

T = TypeVar("T")
PANEL = 3.6  # inches
LEAST = 1e-4  # of the strongest influence, what is drawn in colour
DISTINCT = 20  # colours of matplotlib's palette for groups


def pillars_of(points: Array, area: Sequence[float], size: float) -> SparseVoxels:
    """The occupied pillars of a cloud, without features.

    Args:
        points: float32 [P, 3 or more], x, y, z, … in metres.
        area: minimum x and y, then maximum x and y, in metres.
        size: edge of a pillar in metres.

    Returns:
        Voxels with features [N, 0], sorted by y and x.
    """
    xmin, ymin, xmax, ymax = area
    cloud = torch.from_numpy(np.ascontiguousarray(points[:, :3], np.float32))
    frame = torch.zeros(len(cloud), dtype=torch.int64)
    coords, _ = dynamic_voxelize(cloud, frame, [xmin, ymin, -100, xmax, ymax, 100], [size, size, 200], pillars=True)
    grid = (1, round((ymax - ymin) / size), round((xmax - xmin) / size))
    return SparseVoxels(torch.zeros(len(coords), 0), coords, grid, 1)


def draw_orders(voxels: SparseVoxels, orders: Mapping[str, Order], path: str | Path, dpi: int = 100) -> None:
    """Write a PNG with the curve that each order draws through the voxels, from dark to light along the sequence.

    Steps to a voxel that is no neighbour are thin.

    Args:
        voxels: of one frame.
        orders: by the titles of their panels.
        path: the file.
        dpi: pixels per inch; a panel is 3.6 inches wide.

    Raises:
        ImportError: matplotlib is not installed.
    """
    cells = _cells(voxels)

    def draw(axes: Axes, order: Order) -> None:
        from matplotlib.collections import LineCollection

        curve = cells[order(voxels).order.numpy()]
        steps = np.stack([curve[:-1], curve[1:]], 1)
        far = np.abs(curve[1:] - curve[:-1]).max(1) > 1
        lines = LineCollection(list(steps), cmap="viridis", linewidths=np.where(far, 0.35, 1.5))
        lines.set_array(np.arange(len(steps)))
        axes.add_collection(lines)

    _panels(voxels, orders, draw, path, dpi)


def draw_plans(voxels: SparseVoxels, plans: Mapping[str, Groups | Segments], path: str | Path, dpi: int = 100) -> None:
    """Write a PNG with the groups of each plan in colours: voxels of one colour side by side are in one group.

    Args:
        voxels: of one frame.
        plans: what partitions made of them, by the titles of their panels.
        path: the file.
        dpi: pixels per inch; a panel is 3.6 inches wide.

    Raises:
        ImportError: matplotlib is not installed.
    """

    def draw(axes: Axes, plan: Groups | Segments) -> None:
        colour = np.random.default_rng(0).permutation(plan.num_groups) % DISTINCT
        _squares(axes, voxels, colour[plan.group_of_voxel().numpy()], "tab20", 0, DISTINCT)

    _panels(voxels, plans, draw, path, dpi)


def draw_influence(
    voxels: SparseVoxels,
    layers: Mapping[str, Callable[[Tensor], Tensor]],
    voxel: int,
    path: str | Path,
    channels: int,
    dpi: int = 100,
) -> None:
    """Write a PNG with how strongly each voxel acts on the result at one of them, see `influence`.

    Colours go by the logarithm of the share of the strongest; voxels below a ten-thousandth of it are grey.

    Args:
        voxels: of one frame.
        layers: functions of features [N, channels] to features [N, C], by the titles of their panels.
        voxel: the row that is looked at; it is drawn as a cross.
        path: the file.
        channels: of the features that go in.
        dpi: pixels per inch; a panel is 3.6 inches wide.

    Raises:
        ImportError: matplotlib is not installed.
    """
    cells = _cells(voxels)

    def draw(axes: Axes, layer: Callable[[Tensor], Tensor]) -> None:
        found = influence(layer, len(voxels), channels, voxel).numpy()
        share = found / max(float(found.max()), 1e-30)
        _squares(axes, voxels, np.zeros(len(voxels)), "gray", -1, 3)
        _squares(
            axes,
            voxels,
            np.where(share >= LEAST, np.log10(np.maximum(share, LEAST)), np.nan),
            "plasma",
            math.log10(LEAST),
            0,
        )
        axes.plot(*cells[voxel], "+", color="tab:cyan", markersize=11, markeredgewidth=2)

    _panels(voxels, layers, draw, path, dpi)


def influence(layer: Callable[[Tensor], Tensor], rows: int, channels: int, row: int) -> Tensor:
    """How strongly each row of the input acts on one row of a layer's output: the norm of its gradient.

    Args:
        layer: features [rows, channels] to features [rows, C].
        rows: N.
        channels: of the input, which is drawn from a normal distribution with a fixed seed.
        row: of the output.

    Returns:
        float32 [N], 0 for rows that the output does not depend on.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, channels, generator=generator).requires_grad_()
    out = layer(x)[row]
    weights = torch.randn(out.shape, generator=generator)
    (gradient,) = torch.autograd.grad(out @ weights, x)
    return gradient.norm(dim=1)


def _cells(voxels: SparseVoxels) -> Array:
    """The columns (x, y) of the voxels, int [N, 2]."""
    return voxels.coords[:, [3, 2]].numpy()


def _squares(axes: Axes, voxels: SparseVoxels, values: Array, colours: str, low: float, high: float) -> None:
    """Cells of the grid in the colours of their values, empty ones left out."""
    _, height, width = voxels.grid
    image = np.full((height, width), np.nan)
    x, y = _cells(voxels).T
    image[y, x] = values
    axes.imshow(image, cmap=colours, vmin=low, vmax=high, origin="lower", interpolation="nearest")


def _panels(
    voxels: SparseVoxels, items: Mapping[str, T], draw: Callable[[Axes, T], None], path: str | Path, dpi: int
) -> None:
    figure, panels = _figure(len(items))
    _, height, width = voxels.grid
    for axes, (title, item) in zip(panels, items.items(), strict=True):
        draw(axes, item)
        axes.set(xlim=(-0.5, width - 0.5), ylim=(-0.5, height - 0.5), aspect="equal", xticks=[], yticks=[])
        axes.set_title(title, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def _figure(count: int) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install 'pcdet_ext[vis]'") from error
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(PANEL * columns, (PANEL + 0.2) * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, i + 1, facecolor="#10141a") for i in range(count)]
