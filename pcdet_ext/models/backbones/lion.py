"""LION: linear operators over large groups of voxels (Liu et al., NeurIPS 2024).

backbone = [ block → merge in z, generate voxels ] × stages → layer
block    = [ position, layer → merge ] × depth, then [ layer → add to what was merged, norm ] × depth
layer    = operator along x in groups of one window after the other → operator along y
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from pcdet_ext.config import construct
from pcdet_ext.grouping.orders import ORDERS, Order, WindowX, WindowY
from pcdet_ext.grouping.partitions import PARTITIONS, Partition
from pcdet_ext.models.backbones.registry import BACKBONES
from pcdet_ext.models.layers.mixer_block import MixerBlock, run_on_slots
from pcdet_ext.models.layers.module_list import ModuleListOf
from pcdet_ext.models.layers.position import GridPosition
from pcdet_ext.models.layers.recompute import call
from pcdet_ext.models.layers.sparse_conv import Triple
from pcdet_ext.models.layers.voxel_merging import VoxelMerging
from pcdet_ext.structures import Groups, SparseVoxels

NODE = Mapping[str, Any]
WINDOW_ORDERS = {"x": WindowX, "y": WindowY}


def operator_blocks(mixer: NODE, channels: int, first: bool) -> list[dict[str, Any]]:
    """Settings of the blocks that the published layers put around their operators; any other mixer gets the last ones.

    Args:
        mixer: configuration of the operator.
        channels: C.
        first: whether it is the first layer of the model.
    """
    match mixer.get("name"):
        case "Mamba":
            return [{"mixer": mixer, "norm": "branch"}]
        case "RetNet":
            feed_forward = {"name": "MLP", "ffn_channels": 4 * channels}
            return [{"mixer": mixer, "norm_eps": 1e-6, "feed_forward": feed_forward}]
        case "RWKV":
            feed_forward = {"name": "ChannelMix", "ffn_channels": 4 * channels}
            return [{"mixer": mixer, "layer_scale": 1e-5, "input_norm": first, "feed_forward": feed_forward}]
        case "XLSTM":  # a pair that reads forwards, then backwards
            return [{"mixer": {**mixer, "direction": direction}} for direction in ("forward", "backward")]
        case "TTT":
            return [{"mixer": mixer, "norm_kind": "rms", "norm_eps": 1e-6, "feed_forward": {"name": "SwiGLU"}}]
        case _:
            return [{"mixer": mixer, "feed_forward": {"name": "MLP"}}]


class LIONLayer(nn.Module):
    """Operators over large groups, one pass for each order (section 3.1).

    Args:
        passes: blocks of each pass.
        orders: of the voxels in each pass.
        partition: of each order, into groups.
        recompute: compute passes again in the backward pass instead of keeping their activations.

    Raises:
        ValueError: for a partition that the operator cannot take.
    """

    def __init__(
        self, passes: Sequence[Sequence[MixerBlock]], orders: Sequence[Order], partition: Partition, recompute: bool
    ) -> None:
        super().__init__()
        self.passes = ModuleListOf(ModuleListOf(blocks) for blocks in passes)
        self.orders, self.partition, self.recompute = orders, partition, recompute
        for block in itertools.chain(*passes):
            block.check_partition(partition)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to the same shape and cells."""
        x = voxels.features
        for blocks, order in zip(self.passes, self.orders, strict=True):
            plan = self.partition(voxels, order)
            x = call(_run, blocks, x, plan, recompute=self.recompute)
        return voxels.with_features(x)


def _run(blocks: Iterable[MixerBlock], x: Tensor, plan: Any) -> Tensor:
    if isinstance(plan, Groups):
        return run_on_slots(blocks, x, plan)
    for block in blocks:
        x = block(x, plan)
    return x


class Down(nn.Module):
    """One resolution on the way down: the position is added, a layer mixes, voxels merge.

    Args:
        channels: of the features.
        layer: what mixes.
        merge: what merges.
    """

    def __init__(self, channels: int, layer: LIONLayer, merge: VoxelMerging) -> None:
        super().__init__()
        self.position, self.layer, self.merge = GridPosition(channels), layer, merge

    def forward(self, voxels: SparseVoxels) -> tuple[SparseVoxels, SparseVoxels, Tensor]:
        """The mixed voxels, the merged ones, and the row int64 [N] that each voxel was merged into."""
        fine = self.layer(voxels.with_features(voxels.features + self.position(voxels)))
        coarse, parent = self.merge(fine)
        return fine, coarse, parent


