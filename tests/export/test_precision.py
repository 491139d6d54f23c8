"""ONNX models in 16-bit floats and 8-bit integers: which layers, how far off, and what a check says of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_ext import checkpoint
from pcdet_ext.cli.command import main
from pcdet_ext.config import ConfigError
from pcdet_ext.structures import Array, Detections

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from test_onnx import cloud, lively  # noqa: E402

from pcdet_ext.export.check import Comparison, Differences, compare, differences, disagreement, session  # noqa: E402
from pcdet_ext.export.half import to_half  # noqa: E402
from pcdet_ext.export.layers import in_order, inner_layers, tidy  # noqa: E402
from pcdet_ext.export.onnx import export  # noqa: E402
from pcdet_ext.export.quantization import to_int8  # noqa: E402

TYPES = {"float32": 1, "int8": 3, "float16": 10}

# Rows through four layers; a loop reads what the second one gives; the last one's positions lead to a fifth.
GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
g (float[n, 4] points) => (float[n, 4] out, float[k, 4] chosen) {
    bias = Identity (shared)
    a = Gemm (points, w, bias)
    b = Relu (a)
    c = MatMul (b, w)
    d = Add (c, shared)
    many = Constant <value: tensor = int64 {3}> ()
    yes = Constant <value: tensor = bool {1}> ()
    looped = Loop (many, yes, d) <body = step (int64 i, bool on, float[?, 4] now) => (bool again, float[?, 4] then) {
        again = Identity (on)
        sum = Add (now, d)
        then = Sub (sum, now)
    }>
    e = Gemm (looped, large, bias)
    f = Relu (e)
    out = MatMul (f, w)
    two = Constant <value: tensor = int64[1] {2}> ()
    best, place = TopK <axis: int = 0> (out, two)
    cells = Cast <to: int = 1> (place)
    chosen = MatMul (cells, w)
}
"""


def graph(largest: float = 1.0) -> Any:
    """The model of `GRAPH`, whose third layer has a weight of a size."""
    generator = np.random.default_rng(0)
    made = onnx.parser.parse_model(GRAPH)
    weights = {"w": generator.normal(0, 1, (4, 4)), "shared": generator.normal(0, 1, 4)}
    weights["large"] = np.diag([largest, 1, 1, 1])
    for name, values in weights.items():
        made.graph.initializer.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
    tidy(made)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(model: Any, points: Array) -> Array:
    return np.asarray(session(model, 1).run(["out"], {"points": points})[0])


def weight_types(model: Any) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_first_and_last_layers_stay() -> None:
    """The first reads coordinates, the last are decoded; positions that a layer leads to begin anew."""
    assert [node.output[0] for node in inner_layers(graph())] == ["c", "e"]
    assert list(inner_layers(graph())[1].input) == ["looped", "large", "shared"]  # not the copy of the bias


def test_half_floats() -> None:
    points = cloud(200, 4) / 10
    half = to_half(graph())
    onnx.checker.check_model(half, full_check=True)
    found, expected = run(half, points), run(graph(), points)
    assert 0 < np.abs(found - expected).max() < 2e-2
    types = weight_types(half)
    assert {name for name, kind in types.items() if kind == TYPES["float16"]} == {"w_half", "shared_half", "large_half"}
    assert types["w"] == TYPES["float32"]  # of the first and the last layer


def test_weights_beyond_half_floats_stay() -> None:
    assert "large_half" not in weight_types(to_half(graph(1e6)))
    assert "large_half" in weight_types(to_half(graph(6e4)))


def test_integers() -> None:
    points = cloud(200, 4) / 10
    small = to_int8(graph(), [points, points[:40]])
    onnx.checker.check_model(small, full_check=True)
    found, expected = run(small, points), run(graph(), points)
    assert 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    assert sum(kind == TYPES["int8"] and "quantized" in name for name, kind in weight_types(small).items()) == 2
    with pytest.raises(ConfigError, match="needs frames to calibrate on"):
        to_int8(graph(), [])


