"""Components of this library in the shape of mmdetection3d's, for its registry `MODELS`.

Each takes `config`, a node of this library such as `dict(name="LION", mixer=dict(name="Mamba"))`, checked by its
schema. Channels, grid, range and voxel size follow from the detector's other sections, see `registration`; whoever
builds a part alone says them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.config import ConfigError, Node, Registry
from pcdet_ext.interop import flatformer
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.backbones import BACKBONES
from pcdet_ext.models.bev import BEV_BACKBONES, flatten_to_bev
from pcdet_ext.models.encoders import ENCODERS
from pcdet_ext.models.heads import HEADS
from pcdet_ext.ops import grid_size
from pcdet_ext.plugins.nodes import node_at, plain
from pcdet_ext.structures import Detections, PointBatch, SparseVoxels, Targets

Config = Mapping[str, Any]


class PcdetExtVoxelEncoder(nn.Module):
    """A section voxel_encoder: points, or voxels of the data preprocessor, to features of voxels.

    Encoders of hard voxels take (voxels, num_points, coors) and return features [V, C]; those of dynamic voxels take
    (points, coors), for detectors of dynamic voxels, and return features and coors (batch, z, y, x).

    Args:
        config: one of our encoders.
        in_channels: columns of the points.
        voxel_size: (x, y, z), metres.
        point_cloud_range: minimum (x, y, z), then maximum.
        section: where the part stands in a detector's configuration, for messages.

    Raises:
        ConfigError: for a wrong or missing key; the message names the section.
    """

    def __init__(
        self,
        config: Config,
        in_channels: int | None = None,
        voxel_size: Sequence[float] | None = None,
        point_cloud_range: Sequence[float] | None = None,
        section: str = "voxel_encoder",
    ) -> None:
        super().__init__()
        self.section = section
        need(section, in_channels=in_channels, voxel_size=voxel_size, point_cloud_range=point_cloud_range)
        context = {"in_channels": in_channels, "voxel_size": voxel_size, "point_cloud_range": point_cloud_range}
        self.network = build(ENCODERS, section, config, **context)

    def forward(self, features: Tensor, *rest: Any) -> Tensor | tuple[Tensor, Tensor]:
        """Features of voxels; see the class. Raises ConfigError where voxels and encoder are of different kinds."""
        hard, name = features.ndim == 3, type(self.network).__name__
        if hard != hasattr(self.network, "encode"):
            kinds = ("hard", "dynamic") if hard else ("dynamic", "hard")
            raise ConfigError(
                f"{self.section}: {name} wants {kinds[1]} voxels, but data_preprocessor makes {kinds[0]} ones "
                "(voxel_type, and max_num_points of voxel_layer)"
            )
        if hard:
            num_points, coors = rest[0], rest[1]
            return self.network.encode(features, coors.int(), num_points, batch_size_of(coors)).features
        coors = rest[0]
        batch = PointBatch(features.contiguous(), coors[:, 0].long(), batch_size_of(coors))
        voxels = self.network(batch)
        return voxels.features, voxels.coords


class PcdetExtMiddleEncoder(nn.Module):
    """A section middle_encoder: features of voxels, through one of our 3-D backbones, to a bird's-eye-view map.

    Args:
        config: one of our backbones; or `dict(type="FlatFormer", …)` as published with FlatFormer.
        in_channels: of the voxels.
        sparse_shape: cells (z, y, x) of the voxel grid; None where the next two say it.
        voxel_size: (x, y, z), metres, for backbones that ask for it.
        point_cloud_range: minimum (x, y, z), then maximum, metres, likewise.
        section: where the part stands in a detector's configuration, for messages.

    Attributes: out_channels, of the map (channels times cells along z), and stride, voxels per cell of it.

    Raises:
        ConfigError: for a wrong or missing key, or a grid that does not fit; the message names the section.
    """

    def __init__(
        self,
        config: Config,
        in_channels: int | None = None,
        sparse_shape: Sequence[int] | None = None,
        voxel_size: Sequence[float] | None = None,
        point_cloud_range: Sequence[float] | None = None,
        section: str = "middle_encoder",
    ) -> None:
        super().__init__()
        if sparse_shape is None and voxel_size is not None and point_cloud_range is not None:
            sparse_shape = grid_size(point_cloud_range, voxel_size)[::-1]
        need(section, in_channels=in_channels, sparse_shape=sparse_shape)
        z, y, x = (int(cells) for cells in sparse_shape or ())
        self.section, self.in_channels, self.grid = section, in_channels, (z, y, x)
        context = {"voxel_size": voxel_size, "point_cloud_range": point_cloud_range}
        given = {key: value for key, value in context.items() if value is not None}
        self.network = build(BACKBONES, section, config, in_channels=in_channels, grid=self.grid, **given)
        self.out_channels = int(self.network.out_channels * self.network.out_grid[0])
        self.stride = int(self.network.stride)

    def forward(self, voxel_features: Tensor, coors: Tensor, batch_size: int, *_: Any) -> Tensor:
        """Run the backbone and flatten its result.

        Args:
            voxel_features: floating-point [V, in_channels].
            coors: integer [V, 4] (batch, z, y, x).
            batch_size: number of frames.

        Returns:
            The map [B, out_channels, Y, X].

        Raises:
            ConfigError: the channels are others than those it was built for, or voxels lie outside of its grid.
        """
        if voxel_features.shape[1] != self.in_channels:
            raise ConfigError(
                f"{self.section}: built for {self.in_channels} channels, but voxel_encoder gives "
                f"{list(voxel_features.shape)}"
            )
        coords = coors.int()
        if len(coords) and bool((coords[:, 1:].amax(0) >= coords.new_tensor(self.grid)).any()):
            raise ConfigError(
                f"{self.section}: voxels go up to {coords[:, 1:].amax(0).tolist()} (z, y, x), beyond sparse_shape "
                f"{list(self.grid)}; voxel_layer's point_cloud_range and voxel_size make the grid"
            )
        return flatten_to_bev(self.network(SparseVoxels(voxel_features, coords, self.grid, int(batch_size))))


class FlatFormer(PcdetExtMiddleEncoder):
    """The section middle_encoder that was published with FlatFormer, for mmdetection3d 0.15, as it stands."""

    def __init__(self, section: str = "middle_encoder", **settings: Any) -> None:
        try:
            with every_setting_counts({"middle_encoder": plain(settings)}) as view:
                published = view["middle_encoder"]
                backbone, cells = flatformer.backbone(published), flatformer.grid(published)
                channels = published["in_channels"]
        except (KeyError, ValueError) as error:
            raise ConfigError(f"{section}: {error}") from error
        super().__init__(backbone, channels, cells, section=section)


class PcdetExtBackbone(nn.Module):
    """A section backbone: one of our 2-D backbones on the map; a neck is not needed behind it.

    Args:
        config: one of our 2-D backbones.
        in_channels: of the map.
        section: where the part stands in a detector's configuration, for messages.

    Attributes: out_channels and stride.

    Raises:
        ConfigError: for a wrong or missing key; the message names the section.
    """

    def __init__(self, config: Config, in_channels: int | None = None, section: str = "backbone") -> None:
        super().__init__()
        need(section, in_channels=in_channels)
        self.network = build(BEV_BACKBONES, section, config, in_channels=in_channels)
        self.out_channels, self.stride = int(self.network.out_channels), self.network.stride

    def forward(self, bev: Tensor) -> list[Tensor]:
        """A map [B, C, Y, X] to a list with the one that heads read."""
        return [self.network(bev)]


class PcdetExtHead(nn.Module):
    """A section bbox_head: one of our heads on a map.

    Args:
        config: one of our heads.
        classes: names of the classes, in the order of mmdetection3d's labels.
        in_channels: of the map.
        voxel_size: (x, y, z), metres.
        point_cloud_range: minimum (x, y, z), then maximum.
        stride: voxels per cell of the map.
        train_cfg: of the detector, for its own heads; not used.
        test_cfg: the same.
        section: where the part stands in a detector's configuration, for messages.

    Raises:
        ConfigError: for a wrong or missing key, and a head that does not read a map; the message names the section.
    """

    def __init__(
        self,
        config: Config,
        classes: Sequence[str],
        in_channels: int | None = None,
        voxel_size: Sequence[float] | None = None,
        point_cloud_range: Sequence[float] | None = None,
        stride: int | None = None,
        train_cfg: Any = None,
        test_cfg: Any = None,
        section: str = "bbox_head",
    ) -> None:
        super().__init__()
        needed = {"in_channels": in_channels, "voxel_size": voxel_size, "point_cloud_range": point_cloud_range}
        need(section, **needed, stride=stride)
        self.section, self.class_names = section, tuple(classes)
        cells = grid_size(point_cloud_range or (), voxel_size or ())[::-1]
        context = {**needed, "stride": stride, "grid": cells, "classes": self.class_names}
        self.network = build(HEADS, section, config, **context)
        if self.network.reads != "map":
            name = type(self.network).__name__
            raise ConfigError(f"{section}: {name} reads {self.network.reads}, mmdetection3d has maps for heads alone")

    def forward(self, maps: Tensor | Sequence[Tensor]) -> Any:
        """The head's output for a map [B, C, Y, X], or a list with one."""
        if isinstance(maps, Tensor):
            return self.network(maps)
        if len(maps) != 1:
            raise ConfigError(f"{self.section}: reads one map, but backbone and neck give {len(maps)}")
        return self.network(maps[0])

    def loss(self, maps: Any, batch_data_samples: Sequence[Any], **_: Any) -> dict[str, Tensor]:
        """Losses of a batch by names that begin with "loss", which mmengine adds up."""
        targets = [self._targets(sample.gt_instances_3d) for sample in batch_data_samples]
        return {f"loss_{name}": value for name, value in self.network.loss(self(maps), targets).items()}

    def predict(self, maps: Any, batch_data_samples: Sequence[Any], **_: Any) -> list[Any]:
        """Detections of each frame as mmengine's `InstanceData` (bboxes_3d, scores_3d, labels_3d)."""
        found = self.network.decode(self(maps))
        return [self._instances(own, sample) for own, sample in zip(found, batch_data_samples, strict=True)]

    def _targets(self, instances: Any) -> Targets:
        """Labelled boxes with the z of their centres; those of no class (-1) are left out."""
        labels = instances.labels_3d
        boxes = instances.bboxes_3d.tensor.to(labels.device)[labels >= 0]
        return Targets(boxes=moved(boxes, 0.5), labels=labels[labels >= 0].long(), class_names=self.class_names)

    def _instances(self, found: Detections, sample: Any) -> Any:
        from mmengine.structures import InstanceData

        boxes = moved(torch.as_tensor(found.boxes), -0.5)
        own = sample.metainfo["box_type_3d"](boxes, box_dim=boxes.shape[1])
        return InstanceData(bboxes_3d=own, scores_3d=found.scores, labels_3d=found.labels)


