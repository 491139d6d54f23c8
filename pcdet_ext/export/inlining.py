"""ONNX functions that a recorded graph calls, replaced by what they do: standard operators alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.export.boxes import overlapping_circle, overlapping_rotated
from pcdet_ext.export.functions import FUNCTIONS
from pcdet_ext.export.operators import DOMAIN
from pcdet_ext.export.packages import import_package
from pcdet_ext.export.recording import recording

RECORDED: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "overlapping_circle": overlapping_circle,
    "overlapping_rotated": overlapping_rotated,
}  # functions that are recorded, where those of `FUNCTIONS` are written; of boxes, see `_example`


def inline(model: Any, opset: int) -> Any:
    """An ONNX model in which calls of functions are replaced by what these do.

    Args:
        model: the `onnx.ModelProto`, with calls in the domain `operators.DOMAIN`.
        opset: of the standard operators.
    """
    inliner = import_package("onnx.inliner")
    made: dict[str, Any] = {}
    waiting = set(_called(model.graph.node))
    while waiting:
        name = waiting.pop()
        made[name] = _recorded(name, opset) if name in RECORDED else _parsed(name, opset)
        waiting |= set(_called(made[name].node)) - set(made)
    model.functions.extend(made[name] for name in sorted(made))
    return inliner.inline_local_functions(model)


def _called(nodes: Any) -> Iterator[str]:
    """The names of the functions that nodes call, also inside of loops and scans."""
    for node in nodes:
        if node.domain == DOMAIN:
            yield node.op_type
        for attribute in node.attribute:
            yield from _called(attribute.g.node)


def _parsed(name: str, opset: int) -> Any:
    parser = import_package("onnx.parser")
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{DOMAIN}" : 1]>'
    return parser.parse_function(header + FUNCTIONS[name])


def _recorded(name: str, opset: int) -> Any:
    """A function of tensors as an `onnx.FunctionProto`."""
    onnx = import_package("onnx")
    inputs = _example()
    names = [f"input_{i}" for i in range(len(inputs))]
    module = _Module(RECORDED[name])
    with TemporaryDirectory() as folder:
        path = str(Path(folder, "recorded.onnx"))
        with recording(module):
            torch.onnx.export(
                module,
                inputs,
                path,
                dynamo=False,
                opset_version=opset,
                input_names=names,
                dynamic_axes={each: {0: each} for each, x in zip(names, inputs, strict=True) if x.dim()},
            )
        graph = onnx.load(path).graph
    constants = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    outputs = [output.name for output in graph.output]
    imports = [onnx.helper.make_opsetid("", opset)]
    return onnx.helper.make_function(DOMAIN, name, names, outputs, [*constants, *graph.node], imports)


def _example() -> tuple[Tensor, ...]:
    """Arguments of `boxes.overlapping_rotated`, some boxes overlapping."""
    boxes = torch.tensor([[0.0, 0, 0, 4, 2, 2, 0]]).repeat(3, 1) + torch.arange(3.0)[:, None] / 8
    places = torch.arange(3)
    return boxes, places, boxes.clone(), places.clone(), torch.tensor(0.1, dtype=torch.float64)


class _Module(nn.Module):
    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        return self.function(*arguments)
