"""ONNX models whose inner layers hold weights, and compute, in 8-bit integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pcdet_ext.config import ConfigError
from pcdet_ext.export.layers import LAYERS, copied, in_order, inner_layers, without_unused
from pcdet_ext.export.packages import import_package
from pcdet_ext.files import DataError
from pcdet_ext.inference import Detector
from pcdet_ext.structures import Array

INPUT = "points"


class _Clouds:
    """What onnxruntime's calibration reads: one cloud after the other."""

    def __init__(self, clouds: Sequence[Array]) -> None:
        self.remaining = iter(clouds)

    def get_next(self) -> dict[str, Array] | None:
        cloud = next(self.remaining, None)
        return None if cloud is None else {INPUT: cloud}


def check_calibration(detector: Detector, clouds: Mapping[str, Array]) -> None:
    """Raises DataError for a cloud [P, C], by name, that has no point in a detector's range to calibrate with."""
    low, high = np.array(detector.model.encoder.point_cloud_range, np.float32).reshape(2, 3)
    for name, cloud in clouds.items():
        inside = ((cloud[:, :3] >= low) & (cloud[:, :3] < high)).all(1) & np.isfinite(cloud).all(1)
        if not inside.any():
            raise DataError(f"{name}: has no point in the range of the detector, and so nothing to calibrate on")


def to_int8(model: Any, clouds: Sequence[Array]) -> Any:
    """An `onnx.ModelProto` whose inner layers (see `layers`) compute in 8-bit integers: static quantisation.

    Weights have a scale per channel; what layers read and give has the range that it has in the given clouds.

    Args:
        model: as `onnx.export` gives it, in float32.
        clouds: points float32 [P, C] of some frames as the model will meet them, each with points in range.

    Raises:
        ConfigError: there are no clouds.
    """
    if not clouds:
        raise ConfigError("int8 needs frames to calibrate on, as the model will meet them")
    tools = import_package("onnxruntime.quantization")
    made = copied(model)
    layers = inner_layers(made)
    for number, node in enumerate(layers):  # which quantisation chooses by name
        node.name = f"layer_{number}"
    if not layers:
        return made
    onnx = import_package("onnx")
    onnx.helper.set_model_props(made, {"onnx.quant.pre_process": "onnxruntime.quant"})  # torch did what it asks for
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "quantized.onnx"))
        tools.quantize_static(
            made,
            path,
            _Clouds(clouds),
            per_channel=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=list(LAYERS),
            nodes_to_quantize=[node.name for node in layers],
            extra_options={"MatMulConstBOnly": True},
        )
        made = onnx.load(path)
    in_order(made)
    without_unused(made)
    return made
