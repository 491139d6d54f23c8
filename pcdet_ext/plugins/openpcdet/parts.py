"""Components of this library in the shape of OpenPCDet's: built from its sections, reading and writing `batch_dict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_ext.config import ConfigError
from pcdet_ext.models.bev import flatten_to_bev
from pcdet_ext.plugins.imports import is_installed
from pcdet_ext.plugins.openpcdet import sections
from pcdet_ext.structures import Detections, PointBatch, SparseVoxels, Targets

BatchDict = dict[str, Any]


class Encoder(nn.Module):
    """A section VFE: points, or the data processor's voxels, to features of voxels.

    Encoders of dynamic voxels read `points` [P, 1 + F] with the frame in column 0, those of hard voxels `voxels`,
    `voxel_num_points` and `voxel_coords`. All write `voxel_features`, `pillar_features` and `voxel_coords`.

    Args:
        model_cfg: the section.
        num_point_features: columns of the points.
        point_cloud_range: minimum (x, y, z), then maximum, metres.
        voxel_size: (x, y, z), metres.
        grid_size: cells (x, y, z) of the voxel grid.

    Raises:
        ConfigError: for a wrong or missing key, and a grid that the encoder does not make.
    """

    section = "MODEL.VFE"

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        num_point_features: int,
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        grid_size: Sequence[int],
        **_: Any,
    ) -> None:
        super().__init__()
        sections.whole_cells(point_cloud_range, voxel_size, grid_size)
        geometry = {
            "point_cloud_range": tuple(map(float, point_cloud_range)),
            "voxel_size": tuple(map(float, voxel_size)),
        }
        self.network = sections.build("VFE", model_cfg, in_channels=num_point_features, **geometry)
        x, y, z = (int(cells) for cells in grid_size)
        if self.network.grid != (z, y, x):
            raise ConfigError(
                f"{self.section}: {type(self.network).__name__} makes a grid of {list(self.network.grid)} cells "
                f"(z, y, x), but POINT_CLOUD_RANGE and VOXEL_SIZE of DATA_CONFIG make {[z, y, x]}; for pillars let a "
                "voxel have the height of the range"
            )
        self.map_channels = self.network.out_channels * z
        self.stride = 1

    def get_output_feature_dim(self) -> int:
        """Channels of a voxel."""
        return int(self.network.out_channels)

    def forward(self, batch_dict: BatchDict) -> BatchDict:
        """Add the voxels to `batch_dict`."""
        if hasattr(self.network, "encode"):
            values = read(batch_dict, self.section, "voxels", "voxel_num_points", "voxel_coords")
            voxels = self.network.encode(values[0], values[2].int(), values[1], int(batch_dict["batch_size"]))
        else:
            (points,) = read(batch_dict, self.section, "points")
            batch = PointBatch(points[:, 1:].contiguous(), points[:, 0].long(), int(batch_dict["batch_size"]))
            voxels = self.network(batch)
        return _write_voxels(batch_dict, voxels)


class Backbone3D(nn.Module):
    """A section BACKBONE_3D: voxels to voxels.

    Reads `voxel_features` or `pillar_features`, and `voxel_coords` (batch, z, y, x). Writes them, too, and
    `encoded_spconv_tensor` with its stride, `multi_scale_3d_features` and `multi_scale_3d_strides`.

    Args:
        model_cfg: the section.
        input_channels: of the voxels.
        grid_size: cells (x, y, z) of the voxel grid.
        voxel_size: (x, y, z), metres.
        point_cloud_range: minimum (x, y, z), then maximum, metres.

    Raises:
        ConfigError: for a wrong or missing key.
    """

    section = "MODEL.BACKBONE_3D"

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        input_channels: int,
        grid_size: Sequence[int],
        voxel_size: Sequence[float],
        point_cloud_range: Sequence[float],
        **_: Any,
    ) -> None:
        super().__init__()
        x, y, z = (int(cells) for cells in grid_size)
        self.grid = (z, y, x)
        context = {
            "in_channels": int(input_channels),
            "grid": self.grid,
            "voxel_size": tuple(map(float, voxel_size)),
            "point_cloud_range": tuple(map(float, point_cloud_range)),
        }
        self.network = sections.build("BACKBONE_3D", model_cfg, **context)
        self.in_channels, self.stride = int(input_channels), int(self.network.stride)
        self.num_point_features = int(self.network.out_channels)
        self.map_channels = self.num_point_features * int(self.network.out_grid[0])
        self.backbone_channels = dict.fromkeys(self._scale_names(), self.num_point_features)

    def _scale_names(self) -> list[str]:
        stages = len(getattr(self.network, "stages", ())) if hasattr(self.network, "scales") else 0
        return [f"x_conv{i + 1}" for i in range(stages + 1)]

    def forward(self, batch_dict: BatchDict) -> BatchDict:
        """Replace the voxels in `batch_dict`."""
        scales = self._scales(self._voxels(batch_dict))
        names = self._scale_names()
        batch_dict["multi_scale_3d_features"] = {n: sparse_tensor(v) for n, v in zip(names, scales, strict=True)}
        batch_dict["multi_scale_3d_strides"] = {
            n: round(self.grid[2] / v.grid[2]) for n, v in zip(names, scales, strict=True)
        }
        batch_dict["encoded_spconv_tensor"] = batch_dict["multi_scale_3d_features"][names[-1]]
        batch_dict["encoded_spconv_tensor_stride"] = self.stride
        return _write_voxels(batch_dict, scales[-1])

    def _scales(self, voxels: SparseVoxels) -> list[SparseVoxels]:
        """The voxels of every stage, the output last."""
        if hasattr(self.network, "scales"):
            return list(self.network.scales(voxels))
        return [self.network(voxels)]

    def _voxels(self, batch_dict: BatchDict) -> SparseVoxels:
        name = "pillar_features" if "pillar_features" in batch_dict else "voxel_features"
        features, coords = read(batch_dict, self.section, name, "voxel_coords")
        if features.shape[-1] != self.in_channels:
            raise ConfigError(
                f"{self.section}: built for {self.in_channels} channels, but batch_dict[{name!r}] of MODEL.VFE has "
                f"{list(features.shape)}"
            )
        coords = coords.int()
        self._check_cells(coords)
        return SparseVoxels(features, coords, self.grid, int(batch_dict["batch_size"]))

    def _check_cells(self, coords: Tensor) -> None:
        if not len(coords):
            return
        highest = coords[:, 1:].amax(0).tolist()
        if any(cell >= size for cell, size in zip(highest, self.grid, strict=True)):
            raise ConfigError(
                f"{self.section}: voxel_coords go up to {highest} (z, y, x), beyond the grid {list(self.grid)}, which "
                "DATA_CONFIG.POINT_CLOUD_RANGE and VOXEL_SIZE make"
            )


class MapToBEV(nn.Module):
    """A section MAP_TO_BEV: voxels to the map `spatial_features` [B, C·Z, Y, X] of all cells.

    NUM_BEV_FEATURES, the channels of the map, is filled in by the plugin where it can be known.
    """

    section = "MODEL.MAP_TO_BEV"

    def __init__(self, model_cfg: Mapping[str, Any], grid_size: Sequence[int], **_: Any) -> None:
        super().__init__()
        if "NUM_BEV_FEATURES" not in model_cfg:
            raise ConfigError(f"{self.section}: NUM_BEV_FEATURES, channels times cells along z, is needed here")
        self.num_bev_features = int(model_cfg["NUM_BEV_FEATURES"])
        x, y, z = (int(cells) for cells in grid_size)
        self.grid = (z, y, x)

    def forward(self, batch_dict: BatchDict) -> BatchDict:
        """Add the map, and `spatial_features_stride`, to `batch_dict`."""
        tensor = batch_dict.get("encoded_spconv_tensor")
        if tensor is not None:
            bev = tensor.dense().flatten(1, 2)
        else:
            name = "pillar_features" if "pillar_features" in batch_dict else "voxel_features"
            features, coords = read(batch_dict, self.section, name, "voxel_coords")
            bev = flatten_to_bev(SparseVoxels(features, coords.int(), self.grid, int(batch_dict["batch_size"])))
        if bev.shape[1] != self.num_bev_features:
            raise ConfigError(
                f"{self.section}.NUM_BEV_FEATURES is {self.num_bev_features}, but the map has {bev.shape[1]} channels"
            )
        batch_dict["spatial_features"] = bev
        batch_dict["spatial_features_stride"] = batch_dict.get("encoded_spconv_tensor_stride", 1)
        return batch_dict


class Backbone2D(nn.Module):
    """A section BACKBONE_2D: the map `spatial_features` to the map `spatial_features_2d`."""

    section = "MODEL.BACKBONE_2D"

    def __init__(self, model_cfg: Mapping[str, Any], input_channels: int | None, **_: Any) -> None:
        super().__init__()
        if input_channels is None:
            raise ConfigError(f"{self.section}: there is no map to read; MODEL.MAP_TO_BEV makes one")
        self.network = sections.build("BACKBONE_2D", model_cfg, in_channels=int(input_channels))
        self.num_bev_features, self.stride = int(self.network.out_channels), self.network.stride

    def forward(self, batch_dict: BatchDict) -> BatchDict:
        """Add the map to `batch_dict`."""
        (bev,) = read(batch_dict, self.section, "spatial_features")
        batch_dict["spatial_features_2d"] = self.network(bev)
        return batch_dict


class DenseHead(nn.Module):
    """A section DENSE_HEAD: the map `spatial_features_2d` to losses, or to detections.

    STRIDE, cells of the voxel grid per cell of the map, is filled in by the plugin where it can be known. Detections
    are finished (decoded and suppressed), as those of OpenPCDet's CenterPoint; detectors that suppress themselves find
    them in `batch_box_preds` and `batch_cls_preds`.

    Args:
        model_cfg: the section.
        input_channels: of the map.
        num_class: how many classes; not needed here, `class_names` says it.
        class_names: of the detector, in the order of OpenPCDet's labels.
        grid_size: cells (x, y, z) of the voxel grid.
        point_cloud_range: minimum (x, y, z), then maximum, metres.
        voxel_size: (x, y, z), metres.

    Raises:
        ConfigError: for a wrong or missing key, and a head that does not read a map.
    """

    section = "MODEL.DENSE_HEAD"

    def __init__(
        self,
        model_cfg: Mapping[str, Any],
        input_channels: int,
        num_class: int,
        class_names: Sequence[str],
        grid_size: Sequence[int],
        point_cloud_range: Sequence[float],
        voxel_size: Sequence[float],
        **_: Any,
    ) -> None:
        super().__init__()
        if model_cfg.get("CLASS_AGNOSTIC", False):
            raise ConfigError(f"{self.section}.CLASS_AGNOSTIC: heads of this library tell classes; write False")
        if "STRIDE" not in model_cfg:
            raise ConfigError(f"{self.section}: STRIDE, voxels per cell of the map, is needed with these backbones")
        x, y, z = (int(cells) for cells in grid_size)
        self.class_names = tuple(class_names)
        stride = int(model_cfg["STRIDE"])
        context = {
            "in_channels": int(input_channels),
            "classes": self.class_names,
            "stride": stride,
            "grid": (z, y, x),
            "point_cloud_range": tuple(map(float, point_cloud_range)),
            "voxel_size": tuple(map(float, voxel_size)),
        }
        self.network = sections.build("DENSE_HEAD", model_cfg, **context)
        if self.network.reads != "map":
            name = type(self.network).__name__
            raise ConfigError(f"{self.section}: {name} reads {self.network.reads}, OpenPCDet has maps for heads alone")
        self.map_size = tuple(-(-cells // stride) for cells in (y, x))
        self.losses: dict[str, Tensor] = {}

    def forward(self, batch_dict: BatchDict) -> BatchDict:
        """Compute losses in training, else add the detections to `batch_dict`."""
        (bev,) = read(batch_dict, self.section, "spatial_features_2d")
        if tuple(bev.shape[2:]) != self.map_size:
            raise ConfigError(
                f"{self.section}.STRIDE makes a map of {list(self.map_size)} cells (y, x), "
                f"but spatial_features_2d is {list(bev.shape)}"
            )
        output = self.network(bev)
        if self.training:
            (boxes,) = read(batch_dict, self.section, "gt_boxes")
            self.losses = self.network.loss(output, self._targets(boxes))
            batch_dict["loss"], batch_dict["tb_dict"] = self.get_loss()
            return batch_dict
        return _write_detections(batch_dict, self.network.decode(output), len(self.class_names))

    def get_loss(self) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses of the last call, and each as a number for logs."""
        total = torch.stack(list(self.losses.values())).sum()
        return total, {name: float(value.detach()) for name, value in self.losses.items()} | {"rpn_loss": total.item()}

    def _targets(self, boxes: Tensor) -> list[Targets]:
        """Labelled boxes [B, M, 7 or 9, and the class from 1 on], zeros where there are fewer, as one per frame."""
        frames = []
        for own in boxes:
            own = own[own[:, -1] > 0]
            frames.append(Targets(boxes=own[:, :-1], labels=own[:, -1].long() - 1, class_names=self.class_names))
        return frames


