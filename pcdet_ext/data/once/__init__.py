"""ONCE (Mao et al. 2021): its released files, a data set of them, its metric, and files of results."""

from pcdet_ext.data.once import benchmark as _benchmark  # noqa: F401  (registers the metric for files of results)
from pcdet_ext.data.once.dataset import OnceDataset
from pcdet_ext.data.once.prepare import OnceFrames
from pcdet_ext.data.once.results import OnceEvaluator, results_by_frame
from pcdet_ext.data.once.sequences import POINT_FEATURES, Frame, read_points, read_sequence, sequences_of

__all__ = [
    "POINT_FEATURES",
    "Frame",
    "OnceDataset",
    "OnceEvaluator",
    "OnceFrames",
    "read_points",
    "read_sequence",
    "results_by_frame",
    "sequences_of",
]
