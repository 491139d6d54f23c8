"""Detecting objects in point clouds with a trained detector."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from pcdet_ext import checkpoint, config
from pcdet_ext.config import ConfigError, Node, section
from pcdet_ext.data.base import check_tanh
from pcdet_ext.data.formats import point_features
from pcdet_ext.data.points import is_one_scan, read_columns
from pcdet_ext.models.detector import ONLY, build_detector, usual_defaults
from pcdet_ext.models.layers.folding import folded
from pcdet_ext.models.places.recognizer import PlaceModel
from pcdet_ext.models.temporal import VoxelMemory
from pcdet_ext.streaming import Stream
from pcdet_ext.structures import Array, Descriptor, Detections, PointBatch, PointLabels, Predictions, tensor_of

Points = Array | Tensor | str | Path
FEWEST_FOR_SCALE, ENOUGH_FOR_SCALE = 100, 4096  # points whose values tell the scale of a column
OTHER_SCALE = 16.0  # times higher or lower than in training
# Kinds of results, and what a head that gives them does.
KINDS = {Detections: "finds boxes", PointLabels: "labels points", Descriptor: "describes places"}
MOST_COLUMNS = 16  # of a point; an array with far more columns and no more rows than this lies on its side
WIDE = 4 * MOST_COLUMNS  # columns of an array that may still be points, of which the further ones are not used

T = TypeVar("T")


def load(
    path: str | Path,
    device: str = "auto",
    overrides: Iterable[str] = (),
    imports: bool = False,
    optimize: bool = False,
) -> Detector:
    """The detector of a checkpoint, ready to detect. Reading the file runs no code.

    Args:
        path: the checkpoint, or the name of one that comes with the library, as "kitti/demo_sim"; a file wins.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ….
        overrides: changes "a.b=value" of the checkpoint's configuration.
        imports: import the modules that the configuration lists as `imports`. That runs their code, so it is only for
            checkpoints that you trust; without it they must be imported already.
        optimize: give what `Detector.optimize` makes of it, which finds the same in less time.

    Raises:
        CheckpointError: the file is missing or damaged.
        ConfigError: an override does not fit, or a module that the model needs is not imported.
        TypeError: the path is no text or path, or the overrides are no list of texts.
    """
    config.require_path(path)
    content = checkpoint.read(path)
    settings = config.from_plain(content["config"], str(path), overrides)
    (config.import_modules if imports else config.require_modules)(settings)
    detector = Detector(settings, device)
    checkpoint.load_model(detector.model, content["model"], path)
    return detector.optimize() if optimize else detector


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
        if torch.empty(0, device=name).is_meta:
            raise RuntimeError("it holds no values")
    except (RuntimeError, AssertionError) as error:  # torch without CUDA answers with an assertion
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


class Detector:
    """A detector with what is needed to use it.

    Attributes: model, the network, in eval mode; classes; point_features, names of the point columns it reads; config,
    the whole configuration; dropped_points, NaN and infinite points that `detect` has left out so far; highest, how
    high columns of points went in training, by name.

    Args:
        settings: the whole configuration.
        device: "cpu", "cuda" or "auto".
        model: the network, or None for a fresh one.
    """

    def __init__(self, settings: Node, device: str = "auto", model: nn.Module | None = None) -> None:
        data = section(settings, "data")
        self.config = settings
        self.classes = tuple(config.setting(data, "classes", Sequence[str], ()))
        self.point_features = point_features(data)
        self.tanh = tuple(config.setting(data, "tanh", Sequence[str], ()))
        try:
            check_tanh(self.tanh, self.point_features)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from error
        self.intensity_scale = float(config.setting(data, "intensity_scale", float, 1.0))
        if self.intensity_scale <= 0:
            raise ConfigError(f"data.intensity_scale: must be above 0, got {self.intensity_scale}")
        self.device = resolve_device(device)
        network: Any = model  # has what a VoxelDetector has
        if network is None:
            with usual_defaults():
                network = build_detector(settings)
        self.model = network.to(self.device).eval()
        self.dropped_points = 0
        self.highest = _highest(settings)

    def optimize(self) -> Detector:
        """A copy of this detector that finds the same in less time, up to rounding.

        Batch norms are folded into the layers before them, and 3x3 convolutions of maps need fewer multiplications and
        compute what repeats in a map only once (see `pcdet_ext.models.layers.folding`). The copy is for inference: its
        model cannot be trained on, and its parameters do not load elsewhere.
        """
        faster = copy.copy(self)
        faster.model = folded(self.model)
        return faster

    def detect(
        self, points: Points | Sequence[Points], batch_size: int = 4, score_threshold: float | None = None
    ) -> Any:
        """Find objects in one point cloud, or in each of a list of them.

        Args:
            points: an array or tensor [N, C] of any real type and layout, with the columns `point_features` first
                (further ones are not used), their values as the files of the data set have them; or the path of a .bin,
                .npy, .pcd, .ply, .las, .laz or .feather file, whose columns are taken by name where the file names
                them. NaN and infinite points are dropped, with a warning, and counted. An empty cloud has no
                detections.
            batch_size: clouds that are worked on at once.
            score_threshold: leave out detections with a lower score. Those below the model's own threshold
                (`model.head.score_threshold` in its configuration) are not there in any case.

        Returns:
            `Detections`, or `Predictions` of a detector with several heads, or a list of these for a list: tensors on
            the input's device for a tensor, arrays otherwise. Headings are in [-π, π); frame_id is the path where one
            was given. Labels of points belong to the points that were not dropped.

        Raises:
            ValueError: for anything but points [N, C].
            TypeError: for what is no array of real numbers, and a score_threshold that is no number.
            DataError: for damaged files, and files without a column that the detector reads.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if score_threshold is not None and (isinstance(score_threshold, bool) or not isinstance(score_threshold, Real)):
            raise TypeError(f"score_threshold must be a number or None, got {score_threshold!r}")
        dropped_before = self.dropped_points
        several = isinstance(points, (list, tuple))
        inputs: list[Any] = list(points) if isinstance(points, (list, tuple)) else [points]
        results: list[Any] = []
        for start in range(0, len(inputs), batch_size):
            results += self._detect_batch(inputs[start : start + batch_size])
        if dropped := self.dropped_points - dropped_before:
            warnings.warn(f"{dropped} points are NaN or infinite and were dropped", stacklevel=2)
        if score_threshold is not None:
            results = [r.above(score_threshold) if isinstance(r, (Detections, Predictions)) else r for r in results]
        return results if several else results[0]

    def describe(self, points: Points | Sequence[Points], batch_size: int = 4) -> Tensor:
        """A descriptor of the place that a point cloud shows, or of each of a list of them.

        Args:
            points: as for `detect`.
            batch_size: clouds that are worked on at once.

        Returns:
            float32 [D], of a list [B, D], of unit length: the smaller the distance of two, the more alike the places.
            On the device of the first input where it is a tensor, else on the CPU.

        Raises:
            ConfigError: the model does not describe places.
            ValueError: a cloud has no point in the range of the model; for anything but points [N, C].
            TypeError, DataError: as `detect`.
        """
        check_finds(self.model, Descriptor)
        several = isinstance(points, (list, tuple))
        inputs: list[Any] = list(points) if isinstance(points, (list, tuple)) else [points]
        if not inputs:
            raise ValueError("points must hold at least one point cloud")
        found = [tensor_of(part_of(f, Descriptor).values) for f in self.detect(inputs, batch_size)]
        for number, values in enumerate(found):
            if not bool(values.any()):
                which = inputs[number] if isinstance(inputs[number], (str, Path)) else f"cloud {number}"
                raise ValueError(f"{which}: has no point in the range that the model describes")
        return torch.stack([values.to(found[0].device) for values in found]) if several else found[0]

    def predict(self, batch: PointBatch) -> list[Any]:
        """What is found in each frame of a batch, on the detector's device; frames without points have no detections.

        Points may come in any order; those of a frame keep theirs.
        """
        return self.predict_and_memory(batch)[0]

    @torch.no_grad()
    def predict_and_memory(
        self, batch: PointBatch, memory: VoxelMemory | None = None
    ) -> tuple[list[Any], VoxelMemory | None]:
        """What `predict` gives, and what a detector that remembers earlier frames needs with the next batch.

        Args:
            batch: the points, with their context where the detector remembers.
            memory: what the batch before left, None at the beginning. A batch without points leaves it as it is.
        """
        own = replace(batch, targets=None, frame_ids=()).to(self.device)
        order = torch.argsort(own.batch_index, stable=True)
        counts = torch.bincount(own.batch_index, minlength=batch.batch_size)
        joined = replace(own, points=own.points[order], batch_index=own.batch_index[order])
        if not len(order):
            found = self._nothing(joined, memory)
        elif not self.remembers:
            found = self.model.predict(joined)
        else:
            found, memory = self.model.predict_and_memory(joined, memory)
        names = batch.frame_ids or ("",) * batch.batch_size
        results = []
        for result, count, name in zip(found, counts.tolist(), names, strict=True):

            def finish(detections: Detections, name: str = name) -> Detections:
                return replace(detections, boxes=with_headings_in_range(tensor_of(detections.boxes)), frame_id=name)

            results.append(_with_detections(result if count else _without_boxes(result), finish))
        return results, memory

    @property
    def remembers(self) -> bool:
        """Whether frames of a recording must come one after the other, because the model remembers those before."""
        return getattr(self.model, "temporal", None) is not None

    def stream(self) -> Stream:
        """Detection frame by frame in recordings, with what a detector over time remembers of them."""
        return Stream(self)

    def cloud(self, points: Points) -> Tensor:
        """The points of one cloud, given as for `detect`, float32 [N, F] on the detector's device, all finite."""
        return self._read(points)

    def _nothing(self, batch: PointBatch, memory: VoxelMemory | None) -> list[Any]:
        """What there is in frames without points, for a batch that has no point at all.

        Heads that tell something of every place, as layers of a map, do so here too.
        """
        if isinstance(self.model, PlaceModel):
            return [Descriptor(torch.zeros(self.model.descriptor_size, device=self.device))] * batch.batch_size
        heads = self.model.named_heads()
        if any(getattr(head, "finds", Detections) not in (Detections, PointLabels) for head in heads.values()):
            return list(
                self.model.predict_and_memory(batch, memory)[0] if self.remembers else self.model.predict(batch)
            )
        found = {name: self._nothing_of(head) for name, head in heads.items()}
        return [found[ONLY] if self.model.head is not None else Predictions(found)] * batch.batch_size

    def _nothing_of(self, head: Any) -> Detections | PointLabels:
        """No box, or labels of no point, as a head finds them."""
        none = torch.zeros(0, dtype=torch.int64, device=self.device)
        if head.reads == "points":
            return PointLabels(none, none.float(), head.class_names, none if hasattr(head, "things") else None)
        boxes = torch.zeros(0, 7, device=self.device)
        return Detections(boxes, none.float(), none, tuple(getattr(head, "classes", self.classes)))

    def _detect_batch(self, inputs: Sequence[Points]) -> list[Any]:
        batch = PointBatch.from_points([self._read(p) for p in inputs])
        names = tuple(str(p) if isinstance(p, (str, Path)) else "" for p in inputs)
        found = self.predict(replace(batch, frame_ids=names))
        return [f.to(p.device) if isinstance(p, Tensor) else f.numpy() for f, p in zip(found, inputs, strict=True)]

    def _read(self, points: Points) -> Tensor:
        """Points float32 [N, F] on the detector's device, all finite."""
        name = "points"
        if isinstance(points, (str, Path)):
            name, points = str(points), read_columns(points, self.point_features)
            self._note_one_scan(name)
        if isinstance(points, np.ma.MaskedArray):  # what is masked is not known
            points = np.ma.filled(points.astype(np.float64), np.nan)
        if not isinstance(points, (np.ndarray, Tensor)):
            raise TypeError(
                f"points must be an array, a tensor, a path or a list of these, got {type(points).__name__}"
            )
        if isinstance(points, Tensor):
            if points.layout != torch.strided or points.is_meta:
                kind = f"{points.layout} on {points.device}"
                raise TypeError(f"{name}: points must be a dense tensor with values, got {kind}")
            points = points.detach()
        self._check_shape(points.shape, name)
        columns = points[:, : len(self.point_features)]
        cloud = columns if isinstance(columns, Tensor) else torch.from_numpy(real_numbers(columns, name))
        if cloud.is_complex():
            raise TypeError(f"{name}: points must be real numbers, got {cloud.dtype}")
        cloud = cloud.to(self.device, torch.float32)
        finite = cloud.isfinite().all(dim=1)
        dropped = int((~finite).sum())
        self.dropped_points += dropped
        cloud = cloud[finite] if dropped else cloud
        cloud = self._with_tanh(self._scaled(cloud))
        self._check_scale(cloud, name)
        return cloud

    def _note_one_scan(self, path: str) -> None:
        """Warn where one scan is all that a detector of several joined scans is given."""
        if is_one_scan(path) and "timestamp" in self.point_features:
            warnings.warn(
                f"{path}: one scan, whose points all have the age (timestamp) 0; this detector reads several scans "
                "joined, and finds less in one alone: frames of a prepared data set have them all",
                stacklevel=5,
            )

    def _scaled(self, cloud: Tensor) -> Tensor:
        """The points with the intensity divided by what training divided it by (`data.intensity_scale`)."""
        if self.intensity_scale == 1 or "intensity" not in self.point_features:
            return cloud
        factors = torch.ones(cloud.shape[1], device=cloud.device)
        factors[self.point_features.index("intensity")] = self.intensity_scale
        return cloud / factors

    def _with_tanh(self, cloud: Tensor) -> Tensor:
        """The points with tanh of the columns of which training took it (`data.tanh`)."""
        if not self.tanh:
            return cloud
        cloud = cloud.clone()
        for name in self.tanh:
            cloud[:, self.point_features.index(name)].tanh_()
        return cloud

    def _check_scale(self, cloud: Tensor, name: str) -> None:
        """Warn of columns that are on another scale than those the detector was trained with."""
        for feature, trained in self.highest.items():
            if feature not in self.point_features or trained <= 0 or len(cloud) < FEWEST_FOR_SCALE:
                continue
            few = cloud[:: max(1, len(cloud) // ENOUGH_FOR_SCALE), self.point_features.index(feature)]
            given = float(few.quantile(0.999))
            if not trained / OTHER_SCALE < given < trained * OTHER_SCALE:
                warnings.warn(
                    f"{name}: {feature} goes to {given:.3g}, but to {trained:.3g} in the data that this detector was "
                    "trained with; is it on another scale (0 to 255 instead of 0 to 1)?",
                    stacklevel=5,
                )

    def _check_shape(self, shape: Sequence[int], name: str) -> None:
        wanted, columns = len(self.point_features), ", ".join(self.point_features)
        needs = f"{name}: this detector needs points [N, {wanted}] ({columns}), got {list(shape)}"
        if len(shape) == 2 and shape[0] in range(wanted, MOST_COLUMNS) and shape[1] > WIDE:
            raise ValueError(f"{needs}: these are columns of points, pass their transpose (points.T)")
        if len(shape) != 2 or shape[1] < wanted:
            raise ValueError(needs)


def _highest(settings: Node) -> dict[str, float]:
    """How high columns of points went in training, as the configuration of a checkpoint says."""
    statistics = settings.get("statistics") or {}
    highest = (statistics.get("highest") or {}) if isinstance(statistics, Mapping) else statistics
    if not isinstance(highest, Mapping) or not all(isinstance(value, int | float) for value in highest.values()):
        raise ConfigError(f"statistics.highest must give a number per column of the points, got {highest!r}")
    return dict(highest)


def boxes_of(found: Detections | Predictions | PointLabels) -> Detections:
    """The boxes in a result, of several heads those of all that find boxes. Raises ConfigError where there are none."""
    if isinstance(found, Predictions) and any(isinstance(part, Detections) for part in found.heads.values()):
        return found.detections
    return part_of(found, Detections)


def part_of(found: Any, kind: type[T]) -> T:
    """The only part of a result that is of a kind, as `PointLabels`. Raises ConfigError for none, or several."""
    parts = found.heads.values() if isinstance(found, Predictions) else [found]
    own = [part for part in parts if isinstance(part, kind)]
    if len(own) > 1:
        raise ConfigError(f"model: {len(own)} heads of this detector give {kind.__name__}, of which one can be taken")
    if not own:
        raise ConfigError(_nothing_of(kind))
    return own[0]


def check_finds(model: Any, kind: type) -> None:
    """Raises ConfigError for a detector of which no head gives results of a kind, to be measured or drawn.

    `Predictions` are the results of whatever heads there are.
    """
    if kind is not Predictions and not any(
        getattr(head, "finds", Detections) is kind for head in model.named_heads().values()
    ):
        raise ConfigError(_nothing_of(kind))


def _nothing_of(kind: type) -> str:
    does = KINDS.get(kind, f"gives {kind.__name__}")
    return f"model: no head of this detector {does}, which is what is to be measured or drawn; add one that does"


def real_numbers(points: Array, name: str) -> Array:
    """A float32 copy of an array of any real type and layout. Raises TypeError for anything else."""
    if points.dtype.kind not in "fiubO":
        raise TypeError(f"{name}: points must be real numbers, got an array of {points.dtype}")
    try:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and dropped as such
            return np.array(points, dtype=np.float32, order="C")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: points must be real numbers ({error})") from None


def with_headings_in_range(boxes: Tensor) -> Tensor:
    """Boxes [M, 7 or 9] whose headings are in [-π, π); those that are stay as they are."""
    heading = boxes[:, 6]
    wrapped = torch.remainder(heading + math.pi, 2 * math.pi) - math.pi
    wrapped = torch.where(wrapped >= math.pi, -math.pi, wrapped)
    inside = (heading >= -math.pi) & (heading < math.pi)
    return torch.cat([boxes[:, :6], torch.where(inside, heading, wrapped)[:, None], boxes[:, 7:]], 1)


def _without_boxes(found: Any) -> Any:
    """A result without its boxes and their forecasts; everything else in it stays."""
    if isinstance(found, Predictions):
        return found.select(lambda boxes: slice(0, 0))
    return found.select(slice(0, 0)) if isinstance(found, Detections) else found


def _with_detections(found: Any, change: Callable[[Detections], Detections]) -> Any:
    """A result with its detections changed; everything else in it stays."""
    if isinstance(found, Predictions):
        return Predictions({name: _with_detections(part, change) for name, part in found.heads.items()})
    return change(found) if isinstance(found, Detections) else found
