"""Any order, partition and mixer in every backbone: what can work learns, the rest is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from pcdet_ext.grouping.partitions import PARTITIONS
from pcdet_ext.mixers import MIXERS
from pcdet_ext.models.backbones import DSVT, LION, FlatFormer, ScatterFormer, SequenceBackbone
from pcdet_ext.models.layers.mixer_block import MixerBlock
from pcdet_ext.structures import SparseVoxels

GRID = (4, 12, 10)
CHANNELS = 8
ORDERS = [
    {"name": "ZOrder"},
    {"name": "Hilbert"},
    {"name": "Window", "window": [None, 4, 4]},
    {"name": "WindowX", "window": [2, 4, 4], "shift": [1, 0, 2]},
    {"name": "WindowY", "path": "snake", "window": [None, 6, 4]},
    {"name": "LSH", "width": 4.0},
]
PARTITION_NODES = {
    "EqualGroups": {"group_size": 8},
    "RotatedSets": {"group_size": 8},
    "LSHWindows": {"group_size": 8, "width": 4.0, "border_shift": 0.5},
    "OctreeWindows": {"group_size": 8, "dilation": 2},
    "Windows": {},
}
MIXER_NODES: dict[str, dict[str, Any]] = {
    "SoftmaxAttention": {"num_heads": 2},
    "LinearAttention": {"num_heads": 2},
    "Mamba": {},
    "RetNet": {"num_heads": 2},
    "RWKV": {"num_heads": 2},
    "XLSTM": {},
    "TTT": {"num_heads": 2},
    "OctreeAttention": {"num_heads": 2, "group_size": 8},
}
OF_GROUPS = set(MIXER_NODES) - {"LinearAttention"}


def flatformer(**parts: Any) -> nn.Module:
    return FlatFormer(CHANNELS, GRID, num_blocks=1, num_heads=2, orders=ORDERS, **parts)


def dsvt(**parts: Any) -> nn.Module:
    stage = {"num_blocks": [1], "group_sizes": [8], "windows": [[None, 4, 4]], "shifts": [[[0, 0, 0], [0, 2, 2]]]}
    stage |= {"channels": [CHANNELS], "num_heads": [2], "ffn_channels": [16]}
    return DSVT(CHANNELS, GRID, **stage, orders=ORDERS, **parts)


def scatterformer(order: Mapping[str, Any], **parts: Any) -> nn.Module:
    small = {"channels": CHANNELS, "window": (None, 4, 4), "num_layers": 1, "num_heads": 2, "pool_heads": 2}
    return ScatterFormer(CHANNELS, GRID, **small, order=order, **parts)


def sequence(
    partition: Mapping[str, Any], mixer: Mapping[str, Any], block: Mapping[str, Any] | None = None
) -> nn.Module:
    layers = [{"order": order, "partition": partition, "mixer": mixer, "block": block or {}} for order in ORDERS]
    return SequenceBackbone(CHANNELS, GRID, layers)


def lion(partition: Mapping[str, Any], **parts: Any) -> nn.Module:
    """A stage of one resolution, layers of all orders; its cells are merged in the end, so it keeps the loss apart."""
    small = {"windows": [[2, 4, 4]], "group_sizes": [8], "scales": [[[2, 2, 2]]], "out_window": [2, 4, 4]}
    return LION(CHANNELS, GRID, **small, out_group_size=8, orders=ORDERS, partition=partition, generation=0.0, **parts)


BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "FlatFormer": flatformer,
    "DSVT": dsvt,
    "SequenceBackbone": sequence,
    "LION": lion,
} | {f"ScatterFormer, {order['name']}": partial(scatterformer, order) for order in ORDERS}


def parts(partition: str, mixer: str) -> dict[str, dict[str, Any]]:
    nodes = PARTITION_NODES[partition], MIXER_NODES[mixer]
    return {
        key: {"name": name, **node}
        for key, name, node in zip(("partition", "mixer"), (partition, mixer), nodes, strict=True)
    }


def voxels() -> SparseVoxels:
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(2 * 480, generator=generator)[:90]
    coords = torch.stack([cells // 480, cells // 120 % 4, cells // 10 % 12, cells % 10], 1)
    return SparseVoxels(torch.randn(90, CHANNELS, generator=generator), coords.int(), GRID, 2)


def test_the_lists_are_complete() -> None:
    assert set(PARTITION_NODES) == set(PARTITIONS.names())
    assert set(MIXER_NODES) == set(MIXERS.names())


@pytest.mark.parametrize("mixer", MIXER_NODES)
@pytest.mark.parametrize("partition", PARTITION_NODES)
@pytest.mark.parametrize("name", BACKBONES)
def test_combinations_learn_or_are_refused(name: str, partition: str, mixer: str) -> None:
    torch.manual_seed(0)
    if partition == "Windows" and mixer in OF_GROUPS:
        with pytest.raises(ValueError, match=f"{mixer} takes Groups, but Windows gives Segments"):
            BACKBONES[name](**parts(partition, mixer))
        return
    backbone, given = BACKBONES[name](**parts(partition, mixer)), voxels()
    target = torch.randn_like(backbone(given).features)
    optimizer = torch.optim.Adam(backbone.parameters(), 3e-3)
    losses = []
    for _ in range(4):
        loss = (backbone(given).features - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad.isfinite().all() for p in backbone.parameters() if p.grad is not None)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


# Mixers of groups refuse windows without a fixed size, see above.
PAIRS = [(p, m) for p, m in itertools.product(PARTITION_NODES, MIXER_NODES) if p != "Windows" or m not in OF_GROUPS]


@pytest.mark.parametrize(("partition", "mixer"), PAIRS)
@pytest.mark.parametrize("name", BACKBONES)
def test_blocks_without_output_weights_are_the_identity(name: str, partition: str, mixer: str) -> None:
    backbone = BACKBONES[name](**parts(partition, mixer), block={"norm": "pre", "input_norm": False})
    same = []
    for module in backbone.modules():
        if isinstance(module, MixerBlock):
            module.register_forward_hook(lambda _, arguments, y: same.append(torch.equal(y, arguments[0])))
            for key, parameter in module.named_parameters():
                if "out_proj" in key:
                    nn.init.zeros_(parameter)
    backbone(voxels())
    assert same
    assert all(same)
