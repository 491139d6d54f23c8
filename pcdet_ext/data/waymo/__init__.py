"""The Waymo Open Dataset: its Parquet components, the layout that OpenPCDet converts it to, and a data set of both."""

from pcdet_ext.data.waymo.dataset import POINT_FEATURES, WaymoDataset
from pcdet_ext.data.waymo.frames import Frame, Labels, Layout
from pcdet_ext.data.waymo.layouts import open_layout
from pcdet_ext.data.waymo.parquet import ParquetLayout, open_segment
from pcdet_ext.data.waymo.pickles import read_pickle
from pcdet_ext.data.waymo.prepare import WaymoFrames, prepare_waymo
from pcdet_ext.data.waymo.processed import ProcessedLayout
from pcdet_ext.data.waymo.range_images import Laser, image_points
from pcdet_ext.data.waymo.sequences import EarlierFrame, join, moved

__all__ = [
    "POINT_FEATURES",
    "EarlierFrame",
    "Frame",
    "Labels",
    "Laser",
    "Layout",
    "ParquetLayout",
    "ProcessedLayout",
    "WaymoDataset",
    "WaymoFrames",
    "image_points",
    "join",
    "moved",
    "open_layout",
    "open_segment",
    "prepare_waymo",
    "read_pickle",
]