class Up(nn.Module):
    """One resolution on the way up: a layer mixes, and its voxels are added to those that were merged into them."""

    def __init__(self, channels: int, layer: LIONLayer) -> None:
        super().__init__()
        self.layer, self.norm = layer, nn.LayerNorm(channels)

    def forward(self, coarse: SparseVoxels, fine: SparseVoxels, parent: Tensor) -> SparseVoxels:
        """Mix the coarse voxels, and add them to the fine ones.

        Args:
            coarse: the coarse voxels.
            fine: the fine voxels.
            parent: int64 [N], row of the coarse voxel of each fine one.

        Returns:
            The fine voxels with new features.
        """
        mixed = self.layer(coarse)
        return fine.with_features(self.norm(fine.features + mixed.features[parent]))


class LIONBlock(nn.Module):
    """Encoder and decoder over resolutions (figure 3).

    Args:
        channels: C.
        make_layer: makes a layer, with its windows moved by half of one or not; called in the order of the layers.
        scales: cells (z, y, x) that merge from each resolution to the next.
        shift: move the windows of every second layer.
        floor_keys: see `VoxelMerging`.
        described: see `VoxelMerging`.
    """

    def __init__(
        self,
        channels: int,
        make_layer: Callable[[bool], LIONLayer],
        scales: Sequence[Sequence[int]],
        shift: bool,
        floor_keys: bool = False,
        described: bool = True,
    ) -> None:
        super().__init__()
        shifted = [shift and i % 2 == 1 for i in range(len(scales))]
        merges = (VoxelMerging(channels, scale, floor_keys=floor_keys, described=described) for scale in scales)
        self.encoder = ModuleListOf(
            Down(channels, make_layer(moved), merge) for moved, merge in zip(shifted, merges, strict=True)
        )
        self.decoder = ModuleListOf(Up(channels, make_layer(moved)) for moved in shifted)

    def check_grid(self, grid: Triple) -> None:
        """ValueError where a grid (Z, Y, X) does not divide by the scales."""
        for down in self.encoder:
            grid = down.merge.out_grid(grid)

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Features [N, C] to the same shape and cells."""
        merged = []
        for down in self.encoder:
            fine, voxels, parent = down(voxels)
            merged.append((fine, parent))
        for up in self.decoder:
            voxels = up(voxels, *merged.pop())
        return voxels


class Stage(nn.Module):
    """A block at full resolution, then a merge that halves z and generates voxels (sections 3.2 and 3.3)."""

    def __init__(self, block: LIONBlock, merge: VoxelMerging) -> None:
        super().__init__()
        self.block, self.merge = block, merge

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels to merged voxels."""
        merged, _ = self.merge(self.block(voxels))
        return merged


