"""Runners for the parts of UniLION that make features: encoder, backbones, and memory over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.conformance.golden import Case, Values, every_input, runs
from pcdet_ext.conformance.gradients import probe_gradients
from pcdet_ext.interop import from_official, unilion_names
from pcdet_ext.models.layers.norm import MOMENTUM
from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import PointBatch, SparseVoxels


@runs("unilion", "vfe")
@every_input
def run_encoder(case: Case, grads: bool) -> Values:
    """Points of several samples to voxels, in evaluation and training mode."""
    encoder: Any = from_official("unilion", case.config, case.tensors("param"))
    clouds = [cloud.requires_grad_(grads) for cloud in case.tensors("in.points").values()]
    batch = PointBatch.from_points(clouds)
    trained = any(key.startswith("out.train_mode") for key in case.arrays)
    if trained:
        _undo_training_step(encoder, batch)
    voxels = encoder(batch)
    values: dict[str, Any] = {"out.voxel_features": voxels.features, "out.voxel_coords": voxels.coords}
    if grads:
        inputs = {f"in.points.{number}": cloud for number, cloud in enumerate(clouds)}
        values |= probe_gradients(case, values, encoder, inputs, str)
    if trained:
        values["out.train_mode_features"] = encoder.train()(batch).features
        values |= {f"out.train_mode.{name}": value for name, value in encoder.named_buffers()}
    return values


@torch.no_grad()
def _undo_training_step(encoder: nn.Module, batch: PointBatch) -> None:
    """Set the running statistics of batch norms back to what they were before one training step on a batch.

    A case that has outputs in training mode was written after that step, its statistics with it: what it has as
    parameters are the statistics afterwards, while its outputs in evaluation mode were computed before. The step is
    undone by its own rule, new = (1 - m) old + m batch.
    """
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)]
    after = {name: value.clone() for name, value in encoder.named_buffers()}
    for norm in norms:
        norm.momentum = 1.0  # the statistics of the batch alone
    encoder.train()(batch)
    for norm in norms:
        norm.momentum = MOMENTUM
    for name, running in encoder.named_buffers():
        if running.is_floating_point():  # and not a counter
            running.copy_((after[name] - MOMENTUM * running) / (1 - MOMENTUM))
    encoder.eval()


@runs("unilion", "lion3d_backbone")
@every_input
def run_backbone(case: Case, grads: bool) -> Values:
    """Voxels, some of which share a cell, through a 3-D backbone."""
    backbone: Any = from_official("unilion", case.config, case.tensors("param"))
    coords = case.tensor("in.voxel_coords")
    features = case.tensor("in.voxel_features").requires_grad_(grads)
    frames = int(coords[:, 0].max()) + 1
    out = backbone(SparseVoxels(features, coords, tuple(reversed(case.config["grid_size"])), frames))
    values = {"out.features": out.features, "out.indices": out.coords, "out.spatial_shape": torch.tensor(out.grid)}
    inputs = {"in.voxel_features": features}
    return values | (probe_gradients(case, values, backbone, inputs, unilion_names.backbone_name) if grads else {})


@runs("unilion", "bev_backbone_neck")
@every_input
def run_map_backbone(case: Case, grads: bool) -> Values:
    """A map through a 2-D backbone and its neck."""
    backbone: Any = from_official("unilion", case.config, case.tensors("param"))
    bev = case.tensor("in.bev").requires_grad_(grads)
    values = {"out.bev": backbone(bev)}
    return values | (probe_gradients(case, values, backbone, {"in.bev": bev}, unilion_names.bev_name) if grads else {})


@runs("unilion", "temporal")
@every_input
def run_memory(case: Case, grads: bool) -> Values:
    """Frames of several sequences, one after the other, with what is remembered after each."""
    config = {key: value for key, value in case.config.items() if key != "frames"}
    fusion: Any = from_official("unilion", config, case.tensors("param"))
    grid = tuple(reversed(config["grid_size"]))
    values: dict[str, Any] = {}
    inputs: dict[str, Tensor] = {}
    memory = None
    for number, frames in enumerate(case.config["frames"]):
        given = case.inputs(f"in.{number}")
        context = context_of(given, frames)
        features = inputs[f"in.{number}.voxel_features"] = given["voxel_features"].requires_grad_(grads)
        before = memory
        fused, memory = fusion(SparseVoxels(features, given["voxel_coords"], grid, len(frames)), context, memory)
        values |= {f"out.{number}.features": fused.features, f"out.{number}.indices": fused.coords}
        values |= _remembered(f"out.{number}", before, memory)
    return values | (probe_gradients(case, values, fusion, inputs, unilion_names.temporal_name) if grads else {})


def context_of(given: Mapping[str, Tensor], frames: Sequence[tuple[str, float]]) -> FrameContext:
    """Poses, times and sequences of the frames of one step.

    Args:
        given: arrays of the step: "ego2global", and "timestamp" where times are given there, too.
        frames: sequence and time in seconds of each frame, as the settings have them.

    Raises:
        ValueError: the times of the arrays are not those of the settings.
    """
    times = torch.tensor([time for _, time in frames], dtype=torch.float64)
    if "timestamp" in given and given["timestamp"].tolist() != times.to(given["timestamp"].dtype).tolist():
        raise ValueError(f"frames: times {times.tolist()}, but timestamp says {given['timestamp'].tolist()}")
    return FrameContext(given["ego2global"], times, tuple(name for name, _ in frames))


def _remembered(prefix: str, before: VoxelMemory | None, memory: VoxelMemory) -> dict[str, Any]:
    """Which frames began a sequence, and the voxels that are remembered, as (sample, z, y, x) in metres."""
    values: dict[str, Any] = {}
    began = []
    for number, slot in enumerate(memory.slots):
        assert slot is not None
        earlier = None if before is None else before.slot(number)
        began.append(earlier is None or (earlier.sequence_id, earlier.began) != (slot.sequence_id, slot.began))
        sample = torch.full((len(slot), 1), number, dtype=torch.float64)
        values[f"{prefix}.memory.{number}.coords"] = torch.cat([sample, slot.positions.flip(1)], 1).float()
        values[f"{prefix}.memory.{number}.timestamp"] = torch.tensor(slot.began, dtype=torch.float64)
    return values | {f"{prefix}.start": torch.tensor(began)}
