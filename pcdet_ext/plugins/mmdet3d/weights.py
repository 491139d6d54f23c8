"""Checkpoints between mmdetection3d and this library.

python -m pcdet_ext.plugins.mmdet3d.weights to-library CONFIG epoch_80.pth lion.ckpt
python -m pcdet_ext.plugins.mmdet3d.weights to-mmdet3d CONFIG lion.ckpt lion.pth

CONFIG is a checkpoint that mmengine's Runner wrote, the same one as well, or the configuration that it wrote beside its
logs (work_dirs/NAME/TIME/vis_data/config.py). Its sections have components of either side. Files are read without
running code, and mmdetection3d is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdet_ext import checkpoint
from pcdet_ext.checkpoint import CheckpointError
from pcdet_ext.config import ConfigError, Node, from_plain
from pcdet_ext.files import atomic_write
from pcdet_ext.interop import flatformer, mmdet3d, mmdet3d_sparse
from pcdet_ext.interop.checkpoints import read_official
from pcdet_ext.interop.parameters import in_spconv_2_order, load_renamed
from pcdet_ext.interop.settings import every_setting_counts
from pcdet_ext.models.detector import VoxelDetector, build_detector
from pcdet_ext.ops import grid_size
from pcdet_ext.plugins.conversion import run_conversion
from pcdet_ext.plugins.mmdet3d.configs import read_config
from pcdet_ext.plugins.mmdet3d.registration import PREFIXES, SECTIONS, derive, is_ours
from pcdet_ext.plugins.nodes import plain

Sections = Mapping[str, Any]
Rename = Callable[[str, bool], str]

INNER = "network."  # our component inside of its part in mmdetection3d
OURS = {
    "voxel_encoder": "encoder",
    "middle_encoder": "backbone",
    "backbone": "bev_backbone",
    "neck": "bev_backbone",
    "bbox_head": "head",
}
# The data sets that this library has, too, and the columns of their points.
DATASETS = {
    "KittiDataset": ("KittiDataset", ("x", "y", "z", "intensity")),
    "NuScenesDataset": ("NuScenesDataset", ("x", "y", "z", "intensity", "timestamp")),
    "WaymoDataset": ("WaymoDataset", ("x", "y", "z", "intensity", "elongation")),
}
COLUMNS = ("x", "y", "z", "intensity", "timestamp")
# What of a head's settings is about training alone, or says again what other sections say.
UNUSED = ("type", "num_classes", "in_channels", "feat_channels", "init_cfg", "assign_per_class", "assigner_per_size")


def to_library(config: str | Path, source: str | Path, out: str | Path) -> int:
    """Write a checkpoint of this library from one that mmdetection3d wrote.

    Args:
        config: a checkpoint or file with the configuration, see `configs.read_config`.
        source: the checkpoint.
        out: the file to write.

    Returns:
        The number of parameters and buffers.

    Raises:
        ConfigError: the configuration has components without a counterpart here; the message names its section.
        CheckpointError: the checkpoint is damaged or does not fit the configuration.
    """
    settings = read_config(config)
    model, prefix = _model(settings)
    ours = library_settings(settings)
    detector = _build(ours, model, prefix)
    try:
        load_renamed(
            detector,
            read_official(source),
            lambda name: _our_name(name, model, prefix),
            lambda name, value, shape: in_spconv_2_order(name, _value(name, value, model), shape),
        )
    except ValueError as error:
        raise CheckpointError(f"{source} and {config}: {error}") from error
    checkpoint.write(out, {"config": ours.plain(), "model": detector.state_dict()})
    return len(detector.state_dict())


def to_mmdet3d(config: str | Path, source: str | Path, out: str | Path) -> int:
    """Write a checkpoint that mmdetection3d loads from one of this library. Arguments as for `to_library`, and errors.

    It has the parameters, not the state of a training: `load_from` takes it, `resume` does not.
    """
    settings = read_config(config)
    model, prefix = _model(settings)
    detector = _build(library_settings(settings), model, prefix)
    checkpoint.load_model(detector, checkpoint.read(source)["model"], source)
    state = {
        _their_name(name, model, prefix): _value(name, value, model, back=True)
        for name, value in detector.state_dict().items()
    }
    meta = {"dataset_meta": {"classes": _classes(settings)}, "written_by": "pcdet_ext"}
    with atomic_write(out) as temporary:
        torch.save({"meta": meta, "state_dict": state}, temporary)
    return len(state)


def library_settings(settings: Mapping[str, Any]) -> Node:
    """Our configuration (sections `data` and `model`) of the detector that one of mmdetection3d describes.

    Raises ConfigError, with mmdetection3d's section, for what has no counterpart here.
    """
    model, prefix = _model(settings)
    layer, classes = _voxel_layer(model["whole"]), _classes(settings)
    found: dict[str, Any] = {
        "name": "VoxelDetector",
        "voxel_size": list(layer["voxel_size"]),
        "encoder": _encoder(model, layer, prefix),
        "backbone": _backbone(model, layer, prefix),
        "bev_backbone": _bev_backbone(model, prefix),
        "head": _head(model, classes, layer, prefix),
    }
    found = {name: node for name, node in found.items() if node is not None}
    return from_plain({"data": _data(settings, model, layer, classes), "model": plain(found)}, "")


def _model(settings: Mapping[str, Any]) -> tuple[Sections, str]:
    """The sections of the detector without their prefix, and the prefix; what follows from others is filled in."""
    model = plain(settings.get("model") or {})
    derive(model)
    for prefix in PREFIXES[::-1]:
        if f"{prefix}voxel_encoder" in model:
            break
    else:
        raise ConfigError("model: has no voxel_encoder; detectors of LiDAR voxels have a counterpart here")
    for name in model:
        if name.startswith(("img_", "rpn_head", "roi_head")):
            raise ConfigError(f"model.{name}: detectors of images or two stages have no counterpart in this library")
    cut = len(prefix[:-1]) and prefix[:-1]
    limits = {name: (model.get(name) or {}) for name in ("train_cfg", "test_cfg")}
    found = {name: model.get(f"{prefix}{name}") for name in SECTIONS}
    found |= {name: (limit.get(cut, limit) if cut else limit) for name, limit in limits.items()}
    return found | {"whole": model}, prefix


def _voxel_layer(model: Mapping[str, Any]) -> Mapping[str, Any]:
    layer = (model.get("data_preprocessor") or {}).get("voxel_layer") or {}
    for name in ("voxel_size", "point_cloud_range", "max_num_points"):
        if name not in layer:
            raise ConfigError(f"model.data_preprocessor.voxel_layer: has no {name}")
    return {"max_voxels": 20000, **layer}


def _dataset(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The section of the data set, without the wrappers around it."""
    for loader in ("test_dataloader", "val_dataloader", "train_dataloader"):
        found = (settings.get(loader) or {}).get("dataset")
        while isinstance(found, Mapping) and isinstance(found.get("dataset"), Mapping):
            found = found["dataset"]
        if isinstance(found, Mapping):
            return found
    raise ConfigError("the configuration has none of test_dataloader, val_dataloader and train_dataloader with dataset")