@dataclass(frozen=True)
class LayerSettings:
    """What all layers of a backbone share.

    channels: C; mixer: configuration of the operator; num_layers: blocks of all layers together, by which they are
    numbered; block: settings of `MixerBlock` that differ from the published ones; orders: "x", "y", or configurations
    of orders; partition: configuration of another partition than `EqualGroups`; recompute: see `LIONLayer`.
    """

    channels: int
    mixer: NODE
    num_layers: int
    block: NODE
    orders: Sequence[str | NODE]
    partition: NODE
    recompute: bool

    def layer(self, window: Sequence[int], group_size: int, shift: bool, first_id: int) -> LIONLayer:
        """A layer with windows of one size.

        Args:
            window: cells of a window along z, y and x.
            group_size: voxels that are mixed together.
            shift: whether windows are moved by half of their size.
            first_id: number of the layer's first pass.

        Raises:
            ValueError: the window or the group size is impossible.
        """
        if len(window) != 3 or min(window) < 1:
            raise ValueError(f"a window must be three numbers (z, y, x), at least 1, got {list(window)}")
        if group_size < 1:
            raise ValueError(f"group sizes must be at least 1, got {group_size}")
        z, y, x = window
        moved = (z // 2, y // 2, x // 2) if shift else (0, 0, 0)
        passes = [self._blocks(first_id + i) for i in range(len(self.orders))]
        orders = [self._order(order, (z, y, x), moved) for order in self.orders]
        partition = PARTITIONS.build(self.partition, group_size=group_size)
        return LIONLayer(passes, orders, partition, self.recompute)

    def _blocks(self, layer_id: int) -> list[MixerBlock]:
        place = {"layer_id": min(layer_id, self.num_layers - 1), "num_layers": self.num_layers}
        published = operator_blocks(self.mixer, self.channels, first=layer_id == 0)
        return [construct(MixerBlock, self.block, channels=self.channels, **place, **each) for each in published]

    def _order(self, order: str | NODE, window: Triple, shift: Triple) -> Order:
        if not isinstance(order, str):
            own = "window" in order  # then the shift of the layer's windows means nothing to it
            return ORDERS.build(order) if own else ORDERS.build(order, window=window, shift=shift)
        if order not in WINDOW_ORDERS:
            raise ValueError(f'orders must be "x", "y" or an order\'s name and arguments, got {order!r}')
        return WINDOW_ORDERS[order](window, shift)


@BACKBONES.register
class LION(nn.Module):
    """Stages that mix at full resolution in x and y, each followed by a merge of two cells in z with voxel generation.

    Args:
        in_channels: of the voxels.
        grid: (Z, Y, X) cells.
        mixer: configuration of the linear operator, or of any other mixer.
        windows: cells (Z, Y, X) of a window in each stage.
        group_sizes: voxels of a group in each stage.
        scales: for each stage cells (z, y, x) that merge from each resolution of its block to the next.
        generation: share of voxels that generate new ones.
        shift: move the windows of every second layer by half of one.
        orders: of a layer's passes: "x" or "y" for lines of the windows, or configurations of orders; those of windows
            get the windows of their layer.
        partition: configuration of another partition than `EqualGroups`; it gets the group size.
        block: settings of `MixerBlock` that differ from the published ones of the operator.
        out_window: cells (Z, Y, X) of a window of the layer after the last stage.
        out_group_size: voxels of a group of that layer.
        bev_windows: of layers after one more merge in z (the sparse form, for sparse heads).
        bev_group_sizes: of these layers.
        recompute: activations of operators are computed again in the backward pass instead of being kept.
        floor_keys: see `VoxelMerging`.
        widths: channels of each stage, where they are not those of the input; the merge before a stage changes them.
        merge_repeated: voxels of one cell, which may stand in any order, are first merged into one (UniLION, whose
            memory of earlier frames puts voxels where the present frame has some).
        describe_input: voxels are described and normed before the first stage (UniLION).
        described: whether merges have a description, see `VoxelMerging`.
        out_orders: of the layers behind the stages; None for `orders`. The published ones have "x" and "y" there,
            whatever the stages have.

    Attributes: out_channels, out_grid (Z, Y, X), stride (1: x and y stay), strides (the same of
    z, y and x), takes_repeated (whether voxels may share a cell).

    Raises:
        ValueError: where entries do not fit each other, the grid does not divide, or the mixer cannot take the groups.
    """

    def __init__(
        self,
        in_channels: int,
        grid: Sequence[int],
        mixer: NODE,
        windows: Sequence[Sequence[int]] = ((32, 13, 13), (16, 13, 13), (8, 13, 13), (4, 13, 13)),
        group_sizes: Sequence[int] = (4096, 2048, 1024, 512),
        scales: Sequence[Sequence[Sequence[int]]] = (((2, 2, 2), (2, 2, 2)),) * 4,
        generation: float = 0.2,
        shift: bool = True,
        orders: Sequence[str | NODE] = ("x", "y"),
        partition: NODE | None = None,
        block: NODE | None = None,
        out_window: Sequence[int] = (2, 13, 13),
        out_group_size: int = 256,
        bev_windows: Sequence[Sequence[int]] = (),
        bev_group_sizes: Sequence[int] = (),
        recompute: bool = False,
        floor_keys: bool = False,
        widths: Sequence[int] | None = None,
        merge_repeated: bool = False,
        describe_input: bool = False,
        described: bool = True,
        out_orders: Sequence[str | NODE] | None = None,
    ) -> None:
        super().__init__()
        last = orders if out_orders is None else out_orders
        for each in (orders, last):
            _check_lists(windows, group_sizes, scales, bev_windows, bev_group_sizes, each)
        widths = [in_channels] * len(windows) if widths is None else list(widths)
        if len(widths) != len(windows) or widths[0] != in_channels:
            raise ValueError(f"widths must be {len(windows)} numbers, the first {in_channels}, got {widths}")
        passes = 2 * sum(map(len, scales)) * len(orders)  # in the stages
        settings = LayerSettings(
            channels=in_channels,
            mixer=mixer,
            num_layers=passes + (1 + len(bev_windows)) * len(last),
            block=block or {},
            orders=orders,
            partition=partition or {"name": "EqualGroups"},
            recompute=recompute,
        )
        number, last_number = itertools.count(step=len(orders)), itertools.count(passes, len(last))

        def layer(window: Sequence[int], group_size: int, shifted: bool, width: int) -> LIONLayer:
            return replace(settings, channels=width).layer(window, group_size, shifted, next(number))

        def last_layer(window: Sequence[int], group_size: int) -> LIONLayer:
            own = replace(settings, channels=widths[-1], orders=last)
            return own.layer(window, group_size, shift, next(last_number))

        def merge(width: int = widths[-1], following: int = widths[-1]) -> VoxelMerging:
            return VoxelMerging(width, (2, 1, 1), generation, floor_keys, following, described)

        self.out_channels, self.stride = widths[-1], 1
        depth, height, width = grid
        self.out_grid: Triple = (depth, height, width)
        self.takes_repeated = merge_repeated
        descriptions = [False] * merge_repeated + [described] * describe_input
        self.inputs = ModuleListOf(VoxelMerging(in_channels, (1, 1, 1), described=each) for each in descriptions)
        self.stages = nn.ModuleList()
        following = [*widths[1:], widths[-1]]
        for i, (window, size, steps) in enumerate(zip(windows, group_sizes, scales, strict=True)):

            def make(shifted: bool, window: Any = window, size: int = size, width: int = widths[i]) -> LIONLayer:
                return layer(window, size, shifted, width)

            blocks = LIONBlock(widths[i], make, steps, shift, floor_keys, described)
            stage = Stage(blocks, merge(widths[i], following[i]))
            stage.block.check_grid(self.out_grid)
            self.out_grid = stage.merge.out_grid(self.out_grid)
            self.stages.append(stage)
        self.out_layer = last_layer(out_window, out_group_size)
        self.bev_merge = merge() if bev_windows else None
        if self.bev_merge is not None:
            self.out_grid = self.bev_merge.out_grid(self.out_grid)
        self.strides = (2 ** (len(self.stages) + (self.bev_merge is not None)), 1, 1)
        self.bev_layers = nn.ModuleList(
            last_layer(window, size) for window, size in zip(bev_windows, bev_group_sizes, strict=True)
        )

    def forward(self, voxels: SparseVoxels) -> SparseVoxels:
        """Voxels [N, in_channels] on `grid` to voxels [M, out_channels] on `out_grid`."""
        return self.scales(voxels)[-1]

    def scales(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The voxels after each stage, then the output."""
        for merge in self.inputs:
            voxels, _ = merge(voxels)
        found = []
        for stage in self.stages:
            voxels = stage(voxels)
            found.append(voxels)
        voxels = self.out_layer(voxels)
        if self.bev_merge is not None:
            voxels, _ = self.bev_merge(voxels)
        for layer in self.bev_layers:
            voxels = layer(voxels)
        return [*found, voxels]


def _check_lists(
    windows: Sequence[Any],
    group_sizes: Sequence[int],
    scales: Sequence[Sequence[Any]],
    bev_windows: Sequence[Any],
    bev_group_sizes: Sequence[int],
    orders: Sequence[Any],
) -> None:
    if not len(windows) == len(group_sizes) == len(scales) > 0:
        counts = f"{len(windows)}, {len(group_sizes)} and {len(scales)}"
        raise ValueError(f"windows, group_sizes and scales must have one entry per stage, got {counts}")
    if not all(scales):
        raise ValueError(f"scales must have at least one entry in every stage, got {list(scales)}")
    if len(bev_windows) != len(bev_group_sizes):
        counts = f"{len(bev_windows)} and {len(bev_group_sizes)}"
        raise ValueError(f"bev_windows and bev_group_sizes must have equally many entries, got {counts}")
    if not orders:
        raise ValueError("orders must have at least one entry")