def moved(boxes: Tensor, share: float) -> Tensor:
    """Boxes [M, 7+] with z moved by a share of their height: 0.5 from the bottom to the centre, -0.5 back."""
    return torch.cat([boxes[:, :2], boxes[:, 2:3] + share * boxes[:, 5:6], boxes[:, 3:]], 1)


def build(registry: Registry, section: str, config: Config, **context: Any) -> Any:
    """Build a component of this library.

    Args:
        registry: of components of its kind.
        section: where the part stands in a detector's configuration, for messages.
        config: the component, `dict(name=…)`.
        context: arguments that follow from other sections.

    Raises:
        ConfigError: for a wrong or missing key; the message names the section.
    """
    return registry.build(node(section, config), **context)


def node(section: str, config: Config) -> Node:
    """A `config` as a node of ours. Raises ConfigError where it is none."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{section}.config: expected dict(name=…), got {config!r}")
    return node_at(f"{section}.config", plain(config))


def need(section: str, **values: Any) -> None:
    """Raise ConfigError for values that are None: nobody said them, and they could not be derived."""
    for name, value in values.items():
        if value is None:
            raise ConfigError(
                f"{section}: {name} is needed; in a detector it follows from data_preprocessor.voxel_layer and the "
                "sections before"
            )


def batch_size_of(coors: Tensor) -> int:
    """Frames of a batch, by the coordinates (batch, …) of its voxels or points, as mmdetection3d counts them."""
    return int(coors[:, 0].max()) + 1 if len(coors) else 0
