"""Which layers of an ONNX model may compute in fewer bits; what both 16-bit floats and 8-bit integers ask.

The rule: convolutions and matrix products with weights of their own, except the first ones and the last ones. First are
those that no other such layer lies before: they read coordinates, in metres or as cell numbers, whose steps are finer
than 16-bit floats are far from the sensor. Last are those that no other lies behind: decoding reads from them where a
box is. Everything else stays in float32: voxelisation, keys and orders, scatter, attention between rows, scans,
normalisation, decoding and suppression.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from pcdet_ext.export.packages import import_package
from pcdet_ext.structures import Array

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOAT = 1  # onnx.TensorProto.FLOAT
SMALLEST_FILL = 1024  # elements of a constant from which on one value in all of them is worth a node


def inner_layers(model: Any) -> list[Any]:
    """The nodes of a model, in their order, that may compute in fewer bits.

    Model: an `onnx.ModelProto`; nodes in bodies of loops and scans are not among them.
    """
    weights, floats = set(constants(model)), _float_values(model)
    layers = [n for n in model.graph.node if n.op_type in LAYERS and any(i in weights for i in n.input[1:2])]
    behind_layer = _reached(model.graph.node, layers, floats)
    inner = [n for n in layers if n.input[0] in behind_layer]
    before_layer = _reached(list(reversed(model.graph.node)), layers, floats, backwards=True)
    return [n for n in inner if n.output[0] in before_layer]


def constants(model: Any) -> dict[str, Any]:
    """The tensors of weights and of Constant nodes in a model's graph, as `onnx.TensorProto`, by name."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    return found | {node.output[0]: tensor for node, tensor in _constant_nodes(model)}


def values_of(tensor: Any) -> Array:
    """The values of an `onnx.TensorProto`."""
    return np.asarray(import_package("onnx").numpy_helper.to_array(tensor))


def tidy(model: Any) -> None:
    """Make layers read their weights directly, and leave constants of one value out of the file."""
    _plain_weights(model)
    _without_fills(model)
    without_unused(model)


def _plain_weights(model: Any) -> None:
    """Weights that are equal are one and an Identity as torch writes them, and some are Constant nodes; tools that
    change weights want initializers, which a layer reads itself."""
    copies = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Identity"}
    known, stored = constants(model), {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type not in LAYERS:
            continue
        for place, name in list(enumerate(node.input))[1:]:
            while name in copies:
                name = copies[name]
            if name not in known:
                continue
            if name not in stored:
                tensor = copied(known[name])
                tensor.name = name = f"{name}_weight"
                if name not in stored:
                    model.graph.initializer.append(tensor)
                    stored.add(name)
            node.input[place] = name


def _without_fills(model: Any) -> None:
    """Replace large constants of one value, as the zeros that rows are written into, by their shape and that value."""
    onnx = import_package("onnx")
    for node, tensor in list(_constant_nodes(model)):
        values = values_of(tensor)
        if values.size < SMALLEST_FILL or not bool((values == values.flat[0]).all()):
            continue
        name = node.output[0]
        shape = onnx.numpy_helper.from_array(np.array(values.shape, np.int64), f"{name}_shape")
        value = onnx.numpy_helper.from_array(values.reshape(-1)[:1], "value")
        model.graph.initializer.append(shape)
        node.CopyFrom(onnx.helper.make_node("ConstantOfShape", [shape.name], [name], node.name, value=value))


def without_unused(model: Any) -> None:
    """Leave out nodes and weights that nothing needs, which rewriting has left behind."""
    needed, kept = {value.name for value in model.graph.output}, list[Any]()
    for node in reversed(list(model.graph.node)):
        if not needed.isdisjoint(node.output):
            needed.update(_read(node))
            kept.append(node)
    replace_nodes(model, kept[::-1])
    weights = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)


def in_order(model: Any) -> None:
    """Put each node behind those whose values it reads, in bodies of loops too, and otherwise keep the order."""
    remaining, made = list(model.graph.node), list[Any]()
    computed = {name for node in remaining for name in node.output}
    while remaining:
        waiting = []
        for node in remaining:
            if computed.isdisjoint(_read(node)):
                made.append(node)
                computed.difference_update(node.output)
            else:
                waiting.append(node)
        remaining = waiting
    replace_nodes(model, made)


def replace_nodes(model: Any, nodes: list[Any]) -> None:
    """Put other nodes, also some of its own, in a model's graph."""
    nodes = [copied(node) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def copied(message: Any) -> Any:
    """A copy of a message of ONNX: a model, a node, a tensor."""
    made = type(message)()
    made.CopyFrom(message)
    return made


def _constant_nodes(model: Any) -> Iterator[tuple[Any, Any]]:
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            yield node, node.attribute[0].t


def _float_values(model: Any) -> set[str]:
    """Names of the values in float32; positions and marks, which carry no precision, are not among them."""
    graph = import_package("onnx").shape_inference.infer_shapes(model).graph
    known = [*graph.value_info, *graph.input, *graph.output]
    return {value.name for value in known if value.type.tensor_type.elem_type == FLOAT}


def _reached(nodes: Any, layers: list[Any], floats: set[str], backwards: bool = False) -> set[str]:
    """Names of the float values that an output of a layer leads to or, backwards, that lead to an input of one.

    nodes: in an order in which each comes behind those that reach it.
    """
    starting, found = {node.output[0] for node in layers}, set[str]()
    for node in nodes:
        sources, targets = (node.output, _read(node)) if backwards else (_read(node), node.output)
        if node.output[0] in starting or not found.isdisjoint(sources):
            found.update(name for name in targets if name in floats)
    return found


def _read(node: Any) -> list[str]:
    """Names of the values that a node reads, in bodies of loops too."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*node.input, *(name for body in bodies for inner in body.node for name in _read(inner))]