def test_nodes_in_order() -> None:
    """What a loop reads in its body counts, too."""
    made = graph()
    nodes = list(made.graph.node)[::-1]
    turned = onnx.ModelProto()
    turned.CopyFrom(made)
    del turned.graph.node[:]
    turned.graph.node.extend(nodes)
    in_order(turned)
    onnx.checker.check_model(turned, full_check=True)
    np.testing.assert_array_equal(run(turned, cloud(9, 4)), run(made, cloud(9, 4)))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_detectors(precision: Any) -> None:
    detector = lively("hard-anchors")
    seen = [cloud(3000, 4, seed) for seed in (0, 3)]
    model = export(detector, precision=precision, calibration=seen if precision == "int8" else ())
    assert {node.domain for node in model.graph.node} == {""}
    running = session(model, 1)
    found = compare(detector, running, cloud(3000, 4))
    if precision == "fp16":
        assert found.apart.alone == (0, 0)
        assert found.within(0.1, 1e-3)
    else:
        assert found.found[0] - found.apart.alone[0] > found.found[0] / 2  # boxes of random weights are far off
        assert found.within(2.0, 0.01, detector.model.head.score_threshold)
    for count in (40, 1, 0):
        assert running.run(None, {"points": cloud(count, 4)})[0].shape[1] == 7


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detector = lively("hard-anchors")
    source, out, frame, nothing = (str(tmp_path / n) for n in ("a.ckpt", "a.onnx", "frame.bin", "nothing.bin"))
    checkpoint.write(source, {"config": detector.config.plain(), "model": detector.model.state_dict()})
    cloud(3000, 4).tofile(frame)
    (cloud(10, 4) + 1000).astype(np.float32).tofile(nothing)
    command = ["export", source, out, f"model.head.score_threshold={detector.model.head.score_threshold}"]
    int8 = [*command, "--precision", "int8"]
    assert main([*int8, "--calibrate", frame, "--check", frame, "--tolerance", "1e-6", "1e-6"]) == 1
    assert "more than the tolerance (1e-06, 1e-06), in" in capsys.readouterr().err
    assert json.loads(onnx.load(out).metadata_props[-1].value) == "int8"
    assert main(int8) == 2
    assert main([*command, "--calibrate", frame]) == 2
    assert main([*command, "--tolerance", "1", "1"]) == 2
    capsys.readouterr()
    assert main([*int8, "--calibrate", nothing]) == 1
    assert "nothing.bin: has no point in the range of the detector" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="precision must be one of fp32, fp16, int8, got 'fp8'"):
        export(detector, precision="fp8")  # type: ignore[arg-type]


def some(*boxes: tuple[float, float, float]) -> Detections:
    """Boxes of x, heading and score."""
    values = np.array([[x, 0, 0, 4, 2, 2, heading] for x, heading, _ in boxes], np.float32).reshape(-1, 7)
    scores = np.array([score for *_, score in boxes], np.float32)
    return Detections(values, scores, np.zeros(len(boxes), np.int64), ("Car",))


def test_differences() -> None:
    first = some((0, 0, 0.9), (10, 3.1, 0.8), (20, 0, 0.3))
    second = some((10.25, -3.1, 0.75), (0, 0, 0.9), (22, 0, 0.4))
    apart = differences(first, second)
    assert (apart.box, apart.score) == pytest.approx((0.25, 0.05), abs=1e-6)
    assert (apart.alone, apart.best_alone) == ((1, 1), pytest.approx(0.4))
    assert differences(some(), some()) == Differences(0.0, 0.0)
    assert differences(some((0, 0, 0.9)), some()).alone == (1, 0)
    assert differences(some((0, np.nan, 0.9)), some((0, 0, 0.9))).box > 1e3
    other = replace(second, labels=torch.ones(3, dtype=torch.int64).numpy(), class_names=("Car", "Van"))
    assert differences(replace(first, class_names=("Car", "Van")), other).alone == (3, 3)


def test_what_a_check_says() -> None:
    same = Comparison("a.bin", 9, (2, 2), Differences(1e-4, 1e-5), (0.1, 0.2))
    lost = replace(same, frame="b.bin", found=(1, 0), apart=Differences(0.0, 0.0, (1, 0), 0.35))
    assert disagreement([same], "fp32") == ""
    assert disagreement([same, lost], "fp32") == "onnxruntime finds something else than PyTorch, in b.bin"
    assert disagreement([same, lost], "int8") == ""
    assert disagreement([lost], "int8") == "nothing is found any more in int8, which PyTorch does, in b.bin"
    assert disagreement([same, lost], "int8", (0.1, 0.1), 0.3) == ""  # a score of 0.35 fell below 0.3
    assert "in b.bin" in disagreement([same, lost], "int8", (0.1, 0.1), 0.1)
    assert "in a.bin" in disagreement([same], "fp32", (1e-5, 1.0))
    assert "1 only in PyTorch, 0 only in onnxruntime, of scores up to 0.35" in str(lost)


def test_optimized_linear_layers() -> None:
    """Those of a DSVT for inference, which fp16 and int8 are made from, are recorded by their definition."""
    detector = lively("dsvt-queries").optimize()
    running = session(export(detector), 1)
    assert compare(detector, running, cloud(3000, 4)).agrees
