"""A folder of one's own clouds and labels: its files, a data set of its frames, their preparation and their metric."""

from pcdet_ext.data.custom.benchmark import evaluate_folders
from pcdet_ext.data.custom.dataset import CustomDataset
from pcdet_ext.data.custom.labels import Labels, read_labels, write_labels
from pcdet_ext.data.custom.layout import Settings, read_settings
from pcdet_ext.data.custom.prepare import CustomFrames

__all__ = [
    "CustomDataset",
    "CustomFrames",
    "Labels",
    "Settings",
    "evaluate_folders",
    "read_labels",
    "read_settings",
    "write_labels",
]
