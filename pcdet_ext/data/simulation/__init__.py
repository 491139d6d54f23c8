"""Simulated LiDAR frames: street scenes, a spinning sensor ray-cast through them, writers of data formats."""

from pcdet_ext.data.simulation.generate import simulate_frame, simulate_kitti
from pcdet_ext.data.simulation.scene import Actor, Scene, street_scene
from pcdet_ext.data.simulation.sensor import Scan, SpinningLidar

__all__ = ["Actor", "Scan", "Scene", "SpinningLidar", "simulate_frame", "simulate_kitti", "street_scene"]