def _classes(settings: Mapping[str, Any]) -> list[str]:
    """The classes by their numbers."""
    found = (_dataset(settings).get("metainfo") or {}).get("classes") or settings.get("class_names")
    if not found:
        raise ConfigError("test_dataloader.dataset.metainfo: has no classes, whose order gives their numbers")
    return list(found)


def _data(settings: Mapping[str, Any], model: Sections, layer: Mapping[str, Any], classes: list[str]) -> dict[str, Any]:
    dataset = _dataset(settings)
    name, columns = DATASETS.get(dataset.get("type", ""), (None, COLUMNS))
    encoder = model["voxel_encoder"]
    count = encoder.get("in_channels", encoder.get("num_features", 4))
    if not 3 <= count <= len(columns):
        raise ConfigError(f"model.voxel_encoder: points of {count} columns are not known here; known: {columns}")
    found = {
        "classes": classes,
        "point_cloud_range": list(layer["point_cloud_range"]),
        "point_features": list(columns[:count]),
    }
    return found if name is None else {"name": name, "root": str(dataset.get("data_root", "")), **found}


@contextmanager
def _section(where: str) -> Iterator[None]:
    """Errors of what is read name a section of mmdetection3d's configuration."""
    try:
        yield
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(f"model.{where}: has no {error}") from error
    except ValueError as error:
        raise ConfigError(f"model.{where}: {error}") from error


