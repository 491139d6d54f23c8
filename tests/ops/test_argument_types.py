"""Every operation names the argument that it cannot use, whatever that is; nothing reaches torch or a kernel."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
from every_op import EXTENT, GRID, SIZE, boxes, coords, rand, table, whole
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_ext import ops
from pcdet_ext.ops.equal_groups import equal_group_slots
from pcdet_ext.ops.neighbours import gather_neighbours, neighbour_table
from pcdet_ext.ops.retention import mlstm, retention
from pcdet_ext.ops.unique_numbers import unique_numbers

POINTS, VOXELS, BOXES, HEADS = rand(50, 4) * 3, coords(), boxes(), rand(2, 40, 2, 4)
KEYS = ops.serialize(VOXELS, GRID, "zorder")
SCAN = {"u": rand(2, 3, 40), "delta": rand(2, 3, 40), "A": -rand(3, 4), "B": rand(2, 4, 40), "C": rand(2, 4, 40)}
CLOUD = {"points": POINTS, "point_cloud_range": EXTENT, "voxel_size": SIZE}
SETS = {"coords": VOXELS, "grid": GRID, "window": (8, 5, 5), "shift": (0, 2, 2)}
REDUCED = {"values": rand(30, 3), "index": whole(4, 30), "num_segments": 5}
ATTENDED = {"qkv": rand(12, 12), "index": torch.arange(12).view(3, 4), "inverse": torch.arange(12), "num_heads": 2}
ATTENDED |= {"valid": torch.ones(3, 4, dtype=torch.bool), "owner": whole(2, 3, 4)}
PAIR, HELD = {"a": BOXES, "b": BOXES}, {"points": POINTS, "boxes": BOXES, "margin": 0.1}
RESULTS = {"OctreeTokens", "RotatedSets"}  # classes, not operations
FUNCTIONS = {name: getattr(ops, name) for name in ops.__all__ if name not in RESULTS} | {
    "equal_group_slots": equal_group_slots,
    "gather_neighbours": gather_neighbours,
    "neighbour_table": neighbour_table,
    "unique_numbers": unique_numbers,
    "retention": retention,
    "mlstm": mlstm,
}
ARGUMENTS: dict[str, list[dict[str, Any]]] = {
    "voxelize": [CLOUD | {"max_points": 3, "max_voxels": 9}],
    "dynamic_voxelize": [CLOUD | {"batch_index": whole(2, 50), "order": "zyx", "pillars": False}],
    "voxel_coordinates": [CLOUD],
    "grid_size": [{"point_cloud_range": EXTENT, "voxel_size": SIZE}],
    "serialize": [
        {"coords": VOXELS, "grid": GRID, "order": "zorder", "depth": 5, "lowest": "z"},
        {"coords": VOXELS, "grid": GRID, "order": "hilbert", "depth": 5},
        SETS | {"order": "window_x", "path": "rows"},
        {"coords": VOXELS, "grid": GRID, "order": "lsh", "projections": 3, "width": 8.0, "seed": 0},
    ],
    "deserialize": [{"keys": KEYS, "order": "zorder", "depth": 5, "lowest": "z"}],
    "octree_parent": [{"keys": KEYS, "levels": 1}],
    "octree_children": [{"keys": KEYS}],
    "octree_tokens": [{"coords": VOXELS, "batch_size": 2, "depth": 5, "anisotropic": True}],
    "octree_from_tokens": [{"tokens": ops.octree_tokens(VOXELS, 2, 5)}],
    "group_attention": [ATTENDED | {"cells": VOXELS[:12, 1:].contiguous(), "table": rand(9, 2)}],
    "equal_group_slots": [
        {"order": torch.arange(9), "inverse": torch.arange(9), "counts": table(4, 5), "size": 4, "sizes": [4, 5]}
    ],
    "gather_neighbours": [{"features": rand(9, 4), "table": whole(9, 3, 2, dtype=torch.int32)}],
    "neighbour_table": [{"keys": KEYS, "shifts": table(-1, 0, 1)}],
    "unique_numbers": [{"numbers": whole(4, 30), "end": 4}],
    "rotated_sets": [SETS | {"batch_size": 2, "set_size": 7}],
    "segment_reduce": [REDUCED | {"reduce": "mean"}],
    "segment_argmax": [REDUCED],
    "segment_softmax": [REDUCED],
    **{f"{name}_bev{pair}": [PAIR] for name in ("iou", "shared_area") for pair in ("", "_paired")},
    **{f"iou_3d{pair}": [PAIR] for pair in ("", "_paired")},
    "nms": [{"boxes": BOXES, "scores": rand(12), "iou_threshold": 0.1, "kind": "rotated", "pre_max": 9, "post_max": 5}],
    "points_in_boxes": [HELD],
    "points_in_each_box": [HELD],
    "octree_depthwise_conv": [{"features": rand(2, 3), "weights": rand(2, 3), "neighbours": whole(2, 2, 2)}],
    "selective_scan": [SCAN | {"D": rand(3), "z": rand(2, 3, 40), "delta_bias": rand(3), "delta_softplus": True}],
    "wkv": [{"r": HEADS, "k": HEADS, "v": HEADS, "w": -HEADS, "u": rand(2, 4), "reverse": False}],
    "scattered_linear_attention": [{**dict.fromkeys("qkv", rand(30, 2, 4)), "offsets": table(0, 10, 30), "eps": 1e-6}],
    "causal_conv1d": [{"x": rand(2, 3, 9), "weight": rand(3, 4), "bias": rand(3), "activation": "silu"}],
    "retention": [{**dict.fromkeys("qkv", HEADS), "decay": torch.tensor([0.5, 0.9]), "chunk": 16}],
    "mlstm": [{**dict.fromkeys("qkv", HEADS), "input_gate": HEADS[..., 0], "forget_gate": HEADS[..., 1], "chunk": 16}],
}
CASES = [
    pytest.param(name, arguments, key, id=f"{name}, {arguments.get('order', '')}{key}")
    for name, variants in ARGUMENTS.items()
    for arguments in variants
    for key in arguments
]
NOTHING_OF_USE = st.one_of(
    st.none(),
    st.text(max_size=3),
    st.booleans(),
    st.sampled_from([-1, 0, -(10**6), 10**30, -(10**30), 1.5, float("nan"), float("inf"), np.int8(3), object()]),
    st.lists(st.one_of(st.integers(-3, 3), st.floats(), st.none(), st.text(max_size=2)), max_size=6),
    st.sampled_from([torch.zeros(0), torch.zeros(3), torch.zeros(2, 2, dtype=torch.bool), np.zeros((2, 2)), {}]),
    st.sampled_from([(10**12,) * 3, [1e-40] * 3, [1e39] * 3, (-1, -1, -1), (0, 0, 0)]),
)


def test_every_operation_is_here() -> None:
    assert set(ARGUMENTS) == set(FUNCTIONS)
    for name, variants in ARGUMENTS.items():
        for arguments in variants:
            FUNCTIONS[name](**arguments)


@pytest.mark.parametrize(("name", "arguments", "key"), CASES)
@settings(max_examples=25, deadline=None)
@given(value=NOTHING_OF_USE)
def test_a_wrong_argument_is_named(name: str, arguments: dict[str, Any], key: str, value: Any) -> None:
    message = ""
    try:
        FUNCTIONS[name](**arguments | {key: value})
    except (ValueError, TypeError) as error:
        message = str(error)
    words = set(re.findall(r"\w+", message))
    # Where two tensors do not fit together, either may be the one that is named.
    named = key in words or (isinstance(value, torch.Tensor) and bool(words & set(arguments)))
    assert not message or named, f"{value!r}: {message}"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_numbers_of_numpy_are_numbers(name: str) -> None:
    for arguments in ARGUMENTS[name]:
        for key, value in arguments.items():
            kind = {int: np.int64, float: np.float64}.get(type(value))
            changed = kind(value) if kind else np.array(value) if isinstance(value, (list, tuple)) else value
            FUNCTIONS[name](**arguments | {key: changed})


def test_sizes_that_no_machine_holds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_points 1000000000 is too large: .* GB"):
        ops.voxelize(POINTS, EXTENT, SIZE, 10**9, 9)
    with pytest.raises(ValueError, match="set_size must lie in"):
        ops.rotated_sets(VOXELS, GRID, 2, (8, 5, 5), (0, 2, 2), 10**9)
    with pytest.raises(ValueError, match=r"batch_size|coords"):
        ops.rotated_sets(VOXELS, GRID, 0, (8, 5, 5), (0, 2, 2), 7)


def test_checks_keep_signatures() -> None:
    assert list(inspect.signature(ops.voxelize).parameters)[:2] == ["points", "point_cloud_range"]
    assert "Non-maximum suppression" in str(ops.nms.__doc__)


def test_numbers_that_are_equal_to_known_ones_are_looked_at() -> None:
    grid = (8, 16, 32)
    for _ in range(2):  # the tuple is known in the second call
        keys = ops.serialize(VOXELS, grid, "window_x", window=(8, 5, 5))
    assert torch.equal(keys, ops.serialize(VOXELS, np.array(grid), "window_x", window=[8, 5, 5]))
    for wrong in ((8, 16.0, 32), (8, 16, True)):
        with pytest.raises(TypeError, match="grid must be a sequence of whole numbers"):
            ops.serialize(VOXELS, wrong, "window_x", window=(8, 5, 5))
    for _ in range(300):  # more tuples than are remembered
        ops.serialize(VOXELS, tuple(map(int, grid)), "window_x", window=(8, 5, 5))
