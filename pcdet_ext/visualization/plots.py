"""Diagrams of a metric's result, as precision over recall, with matplotlib."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcdet_ext.evaluation.base import Plot, Result
from pcdet_ext.files import atomic_write


def write_plots(result: Result, folder: str | Path) -> list[Path]:
    """Write each diagram of a result as `<folder>/<name>.png`, and return the files written.

    Raises ImportError without matplotlib.
    """
    return [_write(plot, Path(folder) / f"{plot.name}.png") for plot in result.plots()]


def _write(plot: Plot, path: Path) -> Path:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("diagrams need matplotlib: pip install 'pcdet_ext[vis]'") from error
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(title=plot.name, xlabel=plot.x_label, ylabel=plot.y_label)
    for name, (x, y) in plot.curves.items():
        finite = np.isfinite(x) & np.isfinite(y)
        axes.plot(np.asarray(x)[finite], np.asarray(y)[finite], label=name)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path
