"""nuScenes (Caesar et al., CVPR 2020): its released files, a data set of them, their preparation and submissions."""

from pcdet_ext.data.nuscenes.dataset import NuScenesDataset
from pcdet_ext.data.nuscenes.frames import Frame, Frames, Objects, Sweep, local_boxes
from pcdet_ext.data.nuscenes.points import FILE_FEATURES, POINT_FEATURES, joined_scans, read_scan
from pcdet_ext.data.nuscenes.poses import Pose
from pcdet_ext.data.nuscenes.prepare import NuScenesFrames
from pcdet_ext.data.nuscenes.results import NuScenesEvaluator, NuScenesResults
from pcdet_ext.data.nuscenes.splits import SPLITS, official_scenes, scenes_of
from pcdet_ext.data.nuscenes.submission import world_rows, write_submission

__all__ = [
    "FILE_FEATURES",
    "POINT_FEATURES",
    "SPLITS",
    "Frame",
    "Frames",
    "NuScenesDataset",
    "NuScenesEvaluator",
    "NuScenesFrames",
    "NuScenesResults",
    "Objects",
    "Pose",
    "Sweep",
    "joined_scans",
    "local_boxes",
    "official_scenes",
    "read_scan",
    "scenes_of",
    "world_rows",
    "write_submission",
]
