"""Detectors that remember earlier frames: memory goes in with a batch, and comes out for the next one."""

from pcdet_ext.models.temporal.memory import SequenceMemory, VoxelMemory
from pcdet_ext.models.temporal.registry import TEMPORAL
from pcdet_ext.models.temporal.voxels import VoxelFusion

__all__ = ["TEMPORAL", "SequenceMemory", "VoxelFusion", "VoxelMemory"]
