"""A whole detector as an ONNX model: points in; boxes, scores and labels out; standard operators alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.onnx.errors import UnsupportedOperatorError

from pcdet_ext.config import ConfigError
from pcdet_ext.export import operators
from pcdet_ext.export.half import to_half
from pcdet_ext.export.inlining import inline
from pcdet_ext.export.layers import tidy
from pcdet_ext.export.packages import import_package
from pcdet_ext.export.quantization import to_int8
from pcdet_ext.export.recording import recording
from pcdet_ext.export.writes import RecordingError
from pcdet_ext.files import atomic_write
from pcdet_ext.inference import Detector, with_headings_in_range
from pcdet_ext.models.detector import VoxelDetector
from pcdet_ext.structures import Array, Detections, PointBatch

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
INPUT, OUTPUTS = "points", ("boxes", "scores", "labels")
SMALLEST_OPSET, LARGEST_OPSET = 18, 20  # ScatterND with a maximum; what torch's tracer writes
WITHOUT_FORM = {"FCAF3DHead": "it makes cells and leaves out others by their scores, which is not written yet"}


class WholeDetector(nn.Module):
    """What `Detector.detect` does with one cloud, as one module on tensors: points to boxes, scores and labels."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.model, self.point_features, self.tanh = detector.model, detector.point_features, detector.tanh
        self.intensity_scale = detector.intensity_scale

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points float32 [P, C] to boxes float32 [M, 7 or 9], scores float32 [M] and labels int64 [M]."""
        finite = points.isfinite().all(1)
        cloud = torch.where(finite[:, None], self._columns(points), torch.inf)  # what is infinite is out of range
        frame = torch.zeros_like(cloud[:, 0]).long()
        features = self.model.features(PointBatch(cloud, frame, 1))
        (found,) = self.model.head.decode(self.model.head(features.of(self.model.head.reads)))
        count = finite.long().sum()
        kept = (torch.ones_like(found.labels) * count > 0).nonzero()[:, 0]  # without points there is nothing
        return with_headings_in_range(found.boxes[kept]), found.scores[kept], found.labels[kept]

    def _columns(self, cloud: Tensor) -> Tensor:
        """The columns as the network was trained on them."""
        columns = []
        for number, name in enumerate(self.point_features):
            column = cloud[:, number]
            column = column / self.intensity_scale if name == "intensity" and self.intensity_scale != 1 else column
            columns.append(column.tanh() if name in self.tanh else column)
        return torch.stack(columns, 1)


def export(
    detector: Detector,
    opset: int = SMALLEST_OPSET,
    precision: Precision = "fp32",
    calibration: Sequence[Array] = (),
) -> Any:
    """The ONNX model of a detector on the CPU, for one cloud with any number of points.

    Its input "points" is float32 [P, C], as `Detector.detect` takes them; its outputs are "boxes" float32 [M, 7 or 9],
    "scores" float32 [M] and "labels" int64 [M], in the order of `Detections`. Its metadata name the classes, the point
    features, the range and the voxel size, in JSON.

    Args:
        detector: as `pcdet_ext.load` gives it.
        opset: of the standard operators.
        precision: "fp32"; "fp16" and "int8" for inner layers in 16-bit floats or 8-bit integers (see `layers`).
        calibration: for int8, points float32 [P, C] of some frames, whose values tell the ranges of integers.

    Raises:
        ConfigError: the opset or the precision is not supported, int8 has nothing to calibrate on, the detector is not
            on the CPU, or it does something else than finding boxes with one head.
        RecordingError: a part of the model cannot be written as a graph.
        ImportError: the package onnx is not installed.
    """
    if not SMALLEST_OPSET <= opset <= LARGEST_OPSET:
        raise ConfigError(f"opset must be from {SMALLEST_OPSET} to {LARGEST_OPSET}, got {opset}")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    _check(detector)
    onnx = import_package("onnx")
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "recorded.onnx"))
        _record(detector if precision == "fp32" else detector.optimize(), path, opset)
        model = inline(onnx.load(path), opset)
    del model.graph.value_info[:]  # shapes as the trace saw them, which a runtime infers better
    tidy(model)
    if precision == "fp16":
        model = to_half(model)
    elif precision == "int8":
        model = to_int8(model, calibration)
    onnx.helper.set_model_props(model, metadata(detector) | {"precision": json.dumps(precision)})
    onnx.checker.check_model(model, full_check=True)
    return model


def _record(detector: Detector, path: str, opset: int) -> None:
    """Write the graph of a detector, with calls of functions that are still to be put in."""
    operators.register(opset)
    whole = WholeDetector(detector).eval()
    try:
        with recording(detector.model):
            torch.onnx.export(
                whole,
                (_example(detector),),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_axes={INPUT: {0: "points"}, **{name: {0: "found"} for name in OUTPUTS}},
                custom_opsets={operators.DOMAIN: 1},
            )
    except (NotImplementedError, UnsupportedOperatorError) as error:
        raise RecordingError(f"the model cannot be written as ONNX: {error}") from error


def metadata(detector: Detector) -> dict[str, str]:
    """What a user of the ONNX model must know, by name, each value in JSON."""
    model: Any = detector.model
    geometry = {"point_cloud_range": model.encoder.point_cloud_range, "voxel_size": model.encoder.voxel_size}
    head = {"classes": tuple(model.head.classes), "point_features": detector.point_features}
    return {name: json.dumps(value) for name, value in (head | geometry).items()}


def save(model: Any, path: str | Path) -> None:
    """Write an ONNX model; a file of that name is replaced at once or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(model.SerializeToString())


def _check(detector: Detector) -> None:
    model: Any = detector.model
    if detector.device.type != "cpu":
        raise ConfigError(f"device: a detector is exported on the CPU, this one is on {detector.device}")
    if not isinstance(model, VoxelDetector):
        raise ConfigError(f"model: {type(model).__name__} is no detector, and ONNX models are made of those")
    if getattr(model, "head", None) is None:
        raise ConfigError("model.heads: ONNX models are made of detectors with one head")
    for part in model.modules():
        if type(part).__name__ in WITHOUT_FORM:
            raise ConfigError(f"model: {type(part).__name__} has no ONNX form: {WITHOUT_FORM[type(part).__name__]}")
    if getattr(model.head, "double_flip", False):
        raise ConfigError("model.head.double_flip: four copies of a cloud have no ONNX form; double_flip=false has one")
    if getattr(model.head, "finds", Detections) is not Detections:
        raise ConfigError(f"model.head: {type(model.head).__name__} finds no boxes, which an ONNX model gives")


def _example(detector: Detector, count: int = 4000) -> Tensor:
    """Points float32 [count, C] all over the range, to record with."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(detector.model.encoder.point_cloud_range).view(2, 3)
    points = torch.rand(count, len(detector.point_features), generator=generator)
    points[:, :3] = low + (high - low) * points[:, :3]
    return points
