"""Argoverse 2's sensor data set (Wilson et al. 2021): its released files, a data set of them, and submissions."""

from pcdet_ext.data.argoverse2.dataset import Argoverse2Dataset
from pcdet_ext.data.argoverse2.logs import FILE_FEATURES, POINT_FEATURES, Frame, Log, Objects, read_log, read_points
from pcdet_ext.data.argoverse2.prepare import Argoverse2Frames
from pcdet_ext.data.argoverse2.results import Argoverse2Evaluator, write_detections

__all__ = [
    "FILE_FEATURES",
    "POINT_FEATURES",
    "Argoverse2Dataset",
    "Argoverse2Evaluator",
    "Argoverse2Frames",
    "Frame",
    "Log",
    "Objects",
    "read_log",
    "read_points",
    "write_detections",
]
