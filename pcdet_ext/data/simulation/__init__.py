"""Simulated LiDAR data: street scenes and drives, sensors ray-cast through them, writers of data formats."""

from pcdet_ext.data.simulation.drive import Drive, Track, drive
from pcdet_ext.data.simulation.generate import (
    simulate_argoverse2,
    simulate_frame,
    simulate_kitti,
    simulate_nuscenes,
    simulate_once,
    simulate_places,
    simulate_semantickitti,
    simulate_waymo,
)
from pcdet_ext.data.simulation.revisits import AerialLidar
from pcdet_ext.data.simulation.scene import Actor, Scene
from pcdet_ext.data.simulation.sensor import EvenLidar, Scan, SpinningLidar
from pcdet_ext.data.simulation.streets import street_scene
from pcdet_ext.data.simulation.waymo_lasers import WaymoLasers
from pcdet_ext.data.simulation.work import Made

__all__ = [
    "Actor",
    "AerialLidar",
    "Drive",
    "EvenLidar",
    "Made",
    "Scan",
    "Scene",
    "SpinningLidar",
    "Track",
    "WaymoLasers",
    "drive",
    "simulate_argoverse2",
    "simulate_frame",
    "simulate_kitti",
    "simulate_nuscenes",
    "simulate_once",
    "simulate_places",
    "simulate_semantickitti",
    "simulate_waymo",
    "street_scene",
]
