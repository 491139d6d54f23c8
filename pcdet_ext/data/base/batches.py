"""Samples joined to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.utils.data

from pcdet_ext.scenes import FrameContext
from pcdet_ext.structures import PointBatch, Sample, Targets


def collate(samples: Sequence[Sample], classes: Sequence[str]) -> PointBatch:
    """Join samples to a batch; labels are positions in `classes`. Ground truth only where every sample has some.

    Raises ValueError for samples with different columns, and for boxes of a class that is not in `classes`.
    """
    features = {sample.point_features for sample in samples}
    if len(features) > 1:
        raise ValueError(f"samples with different columns in one batch: {sorted(features)}")
    batch = PointBatch.from_points([torch.from_numpy(np.ascontiguousarray(s.points)) for s in samples])
    targets = [_numbered(s.targets, classes, s.frame_id) for s in samples if s.targets is not None]
    complete = len(targets) == len(samples)
    told = [s.command for s in samples if s.command is not None]
    return replace(
        batch,
        frame_ids=tuple(s.frame_id for s in samples),
        targets=tuple(targets) if complete else None,
        commands=torch.tensor(told, dtype=torch.int64) if len(told) == len(samples) else None,
        context=_context(samples),
    )


def _context(samples: Sequence[Sample]) -> FrameContext | None:
    """Where and when the samples were taken, or None where that is not known of every one."""
    if any(sample.pose is None or sample.timestamp is None for sample in samples):
        return None
    poses = torch.from_numpy(np.stack([np.asarray(sample.pose, np.float64) for sample in samples]))
    times = torch.tensor([sample.timestamp for sample in samples], dtype=torch.float64)
    return FrameContext(poses, times, tuple(sample.sequence_id for sample in samples))


def _numbered(targets: Targets, classes: Sequence[str], frame_id: str) -> Targets:
    """Targets with tensors, their labels being positions in `classes`."""
    numbered = targets.of_classes(classes)
    if len(numbered) < len(targets):
        others = sorted(set(targets.names) - set(classes))
        raise ValueError(f"frame {frame_id!r} has boxes of {', '.join(others)}, not one of {', '.join(classes)}")
    return numbered.tensors()
