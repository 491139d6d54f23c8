"""Association of detections over time: trackers that give every object of a sequence a number of its own."""

from pcdet_ext.tracking.base import Tracker
from pcdet_ext.tracking.graph import GraphTracker
from pcdet_ext.tracking.greedy import GreedyTracker
from pcdet_ext.tracking.kalman import KalmanTracker
from pcdet_ext.tracking.trajectory import TrajectoryOptions, TrajectoryTracker

__all__ = ["GraphTracker", "GreedyTracker", "KalmanTracker", "Tracker", "TrajectoryOptions", "TrajectoryTracker"]
