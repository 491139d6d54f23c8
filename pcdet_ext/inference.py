"""Detecting objects in point clouds with a trained detector."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext import checkpoint, config
from pcdet_ext.config import ConfigError, Node, section
from pcdet_ext.data.formats import point_features
from pcdet_ext.data.points import read_points
from pcdet_ext.models.detector import build_detector
from pcdet_ext.structures import Array, Detections, PointBatch

Points = Array | Tensor | str | Path


def load(path: str | Path, device: str = "auto", overrides: Iterable[str] = (), imports: bool = False) -> Detector:
    """The detector of a checkpoint, ready to detect. Reading the file runs no code.

    Args:
        path: the checkpoint.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ….
        overrides: changes "a.b=value" of the checkpoint's configuration.
        imports: import the modules that the configuration lists as `imports`. That runs their code, so it is only for
            checkpoints that you trust; without it they must be imported already.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: an override does not fit, or a module that the model needs is not imported.
    """
    content = checkpoint.read(path)
    settings = config.from_plain(content["config"], str(path), overrides)
    (config.import_modules if imports else config.require_modules)(settings)
    detector = Detector(settings, device)
    checkpoint.load_model(detector.model, content["model"], path)
    return detector


def build(path: str | Path, overrides: Iterable[str] = (), device: str = "auto") -> Detector:
    """An untrained detector from a configuration.

    Args:
        path: a configuration file, or the name of one that comes with the library ("lion/nuscenes_mamba"; see
            `list_models`).
        overrides: changes "a.b=value" of it.
        device: as for `load`.

    Raises:
        ConfigError: there is no such configuration, or it cannot be used.
    """
    return Detector(config.load(path, overrides), device)


def resolve_device(name: str) -> torch.device:
    """A device by name, "auto" for CUDA where there is one. Raises ConfigError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA answers with an assertion
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


class Detector:
    """A detector with what is needed to use it.

    model: the network, in eval mode; classes; point_features: names of the point columns it reads; config: the whole
    configuration; dropped_points: NaN and infinite points that `detect` has left out so far.
    """

    def __init__(self, settings: Node, device: str = "auto", model: nn.Module | None = None) -> None:
        data = section(settings, "data")
        self.config = settings
        self.classes = tuple(config.setting(data, "classes", Sequence[str]))
        self.point_features = point_features(data)
        self.device = resolve_device(device)
        self.model = (model if model is not None else build_detector(settings)).to(self.device).eval()
        self.dropped_points = 0

    @overload
    def detect(self, points: Points, batch_size: int = 4, score_threshold: float | None = None) -> Detections: ...

    @overload
    def detect(
        self, points: list[Any] | tuple[Points, ...], batch_size: int = 4, score_threshold: float | None = None
    ) -> list[Detections]: ...

    def detect(
        self,
        points: Points | list[Any] | tuple[Points, ...],
        batch_size: int = 4,
        score_threshold: float | None = None,
    ) -> Detections | list[Detections]:
        """Find objects in one point cloud, or in each of a list of them.

        points: array or tensor [N, C] with the columns `point_features` first (further ones are not used), or the path
        of a .bin, .npy, .pcd or .ply file. NaN and infinite points are dropped, with a warning, and counted. An empty
        cloud has no detections. score_threshold: leave out detections with a lower score.
        Returns tensors on the input's device for a tensor, arrays otherwise; frame_id is the path where one was given.
        Raises ValueError for anything but points [N, C], TypeError for other types, DataError for damaged files.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        dropped_before = self.dropped_points
        inputs: list[Points] = list(points) if isinstance(points, (list, tuple)) else [points]
        results: list[Detections] = []
        for start in range(0, len(inputs), batch_size):
            results += self._detect_batch(inputs[start : start + batch_size])
        if dropped := self.dropped_points - dropped_before:
            warnings.warn(f"{dropped} points are NaN or infinite and were dropped", stacklevel=2)
        if score_threshold is not None:
            results = [r.above(score_threshold) for r in results]
        return results if isinstance(points, (list, tuple)) else results[0]

    @torch.no_grad()
    def predict(self, batch: PointBatch) -> list[Detections]:
        """Detections of each frame of a batch, on the detector's device; frames without points have none."""
        counts = torch.bincount(batch.batch_index, minlength=batch.batch_size)
        found = [self._nothing() for _ in range(batch.batch_size)]
        filled = counts.nonzero().flatten().tolist()
        if filled:
            clouds = torch.split(batch.points.to(self.device), counts.tolist())
            for frame, result in zip(
                filled, self.model.predict(PointBatch.from_points([clouds[i] for i in filled])), strict=True
            ):
                found[frame] = result
        names = batch.frame_ids or ("",) * batch.batch_size
        return [replace(f, frame_id=name, class_names=self.classes) for f, name in zip(found, names, strict=True)]

    def _detect_batch(self, inputs: Sequence[Points]) -> list[Detections]:
        batch = PointBatch.from_points([self._read(p) for p in inputs])
        names = tuple(str(p) if isinstance(p, (str, Path)) else "" for p in inputs)
        found = self.predict(replace(batch, frame_ids=names))
        return [f.to(p.device) if isinstance(p, Tensor) else f.numpy() for f, p in zip(found, inputs, strict=True)]

    def _read(self, points: Points) -> Tensor:
        """Points float32 [N, F] on the detector's device, all finite."""
        name = "points"
        if isinstance(points, (str, Path)):
            name, points = str(points), read_points(points)
        if not isinstance(points, (np.ndarray, Tensor)):
            raise TypeError(
                f"points must be an array, a tensor, a path or a list of these, got {type(points).__name__}"
            )
        wanted = len(self.point_features)
        if points.ndim != 2 or points.shape[1] < wanted:
            columns = ", ".join(self.point_features)
            raise ValueError(f"{name}: this detector needs points [N, {wanted}] ({columns}), got {list(points.shape)}")
        cloud = torch.as_tensor(points[:, :wanted]).to(self.device, torch.float32)
        finite = cloud.isfinite().all(dim=1)
        dropped = int((~finite).sum())
        self.dropped_points += dropped
        return cloud[finite] if dropped else cloud

    def _nothing(self) -> Detections:
        boxes = torch.zeros(0, 7, device=self.device)
        labels = torch.zeros(0, dtype=torch.int64, device=self.device)
        return Detections(boxes, boxes[:, 0], labels, self.classes)