@dataclass
class _Tensor:
    """What OpenPCDet reads of an spconv tensor, where spconv is not installed."""

    features: Tensor
    indices: Tensor
    spatial_shape: list[int]
    batch_size: int

    def dense(self) -> Tensor:
        """All cells [B, C, Z, Y, X]."""
        z, y, x = self.spatial_shape
        return SparseVoxels(self.features, self.indices, (z, y, x), self.batch_size).dense()


def sparse_tensor(voxels: SparseVoxels) -> Any:
    """Voxels as an spconv tensor: features, indices int32 (batch, z, y, x), spatial shape (z, y, x), batch size."""
    content = voxels.features, voxels.coords.int(), list(voxels.grid), voxels.batch_size
    if not is_installed("spconv"):
        return _Tensor(*content)
    from spconv.pytorch import SparseConvTensor

    return SparseConvTensor(*content)


def read(batch_dict: Mapping[str, Any], section: str, *names: str) -> list[Any]:
    """Entries of `batch_dict`. Raises ConfigError that names the section for one that is missing."""
    for name in names:
        if name not in batch_dict:
            raise ConfigError(
                f"{section}: reads batch_dict[{name!r}], which no section before it has written; "
                f"there are {', '.join(sorted(map(str, batch_dict)))}"
            )
    return [batch_dict[name] for name in names]


