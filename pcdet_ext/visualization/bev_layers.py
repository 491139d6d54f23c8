"""What a map from above shows beside points and boxes: map, occupied cells, predicted and planned paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pcdet_ext.sketch import TRUTH_COLOUR
from pcdet_ext.structures import Array
from pcdet_ext.visualization.layers import FORECAST_COLOUR, PLAN_COLOUR, Layers, MapLayer, OccupancyLayer
from pcdet_ext.visualization.levels import layer_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

OPACITY = 0.45


def draw_ground(axes: Axes, layers: Layers) -> list[Line2D]:
    """Map and occupied cells; returns lines of the legend."""
    handles = []
    if layers.map is not None:
        handles += _draw_map(axes, layers.map)
    if layers.occupancy is not None:
        handles += _draw_cells(axes, layers.occupancy)
    return handles


def draw_paths(axes: Axes, layers: Layers) -> list[Line2D]:
    """Predicted paths, the likelier the stronger, and planned ones; returns lines of the legend."""
    from matplotlib.lines import Line2D

    labels = {}
    for forecast in layers.forecasts:
        colour = TRUTH_COLOUR if forecast.score is None else FORECAST_COLOUR
        labels["paths that objects went" if forecast.score is None else "predicted paths"] = colour
        strongest = forecast.weights.max(initial=0)
        for path, weight in zip(forecast.paths, forecast.weights, strict=True):
            alpha = 0.15 + 0.85 * float(weight / strongest if strongest > 0 else 1)
            axes.plot(path[:, 0], path[:, 1], color=colour, alpha=alpha, linewidth=1.2)
    for plan in layers.plans:
        colour = PLAN_COLOUR if plan.found else TRUTH_COLOUR
        labels["planned path" if plan.found else "path that was driven"] = colour
        axes.plot(plan.path[:, 0], plan.path[:, 1], color=colour, linewidth=3)
    return [Line2D([], [], color=colour, label=label) for label, colour in labels.items()]


def _draw_map(axes: Axes, layer: MapLayer) -> list[Line2D]:
    colours = layer_colours(layer.names)
    if layer.masks is not None:
        xmin, ymin, xmax, ymax = layer.extent
        for name, mask in zip(layer.class_names, layer.masks, strict=True):
            image = _image(mask, np.zeros(mask.shape, int), [colours[name]])
            axes.imshow(image, extent=(xmin, xmax, ymin, ymax), origin="lower", interpolation="nearest")
    for name, lines in layer.lines.items():
        for line in lines:
            axes.plot(line[:, 0], line[:, 1], color=colours[name], linewidth=1)
    return _handles({name: colour for name, colour in colours.items() if name in _seen(layer)})


def _seen(layer: MapLayer) -> set[str]:
    """The classes of a map that are somewhere."""
    masks = np.zeros((0, 1, 1), bool) if layer.masks is None else layer.masks
    covering = {name for name, mask in zip(layer.class_names, masks, strict=False) if mask.any()}
    return covering | {name for name, lines in layer.lines.items() if lines}


def _draw_cells(axes: Axes, layer: OccupancyLayer) -> list[Line2D]:
    """The highest occupied cell of each column."""
    full = (layer.labels >= 0) & (layer.labels < len(layer.class_names))
    top = layer.labels.shape[2] - 1 - np.argmax(full[:, :, ::-1], axis=2)
    highest = np.take_along_axis(layer.labels, top[..., None], 2)[..., 0]
    colours = layer_colours(layer.class_names)
    columns = np.any(full, axis=2)
    image = _image(columns.T, highest.T, list(colours.values()))
    (x, y), (dx, dy) = layer.low[:2], layer.cell[:2]
    extent = (x, x + dx * layer.labels.shape[0], y, y + dy * layer.labels.shape[1])
    axes.imshow(image, extent=extent, origin="lower", interpolation="nearest")
    there = np.unique(highest[columns]).tolist()
    return _handles({name: colours[name] for i, name in enumerate(layer.class_names) if i in there})


def _image(mask: Array, classes: Array, colours: list[str]) -> Array:
    """RGBA [H, W, 4]: where a mask [H, W] is set the colour of the class there, elsewhere nothing."""
    table = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours])
    image = np.zeros((*mask.shape, 4))
    image[mask] = np.column_stack([table[classes[mask]], np.full(int(mask.sum()), OPACITY)])
    return image


def _handles(colours: dict[str, str]) -> list[Line2D]:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, marker="s", linestyle="", alpha=OPACITY, label=name)
        for name, colour in colours.items()
    ]
