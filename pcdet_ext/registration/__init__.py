"""Laying two clouds of one place over each other: correspondences, poses and their errors."""

from pcdet_ext.registration.pose import (
    FPFH,
    NetworkDescriber,
    PoseError,
    Registration,
    pose_error,
    pose_of_matches,
    register,
)
from pcdet_ext.registration.training import load_network

__all__ = [
    "FPFH",
    "NetworkDescriber",
    "PoseError",
    "Registration",
    "load_network",
    "pose_error",
    "pose_of_matches",
    "register",
]
