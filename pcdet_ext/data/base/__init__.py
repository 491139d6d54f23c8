"""What all data sets have in common: frames as samples, augmented in training, and samples joined to batches."""

from pcdet_ext.data.augment import points as _points  # noqa: F401  (registers its steps)
from pcdet_ext.data.base.batches import collate
from pcdet_ext.data.base.columns import check_tanh, with_tanh
from pcdet_ext.data.base.concatenation import ConcatDataset
from pcdet_ext.data.base.frames import FrameDataset
from pcdet_ext.data.base.protocol import DATASETS, Dataset
from pcdet_ext.data.base.settings import check_classes

__all__ = [
    "DATASETS",
    "ConcatDataset",
    "Dataset",
    "FrameDataset",
    "check_classes",
    "check_tanh",
    "collate",
    "with_tanh",
]
