"""ONNX models whose inner layers hold weights, and compute, in 16-bit floats."""

from __future__ import annotations

from typing import Any

import numpy as np

from pcdet_ext.export.layers import FLOAT, constants, copied, inner_layers, replace_nodes, values_of, without_unused
from pcdet_ext.export.packages import import_package

BETWEEN = ("Add", "Concat", "MaxPool", "Pad", "Relu")  # what stays in 16 bits between two such layers
HALF = 10  # onnx.TensorProto.FLOAT16
HIGHEST = float(np.finfo(np.float16).max)


def to_half(model: Any) -> Any:
    """A copy of an `onnx.ModelProto` whose inner layers (see `layers`) compute in 16-bit floats.

    Inputs and outputs stay float32, and so does a layer with a weight beyond what 16-bit floats hold.
    """
    made = copied(model)
    known = constants(made)
    layers = {node.output[0] for node in inner_layers(made) if _fits(node, known)}
    halving, nodes = _Halving(known), list[Any]()
    for node in made.graph.node:
        if node.output[0] in layers or halving.is_between(node):
            nodes += halving.halved(node)
        else:
            nodes.append(node)
    replace_nodes(made, nodes)
    made.graph.initializer.extend(halving.initializers)
    without_unused(made)
    return made


class _Halving:
    """What is there in 16 bits so far. A value x in 16 bits is named x_half.

    constants: the tensors that the graph holds, by name.
    """

    def __init__(self, constants: dict[str, Any]) -> None:
        self.helper, self.numpy_helper = (getattr(import_package("onnx"), n) for n in ("helper", "numpy_helper"))
        self.constants = constants
        self.computed, self.known = set[str](), set[str]()  # outputs of halved nodes; all values in 16 bits
        self.initializers = list[Any]()

    def is_between(self, node: Any) -> bool:
        """Whether a node reads floats that are there in 16 bits, and constants, alone."""
        read = [name for name in node.input if name and name not in self.constants]
        return node.op_type in BETWEEN and bool(read) and self.computed.issuperset(read)

    def halved(self, node: Any) -> list[Any]:
        """A node that computes in 16 bits, casts of what it reads before it, and casts back of what it gives behind."""
        casts, inputs = list[Any](), []
        for name in node.input:
            if name and name not in self.known:
                casts += self._to_half(name)
            inputs.append(f"{name}_half" if name in self.known else name)
        made = copied(node)
        made.input[:] = inputs
        made.output[:] = [f"{name}_half" for name in node.output]
        self.computed.update(node.output)
        self.known.update(node.output)
        return [*casts, made, *(self._cast(f"{name}_half", name, FLOAT) for name in node.output)]

    def _to_half(self, name: str) -> list[Any]:
        """Bring a value to 16 bits; positions and sizes stay as they are."""
        constant = self.constants.get(name)
        if constant is not None and constant.data_type != FLOAT:
            return []
        self.known.add(name)
        if constant is None:
            return [self._cast(name, f"{name}_half", HALF)]
        values = values_of(constant).astype(np.float16)
        self.initializers.append(self.numpy_helper.from_array(values, f"{name}_half"))
        return []

    def _cast(self, source: str, target: str, kind: int) -> Any:
        return self.helper.make_node("Cast", [source], [target], f"{target}_cast", to=kind)


def _fits(node: Any, known: dict[str, Any]) -> bool:
    own = [values_of(known[name]) for name in node.input[1:] if name in known]
    return all(float(np.abs(values).max(initial=0)) <= HIGHEST for values in own)
