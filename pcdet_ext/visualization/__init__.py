"""Pictures of frames: points, labels and detections, as a map, a page, an animation, a recording, or a 3-D view."""

from pcdet_ext.visualization.animation import write_animation
from pcdet_ext.visualization.bev import draw_bev
from pcdet_ext.visualization.layers import Forecast, Layers, MapLayer, OccupancyLayer, Plan
from pcdet_ext.visualization.page import write_page
from pcdet_ext.visualization.plots import write_plots
from pcdet_ext.visualization.rerun_recording import write_recording
from pcdet_ext.visualization.scene import Scene, Track, box_edges, read_scene, with_detections
from pcdet_ext.visualization.view import render, show_window

__all__ = [
    "Forecast",
    "Layers",
    "MapLayer",
    "OccupancyLayer",
    "Plan",
    "Scene",
    "Track",
    "box_edges",
    "draw_bev",
    "read_scene",
    "render",
    "show_window",
    "with_detections",
    "write_animation",
    "write_page",
    "write_plots",
    "write_recording",
]