def _write_voxels(batch_dict: BatchDict, voxels: SparseVoxels) -> BatchDict:
    batch_dict["voxel_features"] = batch_dict["pillar_features"] = voxels.features
    batch_dict["voxel_coords"] = voxels.coords
    return batch_dict


def _write_detections(batch_dict: BatchDict, found: Sequence[Detections], num_classes: int) -> BatchDict:
    """Detections as finished ones, and padded to equal numbers for detectors that suppress boxes themselves."""
    batch_dict["final_box_dicts"] = [
        {"pred_boxes": own.boxes, "pred_scores": own.scores, "pred_labels": torch.as_tensor(own.labels) + 1}
        for own in found
    ]
    most = max([1, *map(len, found)])
    first = torch.as_tensor(found[0].boxes)
    boxes = first.new_zeros(len(found), most, first.shape[1])
    scores = first.new_zeros(len(found), most, num_classes)
    for i, own in enumerate(found):
        boxes[i, : len(own)] = torch.as_tensor(own.boxes)
        scores[i, torch.arange(len(own), device=scores.device), own.labels] = torch.as_tensor(own.scores)
    batch_dict["batch_box_preds"], batch_dict["batch_cls_preds"] = boxes, scores
    batch_dict["cls_preds_normalized"] = True
    return batch_dict