def _encoder(model: Sections, layer: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    section = model["voxel_encoder"]
    if is_ours(section):
        node = dict(section["config"])
        limits = {"max_points": layer["max_num_points"], "max_voxels": layer["max_voxels"]}
        return ({**limits} if node.get("name") in ("PillarVFE", "MeanVFE") else {}) | node
    unused = ("type", "in_channels", "num_features", "voxel_size", "point_cloud_range")
    with _section(f"{prefix}voxel_encoder"), every_setting_counts({"voxel_encoder": section}) as view:
        node = mmdet3d.encoder(view["voxel_encoder"], layer)
        view["voxel_encoder"].skip(unused)
    return node


def _backbone(model: Sections, layer: Mapping[str, Any], prefix: str) -> dict[str, Any] | None:
    section = model["middle_encoder"]
    if section["type"] == "PointPillarsScatter":
        return None
    if section["type"] == "FlatFormer":
        with _section(f"{prefix}middle_encoder"):
            return flatformer.backbone(section)
    if is_ours(section):
        return dict(section["config"])
    if section["type"] == "SparseEncoder":
        grid = grid_size(layer["point_cloud_range"], layer["voxel_size"])[::-1]
        with _section(f"{prefix}middle_encoder"), every_setting_counts({"middle_encoder": section}) as view:
            node = mmdet3d_sparse.sparse_encoder(view["middle_encoder"], grid)
            view["middle_encoder"].skip(("type", "in_channels"))
        return node
    raise ConfigError(f"model.{prefix}middle_encoder: {section['type']!r} has no counterpart in this library")


def _bev_backbone(model: Sections, prefix: str) -> dict[str, Any] | None:
    backbone, neck = model["backbone"], model["neck"]
    if is_ours(backbone):
        if neck is not None:
            raise ConfigError(f"model.{prefix}neck: behind PcdetExtBackbone it has no counterpart in this library")
        return dict(backbone["config"])
    if backbone is None or neck is None:
        raise ConfigError(f"model.{prefix}backbone and {prefix}neck: SECOND and SECONDFPN belong together here")
    with (
        _section(f"{prefix}backbone and {prefix}neck"),
        every_setting_counts({"backbone": backbone, "neck": neck}) as view,
    ):
        node = mmdet3d.bev_backbone(view["backbone"], view["neck"])
        for part in (view["backbone"], view["neck"]):
            part.skip(("type", "in_channels", "init_cfg"))
    return node


def _head(model: Sections, classes: list[str], layer: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    section = model["bbox_head"]
    if is_ours(section):
        if list(section["classes"]) != classes:
            raise ConfigError(
                f"model.{prefix}bbox_head.classes: {section['classes']} are not those of the data, {classes}"
            )
        return dict(section["config"])
    parts = {"bbox_head": section, **{name: model[name] for name in ("train_cfg", "test_cfg")}}
    with _section(f"{prefix}bbox_head"), every_setting_counts(parts) as view:
        node = mmdet3d.head(view["bbox_head"], view["train_cfg"], view["test_cfg"], classes)
        view["bbox_head"].skip(UNUSED)
    if section["type"] == "Anchor3DHead":
        _check_ranges(section, layer, prefix)
    else:
        _check_coder(section["bbox_coder"], layer, prefix)
    return node


def _check_ranges(section: Mapping[str, Any], layer: Mapping[str, Any], prefix: str) -> None:
    """Anchors lie on the whole range here."""
    low, high = list(layer["point_cloud_range"][:2]), list(layer["point_cloud_range"][3:5])
    for own in mmdet3d.anchor_ranges(section):
        if [*own[:2], *own[3:5]] != [*low, *high]:
            raise ConfigError(
                f"model.{prefix}bbox_head.anchor_generator.ranges: {list(own)} must reach over point_cloud_range, "
                f"from x and y {low} to {high}"
            )


def _check_coder(coder: Mapping[str, Any], layer: Mapping[str, Any], prefix: str) -> None:
    """A CenterHead's cells lie on the whole range here."""
    for name, expected in (("pc_range", layer["point_cloud_range"]), ("voxel_size", layer["voxel_size"])):
        if list(coder[name][:2]) != list(expected[:2]):
            raise ConfigError(
                f"model.{prefix}bbox_head.bbox_coder.{name}: {list(coder[name])} does not begin as voxel_layer has it, "
                f"{list(expected[:2])}"
            )


def _build(ours: Node, model: Sections, prefix: str) -> VoxelDetector:
    """The untrained detector. Raises ConfigError where mmdetection3d's head is set to another stride than its map."""
    detector = build_detector(ours)
    coder = model["bbox_head"].get("bbox_coder") or {}
    if coder.get("out_size_factor", detector.stride) != detector.stride:
        raise ConfigError(
            f"model.{prefix}bbox_head.bbox_coder.out_size_factor: {coder['out_size_factor']}, but the map has a stride "
            f"of {detector.stride}"
        )
    return detector


def _inside(section: str, settings: Mapping[str, Any] | None) -> Rename:
    """How parameters inside of a section of mmdetection3d's own are renamed; see `interop.mmdet3d`."""
    kind = (settings or {}).get("type")
    block_type = (settings or {}).get("block_type", mmdet3d_sparse.PLAIN)
    known: dict[Any, Rename] = {
        "SparseEncoder": lambda name, back: mmdet3d_sparse.sparse_name(name, block_type, back),
        "SECOND": mmdet3d.backbone_name,
        "Anchor3DHead": mmdet3d.anchor_name,
        "CenterHead": mmdet3d.center_name,
    }
    return known.get(kind, lambda name, back: name)


def _our_name(name: str, model: Sections, prefix: str) -> str:
    """Our name for a parameter of an mmdetection3d detector, whose parts are its own or ours."""
    section, _, inside = name.removeprefix(prefix).partition(".")
    if section not in OURS:
        return name
    settings = model[section]
    inside = inside.removeprefix(INNER) if is_ours(settings) else _inside(section, settings)(inside, False)
    return f"{OURS[section]}.{inside}"


def _their_name(name: str, model: Sections, prefix: str) -> str:
    """mmdetection3d's name for a parameter of our detector."""
    part, _, inside = name.partition(".")
    section = next(section for section, ours in OURS.items() if ours == part)
    if part == "bev_backbone" and inside.startswith("deblocks.") and not is_ours(model["backbone"]):
        section = "neck"
    settings = model[section]
    inside = f"{INNER}{inside}" if is_ours(settings) else _inside(section, settings)(inside, True)
    return f"{prefix}{section}.{inside}"


def _value(name: str, value: Tensor, model: Sections, back: bool = False) -> Tensor:
    """The value of a parameter by our name from mmdetection3d's; back: theirs from ours."""
    part, _, inside = name.partition(".")
    if part == "head" and model["bbox_head"]["type"] == "CenterHead":
        return mmdet3d.center_value(inside, value)
    if part == "encoder" and model["voxel_encoder"]["type"] == "PillarFeatureNet":
        return mmdet3d.pillar_value(inside, value, model["voxel_encoder"], back)
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the top of the module."""
    directions = {"to-library": to_library, "to-mmdet3d": to_mmdet3d}
    run_conversion(
        "pcdet_ext.plugins.mmdet3d.weights",
        __doc__,
        "a checkpoint or file that mmengine's Runner wrote",
        directions,
        arguments,
    )


if __name__ == "__main__":
    main()
