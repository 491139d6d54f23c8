"""SemanticKITTI: its files, a data set of its frames, their preparation, its metrics and its results."""

from pcdet_ext.data.semantickitti.benchmark import semantickitti
from pcdet_ext.data.semantickitti.dataset import SemanticKittiDataset
from pcdet_ext.data.semantickitti.labels import CLASSES, THINGS, LabelMap, read_labels, write_labels
from pcdet_ext.data.semantickitti.prepare import SemanticKittiFrames
from pcdet_ext.data.semantickitti.results import PointLabelEvaluator
from pcdet_ext.data.semantickitti.sequences import Frame, calibration_text

__all__ = [
    "CLASSES",
    "THINGS",
    "Frame",
    "LabelMap",
    "PointLabelEvaluator",
    "SemanticKittiDataset",
    "SemanticKittiFrames",
    "calibration_text",
    "read_labels",
    "semantickitti",
    "write_labels",
]
